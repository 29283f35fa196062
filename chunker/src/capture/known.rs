//! Whether all that a recipe leads to is in the sink, so that a file need not be read again.

use layer_format::Digest;
use layer_format::recipe::{Extent, Recipe};

use crate::error::ImportError;
use crate::pipeline::present;
use crate::sink::ObjectSink;
use crate::source::ObjectSource;

/// Digests that the sink is asked about at a time.
const BATCH: usize = 512;

/// For each recipe, whether the sink has all of it. Recipe nodes are read from `source`; without one they count as lost.
/// What cannot be read counts as lost, too: then the file is read again, which costs time and repairs the loss.
pub(crate) fn whole(recipes: &[&Recipe], sink: &dyn ObjectSink, source: Option<&dyn ObjectSource>) -> Result<Vec<bool>, ImportError> {
    // Most files are small: their chunks are asked for together.
    let mut digests = Vec::new();
    let mut counts = Vec::with_capacity(recipes.len());
    for recipe in recipes {
        let before = digests.len();
        digests.extend(direct(recipe));
        counts.push(digests.len() - before);
    }
    let mut here = Vec::with_capacity(digests.len());
    for batch in digests.chunks(BATCH) {
        here.extend(present(sink, batch)?);
    }
    let mut here = &here[..];
    let mut found = Vec::with_capacity(recipes.len());
    for (recipe, count) in recipes.iter().zip(counts) {
        let (own, rest) = here.split_at(count.min(here.len()));
        here = rest;
        found.push(own.iter().all(|here| *here) && below(recipe, sink, source)?);
    }
    Ok(found)
}

/// Whether everything below the recipe's nodes is there; the nodes themselves are.
fn below(recipe: &Recipe, sink: &dyn ObjectSink, source: Option<&dyn ObjectSource>) -> Result<bool, ImportError> {
    let Recipe::Nodes { nodes, .. } = recipe else { return Ok(true) };
    let Some(source) = source else { return Ok(false) };
    for node in nodes {
        let Some(inner) = source.object(&node.digest).ok().and_then(|bytes| Recipe::decode_node(&bytes).ok()) else { return Ok(false) };
        let digests: Vec<Digest> = direct(&inner).collect();
        for batch in digests.chunks(BATCH) {
            if present(sink, batch)?.contains(&false) {
                return Ok(false);
            }
        }
        if !below(&inner, sink, Some(source))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the recipe refers to itself.
fn direct(recipe: &Recipe) -> impl Iterator<Item = Digest> {
    let (extents, nodes) = match recipe {
        Recipe::Extents(extents) => (&extents[..], &[][..]),
        Recipe::Nodes { nodes, .. } => (&[][..], &nodes[..]),
    };
    let chunks = extents.iter().filter_map(|extent| match extent {
        Extent::Data(chunk) => Some(chunk.digest),
        Extent::Hole(_) => None,
    });
    chunks.chain(nodes.iter().map(|node| node.digest))
}
