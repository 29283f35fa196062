//! Table `namespace`: the border of deduplication and visibility.

use super::{Connection, DbError, failed, query};

/// A namespace's row. Queries for objects take one, so that none can cross the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NamespaceId(pub(super) i64);

#[cfg(test)]
impl NamespaceId {
    pub(crate) fn of(number: i64) -> Self {
        Self(number)
    }
}

/// The namespace, if anything was ever pushed to it.
pub(crate) async fn namespace_find(db: &mut Connection, name: &str) -> Result<Option<NamespaceId>, DbError> {
    let row = query("SELECT id FROM namespace WHERE name = ?").bind(name).fetch_optional(db).await.map_err(failed("find a namespace"))?;
    row.map(|row| row.try_get(0)).transpose().map(|id| id.map(NamespaceId)).map_err(failed("find a namespace"))
}

/// The namespace, created if it is new. Idempotent.
pub(crate) async fn namespace_ensure(db: &mut Connection, name: &str) -> Result<NamespaceId, DbError> {
    if let Some(id) = namespace_find(db, name).await? {
        return Ok(id);
    }
    let doing = "create a namespace";
    query("INSERT INTO namespace (name) VALUES (?) ON CONFLICT DO NOTHING").bind(name).execute(&mut *db).await.map_err(failed(doing))?;
    namespace_find(db, name).await?.ok_or(DbError::Failed { doing, source: sqlx::Error::RowNotFound })
}
