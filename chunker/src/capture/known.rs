//! Files that need not be read again: those of which an index knows what they hold, if the sink still has all of that.

use layer_format::Digest;
use layer_format::recipe::{Extent, Recipe};

use super::index::IndexReader;
use crate::error::ImportError;
use crate::pipeline::{Feed, FileToRead, KnownFile, LARGE_FILE_LEN, present};
use crate::sink::ObjectSink;
use crate::source::ObjectSource;

/// Digests that the sink is asked about at a time.
const BATCH: usize = 512;

/// What a walk knows of the files that it meets.
pub(crate) struct KnownFiles<'a> {
    /// `None` if nothing is known yet.
    pub(crate) index: Option<IndexReader>,
    /// The file system whose stamps are believed and noted; `None` for any.
    pub(crate) dev: Option<u64>,
    pub(crate) sink: &'a dyn ObjectSink,
    pub(crate) source: &'a dyn ObjectSource,
}

impl KnownFiles<'_> {
    /// Whether the stamps of this file system say whether a file is the same.
    pub(crate) fn believes(&self, dev: u64) -> bool {
        self.dev.is_none_or(|believed| believed == dev)
    }

    /// Passes on a file whose content is known, or gives it back.
    pub(crate) fn pass_on(&mut self, file: FileToRead, feed: &mut Feed) -> Result<Option<FileToRead>, ImportError> {
        let found = self.index.as_mut().zip(file.begin.stamp).and_then(|(index, stamp)| index.find(&file.begin.entry.path, &stamp));
        let Some((recipe, xattrs)) = found.filter(|(recipe, _)| recipe.len() == file.identity.len) else { return Ok(Some(file)) };
        if file.identity.len <= LARGE_FILE_LEN {
            return feed.known(KnownFile { file, recipe, xattrs }).map(|()| None);
        }
        // A worker could not read it at once.
        match whole(&[&recipe], self.sink, Some(self.source))?.first() {
            Some(true) => feed.ready(KnownFile { file, recipe, xattrs }.into_begin()).map(|()| None),
            _ => Ok(Some(file)),
        }
    }
}

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
