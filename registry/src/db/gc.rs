//! Tables `gc_state` and `gc_candidate`, and the removal of objects: see docs/garbage-collection.md for the rules.

use layer_format::Digest;

use super::namespace::NamespaceId;
use super::pack::PackId;
use super::{Connection, DbError, Row, batches, digest_at, failed, query};
use sqlx::AssertSqlSafe;

/// The namespace's epoch: odd while candidates are being recorded. It never goes back.
pub(crate) async fn gc_epoch(db: &mut Connection, namespace: NamespaceId) -> Result<i64, DbError> {
    let doing = "read the epoch of collections";
    let row = query("SELECT epoch FROM gc_state WHERE namespace_id = ?").bind(namespace.0).fetch_optional(db).await.map_err(failed(doing))?;
    Ok(row.map(|row| row.try_get(0)).transpose().map_err(failed(doing))?.unwrap_or(0))
}

/// The same, in a transaction that relies on it: it does not move on before the commit.
pub(crate) async fn gc_epoch_hold(db: &mut Connection, namespace: NamespaceId) -> Result<i64, DbError> {
    if !db.needs_locks() {
        return gc_epoch(db, namespace).await;
    }
    let doing = "hold the epoch of collections";
    for _ in 0..2 {
        let row =
            query("SELECT epoch FROM gc_state WHERE namespace_id = ? FOR SHARE").bind(namespace.0).fetch_optional(&mut *db).await.map_err(failed(doing))?;
        if let Some(row) = row {
            return row.try_get(0).map_err(failed(doing));
        }
        let new = query("INSERT INTO gc_state (namespace_id, epoch) VALUES (?, 0) ON CONFLICT DO NOTHING").bind(namespace.0).execute(&mut *db).await;
        new.map_err(failed(doing))?;
    }
    Err(DbError::Failed { doing, source: sqlx::Error::RowNotFound })
}

/// Moves the epoch on to the next odd or even number: at least one further.
pub(crate) async fn gc_epoch_next(db: &mut Connection, namespace: NamespaceId, odd: bool) -> Result<(), DbError> {
    let parity = i64::from(odd);
    query(
        "INSERT INTO gc_state (namespace_id, epoch) VALUES (?1, 2 + ?2)
         ON CONFLICT (namespace_id) DO UPDATE SET epoch = CASE WHEN gc_state.epoch % 2 = ?2 THEN gc_state.epoch + 2 ELSE gc_state.epoch + 1 END",
    )
    .bind(namespace.0)
    .bind(parity)
    .execute(db)
    .await
    .map_err(failed("move the epoch of collections on"))?;
    Ok(())
}

/// When a collection of the namespace ended last.
pub(crate) async fn gc_finished_at(db: &mut Connection, namespace: NamespaceId) -> Result<Option<i64>, DbError> {
    let doing = "read when a collection ended";
    let row = query("SELECT finished_at FROM gc_state WHERE namespace_id = ?").bind(namespace.0).fetch_optional(db).await.map_err(failed(doing))?;
    row.map(|row| row.try_get(0)).transpose().map(Option::flatten).map_err(failed(doing))
}

/// Notes that a collection ended.
pub(crate) async fn gc_finished(db: &mut Connection, namespace: NamespaceId, now: i64) -> Result<(), DbError> {
    let done = query("UPDATE gc_state SET finished_at = ? WHERE namespace_id = ?").bind(now).bind(namespace.0).execute(db).await;
    done.map_err(failed("note the end of a collection")).map(drop)
}

/// Those of the objects that are candidates for removal.
pub(crate) async fn candidate_find(db: &mut Connection, namespace: NamespaceId, digests: &[Digest]) -> Result<Vec<Digest>, DbError> {
    let doing = "look for candidates";
    let any = query("SELECT 1 FROM gc_candidate WHERE namespace_id = ? LIMIT 1").bind(namespace.0).fetch_optional(&mut *db).await;
    if any.map_err(failed(doing))?.is_none() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for batch in batches(digests) {
        let query = query("SELECT digest FROM gc_candidate WHERE namespace_id = ? AND digest IN (?*)").bind(namespace.0).bind(&batch);
        for row in query.fetch_all(&mut *db).await.map_err(failed(doing))? {
            found.push(digest_at(&row, 0).map_err(failed(doing))?);
        }
    }
    Ok(found)
}

