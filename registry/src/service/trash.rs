//! Deletes that can be undone: what is deleted is invisible at once, and kept for the undo window, with all the objects that it
//! needs. Everything here is a step of a caller's transaction; each says whether there was anything to delete.

use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::oci::{OciDigest, OciManifest};
use layer_format::reference::{HEAD, Repository};
use serde::{Deserialize, Serialize};

use super::oci::restore_head;
use crate::db::manifest::{manifest_delete, manifest_get, manifest_put};
use layer_format::rebuild::Rebuild;
use layer_format::recipe::Recipe;

use crate::db::oci_blob::{BlobContent, BlobRow, oci_blob_delete, oci_blob_get, oci_blob_put};
use crate::db::oci_image::{ImageLink, oci_image_manifests, oci_image_of, oci_image_put};
use crate::db::oci_manifest::{
    NewOciManifest, oci_manifest_delete, oci_manifest_get, oci_manifest_put, oci_tag_delete, oci_tag_get, oci_tag_move, oci_tags_of,
};
use crate::db::repository::{RepositoryId, repository_find, repository_lock};
use crate::db::state::{NewState, state_delete, state_get, state_put, state_sandbox_bytes};
use crate::db::tag::{tag_delete, tag_get, tag_list, tag_move};
use crate::db::trash::{Deletion, NewTrash, TrashItem, trash_delete, trash_get, trash_insert, trash_newest};
use crate::db::{Connection, Db, DbError, commit};

/// An image.
pub(crate) const IMAGE: &str = "image";
/// A name of an image.
pub(crate) const RELEASE: &str = "release";
/// A state.
pub(crate) const STATE: &str = "state";
/// A manifest of container tools.
pub(crate) const OCI_MANIFEST: &str = "oci-manifest";
/// A name of one.
pub(crate) const OCI_TAG: &str = "oci-tag";
/// A blob.
pub(crate) const OCI_BLOB: &str = "oci-blob";

/// Why something could not be brought back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UndeleteError {
    /// Nothing of that name.
    #[error("nothing of this name was deleted, or its undo window is over; `turbo-registry trash` lists what can be brought back")]
    Unknown,
    /// A name whose manifest is gone.
    #[error("what {0} named is not there: bring that back first")]
    Dangling(String),
    /// The row is not what it should be.
    #[error("what was kept of {name} cannot be read: {why}")]
    Damaged {
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// Names that go with what they name.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Names {
    names: Vec<String>,
    /// The image that a manifest is the same as, and whether the manifest was made of it.
    link: Option<(Digest, bool)>,
    media_type: Option<String>,
}

/// What a name named.
#[derive(Debug, Serialize, Deserialize)]
struct Target {
    target: String,
}

/// A state's other columns.
#[derive(Debug, Serialize, Deserialize)]
struct StateDetail {
    container: Option<String>,
    sandbox: Digest,
    sandbox_bytes: u64,
}

/// What a blob's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BlobKind {
    /// The bytes themselves.
    Inline,
    /// A recipe node.
    Recipe,
    /// A recipe node of what the blob is made of again.
    Rebuilt,
    /// The root of a tree.
    Tar,
}

#[derive(Debug, Serialize, Deserialize)]
struct BlobDetail {
    size_bytes: u64,
    kind: BlobKind,
    /// The head of the rebuild of a blob that is made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rebuild: Option<Vec<u8>>,
}

/// What the content of a deleted blob is.
pub(crate) fn blob_kind(detail: &str) -> Option<BlobKind> {
    serde_json::from_str::<BlobDetail>(detail).ok().map(|detail| detail.kind)
}

