//! Table `image_model`: which model launches of an image get, and what is being learned beside it.

use layer_format::Digest;

use super::repository::RepositoryId;
use super::{Connection, DbError, Row, digest_at, failed, now_ms, query};

/// How many images of a repository have models of their own; beyond, the one that learned longest ago has none any more.
const KEPT: i64 = 32;

/// What is known of an image's models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageModel {
    /// What launches get.
    pub(crate) served: Option<Digest>,
    /// Bytes of the model that did not do better so far, and that learns on.
    pub(crate) candidate: Option<Vec<u8>>,
    /// How many rounds that has lost.
    pub(crate) lost_rounds: u32,
    /// The image whose model it was made of.
    pub(crate) carried_from: Option<Digest>,
    /// As read, for [`image_model_set`]; 0 if there is no row.
    pub(crate) revision: i64,
}

fn optional_digest(row: &Row, column: usize) -> Result<Option<Digest>, sqlx::Error> {
    let is_there = row.try_get::<Option<&[u8]>>(column)?.is_some();
    is_there.then(|| digest_at(row, column)).transpose()
}

/// The image's models, if it has any.
pub(crate) async fn image_model_get(db: &mut Connection, repository: RepositoryId, image: &Digest) -> Result<Option<ImageModel>, DbError> {
    let doing = "read an image's models";
    let row = query("SELECT served_digest, candidate, lost_rounds, carried_from, revision FROM image_model WHERE repository_id = ? AND image_digest = ?")
        .bind(repository.0)
        .bind(&image.as_bytes()[..])
        .fetch_optional(db)
        .await
        .map_err(failed(doing))?;
    let read = |row: Row| {
        let lost: i64 = row.try_get(2)?;
        Ok(ImageModel {
            served: optional_digest(&row, 0)?,
            candidate: row.try_get(1)?,
            lost_rounds: u32::try_from(lost).unwrap_or(u32::MAX),
            carried_from: optional_digest(&row, 3)?,
            revision: row.try_get(4)?,
        })
    };
    row.map(read).transpose().map_err(failed(doing))
}

/// The model that launches of the image get, without reading more.
pub(crate) async fn image_model_served(db: &mut Connection, repository: RepositoryId, image: &Digest) -> Result<Option<Digest>, DbError> {
    let doing = "find an image's model";
    let row = query("SELECT served_digest FROM image_model WHERE repository_id = ? AND image_digest = ?")
        .bind(repository.0)
        .bind(&image.as_bytes()[..])
        .fetch_optional(db)
        .await
        .map_err(failed(doing))?;
    row.map(|row| optional_digest(&row, 0)).transpose().map(Option::flatten).map_err(failed(doing))
}

/// Writes what was read and changed; says whether nobody else wrote meanwhile: if not, nothing is written.
pub(crate) async fn image_model_set(db: &mut Connection, repository: RepositoryId, image: &Digest, model: &ImageModel) -> Result<bool, DbError> {
    let doing = "keep an image's models";
    let done = query(
        "INSERT INTO image_model (repository_id, image_digest, served_digest, candidate, lost_rounds, carried_from, revision, learned_at)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 + 1, ?8
         WHERE ?7 = 0 OR EXISTS (SELECT 1 FROM image_model WHERE repository_id = ?1 AND image_digest = ?2)
         ON CONFLICT (repository_id, image_digest) DO UPDATE SET served_digest = excluded.served_digest, candidate = excluded.candidate,
             lost_rounds = excluded.lost_rounds, carried_from = excluded.carried_from, revision = excluded.revision, learned_at = excluded.learned_at
         WHERE image_model.revision = ?7",
    )
    .bind(repository.0)
    .bind(&image.as_bytes()[..])
    .bind(model.served.map(|digest| digest.as_bytes().to_vec()))
    .bind(model.candidate.as_deref())
    .bind(i64::from(model.lost_rounds))
    .bind(model.carried_from.map(|digest| digest.as_bytes().to_vec()))
    .bind(model.revision)
    .bind(now_ms())
    .execute(&mut *db)
    .await
    .map_err(failed(doing))?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    query(
        "DELETE FROM image_model WHERE repository_id = ?1 AND (
             image_digest NOT IN (SELECT image_digest FROM image_model WHERE repository_id = ?1 ORDER BY learned_at DESC, image_digest LIMIT ?2)
             OR NOT EXISTS (SELECT 1 FROM manifest m WHERE m.repository_id = ?1 AND m.digest = image_model.image_digest))",
    )
    .bind(repository.0)
    .bind(KEPT)
    .execute(db)
    .await
    .map_err(failed(doing))?;
    Ok(true)
}

/// Forgets the models of all images of the repository. Says how many had one.
pub(crate) async fn image_model_clear(db: &mut Connection, repository: RepositoryId) -> Result<u64, DbError> {
    let done = query("DELETE FROM image_model WHERE repository_id = ?").bind(repository.0).execute(db).await;
    Ok(done.map_err(failed("forget the models of images"))?.rows_affected())
}
