//! Is all that an image or a state needs there? From its layer manifests to tree nodes, recipe nodes and chunks, within one
//! namespace, in batches and in memory bounded by the tree's index. Nodes below which all was seen once are remembered,
//! so the next version of an image is checked in proportion to what changed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::{FutureExt, StreamExt, stream};
use layer_format::recipe::{Extent, Recipe};
use layer_format::tree::Node;
use layer_format::{Digest, FormatError};

use super::frames::ReadError;
use super::nodes::{NodeError, Nodes};
use super::objects::Objects;
use crate::db::gc::{gc_epoch, gc_epoch_hold};
use crate::db::namespace::NamespaceId;
use crate::db::object::Location;
use crate::db::verified::{NodeKey, NodeKind, verified_find, verified_insert};
use crate::db::{Connection, DbError};

/// Most missing objects that an answer lists.
pub(crate) const MAX_MISSING: usize = 1000;
/// Nodes that are looked up at a time.
const NODE_BATCH: usize = 256;
/// Chunks that are looked up at a time.
const CHUNK_BATCH: usize = 8192;
/// Nodes that are read at a time.
const READS: usize = 8;

/// Why an image is not complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClosureError {
    /// Objects are not there. At most [`MAX_MISSING`] are listed.
    #[error("{} objects that the image needs are not there", .0.len())]
    Missing(Vec<Digest>),
    /// An object is not what the reference to it says.
    #[error("object {digest} is not what the image says it is: {source}")]
    Invalid {
        /// The object.
        digest: Digest,
        /// Why.
        source: FormatError,
    },
    /// Something could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<crate::db::DbError> for ClosureError {
    fn from(error: crate::db::DbError) -> Self {
        Self::Read(error.into())
    }
}

/// What is still to be looked at.
struct Walk<'a> {
    objects: &'a Objects,
    nodes: &'a Arc<Nodes>,
    namespace: NamespaceId,
    /// References to nodes, last one next.
    pending: Vec<NodeKey>,
    /// Nodes that were put into `pending` once.
    seen: HashSet<NodeKey>,
    /// Chunks to look for, with their lengths.
    chunks: HashMap<Digest, u32>,
    missing: HashSet<Digest>,
    /// Nodes whose references were followed.
    walked: Vec<NodeKey>,
}

/// Nodes that are known to be complete and were not before.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    nodes: Vec<NodeKey>,
    /// The epoch of collections in which the walk began.
    epoch: i64,
}

impl Walked {
    /// Remembers the nodes, unless a collection recorded candidates meanwhile: then something below them may be one. In the
    /// transaction that makes visible what was checked.
    pub(crate) async fn remember(&self, db: &mut Connection, namespace: NamespaceId) -> Result<(), DbError> {
        if self.epoch % 2 == 0 && gc_epoch_hold(&mut *db, namespace).await? == self.epoch {
            verified_insert(db, namespace, &self.nodes).await?;
        }
        Ok(())
    }
}

/// Checks all that these layers need. What it finds stays for [`LEASE`](super::lease::LEASE) from when it began.
pub(crate) async fn closure_check(objects: &Objects, nodes: &Arc<Nodes>, namespace: NamespaceId, layers: &[Digest]) -> Result<Walked, ClosureError> {
    let epoch = {
        let mut db = objects.db.read().await?;
        gc_epoch(&mut db, namespace).await?
    };
    let mut walk =
        Walk { objects, nodes, namespace, pending: Vec::new(), seen: HashSet::new(), chunks: HashMap::new(), missing: HashSet::new(), walked: Vec::new() };
    for layer in layers {
        walk.add(*layer, NodeKind::Layer);
    }
    while !walk.pending.is_empty() && walk.missing.len() < MAX_MISSING {
        walk.step().await?;
    }
    walk.look_for_chunks().await?;
    match walk.missing.is_empty() {
        true => Ok(Walked { nodes: walk.walked, epoch }),
        false => Err(ClosureError::Missing(walk.missing.into_iter().take(MAX_MISSING).collect())),
    }
}

