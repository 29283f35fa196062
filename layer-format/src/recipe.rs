//! How a file is rebuilt: its extents in order, each a chunk or a hole.
//!
//! The few extents of a small file stand in its entry. Those of a large one are cut, by content, into *recipe nodes*
//! that are objects themselves, so that a tree object stays small and a change in the middle of a huge file changes
//! one node. Nodes may be stacked: the content of a file is a list of extents, or a list of references to nodes of
//! one level, where level 0 holds extents and level n references to level n - 1.

use crate::chunk::{ChunkRef, MAX_CHUNK_LEN};
use crate::codec::{FormatError, Reader, Writer};
use crate::digest::Digest;

const MAGIC: &[u8; 3] = b"TBR";
const VERSION: u8 = 1;

/// Most extents that stand in an entry itself.
pub const MAX_INLINE_EXTENTS: usize = 8;
/// Most references to recipe nodes that stand in an entry.
pub const MAX_INLINE_NODES: usize = 32;
/// Fewest and most items of a recipe node that is not the last one; between them a node ends after an item whose
/// digest says so ([`ends_node`]).
pub const NODE_ITEMS: std::ops::RangeInclusive<usize> = 32..=512;
/// Highest level of a recipe node: with [`NODE_ITEMS`] far more than any file needs.
pub const MAX_LEVEL: u8 = 6;
/// Longest file, in bytes (2^62): sums of lengths cannot overflow.
pub const MAX_FILE_LEN: u64 = 1 << 62;

/// A run of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Stored bytes.
    Data(ChunkRef),
    /// A hole of this many bytes, `1..`: reads as zeros and takes no space.
    Hole(u64),
}

impl Extent {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(chunk) => chunk.len.into(),
            Self::Hole(len) => *len,
        }
    }

    /// Never true: an extent has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// A reference to a recipe node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRef {
    /// The node's digest.
    pub digest: Digest,
    /// How many bytes of the file it describes, `1..`.
    pub len: u64,
}

/// A list of extents, or of references to recipe nodes. The content of a file, and of a recipe node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// The extents themselves, in order. Empty for an empty file.
    Extents(Vec<Extent>),
    /// References to nodes of level `level`, in order.
    Nodes {
        /// Level of the nodes referred to.
        level: u8,
        /// The references.
        nodes: Vec<NodeRef>,
    },
}

impl Recipe {
    /// Length of the file or part, in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Extents(extents) => extents.iter().map(Extent::len).sum(),
            Self::Nodes { nodes, .. } => nodes.iter().map(|node| node.len).sum(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Extents(extents) => extents.is_empty(),
            Self::Nodes { nodes, .. } => nodes.is_empty(),
        }
    }

    /// Builds the recipe of a file from all its extents, in order, and calls `put` with each recipe node's bytes.
    /// Deterministic: equal extents give equal nodes.
    ///
    /// # Errors
    /// Whatever `put` returns.
    pub fn build<E>(extents: Vec<Extent>, put: &mut impl FnMut(Vec<u8>) -> Result<Digest, E>) -> Result<Self, E> {
        if extents.len() <= MAX_INLINE_EXTENTS {
            return Ok(Self::Extents(extents));
        }
        let mut nodes = Vec::new();
        for group in groups(&extents, |extent| match extent {
            Extent::Data(chunk) => Some(chunk.digest),
            Extent::Hole(_) => None,
        }) {
            let node = Self::Extents(group.to_vec());
            nodes.push(NodeRef { len: node.len(), digest: put(node.encode_node())? });
        }
        let mut level = 0;
        while nodes.len() > MAX_INLINE_NODES && level < MAX_LEVEL {
            let mut upper = Vec::new();
            for group in groups(&nodes, |node| Some(node.digest)) {
                let node = Self::Nodes { level, nodes: group.to_vec() };
                upper.push(NodeRef { len: node.len(), digest: put(node.encode_node())? });
            }
            nodes = upper;
            level += 1;
        }
        Ok(Self::Nodes { level, nodes })
    }

    /// The bytes of a recipe node that holds this list.
    pub fn encode_node(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 36 * 64);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        self.encode(&mut out);
        out
    }

    /// Parses a recipe node.
    ///
    /// # Errors
    /// If the bytes are not one.
    pub fn decode_node(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new("recipe node", bytes);
        reader.header(MAGIC, VERSION)?;
        let recipe = Self::decode(&mut reader, *NODE_ITEMS.end())?;
        reader.finish()?;
        Ok(recipe)
    }

    /// Appends the list: level + 1 (0 = extents), count, items. An extent is its length times two, plus one for a
    /// hole, and the digest of data.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Extents(extents) => {
                out.push(0);
                out.put_varint(extents.len() as u64);
                for extent in extents {
                    match extent {
                        Extent::Data(chunk) => {
                            out.put_varint(u64::from(chunk.len) << 1);
                            out.extend_from_slice(chunk.digest.as_bytes());
                        }
                        Extent::Hole(len) => out.put_varint(len << 1 | 1),
                    }
                }
            }
            Self::Nodes { level, nodes } => {
                out.push(level + 1);
                out.put_varint(nodes.len() as u64);
                for node in nodes {
                    out.put_varint(node.len);
                    out.extend_from_slice(node.digest.as_bytes());
                }
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>, max_items: usize) -> Result<Self, FormatError> {
        let what = "recipe";
        let tag = reader.u8()?;
        if tag > MAX_LEVEL + 1 {
            return Err(FormatError::TooLarge { what, value: tag.into(), max: u64::from(MAX_LEVEL) + 1 });
        }
        let mut total = 0u64;
        let mut add = |len: u64| {
            total += len;
            if len == 0 {
                Err(FormatError::invalid(what, "an extent is empty"))
            } else if total > MAX_FILE_LEN {
                Err(FormatError::TooLarge { what, value: total, max: MAX_FILE_LEN })
            } else {
                Ok(())
            }
        };
        if tag == 0 {
            let count = reader.count(max_items as u64, 1)?;
            let mut extents = Vec::with_capacity(count);
            for _ in 0..count {
                let head = reader.varint(MAX_FILE_LEN << 1 | 1)?;
                let len = head >> 1;
                add(len)?;
                extents.push(if head & 1 == 1 {
                    Extent::Hole(len)
                } else if len > MAX_CHUNK_LEN.into() {
                    return Err(FormatError::TooLarge { what: "chunk", value: len, max: MAX_CHUNK_LEN.into() });
                } else {
                    Extent::Data(ChunkRef { digest: reader.digest()?, len: len as u32 })
                });
            }
            Ok(Self::Extents(extents))
        } else {
            let count = reader.count(max_items as u64, 1 + Digest::LEN)?;
            if count == 0 {
                return Err(FormatError::invalid(what, "an empty file has no nodes"));
            }
            let mut nodes = Vec::with_capacity(count);
            for _ in 0..count {
                let len = reader.varint(MAX_FILE_LEN)?;
                add(len)?;
                nodes.push(NodeRef { len, digest: reader.digest()? });
            }
            Ok(Self::Nodes { level: tag - 1, nodes })
        }
    }
}

