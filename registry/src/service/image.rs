//! Images of a repository: put, get, delete, releases.

use std::collections::BTreeMap;
use std::sync::Arc;

use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::reference::{HEAD, Repository};
use layer_format::{Digest, FormatError};

use super::closure::{ClosureError, Walked, closure_check};
use super::nodes::Nodes;
use super::objects::Objects;
use super::trash;
use crate::db::manifest::{manifest_get, manifest_newest, manifest_put};
use crate::db::model::model_get;
use crate::db::namespace::{NamespaceId, namespace_find};
use crate::db::repository::{RepositoryRow, repository_ensure, repository_find};
use crate::db::tag::{tag_get, tag_list, tag_move};
use crate::db::trash::Deletion;
use crate::db::{Connection, Db, DbError, commit};

/// Which image of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// By release; `head` is the newest.
    Release(String),
    /// By digest.
    Digest(Digest),
}

/// Why an image was not put.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// The bytes are no image manifest.
    #[error(transparent)]
    Invalid(#[from] FormatError),
    /// The bytes are not those that the request names.
    #[error("the manifest's digest is {got}, and the request names {wanted}")]
    Digest {
        /// As in the request.
        wanted: Digest,
        /// Of the bytes.
        got: Digest,
    },
    /// Not all it needs is there.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// What a put did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Put {
    pub(crate) digest: Digest,
    pub(crate) existed: bool,
}

/// Makes an image visible: checks that all it needs is there, then, in one transaction, keeps its bytes and moves the
/// release and `head`. Idempotent.
pub(crate) async fn image_put(objects: &Objects, nodes: &Arc<Nodes>, repository: &Repository, reference: &Reference, bytes: &[u8]) -> Result<Put, PutError> {
    let image = ImageManifest::decode(bytes)?;
    let digest = Digest::of(bytes);
    if let Reference::Digest(wanted) = reference
        && *wanted != digest
    {
        return Err(PutError::Digest { wanted: *wanted, got: digest });
    }
    let db = &objects.db;
    // A namespace without packs has no row, and gets none from an image that is refused.
    let found = {
        let mut db = db.read().await?;
        namespace_find(&mut db, repository.namespace()).await?
    };
    let walked = match found {
        Some(namespace) => {
            let walked = closure_check(objects, nodes, namespace, &image.layers).await?;
            check_pinned_model(objects, namespace, repository, &image).await?;
            walked
        }
        None if image.layers.is_empty() && image.model.is_none() => Walked::default(),
        None => return Err(ClosureError::Missing(image.layers.iter().copied().chain(image.model).collect()).into()),
    };
    let mut transaction = db.begin().await?;
    let row = repository_ensure(&mut transaction, repository).await?;
    walked.remember(&mut transaction, row.namespace).await?;
    let existed = manifest_put(&mut transaction, row.id, &digest, bytes, &image).await?;
    if let Reference::Release(release) = reference {
        tag_move(&mut transaction, row.id, release, &digest).await?;
    }
    tag_move(&mut transaction, row.id, HEAD, &digest).await?;
    commit(transaction).await?;
    Ok(Put { digest, existed })
}

/// A pinned model is an object of the namespace, or one that was learned in this repository.
async fn check_pinned_model(objects: &Objects, namespace: NamespaceId, repository: &Repository, image: &ImageManifest) -> Result<(), PutError> {
    let Some(model) = image.model else { return Ok(()) };
    if objects.promise(namespace, &[model]).await?.contains_key(&model) {
        return Ok(());
    }
    let mut db = objects.db.read().await?;
    let learned = match repository_find(&mut db, repository).await? {
        Some(row) => model_get(&mut db, row.id, &model).await?,
        None => None,
    };
    match learned {
        Some(_) => Ok(()),
        None => Err(ClosureError::Missing(vec![model]).into()),
    }
}

/// An image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) repository: RepositoryRow,
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
}

async fn resolve(db: &mut Connection, repository: &RepositoryRow, reference: &Reference) -> Result<Option<Digest>, DbError> {
    match reference {
        Reference::Digest(digest) => Ok(Some(*digest)),
        Reference::Release(release) => tag_get(db, repository.id, release).await,
    }
}

/// The image, if the repository has it.
pub(crate) async fn image_get(db: &Db, repository: &Repository, reference: &Reference) -> Result<Option<Image>, DbError> {
    let mut db = db.read().await?;
    let Some(row) = repository_find(&mut db, repository).await? else { return Ok(None) };
    let Some(digest) = resolve(&mut db, &row, reference).await? else { return Ok(None) };
    let bytes = manifest_get(&mut db, row.id, &digest).await?;
    Ok(bytes.map(|bytes| Image { repository: row, digest, bytes }))
}

/// Deletes a release, or an image with its releases, for both sides; it can be brought back for a while. Then `head` is the newest image that is left. Says whether there
/// was anything to forget.
pub(crate) async fn image_delete(db: &Db, repository: &Repository, reference: &Reference, by: &str) -> Result<bool, DbError> {
    let deletion = Deletion { at: db.now(), by };
    let mut transaction = db.begin().await?;
    let Some(row) = repository_find(&mut transaction, repository).await? else { return Ok(false) };
    let deleted = match reference {
        Reference::Release(release) => trash::delete_name(&mut transaction, row.id, release, deletion).await?,
        Reference::Digest(digest) => trash::delete_image(&mut transaction, row.id, digest, deletion).await?,
    };
    if deleted
        && tag_get(&mut transaction, row.id, HEAD).await?.is_none()
        && let Some(newest) = manifest_newest(&mut transaction, row.id).await?
    {
        tag_move(&mut transaction, row.id, HEAD, &newest).await?;
    }
    commit(transaction).await?;
    Ok(deleted)
}

/// The repository's releases, if it exists.
pub(crate) async fn image_tags(db: &Db, repository: &Repository) -> Result<Option<BTreeMap<String, Digest>>, DbError> {
    let mut db = db.read().await?;
    match repository_find(&mut db, repository).await? {
        Some(row) => tag_list(&mut db, row.id).await.map(Some),
        None => Ok(None),
    }
}
