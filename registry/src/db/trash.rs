//! Table `trash`: what was deleted and can be brought back.

use super::namespace::NamespaceId;
use super::repository::RepositoryId;
use super::{Connection, DbError, Row, failed, query};

/// Something that is deleted.
#[derive(Clone, Debug)]
pub(crate) struct NewTrash<'a> {
    pub(crate) kind: &'static str,
    pub(crate) name: &'a str,
    pub(crate) content: &'a [u8],
    /// JSON.
    pub(crate) detail: String,
}

/// When, and by whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deletion<'a> {
    /// Milliseconds since 1970.
    pub(crate) at: i64,
    pub(crate) by: &'a str,
}

/// Something that was deleted, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrashRow {
    pub(crate) id: i64,
    /// Its repository's name.
    pub(crate) repository: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) deleted_at: i64,
    pub(crate) deleted_by: String,
}

/// All that is kept of something that was deleted.
#[derive(Clone, Debug)]
pub(crate) struct TrashItem {
    pub(crate) id: i64,
    pub(crate) repository: RepositoryId,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
    pub(crate) detail: String,
}

/// Keeps what is about to be deleted.
pub(crate) async fn trash_insert(db: &mut Connection, repository: RepositoryId, item: &NewTrash<'_>, deletion: Deletion<'_>) -> Result<(), DbError> {
    query("INSERT INTO trash (repository_id, kind, name, content, detail, deleted_at, deleted_by) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(repository.0)
        .bind(item.kind)
        .bind(item.name)
        .bind(item.content)
        .bind(&item.detail)
        .bind(deletion.at)
        .bind(deletion.by)
        .execute(db)
        .await
        .map_err(failed("keep what is deleted"))?;
    Ok(())
}

/// What can be brought back, newest first, at most `limit`: of one repository, or of all.
pub(crate) async fn trash_list(db: &mut Connection, repository: Option<&str>, limit: u32) -> Result<Vec<TrashRow>, DbError> {
    let doing = "list what was deleted";
    let rows = query(
        "SELECT t.id, r.name, t.kind, t.name, t.deleted_at, t.deleted_by FROM trash t JOIN repository r ON r.id = t.repository_id
         WHERE ?1 = '' OR r.name = ?1 ORDER BY t.deleted_at DESC, t.id DESC LIMIT ?2",
    )
    .bind(repository.unwrap_or_default())
    .bind(limit)
    .fetch_all(db)
    .await
    .map_err(failed(doing))?;
    let parse = |row: &Row| {
        Ok(TrashRow {
            id: row.try_get(0)?,
            repository: row.try_get(1)?,
            kind: row.try_get(2)?,
            name: row.try_get(3)?,
            deleted_at: row.try_get(4)?,
            deleted_by: row.try_get(5)?,
        })
    };
    rows.iter().map(parse).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

fn item(row: &Row) -> Result<TrashItem, sqlx::Error> {
    Ok(TrashItem {
        id: row.try_get(0)?,
        repository: RepositoryId(row.try_get(1)?),
        kind: row.try_get(2)?,
        name: row.try_get(3)?,
        content: row.try_get(4)?,
        detail: row.try_get(5)?,
    })
}

/// What was deleted under this number.
pub(crate) async fn trash_get(db: &mut Connection, id: i64) -> Result<Option<TrashItem>, DbError> {
    let doing = "read what was deleted";
    let row = query("SELECT id, repository_id, kind, name, content, detail FROM trash WHERE id = ?").bind(id).fetch_optional(db).await;
    row.map_err(failed(doing))?.as_ref().map(item).transpose().map_err(failed(doing))
}

/// The newest of this kind and name that was deleted in the repository.
pub(crate) async fn trash_newest(db: &mut Connection, repository: RepositoryId, kind: &str, name: &str) -> Result<Option<TrashItem>, DbError> {
    let doing = "look for what was deleted";
    let row = query(
        "SELECT id, repository_id, kind, name, content, detail FROM trash WHERE repository_id = ? AND kind = ? AND name = ?
         ORDER BY deleted_at DESC, id DESC LIMIT 1",
    )
    .bind(repository.0)
    .bind(kind)
    .bind(name)
    .fetch_optional(db)
    .await;
    row.map_err(failed(doing))?.as_ref().map(item).transpose().map_err(failed(doing))
}

/// Forgets one for good. Says whether it was there.
pub(crate) async fn trash_delete(db: &mut Connection, id: i64) -> Result<bool, DbError> {
    let done = query("DELETE FROM trash WHERE id = ?").bind(id).execute(db).await;
    Ok(done.map_err(failed("forget what was deleted"))?.rows_affected() == 1)
}

/// Forgets for good what was deleted in the namespace at `before` or earlier. Says how many.
pub(crate) async fn trash_purge(db: &mut Connection, namespace: NamespaceId, before: i64) -> Result<u64, DbError> {
    let done = query("DELETE FROM trash WHERE deleted_at <= ? AND repository_id IN (SELECT id FROM repository WHERE namespace_id = ?)")
        .bind(before)
        .bind(namespace.0)
        .execute(db)
        .await;
    Ok(done.map_err(failed("forget what was deleted"))?.rows_affected())
}

/// How many would be forgotten by [`trash_purge`].
pub(crate) async fn trash_count(db: &mut Connection, namespace: NamespaceId, before: i64) -> Result<u64, DbError> {
    let doing = "count what was deleted";
    let row = query("SELECT count(*) FROM trash WHERE deleted_at <= ? AND repository_id IN (SELECT id FROM repository WHERE namespace_id = ?)")
        .bind(before)
        .bind(namespace.0)
        .fetch_one(db)
        .await
        .map_err(failed(doing))?;
    row.try_get::<i64>(0).map(|count| count.max(0).cast_unsigned()).map_err(failed(doing))
}
