//! The name of an image: `[namespace/]name[:release][@digest | #digest-prefix]`.
//!
//! The grammar of a repository name is that of the OCI distribution specification, so that the same name works in
//! container tools. A name without namespace belongs to [`DEFAULT_NAMESPACE`]. Without a release, [`HEAD`] is meant:
//! whatever was pushed last.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// Namespace of names that state none.
pub const DEFAULT_NAMESPACE: &str = "library";
/// The release that always is the newest revision.
pub const HEAD: &str = "head";
/// Most bytes of a repository name.
pub const MAX_REPOSITORY_LEN: usize = 255;
/// Most bytes of a release.
pub const MAX_RELEASE_LEN: usize = 128;

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image name: {reason}. Expected [namespace/]name[:release], in lower case, such as tools/scipy:1.0")]
pub struct ParseReferenceError {
    text: String,
    reason: &'static str,
}

/// All revisions of one image: `namespace/name`, checked.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

impl Repository {
    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first component.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or(DEFAULT_NAMESPACE, |(namespace, _)| namespace)
    }
}

impl FromStr for Repository {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| ParseReferenceError { text: text.chars().take(80).collect(), reason };
        let full = if text.contains('/') { text.to_owned() } else { format!("{DEFAULT_NAMESPACE}/{text}") };
        if full.len() > MAX_REPOSITORY_LEN {
            return Err(error("it is too long"));
        }
        match full.split('/').all(is_component) {
            true => Ok(Self(full)),
            false => Err(error("a part has other characters than a-z, 0-9 and single separators . _ - between them")),
        }
    }
}

/// `[a-z0-9]+ ((\.|_|__|-+) [a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let mut separator = String::new();
    let mut after_letter = false;
    for c in part.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                let fine = matches!(separator.as_str(), "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
                if !fine {
                    return false;
                }
                separator.clear();
                after_letter = true;
            }
            '.' | '_' | '-' if after_letter => separator.push(c),
            _ => return false,
        }
    }
    after_letter && separator.is_empty()
}

/// Whether `text` can be a release: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
pub fn is_release(text: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    text.len() <= MAX_RELEASE_LEN && text.chars().all(ok) && !text.is_empty() && !text.starts_with(['.', '-'])
}

impl fmt::Display for Repository {
    /// Without the default namespace, as a user would type it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.0.strip_prefix(DEFAULT_NAMESPACE).and_then(|rest| rest.strip_prefix('/')).filter(|name| !name.contains('/'));
        f.write_str(own.unwrap_or(&self.0))
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which revision of a repository is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Revision {
    /// The newest.
    Head,
    /// The one with this label.
    Release(String),
    /// The one with this digest.
    Digest(Digest),
    /// The one whose digest starts with these hex digits (4 or more).
    Prefix(String),
}

/// A repository and a revision of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageReference {
    /// The repository.
    pub repository: Repository,
    /// The revision.
    pub revision: Revision,
}

impl ImageReference {
    /// The label that the revision is known by, if it is known by one.
    pub fn release(&self) -> Option<&str> {
        match &self.revision {
            Revision::Head => Some(HEAD),
            Revision::Release(release) => Some(release),
            Revision::Digest(_) | Revision::Prefix(_) => None,
        }
    }

    /// Parses a comma-separated list, at least one.
    ///
    /// # Errors
    /// The first part that is not an image reference.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, ParseReferenceError> {
        text.split(',').map(|part| part.trim().parse()).collect()
    }
}

impl FromStr for ImageReference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| ParseReferenceError { text: text.chars().take(80).collect(), reason };
        if let Some((name, digest)) = text.split_once('@') {
            let name = name.split_once(':').map_or(name, |(name, _)| name);
            let digest = digest.parse().map_err(|_| error("what follows @ is not a digest"))?;
            return Ok(Self { repository: name.parse()?, revision: Revision::Digest(digest) });
        }
        if let Some((name, prefix)) = text.split_once('#') {
            let name = name.split_once(':').map_or(name, |(name, _)| name);
            if !(4..=64).contains(&prefix.len()) || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(error("what follows # is not 4 to 64 hex digits"));
            }
            return Ok(Self { repository: name.parse()?, revision: Revision::Prefix(prefix.into()) });
        }
        match text.split_once(':') {
            None => Ok(Self { repository: text.parse()?, revision: Revision::Head }),
            Some((name, "" | HEAD)) => Ok(Self { repository: name.parse()?, revision: Revision::Head }),
            Some((name, release)) if is_release(release) => Ok(Self { repository: name.parse()?, revision: Revision::Release(release.into()) }),
            Some(_) => Err(error("the release has characters other than letters, digits, . _ and -")),
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Revision::Head => write!(f, "{}", self.repository),
            Revision::Release(release) => write!(f, "{}:{release}", self.repository),
            Revision::Digest(digest) => write!(f, "{}@{digest}", self.repository),
            Revision::Prefix(prefix) => write!(f, "{}#{prefix}", self.repository),
        }
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Repository, ImageReference);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_shows() {
        let digest = Digest::of(b"x");
        for (text, shown) in [
            ("tools/scipy:1.0", "tools/scipy:1.0"),
            ("scipy", "scipy"),
            ("library/scipy:head", "scipy"),
            ("a/b/c__d:V_1.2-x", "a/b/c__d:V_1.2-x"),
            ("tools/scipy#abcd12", "tools/scipy#abcd12"),
            (&format!("t/x:1@{digest}"), &format!("t/x@{digest}")),
        ] {
            let reference: ImageReference = text.parse().unwrap();
            assert_eq!(reference.to_string(), shown);
            assert_eq!(shown.parse::<ImageReference>().as_ref(), Ok(&reference));
        }
    }

    #[test]
    fn refuses_what_is_no_name() {
        let long = "a".repeat(300);
        for bad in
            ["", "/", "a/", "/a", "A", "a b", "a//b", "../a", "a/..", "a._b", "-a", "a-", "a:", "a:b/c", "a:é", "a@b3:00", "a#12", "a#XYZW", "a\0", &long]
        {
            let parsed = bad.parse::<ImageReference>();
            assert!(parsed.is_err() || bad == "a:", "{bad:?} gave {parsed:?}");
        }
        assert!(ImageReference::parse_list("a,,b").is_err());
        assert_eq!(ImageReference::parse_list("base/debian:12, tools/scipy").unwrap().len(), 2);
    }
}
