//! A recipe from extents that come one after the other: the same as [`Recipe::build`], without holding all extents.
//!
//! Memory: one recipe node, and 40 bytes for each finished one (a node describes about 2 MiB of a file).

use layer_format::Digest;
use layer_format::recipe::{Extent, MAX_INLINE_EXTENTS, MAX_INLINE_NODES, MAX_LEVEL, NODE_ITEMS, NodeRef, Recipe, ends_node};

/// Builds one recipe.
#[derive(Debug, Default)]
pub(crate) struct RecipeBuilder {
    open: Vec<Extent>,
    nodes: Vec<NodeRef>,
    len: u64,
}

impl RecipeBuilder {
    /// Goes on where [`Self::into_parts`] ended.
    pub(crate) fn resume(nodes: Vec<NodeRef>, open: Vec<Extent>) -> Self {
        let len = nodes.iter().map(|node| node.len).sum::<u64>() + open.iter().map(Extent::len).sum::<u64>();
        Self { open, nodes, len }
    }

    /// The nodes that are finished, and the extents after them.
    pub(crate) fn into_parts(self) -> (Vec<NodeRef>, Vec<Extent>) {
        (self.nodes, self.open)
    }

    /// Adds the next extent; `put` stores a finished node.
    pub(crate) fn push<E>(&mut self, extent: Extent, put: &mut impl FnMut(Vec<u8>) -> Result<Digest, E>) -> Result<(), E> {
        // A node is only finished when more extents follow: until then all may fit the entry.
        if self.ends() {
            self.finish_node(put)?;
        }
        self.len += extent.len();
        self.open.push(extent);
        Ok(())
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The recipe, and an empty builder.
    pub(crate) fn finish<E>(&mut self, put: &mut impl FnMut(Vec<u8>) -> Result<Digest, E>) -> Result<Recipe, E> {
        self.len = 0;
        if self.nodes.is_empty() && self.open.len() <= MAX_INLINE_EXTENTS {
            let extents = self.open.clone();
            self.open.clear();
            return Ok(Recipe::Extents(extents));
        }
        self.finish_node(put)?;
        let mut nodes = std::mem::take(&mut self.nodes);
        let mut level = 0;
        while nodes.len() > MAX_INLINE_NODES && level < MAX_LEVEL {
            nodes = upper_nodes(&nodes, level, put)?;
            level += 1;
        }
        Ok(Recipe::Nodes { level, nodes })
    }

    fn ends(&self) -> bool {
        match self.open.last() {
            Some(Extent::Data(chunk)) => group_ends(self.open.len(), Some(&chunk.digest)),
            Some(Extent::Hole(_)) => group_ends(self.open.len(), None),
            None => false,
        }
    }

    fn finish_node<E>(&mut self, put: &mut impl FnMut(Vec<u8>) -> Result<Digest, E>) -> Result<(), E> {
        if !self.open.is_empty() {
            let node = Recipe::Extents(std::mem::take(&mut self.open));
            self.nodes.push(NodeRef { len: node.len(), digest: put(node.encode_node())? });
        }
        Ok(())
    }
}

fn group_ends(count: usize, last: Option<&Digest>) -> bool {
    count >= *NODE_ITEMS.end() || (count >= *NODE_ITEMS.start() && last.is_some_and(ends_node))
}

fn upper_nodes<E>(nodes: &[NodeRef], level: u8, put: &mut impl FnMut(Vec<u8>) -> Result<Digest, E>) -> Result<Vec<NodeRef>, E> {
    let mut upper = Vec::new();
    let mut group = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        group.push(*node);
        if group_ends(group.len(), Some(&node.digest)) || at + 1 == nodes.len() {
            let node = Recipe::Nodes { level, nodes: std::mem::take(&mut group) };
            upper.push(NodeRef { len: node.len(), digest: put(node.encode_node())? });
        }
    }
    Ok(upper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::chunk::ChunkRef;
    use proptest::prelude::*;
    use std::convert::Infallible;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_streamed_recipe_is_the_same_as_one_built_at_once(count in prop_oneof![0usize..80, 0usize..40_000], seed: u64, hole_every in 2usize..200) {
            let extent = |at: usize| {
                let digest = Digest::of(&(seed ^ at as u64).to_le_bytes());
                if at % hole_every == 1 { Extent::Hole(1 + digest.prefix64() % 99) } else { Extent::Data(ChunkRef { digest, len: 1 + at as u32 % 65536 }) }
            };
            let mut put_at_once = Vec::new();
            let at_once = Recipe::build((0..count).map(extent).collect(), &mut |bytes: Vec<u8>| {
                let digest = Digest::of(&bytes);
                put_at_once.push(digest);
                Ok::<_, Infallible>(digest)
            }).unwrap();
            let mut put_streamed = Vec::new();
            let mut put = |bytes: Vec<u8>| {
                let digest = Digest::of(&bytes);
                put_streamed.push(digest);
                Ok::<_, Infallible>(digest)
            };
            let mut builder = RecipeBuilder::default();
            for at in 0..count {
                builder.push(extent(at), &mut put).unwrap();
            }
            prop_assert_eq!(builder.len(), at_once.len());
            prop_assert_eq!(builder.finish(&mut put).unwrap(), at_once);
            prop_assert_eq!(put_streamed, put_at_once);
        }
    }
}
