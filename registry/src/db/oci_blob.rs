//! Table `oci_blob`: the blobs of a repository.

use std::collections::HashMap;

use layer_format::Digest;
use layer_format::oci::OciDigest;
use layer_format::rebuild::Rebuild;
use layer_format::recipe::Recipe;
use sqlx::AssertSqlSafe;

use super::oci_rebuild::oci_pending_put;
use super::repository::RepositoryId;
use super::{BATCHES, Connection, DbError, Row, digest_at, failed, now_ms, query};

/// Where a blob's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BlobContent {
    /// Here.
    Inline(Vec<u8>),
    /// In chunks of the repository's namespace.
    Recipe(Recipe),
    /// To be made again of what is in chunks of the repository's namespace.
    Rebuilt(Recipe, Rebuild),
    /// In the tree with this root: written as a tar, they are the blob.
    Tar(Digest),
}

/// A blob's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobRow {
    pub(crate) size_bytes: u64,
    pub(crate) content: BlobContent,
}

/// Records a blob whose bytes are durable and have this digest. Idempotent: one that is there stays as it is.
pub(crate) async fn oci_blob_put(db: &mut Connection, repository: RepositoryId, digest: &OciDigest, blob: &BlobRow) -> Result<(), DbError> {
    insert(db, repository, digest, blob, "unused_since = NULL").await
}

/// Records a blob whose bytes have just come: what was recorded before goes, since parts of it may be lost.
pub(crate) async fn oci_blob_renew(db: &mut Connection, repository: RepositoryId, digest: &OciDigest, blob: &BlobRow) -> Result<(), DbError> {
    let all = "unused_since = NULL, content = excluded.content, recipe = excluded.recipe, root = excluded.root, rebuild = excluded.rebuild";
    insert(db, repository, digest, blob, all).await
}

async fn insert(db: &mut Connection, repository: RepositoryId, digest: &OciDigest, blob: &BlobRow, known: &'static str) -> Result<(), DbError> {
    let (content, recipe, root, rebuild) = match &blob.content {
        BlobContent::Inline(bytes) => (Some(bytes.clone()), None, None, None),
        BlobContent::Recipe(recipe) => (None, Some(recipe.encode_node()), None, None),
        BlobContent::Rebuilt(recipe, rebuild) => (None, Some(recipe.encode_node()), None, Some(rebuild.encode())),
        BlobContent::Tar(root) => (None, None, Some(root.as_bytes().to_vec()), None),
    };
    let sql = format!(
        "INSERT INTO oci_blob (repository_id, digest, size_bytes, content, recipe, root, rebuild, stored_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (repository_id, digest) DO UPDATE SET {known}"
    );
    query(AssertSqlSafe(sql))
        .bind(repository.0)
        .bind(digest.as_str())
        .bind(blob.size_bytes as i64)
        .bind(content)
        .bind(recipe)
        .bind(root)
        .bind(rebuild)
        .bind(now_ms())
        .execute(&mut *db)
        .await
        .map_err(failed("record a blob"))?;
    match blob.content {
        BlobContent::Recipe(_) => oci_pending_put(db, repository, digest, blob.size_bytes).await,
        _ => Ok(()),
    }
}

/// The blob, if the repository has it.
pub(crate) async fn oci_blob_get(db: &mut Connection, repository: RepositoryId, digest: &OciDigest) -> Result<Option<BlobRow>, DbError> {
    let doing = "find a blob";
    let row = query("SELECT size_bytes, content, recipe, root, rebuild FROM oci_blob WHERE repository_id = ? AND digest = ?")
        .bind(repository.0)
        .bind(digest.as_str())
        .fetch_optional(db)
        .await
        .map_err(failed(doing))?;
    row.as_ref().map(blob_row).transpose().map_err(failed(doing))
}

/// From the columns `size_bytes`, `content`, `recipe`, `root` and `rebuild`, which come first.
pub(super) fn blob_row(row: &Row) -> Result<BlobRow, sqlx::Error> {
    let damaged = |error: layer_format::FormatError| sqlx::Error::Decode(error.into());
    let bytes = |column| row.try_get::<Option<&[u8]>>(column);
    let (inline, recipe, rebuild) = (bytes(1)?, bytes(2)?, bytes(4)?);
    let content = match (inline, recipe, rebuild) {
        (Some(bytes), ..) => BlobContent::Inline(bytes.to_vec()),
        (None, Some(node), None) => BlobContent::Recipe(Recipe::decode_node(node).map_err(damaged)?),
        (None, Some(node), Some(head)) => BlobContent::Rebuilt(Recipe::decode_node(node).map_err(damaged)?, Rebuild::decode(head).map_err(damaged)?),
        (None, None, _) => BlobContent::Tar(digest_at(row, 3)?),
    };
    Ok(BlobRow { size_bytes: row.try_get::<i64>(0)? as u64, content })
}

/// The lengths of those of the blobs that the repository has.
pub(crate) async fn oci_blob_sizes(db: &mut Connection, repository: RepositoryId, digests: &[&OciDigest]) -> Result<HashMap<String, u64>, DbError> {
    let doing = "look for blobs";
    let mut found = HashMap::with_capacity(digests.len());
    for batch in digests.chunks(BATCHES[1]) {
        let digests: Vec<&str> = batch.iter().map(|digest| digest.as_str()).collect();
        let query = query("SELECT digest, size_bytes FROM oci_blob WHERE repository_id = ? AND digest IN (?*)");
        for row in query.bind(repository.0).bind(digests).fetch_all(&mut *db).await.map_err(failed(doing))? {
            let size: i64 = row.try_get(1).map_err(failed(doing))?;
            found.insert(row.try_get(0).map_err(failed(doing))?, size as u64);
        }
    }
    Ok(found)
}

/// Forgets the blob; its bytes stay until no one needs them. Says whether it was there.
pub(crate) async fn oci_blob_delete(db: &mut Connection, repository: RepositoryId, digest: &OciDigest) -> Result<bool, DbError> {
    let done = query("DELETE FROM oci_blob WHERE repository_id = ? AND digest = ?").bind(repository.0).bind(digest.as_str()).execute(db).await;
    Ok(done.map_err(failed("delete a blob"))?.rows_affected() == 1)
}
