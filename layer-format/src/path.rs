//! The path of an entry inside a layer.

use std::cmp::Ordering;
use std::fmt;

use crate::codec::FormatError;

/// Longest path, in bytes.
pub const MAX_PATH_LEN: usize = 8192;
/// Longest component of a path, in bytes (`NAME_MAX` of Linux).
pub const MAX_NAME_LEN: usize = 255;

/// A path from the root of a layer: components joined by `/`, without a leading or trailing one. The root itself is
/// the empty path. Bytes, since a name need not be UTF-8.
///
/// Always true: at most [`MAX_PATH_LEN`] bytes; no component is empty, `.`, `..`, longer than [`MAX_NAME_LEN`], or
/// contains NUL.
///
/// The order is by parent first, then by name, both as bytes. So all entries of one directory are neighbours, and
/// listing it is one range scan ([`crate::tree`]).
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct LayerPath(Vec<u8>);

impl LayerPath {
    /// The root of the layer.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Checks and takes a path.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] or [`FormatError::TooLarge`] if one of the rules of [`LayerPath`] is broken.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, FormatError> {
        let bytes = bytes.into();
        check(&bytes)?;
        Ok(Self(bytes))
    }

    /// From an absolute path such as `/opt/app`: repeated and trailing slashes and `.` are removed.
    ///
    /// # Errors
    /// If it has a `..`, or breaks a rule of [`LayerPath`].
    pub fn from_absolute(path: &[u8]) -> Result<Self, FormatError> {
        let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        Self::new(parts.join(&b'/'))
    }

    /// The path as bytes, without a leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The parent and the name; `None` for the root.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(split_raw(&self.0))
    }

    /// The parent; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        self.split().map(|(parent, _)| Self(parent.to_vec()))
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        split_raw(&self.0).1
    }

    /// The child `name` of this directory.
    ///
    /// # Errors
    /// If `name` is not one valid component, or the path becomes too long.
    pub fn join(&self, name: &[u8]) -> Result<Self, FormatError> {
        if name.is_empty() || name.contains(&b'/') {
            return Err(FormatError::invalid("path", "a name is one component"));
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self::new(bytes)
    }

    /// `self` below `base`: `base/self`.
    ///
    /// # Errors
    /// If the path becomes too long.
    pub fn below(&self, base: &Self) -> Result<Self, FormatError> {
        match (base.is_root(), self.is_root()) {
            (true, _) => Ok(self.clone()),
            (_, true) => Ok(base.clone()),
            _ => Self::new([base.as_bytes(), self.as_bytes()].join(&b'/')),
        }
    }

    /// Whether this is `ancestor` or below it.
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        ancestor.is_root() || self.0.strip_prefix(ancestor.as_bytes()).is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
    }
}

fn split_raw(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().rposition(|b| *b == b'/') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (&[], bytes),
    }
}

fn check(bytes: &[u8]) -> Result<(), FormatError> {
    let what = "path";
    if bytes.len() > MAX_PATH_LEN {
        return Err(FormatError::TooLarge { what, value: bytes.len() as u64, max: MAX_PATH_LEN as u64 });
    }
    if bytes.is_empty() {
        return Ok(());
    }
    for part in bytes.split(|b| *b == b'/') {
        match part {
            b"" => return Err(FormatError::invalid(what, "a component is empty")),
            b"." | b".." => return Err(FormatError::invalid(what, "a component is `.` or `..`")),
            _ if part.len() > MAX_NAME_LEN => {
                return Err(FormatError::TooLarge { what: "name", value: part.len() as u64, max: MAX_NAME_LEN as u64 });
            }
            _ if part.contains(&0) => return Err(FormatError::invalid(what, "a component contains NUL")),
            _ => {}
        }
    }
    Ok(())
}

impl Ord for LayerPath {
    fn cmp(&self, other: &Self) -> Ordering {
        split_raw(&self.0).cmp(&split_raw(&other.0))
    }
}

impl PartialOrd for LayerPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_leave_the_layer() {
        for bad in ["/etc", "a//b", "a/", "..", "a/../b", "./a", "a\0b"] {
            assert!(LayerPath::new(bad).is_err(), "{bad}");
        }
        assert!(LayerPath::new("x".repeat(256)).is_err());
        assert!(LayerPath::new(b"caf\xe9".to_vec()).is_ok());
        assert!(LayerPath::from_absolute(b"/opt/../etc").is_err());
        assert_eq!(LayerPath::from_absolute(b"//opt/./app/").unwrap().as_bytes(), b"opt/app");
    }

    #[test]
    fn a_directory_is_one_range() {
        let mut paths: Vec<LayerPath> = ["b/c", "a", "b", "b/c/d", "b/a", "", "b-x", "b-x/y"].iter().map(|p| LayerPath::new(*p).unwrap()).collect();
        paths.sort();
        let shown: Vec<String> = paths.iter().map(|p| p.to_string()).collect();
        assert_eq!(shown, ["/", "/a", "/b", "/b-x", "/b/a", "/b/c", "/b-x/y", "/b/c/d"]);
    }

    #[test]
    fn below_and_starts_with() {
        let at = LayerPath::new("opt/app").unwrap();
        assert_eq!(LayerPath::new("main.py").unwrap().below(&at).unwrap().as_bytes(), b"opt/app/main.py");
        assert!(!LayerPath::new("opt/application").unwrap().starts_with(&at));
        assert!(at.starts_with(&LayerPath::new("opt").unwrap()) && at.starts_with(&LayerPath::root()));
    }
}
