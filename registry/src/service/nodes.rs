//! Parsed tree objects, recipe nodes and layer manifests, shared by all requests: an LRU bounded in bytes, by namespace.

use std::sync::Arc;

use layer_format::manifest::{LayerManifest, Manifest};
use layer_format::recipe::Recipe;
use layer_format::tree::Node;
use layer_format::{Digest, FormatError};

use super::cache::SharedLru;
use super::frames::ReadError;
use super::objects::Objects;
use crate::db::namespace::NamespaceId;
use crate::db::object::Location;

/// Memory of a parsed node, in multiples of its encoded length: about what `Vec`s and paths add.
const PARSED_FACTOR: u64 = 4;

/// Why a node could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// The namespace does not have the object.
    #[error("object {0} is not there")]
    Missing(Digest),
    /// The object is not such a node.
    #[error("object {digest} is not what the reference to it says: {source}")]
    Invalid {
        /// The object.
        digest: Digest,
        /// Why.
        source: FormatError,
    },
    /// The object cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl NodeError {
    /// Whether another attempt may succeed.
    pub(crate) fn into_outage(self) -> Option<ReadError> {
        match self {
            Self::Read(error) if !error.is_loss() => Some(error),
            _ => None,
        }
    }
}

/// A node that is read, checked and cached in the same way as all others.
trait Parse: Sized {
    fn parse(bytes: &[u8]) -> Result<Self, FormatError>;
}

impl Parse for Node {
    fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode(bytes)
    }
}

impl Parse for Recipe {
    fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode_node(bytes)
    }
}

impl Parse for LayerManifest {
    fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode(bytes)
    }
}

type Cache<T> = SharedLru<(NamespaceId, Digest), (Arc<T>, u64)>;

/// Reads and parses nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    objects: Objects,
    trees: Cache<Node>,
    recipes: Cache<Recipe>,
    layers: Cache<LayerManifest>,
}

impl Nodes {
    /// Trees get most of `max_bytes`.
    pub(crate) fn new(objects: Objects, max_bytes: u64) -> Self {
        let part = max_bytes / 8;
        Self { objects, trees: SharedLru::new(max_bytes - 2 * part), recipes: SharedLru::new(part), layers: SharedLru::new(part) }
    }

    async fn get<T: Parse>(&self, cache: &Cache<T>, namespace: NamespaceId, digest: Digest, place: Option<Location>) -> Result<Arc<T>, NodeError> {
        let load = async {
            let place = match place {
                Some(place) => place,
                None => self.objects.locate(namespace, &[digest]).await.map_err(ReadError::from)?.remove(&digest).ok_or(NodeError::Missing(digest))?,
            };
            let bytes = self.objects.read(&digest, &place).await?;
            let parsed = T::parse(&bytes).map_err(|source| NodeError::Invalid { digest, source })?;
            Ok::<_, NodeError>((Arc::new(parsed), bytes.len() as u64))
        };
        let node = cache.get_or_load((namespace, digest), |(_, len)| len * PARSED_FACTOR + 256, load).await?;
        Ok(Arc::clone(&node.0))
    }

    /// The tree object; `place` if it is known already.
    pub(crate) async fn tree(&self, namespace: NamespaceId, digest: Digest, place: Option<Location>) -> Result<Arc<Node>, NodeError> {
        self.get(&self.trees, namespace, digest, place).await
    }

    /// The recipe node.
    pub(crate) async fn recipe(&self, namespace: NamespaceId, digest: Digest, place: Option<Location>) -> Result<Arc<Recipe>, NodeError> {
        self.get(&self.recipes, namespace, digest, place).await
    }

    /// The layer manifest.
    pub(crate) async fn layer(&self, namespace: NamespaceId, digest: Digest, place: Option<Location>) -> Result<Arc<LayerManifest>, NodeError> {
        self.get(&self.layers, namespace, digest, place).await
    }

    /// Bytes that parsed nodes take.
    pub(crate) fn cached_bytes(&self) -> u64 {
        self.trees.bytes() + self.recipes.bytes() + self.layers.bytes()
    }
}
