//! What is like that which a pull wants: the same paths of an earlier version that is here.
//!
//! The registry is told, for runs of wanted objects, which objects here they are probably like, and compresses them against
//! those. They are chosen so that the frames that come can be kept as they are.

use std::collections::HashMap;

use layer_format::api::WantedGroup;
use layer_format::delta::{BaseSet, Bases, OldVersion, Place, Search};
use layer_format::entry::Kind;
use layer_format::frame::TARGET_FRAME_LEN;
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::tree::{Node, Scan, Step};
use layer_format::{Digest, LayerPath};

use crate::cache::ObjectCache;
use crate::error::StoreError;
use crate::store::Store;

/// Bytes that a node of a tree is taken to have, whose length is not known before it is here.
const NODE_LEN: u32 = 4096;

/// An object that is wanted, and what it is like.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    pub(super) len: u32,
    pub(super) like: Bases,
}

impl Wanted {
    /// An object of which nothing is known.
    pub(super) fn plain(digest: Digest, len: u32) -> Self {
        Self { digest, len, like: Bases::new() }
    }
}

/// Cuts what is wanted into groups with common bases.
pub(super) fn groups(wanted: &[Wanted]) -> Vec<WantedGroup> {
    let mut groups = Vec::new();
    let mut open = Open::default();
    for (position, object) in (0..).zip(wanted) {
        if object.like.is_empty() {
            open.close(&mut groups);
            continue;
        }
        if open.bytes >= TARGET_FRAME_LEN || open.count == u16::MAX || !open.bases.add(&object.like) {
            open.close(&mut groups);
            open.bases.add_some(&object.like);
        }
        if open.count == 0 {
            open.first = position;
        }
        open.count += 1;
        open.bytes += object.len as usize;
    }
    open.close(&mut groups);
    groups
}

#[derive(Default)]
struct Open {
    first: u32,
    count: u16,
    bytes: usize,
    bases: BaseSet,
}

impl Open {
    fn close(&mut self, groups: &mut Vec<WantedGroup>) {
        let Self { first, count, mut bases, .. } = std::mem::take(self);
        if count > 0 && !bases.is_empty() {
            groups.push(WantedGroup { first, count, bases: bases.take() });
        }
    }
}

/// An earlier version in this store.
#[derive(Clone, Debug)]
pub(super) struct Earlier {
    store: Store,
    roots: Vec<Digest>,
}

impl OldVersion for Earlier {
    fn roots(&self) -> &[Digest] {
        &self.roots
    }

    fn object(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.store.get(digest).ok().flatten().map(|bytes| bytes.to_vec())
    }

    fn places(&self, digests: &[Digest]) -> Option<Vec<Place>> {
        self.store.base_places(digests).ok()
    }
}

impl Earlier {
    /// Trees with these roots.
    pub(super) fn new(store: &Store, roots: Vec<Digest>) -> Option<Self> {
        (!roots.is_empty()).then(|| Self { store: store.clone(), roots })
    }
}

/// Where an inner object stands in its tree, as far as its parent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The root of the layer with this number.
    Root(usize),
    /// A node of this level that begins with this path.
    Node(u8, LayerPath),
    /// Not in a tree, or not known.
    Unknown,
}

impl Standing {
    /// Those of a node's children, in order.
    pub(super) fn of_children(node: &[u8]) -> HashMap<Digest, Self> {
        match Node::decode(node) {
            Ok(Node::Index { level, children }) => children.into_iter().map(|child| (child.digest, Self::Node(level.saturating_sub(1), child.first))).collect(),
            _ => HashMap::new(),
        }
    }
}

/// Says what inner objects are like.
pub(super) fn like_nodes(earlier: &Earlier, nodes: &[(Digest, Standing)]) -> Vec<Wanted> {
    let mut search = Search::new(earlier.clone());
    let mut like = |standing: &Standing| match standing {
        Standing::Root(layer) => search.like_root(*layer),
        Standing::Node(level, first) => search.like_node_at(first, *level),
        Standing::Unknown => Bases::new(),
    };
    nodes.iter().map(|(digest, standing)| Wanted { digest: *digest, len: NODE_LEN, like: like(standing) }).collect()
}

