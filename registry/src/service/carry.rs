//! Carrying a model over to a new image of the repository, before its first launch.
//!
//! For each path that the model names (and for no other) it is found out what became of it ([`follow`]), and where its
//! touched buckets went; `predictor::carry` rewrites the model by that. The old image keeps its model.
//!
//! Work is bounded by the model, by the folders of its paths, and by what differs between the two trees: what both share is
//! told by the digests of tree objects and never read.

mod changed;
mod follow;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use layer_format::entry::{Entry, Kind};
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::model::Model;
use layer_format::reference::Repository;
use layer_format::trace::Touch;
use layer_format::{Digest, LayerPath};
use predictor::Params;
use predictor::carry::{Carried, Shifts, carry_over};

use super::frames::ReadError;
use super::learn::{Learner, follow_newest};
use super::nodes::NodeError;
use super::plausible::layers_of;
use super::resolve::Layers;
use crate::db::commit;
use crate::db::image_model::{ImageModel, image_model_get, image_model_set};
use crate::db::manifest::manifest_get;
use crate::db::model::{model_get, model_put};
use crate::db::repository::{RepositoryRow, repository_find, repository_lock};

/// Extents of a file beyond which its content is not followed: a file of some GiB.
const MAX_EXTENTS: usize = 1 << 17;
/// Extents of all files that are read for one image.
const MAX_ALL_EXTENTS: usize = 1 << 21;
/// Other layers in which a path is looked for that is not where it was.
const MAX_OTHER_LAYERS: usize = 8;

impl Learner {
    /// An image was put: it gets a model made of the repository's, unless it has one.
    pub(crate) async fn carry(&self, repository: &Repository, image: &Digest) -> Result<(), ReadError> {
        let (row, models) = {
            let mut db = self.objects.db.read().await?;
            let Some(row) = repository_find(&mut db, repository).await? else { return Ok(()) };
            let models = image_model_get(&mut db, row.id, image).await?;
            (row, models)
        };
        let Some(models) = models else { return Box::pin(self.carry_to(&row, image)).await };
        // It was put again, and is the newest now.
        if let Some(served) = models.served.filter(|served| row.model != Some(*served)) {
            let mut transaction = self.objects.db.begin().await?;
            repository_lock(&mut transaction, row.id).await?;
            follow_newest(&mut transaction, &row, image, served).await?;
            commit(transaction).await?;
        }
        Ok(())
    }

    /// The same of an image that has no model.
    pub(super) async fn carry_to(&self, row: &RepositoryRow, image: &Digest) -> Result<(), ReadError> {
        let Some(base) = row.model else { return Ok(()) };
        let (bytes, to) = {
            let mut db = self.objects.db.read().await?;
            (model_get(&mut db, row.id, &base).await?, manifest_get(&mut db, row.id, image).await?)
        };
        let (Some(bytes), Some(to)) = (bytes, to.and_then(|bytes| ImageManifest::decode(&bytes).ok())) else { return Ok(()) };
        let Ok(model) = Model::decode(&bytes) else { return Ok(()) };
        let learned_on = model.image;
        if learned_on == Some(*image) {
            return self.serve(row, image, ImageModel { served: Some(base), ..ImageModel::default() }, None, learned_on).await;
        }
        let from = {
            let mut db = self.objects.db.read().await?;
            match &learned_on {
                Some(image) => manifest_get(&mut db, row.id, image).await?.and_then(|bytes| ImageManifest::decode(&bytes).ok()),
                None => None,
            }
        };
        let became = match &from {
            Some(from) => Box::pin(self.became(row, &model, from, &to)).await?,
            // Nothing is known but paths.
            None => HashMap::new(),
        };
        let target = *image;
        let carried = tokio::task::spawn_blocking(move || {
            let mut states =
                model.states.iter().enumerate().map(|(at, _)| became.get(&(at as u32)).cloned().unwrap_or(Carried::Same)).collect::<Vec<_>>().into_iter();
            carry_over(&model, target, &Params::default(), |_, _, _| states.next().unwrap_or(Carried::Same))
        });
        let carried = carried.await.map_err(|_| ReadError::Cancelled)?;
        let bytes = (!carried.states.is_empty()).then(|| carried.encode());
        let models = ImageModel { served: bytes.as_deref().map(Digest::of), carried_from: learned_on, ..ImageModel::default() };
        self.serve(row, image, models, bytes, learned_on).await?;
        self.metrics.models_carried.fetch_add(1, Ordering::Relaxed);
        tracing::info!(image.digest = %image, states = carried.states.len(), "carried a model over to image {image}");
        Ok(())
    }

