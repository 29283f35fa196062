//! Table `signing_key`: what tokens are signed with.

use super::{Connection, DbError, Row, failed, query};

/// A key's row.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SigningKeyRow {
    pub(crate) id: String,
    pub(crate) secret: [u8; 32],
    pub(crate) created_at: i64,
}

impl std::fmt::Debug for SigningKeyRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeyRow").field("id", &self.id).field("created_at", &self.created_at).finish_non_exhaustive()
    }
}

/// Adds a key.
pub(crate) async fn signing_key_insert(db: &mut Connection, key: &SigningKeyRow) -> Result<(), DbError> {
    query("INSERT INTO signing_key (id, secret, created_at) VALUES (?, ?, ?)")
        .bind(&key.id)
        .bind(&key.secret[..])
        .bind(key.created_at)
        .execute(db)
        .await
        .map_err(failed("keep a signing key"))?;
    Ok(())
}

/// All keys, newest first.
pub(crate) async fn signing_key_list(db: &mut Connection) -> Result<Vec<SigningKeyRow>, DbError> {
    let doing = "read signing keys";
    let rows = query("SELECT id, secret, created_at FROM signing_key ORDER BY created_at DESC, id").fetch_all(db).await.map_err(failed(doing))?;
    let parse = |row: &Row| {
        let secret: &[u8] = row.try_get(1)?;
        let secret = secret.try_into().map_err(|_| sqlx::Error::Decode("a signing key has 32 bytes".into()))?;
        Ok(SigningKeyRow { id: row.try_get(0)?, secret, created_at: row.try_get(2)? })
    };
    rows.iter().map(parse).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// Forgets keys that were made before this time. With `i64::MAX` all tokens end.
pub(crate) async fn signing_key_delete_before(db: &mut Connection, before: i64) -> Result<u64, DbError> {
    let done = query("DELETE FROM signing_key WHERE created_at < ?").bind(before).execute(db).await;
    Ok(done.map_err(failed("forget signing keys"))?.rows_affected())
}
