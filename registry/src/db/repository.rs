//! Table `repository`.

use layer_format::Digest;
use layer_format::reference::Repository;

use super::namespace::{NamespaceId, namespace_ensure};
use super::{Connection, DbError, digest_at, failed, now_ms, query};

/// A repository's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RepositoryId(pub(super) i64);

/// What is known of a repository.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RepositoryRow {
    pub(crate) id: RepositoryId,
    pub(crate) namespace: NamespaceId,
    /// Its learned model.
    pub(crate) model: Option<Digest>,
}

/// The repository, if an image was ever put. In a transaction it is locked: others who write to it wait for the commit.
pub(crate) async fn repository_find(db: &mut Connection, name: &Repository) -> Result<Option<RepositoryRow>, DbError> {
    let doing = "find a repository";
    let sql = match db.needs_locks() {
        true => "SELECT id, namespace_id, model_digest FROM repository WHERE name = ? FOR NO KEY UPDATE",
        false => "SELECT id, namespace_id, model_digest FROM repository WHERE name = ?",
    };
    let row = query(sql).bind(name.as_str()).fetch_optional(db).await.map_err(failed(doing))?;
    let Some(row) = row else { return Ok(None) };
    let has_model = row.try_get::<Option<&[u8]>>(2).map_err(failed(doing))?.is_some();
    Ok(Some(RepositoryRow {
        id: RepositoryId(row.try_get(0).map_err(failed(doing))?),
        namespace: NamespaceId(row.try_get(1).map_err(failed(doing))?),
        model: has_model.then(|| digest_at(&row, 2)).transpose().map_err(failed(doing))?,
    }))
}

/// The repository, created with its namespace if it is new, and locked. Idempotent.
pub(crate) async fn repository_ensure(db: &mut Connection, name: &Repository) -> Result<RepositoryRow, DbError> {
    let doing = "create a repository";
    if let Some(row) = repository_find(db, name).await? {
        return Ok(row);
    }
    let namespace = namespace_ensure(db, name.namespace()).await?;
    query("INSERT INTO repository (namespace_id, name, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
        .bind(namespace.0)
        .bind(name.as_str())
        .bind(now_ms())
        .execute(&mut *db)
        .await
        .map_err(failed(doing))?;
    repository_find(db, name).await?.ok_or(DbError::Failed { doing, source: sqlx::Error::RowNotFound })
}

/// Locks a repository that is known, until the commit, against others who write to it. Says whether it is there.
pub(crate) async fn repository_lock(db: &mut Connection, id: RepositoryId) -> Result<bool, DbError> {
    if !db.needs_locks() {
        return Ok(true);
    }
    let row = query("SELECT 1 FROM repository WHERE id = ? FOR NO KEY UPDATE").bind(id.0).fetch_optional(db).await;
    Ok(row.map_err(failed("lock a repository"))?.is_some())
}

/// The repository's model now.
pub(crate) async fn repository_model(db: &mut Connection, id: RepositoryId) -> Result<Option<Digest>, DbError> {
    let doing = "find a repository's model";
    let row = query("SELECT model_digest FROM repository WHERE id = ? AND model_digest IS NOT NULL").bind(id.0).fetch_optional(db).await;
    row.map_err(failed(doing))?.map(|row| digest_at(&row, 0)).transpose().map_err(failed(doing))
}

/// Makes `model` the repository's model if it still is `old`; says whether it was.
pub(crate) async fn repository_set_model(db: &mut Connection, id: RepositoryId, old: Option<Digest>, model: Option<Digest>) -> Result<bool, DbError> {
    let done = query("UPDATE repository SET model_digest = ? WHERE id = ? AND model_digest IS NOT DISTINCT FROM ?")
        .bind(model.map(|digest| digest.as_bytes().to_vec()))
        .bind(id.0)
        .bind(old.map(|digest| digest.as_bytes().to_vec()))
        .execute(db)
        .await;
    Ok(done.map_err(failed("set a repository's model"))?.rows_affected() == 1)
}

/// Names of repositories after `after`, by name, at most `limit`. Those without an image are left out.
pub(crate) async fn repository_list(db: &mut Connection, after: &str, limit: u32) -> Result<Vec<String>, DbError> {
    let doing = "list repositories";
    let rows = query("SELECT name FROM repository r WHERE name > ? AND EXISTS (SELECT 1 FROM manifest m WHERE m.repository_id = r.id) ORDER BY name LIMIT ?")
        .bind(after)
        .bind(limit)
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(doing))
}
