//! What of a namespace one repository shows: the objects that its images and states need, and nothing else.
//!
//! Objects are kept by namespace, so that its repositories share them. Whoever may read the whole namespace is answered by that
//! alone. For a caller who may read some of its repositories only, each object that is asked for by its digest is looked for
//! among all that the repository's layers lead to. The list of a layer's objects never changes; it is made when it is first
//! needed, by walking the tree, and kept as sorted halves of digests, 16 bytes an object.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{FutureExt, StreamExt, stream};
use layer_format::Digest;
use layer_format::entry::Kind;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::recipe::{Extent, Recipe};
use layer_format::reference::Repository;
use layer_format::tree::Node;
use tokio::sync::Semaphore;

use super::cache::SharedLru;
use super::frames::ReadError;
use super::nodes::{NodeError, Nodes};
use super::objects::Objects;
use crate::db::manifest::{manifest_digests, manifest_get};
use crate::db::namespace::NamespaceId;
use crate::db::repository::{RepositoryId, repository_find};
use crate::db::state::state_sandboxes;

/// Memory for lists of objects, in bytes.
const LISTS_BYTES: u64 = 64 << 20;
/// Memory for what manifests name, in bytes.
const IMAGES_BYTES: u64 = 4 << 20;
/// Nodes that are read at a time.
const READS: usize = 8;
/// Searches at a time: each may read all trees of a repository.
const SEARCHES: usize = 2;

/// Half a digest: enough to tell objects apart that nobody can choose freely.
type Half = [u8; 16];

fn half(digest: &Digest) -> Half {
    let mut half = Half::default();
    half.copy_from_slice(&digest.as_bytes()[..16]);
    half
}

/// What an image names.
#[derive(Debug)]
struct Named {
    layers: Vec<Digest>,
    model: Option<Digest>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Reach {
    objects: Objects,
    nodes: Arc<Nodes>,
    lists: SharedLru<(NamespaceId, Digest), Vec<Half>>,
    images: SharedLru<(RepositoryId, Digest), Named>,
    /// A search may read all trees of a repository.
    turns: Semaphore,
}

enum Step {
    Tree(Digest),
    Recipe(Digest),
}

impl Reach {
    pub(crate) fn new(objects: Objects, nodes: Arc<Nodes>) -> Self {
        Self { objects, nodes, lists: SharedLru::new(LISTS_BYTES), images: SharedLru::new(IMAGES_BYTES), turns: Semaphore::new(SEARCHES) }
    }

    /// Those of the objects that images and states of the repository need.
    pub(crate) async fn visible(&self, repository: &Repository, digests: &[Digest]) -> Result<HashSet<Digest>, ReadError> {
        let (row, images, sandboxes) = {
            let mut db = self.objects.db.read().await?;
            let Some(row) = repository_find(&mut db, repository).await? else { return Ok(HashSet::new()) };
            let images = manifest_digests(&mut db, row.id).await?;
            (row, images, state_sandboxes(&mut db, row.id).await?)
        };
        let _turn = self.turns.acquire().await.map_err(|_| ReadError::Cancelled)?;
        let mut search = Search { wanted: digests.iter().copied().collect(), found: HashSet::new(), seen: HashSet::new() };
        for image in images {
            if search.wanted.is_empty() {
                break;
            }
            let named = self.named(row.id, image).await?;
            if let Some(model) = named.model {
                search.take(model);
            }
            for layer in &named.layers {
                self.search(row.namespace, *layer, &mut search).await?;
            }
        }
        for layer in sandboxes {
            self.search(row.namespace, layer, &mut search).await?;
        }
        Ok(search.found)
    }

    async fn search(&self, namespace: NamespaceId, layer: Digest, search: &mut Search) -> Result<(), ReadError> {
        if !search.wanted.is_empty() && search.seen.insert(layer) {
            let list = self.list(namespace, layer).await?;
            let there: Vec<Digest> = search.wanted.iter().filter(|digest| list.binary_search(&half(digest)).is_ok()).copied().collect();
            there.into_iter().for_each(|digest| search.take(digest));
        }
        Ok(())
    }

    async fn named(&self, repository: RepositoryId, image: Digest) -> Result<Arc<Named>, ReadError> {
        let bytes = manifest_get(&mut self.objects.db.read().await?, repository, &image).await?;
        // Deleted meanwhile: nothing is remembered of it, since it may come back.
        let Some(bytes) = bytes else { return Ok(Arc::new(Named { layers: Vec::new(), model: None })) };
        let load = async {
            // From a newer version, it leads to nothing.
            let manifest = ImageManifest::decode(&bytes).ok();
            Ok::<_, ReadError>(manifest.map_or(Named { layers: Vec::new(), model: None }, |image| Named { layers: image.layers, model: image.model }))
        };
        self.images.get_or_load((repository, image), |named| 64 + 32 * named.layers.len() as u64, load).await
    }

