//! What a container's sandbox changes: each name that it adds (A), changes (C) or deletes (D), against images and host.
//!
//! The sandbox is read as overlayfs keeps it; what lies below is looked up in the filesystems that the VM would show. Folders
//! on the way to a change are in the sandbox as well, and so are changes themselves.

use std::fs::{Metadata, symlink_metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use client_store::LayerView;
use client_store::view::Caller;
use rustix::io::Errno;
use vm::fs::{Attr, HostFs, ImageFs, NodeKind, ROOT, Stubs, Tree};

/// How a name changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Only the sandbox has it.
    Added,
    /// The sandbox has another version, or something below it changed.
    Changed,
    /// The sandbox hides it.
    Deleted,
}

impl Change {
    /// The letter that stands for it.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Added => "A",
            Self::Changed => "C",
            Self::Deleted => "D",
        }
    }
}

/// What lies below the sandbox.
pub struct Below {
    images: ImageFs,
    host: Option<HostFs>,
}

impl std::fmt::Debug for Below {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Below").field("host", &self.host.is_some()).finish_non_exhaustive()
    }
}

/// A name below the sandbox, in the images, on the host, or (a folder) in both.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    image: Option<(u64, NodeKind)>,
    host: Option<(u64, NodeKind)>,
}

impl Below {
    /// These layers, lowest first, over the host as the rules show it, without what is `hidden`.
    pub fn new(layers: Vec<Arc<dyn LayerView>>, rules: &vm::Rules, hidden: &[PathBuf]) -> Self {
        let host = rules.show_host_anywhere().then(|| HostFs::new(Arc::new(rules.clone()), Stubs::default(), hidden));
        Self { images: ImageFs::new(layers, Stubs::default(), Stubs::default(), None), host }
    }

    fn root(&self) -> Found {
        Found { image: Some((ROOT, NodeKind::Directory)), host: self.host.as_ref().map(|_| (ROOT, NodeKind::Directory)) }
    }

    /// A child of what was found.
    fn child(&self, parent: Found, name: &[u8]) -> Result<Option<Found>> {
        let folder = |found: Option<(u64, NodeKind)>| found.filter(|(_, kind)| *kind == NodeKind::Directory).map(|(ino, _)| ino);
        let image = folder(parent.image).map(|ino| look(&self.images, ino, name)).transpose()?.flatten();
        let host = || match (&self.host, folder(parent.host)) {
            (Some(host), Some(ino)) => look(host, ino, name),
            _ => Ok(None),
        };
        let found = match image {
            // A name that an image deletes.
            Some(attr) if attr.kind == NodeKind::CharDevice && attr.rdev == 0 => return Ok(None),
            Some(attr) if attr.kind == NodeKind::Directory => {
                let is_opaque = self.images.xattr(attr.ino, b"user.overlay.opaque").is_ok_and(|value| value == b"y");
                let host = if is_opaque { None } else { host()?.filter(|attr| attr.kind == NodeKind::Directory) };
                Found { image: Some((attr.ino, attr.kind)), host: host.map(|attr| (attr.ino, attr.kind)) }
            }
            Some(attr) => Found { image: Some((attr.ino, attr.kind)), host: None },
            None => match host()? {
                Some(attr) => Found { image: None, host: Some((attr.ino, attr.kind)) },
                None => return Ok(None),
            },
        };
        Ok(Some(found))
    }

    /// Names of the children of what was found.
    fn names(&self, folder: Found) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        if let Some((ino, NodeKind::Directory)) = folder.image {
            list(&self.images, ino, &mut names)?;
        }
        if let (Some(host), Some((ino, NodeKind::Directory))) = (&self.host, folder.host) {
            list(host, ino, &mut names)?;
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

fn look<T: Tree>(tree: &T, parent: u64, name: &[u8]) -> Result<Option<Attr>> {
    match tree.lookup(parent, name, Caller::default()) {
        Ok(found) => Ok(found),
        Err(Errno::NOTDIR | Errno::NOENT | Errno::ACCESS | Errno::NAMETOOLONG) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("looking up {} below the sandbox", String::from_utf8_lossy(name))),
    }
}

fn list<T: Tree>(tree: &T, folder: u64, names: &mut Vec<Vec<u8>>) -> Result<()> {
    let handle = match tree.open_dir(folder) {
        Ok(handle) => handle,
        Err(Errno::NOSYS) => 0,
        Err(errno) => return Err(errno).context("listing a folder below the sandbox"),
    };
    let mut index = 0;
    let result = loop {
        match tree.list(folder, handle, index, 1024, Caller::default()) {
            Ok(children) if children.is_empty() => break Ok(()),
            Ok(children) => {
                index += children.len();
                names.extend(children.iter().map(|child| T::name(child).to_vec()));
            }
            Err(errno) => break Err(errno).context("listing a folder below the sandbox"),
        }
    };
    tree.close_dir(handle);
    result
}

/// All changes of the sandbox whose files are in `upper`, in order of their paths, which are absolute.
pub fn all(upper: &Path, below: &Below) -> Result<Vec<(PathBuf, Change)>> {
    let mut changes = Vec::new();
    if upper.exists() {
        folder(upper, Path::new("/"), below, Some(below.root()), &mut changes)?;
    }
    changes.sort();
    Ok(changes)
}

fn folder(upper: &Path, shown: &Path, below: &Below, found: Option<Found>, changes: &mut Vec<(PathBuf, Change)>) -> Result<()> {
    let is_opaque = attribute(upper, "user.overlay.opaque") == Some(b"y".to_vec());
    let mut here = Vec::new();
    let entries = std::fs::read_dir(upper).with_context(|| format!("reading {}", upper.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", upper.display()))?;
        let (path, name) = (entry.path(), entry.file_name().into_vec());
        let meta = symlink_metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
        let child = found.map(|found| below.child(found, &name)).transpose()?.flatten();
        let child_shown = shown.join(std::ffi::OsStr::from_bytes(&name));
        here.push(name);
        if is_whiteout(&path, &meta) {
            if child.is_some() {
                changes.push((child_shown, Change::Deleted));
            }
            continue;
        }
        changes.push((child_shown.clone(), if child.is_some() { Change::Changed } else { Change::Added }));
        if meta.is_dir() {
            folder(&path, &child_shown, below, child, changes)?;
        }
    }
    if let Some(found) = found.filter(|_| is_opaque) {
        let hidden = below.names(found)?.into_iter().filter(|name| !here.contains(name));
        for name in hidden {
            if below.child(found, &name)?.is_some() {
                changes.push((shown.join(std::ffi::OsString::from_vec(name)), Change::Deleted));
            }
        }
    }
    Ok(())
}

/// Both forms that overlayfs knows.
fn is_whiteout(path: &Path, meta: &Metadata) -> bool {
    let device = meta.file_type().is_char_device() && meta.rdev() == 0;
    device || (meta.is_file() && meta.len() == 0 && attribute(path, "user.overlay.whiteout").is_some())
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 16];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..len].to_vec())
}