/// Takes those of the objects out of the queue that are candidates since `since` or longer, and gives them. Whoever rescues one at
/// the same time is before or after the whole transaction.
pub(crate) async fn candidate_take(db: &mut Connection, namespace: NamespaceId, digests: &[Digest], since: i64) -> Result<Vec<Digest>, DbError> {
    let doing = "take due candidates";
    candidate_lock(&mut *db, namespace, digests).await?;
    let mut taken = Vec::new();
    for batch in batches(digests) {
        let query = query("DELETE FROM gc_candidate WHERE namespace_id = ? AND since <= ? AND digest IN (?*) RETURNING digest");
        for row in query.bind(namespace.0).bind(since).bind(&batch).fetch_all(&mut *db).await.map_err(failed(doing))? {
            taken.push(digest_at(&row, 0).map_err(failed(doing))?);
        }
    }
    taken.sort_unstable();
    taken.dedup();
    Ok(taken)
}

/// Locks rows in one order, so that two who delete some of the same do not wait in a circle.
async fn candidate_lock(db: &mut Connection, namespace: NamespaceId, digests: &[Digest]) -> Result<(), DbError> {
    if !db.needs_locks() {
        return Ok(());
    }
    for batch in batches(digests) {
        let query = query("SELECT 1 FROM gc_candidate WHERE namespace_id = ? AND digest IN (?*) ORDER BY digest FOR UPDATE");
        query.bind(namespace.0).bind(&batch).fetch_all(&mut *db).await.map_err(failed("lock candidates"))?;
    }
    Ok(())
}

/// Makes objects candidates from `since` on; those that are stay what they are.
pub(crate) async fn candidate_insert(db: &mut Connection, namespace: NamespaceId, digests: &[Digest], since: i64) -> Result<(), DbError> {
    for batch in batches(digests) {
        let rows = vec!["(?, ?, ?)"; batch.len()].join(",");
        let sql = format!("INSERT INTO gc_candidate (namespace_id, digest, since) VALUES {rows} ON CONFLICT DO NOTHING");
        let mut query = query(AssertSqlSafe(sql));
        for digest in &batch {
            query = query.bind(namespace.0).bind(digest).bind(since);
        }
        query.execute(&mut *db).await.map_err(failed("record candidates"))?;
    }
    Ok(())
}

/// Objects that are no candidates any more. Idempotent.
pub(crate) async fn candidate_delete(db: &mut Connection, namespace: NamespaceId, digests: &[Digest]) -> Result<(), DbError> {
    candidate_lock(&mut *db, namespace, digests).await?;
    delete_by_digest(db, "DELETE FROM gc_candidate WHERE namespace_id = ? AND digest IN (?*)", namespace, digests, "take candidates back").await
}

