//! Table `robot_key`: random secrets that stand for a user, a namespace or the server.

use super::{Connection, DbError, Row, failed, query};

/// A key's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RobotKeyRow {
    pub(crate) name: String,
    /// How the secret begins.
    pub(crate) prefix: String,
    /// BLAKE3 of the secret.
    pub(crate) secret_hash: [u8; 32],
    pub(crate) owner: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) is_login: bool,
    /// JSON.
    pub(crate) scopes: String,
    pub(crate) created_by: String,
    pub(crate) created_at: i64,
    pub(crate) expires_at: Option<i64>,
    pub(crate) last_used_at: Option<i64>,
}

fn parse(row: &Row) -> Result<RobotKeyRow, sqlx::Error> {
    let hash: &[u8] = row.try_get(2)?;
    Ok(RobotKeyRow {
        name: row.try_get(0)?,
        prefix: row.try_get(1)?,
        secret_hash: hash.try_into().map_err(|_| sqlx::Error::Decode("a hash has 32 bytes".into()))?,
        owner: row.try_get(3)?,
        namespace: row.try_get(4)?,
        is_login: row.try_get::<i64>(5)? != 0,
        scopes: row.try_get(6)?,
        created_by: row.try_get(7)?,
        created_at: row.try_get(8)?,
        expires_at: row.try_get(9)?,
        last_used_at: row.try_get(10)?,
    })
}

/// Adds a key. Says whether the name was free.
pub(crate) async fn robot_key_insert(db: &mut Connection, key: &RobotKeyRow) -> Result<bool, DbError> {
    let done = query(
        "INSERT INTO robot_key (name, prefix, secret_hash, owner, namespace, is_login, scopes, created_by, created_at, expires_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
    )
    .bind(&key.name)
    .bind(&key.prefix)
    .bind(&key.secret_hash[..])
    .bind(key.owner.as_deref())
    .bind(key.namespace.as_deref())
    .bind(i64::from(key.is_login))
    .bind(&key.scopes)
    .bind(&key.created_by)
    .bind(key.created_at)
    .bind(key.expires_at)
    .execute(db)
    .await;
    Ok(done.map_err(failed("add a key"))?.rows_affected() == 1)
}

/// All keys, by name.
pub(crate) async fn robot_key_list(db: &mut Connection) -> Result<Vec<RobotKeyRow>, DbError> {
    let doing = "list keys";
    let rows = query(
        "SELECT name, prefix, secret_hash, owner, namespace, is_login, scopes, created_by, created_at, expires_at, last_used_at FROM robot_key ORDER BY name",
    )
    .fetch_all(db)
    .await
    .map_err(failed(doing))?;
    rows.iter().map(parse).collect::<Result<_, _>>().map_err(failed(doing))
}

/// Forgets the key. Says whether it was there.
pub(crate) async fn robot_key_delete(db: &mut Connection, name: &str) -> Result<bool, DbError> {
    let done = query("DELETE FROM robot_key WHERE name = ?").bind(name).execute(db).await;
    Ok(done.map_err(failed("revoke a key"))?.rows_affected() == 1)
}

/// Forgets what logins of the account keep: after a change of its password.
pub(crate) async fn robot_key_delete_logins(db: &mut Connection, owner: &str) -> Result<u64, DbError> {
    let done = query("DELETE FROM robot_key WHERE owner = ? AND is_login <> 0").bind(owner).execute(db).await;
    Ok(done.map_err(failed("end a user's logins"))?.rows_affected())
}

/// Forgets the oldest logins of the account, so that `keep` are left.
pub(crate) async fn robot_key_trim_logins(db: &mut Connection, owner: &str, keep: u32) -> Result<u64, DbError> {
    let done = query(
        "DELETE FROM robot_key WHERE name IN (SELECT name FROM robot_key WHERE owner = ? AND is_login <> 0 ORDER BY created_at DESC, name LIMIT 1000 OFFSET ?)",
    )
    .bind(owner)
    .bind(i64::from(keep))
    .execute(db)
    .await;
    Ok(done.map_err(failed("end a user's oldest logins"))?.rows_affected())
}

/// Forgets keys that expired before this time.
pub(crate) async fn robot_key_expire(db: &mut Connection, before: i64) -> Result<u64, DbError> {
    let done = query("DELETE FROM robot_key WHERE expires_at IS NOT NULL AND expires_at < ?").bind(before).execute(db).await;
    Ok(done.map_err(failed("forget expired keys"))?.rows_affected())
}

/// Notes when the key was last used. Not counted as a change of rights.
pub(crate) async fn robot_key_touch(db: &mut Connection, name: &str, at: i64) -> Result<(), DbError> {
    query("UPDATE robot_key SET last_used_at = ? WHERE name = ?").bind(at).bind(name).execute(db).await.map_err(failed("note the use of a key"))?;
    Ok(())
}
