//! Table `state`: states as they were received.

use layer_format::Digest;

use super::repository::RepositoryId;
use super::{Connection, DbError, Row, digest_at, failed, now_ms, query};

/// What is kept of a state.
#[derive(Clone, Debug)]
pub(crate) struct NewState<'a> {
    pub(crate) digest: Digest,
    pub(crate) bytes: &'a [u8],
    pub(crate) sandbox: Digest,
    pub(crate) sandbox_bytes: u64,
    pub(crate) container: Option<&'a str>,
}

/// A state in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateRow {
    pub(crate) digest: Digest,
    pub(crate) container: Option<String>,
    pub(crate) sandbox_bytes: u64,
    /// Milliseconds since 1970.
    pub(crate) pushed_at: i64,
}

/// Keeps a state. Says whether it was there; then it counts as pushed now, by the new name if one is given.
pub(crate) async fn state_put(db: &mut Connection, repository: RepositoryId, state: &NewState<'_>) -> Result<bool, DbError> {
    let existed = state_get(&mut *db, repository, &state.digest).await?.is_some();
    query(
        "INSERT INTO state (repository_id, digest, bytes, sandbox_digest, sandbox_bytes, container, pushed_at) VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (repository_id, digest) DO UPDATE SET pushed_at = excluded.pushed_at, container = COALESCE(excluded.container, state.container)",
    )
    .bind(repository.0)
    .bind(&state.digest.as_bytes()[..])
    .bind(state.bytes)
    .bind(&state.sandbox.as_bytes()[..])
    .bind(i64::try_from(state.sandbox_bytes).unwrap_or(i64::MAX))
    .bind(state.container)
    .bind(now_ms())
    .execute(db)
    .await
    .map_err(failed("keep a state"))?;
    Ok(existed)
}

/// The state's bytes, and what its container was called.
pub(crate) async fn state_get(db: &mut Connection, repository: RepositoryId, digest: &Digest) -> Result<Option<(Vec<u8>, Option<String>)>, DbError> {
    let doing = "read a state";
    let row = query("SELECT bytes, container FROM state WHERE repository_id = ? AND digest = ?")
        .bind(repository.0)
        .bind(&digest.as_bytes()[..])
        .fetch_optional(db)
        .await;
    row.map_err(failed(doing))?.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose().map_err(failed(doing))
}

/// Bytes of all files of the state's sandbox; 0 if there is no such state.
pub(crate) async fn state_sandbox_bytes(db: &mut Connection, repository: RepositoryId, digest: &Digest) -> Result<u64, DbError> {
    let doing = "read a state";
    let row = query("SELECT sandbox_bytes FROM state WHERE repository_id = ? AND digest = ?")
        .bind(repository.0)
        .bind(&digest.as_bytes()[..])
        .fetch_optional(db)
        .await;
    let bytes: Option<i64> = row.map_err(failed(doing))?.map(|row| row.try_get(0)).transpose().map_err(failed(doing))?;
    Ok(bytes.unwrap_or(0).max(0).cast_unsigned())
}

/// At most `limit` states whose digest lies between the two, both included, in order.
pub(crate) async fn state_range(db: &mut Connection, repository: RepositoryId, low: &Digest, high: &Digest, limit: u32) -> Result<Vec<Digest>, DbError> {
    let doing = "look for a state";
    let rows = query("SELECT digest FROM state WHERE repository_id = ? AND digest >= ? AND digest <= ? ORDER BY digest LIMIT ?")
        .bind(repository.0)
        .bind(&low.as_bytes()[..])
        .bind(&high.as_bytes()[..])
        .bind(limit)
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    rows.iter().map(|row| digest_at(row, 0)).collect::<Result<_, _>>().map_err(failed(doing))
}

/// The repository's newest states, at most `limit`.
pub(crate) async fn state_list(db: &mut Connection, repository: RepositoryId, limit: u32) -> Result<Vec<StateRow>, DbError> {
    let doing = "list states";
    let rows = query("SELECT digest, container, sandbox_bytes, pushed_at FROM state WHERE repository_id = ? ORDER BY pushed_at DESC, digest LIMIT ?")
        .bind(repository.0)
        .bind(limit)
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    let read = |row: &Row| {
        let bytes: i64 = row.try_get(2)?;
        Ok(StateRow { digest: digest_at(row, 0)?, container: row.try_get(1)?, sandbox_bytes: bytes.max(0).cast_unsigned(), pushed_at: row.try_get(3)? })
    };
    rows.iter().map(read).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// The sandboxes of all states of the repository.
pub(crate) async fn state_sandboxes(db: &mut Connection, repository: RepositoryId) -> Result<Vec<Digest>, DbError> {
    let doing = "list states";
    let rows = query("SELECT DISTINCT sandbox_digest FROM state WHERE repository_id = ?").bind(repository.0).fetch_all(db).await;
    rows.map_err(failed(doing))?.iter().map(|row| digest_at(row, 0)).collect::<Result<_, _>>().map_err(failed(doing))
}

/// Forgets a state. Says whether it was there.
pub(crate) async fn state_delete(db: &mut Connection, repository: RepositoryId, digest: &Digest) -> Result<bool, DbError> {
    let done = query("DELETE FROM state WHERE repository_id = ? AND digest = ?").bind(repository.0).bind(&digest.as_bytes()[..]).execute(db).await;
    Ok(done.map_err(failed("delete a state"))?.rows_affected() == 1)
}
