//! Table `trace_statistics`: how many runs were learned from, by entry point.

use layer_format::model::MAX_ENTRY_POINTS;

use super::held_trace::Used;
use super::repository::RepositoryId;
use super::{Connection, DbError, Row, failed, now_ms, query};

/// Counts a trace that was taken: learned now, or held out. A new entry point beyond what a model holds is not counted,
/// so that the table stays bounded.
pub(crate) async fn trace_statistics_add(
    db: &mut Connection,
    repository: RepositoryId,
    entry_point: &str,
    architecture: &str,
    events: usize,
) -> Result<(), DbError> {
    query(
        "INSERT INTO trace_statistics (repository_id, entry_point, architecture, trace_count, event_count, last_at, accepted_count)
         SELECT ?1, ?2, ?3, 1, ?4, ?5, 1
         WHERE (SELECT count(*) FROM trace_statistics WHERE repository_id = ?1) < ?6
            OR EXISTS (SELECT 1 FROM trace_statistics WHERE repository_id = ?1 AND entry_point = ?2 AND architecture = ?3)
         ON CONFLICT (repository_id, entry_point, architecture)
         DO UPDATE SET trace_count = trace_statistics.trace_count + 1, event_count = trace_statistics.event_count + excluded.event_count, last_at = excluded.last_at,
             accepted_count = COALESCE(trace_statistics.accepted_count, 0) + 1",
    )
    .bind(repository.0)
    .bind(entry_point)
    .bind(architecture)
    .bind(events as i64)
    .bind(now_ms())
    .bind(MAX_ENTRY_POINTS as i64)
    .execute(db)
    .await
    .map_err(failed("count a trace"))?;
    Ok(())
}

/// How many traces of the entry point were taken so far.
pub(crate) async fn trace_statistics_accepted(db: &mut Connection, repository: RepositoryId, entry_point: &str, architecture: &str) -> Result<u64, DbError> {
    let doing = "count traces";
    let row = query("SELECT COALESCE(accepted_count, 0) FROM trace_statistics WHERE repository_id = ? AND entry_point = ? AND architecture = ?")
        .bind(repository.0)
        .bind(entry_point)
        .bind(architecture)
        .fetch_optional(db)
        .await
        .map_err(failed(doing))?;
    let count: Option<i64> = row.map(|row| row.try_get(0)).transpose().map_err(failed(doing))?;
    Ok(count.unwrap_or(0).max(0).cast_unsigned())
}

/// Notes what launches of the entry point usually use.
pub(crate) async fn trace_statistics_set_usual(
    db: &mut Connection,
    repository: RepositoryId,
    entry_point: &str,
    architecture: &str,
    usual: Option<Used>,
) -> Result<(), DbError> {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    query("UPDATE trace_statistics SET usual_touches = ?, usual_bytes = ? WHERE repository_id = ? AND entry_point = ? AND architecture = ?")
        .bind(usual.map(|used| number(used.touches)))
        .bind(usual.map(|used| number(used.bytes)))
        .bind(repository.0)
        .bind(entry_point)
        .bind(architecture)
        .execute(db)
        .await
        .map_err(failed("note what launches use"))?;
    Ok(())
}

/// What launches of the first of these entry points of which it is known usually use.
pub(crate) async fn trace_statistics_usual(
    db: &mut Connection,
    repository: RepositoryId,
    entry_points: [&str; 2],
    architecture: &str,
) -> Result<Option<Used>, DbError> {
    let doing = "read what launches use";
    let row = query(
        "SELECT usual_touches, usual_bytes FROM trace_statistics
         WHERE repository_id = ?1 AND entry_point IN (?2, ?3) AND architecture = ?4 AND usual_touches IS NOT NULL AND usual_bytes IS NOT NULL
         ORDER BY entry_point <> ?2 LIMIT 1",
    )
    .bind(repository.0)
    .bind(entry_points[0])
    .bind(entry_points[1])
    .bind(architecture)
    .fetch_optional(db)
    .await
    .map_err(failed(doing))?;
    let read = |row: Row| {
        let (touches, bytes): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        Ok::<_, sqlx::Error>(Used { touches: touches.max(0).cast_unsigned(), bytes: bytes.max(0).cast_unsigned() })
    };
    row.map(read).transpose().map_err(failed(doing))
}

/// Forgets all counts of the repository.
pub(crate) async fn trace_statistics_clear(db: &mut Connection, repository: RepositoryId) -> Result<(), DbError> {
    query("DELETE FROM trace_statistics WHERE repository_id = ?").bind(repository.0).execute(db).await.map_err(failed("forget trace counts"))?;
    Ok(())
}
