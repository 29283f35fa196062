//! Table `oci_blob`: the blobs of a repository.

use std::collections::HashMap;

use layer_format::Digest;
use layer_format::oci::OciDigest;
use layer_format::recipe::Recipe;

use super::repository::RepositoryId;
use super::{BATCHES, Connection, DbError, digest_at, failed, now_ms, query};

/// Where a blob's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BlobContent {
    /// Here.
    Inline(Vec<u8>),
    /// In chunks of the repository's namespace.
    Recipe(Recipe),
    /// In the tree with this root: written as a tar, they are the blob.
    Tar(Digest),
}

/// A blob's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobRow {
    pub(crate) size_bytes: u64,
    pub(crate) content: BlobContent,
}

/// Records a blob whose bytes are durable and have this digest. Idempotent.
pub(crate) async fn oci_blob_put(db: &mut Connection, repository: RepositoryId, digest: &OciDigest, blob: &BlobRow) -> Result<(), DbError> {
    let (content, recipe, root) = match &blob.content {
        BlobContent::Inline(bytes) => (Some(bytes.clone()), None, None),
        BlobContent::Recipe(recipe) => (None, Some(recipe.encode_node()), None),
        BlobContent::Tar(root) => (None, None, Some(root.as_bytes().to_vec())),
    };
    query(
        "INSERT INTO oci_blob (repository_id, digest, size_bytes, content, recipe, root, stored_at) VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (repository_id, digest) DO UPDATE SET unused_since = NULL",
    )
    .bind(repository.0)
    .bind(digest.as_str())
    .bind(blob.size_bytes as i64)
    .bind(content)
    .bind(recipe)
    .bind(root)
    .bind(now_ms())
    .execute(db)
    .await
    .map_err(failed("record a blob"))?;
    Ok(())
}

/// The blob, if the repository has it.
pub(crate) async fn oci_blob_get(db: &mut Connection, repository: RepositoryId, digest: &OciDigest) -> Result<Option<BlobRow>, DbError> {
    let doing = "find a blob";
    let row = query("SELECT size_bytes, content, recipe, root FROM oci_blob WHERE repository_id = ? AND digest = ?")
        .bind(repository.0)
        .bind(digest.as_str())
        .fetch_optional(db)
        .await
        .map_err(failed(doing))?;
    let Some(row) = row else { return Ok(None) };
    let size_bytes = row.try_get::<i64>(0).map_err(failed(doing))? as u64;
    let inline: Option<&[u8]> = row.try_get(1).map_err(failed(doing))?;
    let recipe: Option<&[u8]> = row.try_get(2).map_err(failed(doing))?;
    let content = match (inline, recipe) {
        (Some(bytes), _) => BlobContent::Inline(bytes.to_vec()),
        (None, Some(node)) => BlobContent::Recipe(Recipe::decode_node(node).map_err(|error| sqlx::Error::Decode(error.into())).map_err(failed(doing))?),
        (None, None) => BlobContent::Tar(digest_at(&row, 3).map_err(failed(doing))?),
    };
    Ok(Some(BlobRow { size_bytes, content }))
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
