//! The entries of an archive in the order of the tree, with the rules that make them a tree.

use std::collections::BTreeMap;
use std::collections::btree_map;

use layer_format::LayerPath;
use layer_format::entry::{Entry, HardLink, Kind, Meta};
use layer_format::tree::{TreeBuilder, TreeRoot};

use super::MAX_TAR_NAMES;
use super::error::{TarError, show};
use crate::error::ImportError;
use crate::import::{parents, plain_directory};
use crate::pipeline::{Begin, Collect, Link, Packer};
use crate::sorted;

/// All names so far. What a name stands for is kept apart, so that hard links share it.
///
/// Always true: the parent of every name is there and is a directory.
#[derive(Debug)]
pub(super) struct Names {
    names: BTreeMap<LayerPath, usize>,
    inodes: Vec<Inode>,
    /// Inodes without a name, to be used again.
    free: Vec<usize>,
}

#[derive(Debug)]
struct Inode {
    meta: Meta,
    kind: Kind,
    /// How many names it has.
    names: u32,
    /// Its first path in the tree's order; set when the tree is built.
    group: Option<u64>,
}

impl Names {
    /// The plain directories down to `at`, which the archive's own entries may replace.
    pub(super) fn new(at: &LayerPath) -> Self {
        let mut names = Self { names: BTreeMap::new(), inodes: Vec::new(), free: Vec::new() };
        for entry in parents(at).into_iter().chain([plain_directory(at.clone())]) {
            names.set(entry.path, entry.meta, entry.kind);
        }
        names
    }

    fn kind(&self, path: &LayerPath) -> Option<&Kind> {
        self.names.get(path).and_then(|inode| self.inodes.get(*inode)).map(|inode| &inode.kind)
    }

    /// Gives `path` a new inode; what had this name loses it.
    fn set(&mut self, path: LayerPath, meta: Meta, kind: Kind) {
        let inode = Inode { meta, kind, names: 0, group: None };
        let index = match self.free.pop() {
            Some(index) => {
                self.inodes[index] = inode;
                index
            }
            None => {
                self.inodes.push(inode);
                self.inodes.len() - 1
            }
        };
        self.name(path, index);
    }

    fn name(&mut self, path: LayerPath, inode: usize) {
        self.inodes[inode].names += 1;
        let Some(old) = self.names.insert(path, inode) else { return };
        self.inodes[old].names -= 1;
        if self.inodes[old].names == 0 {
            self.inodes[old].kind = Kind::Fifo;
            self.inodes[old].meta = Meta::default();
            self.free.push(old);
        }
    }

    /// Creates the missing directories above `path`; refuses others in their place.
    fn make_parents(&mut self, path: &LayerPath) -> Result<(), TarError> {
        let mut missing = Vec::new();
        let mut above = path.parent();
        while let Some(parent) = above {
            match self.kind(&parent) {
                Some(Kind::Directory { .. }) => break,
                Some(Kind::Symlink(_)) => return Err(TarError::escape(path.as_bytes(), "it lies below a symbolic link of the same archive")),
                Some(Kind::Whiteout) | None => {
                    above = parent.parent();
                    missing.push(parent);
                }
                Some(_) => return Err(TarError::escape(path.as_bytes(), "it lies below something that is not a directory")),
            }
        }
        for parent in missing.into_iter().rev() {
            let Entry { path, meta, kind } = plain_directory(parent);
            let replaced = matches!(self.kind(&path), Some(Kind::Whiteout));
            self.set(path, meta, if replaced { Kind::Directory { opaque: true } } else { kind });
        }
        Ok(())
    }

    fn has_children(&self, path: &LayerPath) -> bool {
        path.join(b"\x01")
            .is_ok_and(|first| self.names.range(first..).next().is_some_and(|(name, _)| name.split().is_some_and(|(parent, _)| parent == path.as_bytes())))
    }