/// The sandbox of a deleted state.
pub(crate) fn state_sandbox(detail: &str) -> Option<Digest> {
    serde_json::from_str::<StateDetail>(detail).ok().map(|detail| detail.sandbox)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Deletes an image with its releases, and the manifests that container tools see of it.
pub(crate) async fn delete_image(db: &mut Connection, repository: RepositoryId, digest: &Digest, deletion: Deletion<'_>) -> Result<bool, DbError> {
    for link in oci_image_manifests(&mut *db, repository, digest).await? {
        delete_manifest_row(&mut *db, repository, &link.manifest, deletion).await?;
    }
    delete_image_row(db, repository, digest, deletion).await
}

async fn delete_image_row(db: &mut Connection, repository: RepositoryId, digest: &Digest, deletion: Deletion<'_>) -> Result<bool, DbError> {
    let Some(bytes) = manifest_get(&mut *db, repository, digest).await? else { return Ok(false) };
    let names = tag_list(&mut *db, repository).await?.into_iter().filter(|(name, of)| of == digest && name != HEAD).map(|(name, _)| name).collect();
    let detail = json(&Names { names, ..Names::default() });
    trash_insert(&mut *db, repository, &NewTrash { kind: IMAGE, name: &digest.to_string(), content: &bytes, detail }, deletion).await?;
    manifest_delete(db, repository, digest).await
}

/// Deletes a manifest of container tools with its tags, and the image that was made of it or that it was made of.
pub(crate) async fn delete_manifest(db: &mut Connection, repository: RepositoryId, digest: &OciDigest, deletion: Deletion<'_>) -> Result<bool, DbError> {
    if let Some(link) = oci_image_of(&mut *db, repository, digest).await? {
        delete_image_row(&mut *db, repository, &link.image, deletion).await?;
    }
    delete_manifest_row(db, repository, digest, deletion).await
}

async fn delete_manifest_row(db: &mut Connection, repository: RepositoryId, digest: &OciDigest, deletion: Deletion<'_>) -> Result<bool, DbError> {
    let Some(row) = oci_manifest_get(&mut *db, repository, digest).await? else { return Ok(false) };
    let names = oci_tags_of(&mut *db, repository, digest).await?;
    let link = oci_image_of(&mut *db, repository, digest).await?.map(|link| (link.image, link.rendered));
    let detail = json(&Names { names, link, media_type: Some(row.media_type) });
    trash_insert(&mut *db, repository, &NewTrash { kind: OCI_MANIFEST, name: digest.as_str(), content: &row.bytes, detail }, deletion).await?;
    oci_manifest_delete(db, repository, digest).await
}

/// Deletes a name, on both sides.
pub(crate) async fn delete_name(db: &mut Connection, repository: RepositoryId, name: &str, deletion: Deletion<'_>) -> Result<bool, DbError> {
    let mut deleted = false;
    if name != HEAD
        && let Some(digest) = tag_get(&mut *db, repository, name).await?
    {
        let detail = json(&Target { target: digest.to_string() });
        trash_insert(&mut *db, repository, &NewTrash { kind: RELEASE, name, content: &[], detail }, deletion).await?;
        deleted |= tag_delete(&mut *db, repository, name).await?;
    }
    if let Some((digest, _)) = oci_tag_get(&mut *db, repository, name).await? {
        let detail = json(&Target { target: digest.to_string() });
        trash_insert(&mut *db, repository, &NewTrash { kind: OCI_TAG, name, content: &[], detail }, deletion).await?;
        deleted |= oci_tag_delete(&mut *db, repository, name).await?;
    }
    Ok(deleted)
}

/// Deletes a state.
pub(crate) async fn delete_state(db: &mut Connection, repository: RepositoryId, digest: &Digest, deletion: Deletion<'_>) -> Result<bool, DbError> {
    let Some((bytes, container)) = state_get(&mut *db, repository, digest).await? else { return Ok(false) };
    let Ok(state) = layer_format::manifest::StateManifest::decode(&bytes) else { return state_delete(db, repository, digest).await };
    let sandbox_bytes = state_sandbox_bytes(&mut *db, repository, digest).await?;
    let detail = json(&StateDetail { container, sandbox: state.sandbox, sandbox_bytes });
    trash_insert(&mut *db, repository, &NewTrash { kind: STATE, name: &digest.to_string(), content: &bytes, detail }, deletion).await?;
    state_delete(db, repository, digest).await
}

/// Deletes a blob.
pub(crate) async fn delete_blob(db: &mut Connection, repository: RepositoryId, digest: &OciDigest, deletion: Deletion<'_>) -> Result<bool, DbError> {
    let Some(blob) = oci_blob_get(&mut *db, repository, digest).await? else { return Ok(false) };
    let (kind, content, rebuild) = match blob.content {
        BlobContent::Inline(bytes) => (BlobKind::Inline, bytes, None),
        BlobContent::Recipe(recipe) => (BlobKind::Recipe, recipe.encode_node(), None),
        BlobContent::Rebuilt(recipe, head) => (BlobKind::Rebuilt, recipe.encode_node(), Some(head.encode())),
        BlobContent::Tar(root) => (BlobKind::Tar, root.as_bytes().to_vec(), None),
    };
    let detail = json(&BlobDetail { size_bytes: blob.size_bytes, kind, rebuild });
    trash_insert(&mut *db, repository, &NewTrash { kind: OCI_BLOB, name: digest.as_str(), content: &content, detail }, deletion).await?;
    oci_blob_delete(db, repository, digest).await
}

/// What to bring back.
#[derive(Clone, Debug)]
pub(crate) enum Deleted {
    /// By its number in the list.
    Number(i64),
    /// The newest of this name: a digest, release or tag of a repository.
    Name(Repository, String),
}

/// Brings back what was deleted, with the names that it had and that nothing else has now. Gives what was brought back.
pub(crate) async fn undelete(db: &Db, wanted: &Deleted) -> Result<Vec<(String, String)>, UndeleteError> {
    let mut transaction = db.begin().await?;
    let items = match wanted {
        Deleted::Number(id) => trash_get(&mut transaction, *id).await?.into_iter().collect(),
        Deleted::Name(repository, name) => {
            let row = repository_find(&mut transaction, repository).await?.ok_or(UndeleteError::Unknown)?;
            let mut found = Vec::new();
            // Blobs before manifests before names.
            for kind in [OCI_BLOB, OCI_MANIFEST, IMAGE, STATE, OCI_TAG, RELEASE] {
                found.extend(trash_newest(&mut transaction, row.id, kind, name).await?);
            }
            found
        }
    };
    if items.is_empty() {
        return Err(UndeleteError::Unknown);
    }
    let mut restored = Vec::new();
    for item in items {
        repository_lock(&mut transaction, item.repository).await?;
        restore(&mut transaction, &item, &mut restored).await?;
    }
    commit(transaction).await?;
    Ok(restored)
}

fn damaged(item: &TrashItem, why: impl std::fmt::Display) -> UndeleteError {
    UndeleteError::Damaged { name: item.name.clone(), why: why.to_string() }
}

async fn restore(db: &mut Connection, item: &TrashItem, restored: &mut Vec<(String, String)>) -> Result<(), UndeleteError> {
    let repository = item.repository;
    match item.kind.as_str() {
        IMAGE => {
            let names: Names = serde_json::from_str(&item.detail).map_err(|error| damaged(item, error))?;
            let image = ImageManifest::decode(&item.content).map_err(|error| damaged(item, error))?;
            let digest = Digest::of(&item.content);
            manifest_put(&mut *db, repository, &digest, &item.content, &image).await?;
            for name in names.names {
                if tag_get(&mut *db, repository, &name).await?.is_none() {
                    tag_move(&mut *db, repository, &name, &digest).await?;
                    restored.push((RELEASE.into(), name));
                }
            }
            restore_head(&mut *db, repository).await?;
        }
        RELEASE => {
            let digest = target(item)?.parse().map_err(|error| damaged(item, error))?;
            if manifest_get(&mut *db, repository, &digest).await?.is_none() {
                return Err(UndeleteError::Dangling(item.name.clone()));
            }
            tag_move(&mut *db, repository, &item.name, &digest).await?;
        }
        STATE => {
            let detail: StateDetail = serde_json::from_str(&item.detail).map_err(|error| damaged(item, error))?;
            let digest = Digest::of(&item.content);
            let container = detail.container.as_deref();
            let state = NewState { digest, bytes: &item.content, sandbox: detail.sandbox, sandbox_bytes: detail.sandbox_bytes, container };
            state_put(&mut *db, repository, &state).await?;
        }
        OCI_MANIFEST => restore_manifest(&mut *db, item, restored).await?,
        OCI_TAG => {
            let digest = target(item)?.parse().map_err(|error| damaged(item, error))?;
            if oci_manifest_get(&mut *db, repository, &digest).await?.is_none() {
                return Err(UndeleteError::Dangling(item.name.clone()));
            }
            oci_tag_move(&mut *db, repository, &item.name, &digest).await?;
        }
        OCI_BLOB => {
            let digest: OciDigest = item.name.parse().map_err(|error| damaged(item, error))?;
            let blob = blob_row(item)?;
            oci_blob_put(&mut *db, repository, &digest, &blob).await?;
        }
        kind => return Err(damaged(item, format!("{kind} is not a kind that this version knows"))),
    }
    trash_delete(db, item.id).await?;
    restored.push((item.kind.clone(), item.name.clone()));
    Ok(())
}

fn target(item: &TrashItem) -> Result<String, UndeleteError> {
    serde_json::from_str::<Target>(&item.detail).map(|detail| detail.target).map_err(|error| damaged(item, error))
}

fn blob_row(item: &TrashItem) -> Result<BlobRow, UndeleteError> {
    let detail: BlobDetail = serde_json::from_str(&item.detail).map_err(|error| damaged(item, error))?;
    let recipe = || Recipe::decode_node(&item.content).map_err(|error| damaged(item, error));
    let content = match detail.kind {
        BlobKind::Inline => BlobContent::Inline(item.content.clone()),
        BlobKind::Recipe => BlobContent::Recipe(recipe()?),
        BlobKind::Rebuilt => {
            let head = detail.rebuild.as_deref().ok_or_else(|| damaged(item, "it does not say how it is made again"))?;
            BlobContent::Rebuilt(recipe()?, Rebuild::decode(head).map_err(|error| damaged(item, error))?)
        }
        BlobKind::Tar => BlobContent::Tar(Digest(item.content.as_slice().try_into().map_err(|_| damaged(item, "a digest has 32 bytes"))?)),
    };
    Ok(BlobRow { size_bytes: detail.size_bytes, content })
}

async fn restore_manifest(db: &mut Connection, item: &TrashItem, restored: &mut Vec<(String, String)>) -> Result<(), UndeleteError> {
    let repository = item.repository;
    let detail: Names = serde_json::from_str(&item.detail).map_err(|error| damaged(item, error))?;
    let (manifest, media_type, _) = OciManifest::decode(&item.content, detail.media_type.as_deref()).map_err(|error| damaged(item, error))?;
    let digest: OciDigest = item.name.parse().map_err(|error| damaged(item, error))?;
    // A blob that was deleted, too, comes back with what needs it.
    for blob in manifest.needed_blobs() {
        if oci_blob_get(&mut *db, repository, &blob.digest).await?.is_some() {
            continue;
        }
        let Some(deleted) = trash_newest(&mut *db, repository, OCI_BLOB, blob.digest.as_str()).await? else {
            return Err(UndeleteError::Dangling(item.name.clone()));
        };
        oci_blob_put(&mut *db, repository, &blob.digest, &blob_row(&deleted)?).await?;
        trash_delete(&mut *db, deleted.id).await?;
        restored.push((OCI_BLOB.into(), deleted.name));
    }
    let annotations = manifest.annotations.as_ref().filter(|annotations| !annotations.is_empty()).map(json);
    let new = NewOciManifest {
        digest: &digest,
        media_type: &media_type,
        bytes: &item.content,
        artifact_type: manifest.artifact_type(),
        annotations: annotations.as_deref(),
        subject: manifest.subject.as_ref().map(|subject| &subject.digest),
    };
    oci_manifest_put(&mut *db, repository, new).await?;
    for name in detail.names {
        if oci_tag_get(&mut *db, repository, &name).await?.is_none() {
            oci_tag_move(&mut *db, repository, &name, &digest).await?;
            restored.push((OCI_TAG.into(), name));
        }
    }
    if let Some((image, rendered)) = detail.link {
        if manifest_get(&mut *db, repository, &image).await?.is_none()
            && let Some(deleted) = trash_newest(&mut *db, repository, IMAGE, &image.to_string()).await?
        {
            Box::pin(restore(&mut *db, &deleted, restored)).await?;
        }
        if manifest_get(&mut *db, repository, &image).await?.is_some() {
            oci_image_put(&mut *db, repository, &ImageLink { manifest: digest, image, rendered }).await?;
        }
    }
    Ok(())
}