    async fn list(&self, namespace: NamespaceId, layer: Digest) -> Result<Arc<Vec<Half>>, ReadError> {
        let mut partial = None;
        let load = async {
            match self.walk(namespace, layer).await? {
                (list, true) => Ok(list),
                // Not remembered: what is lost may be healed by the next push.
                (list, false) => {
                    partial = Some(Arc::new(list));
                    Err(ReadError::Gone(None))
                }
            }
        };
        let loaded = self.lists.get_or_load((namespace, layer), |list| 64 + 16 * list.len() as u64, load).await;
        match (loaded, partial) {
            (Err(_), Some(list)) => Ok(list),
            (loaded, _) => loaded,
        }
    }

    /// All objects of a layer, and whether none of its nodes is damaged or gone: such lead to nothing.
    async fn walk(&self, namespace: NamespaceId, layer: Digest) -> Result<(Vec<Half>, bool), ReadError> {
        let mut is_whole = true;
        let mut list = vec![half(&layer)];
        let mut seen = HashSet::new();
        let mut pending = Vec::new();
        if let Some(manifest) = lost(self.nodes.layer(namespace, layer, None).await)? {
            pending.push(Step::Tree(manifest.root));
        } else {
            is_whole = false;
        }
        while !pending.is_empty() {
            let batch = pending.split_off(pending.len().saturating_sub(16 * READS));
            let reads: Vec<_> = batch.into_iter().map(|step| self.references(namespace, step).boxed()).collect();
            let mut reads = stream::iter(reads).buffer_unordered(READS);
            while let Some(references) = reads.next().await {
                let References { node, chunks, steps, is_lost } = references?;
                is_whole &= !is_lost;
                list.push(half(&node));
                list.extend(chunks);
                pending.extend(steps.into_iter().filter(|(digest, _)| seen.insert(half(digest))).map(|(_, step)| step));
            }
        }
        list.sort_unstable();
        list.dedup();
        list.shrink_to_fit();
        Ok((list, is_whole))
    }

    async fn references(&self, namespace: NamespaceId, step: Step) -> Result<References, ReadError> {
        match step {
            Step::Tree(node) => {
                let mut references = References { node, chunks: Vec::new(), steps: Vec::new(), is_lost: false };
                match lost(self.nodes.tree(namespace, node, None).await)?.as_deref() {
                    Some(Node::Leaf(entries)) => {
                        for entry in entries {
                            if let Kind::File(recipe) = &entry.kind {
                                references.add(recipe);
                            }
                        }
                    }
                    Some(Node::Index { children, .. }) => references.steps.extend(children.iter().map(|child| (child.digest, Step::Tree(child.digest)))),
                    None => references.is_lost = true,
                }
                Ok(references)
            }
            Step::Recipe(node) => {
                let mut references = References { node, chunks: Vec::new(), steps: Vec::new(), is_lost: false };
                match lost(self.nodes.recipe(namespace, node, None).await)? {
                    Some(recipe) => references.add(&recipe),
                    None => references.is_lost = true,
                }
                Ok(references)
            }
        }
    }
}

/// What a node leads to.
struct References {
    node: Digest,
    chunks: Vec<Half>,
    steps: Vec<(Digest, Step)>,
    /// Whether the node is damaged or gone.
    is_lost: bool,
}

impl References {
    fn add(&mut self, recipe: &Recipe) {
        match recipe {
            Recipe::Extents(extents) => {
                for extent in extents {
                    if let Extent::Data(chunk) = extent {
                        self.chunks.push(half(&chunk.digest));
                    }
                }
            }
            Recipe::Nodes { nodes, .. } => self.steps.extend(nodes.iter().map(|node| (node.digest, Step::Recipe(node.digest)))),
        }
    }
}

/// What is looked for, and where it was looked for.
struct Search {
    wanted: HashSet<Digest>,
    found: HashSet<Digest>,
    seen: HashSet<Digest>,
}

impl Search {
    fn take(&mut self, digest: Digest) {
        if self.wanted.remove(&digest) {
            self.found.insert(digest);
        }
    }
}

fn lost<T>(node: Result<T, NodeError>) -> Result<Option<T>, ReadError> {
    match node {
        Ok(node) => Ok(Some(node)),
        Err(error) => match error.into_outage() {
            Some(outage) => Err(outage),
            None => Ok(None),
        },
    }
}
