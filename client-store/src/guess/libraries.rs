//! Where the loader finds a library: as `ld.so(8)` says, inside the image.

use layer_format::entry::Kind;
use layer_format::{Digest, LayerPath};

use super::elf::Names;
use crate::reader::{Look, Nodes};

/// Most configured folders.
const MAX_FOLDERS: usize = 64;
/// Longest configuration file that is read.
const MAX_CONFIG: u64 = 64 << 10;
/// What the loader searches without being told.
const DEFAULT: [&[u8]; 6] = [b"/lib/x86_64-linux-gnu", b"/usr/lib/x86_64-linux-gnu", b"/lib64", b"/usr/lib64", b"/lib", b"/usr/lib"];

/// The folders in which libraries are looked for.
#[derive(Debug, Default)]
pub(crate) struct Libraries {
    configured: Option<Vec<Vec<u8>>>,
}

impl Libraries {
    /// The paths at which a library may be without looking into any configuration: where the file itself says, and where the
    /// loader looks without being told. The loader takes another order; a name rarely stands in two of these folders.
    pub(crate) fn paths(from: &LayerPath, names: &Names, library: &[u8]) -> Vec<LayerPath> {
        if library.contains(&b'/') {
            return LayerPath::from_absolute(library).into_iter().collect();
        }
        let origin = from.parent().unwrap_or_default();
        let own = names.search.iter().map(|folder| expand(folder, &origin));
        let folders = own.chain(DEFAULT.iter().map(|folder| folder.to_vec()));
        folders.filter_map(|folder| normal(&[&folder[..], b"/", library].concat())).collect()
    }

    /// Where else a library of this name may be: in the folders that `/etc/ld.so.conf.d` names.
    pub(crate) fn configured(&mut self, nodes: &Nodes, roots: &[Digest], library: &[u8]) -> Look<Vec<LayerPath>> {
        if self.configured.is_none() {
            match configured(nodes, roots) {
                Look::Found(folders) => self.configured = Some(folders),
                Look::Absent => self.configured = Some(Vec::new()),
                Look::Needs(digest) => return Look::Needs(digest),
            }
        }
        Look::Found(self.configured.iter().flatten().filter_map(|folder| normal(&[&folder[..], b"/", library].concat())).collect())
    }
}

/// Replaces `$ORIGIN`.
fn expand(folder: &[u8], origin: &LayerPath) -> Vec<u8> {
    let absolute = [b"/", origin.as_bytes()].concat();
    for name in [&b"$ORIGIN"[..], b"${ORIGIN}"] {
        if let Some(rest) = folder.strip_prefix(name) {
            return [&absolute[..], rest].concat();
        }
    }
    folder.to_vec()
}

/// The path without `..`; `None` if it is none.
fn normal(path: &[u8]) -> Option<LayerPath> {
    let mut at = LayerPath::root();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => at = at.parent().unwrap_or_default(),
            name => at = at.join(name).ok()?,
        }
    }
    Some(at)
}

/// The folders that `/etc/ld.so.conf.d` names. What includes other files is not followed: distributions use that folder.
fn configured(nodes: &Nodes, roots: &[Digest]) -> Look<Vec<Vec<u8>>> {
    let Ok(folder) = LayerPath::new("etc/ld.so.conf.d") else { return Look::Absent };
    let mut folders = Vec::new();
    for root in roots {
        let entries = match nodes.local_children(root, &folder, MAX_FOLDERS) {
            Look::Found(entries) => entries,
            Look::Absent => continue,
            Look::Needs(digest) => return Look::Needs(digest),
        };
        for entry in entries {
            let Kind::File(recipe) = &entry.kind else { continue };
            if recipe.len() > MAX_CONFIG {
                continue;
            }
            let content = match nodes.local_content(recipe, 0..recipe.len()) {
                Ok(content) => content,
                Err(digest) => return Look::Needs(digest),
            };
            let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| line.starts_with(b"/"));
            folders.extend(lines.take(MAX_FOLDERS).map(<[u8]>::to_vec));
        }
    }
    folders.truncate(MAX_FOLDERS);
    Look::Found(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_and_dots() {
        let origin = LayerPath::new("opt/app/lib").unwrap();
        assert_eq!(expand(b"$ORIGIN/../deps", &origin), b"/opt/app/lib/../deps");
        assert_eq!(normal(b"/opt/app/lib/../deps/x.so"), LayerPath::new("opt/app/deps/x.so").ok());
        assert_eq!(normal(b"/../../x"), LayerPath::new("x").ok());
    }
}