/// Says what those of the chunks are like that `wanted` lists, in its order. The trees with these roots are here.
///
/// # Errors
/// [`StoreError`] if the store fails.
pub(super) fn like_chunks(earlier: &Earlier, roots: &[Digest], wanted: Vec<(Digest, u32)>) -> Result<Vec<Wanted>, StoreError> {
    let places: HashMap<Digest, usize> = wanted.iter().enumerate().map(|(at, (digest, _))| (*digest, at)).collect();
    let mut out: Vec<Wanted> = wanted.into_iter().map(|(digest, len)| Wanted::plain(digest, len)).collect();
    let mut search = Search::new(earlier.clone());
    for root in roots {
        let mut scan = Scan::all(*root);
        loop {
            match scan.step() {
                Step::Done(None) => break,
                Step::Need(digest) => {
                    let node = earlier.store.get(&digest)?.and_then(|bytes| Node::decode(&bytes).ok());
                    // What is not valid, or went away meanwhile, is not like anything.
                    if node.is_none_or(|node| scan.feed(&node).is_err()) {
                        return Ok(out);
                    }
                }
                Step::Done(Some(entry)) => {
                    if let Kind::File(recipe) = &entry.kind {
                        like_file(earlier, &mut search, &entry.path, recipe, &places, &mut out)?;
                    }
                }
            }
        }
    }
    Ok(out)
}

fn like_file(
    earlier: &Earlier,
    search: &mut Search<Earlier>,
    path: &LayerPath,
    recipe: &Recipe,
    places: &HashMap<Digest, usize>,
    out: &mut [Wanted],
) -> Result<(), StoreError> {
    search.begin(path);
    let mut walk = RangeWalk::new(recipe, 0..recipe.len());
    loop {
        match walk.step() {
            RangeStep::Done => return Ok(()),
            RangeStep::Need(digest) => {
                let node = earlier.store.get(&digest)?.and_then(|bytes| Recipe::decode_node(&bytes).ok());
                if node.is_none_or(|node| walk.feed(node).is_err()) {
                    return Ok(());
                }
            }
            RangeStep::Extent { extent: Extent::Data(chunk), .. } => match places.get(&chunk.digest).and_then(|at| out.get_mut(*at)) {
                Some(wanted) if wanted.like.is_empty() => wanted.like = search.like(chunk.len),
                _ => search.pass(Extent::Data(chunk)),
            },
            RangeStep::Extent { extent, .. } => search.pass(extent),
        }
    }
}

#[cfg(test)]
mod tests {
    use layer_format::delta::BasePlace;

    use super::*;

    #[test]
    fn groups_are_runs_with_bases_that_lie_together() {
        let base = |name: u8, pack, start| (Digest([name; 32]), BasePlace { pack, start, end: start + 1000, len: 5000 });
        let object = |name: u8, like: &[(Digest, BasePlace)]| Wanted { digest: Digest([name; 32]), len: 70_000, like: like.to_vec() };
        let (one, two, far) = (base(101, 1, 0), base(102, 1, 1000), base(103, 2, 0));
        let wanted = [
            object(1, &[one]),
            object(2, &[one, two]),
            object(3, &[]),
            object(4, &[two]),
            object(5, &[far]),
            object(6, &[far]),
            object(7, &[far]),
            object(8, &[far]),
            object(9, &[far]),
        ];
        let found: Vec<_> = groups(&wanted).into_iter().map(|group| (group.first, group.count, group.bases.len())).collect();
        assert_eq!(found, [(0, 2, 2), (3, 1, 1), (4, 4, 1), (8, 1, 1)]);
    }
}
