//! What the roots lead to. Level by level: all that is to be followed is sorted, so that each object is read once a level and
//! memory stays bounded, however many objects there are.

use std::path::Path;

use futures::{FutureExt, StreamExt, stream};
use layer_format::Digest;
use layer_format::entry;
use layer_format::manifest::{LayerManifest, Manifest};
use layer_format::recipe::{Extent, Recipe};
use layer_format::tree::Node;

use super::GcError;
use super::pace::Pace;
use super::roots::{Frontier, Kind, RECORD_LEN, decode};
use super::runs::{Runs, Sorted};
use crate::db::namespace::NamespaceId;
use crate::service::objects::Objects;

/// Nodes that are looked up at a time.
const BATCH: usize = 512;
/// Nodes that are read at a time.
const READS: usize = 4;
/// Nodes that cannot be read and are named.
const MAX_LOST: usize = 100;

/// What was found.
#[derive(Debug)]
pub(super) struct Marked {
    /// Digests of all that is reached, in order.
    pub(super) reached: Sorted<{ Digest::LEN }>,
    /// How often an object was read to see what it refers to.
    pub(super) nodes_read: u64,
    /// Objects that are needed and cannot be read, so that what they lead to is not known.
    pub(super) lost: Vec<Digest>,
}

/// What a recipe refers to.
pub(super) fn recipe_references(recipe: &Recipe, each: &mut impl FnMut(Kind, &Digest)) {
    match recipe {
        Recipe::Extents(extents) => {
            for extent in extents {
                if let Extent::Data(chunk) = extent {
                    each(Kind::Leaf, &chunk.digest);
                }
            }
        }
        Recipe::Nodes { nodes, .. } => nodes.iter().for_each(|node| each(Kind::Recipe, &node.digest)),
    }
}

/// What an object refers to. `None` if it is not what it should be.
pub(super) fn references(kind: Kind, bytes: &[u8], each: &mut impl FnMut(Kind, &Digest)) -> Option<()> {
    match kind {
        Kind::Leaf => {}
        Kind::Layer => each(Kind::Tree, &LayerManifest::decode(bytes).ok()?.root),
        Kind::Recipe => recipe_references(&Recipe::decode_node(bytes).ok()?, each),
        Kind::Tree => match Node::decode(bytes).ok()? {
            Node::Index { children, .. } => children.iter().for_each(|child| each(Kind::Tree, &child.digest)),
            Node::Leaf(entries) => {
                for entry in &entries {
                    if let entry::Kind::File(recipe) = &entry.kind {
                        recipe_references(recipe, each);
                    }
                }
            }
        },
    }
    Some(())
}

/// Follows the roots to their ends.
pub(super) async fn mark(objects: &Objects, namespace: NamespaceId, roots: Runs<RECORD_LEN>, folder: &Path, pace: &mut Pace<'_>) -> Result<Marked, GcError> {
    let mut reached = Runs::new(folder);
    let (mut nodes_read, mut lost) = (0, Vec::new());
    let mut level = roots;
    loop {
        let mut sorted = level.sorted().map_err(GcError::Scratch)?;
        let mut next = Frontier::new(folder);
        let mut is_empty = true;
        loop {
            let batch = sorted.take(BATCH).map_err(GcError::Scratch)?;
            if batch.is_empty() {
                break;
            }
            is_empty = false;
            let batch: Vec<(Kind, Digest)> = batch.iter().map(decode).collect();
            for (_, digest) in &batch {
                reached.push(*digest.as_bytes()).map_err(GcError::Scratch)?;
            }
            let nodes: Vec<(Kind, Digest)> = batch.into_iter().filter(|(kind, _)| *kind != Kind::Leaf).collect();
            let digests: Vec<Digest> = nodes.iter().map(|(_, digest)| *digest).collect();
            let places = objects.locate(namespace, &digests).await?;
            let mut there = Vec::with_capacity(nodes.len());
            for (kind, digest) in nodes {
                match places.get(&digest) {
                    Some(place) => there.push((kind, digest, *place)),
                    None => note(&mut lost, digest),
                }
            }
            // As they lie, so that a frame is read once.
            there.sort_by_key(|(.., place)| place.frame);
            let mut reads =
                stream::iter(there).map(|(kind, digest, place)| async move { (kind, digest, objects.read(&digest, &place).await) }.boxed()).buffered(READS);
            while let Some((kind, digest, bytes)) = reads.next().await {
                nodes_read += 1;
                match bytes {
                    Ok(bytes) if references(kind, &bytes, &mut |kind, digest| next.add(kind, digest)).is_some() => {}
                    Ok(_) => note(&mut lost, digest),
                    Err(error) if error.is_loss() => note(&mut lost, digest),
                    Err(error) => return Err(error.into()),
                }
            }
            drop(reads);
            pace.rest().await?;
        }
        if is_empty {
            break;
        }
        level = next.into_runs().map_err(GcError::Scratch)?;
    }
    Ok(Marked { reached: reached.sorted().map_err(GcError::Scratch)?, nodes_read, lost })
}

fn note(lost: &mut Vec<Digest>, digest: Digest) {
    if lost.len() < MAX_LOST && !lost.contains(&digest) {
        lost.push(digest);
    }
}
