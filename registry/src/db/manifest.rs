//! Table `manifest`: images as they were received.

use layer_format::Digest;
use layer_format::manifest::ImageManifest;

use super::namespace::NamespaceId;
use super::repository::RepositoryId;
use super::{Connection, DbError, digest_at, failed, now_ms, query};

/// Keeps an image's bytes. Says whether they were there; then they count as pushed now.
pub(crate) async fn manifest_put(db: &mut Connection, repository: RepositoryId, digest: &Digest, bytes: &[u8], image: &ImageManifest) -> Result<bool, DbError> {
    let existed = manifest_layer_count(&mut *db, repository, digest).await?.is_some();
    query(
        "INSERT INTO manifest (repository_id, digest, bytes, layer_count, model_digest, pushed_at) VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (repository_id, digest) DO UPDATE SET pushed_at = excluded.pushed_at",
    )
    .bind(repository.0)
    .bind(&digest.as_bytes()[..])
    .bind(bytes)
    .bind(image.layers.len() as i64)
    .bind(image.model.map(|digest| digest.as_bytes().to_vec()))
    .bind(now_ms())
    .execute(db)
    .await
    .map_err(failed("keep a manifest"))?;
    Ok(existed)
}

/// The image's bytes.
pub(crate) async fn manifest_get(db: &mut Connection, repository: RepositoryId, digest: &Digest) -> Result<Option<Vec<u8>>, DbError> {
    let doing = "read a manifest";
    let row =
        query("SELECT bytes FROM manifest WHERE repository_id = ? AND digest = ?").bind(repository.0).bind(&digest.as_bytes()[..]).fetch_optional(db).await;
    row.map_err(failed(doing))?.map(|row| row.try_get(0)).transpose().map_err(failed(doing))
}

/// How many layers the image has, if the repository has it.
pub(crate) async fn manifest_layer_count(db: &mut Connection, repository: RepositoryId, digest: &Digest) -> Result<Option<u8>, DbError> {
    let doing = "find a manifest";
    let row = query("SELECT layer_count FROM manifest WHERE repository_id = ? AND digest = ?")
        .bind(repository.0)
        .bind(&digest.as_bytes()[..])
        .fetch_optional(db)
        .await;
    let count: Option<i64> = row.map_err(failed(doing))?.map(|row| row.try_get(0)).transpose().map_err(failed(doing))?;
    Ok(count.map(|count| u8::try_from(count).unwrap_or(u8::MAX)))
}

/// Forgets the image and the releases that name it. Says whether it was there.
pub(crate) async fn manifest_delete(db: &mut Connection, repository: RepositoryId, digest: &Digest) -> Result<bool, DbError> {
    let done = query("DELETE FROM manifest WHERE repository_id = ? AND digest = ?").bind(repository.0).bind(&digest.as_bytes()[..]).execute(db).await;
    Ok(done.map_err(failed("delete a manifest"))?.rows_affected() == 1)
}

/// All images, newest first.
pub(crate) async fn manifest_digests(db: &mut Connection, repository: RepositoryId) -> Result<Vec<Digest>, DbError> {
    let doing = "list manifests";
    let rows = query("SELECT digest FROM manifest WHERE repository_id = ? ORDER BY pushed_at DESC, digest").bind(repository.0).fetch_all(db).await;
    rows.map_err(failed(doing))?.iter().map(|row| digest_at(row, 0)).collect::<Result<_, _>>().map_err(failed(doing))
}

/// The bytes of the image that was pushed last, of all repositories of the namespace.
pub(crate) async fn manifest_newest_of(db: &mut Connection, namespace: NamespaceId) -> Result<Option<Vec<u8>>, DbError> {
    let doing = "find the newest manifest";
    let row = query(
        "SELECT m.bytes FROM manifest m JOIN repository r ON r.id = m.repository_id WHERE r.namespace_id = ? ORDER BY m.pushed_at DESC, m.digest LIMIT 1",
    )
    .bind(namespace.0)
    .fetch_optional(db)
    .await;
    row.map_err(failed(doing))?.map(|row| row.try_get(0)).transpose().map_err(failed(doing))
}

/// The image that was pushed last.
pub(crate) async fn manifest_newest(db: &mut Connection, repository: RepositoryId) -> Result<Option<Digest>, DbError> {
    let doing = "find the newest manifest";
    let row = query("SELECT digest FROM manifest WHERE repository_id = ? ORDER BY pushed_at DESC, digest LIMIT 1").bind(repository.0).fetch_optional(db).await;
    row.map_err(failed(doing))?.map(|row| digest_at(&row, 0)).transpose().map_err(failed(doing))
}