impl Walk<'_> {
    fn add(&mut self, digest: Digest, kind: NodeKind) {
        let key = NodeKey { digest, kind };
        if self.seen.insert(key) {
            self.pending.push(key);
        }
    }

    /// Takes a batch of nodes: those that are verified are done, the others are read and their references followed.
    async fn step(&mut self) -> Result<(), ClosureError> {
        let batch = self.pending.split_off(self.pending.len().saturating_sub(NODE_BATCH));
        let verified = {
            let mut db = self.objects.db.read().await?;
            verified_find(&mut db, self.namespace, &batch).await?
        };
        let batch: Vec<NodeKey> = batch.into_iter().filter(|node| !verified.contains(node)).collect();
        let digests: Vec<Digest> = batch.iter().map(|node| node.digest).collect();
        let places = self.objects.promise_places(self.namespace, &digests).await?;
        let mut there = Vec::new();
        for node in batch {
            match places.get(&node.digest) {
                Some(place) => there.push((node, *place)),
                None => drop(self.missing.insert(node.digest)),
            }
        }
        let (nodes, namespace) = (Arc::clone(self.nodes), self.namespace);
        let mut reads = stream::iter(there).map(move |(node, place)| read(Arc::clone(&nodes), namespace, node, place).boxed()).buffered(READS);
        while let Some((node, references)) = reads.next().await {
            match references {
                Ok(references) => {
                    follow(&mut self.pending, &mut self.seen, &mut self.chunks, node, &references)?;
                    self.walked.push(node);
                }
                Err(NodeError::Invalid { digest, source }) => return Err(ClosureError::Invalid { digest, source }),
                Err(error) => match error.into_outage() {
                    Some(error) => return Err(error.into()),
                    None => drop(self.missing.insert(node.digest)),
                },
            }
        }
        if self.chunks.len() >= CHUNK_BATCH {
            self.look_for_chunks().await?;
        }
        Ok(())
    }

    async fn look_for_chunks(&mut self) -> Result<(), ClosureError> {
        let wanted = std::mem::take(&mut self.chunks);
        let digests: Vec<Digest> = wanted.keys().copied().collect();
        let lens = self.objects.promise(self.namespace, &digests).await?;
        for (digest, len) in wanted {
            match lens.get(&digest) {
                None => drop(self.missing.insert(digest)),
                Some(stored) if *stored == len => {}
                Some(_) => return Err(invalid(digest, "chunk", "it has another length than its reference says")),
            }
        }
        Ok(())
    }
}

async fn read(nodes: Arc<Nodes>, namespace: NamespaceId, node: NodeKey, place: Location) -> (NodeKey, Result<References, NodeError>) {
    let references = match node.kind {
        NodeKind::Layer => nodes.layer(namespace, node.digest, Some(place)).await.map(|layer| References::Root(layer.root)),
        NodeKind::Tree(_) => nodes.tree(namespace, node.digest, Some(place)).await.map(References::Tree),
        NodeKind::Recipe { .. } => nodes.recipe(namespace, node.digest, Some(place)).await.map(References::Recipe),
    };
    (node, references)
}

enum References {
    Root(Digest),
    Tree(Arc<Node>),
    Recipe(Arc<Recipe>),
}

fn invalid(digest: Digest, what: &'static str, rule: &'static str) -> ClosureError {
    ClosureError::Invalid { digest, source: FormatError::Invalid { what, rule } }
}

/// Notes what a node refers to, and checks that the node is of the level and length that the reference to it says.
fn follow(
    pending: &mut Vec<NodeKey>,
    seen: &mut HashSet<NodeKey>,
    chunks: &mut HashMap<Digest, u32>,
    from: NodeKey,
    references: &References,
) -> Result<(), ClosureError> {
    let mut add = |digest, kind| {
        let key = NodeKey { digest, kind };
        if seen.insert(key) {
            pending.push(key);
        }
    };
    let mut recipe = |recipe: &Recipe| -> Result<(), ClosureError> {
        match recipe {
            Recipe::Extents(extents) => {
                for extent in extents {
                    if let Extent::Data(chunk) = extent
                        && chunks.insert(chunk.digest, chunk.len).is_some_and(|other| other != chunk.len)
                    {
                        return Err(invalid(chunk.digest, "chunk", "two references to it give different lengths"));
                    }
                }
            }
            Recipe::Nodes { level, nodes } => {
                for node in nodes {
                    add(node.digest, NodeKind::Recipe { level: *level, len: node.len });
                }
            }
        }
        Ok(())
    };
    match (references, from.kind) {
        (References::Root(root), _) => {
            let key = NodeKey { digest: *root, kind: NodeKind::Tree(None) };
            if seen.insert(key) {
                pending.push(key);
            }
        }
        (References::Tree(node), kind) => {
            let level = match &**node {
                Node::Leaf(_) => 0,
                Node::Index { level, .. } => *level,
            };
            if let NodeKind::Tree(Some(expected)) = kind
                && expected != level
            {
                return Err(invalid(from.digest, "tree node", "its level does not match its parent"));
            }
            match &**node {
                Node::Leaf(entries) => {
                    for entry in entries {
                        if let layer_format::entry::Kind::File(content) = &entry.kind {
                            recipe(content)?;
                        }
                    }
                }
                Node::Index { level, children } => {
                    for child in children {
                        add(child.digest, NodeKind::Tree(Some(level - 1)));
                    }
                }
            }
        }
        (References::Recipe(node), kind) => {
            let NodeKind::Recipe { level, len } = kind else { return Ok(()) };
            let found = match &**node {
                Recipe::Extents(_) => 0,
                Recipe::Nodes { level, .. } => level + 1,
            };
            if found != level || node.len() != len {
                return Err(invalid(from.digest, "recipe node", "it does not match the reference to it"));
            }
            recipe(node)?;
        }
    }
    Ok(())
}