    /// Makes these the models of an image that has none. The image that the repository's model was learned on keeps that.
    async fn serve(&self, row: &RepositoryRow, image: &Digest, models: ImageModel, bytes: Option<Vec<u8>>, old: Option<Digest>) -> Result<(), ReadError> {
        let mut transaction = self.objects.db.begin().await?;
        repository_lock(&mut transaction, row.id).await?;
        if let (Some(old), Some(_)) = (old.filter(|old| old != image), row.model)
            && manifest_get(&mut transaction, row.id, &old).await?.is_some()
            && image_model_get(&mut transaction, row.id, &old).await?.is_none()
        {
            image_model_set(&mut transaction, row.id, &old, &ImageModel { served: row.model, ..ImageModel::default() }).await?;
        }
        if let (Some(bytes), Some(digest)) = (bytes, models.served) {
            model_put(&mut transaction, row.id, &digest, &bytes).await?;
        }
        // Somebody else was faster otherwise.
        if image_model_set(&mut transaction, row.id, image, &models).await? {
            if let Some(digest) = models.served {
                follow_newest(&mut transaction, row, image, digest).await?;
            }
            commit(transaction).await?;
        }
        Ok(())
    }

    /// What became of each state of the model that is not what it was.
    async fn became(&self, row: &RepositoryRow, model: &Model, from: &ImageManifest, to: &ImageManifest) -> Result<HashMap<u32, Carried>, ReadError> {
        let old = layers_of(&self.nodes, row.namespace, from).await?;
        let new = layers_of(&self.nodes, row.namespace, to).await?;
        let mut by_layer: BTreeMap<u8, BTreeMap<&LayerPath, Vec<u32>>> = BTreeMap::new();
        for (number, state) in (0..).zip(&model.states) {
            if let Some(path) = model.paths.get(state.path as usize) {
                by_layer.entry(state.layer).or_default().entry(path).or_default().push(number);
            }
        }
        let pairs = pair(&old.roots, &new.roots);
        let mut became = HashMap::new();
        let mut extents_left = MAX_ALL_EXTENTS;
        for (layer, paths) in by_layer {
            let from = usize::from(layer);
            let target = pairs.get(from).copied().flatten();
            if let Some(to) = target
                && old.roots.get(from) == new.roots.get(to)
            {
                if let Some(to) = u8::try_from(to).ok().filter(|to| *to != layer) {
                    for (path, states) in paths {
                        became.extend(states.iter().map(|state| (*state, moved(to, path, model.states[*state as usize].touch))));
                    }
                }
                continue;
            }
            let names: Vec<LayerPath> = paths.keys().map(|path| (*path).clone()).collect();
            let mut found = match target {
                Some(to) => Box::pin(follow::follow(&old, from, &new, to, &names)).await?,
                None => HashMap::new(),
            };
            for (path, states) in paths {
                let place = match found.remove(path) {
                    Some(place) => target.map(|to| (to, place)),
                    None => elsewhere(&new, target, path).await?,
                };
                let Some((to, place)) = place.and_then(|(to, place)| Some((u8::try_from(to).ok()?, place))) else {
                    became.extend(states.iter().map(|state| (*state, Carried::Became(Vec::new()))));
                    continue;
                };
                if to == layer && place.path == *path && place.is_same {
                    continue;
                }
                let touches_data = states.iter().any(|state| matches!(model.states[*state as usize].touch, Touch::Data { .. }));
                let shifts = match touches_data && !place.is_same {
                    true => shifts(&old, from, path, &new, &place.entry, &mut extents_left).await?,
                    false => None,
                };
                let is_file = matches!(place.entry.kind, Kind::File(_));
                for state in states {
                    let what = match (model.states[state as usize].touch, &shifts) {
                        (Touch::Data { .. }, _) if !is_file => Carried::Became(Vec::new()),
                        (Touch::Data { bucket }, Some(shifts)) => {
                            Carried::Became(shifts.buckets(bucket).into_iter().map(|bucket| (to, place.path.clone(), Touch::Data { bucket })).collect())
                        }
                        (touch, _) => moved(to, &place.path, touch),
                    };
                    became.insert(state, what);
                }
            }
        }
        Ok(became)
    }
}

