//! Everything that an image needs, in the order in which a tree is read: layer manifests, tree nodes, recipe nodes, chunks.

use std::collections::HashSet;

use bytes::Bytes;
use layer_format::entry::Kind;
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::recipe::{Extent, Recipe};
use layer_format::tree::Node;
use layer_format::{Digest, FormatError};

use super::Store;
use crate::cache::ObjectCache;
use crate::error::StoreError;

/// What an object is to the image that needs it: where it was referred to from says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A layer manifest.
    Layer,
    /// A tree node.
    Tree,
    /// A recipe node.
    Recipe,
    /// A chunk of this many bytes.
    Chunk {
        /// Uncompressed length.
        len: u32,
    },
}

/// Why an image could not be walked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is not of the kind that the reference to it says.
    #[error("object {digest} is not a valid {kind:?}")]
    Format {
        /// The object.
        digest: Digest,
        /// What it should be.
        kind: ObjectKind,
        /// The rule that it breaks.
        #[source]
        source: FormatError,
    },
}

/// What an object refers to, in order, with what each is.
///
/// # Errors
/// [`WalkError::Format`] if the object is not of this kind.
pub fn references(digest: &Digest, kind: ObjectKind, bytes: &[u8]) -> Result<Vec<(Digest, ObjectKind)>, WalkError> {
    let format = |source| WalkError::Format { digest: *digest, kind, source };
    let mut out = Vec::new();
    match kind {
        ObjectKind::Chunk { .. } => {}
        ObjectKind::Layer => out.push((LayerManifest::decode(bytes).map_err(format)?.root, ObjectKind::Tree)),
        ObjectKind::Recipe => recipe_references(&Recipe::decode_node(bytes).map_err(format)?, &mut out),
        ObjectKind::Tree => match Node::decode(bytes).map_err(format)? {
            Node::Index { children, .. } => out.extend(children.iter().map(|child| (child.digest, ObjectKind::Tree))),
            Node::Leaf(entries) => {
                for entry in &entries {
                    if let Kind::File(recipe) = &entry.kind {
                        recipe_references(recipe, &mut out);
                    }
                }
            }
        },
    }
    Ok(out)
}

fn recipe_references(recipe: &Recipe, out: &mut Vec<(Digest, ObjectKind)>) {
    match recipe {
        Recipe::Extents(extents) => out.extend(extents.iter().filter_map(|extent| match extent {
            Extent::Data(chunk) => Some((chunk.digest, ObjectKind::Chunk { len: chunk.len })),
            Extent::Hole(_) => None,
        })),
        Recipe::Nodes { nodes, .. } => out.extend(nodes.iter().map(|node| (node.digest, ObjectKind::Recipe))),
    }
}

/// Visits what images need, each object once, over any number of images. Memory: 48 bytes an object.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    seen: HashSet<Digest>,
    /// Objects that are needed by what was seen, without being referred to: what they lead to is not needed for that.
    bases: HashSet<Digest>,
    /// Inner objects that were not here when the walk came to them.
    unknown: Vec<(Digest, ObjectKind)>,
}

/// An object that a walk came to.
#[derive(Debug)]
pub(crate) struct Visit<'a> {
    pub(crate) digest: Digest,
    pub(crate) kind: ObjectKind,
    /// The bytes of an inner object; `None` for chunks, and for what is not in the store.
    pub(crate) bytes: Option<&'a Bytes>,
}

impl Visit<'_> {
    /// Whether this is an inner object that is not here, so that what it leads to is not known.
    pub(crate) fn is_unknown(&self) -> bool {
        self.bytes.is_none() && !matches!(self.kind, ObjectKind::Chunk { .. })
    }
}

impl Walk {
    /// Visits what `image` needs, depth first in tree order. Goes on past objects that are not here: they are visited
    /// without bytes, and what they lead to stays unknown. Goes on past those that are not valid, too, and then returns the
    /// first such error.
    pub(crate) fn image<E: From<WalkError>>(
        &mut self,
        store: &Store,
        image: &ImageManifest,
        visit: &mut impl FnMut(Visit<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.layers(store, &image.layers, visit)
    }

    /// The same for what these layers need.
    pub(crate) fn layers<E: From<WalkError>>(&mut self, store: &Store, layers: &[Digest], visit: &mut impl FnMut(Visit<'_>) -> Result<(), E>) -> Result<(), E> {
        self.run(store, layers.iter().rev().map(|digest| (*digest, ObjectKind::Layer)).collect(), visit)
    }

    /// Looks again for what was not here when an earlier walk came to it, and visits that and what it leads to.
    pub(crate) fn again<E: From<WalkError>>(&mut self, store: &Store, visit: &mut impl FnMut(Visit<'_>) -> Result<(), E>) -> Result<(), E> {
        let unknown = std::mem::take(&mut self.unknown);
        for (digest, _) in &unknown {
            self.seen.remove(digest);
        }
        self.run(store, unknown, visit)
    }

    fn run<E: From<WalkError>>(
        &mut self,
        store: &Store,
        mut stack: Vec<(Digest, ObjectKind)>,
        visit: &mut impl FnMut(Visit<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut invalid = None;
        while let Some((digest, kind)) = stack.pop() {
            if !self.seen.insert(digest) {
                continue;
            }
            if let ObjectKind::Chunk { .. } = kind {
                visit(Visit { digest, kind, bytes: None })?;
                continue;
            }
            let bytes = store.get(&digest).map_err(WalkError::Store)?;
            visit(Visit { digest, kind, bytes: bytes.as_ref() })?;
            match bytes.map(|bytes| references(&digest, kind, &bytes)) {
                None => self.unknown.push((digest, kind)),
                Some(Ok(found)) => stack.extend(found.into_iter().rev()),
                Some(Err(error)) => invalid = invalid.or(Some(error)),
            }
        }
        invalid.map_or(Ok(()), |error| Err(error.into()))
    }

    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.seen.contains(digest) || self.bases.contains(digest)
    }

    /// Counts what the delta frames of what was seen need as seen, too.
    pub(crate) fn add_bases(&mut self, store: &Store) -> Result<(), StoreError> {
        self.bases.extend(store.live_bases(|digest| self.seen.contains(digest))?);
        Ok(())
    }

    /// What only delta frames need.
    pub(crate) fn only_bases(&self) -> impl Iterator<Item = &Digest> {
        self.bases.difference(&self.seen)
    }

    /// How many objects were visited.
    pub(crate) fn len(&self) -> usize {
        self.seen.len()
    }
}
