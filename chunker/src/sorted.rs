//! Builds a tree from entries that come in its order, and resolves hard links on the way.
//!
//! How many names a file has in the tree is known only when all were met. So the entries from the first name on wait,
//! in order, until then.

use std::collections::{HashMap, VecDeque};

use layer_format::entry::{Entry, HardLink, Kind};
use layer_format::recipe::Recipe;
use layer_format::tree::{BuildError, TreeBuilder, TreeRoot};
use layer_format::{Digest, LayerPath};

use crate::capture::index::IndexWriter;
use crate::error::ImportError;
use crate::pipeline::{Begin, Collect, Link, Packer};
use crate::read::Stamp;
use crate::xattr::Xattrs;

/// A device and inode number.
type Inode = (u64, u64);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Sorted<'a> {
    builder: TreeBuilder,
    waiting: VecDeque<Waiting>,
    groups: HashMap<Inode, Group>,
    /// Is told of each regular file with a stamp.
    index: Option<&'a mut IndexWriter>,
}

/// An entry that waits for an earlier one.
#[derive(Debug)]
struct Waiting {
    entry: Entry,
    stamp: Option<Stamp>,
    /// If it has several names.
    inode: Option<Inode>,
}

/// A file with several names.
#[derive(Debug)]
struct Group {
    link: HardLink,
    /// How many names the file system says that it has, in the tree or not.
    names: u64,
    recipe: Recipe,
    /// Read once, with the content.
    xattrs: Xattrs,
}

impl Group {
    fn is_complete(&self) -> bool {
        u64::from(self.link.count) >= self.names
    }
}

/// The name of a group of hard links, from the first path in the tree's order.
pub(crate) fn group_name(first: &LayerPath) -> u64 {
    Digest::of(first.as_bytes()).prefix64()
}

/// Adds an entry to the tree.
pub(crate) fn push(builder: &mut TreeBuilder, entry: Entry, packer: &mut Packer<'_>) -> Result<(), ImportError> {
    builder.push(entry, &mut |node| packer.node(node)).map_err(build_error)
}

/// The finished tree.
pub(crate) fn finish(builder: TreeBuilder, packer: &mut Packer<'_>) -> Result<TreeRoot, ImportError> {
    builder.finish(&mut |node| packer.node(node)).map_err(build_error)
}

fn build_error(error: BuildError<ImportError>) -> ImportError {
    match error {
        BuildError::Put(error) => error,
        BuildError::TooManyEntries => ImportError::TooManyEntries,
        BuildError::TooLarge(path) => ImportError::Entry { path, rule: "its extended attributes are too large for a layer" },
        BuildError::Order(path) => ImportError::Entry { path, rule: "the directory was listed with this name twice: try again when nothing writes to it" },
    }
}

impl<'a> Sorted<'a> {
    /// Also tells `index` of each regular file.
    pub(crate) fn with_index(index: &'a mut IndexWriter) -> Self {
        Self { index: Some(index), ..Self::default() }
    }

    fn push(&mut self, entry: Entry, stamp: Option<Stamp>, packer: &mut Packer<'_>) -> Result<(), ImportError> {
        if let (Some(stamp), Some(index)) = (&stamp, &mut self.index) {
            index.add(stamp, &entry);
        }
        push(&mut self.builder, entry, packer)
    }

    /// Pushes the entries whose links are known, or all of them at the end.
    fn release(&mut self, all: bool, packer: &mut Packer<'_>) -> Result<(), ImportError> {
        loop {
            let groups = &self.groups;
            let ready = |waiting: &mut Waiting| all || waiting.inode.is_none_or(|inode| groups.get(&inode).is_some_and(Group::is_complete));
            let Some(Waiting { mut entry, stamp, inode }) = self.waiting.pop_front_if(ready) else { return Ok(()) };
            let group = inode.and_then(|inode| groups.get(&inode));
            entry.meta.hard_link = group.map(|group| group.link).filter(|link| link.count > 1);
            self.push(entry, stamp, packer)?;
        }
    }
}

impl Collect for Sorted<'_> {
    fn entry(&mut self, begin: Begin, packer: &mut Packer<'_>) -> Result<(), ImportError> {
        let Begin { mut entry, link, stamp } = begin;
        let Link::Inode { dev, ino, names } = link else {
            if self.waiting.is_empty() {
                return self.push(entry, stamp, packer);
            }
            self.waiting.push_back(Waiting { entry, stamp, inode: None });
            return Ok(());
        };
        let inode = (dev, ino);
        match self.groups.get_mut(&inode) {
            Some(group) => {
                if group.is_complete() {
                    return Err(ImportError::Entry {
                        path: entry.path,
                        rule: "a hard link was added during the import: try again when nothing writes to the tree",
                    });
                }
                group.link.count += 1;
                if let Kind::File(recipe) = &mut entry.kind {
                    recipe.clone_from(&group.recipe);
                }
                entry.meta.xattrs.clone_from(&group.xattrs);
                if group.is_complete() {
                    (group.recipe, group.xattrs) = (Recipe::Extents(Vec::new()), Vec::new());
                }
            }
            None => {
                let recipe = match &entry.kind {
                    Kind::File(recipe) => recipe.clone(),
                    _ => Recipe::Extents(Vec::new()),
                };
                let link = HardLink { group: group_name(&entry.path), count: 1 };
                self.groups.insert(inode, Group { link, names, recipe, xattrs: entry.meta.xattrs.clone() });
            }
        }
        self.waiting.push_back(Waiting { entry, stamp, inode: Some(inode) });
        self.release(false, packer)
    }

    fn finish(mut self, packer: &mut Packer<'_>) -> Result<TreeRoot, ImportError> {
        self.release(true, packer)?;
        finish(self.builder, packer)
    }
}