    fn add(&mut self, entry: Entry, link: Link) -> Result<(), TarError> {
        let Entry { path, meta, mut kind } = entry;
        self.make_parents(&path)?;
        let old = self.kind(&path);
        match link {
            Link::Target(target) => return self.add_link(path, &target),
            Link::OpaqueMarker => {
                return match self.names.get(&path).and_then(|inode| self.inodes.get_mut(*inode)) {
                    Some(Inode { kind: Kind::Directory { opaque }, .. }) => {
                        *opaque = true;
                        Ok(())
                    }
                    Some(Inode { kind: Kind::Whiteout, .. }) | None => {
                        self.set(path, plain_directory(LayerPath::root()).meta, Kind::Directory { opaque: true });
                        Ok(())
                    }
                    Some(_) => Err(TarError::escape(path.as_bytes(), "it is marked as opaque and is not a directory")),
                };
            }
            Link::None | Link::Inode { .. } => {}
        }
        match (old, &mut kind) {
            // A whiteout hides lower layers only: what the layer itself has stays, and hides them too.
            (Some(Kind::Directory { .. }), Kind::Whiteout) => {
                return self.add(Entry { path, meta, kind: Kind::Directory { opaque: true } }, Link::OpaqueMarker);
            }
            (Some(Kind::Whiteout), Kind::Directory { opaque }) => *opaque = true,
            (Some(Kind::Whiteout) | None, _) => {}
            (Some(_), Kind::Whiteout) => return Ok(()),
            (Some(Kind::Directory { opaque: old }), Kind::Directory { opaque }) => *opaque |= *old,
            (Some(Kind::Directory { .. }), _) if path.is_root() || self.has_children(&path) => {
                return Err(TarError::invalid(path.as_bytes(), "it replaces a directory that is not empty"));
            }
            (Some(_), _) => {}
        }
        self.set(path, meta, kind);
        Ok(())
    }

    fn add_link(&mut self, path: LayerPath, target: &LayerPath) -> Result<(), TarError> {
        let bad = || TarError::LinkTarget { name: show(path.as_bytes()), target: show(target.as_bytes()) };
        let inode = *self.names.get(target).ok_or_else(bad)?;
        match self.kind(target) {
            Some(Kind::Directory { .. } | Kind::Whiteout) | None => return Err(bad()),
            Some(_) => {}
        }
        if matches!(self.kind(&path), Some(Kind::Directory { .. })) && (path.is_root() || self.has_children(&path)) {
            return Err(TarError::invalid(path.as_bytes(), "it replaces a directory that is not empty"));
        }
        self.name(path, inode);
        Ok(())
    }
}

impl Collect for Names {
    fn entry(&mut self, begin: Begin, _packer: &mut Packer<'_>) -> Result<(), ImportError> {
        let Begin { entry, link, .. } = begin;
        if self.names.len() >= MAX_TAR_NAMES {
            return Err(ImportError::TooManyEntries);
        }
        self.add(entry, link).map_err(ImportError::Tar)
    }

    fn finish(mut self, packer: &mut Packer<'_>) -> Result<TreeRoot, ImportError> {
        let mut builder = TreeBuilder::new();
        let names: btree_map::IntoIter<LayerPath, usize> = self.names.into_iter();
        for (path, index) in names {
            let Some(inode) = self.inodes.get_mut(index) else { continue };
            let (mut meta, kind) = match inode.names {
                1 => (std::mem::take(&mut inode.meta), std::mem::replace(&mut inode.kind, Kind::Fifo)),
                _ => (inode.meta.clone(), inode.kind.clone()),
            };
            if inode.names > 1 {
                let group = *inode.group.get_or_insert_with(|| sorted::group_name(&path));
                meta.hard_link = Some(HardLink { group, count: inode.names });
            }
            sorted::push(&mut builder, Entry { path, meta, kind }, packer)?;
        }
        sorted::finish(builder, packer)
    }
}
