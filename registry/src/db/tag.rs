//! Table `tag`: releases, and `head`.

use std::collections::BTreeMap;

use layer_format::Digest;

use super::repository::RepositoryId;
use super::{Connection, DbError, digest_at, failed, now_ms, query};

/// Makes the release name this image. Idempotent.
pub(crate) async fn tag_move(db: &mut Connection, repository: RepositoryId, name: &str, digest: &Digest) -> Result<(), DbError> {
    query(
        "INSERT INTO tag (repository_id, name, digest, moved_at) VALUES (?, ?, ?, ?)
         ON CONFLICT (repository_id, name) DO UPDATE SET digest = excluded.digest, moved_at = excluded.moved_at",
    )
    .bind(repository.0)
    .bind(name)
    .bind(&digest.as_bytes()[..])
    .bind(now_ms())
    .execute(db)
    .await
    .map_err(failed("move a release"))?;
    Ok(())
}

/// The image that the release names.
pub(crate) async fn tag_get(db: &mut Connection, repository: RepositoryId, name: &str) -> Result<Option<Digest>, DbError> {
    let doing = "find a release";
    let row = query("SELECT digest FROM tag WHERE repository_id = ? AND name = ?").bind(repository.0).bind(name).fetch_optional(db).await;
    row.map_err(failed(doing))?.map(|row| digest_at(&row, 0)).transpose().map_err(failed(doing))
}

/// Forgets the release; its image stays. Says whether it was there.
pub(crate) async fn tag_delete(db: &mut Connection, repository: RepositoryId, name: &str) -> Result<bool, DbError> {
    let done = query("DELETE FROM tag WHERE repository_id = ? AND name = ?").bind(repository.0).bind(name).execute(db).await;
    Ok(done.map_err(failed("delete a release"))?.rows_affected() == 1)
}

/// All releases, with `head`.
pub(crate) async fn tag_list(db: &mut Connection, repository: RepositoryId) -> Result<BTreeMap<String, Digest>, DbError> {
    let doing = "list releases";
    let rows = query("SELECT name, digest FROM tag WHERE repository_id = ?").bind(repository.0).fetch_all(db).await.map_err(failed(doing))?;
    rows.iter().map(|row| Ok((row.try_get(0)?, digest_at(row, 1)?))).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}
