//! Table `account`: people who may log in.

use super::{Connection, DbError, Row, failed, now_ms, query};

/// An account's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccountRow {
    pub(crate) name: String,
    pub(crate) is_admin: bool,
    pub(crate) is_disabled: bool,
    /// Another one after each change that ends tokens.
    pub(crate) generation: i64,
    pub(crate) created_at: i64,
}

const COLUMNS: &str = "name, is_admin, is_disabled, generation, created_at";

fn parse(row: &Row) -> Result<AccountRow, sqlx::Error> {
    Ok(AccountRow {
        name: row.try_get(0)?,
        is_admin: row.try_get::<i64>(1)? != 0,
        is_disabled: row.try_get::<i64>(2)? != 0,
        generation: row.try_get(3)?,
        created_at: row.try_get(4)?,
    })
}

fn generation() -> i64 {
    rand::random::<i64>() & i64::MAX
}

/// Adds an account. Says whether the name was free.
pub(crate) async fn account_insert(db: &mut Connection, name: &str, password_hash: &str, is_admin: bool) -> Result<bool, DbError> {
    let done = query(
        "INSERT INTO account (name, password_hash, is_admin, is_disabled, generation, created_at) VALUES (?, ?, ?, 0, ?, ?) ON CONFLICT (name) DO NOTHING",
    )
    .bind(name)
    .bind(password_hash)
    .bind(i64::from(is_admin))
    .bind(generation())
    .bind(now_ms())
    .execute(db)
    .await;
    Ok(done.map_err(failed("add a user"))?.rows_affected() == 1)
}

/// Sets the password and ends tokens that were given for the one before. Says whether there is such an account.
pub(crate) async fn account_set_password(db: &mut Connection, name: &str, password_hash: &str) -> Result<bool, DbError> {
    let done = query("UPDATE account SET password_hash = ?, generation = ? WHERE name = ?").bind(password_hash).bind(generation()).bind(name);
    Ok(done.execute(db).await.map_err(failed("set a password"))?.rows_affected() == 1)
}

/// Sets what the account is, and ends its tokens. Says whether there is such an account.
pub(crate) async fn account_set(db: &mut Connection, name: &str, is_admin: bool, is_disabled: bool) -> Result<bool, DbError> {
    let done = query("UPDATE account SET is_admin = ?, is_disabled = ?, generation = ? WHERE name = ?")
        .bind(i64::from(is_admin))
        .bind(i64::from(is_disabled))
        .bind(generation())
        .bind(name);
    Ok(done.execute(db).await.map_err(failed("change a user"))?.rows_affected() == 1)
}

/// Forgets the account, with its keys. Says whether it was there.
pub(crate) async fn account_delete(db: &mut Connection, name: &str) -> Result<bool, DbError> {
    let done = query("DELETE FROM account WHERE name = ?").bind(name).execute(db).await;
    Ok(done.map_err(failed("remove a user"))?.rows_affected() == 1)
}

/// The account.
pub(crate) async fn account_get(db: &mut Connection, name: &str) -> Result<Option<AccountRow>, DbError> {
    let doing = "find a user";
    let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM account WHERE name = ?"));
    let row = query(sql).bind(name).fetch_optional(db).await.map_err(failed(doing))?;
    row.as_ref().map(parse).transpose().map_err(failed(doing))
}

/// The hash of the account's password.
pub(crate) async fn account_password(db: &mut Connection, name: &str) -> Result<Option<String>, DbError> {
    let doing = "find a user's password";
    let row = query("SELECT password_hash FROM account WHERE name = ?").bind(name).fetch_optional(db).await.map_err(failed(doing))?;
    row.map(|row| row.try_get(0)).transpose().map_err(failed(doing))
}

/// All accounts, by name.
pub(crate) async fn account_list(db: &mut Connection) -> Result<Vec<AccountRow>, DbError> {
    let doing = "list users";
    let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM account ORDER BY name"));
    let rows = query(sql).fetch_all(db).await.map_err(failed(doing))?;
    rows.iter().map(parse).collect::<Result<_, _>>().map_err(failed(doing))
}

/// How many enabled administrators there are besides this account.
pub(crate) async fn account_other_admins(db: &mut Connection, name: &str) -> Result<u64, DbError> {
    let doing = "count administrators";
    let row = query("SELECT count(*) FROM account WHERE is_admin <> 0 AND is_disabled = 0 AND name <> ?").bind(name).fetch_one(db).await;
    Ok(row.map_err(failed(doing))?.try_get::<i64>(0).map_err(failed(doing))?.cast_unsigned())
}
