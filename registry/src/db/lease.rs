//! Table `lease`: who relies on a namespace, until when. Times are given by the caller, so that one clock counts.

use super::namespace::NamespaceId;
use super::{Connection, DbError, failed, query};

const COLLECTOR: i64 = 1;
const PUSH: i64 = 2;

/// Takes the namespace's collector lease, if nobody has it or its holder is dead. Says whether it could.
pub(crate) async fn lease_collector_take(db: &mut Connection, namespace: NamespaceId, token: &str, now: i64, expires_at: i64) -> Result<bool, DbError> {
    let done = query(
        "INSERT INTO lease (namespace_id, kind, holder, token, since, expires_at) VALUES (?, ?, '', ?, ?, ?)
         ON CONFLICT (namespace_id, kind, holder) DO UPDATE SET token = excluded.token, since = excluded.since, expires_at = excluded.expires_at
         WHERE lease.expires_at < excluded.since",
    )
    .bind(namespace.0)
    .bind(COLLECTOR)
    .bind(token)
    .bind(now)
    .bind(expires_at)
    .execute(db)
    .await;
    Ok(done.map_err(failed("take the lease of a collection"))?.rows_affected() == 1)
}

/// Renews the collector's lease. `false`: somebody else collects now.
pub(crate) async fn lease_collector_renew(db: &mut Connection, namespace: NamespaceId, token: &str, expires_at: i64) -> Result<bool, DbError> {
    let done = query("UPDATE lease SET expires_at = ? WHERE namespace_id = ? AND kind = ? AND holder = '' AND token = ?")
        .bind(expires_at)
        .bind(namespace.0)
        .bind(COLLECTOR)
        .bind(token)
        .execute(db)
        .await;
    Ok(done.map_err(failed("renew the lease of a collection"))?.rows_affected() == 1)
}

/// Gives the collector's lease back.
pub(crate) async fn lease_collector_end(db: &mut Connection, namespace: NamespaceId, token: &str) -> Result<(), DbError> {
    let done = query("DELETE FROM lease WHERE namespace_id = ? AND kind = ? AND holder = '' AND token = ?")
        .bind(namespace.0)
        .bind(COLLECTOR)
        .bind(token)
        .execute(db)
        .await;
    done.map_err(failed("end the lease of a collection")).map(drop)
}

/// A push in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PushLease<'a> {
    /// Which.
    pub(crate) holder: &'a str,
    /// When it began.
    pub(crate) since: i64,
    pub(crate) now: i64,
    pub(crate) expires_at: i64,
    /// It counts as begun this long ago at most, in milliseconds: what never ends must not stop collections for ever.
    pub(crate) max_age: i64,
}

/// Begins or renews the lease of a push. One that had expired begins anew.
pub(crate) async fn lease_push_renew(db: &mut Connection, namespace: NamespaceId, lease: PushLease<'_>) -> Result<(), DbError> {
    query(
        "INSERT INTO lease (namespace_id, kind, holder, token, since, expires_at) VALUES (?1, ?2, ?3, '', ?4, ?5)
         ON CONFLICT (namespace_id, kind, holder) DO UPDATE SET expires_at = excluded.expires_at,
             since = CASE WHEN lease.expires_at < ?6 THEN excluded.since WHEN lease.since < ?7 THEN ?7 ELSE lease.since END",
    )
    .bind(namespace.0)
    .bind(PUSH)
    .bind(lease.holder)
    .bind(lease.since)
    .bind(lease.expires_at)
    .bind(lease.now)
    .bind(lease.now - lease.max_age)
    .execute(db)
    .await
    .map_err(failed("renew the lease of a push"))?;
    Ok(())
}

/// When the oldest push began that is in progress at `now`.
pub(crate) async fn lease_push_oldest(db: &mut Connection, namespace: NamespaceId, now: i64) -> Result<Option<i64>, DbError> {
    let doing = "find the oldest push";
    let row = query("SELECT min(since) FROM lease WHERE namespace_id = ? AND kind = ? AND expires_at >= ?")
        .bind(namespace.0)
        .bind(PUSH)
        .bind(now)
        .fetch_one(db)
        .await
        .map_err(failed(doing))?;
    row.try_get(0).map_err(failed(doing))
}

/// Forgets pushes whose lease ended before `before`.
pub(crate) async fn lease_push_expire(db: &mut Connection, namespace: NamespaceId, before: i64) -> Result<(), DbError> {
    let done = query("DELETE FROM lease WHERE namespace_id = ? AND kind = ? AND expires_at < ?").bind(namespace.0).bind(PUSH).bind(before).execute(db).await;
    done.map_err(failed("forget old pushes")).map(drop)
}
