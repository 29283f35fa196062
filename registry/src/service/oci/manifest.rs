//! Manifests, tags and referrers.

use std::collections::HashSet;

use layer_format::FormatError;
use layer_format::oci::{Algorithm, Descriptor, ManifestKind, OciDigest, OciManifest, media};
use layer_format::reference::Repository;
use serde::Serialize;

use super::Oci;
use super::hash::digest_of;
use crate::db::oci_blob::oci_blob_sizes;
use crate::db::oci_manifest::{
    NewOciManifest, OciManifestRow, oci_manifest_find, oci_manifest_get, oci_manifest_put, oci_manifest_referrers, oci_repository_list, oci_tag_list,
    oci_tag_move,
};
use crate::db::oci_unused::oci_blob_used;
use crate::db::repository::{RepositoryRow, repository_ensure, repository_find};
use crate::db::trash::Deletion;
use crate::db::{Connection, DbError, commit};
use crate::service::trash;

/// Most missing blobs that an answer lists.
const MAX_MISSING: usize = 100;

/// Which manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OciReference {
    Tag(String),
    Digest(OciDigest),
}

/// Why a manifest was not put.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// The bytes are no manifest.
    #[error(transparent)]
    Invalid(#[from] FormatError),
    /// The bytes are not those that the request names.
    #[error("the manifest's digest is {got}, and the request names {wanted}")]
    Digest {
        /// As in the request.
        wanted: OciDigest,
        /// Of the bytes.
        got: OciDigest,
    },
    /// Blobs or manifests that it refers to are not in the repository. At most [`MAX_MISSING`] are listed.
    #[error("{} blobs or manifests that it refers to are not in this repository; push them first", .0.len())]
    Missing(Vec<OciDigest>),
    /// A blob has another length than the manifest says.
    #[error("blob {digest} has {stored} bytes, and the manifest says {stated}")]
    Size {
        /// The blob.
        digest: OciDigest,
        /// As in the manifest.
        stated: u64,
        /// Of the blob.
        stored: u64,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// A manifest that was put.
#[derive(Clone, Debug)]
pub(crate) struct PutManifest {
    pub(crate) digest: OciDigest,
    pub(crate) subject: Option<OciDigest>,
    /// Whether it is an image that can be run, or a list that may name one.
    pub(crate) is_runnable: bool,
}

/// An index that lists referrers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Referrers {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

impl Oci {
    /// Keeps a manifest and moves tags, in one transaction in which all that it needs was seen in the repository, so that a
    /// delete at the same time comes before or after. Idempotent.
    pub(crate) async fn manifest_put(
        &self,
        repository: &Repository,
        reference: &OciReference,
        stated_type: Option<&str>,
        bytes: &[u8],
        tags: &[String],
    ) -> Result<PutManifest, ManifestError> {
        let (manifest, media_type, kind) = OciManifest::decode(bytes, stated_type)?;
        let algorithm = if let OciReference::Digest(wanted) = reference { wanted.algorithm() } else { Algorithm::Sha256 };
        let digest = digest_of(algorithm, bytes).ok_or(FormatError::Invalid { what: "manifest", rule: "it has a digest" })?;
        if let OciReference::Digest(wanted) = reference
            && *wanted != digest
        {
            return Err(ManifestError::Digest { wanted: wanted.clone(), got: digest });
        }
        let mut transaction = self.objects.db.begin().await?;
        let row = repository_ensure(&mut transaction, repository).await?;
        check_needed(&mut transaction, &row, &manifest, kind).await?;
        let annotations = manifest.annotations.as_ref().filter(|annotations| !annotations.is_empty()).and_then(|notes| serde_json::to_string(notes).ok());
        let subject = manifest.subject.as_ref().map(|subject| &subject.digest);
        let new = NewOciManifest {
            digest: &digest,
            media_type: &media_type,
            bytes,
            artifact_type: manifest.artifact_type(),
            annotations: annotations.as_deref(),
            subject,
        };
        oci_manifest_put(&mut transaction, row.id, new).await?;
        let named = if let OciReference::Tag(tag) = reference { Some(tag) } else { None };
        for tag in named.into_iter().chain(tags) {
            oci_tag_move(&mut transaction, row.id, tag, &digest).await?;
        }
        commit(transaction).await?;
        let is_runnable = kind == ManifestKind::Index || manifest.is_container_image();
        Ok(PutManifest { digest, subject: subject.cloned(), is_runnable })
    }

    /// The manifest, if the repository has it.
    pub(crate) async fn manifest_by_digest(&self, repository: &Repository, digest: &OciDigest) -> Result<Option<OciManifestRow>, DbError> {
        let mut db = self.objects.db.read().await?;
        match repository_find(&mut db, repository).await? {
            Some(row) => oci_manifest_get(&mut db, row.id, digest).await,
            None => Ok(None),
        }
    }

    /// Deletes a tag, or a manifest with its tags, and the releases that the same push made; they can be brought back for a
    /// while. Says whether it was there.
    pub(crate) async fn manifest_delete(&self, repository: &Repository, reference: &OciReference, by: &str) -> Result<bool, DbError> {
        let deletion = Deletion { at: self.objects.db.now(), by };
        let mut transaction = self.objects.db.begin().await?;
        let Some(row) = repository_find(&mut transaction, repository).await? else { return Ok(false) };
        let deleted = match reference {
            // The release of that name goes, too: it is the same image, or one that container tools see under this tag.
            OciReference::Tag(tag) => trash::delete_name(&mut transaction, row.id, tag, deletion).await?,
            OciReference::Digest(digest) => trash::delete_manifest(&mut transaction, row.id, digest, deletion).await?,
        };
        super::resolve::restore_head(&mut transaction, row.id).await?;
        commit(transaction).await?;
        Ok(deleted)
    }

    /// Tags after `after`, at most `limit`; `None` if the repository does not exist.
    pub(crate) async fn tags(&self, repository: &Repository, after: &str, limit: u32) -> Result<Option<Vec<String>>, DbError> {
        let mut db = self.objects.db.read().await?;
        match repository_find(&mut db, repository).await? {
            Some(row) => oci_tag_list(&mut db, row.id, after, limit).await.map(Some),
            None => Ok(None),
        }
    }

    /// Names of repositories after `after`, at most `limit`.
    pub(crate) async fn catalog(&self, after: &str, limit: u32) -> Result<Vec<String>, DbError> {
        let mut db = self.objects.db.read().await?;
        oci_repository_list(&mut db, after, limit).await
    }

    /// The manifests that are about `subject`, those of one kind if it is given.
    pub(crate) async fn referrers(&self, repository: &Repository, subject: &OciDigest, artifact_type: Option<&str>) -> Result<Referrers, DbError> {
        let mut db = self.objects.db.read().await?;
        let rows = match repository_find(&mut db, repository).await? {
            Some(row) => oci_manifest_referrers(&mut db, row.id, subject).await?,
            None => Vec::new(),
        };
        let wanted = rows.into_iter().filter(|row| artifact_type.is_none_or(|wanted| row.artifact_type.as_deref() == Some(wanted)));
        let manifests = wanted.map(|row| Descriptor {
            annotations: row.annotations.and_then(|text| serde_json::from_str(&text).ok()),
            artifact_type: row.artifact_type,
            ..Descriptor::new(row.media_type, row.digest, row.size_bytes)
        });
        Ok(Referrers { schema_version: 2, media_type: media::INDEX, manifests: manifests.collect() })
    }
}

/// Checks that all that the manifest needs is in the repository.
async fn check_needed(db: &mut Connection, row: &RepositoryRow, manifest: &OciManifest, kind: ManifestKind) -> Result<(), ManifestError> {
    let mut missing = Vec::new();
    let needed: Vec<&Descriptor> = manifest.needed_blobs().collect();
    let digests: Vec<&OciDigest> = needed.iter().map(|blob| &blob.digest).collect();
    let sizes = oci_blob_sizes(db, row.id, &digests).await?;
    for blob in needed {
        match sizes.get(blob.digest.as_str()) {
            Some(stored) if *stored == blob.size => {}
            Some(stored) => return Err(ManifestError::Size { digest: blob.digest.clone(), stated: blob.size, stored: *stored }),
            None => missing.push(blob.digest.clone()),
        }
    }
    if kind == ManifestKind::Index {
        let children: Vec<&OciDigest> = manifest.manifests().iter().map(|child| &child.digest).collect();
        let found = oci_manifest_find(db, row.id, &children).await?;
        let absent: Vec<&OciDigest> = children.into_iter().filter(|child| !found.contains(child.as_str())).collect();
        // An index may also list blobs.
        let blobs = oci_blob_sizes(db, row.id, &absent).await?;
        missing.extend(absent.into_iter().filter(|child| !blobs.contains_key(child.as_str())).cloned());
    }
    if missing.is_empty() {
        let used: Vec<&str> = sizes.keys().map(String::as_str).collect();
        oci_blob_used(db, row.id, &used).await?;
        return Ok(());
    }
    let mut seen = HashSet::new();
    missing.retain(|digest| seen.insert(digest.clone()));
    missing.truncate(MAX_MISSING);
    Err(ManifestError::Missing(missing))
}
