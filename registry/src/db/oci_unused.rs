//! Table `oci_blob`: blobs that no manifest refers to, and layers that were taken apart of blobs that are gone.

use std::collections::BTreeMap;

use super::namespace::NamespaceId;
use super::repository::RepositoryId;
use super::{BATCHES, Connection, DbError, failed, query};

/// The namespace's repositories.
pub(crate) async fn repositories_of(db: &mut Connection, namespace: NamespaceId) -> Result<Vec<RepositoryId>, DbError> {
    let doing = "list repositories";
    let rows = query("SELECT id FROM repository WHERE namespace_id = ? ORDER BY id").bind(namespace.0).fetch_all(db).await.map_err(failed(doing))?;
    rows.iter().map(|row| row.try_get(0).map(RepositoryId)).collect::<Result<_, _>>().map_err(failed(doing))
}

/// Manifests that are read at a time: each may have some MiB.
const PAGE: u32 = 32;

/// Manifests of the repository, and those in its trash: media type (if it is known) and bytes.
pub(crate) async fn oci_manifests_of(db: &mut Connection, repository: RepositoryId, mut each: impl FnMut(Option<&str>, &[u8]) + Send) -> Result<(), DbError> {
    let doing = "read manifests";
    let mut after = String::new();
    loop {
        let rows = query("SELECT digest, media_type, bytes FROM oci_manifest WHERE repository_id = ? AND digest > ? ORDER BY digest LIMIT ?")
            .bind(repository.0)
            .bind(&after)
            .bind(PAGE)
            .fetch_all(&mut *db)
            .await
            .map_err(failed(doing))?;
        for row in &rows {
            each(Some(row.try_get(1).map_err(failed(doing))?), row.try_get(2).map_err(failed(doing))?);
        }
        match rows.last() {
            Some(last) if rows.len() as u32 == PAGE => after = last.try_get(0).map_err(failed(doing))?,
            _ => break,
        }
    }
    let mut after = 0i64;
    loop {
        let rows = query("SELECT id, content FROM trash WHERE repository_id = ? AND kind = 'oci-manifest' AND id > ? ORDER BY id LIMIT ?")
            .bind(repository.0)
            .bind(after)
            .bind(PAGE)
            .fetch_all(&mut *db)
            .await
            .map_err(failed(doing))?;
        for row in &rows {
            each(None, row.try_get(1).map_err(failed(doing))?);
        }
        match rows.last() {
            Some(last) if rows.len() as u32 == PAGE => after = last.try_get(0).map_err(failed(doing))?,
            _ => return Ok(()),
        }
    }
}

/// The repository's blobs, and since when each is unused.
pub(crate) async fn oci_blob_unused(db: &mut Connection, repository: RepositoryId) -> Result<BTreeMap<String, Option<i64>>, DbError> {
    let doing = "list blobs";
    let rows = query("SELECT digest, unused_since FROM oci_blob WHERE repository_id = ?").bind(repository.0).fetch_all(db).await.map_err(failed(doing))?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// Notes that nothing refers to the blobs; those that were unused before stay so.
pub(crate) async fn oci_blob_set_unused(db: &mut Connection, repository: RepositoryId, digests: &[String], now: i64) -> Result<(), DbError> {
    for batch in digests.chunks(BATCHES[1]) {
        let list: Vec<&str> = batch.iter().map(|digest| digest.as_str()).collect();
        let query = query("UPDATE oci_blob SET unused_since = ? WHERE repository_id = ? AND unused_since IS NULL AND digest IN (?*)")
            .bind(now)
            .bind(repository.0)
            .bind(list);
        query.execute(&mut *db).await.map_err(failed("note unused blobs"))?;
    }
    Ok(())
}

/// Somebody relies on the blobs, or is told that they are there. Idempotent; writes only what was unused.
pub(crate) async fn oci_blob_used(db: &mut Connection, repository: RepositoryId, digests: &[&str]) -> Result<(), DbError> {
    for batch in digests.chunks(BATCHES[1]) {
        let list: Vec<&str> = batch.to_vec();
        let query = query("UPDATE oci_blob SET unused_since = NULL WHERE repository_id = ? AND unused_since IS NOT NULL AND digest IN (?*)")
            .bind(repository.0)
            .bind(list);
        query.execute(&mut *db).await.map_err(failed("note that blobs are used"))?;
    }
    Ok(())
}

/// Whether nothing was known to refer to the blob.
pub(crate) async fn oci_blob_is_unused(db: &mut Connection, repository: RepositoryId, digest: &str) -> Result<bool, DbError> {
    let row = query("SELECT 1 FROM oci_blob WHERE repository_id = ? AND digest = ? AND unused_since IS NOT NULL")
        .bind(repository.0)
        .bind(digest)
        .fetch_optional(db)
        .await;
    Ok(row.map_err(failed("find a blob"))?.is_some())
}

/// Forgets those of the blobs that are still unused, since `before` or longer. Says how many.
pub(crate) async fn oci_blob_delete_unused(db: &mut Connection, repository: RepositoryId, digests: &[String], before: i64) -> Result<u64, DbError> {
    let mut count = 0;
    for batch in digests.chunks(BATCHES[1]) {
        let list: Vec<&str> = batch.iter().map(|digest| digest.as_str()).collect();
        let query = query("DELETE FROM oci_blob WHERE repository_id = ? AND unused_since <= ? AND digest IN (?*)").bind(repository.0).bind(before).bind(list);
        count += query.execute(&mut *db).await.map_err(failed("forget unused blobs"))?.rows_affected();
    }
    Ok(count)
}

/// Forgets what layers were taken apart into whose blob no repository of the namespace has, not even in its trash. Says how many.
pub(crate) async fn oci_layer_expire(db: &mut Connection, namespace: NamespaceId) -> Result<u64, DbError> {
    let done = query(
        "DELETE FROM oci_layer WHERE namespace_id = ?1
         AND NOT EXISTS (SELECT 1 FROM oci_blob b JOIN repository r ON r.id = b.repository_id WHERE r.namespace_id = ?1 AND b.digest = oci_layer.blob_digest)
         AND NOT EXISTS (SELECT 1 FROM trash t JOIN repository r ON r.id = t.repository_id
                         WHERE r.namespace_id = ?1 AND t.kind = 'oci-blob' AND t.name = oci_layer.blob_digest)",
    )
    .bind(namespace.0)
    .execute(db)
    .await;
    Ok(done.map_err(failed("forget layers"))?.rows_affected())
}
