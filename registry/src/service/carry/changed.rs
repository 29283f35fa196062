//! What one tree has and another has not: by the digests of tree objects, so that what both share is not read.

use std::collections::{HashMap, HashSet};

use layer_format::entry::{Entry, Kind};
use layer_format::recipe::Recipe;
use layer_format::tree::Node;
use layer_format::{Digest, LayerPath};

use super::super::frames::ReadError;
use super::super::nodes::NodeError;
use super::super::resolve::Layers;

/// Entries beyond which no more are looked at.
const MAX_ENTRIES: usize = 1 << 18;
/// Paths that are remembered for one content: more say nothing.
const MAX_EQUAL: usize = 8;

/// Files of `new` in tree objects that `old` does not have, by content. Files without content are left out.
pub(super) async fn changed_files(old: &Layers, old_layer: usize, new: &Layers, new_layer: usize) -> Result<HashMap<Digest, Vec<LayerPath>>, ReadError> {
    let mut files: HashMap<Digest, Vec<LayerPath>> = HashMap::new();
    let (Some(old_root), Some(new_root)) = (old.roots.get(old_layer), new.roots.get(new_layer)) else { return Ok(files) };
    let mut known: HashSet<Digest> = HashSet::from([*old_root]);
    let mut pending = vec![*old_root];
    while let Some(digest) = pending.pop() {
        if let Some(Node::Index { level, children }) = node(old, digest).await?.as_deref() {
            known.extend(children.iter().map(|child| child.digest));
            if *level > 1 {
                pending.extend(children.iter().map(|child| child.digest));
            }
        }
    }
    let (mut pending, mut seen) = (vec![*new_root], 0);
    while let Some(digest) = pending.pop() {
        if known.contains(&digest) {
            continue;
        }
        match node(new, digest).await?.as_deref() {
            Some(Node::Index { children, .. }) => pending.extend(children.iter().rev().map(|child| child.digest)),
            Some(Node::Leaf(entries)) => {
                seen += entries.len();
                for entry in entries {
                    if let Some(content) = content(entry) {
                        let paths = files.entry(content).or_default();
                        if paths.len() < MAX_EQUAL {
                            paths.push(entry.path.clone());
                        }
                    }
                }
            }
            None => {}
        }
        if seen > MAX_ENTRIES {
            break;
        }
    }
    Ok(files)
}

/// Equal for files with equal content, which has at least one byte.
pub(super) fn content(entry: &Entry) -> Option<Digest> {
    match &entry.kind {
        Kind::File(recipe) if !recipe.is_empty() => Some(of_recipe(recipe)),
        _ => None,
    }
}

fn of_recipe(recipe: &Recipe) -> Digest {
    Digest::of(&recipe.encode_node())
}

/// The tree object, unless it is lost.
async fn node(layers: &Layers, digest: Digest) -> Result<Option<std::sync::Arc<Node>>, ReadError> {
    match layers.nodes.tree(layers.namespace, digest, None).await.map_err(NodeError::into_outage) {
        Ok(node) => Ok(Some(node)),
        Err(Some(outage)) => Err(outage),
        Err(None) => Ok(None),
    }
}
