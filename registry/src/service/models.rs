//! Which model launches get, and what people do with models: look, bring, pin, forget.
//!
//! A launch gets the model that its image's manifest pins; else the one pinned to the image, or to a release that names
//! it; else what was learned about the image or carried over to it; else the repository's newest.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::model::Model;
use layer_format::reference::Repository;
use predictor::Params;
use predictor::carry::{Carried, carry_over};

use super::frames::ReadError;
use super::image::{Image, Reference, image_get};
use super::learn::{Learner, follow_newest};
use super::plausible::{Known, layers_of};
use crate::db::held_trace::held_trace_clear;
use crate::db::image_model::{ImageModel, image_model_clear, image_model_get, image_model_served, image_model_set};
use crate::db::model::{model_get, model_put};
use crate::db::model_pin::{model_pin_delete, model_pin_find, model_pin_set};
use crate::db::repository::{RepositoryRow, repository_find, repository_lock, repository_model, repository_set_model};
use crate::db::trace_statistics::trace_statistics_clear;
use crate::db::{Connection, Db, DbError, commit};

/// Which model of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The newest image's.
    Newest,
    /// By digest.
    Digest(Digest),
    /// What launches of an image get.
    Of(Reference),
}

/// Why something could not be done with a model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    /// No such image.
    #[error("the repository has no such image")]
    ImageUnknown,
    /// No such model.
    #[error("the repository has no such model")]
    ModelUnknown,
    /// No such pin.
    #[error("no model is pinned there")]
    PinUnknown,
    /// Too many pins.
    #[error("the repository has as many pinned models as it may have: unpin one first")]
    TooManyPins,
    /// The model does not suit the image.
    #[error("the model names nothing that is in the image")]
    Unsuitable,
    /// Storage or database failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// The model that launches of an image get, if its manifest pins none.
pub(crate) async fn model_of_image(db: &mut Connection, repository: &RepositoryRow, image: &Digest) -> Result<Option<Digest>, DbError> {
    if let Some(pinned) = model_pin_find(&mut *db, repository.id, image).await? {
        return Ok(Some(pinned));
    }
    Ok(image_model_served(db, repository.id, image).await?.or(repository.model))
}

/// The digest of the model that launches of an image get. `pinned`: by its manifest.
pub(crate) async fn model_digest(db: &Db, image: &Image, pinned: Option<Digest>) -> Result<Option<Digest>, DbError> {
    if pinned.is_some() {
        return Ok(pinned);
    }
    let mut db = db.read().await?;
    model_of_image(&mut db, &image.repository, &image.digest).await
}

/// A model and its digest.
pub(crate) async fn model_find(db: &Db, repository: &Repository, wanted: &Wanted) -> Result<Option<(Digest, Vec<u8>)>, DbError> {
    let image = match wanted {
        Wanted::Of(reference) => image_get(db, repository, reference).await?,
        _ => None,
    };
    let mut db = db.read().await?;
    let Some(row) = repository_find(&mut db, repository).await? else { return Ok(None) };
    let digest = match (wanted, image) {
        (Wanted::Newest, _) => row.model,
        (Wanted::Digest(digest), _) => Some(*digest),
        (Wanted::Of(_), None) => None,
        (Wanted::Of(_), Some(image)) => match ImageManifest::decode(&image.bytes).ok().and_then(|manifest| manifest.model) {
            Some(pinned) => Some(pinned),
            None => model_of_image(&mut db, &row, &image.digest).await?,
        },
    };
    let Some(digest) = digest else { return Ok(None) };
    Ok(model_get(&mut db, row.id, &digest).await?.map(|bytes| (digest, bytes)))
}

/// Forgets what was learned; pinned models stay. Says whether there was anything.
pub(crate) async fn model_forget(db: &Db, repository: &Repository) -> Result<bool, DbError> {
    let mut transaction = db.begin().await?;
    let Some(row) = repository_find(&mut transaction, repository).await? else { return Ok(false) };
    trace_statistics_clear(&mut transaction, row.id).await?;
    held_trace_clear(&mut transaction, row.id).await?;
    let images = image_model_clear(&mut transaction, row.id).await?;
    let forgotten = row.model.is_some() && repository_set_model(&mut transaction, row.id, row.model, None).await?;
    commit(transaction).await?;
    Ok(forgotten || images > 0)
}