/// Whether a node may end after the item with this digest: one digest in 128.
pub fn ends_node(digest: &Digest) -> bool {
    digest.prefix64().is_multiple_of(128)
}

/// Cuts `items` into groups of [`NODE_ITEMS`], preferring to end after an item whose digest [`ends_node`].
fn groups<'a, T>(items: &'a [T], digest: impl Fn(&T) -> Option<Digest> + 'a) -> impl Iterator<Item = &'a [T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (min, max) = (*NODE_ITEMS.start(), *NODE_ITEMS.end());
        let window = &rest[..rest.len().min(max)];
        let cut = window.iter().enumerate().skip(min - 1).find(|(_, item)| digest(item).is_some_and(|d| ends_node(&d)));
        let (group, tail) = rest.split_at(cut.map_or(window.len(), |(at, _)| at + 1));
        rest = tail;
        Some(group)
    })
}

/// One step of finding the extents of a byte range: see [`RangeWalk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeStep {
    /// The recipe node `digest` must be [fed](RangeWalk::feed) next.
    Need(Digest),
    /// The next extent that overlaps the range, with the offset of its first byte in the file.
    Extent {
        /// Offset of the extent's first byte.
        offset: u64,
        /// The extent.
        extent: Extent,
    },
    /// There are no more.
    Done,
}

/// Finds the extents that overlap a byte range of a file, asking for recipe nodes as it needs them. It does no I/O,
/// so that client and server, blocking and asynchronous code, share it.
#[derive(Debug, Clone)]
pub struct RangeWalk {
    /// Lists still to walk, innermost last: the recipe, the next item, the offset of that item, its level.
    stack: Vec<(Recipe, usize, u64)>,
    needed: Option<(NodeRef, u8, u64)>,
    range: std::ops::Range<u64>,
}

impl RangeWalk {
    /// Starts a walk over the bytes `range` of the file with this recipe.
    pub fn new(recipe: &Recipe, range: std::ops::Range<u64>) -> Self {
        Self { stack: vec![(recipe.clone(), 0, 0)], needed: None, range }
    }

    /// The next step. After [`RangeStep::Need`] it answers the same until the node was fed.
    pub fn step(&mut self) -> RangeStep {
        if let Some((node, ..)) = &self.needed {
            return RangeStep::Need(node.digest);
        }
        while let Some((recipe, next, offset)) = self.stack.last_mut() {
            let (at, index) = (*offset, *next);
            *next += 1;
            match recipe {
                Recipe::Extents(extents) if index < extents.len() => {
                    let extent = extents[index];
                    *offset += extent.len();
                    if at >= self.range.end {
                        return RangeStep::Done;
                    }
                    if at + extent.len() > self.range.start {
                        return RangeStep::Extent { offset: at, extent };
                    }
                }
                Recipe::Nodes { level, nodes } if index < nodes.len() => {
                    let (node, level) = (nodes[index], *level);
                    *offset += node.len;
                    if at >= self.range.end {
                        return RangeStep::Done;
                    }
                    if at + node.len > self.range.start {
                        self.needed = Some((node, level, at));
                        return RangeStep::Need(node.digest);
                    }
                }
                _ => {
                    self.stack.pop();
                }
            }
        }
        RangeStep::Done
    }

