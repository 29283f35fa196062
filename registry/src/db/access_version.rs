//! Table `access_version`: whether who may do what has changed.

use super::{Connection, DbError, failed, query};

/// How many changes there were.
pub(crate) async fn access_version_get(db: &mut Connection) -> Result<i64, DbError> {
    let doing = "look for changes of rights";
    let row = query("SELECT version FROM access_version WHERE id = 1").fetch_one(db).await.map_err(failed(doing))?;
    row.try_get(0).map_err(failed(doing))
}

/// Counts a change: servers read accounts, keys and grants again. In the transaction of the change.
pub(crate) async fn access_version_grow(db: &mut Connection) -> Result<(), DbError> {
    query("UPDATE access_version SET version = version + 1 WHERE id = 1").execute(db).await.map_err(failed("note a change of rights"))?;
    Ok(())
}
