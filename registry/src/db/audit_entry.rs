//! Table `audit_entry`: what was changed, and what was refused. Nothing here changes a row.

use super::{Connection, DbError, Row, failed, query};

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuditRow {
    pub(crate) id: String,
    pub(crate) at: i64,
    pub(crate) who: String,
    pub(crate) action: String,
    pub(crate) target: String,
    pub(crate) outcome: String,
    pub(crate) detail: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) request: Option<String>,
}

impl AuditRow {
    /// The first id of this time or later.
    pub(crate) fn first_id(at: i64) -> String {
        format!("{:012x}", at.max(0))
    }
}

/// Adds entries.
pub(crate) async fn audit_insert(db: &mut Connection, entries: &[AuditRow]) -> Result<(), DbError> {
    for entry in entries {
        query("INSERT INTO audit_entry (id, at, who, action, target, outcome, detail, address, request) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
            .bind(&entry.id)
            .bind(entry.at)
            .bind(&entry.who)
            .bind(&entry.action)
            .bind(&entry.target)
            .bind(&entry.outcome)
            .bind(entry.detail.as_deref())
            .bind(entry.address.as_deref())
            .bind(entry.request.as_deref())
            .execute(&mut *db)
            .await
            .map_err(failed("write the audit log"))?;
    }
    Ok(())
}

/// Entries after the one with the id `after`, oldest first, at most `limit`.
pub(crate) async fn audit_list(db: &mut Connection, after: &str, limit: u32) -> Result<Vec<AuditRow>, DbError> {
    let doing = "read the audit log";
    let rows = query("SELECT id, at, who, action, target, outcome, detail, address, request FROM audit_entry WHERE id > ? ORDER BY id LIMIT ?")
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    let parse = |row: &Row| {
        Ok(AuditRow {
            id: row.try_get(0)?,
            at: row.try_get(1)?,
            who: row.try_get(2)?,
            action: row.try_get(3)?,
            target: row.try_get(4)?,
            outcome: row.try_get(5)?,
            detail: row.try_get(6)?,
            address: row.try_get(7)?,
            request: row.try_get(8)?,
        })
    };
    rows.iter().map(parse).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// Forgets entries of before this time (milliseconds since 1970).
pub(crate) async fn audit_delete_before(db: &mut Connection, before: i64) -> Result<u64, DbError> {
    let done = query("DELETE FROM audit_entry WHERE id < ?").bind(AuditRow::first_id(before)).execute(db).await;
    Ok(done.map_err(failed("forget old audit entries"))?.rows_affected())
}