    /// Gives the walk the parsed node that it asked for.
    ///
    /// # Errors
    /// If the node is of another level or length than its reference says.
    pub fn feed(&mut self, node: Recipe) -> Result<(), FormatError> {
        let Some((wanted, level, at)) = self.needed.take() else { return Ok(()) };
        let right_level = match &node {
            Recipe::Extents(_) => level == 0,
            Recipe::Nodes { level: below, .. } => *below + 1 == level,
        };
        if !right_level || node.len() != wanted.len {
            return Err(FormatError::invalid("recipe node", "it does not match the reference to it"));
        }
        self.stack.push((node, 0, at));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::convert::Infallible;

    fn extents(lens: &[(u32, bool)]) -> Vec<Extent> {
        let chunk = |at: usize, len: u32| ChunkRef { digest: Digest::of(&at.to_le_bytes()), len };
        lens.iter().enumerate().map(|(at, (len, hole))| if *hole { Extent::Hole(u64::from(*len)) } else { Extent::Data(chunk(at, *len)) }).collect()
    }

    fn build(extents: Vec<Extent>) -> (Recipe, HashMap<Digest, Vec<u8>>) {
        let mut nodes = HashMap::new();
        let recipe = Recipe::build(extents, &mut |bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            nodes.insert(digest, bytes);
            Ok::<_, Infallible>(digest)
        });
        (recipe.unwrap(), nodes)
    }

    fn walk(recipe: &Recipe, nodes: &HashMap<Digest, Vec<u8>>, range: std::ops::Range<u64>) -> Vec<(u64, Extent)> {
        let mut walk = RangeWalk::new(recipe, range);
        let mut found = Vec::new();
        loop {
            match walk.step() {
                RangeStep::Need(digest) => walk.feed(Recipe::decode_node(&nodes[&digest]).unwrap()).unwrap(),
                RangeStep::Extent { offset, extent } => found.push((offset, extent)),
                RangeStep::Done => return found,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_range_walk_finds_what_a_scan_finds(
            lens in proptest::collection::vec((1u32..=MAX_CHUNK_LEN, proptest::bool::weighted(0.05)), 0..3000),
            start: u64, len in 0u64..1 << 20,
        ) {
            let all = extents(&lens);
            let (recipe, nodes) = build(all.clone());
            let total = recipe.len();
            let start = start % (total + 1);
            let range = start..(start + len).min(total);
            let mut offset = 0;
            let mut expected = Vec::new();
            for extent in all {
                if offset < range.end && offset + extent.len() > range.start {
                    expected.push((offset, extent));
                }
                offset += extent.len();
            }
            prop_assert_eq!(offset, total);
            prop_assert_eq!(walk(&recipe, &nodes, range), expected);
            for bytes in nodes.values() {
                prop_assert_eq!(&Recipe::decode_node(bytes).unwrap().encode_node(), bytes);
            }
        }
    }

    #[test]
    fn a_change_in_the_middle_changes_few_nodes() {
        let lens = vec![(16384, false); 20_000];
        let mut changed = extents(&lens);
        let (_, before) = build(changed.clone());
        changed.insert(10_000, Extent::Data(ChunkRef { digest: Digest::of(b"new"), len: 77 }));
        let (_, after) = build(changed);
        let fresh = after.keys().filter(|digest| !before.contains_key(digest)).count();
        assert!(fresh <= 4, "{fresh} of {} nodes are new", after.len());
    }

    #[test]
    fn golden_node() {
        let recipe = Recipe::Extents(vec![Extent::Data(ChunkRef { digest: Digest::of(b""), len: 300 }), Extent::Hole(4096)]);
        let bytes = recipe.encode_node();
        assert_eq!(Digest::of(&bytes).to_hex(), GOLDEN);
        assert_eq!(Recipe::decode_node(&bytes), Ok(recipe));
    }
    const GOLDEN: &str = "e09f2082060107a67b36fc3539347c63b970bd94e6605374b945347cb703f636";

    #[test]
    fn a_node_that_lies_about_its_length_is_refused() {
        let (recipe, nodes) = build(extents(&vec![(100, false); 100]));
        let mut walk = RangeWalk::new(&recipe, 0..10);
        let RangeStep::Need(digest) = walk.step() else { panic!("a large recipe has nodes") };
        let Recipe::Extents(mut inner) = Recipe::decode_node(&nodes[&digest]).unwrap() else { panic!("level 0") };
        inner.pop();
        assert!(walk.feed(Recipe::Extents(inner)).is_err());
    }
}
