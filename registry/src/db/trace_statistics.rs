//! Table `trace_statistics`: how many runs were learned from, by entry point.

use layer_format::model::MAX_ENTRY_POINTS;

use super::repository::RepositoryId;
use super::{Connection, DbError, failed, now_ms};

/// Counts a trace. A new entry point beyond what a model holds is not counted, so that the table stays bounded.
pub(crate) async fn trace_statistics_add(
    db: &mut Connection,
    repository: RepositoryId,
    entry_point: &str,
    architecture: &str,
    events: usize,
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO trace_statistics (repository_id, entry_point, architecture, trace_count, event_count, last_at)
         SELECT ?1, ?2, ?3, 1, ?4, ?5
         WHERE (SELECT count(*) FROM trace_statistics WHERE repository_id = ?1) < ?6
            OR EXISTS (SELECT 1 FROM trace_statistics WHERE repository_id = ?1 AND entry_point = ?2 AND architecture = ?3)
         ON CONFLICT (repository_id, entry_point, architecture)
         DO UPDATE SET trace_count = trace_count + 1, event_count = event_count + excluded.event_count, last_at = excluded.last_at",
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

/// Forgets all counts of the repository.
pub(crate) async fn trace_statistics_clear(db: &mut Connection, repository: RepositoryId) -> Result<(), DbError> {
    sqlx::query("DELETE FROM trace_statistics WHERE repository_id = ?").bind(repository.0).execute(db).await.map_err(failed("forget trace counts"))?;
    Ok(())
}
