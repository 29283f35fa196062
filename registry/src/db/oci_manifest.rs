//! Tables `oci_manifest` and `oci_tag`: what container tools pushed.

use std::collections::HashSet;

use layer_format::oci::OciDigest;

use super::repository::RepositoryId;
use super::{BATCHES, Connection, DbError, Row, failed, now_ms, query};

/// A manifest to keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewOciManifest<'a> {
    pub(crate) digest: &'a OciDigest,
    pub(crate) media_type: &'a str,
    pub(crate) bytes: &'a [u8],
    pub(crate) artifact_type: Option<&'a str>,
    /// JSON.
    pub(crate) annotations: Option<&'a str>,
    pub(crate) subject: Option<&'a OciDigest>,
}

/// A manifest as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OciManifestRow {
    pub(crate) digest: OciDigest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// What a list of referrers says of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReferrerRow {
    pub(crate) digest: OciDigest,
    pub(crate) media_type: String,
    pub(crate) size_bytes: u64,
    pub(crate) artifact_type: Option<String>,
    /// JSON.
    pub(crate) annotations: Option<String>,
}

/// Reads an OCI digest from a column.
pub(super) fn oci_digest_at(row: &Row, column: usize) -> Result<OciDigest, sqlx::Error> {
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// Keeps a manifest. Idempotent; one that is pushed again counts as pushed now.
pub(crate) async fn oci_manifest_put(db: &mut Connection, repository: RepositoryId, manifest: NewOciManifest<'_>) -> Result<(), DbError> {
    query(
        "INSERT INTO oci_manifest (repository_id, digest, media_type, bytes, artifact_type, annotations, subject, pushed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (repository_id, digest) DO UPDATE SET media_type = excluded.media_type, pushed_at = excluded.pushed_at",
    )
    .bind(repository.0)
    .bind(manifest.digest.as_str())
    .bind(manifest.media_type)
    .bind(manifest.bytes)
    .bind(manifest.artifact_type)
    .bind(manifest.annotations)
    .bind(manifest.subject.map(OciDigest::as_str))
    .bind(now_ms())
    .execute(db)
    .await
    .map_err(failed("keep a manifest"))?;
    Ok(())
}

/// The manifest, if the repository has it.
pub(crate) async fn oci_manifest_get(db: &mut Connection, repository: RepositoryId, digest: &OciDigest) -> Result<Option<OciManifestRow>, DbError> {
    let doing = "read a manifest";
    let row = query("SELECT digest, media_type, bytes FROM oci_manifest WHERE repository_id = ? AND digest = ?")
        .bind(repository.0)
        .bind(digest.as_str())
        .fetch_optional(db)
        .await
        .map_err(failed(doing))?;
    let parse = |row: Row| Ok(OciManifestRow { digest: oci_digest_at(&row, 0)?, media_type: row.try_get(1)?, bytes: row.try_get(2)? });
    row.map(parse).transpose().map_err(failed(doing))
}

/// Those of the manifests that the repository has.
pub(crate) async fn oci_manifest_find(db: &mut Connection, repository: RepositoryId, digests: &[&OciDigest]) -> Result<HashSet<String>, DbError> {
    let doing = "look for manifests";
    let mut found = HashSet::with_capacity(digests.len());
    for batch in digests.chunks(BATCHES[1]) {
        let digests: Vec<&str> = batch.iter().map(|digest| digest.as_str()).collect();
        let query = query("SELECT digest FROM oci_manifest WHERE repository_id = ? AND digest IN (?*)");
        for row in query.bind(repository.0).bind(digests).fetch_all(&mut *db).await.map_err(failed(doing))? {
            found.insert(row.try_get(0).map_err(failed(doing))?);
        }
    }
    Ok(found)
}

/// Forgets the manifest with its tags. Says whether it was there.
pub(crate) async fn oci_manifest_delete(db: &mut Connection, repository: RepositoryId, digest: &OciDigest) -> Result<bool, DbError> {
    let done = query("DELETE FROM oci_manifest WHERE repository_id = ? AND digest = ?").bind(repository.0).bind(digest.as_str()).execute(db).await;
    Ok(done.map_err(failed("delete a manifest"))?.rows_affected() == 1)
}

/// The manifests that are about `subject`, by digest.
pub(crate) async fn oci_manifest_referrers(db: &mut Connection, repository: RepositoryId, subject: &OciDigest) -> Result<Vec<ReferrerRow>, DbError> {
    let doing = "list referrers";
    let rows =
        query("SELECT digest, media_type, length(bytes), artifact_type, annotations FROM oci_manifest WHERE repository_id = ? AND subject = ? ORDER BY digest")
            .bind(repository.0)
            .bind(subject.as_str())
            .fetch_all(db)
            .await
            .map_err(failed(doing))?;
    let parse = |row: &Row| {
        Ok(ReferrerRow {
            digest: oci_digest_at(row, 0)?,
            media_type: row.try_get(1)?,
            size_bytes: row.try_get::<i64>(2)? as u64,
            artifact_type: row.try_get(3)?,
            annotations: row.try_get(4)?,
        })
    };
    rows.iter().map(parse).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// Makes the tag name this manifest. Idempotent.
pub(crate) async fn oci_tag_move(db: &mut Connection, repository: RepositoryId, name: &str, digest: &OciDigest) -> Result<(), DbError> {
    query(
        "INSERT INTO oci_tag (repository_id, name, digest, moved_at) VALUES (?, ?, ?, ?)
         ON CONFLICT (repository_id, name) DO UPDATE SET digest = excluded.digest, moved_at = excluded.moved_at",
    )
    .bind(repository.0)
    .bind(name)
    .bind(digest.as_str())
    .bind(now_ms())
    .execute(db)
    .await
    .map_err(failed("move a tag"))?;
    Ok(())
}

/// Forgets the tag; its manifest stays. Says whether it was there.
pub(crate) async fn oci_tag_delete(db: &mut Connection, repository: RepositoryId, name: &str) -> Result<bool, DbError> {
    let done = query("DELETE FROM oci_tag WHERE repository_id = ? AND name = ?").bind(repository.0).bind(name).execute(db).await;
    Ok(done.map_err(failed("delete a tag"))?.rows_affected() == 1)
}

/// The tags of a manifest.
pub(crate) async fn oci_tags_of(db: &mut Connection, repository: RepositoryId, digest: &OciDigest) -> Result<Vec<String>, DbError> {
    let doing = "list the tags of a manifest";
    let rows = query("SELECT name FROM oci_tag WHERE repository_id = ? AND digest = ? ORDER BY name")
        .bind(repository.0)
        .bind(digest.as_str())
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(doing))
}

/// The manifest that the tag names, and when it was made to.
pub(crate) async fn oci_tag_get(db: &mut Connection, repository: RepositoryId, name: &str) -> Result<Option<(OciDigest, i64)>, DbError> {
    let doing = "find a tag";
    let row = query("SELECT digest, moved_at FROM oci_tag WHERE repository_id = ? AND name = ?").bind(repository.0).bind(name).fetch_optional(db).await;
    let parse = |row: Row| Ok((oci_digest_at(&row, 0)?, row.try_get(1)?));
    row.map_err(failed(doing))?.map(parse).transpose().map_err(failed(doing))
}

/// The tag that was moved last: its name, manifest and time.
pub(crate) async fn oci_tag_newest(db: &mut Connection, repository: RepositoryId) -> Result<Option<(String, OciDigest, i64)>, DbError> {
    let doing = "find the newest tag";
    let row = query("SELECT name, digest, moved_at FROM oci_tag WHERE repository_id = ? ORDER BY moved_at DESC, name LIMIT 1")
        .bind(repository.0)
        .fetch_optional(db)
        .await;
    let parse = |row: Row| Ok((row.try_get(0)?, oci_digest_at(&row, 1)?, row.try_get(2)?));
    row.map_err(failed(doing))?.map(parse).transpose().map_err(failed(doing))
}

/// Tags after `after`, by name, at most `limit`: those of container tools, and releases.
pub(crate) async fn oci_tag_list(db: &mut Connection, repository: RepositoryId, after: &str, limit: u32) -> Result<Vec<String>, DbError> {
    let doing = "list tags";
    let rows = query(
        "SELECT name FROM oci_tag WHERE repository_id = ?1 AND name > ?2
         UNION SELECT name FROM tag WHERE repository_id = ?1 AND name > ?2 AND name <> 'head' ORDER BY name LIMIT ?3",
    )
    .bind(repository.0)
    .bind(after)
    .bind(limit)
    .fetch_all(db)
    .await
    .map_err(failed(doing))?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(doing))
}

/// Names of repositories after `after` that have an image of either kind, by name, at most `limit`.
pub(crate) async fn oci_repository_list(db: &mut Connection, after: &str, limit: u32) -> Result<Vec<String>, DbError> {
    let doing = "list repositories";
    let rows = query(
        "SELECT name FROM repository r WHERE name > ? AND (EXISTS (SELECT 1 FROM oci_manifest m WHERE m.repository_id = r.id)
         OR EXISTS (SELECT 1 FROM manifest m WHERE m.repository_id = r.id)) ORDER BY name LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(db)
    .await
    .map_err(failed(doing))?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(doing))
}