fn moved(layer: u8, path: &LayerPath, touch: Touch) -> Carried {
    Carried::Became(vec![(layer, path.clone(), touch)])
}

/// A path of the new image that took the place of an old one.
#[derive(Clone, Debug)]
struct Place {
    path: LayerPath,
    entry: Entry,
    /// Whether it has the content that the old one had.
    is_same: bool,
}

/// Which new layer took the place of each old one: an equal one, else of those that are left the one at the same distance from
/// the top, where an application's own layer is.
fn pair(old: &[Digest], new: &[Digest]) -> Vec<Option<usize>> {
    let mut free: Vec<bool> = vec![true; new.len()];
    let mut pairs: Vec<Option<usize>> = vec![None; old.len()];
    for (root, pair) in old.iter().zip(&mut pairs) {
        *pair = (0..new.len()).find(|at| free[*at] && new[*at] == *root);
        if let Some(at) = *pair {
            free[at] = false;
        }
    }
    let mut left = (0..new.len()).rev().filter(|at| free[*at]);
    for pair in pairs.iter_mut().rev().filter(|pair| pair.is_none()) {
        *pair = left.next();
    }
    pairs
}

/// The path in another layer of the new image: layers may have been joined or split.
async fn elsewhere(new: &Layers, except: Option<usize>, path: &LayerPath) -> Result<Option<(usize, Place)>, ReadError> {
    let others = (0..new.roots.len()).rev().filter(|layer| Some(*layer) != except).take(MAX_OTHER_LAYERS);
    for layer in others {
        if let Some(entry) = lookup(new, layer, path).await?
            && !matches!(entry.kind, Kind::Directory { .. })
        {
            return Ok(Some((layer, Place { path: path.clone(), entry, is_same: false })));
        }
    }
    Ok(None)
}

/// The entry, unless it cannot be read.
async fn lookup(layers: &Layers, layer: usize, path: &LayerPath) -> Result<Option<Entry>, ReadError> {
    match layers.look(layer, path).await.map_err(NodeError::into_outage) {
        Ok((entry, _)) => Ok(entry),
        Err(Some(outage)) => Err(outage),
        Err(None) => Ok(None),
    }
}

/// Where the bytes of the file went; `None` if that cannot be told: then they count as where they were.
async fn shifts(old: &Layers, layer: usize, path: &LayerPath, new: &Layers, entry: &Entry, left: &mut usize) -> Result<Option<Shifts>, ReadError> {
    let (Some(Entry { kind: Kind::File(before), .. }), Kind::File(after)) = (lookup(old, layer, path).await?, &entry.kind) else { return Ok(None) };
    let mut both = Vec::with_capacity(2);
    for (layers, recipe) in [(old, &before), (new, after)] {
        match layers.extents(recipe, MAX_EXTENTS.min(*left)).await.map_err(NodeError::into_outage) {
            Ok(Some(extents)) => {
                *left -= extents.len();
                both.push(extents);
            }
            Ok(None) | Err(None) => return Ok(None),
            Err(Some(outage)) => return Err(outage),
        }
    }
    let [before, after] = &both[..] else { return Ok(None) };
    Ok(Some(Shifts::new(before, after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_paired_by_content_and_then_from_the_top() {
        let root = |name: &str| Digest::of(name.as_bytes());
        let of = |names: &[&str]| names.iter().map(|name| root(name)).collect::<Vec<_>>();
        assert_eq!(pair(&of(&["base", "app1"]), &of(&["base", "app2"])), [Some(0), Some(1)]);
        assert_eq!(pair(&of(&["base", "app1"]), &of(&["base", "lib", "app2"])), [Some(0), Some(2)]);
        assert_eq!(pair(&of(&["base", "lib", "app1"]), &of(&["app2"])), [None, None, Some(0)]);
        assert_eq!(pair(&of(&["same", "same"]), &of(&["same"])), [Some(0), None]);
        assert_eq!(pair(&of(&["a", "b"]), &of(&["b", "a"])), [Some(1), Some(0)]);
        assert_eq!(pair(&of(&["a"]), &[]), [None]);
    }
}
