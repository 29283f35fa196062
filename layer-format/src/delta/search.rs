//! Finds what new content is compressed against: the same path in an earlier version.
//!
//! A path is looked up when the first new chunk of its file comes, so what has not changed costs nothing. Whatever cannot be
//! found or read is not compressed against: this is never an error.

use std::collections::HashMap;
use std::sync::Arc;

use super::{BasePlace, Cursor, OldFile, Place, in_one_pack};
use crate::digest::Digest;
use crate::entry::Kind;
use crate::path::LayerPath;
use crate::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use crate::tree::Node;

/// An earlier version, and the store that has it.
pub trait OldVersion {
    /// Roots of its trees, lowest layer first: a path is looked for in the last one first.
    fn roots(&self) -> &[Digest];

    /// An object's bytes, verified; `None` if it cannot be had.
    fn object(&self, digest: &Digest) -> Option<Vec<u8>>;

    /// Where these objects are, in the order asked; `None` if that cannot be told.
    fn places(&self, digests: &[Digest]) -> Option<Vec<Place>>;
}

/// Nodes of the earlier tree kept in memory: those around the path of the moment.
const KEPT_NODES: usize = 16;

/// Objects that can be bases, with their places.
pub type Bases = Vec<(Digest, BasePlace)>;

/// See the module.
#[derive(Debug)]
pub struct Search<V> {
    old: V,
    nodes: HashMap<Digest, Arc<Node>>,
    file: File,
}

/// The file whose content is coming.
#[derive(Debug, Default)]
struct File {
    path: Option<LayerPath>,
    cursor: Cursor,
    /// What came of it before the earlier version was looked up.
    passed: Vec<Extent>,
    /// `None` until it is looked up.
    old: Option<OldFile>,
}

impl<V: OldVersion> Search<V> {
    /// A search in this version.
    pub fn new(old: V) -> Self {
        Self { old, nodes: HashMap::new(), file: File::default() }
    }

    /// A file begins.
    pub fn begin(&mut self, path: &LayerPath) {
        self.file = File { path: Some(path.clone()), ..File::default() };
    }

    /// It goes on with something that is not new.
    pub fn pass(&mut self, extent: Extent) {
        match &self.file.old {
            Some(old) => self.file.cursor.pass(old, &extent),
            None => self.file.passed.push(extent),
        }
    }

    /// It goes on with a new chunk of this length: what that can be compressed against, all of it in one pack.
    pub fn like(&mut self, len: u32) -> Bases {
        if self.file.old.is_none() {
            let path = self.file.path.take();
            let old = path.and_then(|path| self.old_file(&path)).unwrap_or_default();
            for extent in std::mem::take(&mut self.file.passed) {
                self.file.cursor.pass(&old, &extent);
            }
            self.file.old = Some(old);
        }
        let Some(old) = self.file.old.as_ref().filter(|old| !old.is_empty()) else { return Bases::new() };
        let digests: Vec<Digest> = self.file.cursor.like(old, len).iter().map(|chunk| chunk.digest).collect();
        self.in_one_pack(&digests)
    }

    /// What a new node of the tree can be compressed against: the node of the same level that has its first path.
    pub fn like_node(&mut self, node: &[u8]) -> Bases {
        let Ok(node) = Node::decode(node) else { return Bases::new() };
        let (first, level) = match &node {
            Node::Leaf(entries) => (entries.first().map(|entry| &entry.path), 0),
            Node::Index { level, children } => (children.first().map(|child| &child.first), *level),
        };
        first.map(|first| self.like_node_at(first, level)).unwrap_or_default()
    }

    /// What a new node of this level that begins with the path `first` can be compressed against.
    pub fn like_node_at(&mut self, first: &LayerPath, level: u8) -> Bases {
        let roots = self.old.roots().to_vec();
        let found = roots.iter().rev().find_map(|root| self.node_at(root, first, level));
        found.map(|(digest, _)| self.in_one_pack(&[digest])).unwrap_or_default()
    }

    /// What the new root of the layer with this number can be compressed against.
    pub fn like_root(&mut self, layer: usize) -> Bases {
        let root = self.old.roots().get(layer).copied();
        root.map(|root| self.in_one_pack(&[root])).unwrap_or_default()
    }

    fn old_file(&mut self, path: &LayerPath) -> Option<OldFile> {
        let roots = self.old.roots().to_vec();
        let recipe = roots.iter().rev().find_map(|root| {
            let (_, node) = self.node_at(root, path, 0)?;
            let Node::Leaf(entries) = &*node else { return None };
            let at = entries.binary_search_by(|entry| entry.path.cmp(path)).ok()?;
            match &entries.get(at)?.kind {
                Kind::File(recipe) => Some(recipe.clone()),
                _ => None,
            }
        })?;
        let (mut old, mut walk) = (OldFile::new(), RangeWalk::new(&recipe, 0..recipe.len()));
        loop {
            match walk.step() {
                RangeStep::Need(digest) => walk.feed(Recipe::decode_node(&self.old.object(&digest)?).ok()?).ok()?,
                RangeStep::Extent { extent, .. } if !old.push(&extent) => return None,
                RangeStep::Extent { .. } => {}
                RangeStep::Done => return Some(old),
            }
        }
    }

    /// The node of this level in whose range a path is.
    fn node_at(&mut self, root: &Digest, path: &LayerPath, level: u8) -> Option<(Digest, Arc<Node>)> {
        let (mut digest, mut above) = (*root, u8::MAX);
        loop {
            let node = self.node(&digest)?;
            let (this, next) = match &*node {
                Node::Leaf(_) => (0, None),
                Node::Index { level, children } => (*level, children.get(Node::child_for(children, path)).map(|child| child.digest)),
            };
            if this == level {
                return Some((digest, node));
            }
            // Levels fall, or the tree is not one.
            if this >= above || this < level {
                return None;
            }
            (digest, above) = (next?, this);
        }
    }

    fn node(&mut self, digest: &Digest) -> Option<Arc<Node>> {
        if let Some(node) = self.nodes.get(digest) {
            return Some(Arc::clone(node));
        }
        let node = Arc::new(Node::decode(&self.old.object(digest)?).ok()?);
        if self.nodes.len() >= KEPT_NODES {
            self.nodes.clear();
        }
        self.nodes.insert(*digest, Arc::clone(&node));
        Some(node)
    }

    fn in_one_pack(&self, digests: &[Digest]) -> Bases {
        in_one_pack(digests, |digests| self.old.places(digests))
    }
}