/// The text under which something is pinned to a reference.
fn pin_name(reference: &Reference) -> String {
    match reference {
        Reference::Release(release) => release.clone(),
        Reference::Digest(digest) => digest.to_string(),
    }
}

/// Pins a model to an image or release: the one named, or what launches get now. Gives its digest. Idempotent.
pub(crate) async fn model_pin(db: &Db, repository: &Repository, reference: &Reference, model: Option<Digest>) -> Result<Digest, ModelError> {
    let image = image_get(db, repository, reference).await?.ok_or(ModelError::ImageUnknown)?;
    let mut transaction = db.begin().await?;
    let row = repository_find(&mut transaction, repository).await?.ok_or(ModelError::ImageUnknown)?;
    let digest = match model {
        Some(digest) => digest,
        None => model_of_image(&mut transaction, &row, &image.digest).await?.ok_or(ModelError::ModelUnknown)?,
    };
    model_get(&mut transaction, row.id, &digest).await?.ok_or(ModelError::ModelUnknown)?;
    if !model_pin_set(&mut transaction, row.id, &pin_name(reference), &digest).await? {
        return Err(ModelError::TooManyPins);
    }
    commit(transaction).await?;
    Ok(digest)
}

/// Takes a pin away.
pub(crate) async fn model_unpin(db: &Db, repository: &Repository, reference: &Reference) -> Result<(), ModelError> {
    let mut transaction = db.begin().await?;
    let row = repository_find(&mut transaction, repository).await?.ok_or(ModelError::PinUnknown)?;
    if !model_pin_delete(&mut transaction, row.id, &pin_name(reference)).await? {
        return Err(ModelError::PinUnknown);
    }
    commit(transaction).await?;
    Ok(())
}

impl Learner {
    /// Brings a model from elsewhere: what of it is in the image becomes what launches of the image get, and learns on
    /// from there. Gives its digest, which is another one if something was left out.
    pub(crate) async fn import(&self, image: &Image, model: Model) -> Result<Digest, ModelError> {
        let manifest = ImageManifest::decode(&image.bytes).map_err(|_| ModelError::ImageUnknown)?;
        let (namespace, row) = (image.repository.namespace, &image.repository);
        let layers = layers_of(&self.nodes, namespace, &manifest).await?;
        let mut known = HashMap::new();
        for state in &model.states {
            if let Some(path) = model.paths.get(state.path as usize)
                && let Entry::Vacant(place) = known.entry((state.layer, path.clone()))
            {
                place.insert(Known::look(&layers, state.layer.into(), path).await?);
            }
        }
        let digest_of_image = image.digest;
        let suited = tokio::task::spawn_blocking(move || {
            carry_over(&model, digest_of_image, &Params::default(), |layer, path, touch| {
                let place = known.get(&(layer, path.clone())).and_then(|known| known.touched(path, touch));
                match place {
                    Some(same) if same == path => Carried::Same,
                    Some(other) => Carried::Became(vec![(layer, other.clone(), touch)]),
                    None => Carried::Became(Vec::new()),
                }
            })
        });
        let suited = suited.await.map_err(|_| ReadError::Cancelled)?;
        if suited.states.is_empty() {
            return Err(ModelError::Unsuitable);
        }
        let bytes = suited.encode();
        let digest = Digest::of(&bytes);
        let mut transaction = self.objects.db.begin().await?;
        repository_lock(&mut transaction, row.id).await?;
        let row = RepositoryRow { model: repository_model(&mut transaction, row.id).await?, ..*row };
        let models = image_model_get(&mut transaction, row.id, &image.digest).await?.unwrap_or_default();
        model_put(&mut transaction, row.id, &digest, &bytes).await?;
        let models = ImageModel { served: Some(digest), candidate: None, lost_rounds: 0, ..models };
        // Read in this transaction, which alone writes to the repository.
        image_model_set(&mut transaction, row.id, &image.digest, &models).await?;
        follow_newest(&mut transaction, &row, &image.digest, digest).await?;
        commit(transaction).await?;
        Ok(digest)
    }
}

/// The image that a reference names.
pub(crate) async fn image_of(db: &Db, repository: &Repository, reference: &Reference) -> Result<Image, ModelError> {
    image_get(db, repository, reference).await?.ok_or(ModelError::ImageUnknown)
}
