//! Table `held_trace`: traces that no model has learned, to compare models by.

use layer_format::Digest;

use super::repository::RepositoryId;
use super::{Connection, DbError, Row, digest_at, failed, now_ms, query};

/// A held trace.
#[derive(Clone, Debug)]
pub(crate) struct HeldTrace {
    pub(crate) id: i64,
    pub(crate) image: Digest,
    /// Encoded.
    pub(crate) bytes: Vec<u8>,
}

/// A trace to be held.
#[derive(Clone, Debug)]
pub(crate) struct NewHeldTrace<'a> {
    pub(crate) image: &'a Digest,
    pub(crate) entry_point: &'a str,
    pub(crate) architecture: &'a str,
    pub(crate) bytes: &'a [u8],
    pub(crate) used: Used,
}

/// What a run touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// How many things.
    pub(crate) touches: u64,
    /// Bytes of all objects that answer for them.
    pub(crate) bytes: u64,
}

/// Holds a trace. Gives its number.
pub(crate) async fn held_trace_insert(db: &mut Connection, repository: RepositoryId, trace: &NewHeldTrace<'_>) -> Result<i64, DbError> {
    let doing = "hold a trace";
    let row = query("INSERT INTO held_trace (repository_id, image_digest, entry_point, architecture, bytes, used_touches, used_bytes, held_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id")
        .bind(repository.0)
        .bind(&trace.image.as_bytes()[..])
        .bind(trace.entry_point)
        .bind(trace.architecture)
        .bind(trace.bytes)
        .bind(i64::try_from(trace.used.touches).unwrap_or(i64::MAX))
        .bind(i64::try_from(trace.used.bytes).unwrap_or(i64::MAX))
        .bind(now_ms())
        .fetch_one(db)
        .await
        .map_err(failed(doing))?;
    row.try_get(0).map_err(failed(doing))
}

/// The held traces of one image and their numbers, newest first, at most `limit`.
pub(crate) async fn held_trace_list(db: &mut Connection, repository: RepositoryId, image: &Digest, limit: u32) -> Result<Vec<(i64, Vec<u8>)>, DbError> {
    let doing = "read held traces";
    let rows = query("SELECT id, bytes FROM held_trace WHERE repository_id = ? AND image_digest = ? ORDER BY id DESC LIMIT ?")
        .bind(repository.0)
        .bind(&image.as_bytes()[..])
        .bind(limit)
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// The oldest held traces beyond what the repository may hold: `count` of them, and `bytes` together.
pub(crate) async fn held_trace_overflow(db: &mut Connection, repository: RepositoryId, count: usize, bytes: usize) -> Result<Vec<HeldTrace>, DbError> {
    let doing = "find held traces to let go";
    let sizes = query("SELECT id, length(bytes) FROM held_trace WHERE repository_id = ? ORDER BY id DESC")
        .bind(repository.0)
        .fetch_all(&mut *db)
        .await
        .map_err(failed(doing))?;
    let (mut held, mut held_bytes, mut ids) = (0usize, 0usize, Vec::new());
    for row in &sizes {
        let (id, len): (i64, i64) = (row.try_get(0).map_err(failed(doing))?, row.try_get(1).map_err(failed(doing))?);
        held += 1;
        held_bytes = held_bytes.saturating_add(usize::try_from(len).unwrap_or(0));
        // The newest one is held however long it is.
        if held > count || (held > 1 && held_bytes > bytes) {
            ids.push(id);
        }
    }
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        let row = query("SELECT image_digest, bytes FROM held_trace WHERE id = ?").bind(id).fetch_optional(&mut *db).await.map_err(failed(doing))?;
        if let Some(row) = row {
            found.push(HeldTrace { id, image: digest_at(&row, 0).map_err(failed(doing))?, bytes: row.try_get(1).map_err(failed(doing))? });
        }
    }
    Ok(found)
}

/// Lets a trace go. Says whether it was held.
pub(crate) async fn held_trace_delete(db: &mut Connection, id: i64) -> Result<bool, DbError> {
    let done = query("DELETE FROM held_trace WHERE id = ?").bind(id).execute(db).await;
    Ok(done.map_err(failed("let a held trace go"))?.rows_affected() == 1)
}

/// What each held trace of an entry point used, by its number.
pub(crate) async fn held_trace_used(db: &mut Connection, repository: RepositoryId, entry_point: &str, architecture: &str) -> Result<Vec<(i64, Used)>, DbError> {
    let doing = "read what held traces used";
    let rows = query("SELECT id, used_touches, used_bytes FROM held_trace WHERE repository_id = ? AND entry_point = ? AND architecture = ?")
        .bind(repository.0)
        .bind(entry_point)
        .bind(architecture)
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    let read = |row: &Row| {
        let (touches, bytes): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
        Ok((row.try_get(0)?, Used { touches: touches.max(0).cast_unsigned(), bytes: bytes.max(0).cast_unsigned() }))
    };
    rows.iter().map(read).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// Forgets all held traces of the repository.
pub(crate) async fn held_trace_clear(db: &mut Connection, repository: RepositoryId) -> Result<(), DbError> {
    query("DELETE FROM held_trace WHERE repository_id = ?").bind(repository.0).execute(db).await.map_err(failed("forget held traces"))?;
    Ok(())
}
