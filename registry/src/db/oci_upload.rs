//! Table `oci_upload`: blobs that are being pushed.

use layer_format::oci::Algorithm;

use super::repository::RepositoryId;
use super::{Connection, DbError, failed, query};

/// An upload's row. What the fields hold is for `service/oci/session.rs` to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UploadRow {
    pub(crate) algorithm: Algorithm,
    pub(crate) received: u64,
    pub(crate) nodes: Vec<u8>,
    pub(crate) chunks: Vec<u8>,
    pub(crate) tail: Vec<u8>,
    pub(crate) hash: Vec<u8>,
}

/// Begins an upload.
pub(crate) async fn oci_upload_insert(db: &mut Connection, repository: RepositoryId, id: &str, upload: &UploadRow, now: i64) -> Result<(), DbError> {
    query("INSERT INTO oci_upload (id, repository_id, algorithm, received, nodes, chunks, tail, hash, touched_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(id)
        .bind(repository.0)
        .bind(upload.algorithm.name())
        .bind(upload.received as i64)
        .bind(&upload.nodes)
        .bind(&upload.chunks)
        .bind(&upload.tail)
        .bind(&upload.hash)
        .bind(now)
        .execute(db)
        .await
        .map_err(failed("begin an upload"))?;
    Ok(())
}

/// The upload, if the repository has it.
pub(crate) async fn oci_upload_get(db: &mut Connection, repository: RepositoryId, id: &str) -> Result<Option<UploadRow>, DbError> {
    let doing = "find an upload";
    let row = query("SELECT algorithm, received, nodes, chunks, tail, hash FROM oci_upload WHERE id = ? AND repository_id = ?")
        .bind(id)
        .bind(repository.0)
        .fetch_optional(db)
        .await
        .map_err(failed(doing))?;
    let Some(row) = row else { return Ok(None) };
    let name: &str = row.try_get(0).map_err(failed(doing))?;
    let algorithm = Algorithm::from_name(name).ok_or_else(|| failed(doing)(sqlx::Error::Decode("no such hash function".into())))?;
    Ok(Some(UploadRow {
        algorithm,
        received: row.try_get::<i64>(1).map_err(failed(doing))? as u64,
        nodes: row.try_get(2).map_err(failed(doing))?,
        chunks: row.try_get(3).map_err(failed(doing))?,
        tail: row.try_get(4).map_err(failed(doing))?,
        hash: row.try_get(5).map_err(failed(doing))?,
    }))
}

/// How much the upload has received, if the repository has it.
pub(crate) async fn oci_upload_received(db: &mut Connection, repository: RepositoryId, id: &str) -> Result<Option<u64>, DbError> {
    let doing = "find an upload";
    let row = query("SELECT received FROM oci_upload WHERE id = ? AND repository_id = ?").bind(id).bind(repository.0).fetch_optional(db).await;
    let received: Option<i64> = row.map_err(failed(doing))?.map(|row| row.try_get(0)).transpose().map_err(failed(doing))?;
    Ok(received.map(|received| received as u64))
}

/// Replaces the upload if it still has received `before`; says whether it had.
pub(crate) async fn oci_upload_save(db: &mut Connection, id: &str, before: u64, upload: &UploadRow, now: i64) -> Result<bool, DbError> {
    let done =
        query("UPDATE oci_upload SET algorithm = ?, received = ?, nodes = ?, chunks = ?, tail = ?, hash = ?, touched_at = ? WHERE id = ? AND received = ?")
            .bind(upload.algorithm.name())
            .bind(upload.received as i64)
            .bind(&upload.nodes)
            .bind(&upload.chunks)
            .bind(&upload.tail)
            .bind(&upload.hash)
            .bind(now)
            .bind(id)
            .bind(before as i64)
            .execute(db)
            .await;
    Ok(done.map_err(failed("keep an upload"))?.rows_affected() == 1)
}

/// Forgets the upload. Says whether it was there.
pub(crate) async fn oci_upload_delete(db: &mut Connection, repository: RepositoryId, id: &str) -> Result<bool, DbError> {
    let done = query("DELETE FROM oci_upload WHERE id = ? AND repository_id = ?").bind(id).bind(repository.0).execute(db).await;
    Ok(done.map_err(failed("end an upload"))?.rows_affected() == 1)
}

/// Forgets uploads that no one touched since `before` (milliseconds since 1970).
pub(crate) async fn oci_upload_expire(db: &mut Connection, before: i64) -> Result<u64, DbError> {
    let done = query("DELETE FROM oci_upload WHERE touched_at < ?").bind(before).execute(db).await;
    Ok(done.map_err(failed("forget old uploads"))?.rows_affected())
}

/// Open uploads of the repository.
pub(crate) async fn oci_upload_count(db: &mut Connection, repository: RepositoryId) -> Result<u64, DbError> {
    let doing = "count uploads";
    let row = query("SELECT count(*) FROM oci_upload WHERE repository_id = ?").bind(repository.0).fetch_one(db).await.map_err(failed(doing))?;
    Ok(row.try_get::<i64>(0).map_err(failed(doing))? as u64)
}
