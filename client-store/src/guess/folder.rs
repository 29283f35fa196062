//! What lies in a directory, by the words that name it.

use std::collections::HashMap;

use layer_format::entry::{Entry, Kind};
use layer_format::{Digest, LayerPath};

use super::{MAX_CHILDREN, words};
use crate::reader::{Look, Nodes};

/// Where Python keeps what it compiled of the modules beside it: those are read, and the sources only looked at.
const COMPILED: &[u8] = b"__pycache__";

/// Something that can be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) path: LayerPath,
    pub(crate) is_directory: bool,
}

/// The items of a directory, and of the folder of compiled modules in it.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    items: Vec<Item>,
    by_stem: HashMap<Vec<u8>, Vec<u32>>,
}

impl Folder {
    /// Looks at what is on this machine only.
    pub(crate) fn look(nodes: &Nodes, root: &Digest, directory: &LayerPath) -> Look<Self> {
        let mut entries = match nodes.local_children(root, directory, MAX_CHILDREN) {
            Look::Found(entries) => entries,
            Look::Absent => return Look::Absent,
            Look::Needs(digest) => return Look::Needs(digest),
        };
        if let Some(compiled) = entries.iter().find(|entry| entry.is_dir() && entry.path.name() == COMPILED) {
            match nodes.local_children(root, &compiled.path.clone(), MAX_CHILDREN) {
                Look::Found(modules) => {
                    let stems: std::collections::HashSet<&[u8]> = modules.iter().map(|entry| words::stem(entry.path.name())).collect();
                    entries.retain(|entry| !(words::kind(entry.path.name()) == b"py" && stems.contains(words::stem(entry.path.name()))));
                    entries.extend(modules.iter().cloned());
                }
                Look::Absent => {}
                Look::Needs(digest) => return Look::Needs(digest),
            }
        }
        let mut folder = Self::default();
        entries.iter().for_each(|entry| folder.add(entry));
        Look::Found(folder)
    }

    fn add(&mut self, entry: &Entry) {
        let is_directory = match &entry.kind {
            Kind::File(_) => false,
            Kind::Directory { .. } if entry.path.name() != COMPILED => true,
            _ => return,
        };
        let number = self.items.len() as u32;
        self.by_stem.entry(words::stem(entry.path.name()).to_vec()).or_default().push(number);
        self.items.push(Item { path: entry.path.clone(), is_directory });
    }

    /// What this word names.
    pub(crate) fn named(&self, word: &[u8]) -> impl Iterator<Item = &Item> {
        self.by_stem.get(word).into_iter().flatten().filter_map(|at| self.items.get(*at as usize))
    }

    /// What is meant if the directory itself is named.
    pub(crate) fn itself(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| !item.is_directory && words::stands_for_folder(item.path.name()))
    }

    /// Whether the directory is a part of something larger.
    pub(crate) fn is_part(&self) -> bool {
        self.by_stem.contains_key(&b"__init__"[..])
    }
}

/// The directory in whose names a file speaks: that of the source, for a compiled module.
pub(crate) fn home(path: &LayerPath) -> LayerPath {
    let directory = path.parent().unwrap_or_default();
    match directory.name() == COMPILED {
        true => directory.parent().unwrap_or_default(),
        false => directory,
    }
}