/// The candidates after `after`, up to `last`, in order, and since when.
pub(crate) async fn candidate_range(
    db: &mut Connection,
    namespace: NamespaceId,
    after: Option<&Digest>,
    last: Option<&Digest>,
    limit: u32,
) -> Result<Vec<(Digest, i64)>, DbError> {
    let doing = "list candidates";
    let low = after.map_or_else(Vec::new, |digest| digest.as_bytes().to_vec());
    let high = last.map_or_else(|| vec![0xff; Digest::LEN], |digest| digest.as_bytes().to_vec());
    let rows = query("SELECT digest, since FROM gc_candidate WHERE namespace_id = ? AND digest > ? AND digest <= ? ORDER BY digest LIMIT ?")
        .bind(namespace.0)
        .bind(low)
        .bind(high)
        .bind(limit)
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    rows.iter().map(|row| Ok((digest_at(row, 0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// An object's row, as a sweep sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SweptRow {
    pub(crate) digest: Digest,
    pub(crate) pack: PackId,
    /// Uncompressed bytes.
    pub(crate) len: u32,
}

/// The namespace's objects after `after`, in order of their digests, at most `limit`.
pub(crate) async fn object_page(db: &mut Connection, namespace: NamespaceId, after: Option<&Digest>, limit: u32) -> Result<Vec<SweptRow>, DbError> {
    let doing = "list objects";
    let rows = query("SELECT digest, pack_id, len FROM object WHERE namespace_id = ? AND digest > ? ORDER BY digest LIMIT ?")
        .bind(namespace.0)
        .bind(after.map_or_else(Vec::new, |digest| digest.as_bytes().to_vec()))
        .bind(limit)
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    let parse = |row: &Row| Ok(SweptRow { digest: digest_at(row, 0)?, pack: PackId(row.try_get(1)?), len: row.try_get::<i64>(2)? as u32 });
    rows.iter().map(parse).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// Removes objects from the index, wherever they are. Gives the packs that they were in, and their uncompressed bytes.
pub(crate) async fn object_delete(db: &mut Connection, namespace: NamespaceId, digests: &[Digest]) -> Result<Vec<(PackId, u32)>, DbError> {
    let doing = "remove objects";
    let mut removed = Vec::new();
    for batch in batches(digests) {
        let query = query("DELETE FROM object WHERE namespace_id = ? AND digest IN (?*) RETURNING pack_id, len").bind(namespace.0).bind(&batch);
        for row in query.fetch_all(&mut *db).await.map_err(failed(doing))? {
            removed.push((PackId(row.try_get(0).map_err(failed(doing))?), row.try_get::<i64>(1).map_err(failed(doing))? as u32));
        }
    }
    Ok(removed)
}

/// Removes those of the objects that are in one of these packs. Gives them.
pub(crate) async fn object_delete_from(db: &mut Connection, namespace: NamespaceId, packs: &[PackId], digests: &[Digest]) -> Result<Vec<Digest>, DbError> {
    let doing = "move objects";
    let mut removed = Vec::new();
    for batch in batches(digests) {
        let query = query("DELETE FROM object WHERE namespace_id = ? AND pack_id IN (?*) AND digest IN (?*) RETURNING digest");
        let query = query.bind(namespace.0).bind(packs.iter().map(|pack| pack.0).collect::<Vec<i64>>()).bind(&batch);
        for row in query.fetch_all(&mut *db).await.map_err(failed(doing))? {
            removed.push(digest_at(&row, 0).map_err(failed(doing))?);
        }
    }
    Ok(removed)
}

/// What was remembered to lead to these objects, or of these trees, is not any more. Idempotent.
pub(crate) async fn verified_delete(db: &mut Connection, namespace: NamespaceId, digests: &[Digest]) -> Result<(), DbError> {
    for sql in ["DELETE FROM verified WHERE namespace_id = ? AND digest IN (?*)", "DELETE FROM oci_tar WHERE namespace_id = ? AND root IN (?*)"] {
        delete_by_digest(db, sql, namespace, digests, "forget closures").await?;
    }
    Ok(())
}

/// Nothing is remembered of what leads to objects that delta frames are compressed against: those stay for their bytes, and
/// what they lead to may go.
pub(crate) async fn verified_delete_bases(db: &mut Connection, namespace: NamespaceId) -> Result<(), DbError> {
    for sql in [
        "DELETE FROM verified WHERE namespace_id = ?1 AND digest IN (SELECT digest FROM base WHERE namespace_id = ?1)",
        "DELETE FROM oci_tar WHERE namespace_id = ?1 AND root IN (SELECT digest FROM base WHERE namespace_id = ?1)",
    ] {
        query(sql).bind(namespace.0).execute(&mut *db).await.map_err(failed("forget closures"))?;
    }
    Ok(())
}

/// No closure of the namespace is remembered any more.
pub(crate) async fn verified_clear(db: &mut Connection, namespace: NamespaceId) -> Result<(), DbError> {
    let done = query("DELETE FROM verified WHERE namespace_id = ?").bind(namespace.0).execute(db).await;
    done.map_err(failed("forget closures")).map(drop)
}

async fn delete_by_digest(
    db: &mut Connection,
    statement: &'static str,
    namespace: NamespaceId,
    digests: &[Digest],
    doing: &'static str,
) -> Result<(), DbError> {
    for batch in batches(digests) {
        query(statement).bind(namespace.0).bind(&batch).execute(&mut *db).await.map_err(failed(doing))?;
    }
    Ok(())
}
