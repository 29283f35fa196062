//! Table `model_pin`: which model launches of a release or image get, whatever is learned.

use layer_format::Digest;

use super::repository::RepositoryId;
use super::{Connection, DbError, digest_at, failed, now_ms, query};

/// Most pins of a repository: each keeps a model for ever.
pub(crate) const MAX_PINS: i64 = 64;

/// Pins a model to a release, or to an image's digest as text. Says whether there was room.
pub(crate) async fn model_pin_set(db: &mut Connection, repository: RepositoryId, reference: &str, model: &Digest) -> Result<bool, DbError> {
    let done = query(
        "INSERT INTO model_pin (repository_id, reference, model_digest, pinned_at)
         SELECT ?1, ?2, ?3, ?4 WHERE (SELECT count(*) FROM model_pin WHERE repository_id = ?1 AND reference <> ?2) < ?5
         ON CONFLICT (repository_id, reference) DO UPDATE SET model_digest = excluded.model_digest, pinned_at = excluded.pinned_at",
    )
    .bind(repository.0)
    .bind(reference)
    .bind(&model.as_bytes()[..])
    .bind(now_ms())
    .bind(MAX_PINS)
    .execute(db)
    .await;
    Ok(done.map_err(failed("pin a model"))?.rows_affected() == 1)
}

/// Takes a pin away. Says whether there was one.
pub(crate) async fn model_pin_delete(db: &mut Connection, repository: RepositoryId, reference: &str) -> Result<bool, DbError> {
    let done = query("DELETE FROM model_pin WHERE repository_id = ? AND reference = ?").bind(repository.0).bind(reference).execute(db).await;
    Ok(done.map_err(failed("take a pin away"))?.rows_affected() == 1)
}

/// The model pinned to the image: by its digest, else by the first of its releases in order of names, `head` last.
pub(crate) async fn model_pin_find(db: &mut Connection, repository: RepositoryId, image: &Digest) -> Result<Option<Digest>, DbError> {
    let doing = "find a pinned model";
    let row = query(
        "SELECT model_digest FROM model_pin p WHERE p.repository_id = ?1 AND (p.reference = ?2
             OR EXISTS (SELECT 1 FROM tag t WHERE t.repository_id = ?1 AND t.digest = ?3 AND t.name = p.reference))
         ORDER BY p.reference <> ?2, p.reference = 'head', p.reference LIMIT 1",
    )
    .bind(repository.0)
    .bind(image.to_string())
    .bind(&image.as_bytes()[..])
    .fetch_optional(db)
    .await
    .map_err(failed(doing))?;
    row.map(|row| digest_at(&row, 0)).transpose().map_err(failed(doing))
}
