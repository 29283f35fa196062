//! The entries of a stack of layers as one tree, depth first.
//!
//! Depth first, since GNU tar sets the time of a directory when it meets the first entry outside of it, and an entry that
//! comes later would change it again. Of each directory, what is not a directory comes first: its content lies side by
//! side in the packs.
//!
//! The layers' listings of one directory are scanned side by side. For each name the layers are asked from the highest
//! down; what hides lower layers' entries *below* it (a whiteout, something that is not a directory, an opaque
//! directory) bounds the layers that are listed there.

use std::collections::{HashMap, VecDeque};

use layer_format::entry::{Entry, Kind};
use layer_format::tree::{Lookup, Node, Scan, Step};
use layer_format::{Digest, LayerPath};

use super::{ExportError, fetch};
use crate::source::ObjectSource;

/// Most tree nodes kept for the next directory: those on the way down are met again and again.
const MAX_CACHED_NODES: usize = 64;

/// See the module.
pub(super) struct Merge<'a> {
    nodes: Nodes<'a>,
    roots: Vec<Digest>,
    /// Directories being listed, innermost last.
    open: Vec<Listing>,
    started: bool,
    /// Whether whiteouts are shown.
    hides: bool,
}

/// A directory of all layers being listed.
struct Listing {
    /// The layers that have it, highest first, and the next entry of each.
    layers: Vec<(usize, Scan, Option<Entry>)>,
    /// Directories found in it, which come after everything else.
    below: VecDeque<Shown>,
}

/// An entry that shows.
struct Shown {
    /// Its layer.
    layer: usize,
    entry: Entry,
    /// The layers in which it is a directory that shows, highest first.
    listed: Vec<usize>,
}

impl<'a> Merge<'a> {
    /// Of the layers with these roots, lowest first.
    pub(super) fn new(roots: &[Digest], source: &'a dyn ObjectSource) -> Self {
        Self { nodes: Nodes { source, cache: HashMap::new() }, roots: roots.to_vec(), open: Vec::new(), started: false, hides: false }
    }

    /// Of one layer, with what it hides of others.
    pub(super) fn layer(root: Digest, source: &'a dyn ObjectSource) -> Self {
        Self { hides: true, ..Self::new(&[root], source) }
    }

    /// Whether what is hidden is shown.
    pub(super) fn hides(&self) -> bool {
        self.hides
    }

    /// The next entry that shows, and the number of its layer.
    pub(super) fn next(&mut self) -> Result<Option<(usize, Entry)>, ExportError> {
        if !self.started {
            self.started = true;
            if let Some(root) = self.root()? {
                return self.enter(root).map(Some);
            }
        }
        while let Some(listing) = self.open.last_mut() {
            if let Some(shown) = listing.next(&mut self.nodes, self.hides)? {
                return Ok(Some(shown));
            }
            match listing.below.pop_front() {
                Some(shown) => return self.enter(shown).map(Some),
                None => drop(self.open.pop()),
            }
        }
        Ok(None)
    }

    /// The root directory, which every layer has.
    fn root(&mut self) -> Result<Option<Shown>, ExportError> {
        let mut found = Vec::new();
        for (layer, root) in self.roots.iter().enumerate().rev() {
            let mut lookup = Lookup::new(*root, LayerPath::root());
            let entry = loop {
                match lookup.step() {
                    Step::Done(entry) => break entry.clone(),
                    Step::Need(digest) => {
                        let digest = *digest;
                        self.nodes.with(digest, |node| lookup.feed(node))?;
                    }
                }
            };
            found.extend(entry.map(|entry| (layer, entry)));
        }
        Ok(shown(found, self.hides))
    }

    /// Starts to list a directory.
    fn enter(&mut self, shown: Shown) -> Result<(usize, Entry), ExportError> {
        let mut listing = Listing { layers: Vec::new(), below: VecDeque::new() };
        for layer in shown.listed {
            let Some(root) = self.roots.get(layer) else { continue };
            let mut scan = Scan::directory(*root, shown.entry.path.clone(), None);
            let first = self.nodes.advance(&mut scan)?;
            listing.layers.push((layer, scan, first));
        }
        self.open.push(listing);
        Ok((shown.layer, shown.entry))
    }
}

impl Listing {
    /// The next entry that shows and is not a directory.
    fn next(&mut self, nodes: &mut Nodes<'_>, hides: bool) -> Result<Option<(usize, Entry)>, ExportError> {
        while let Some(path) = self.layers.iter().filter_map(|(.., entry)| entry.as_ref().map(|entry| &entry.path)).min().cloned() {
            let mut found = Vec::new();
            for (layer, scan, next) in &mut self.layers {
                if let Some(entry) = next.take_if(|entry| entry.path == path) {
                    found.push((*layer, entry));
                    *next = nodes.advance(scan)?;
                }
            }
            match shown(found, hides) {
                Some(shown) if shown.entry.is_dir() => self.below.push_back(shown),
                Some(shown) => return Ok(Some((shown.layer, shown.entry))),
                None => {}
            }
        }
        Ok(None)
    }
}

/// What shows of the entries of one path, highest layer first; whiteouts, too, if `hides`.
fn shown(found: Vec<(usize, Entry)>, hides: bool) -> Option<Shown> {
    let mut listed = Vec::new();
    for (layer, entry) in &found {
        match entry.kind {
            Kind::Directory { opaque } => {
                listed.push(*layer);
                if opaque {
                    break;
                }
            }
            // Below a directory of a higher layer it does not show itself, but hides what is below it in lower ones.
            _ => break,
        }
    }
    let (layer, entry) = found.into_iter().next().filter(|(_, entry)| hides || entry.kind != Kind::Whiteout)?;
    Some(Shown { layer, entry, listed })
}

/// Reads tree nodes.
struct Nodes<'a> {
    source: &'a dyn ObjectSource,
    cache: HashMap<Digest, Node>,
}

impl Nodes<'_> {
    fn with(&mut self, digest: Digest, feed: impl FnOnce(&Node) -> Result<(), layer_format::FormatError>) -> Result<(), ExportError> {
        let invalid = |source| ExportError::Object { digest, source };
        if !self.cache.contains_key(&digest) {
            if self.cache.len() >= MAX_CACHED_NODES {
                self.cache.clear();
            }
            let node = Node::decode(&fetch(self.source, &digest)?).map_err(invalid)?;
            self.cache.insert(digest, node);
        }
        match self.cache.get(&digest) {
            Some(node) => feed(node).map_err(invalid),
            None => Ok(()),
        }
    }

    fn advance(&mut self, scan: &mut Scan) -> Result<Option<Entry>, ExportError> {
        loop {
            match scan.step() {
                Step::Done(entry) => return Ok(entry),
                Step::Need(digest) => self.with(digest, |node| scan.feed(node))?,
            }
        }
    }
}
