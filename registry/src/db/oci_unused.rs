//! Table `oci_blob`: blobs that no manifest refers to, and layers that were taken apart of blobs that are gone.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Row};

use super::namespace::NamespaceId;
use super::repository::RepositoryId;
use super::{BATCHES, Connection, DbError, failed, marks};

/// The namespace's repositories.
pub(crate) async fn repositories_of(db: &mut Connection, namespace: NamespaceId) -> Result<Vec<RepositoryId>, DbError> {
    let doing = "list repositories";
    let rows = sqlx::query("SELECT id FROM repository WHERE namespace_id = ? ORDER BY id").bind(namespace.0).fetch_all(db).await.map_err(failed(doing))?;
    rows.iter().map(|row| row.try_get(0).map(RepositoryId)).collect::<Result<_, _>>().map_err(failed(doing))
}

/// Manifests of the repository, and those in its trash: media type (if it is known) and bytes.
pub(crate) async fn oci_manifests_of(db: &mut Connection, repository: RepositoryId, mut each: impl FnMut(Option<&str>, &[u8]) + Send) -> Result<(), DbError> {
    let doing = "read manifests";
    {
        let mut rows = sqlx::query("SELECT media_type, bytes FROM oci_manifest WHERE repository_id = ?").bind(repository.0).fetch(&mut *db);
        while let Some(row) = rows.try_next().await.map_err(failed(doing))? {
            each(row.try_get(0).map_err(failed(doing))?, row.try_get(1).map_err(failed(doing))?);
        }
    }
    let mut rows = sqlx::query("SELECT content FROM trash WHERE repository_id = ? AND kind = 'oci-manifest'").bind(repository.0).fetch(db);
    while let Some(row) = rows.try_next().await.map_err(failed(doing))? {
        each(None, row.try_get(0).map_err(failed(doing))?);
    }
    Ok(())
}

/// The repository's blobs, and since when each is unused.
pub(crate) async fn oci_blob_unused(db: &mut Connection, repository: RepositoryId) -> Result<BTreeMap<String, Option<i64>>, DbError> {
    let doing = "list blobs";
    let rows =
        sqlx::query("SELECT digest, unused_since FROM oci_blob WHERE repository_id = ?").bind(repository.0).fetch_all(db).await.map_err(failed(doing))?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// Notes that nothing refers to the blobs; those that were unused before stay so.
pub(crate) async fn oci_blob_set_unused(db: &mut Connection, repository: RepositoryId, digests: &[String], now: i64) -> Result<(), DbError> {
    for batch in digests.chunks(BATCHES[1]) {
        let sql = format!("UPDATE oci_blob SET unused_since = ? WHERE repository_id = ? AND unused_since IS NULL AND digest IN {}", marks(batch.len()));
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(now).bind(repository.0);
        for digest in batch {
            query = query.bind(digest);
        }
        query.execute(&mut *db).await.map_err(failed("note unused blobs"))?;
    }
    Ok(())
}

/// Somebody relies on the blobs, or is told that they are there. Idempotent; writes only what was unused.
pub(crate) async fn oci_blob_used(db: &mut Connection, repository: RepositoryId, digests: &[&str]) -> Result<(), DbError> {
    for batch in digests.chunks(BATCHES[1]) {
        let sql = format!("UPDATE oci_blob SET unused_since = NULL WHERE repository_id = ? AND unused_since IS NOT NULL AND digest IN {}", marks(batch.len()));
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(repository.0);
        for digest in batch {
            query = query.bind(*digest);
        }
        query.execute(&mut *db).await.map_err(failed("note that blobs are used"))?;
    }
    Ok(())
}

/// Whether nothing was known to refer to the blob.
pub(crate) async fn oci_blob_is_unused(db: &mut Connection, repository: RepositoryId, digest: &str) -> Result<bool, DbError> {
    let row = sqlx::query("SELECT 1 FROM oci_blob WHERE repository_id = ? AND digest = ? AND unused_since IS NOT NULL")
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
        let sql = format!("DELETE FROM oci_blob WHERE repository_id = ? AND unused_since <= ? AND digest IN {}", marks(batch.len()));
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(repository.0).bind(before);
        for digest in batch {
            query = query.bind(digest);
        }
        count += query.execute(&mut *db).await.map_err(failed("forget unused blobs"))?.rows_affected();
    }
    Ok(count)
}

/// Forgets what layers were taken apart into whose blob no repository of the namespace has, not even in its trash. Says how many.
pub(crate) async fn oci_layer_expire(db: &mut Connection, namespace: NamespaceId) -> Result<u64, DbError> {
    let done = sqlx::query(
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
