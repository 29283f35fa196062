//! Table `access_grant`: what subjects may do, and may not.

use super::{Connection, DbError, Row, failed, now_ms, query};

/// A grant's row. Subject, target and rights are for `service/access/rights.rs` to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GrantRow {
    pub(crate) subject: String,
    pub(crate) target: String,
    pub(crate) is_deny: bool,
    pub(crate) rights: i64,
}

/// Sets the rights of a subject on a target. Idempotent.
pub(crate) async fn access_grant_put(db: &mut Connection, grant: &GrantRow, by: &str) -> Result<(), DbError> {
    query(
        "INSERT INTO access_grant (subject, target, is_deny, rights, granted_by, granted_at) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (subject, target, is_deny) DO UPDATE SET rights = excluded.rights, granted_by = excluded.granted_by, granted_at = excluded.granted_at",
    )
    .bind(&grant.subject)
    .bind(&grant.target)
    .bind(i64::from(grant.is_deny))
    .bind(grant.rights)
    .bind(by)
    .bind(now_ms())
    .execute(db)
    .await
    .map_err(failed("grant rights"))?;
    Ok(())
}

/// Takes a grant back. Says whether it was there.
pub(crate) async fn access_grant_delete(db: &mut Connection, subject: &str, target: &str, is_deny: bool) -> Result<bool, DbError> {
    let done = query("DELETE FROM access_grant WHERE subject = ? AND target = ? AND is_deny = ?").bind(subject).bind(target).bind(i64::from(is_deny));
    Ok(done.execute(db).await.map_err(failed("revoke rights"))?.rows_affected() == 1)
}

/// Takes all grants of a subject back: it is gone, and the next one of its name must not have them.
pub(crate) async fn access_grant_delete_of(db: &mut Connection, subject: &str) -> Result<u64, DbError> {
    let done = query("DELETE FROM access_grant WHERE subject = ?").bind(subject).execute(db).await;
    Ok(done.map_err(failed("revoke rights"))?.rows_affected())
}

/// All grants, by subject and target.
pub(crate) async fn access_grant_list(db: &mut Connection) -> Result<Vec<GrantRow>, DbError> {
    let doing = "list rights";
    let rows = query("SELECT subject, target, is_deny, rights FROM access_grant ORDER BY subject, target, is_deny").fetch_all(db).await;
    let rows = rows.map_err(failed(doing))?;
    let parse = |row: &Row| Ok(GrantRow { subject: row.try_get(0)?, target: row.try_get(1)?, is_deny: row.try_get::<i64>(2)? != 0, rights: row.try_get(3)? });
    rows.iter().map(parse).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}
