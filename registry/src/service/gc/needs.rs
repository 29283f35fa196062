//! Which images need some objects: for reports about damage.

use std::collections::{BTreeSet, HashMap, HashSet};

use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest, StateManifest};
use layer_format::oci::OciManifest;
use layer_format::recipe::Recipe;

use super::mark::{recipe_references, references};
use super::roots::Kind;
use crate::db::DbError;
use crate::db::namespace::NamespaceId;
use crate::db::root::{Rooted, rooted_list};
use crate::service::objects::Objects;

/// Looks for what needs objects of one namespace. Nodes are read once each.
#[derive(Debug)]
pub(crate) struct Needs<'a> {
    objects: &'a Objects,
    namespace: NamespaceId,
    lost: &'a HashSet<Digest>,
    /// Of each node whose references were followed: whether one of the objects is below.
    known: HashMap<Digest, bool>,
}

impl<'a> Needs<'a> {
    pub(crate) fn new(objects: &'a Objects, namespace: NamespaceId, lost: &'a HashSet<Digest>) -> Self {
        Self { objects, namespace, lost, known: HashMap::new() }
    }

    /// What needs one of the objects, as `repository`, `repository:release`, `repository@sha256:…`, each once.
    pub(crate) async fn list(mut self) -> Result<Vec<String>, DbError> {
        let rooted = {
            let mut db = self.objects.db.read().await?;
            rooted_list(&mut db, self.namespace).await?
        };
        let mut blobs: HashSet<(String, String)> = HashSet::new();
        let mut found = BTreeSet::new();
        for root in &rooted {
            let mut references: Vec<(Kind, Digest)> = Vec::new();
            match root {
                Rooted::Image { bytes, .. } => {
                    if let Ok(image) = ImageManifest::decode(bytes) {
                        references.extend(image.layers.iter().map(|layer| (Kind::Layer, *layer)).chain(image.model.map(|model| (Kind::Leaf, model))));
                    }
                }
                Rooted::State { bytes, .. } => references.extend(StateManifest::decode(bytes).ok().map(|state| (Kind::Layer, state.sandbox))),
                Rooted::Blob { recipe, root, .. } => {
                    references.extend(root.map(|root| (Kind::Tree, root)));
                    if let Some(Ok(recipe)) = recipe.as_deref().map(Recipe::decode_node) {
                        recipe_references(&recipe, &mut |kind, digest| references.push((kind, *digest)));
                    }
                }
                Rooted::OciManifest { repository, bytes, media_type, digest, tags } => {
                    let Ok((manifest, ..)) = OciManifest::decode(bytes, Some(media_type)) else { continue };
                    if manifest.needed_blobs().any(|blob| blobs.contains(&(repository.clone(), blob.digest.to_string()))) {
                        match tags.is_empty() {
                            true => drop(found.insert(format!("{repository}@{digest}"))),
                            false => found.extend(tags.iter().map(|tag| format!("{repository}:{tag}"))),
                        }
                    }
                    continue;
                }
            }
            let mut is_hit = false;
            for (kind, digest) in references {
                is_hit |= self.is_below(kind, digest).await?;
            }
            match root {
                _ if !is_hit => {}
                Rooted::Image { repository, bytes, tags } => match tags.is_empty() {
                    true => drop(found.insert(format!("{repository}@{}", Digest::of(bytes)))),
                    false => found.extend(tags.iter().map(|tag| format!("{repository}:{tag}"))),
                },
                Rooted::State { repository, bytes } => drop(found.insert(format!("{repository} state {}", Digest::of(bytes)))),
                Rooted::Blob { repository, digest, .. } => drop(blobs.insert((repository.clone(), digest.clone()))),
                Rooted::OciManifest { .. } => {}
            }
        }
        // A blob that no manifest refers to is named itself.
        if found.is_empty() {
            found.extend(blobs.into_iter().map(|(repository, digest)| format!("{repository} blob {digest}")));
        }
        Ok(found.into_iter().collect())
    }

    /// Whether one of the objects is this one or below it. An object that cannot be read counts as one.
    async fn is_below(&mut self, kind: Kind, digest: Digest) -> Result<bool, DbError> {
        // Nodes whose children are all known are decided when they are met for the second time.
        let mut stack = vec![(kind, digest, None::<Vec<(Kind, Digest)>>)];
        while let Some((kind, digest, children)) = stack.pop() {
            if kind == Kind::Leaf || self.known.contains_key(&digest) {
                continue;
            }
            if let Some(children) = children {
                let hit = children.iter().any(|(kind, child)| self.is_hit(*kind, child));
                self.known.insert(digest, hit);
                continue;
            }
            let children = match self.lost.contains(&digest) {
                true => None,
                false => self.children(kind, digest).await?,
            };
            let Some(children) = children else {
                self.known.insert(digest, true);
                continue;
            };
            let below: Vec<_> = children.iter().filter(|(kind, _)| *kind != Kind::Leaf).map(|(kind, child)| (*kind, *child, None)).collect();
            stack.push((kind, digest, Some(children)));
            stack.extend(below);
        }
        Ok(self.is_hit(kind, &digest))
    }

    fn is_hit(&self, kind: Kind, digest: &Digest) -> bool {
        self.lost.contains(digest) || (kind != Kind::Leaf && self.known.get(digest).copied().unwrap_or(false))
    }

    async fn children(&self, kind: Kind, digest: Digest) -> Result<Option<Vec<(Kind, Digest)>>, DbError> {
        let Some(place) = self.objects.locate(self.namespace, &[digest]).await?.remove(&digest) else { return Ok(None) };
        let Ok(bytes) = self.objects.read(&digest, &place).await else { return Ok(None) };
        let mut children = Vec::new();
        Ok(references(kind, &bytes, &mut |kind, digest| children.push((kind, *digest))).map(|()| children))
    }
}
