//! Tables `oci_pending` and `oci_saving`: blobs that may be stored by what is in them, and what came of it.

use layer_format::oci::{OciDigest, ParseOciDigestError};
use layer_format::rebuild::Rebuild;
use layer_format::recipe::Recipe;

use super::namespace::NamespaceId;
use super::oci_blob::{BlobRow, blob_row};
use super::repository::{RepositoryId, RepositoryRow};
use super::{Connection, DbError, failed, now_ms, query};

/// Shorter blobs are not looked at: there is little to save.
const MIN_LEN: u64 = 32 << 10;

/// A blob to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) namespace: NamespaceId,
    pub(crate) digest: OciDigest,
    due_at: i64,
    /// How often it was tried, this time included.
    pub(crate) attempts: u32,
}

/// What came of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Saving {
    pub(crate) pushed_bytes: u64,
    pub(crate) plain_bytes: u64,
    pub(crate) stored_bytes: u64,
    /// Who compressed it, or why it is kept as it was pushed.
    pub(crate) outcome: Result<String, String>,
}

/// Blobs of a repository of which the same came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavingSum {
    pub(crate) encoder: Option<String>,
    pub(crate) reason: Option<String>,
    /// Not looked at yet.
    pub(crate) pending: bool,
    pub(crate) blobs: u64,
    pub(crate) pushed_bytes: u64,
    pub(crate) plain_bytes: u64,
    pub(crate) stored_bytes: u64,
}

/// Notes that a blob which a repository has just got is to be looked at. Idempotent.
pub(super) async fn oci_pending_put(db: &mut Connection, repository: RepositoryId, digest: &OciDigest, size_bytes: u64) -> Result<(), DbError> {
    if size_bytes < MIN_LEN {
        return Ok(());
    }
    query("INSERT INTO oci_pending (namespace_id, digest, due_at, attempts) SELECT namespace_id, ?, ?, 0 FROM repository WHERE id = ? ON CONFLICT DO NOTHING")
        .bind(digest.as_str())
        .bind(now_ms())
        .bind(repository.0)
        .execute(db)
        .await
        .map_err(failed("note that a blob is to be looked at"))?;
    Ok(())
}

/// The blob that has waited longest, if it was due by `due`.
pub(crate) async fn oci_pending_next(db: &mut Connection, due: i64) -> Result<Option<Pending>, DbError> {
    let doing = "find a blob to look at";
    let row = query("SELECT namespace_id, digest, due_at, attempts FROM oci_pending WHERE due_at <= ? ORDER BY due_at LIMIT 1")
        .bind(due)
        .fetch_optional(db)
        .await
        .map_err(failed(doing))?;
    let Some(row) = row else { return Ok(None) };
    let digest: &str = row.try_get(1).map_err(failed(doing))?;
    Ok(Some(Pending {
        namespace: NamespaceId(row.try_get(0).map_err(failed(doing))?),
        digest: digest.parse().map_err(|error: ParseOciDigestError| failed(doing)(sqlx::Error::Decode(error.into())))?,
        due_at: row.try_get(2).map_err(failed(doing))?,
        attempts: row.try_get::<i64>(3).map_err(failed(doing))? as u32 + 1,
    }))
}

/// Nobody else gets this blob for `lease_ms`. Says whether nobody else was faster.
pub(crate) async fn oci_pending_claim(db: &mut Connection, pending: &Pending, lease_ms: i64) -> Result<bool, DbError> {
    let done = query("UPDATE oci_pending SET due_at = ?, attempts = attempts + 1 WHERE namespace_id = ? AND digest = ? AND due_at = ?")
        .bind(now_ms() + lease_ms)
        .bind(pending.namespace.0)
        .bind(pending.digest.as_str())
        .bind(pending.due_at)
        .execute(db)
        .await;
    Ok(done.map_err(failed("claim a blob to look at"))?.rows_affected() == 1)
}

/// The blob need not be looked at any more. Idempotent.
pub(crate) async fn oci_pending_delete(db: &mut Connection, pending: &Pending) -> Result<(), DbError> {
    query("DELETE FROM oci_pending WHERE namespace_id = ? AND digest = ?")
        .bind(pending.namespace.0)
        .bind(pending.digest.as_str())
        .execute(db)
        .await
        .map_err(failed("note that a blob was looked at"))?;
    Ok(())
}

/// The blob in any repository of the namespace: one that is rebuilt already, if there is one.
pub(crate) async fn oci_blob_any(db: &mut Connection, namespace: NamespaceId, digest: &OciDigest) -> Result<Option<(RepositoryRow, BlobRow)>, DbError> {
    let doing = "find a blob of a namespace";
    let row = query(
        "SELECT b.size_bytes, b.content, b.recipe, b.root, b.rebuild, b.repository_id FROM oci_blob b JOIN repository r ON r.id = b.repository_id
         WHERE r.namespace_id = ? AND b.digest = ? ORDER BY CASE WHEN b.rebuild IS NULL THEN 1 ELSE 0 END, b.repository_id LIMIT 1",
    )
    .bind(namespace.0)
    .bind(digest.as_str())
    .fetch_optional(db)
    .await
    .map_err(failed(doing))?;
    let Some(row) = row else { return Ok(None) };
    let id = RepositoryId(row.try_get(5).map_err(failed(doing))?);
    Ok(Some((RepositoryRow { id, namespace, model: None }, blob_row(&row).map_err(failed(doing))?)))
}

