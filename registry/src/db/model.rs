//! Table `model`: what was learned, by digest.

use layer_format::Digest;

use super::repository::RepositoryId;
use super::{Connection, DbError, failed, now_ms, query};

/// How many earlier models of a repository can still be asked for by digest.
const KEPT: i64 = 8;

/// Keeps a model, and forgets the oldest ones that nobody pins and no image's launches get. Idempotent.
pub(crate) async fn model_put(db: &mut Connection, repository: RepositoryId, digest: &Digest, bytes: &[u8]) -> Result<(), DbError> {
    let doing = "keep a model";
    query("INSERT INTO model (repository_id, digest, bytes, learned_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING")
        .bind(repository.0)
        .bind(&digest.as_bytes()[..])
        .bind(bytes)
        .bind(now_ms())
        .execute(&mut *db)
        .await
        .map_err(failed(doing))?;
    query(
        "DELETE FROM model WHERE repository_id = ?1 AND digest <> ?2
         AND digest NOT IN (SELECT digest FROM model WHERE repository_id = ?1 ORDER BY learned_at DESC LIMIT ?3)
         AND NOT EXISTS (SELECT 1 FROM manifest WHERE manifest.repository_id = ?1 AND manifest.model_digest = model.digest)
         AND NOT EXISTS (SELECT 1 FROM model_pin WHERE model_pin.repository_id = ?1 AND model_pin.model_digest = model.digest)
         AND NOT EXISTS (SELECT 1 FROM image_model WHERE image_model.repository_id = ?1 AND image_model.served_digest = model.digest)
         AND NOT EXISTS (SELECT 1 FROM repository WHERE repository.id = ?1 AND repository.model_digest = model.digest)",
    )
    .bind(repository.0)
    .bind(&digest.as_bytes()[..])
    .bind(KEPT)
    .execute(db)
    .await
    .map_err(failed(doing))?;
    Ok(())
}

/// The model's bytes.
pub(crate) async fn model_get(db: &mut Connection, repository: RepositoryId, digest: &Digest) -> Result<Option<Vec<u8>>, DbError> {
    let doing = "read a model";
    let row = query("SELECT bytes FROM model WHERE repository_id = ? AND digest = ?").bind(repository.0).bind(&digest.as_bytes()[..]).fetch_optional(db).await;
    row.map_err(failed(doing))?.map(|row| row.try_get(0)).transpose().map_err(failed(doing))
}
