//! Names that must exist though no layer has them: mount points, and a few small files.
//!
//! As a layer of their own, below all others, they give way to whatever an image has.

use std::collections::BTreeMap;

use client_store::view::Caller;
use client_store::{FetchError, LayerView};
use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::recipe::{Extent, Recipe};
use layer_format::{Digest, LayerPath};

/// Directories and files, with all their parents.
#[derive(Clone, Debug)]
pub struct Stubs {
    entries: BTreeMap<LayerPath, (Entry, Vec<u8>)>,
}

impl Default for Stubs {
    fn default() -> Self {
        let mut stubs = Self { entries: BTreeMap::new() };
        stubs.add_dir(LayerPath::root());
        stubs
    }
}

impl Stubs {
    /// Adds a directory and its parents.
    pub fn add_dir(&mut self, path: LayerPath) {
        self.add(path, 0o755, Kind::Directory { opaque: false }, Vec::new());
    }

    /// Adds a file and its parents. `content` is cut off at the longest chunk.
    pub fn add_file(&mut self, path: LayerPath, mut content: Vec<u8>) {
        content.truncate(layer_format::chunk::MAX_CHUNK_LEN as usize);
        let chunk = ChunkRef { digest: Digest::of(&content), len: content.len() as u32 };
        let extents = if content.is_empty() { Vec::new() } else { vec![Extent::Data(chunk)] };
        self.add(path, 0o644, Kind::File(Recipe::Extents(extents)), content);
    }

    fn add(&mut self, path: LayerPath, mode: u16, kind: Kind, content: Vec<u8>) {
        if self.entries.contains_key(&path) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.add_dir(parent);
        }
        let entry = Entry { path: path.clone(), meta: Meta { mode, ..Meta::default() }, kind };
        self.entries.insert(path, (entry, content));
    }

    /// The stub at a path.
    pub fn get(&self, path: &LayerPath) -> Option<&Entry> {
        self.entries.get(path).map(|(entry, _)| entry)
    }

    /// The content of a stub file.
    pub(super) fn content(&self, path: &LayerPath) -> &[u8] {
        self.entries.get(path).map(|(_, content)| &content[..]).unwrap_or_default()
    }

    /// The children of a directory, by name.
    pub(super) fn children<'a>(&'a self, directory: &'a LayerPath) -> impl Iterator<Item = &'a Entry> {
        let child = |path: &LayerPath| path.split().is_some_and(|(parent, _)| parent == directory.as_bytes());
        self.entries.iter().filter(move |(path, _)| child(path)).map(|(_, (entry, _))| entry)
    }
}

impl LayerView for Stubs {
    fn lookup(&self, path: &LayerPath, _caller: Caller) -> Result<Option<Entry>, FetchError> {
        Ok(self.get(path).cloned())
    }

    fn list(&self, directory: &LayerPath, after: Option<&[u8]>, max: usize, _caller: Caller) -> Result<Vec<Entry>, FetchError> {
        Ok(self.children(directory).filter(|entry| after.is_none_or(|after| entry.path.name() > after)).take(max).cloned().collect())
    }

    fn read(&self, entry: &Entry, offset: u64, len: usize, _caller: Caller) -> Result<Vec<u8>, FetchError> {
        let content = self.content(&entry.path);
        let from = usize::try_from(offset).map_or(content.len(), |at| at.min(content.len()));
        Ok(content[from..].iter().take(len).copied().collect())
    }

    fn seek(&self, entry: &Entry, offset: u64, hole: bool, _caller: Caller) -> Result<Option<u64>, FetchError> {
        let len = self.content(&entry.path).len() as u64;
        Ok((offset < len).then_some(if hole { len } else { offset }))
    }
}