/// From now on the blob is made again of this, in all repositories of the namespace that have it in chunks. Returns in how many.
pub(crate) async fn oci_blob_set_rebuild(
    db: &mut Connection,
    namespace: NamespaceId,
    digest: &OciDigest,
    recipe: &Recipe,
    rebuild: &Rebuild,
) -> Result<u64, DbError> {
    let done = query(
        "UPDATE oci_blob SET recipe = ?, rebuild = ? WHERE digest = ? AND rebuild IS NULL AND recipe IS NOT NULL
         AND repository_id IN (SELECT id FROM repository WHERE namespace_id = ?)",
    )
    .bind(recipe.encode_node())
    .bind(rebuild.encode())
    .bind(digest.as_str())
    .bind(namespace.0)
    .execute(db)
    .await;
    Ok(done.map_err(failed("record how a blob is rebuilt"))?.rows_affected())
}

/// Records what came of a blob. The last one counts.
pub(crate) async fn oci_saving_put(db: &mut Connection, namespace: NamespaceId, digest: &OciDigest, saving: &Saving) -> Result<(), DbError> {
    query(
        "INSERT INTO oci_saving (namespace_id, digest, pushed_bytes, plain_bytes, stored_bytes, encoder, reason, done_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (namespace_id, digest) DO UPDATE SET pushed_bytes = excluded.pushed_bytes, plain_bytes = excluded.plain_bytes,
         stored_bytes = excluded.stored_bytes, encoder = excluded.encoder, reason = excluded.reason, done_at = excluded.done_at",
    )
    .bind(namespace.0)
    .bind(digest.as_str())
    .bind(saving.pushed_bytes as i64)
    .bind(saving.plain_bytes as i64)
    .bind(saving.stored_bytes as i64)
    .bind(saving.outcome.as_ref().ok().map(String::as_str))
    .bind(saving.outcome.as_ref().err().map(String::as_str))
    .bind(now_ms())
    .execute(db)
    .await
    .map_err(failed("record what a blob saves"))?;
    Ok(())
}

/// Why the blob is kept as it was pushed, if it was looked at and is.
pub(crate) async fn oci_saving_reason(db: &mut Connection, namespace: NamespaceId, digest: &OciDigest) -> Result<Option<String>, DbError> {
    let doing = "find what a blob saves";
    let row = query("SELECT reason FROM oci_saving WHERE namespace_id = ? AND digest = ? AND reason IS NOT NULL")
        .bind(namespace.0)
        .bind(digest.as_str())
        .fetch_optional(db)
        .await
        .map_err(failed(doing))?;
    row.map(|row| row.try_get(0)).transpose().map_err(failed(doing))
}

/// What came of the blobs of a repository that are stored in chunks.
pub(crate) async fn oci_savings(db: &mut Connection, repository: RepositoryId) -> Result<Vec<SavingSum>, DbError> {
    let doing = "sum what a repository saves";
    let rows = query(
        "SELECT s.encoder, s.reason, CAST(max(CASE WHEN p.digest IS NULL OR s.digest IS NOT NULL THEN 0 ELSE 1 END) AS BIGINT), count(*), CAST(sum(b.size_bytes) AS BIGINT),
         CAST(sum(COALESCE(s.plain_bytes, 0)) AS BIGINT), CAST(sum(COALESCE(s.stored_bytes, b.size_bytes)) AS BIGINT)
         FROM oci_blob b JOIN repository r ON r.id = b.repository_id
         LEFT JOIN oci_saving s ON s.namespace_id = r.namespace_id AND s.digest = b.digest
         LEFT JOIN oci_pending p ON p.namespace_id = r.namespace_id AND p.digest = b.digest
         WHERE b.repository_id = ? AND b.recipe IS NOT NULL
         GROUP BY s.encoder, s.reason, CASE WHEN p.digest IS NULL OR s.digest IS NOT NULL THEN 0 ELSE 1 END ORDER BY s.encoder, s.reason",
    )
    .bind(repository.0)
    .fetch_all(db)
    .await
    .map_err(failed(doing))?;
    let sum = |row: &super::Row| {
        let number = |column| row.try_get::<i64>(column).map(|value| value as u64);
        Ok::<_, sqlx::Error>(SavingSum {
            encoder: row.try_get(0)?,
            reason: row.try_get(1)?,
            pending: number(2)? != 0,
            blobs: number(3)?,
            pushed_bytes: number(4)?,
            plain_bytes: number(5)?,
            stored_bytes: number(6)?,
        })
    };
    rows.iter().map(sum).collect::<Result<_, _>>().map_err(failed(doing))
}
