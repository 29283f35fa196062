//! Tables `oci_image`, `oci_layer` and `oci_tar`: what of the OCI side is the same as what of ours.

use layer_format::Digest;
use layer_format::oci::OciDigest;

use super::namespace::NamespaceId;
use super::oci_manifest::oci_digest_at;
use super::repository::RepositoryId;
use super::{Connection, DbError, Row, digest_at, failed, query};

/// That an image and an OCI manifest are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageLink {
    pub(crate) manifest: OciDigest,
    pub(crate) image: Digest,
    /// Whether the manifest was made of the image, rather than the other way round.
    pub(crate) rendered: bool,
}

/// A layer that was taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnpackedLayer {
    pub(crate) root: Digest,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

fn link(row: &Row) -> Result<ImageLink, sqlx::Error> {
    Ok(ImageLink { manifest: oci_digest_at(row, 0)?, image: digest_at(row, 1)?, rendered: row.try_get(2)? })
}

/// Records a link. The last one of a manifest counts.
pub(crate) async fn oci_image_put(db: &mut Connection, repository: RepositoryId, link: &ImageLink) -> Result<(), DbError> {
    query(
        "INSERT INTO oci_image (repository_id, manifest_digest, image_digest, rendered) VALUES (?, ?, ?, ?)
         ON CONFLICT (repository_id, manifest_digest) DO UPDATE SET image_digest = excluded.image_digest, rendered = excluded.rendered",
    )
    .bind(repository.0)
    .bind(link.manifest.as_str())
    .bind(&link.image.as_bytes()[..])
    .bind(link.rendered)
    .execute(db)
    .await
    .map_err(failed("record an image of a manifest"))?;
    Ok(())
}

/// The image of a manifest.
pub(crate) async fn oci_image_of(db: &mut Connection, repository: RepositoryId, manifest: &OciDigest) -> Result<Option<ImageLink>, DbError> {
    let doing = "find the image of a manifest";
    let row = query("SELECT manifest_digest, image_digest, rendered FROM oci_image WHERE repository_id = ? AND manifest_digest = ?")
        .bind(repository.0)
        .bind(manifest.as_str())
        .fetch_optional(db)
        .await;
    row.map_err(failed(doing))?.as_ref().map(link).transpose().map_err(failed(doing))
}

/// The manifests of an image: one that it was made of comes first.
pub(crate) async fn oci_image_manifests(db: &mut Connection, repository: RepositoryId, image: &Digest) -> Result<Vec<ImageLink>, DbError> {
    let doing = "find the manifests of an image";
    let rows = query("SELECT manifest_digest, image_digest, rendered FROM oci_image WHERE repository_id = ? AND image_digest = ? ORDER BY rendered")
        .bind(repository.0)
        .bind(&image.as_bytes()[..])
        .fetch_all(db)
        .await;
    rows.map_err(failed(doing))?.iter().map(link).collect::<Result<_, _>>().map_err(failed(doing))
}

/// The image that a release names, and when it was made to.
pub(crate) async fn release_moved(db: &mut Connection, repository: RepositoryId, name: &str) -> Result<Option<(Digest, i64)>, DbError> {
    let doing = "find a release";
    let row = query("SELECT digest, moved_at FROM tag WHERE repository_id = ? AND name = ?").bind(repository.0).bind(name).fetch_optional(db).await;
    let parse = |row: Row| Ok((digest_at(&row, 0)?, row.try_get(1)?));
    row.map_err(failed(doing))?.map(parse).transpose().map_err(failed(doing))
}

/// Remembers a layer that was taken apart. Idempotent.
pub(crate) async fn oci_layer_put(db: &mut Connection, namespace: NamespaceId, blob: &OciDigest, layer: &UnpackedLayer) -> Result<(), DbError> {
    query("INSERT INTO oci_layer (namespace_id, blob_digest, root, entries, bytes) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING")
        .bind(namespace.0)
        .bind(blob.as_str())
        .bind(&layer.root.as_bytes()[..])
        .bind(layer.entries as i64)
        .bind(layer.bytes as i64)
        .execute(db)
        .await
        .map_err(failed("remember a layer"))?;
    Ok(())
}

/// The layer, if it was taken apart in this namespace.
pub(crate) async fn oci_layer_get(db: &mut Connection, namespace: NamespaceId, blob: &OciDigest) -> Result<Option<UnpackedLayer>, DbError> {
    let doing = "find a layer";
    let row = query("SELECT root, entries, bytes FROM oci_layer WHERE namespace_id = ? AND blob_digest = ?")
        .bind(namespace.0)
        .bind(blob.as_str())
        .fetch_optional(db)
        .await;
    let parse = |row: Row| Ok(UnpackedLayer { root: digest_at(&row, 0)?, entries: row.try_get::<i64>(1)? as u64, bytes: row.try_get::<i64>(2)? as u64 });
    row.map_err(failed(doing))?.map(parse).transpose().map_err(failed(doing))
}

/// Remembers digest and length of a tree, written as a tar. Idempotent.
pub(crate) async fn oci_tar_put(db: &mut Connection, namespace: NamespaceId, root: &Digest, digest: &OciDigest, size_bytes: u64) -> Result<(), DbError> {
    query("INSERT INTO oci_tar (namespace_id, root, digest, size_bytes) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING")
        .bind(namespace.0)
        .bind(&root.as_bytes()[..])
        .bind(digest.as_str())
        .bind(size_bytes as i64)
        .execute(db)
        .await
        .map_err(failed("remember a tar"))?;
    Ok(())
}

/// Digest and length of a tree, written as a tar, if it was written once.
pub(crate) async fn oci_tar_get(db: &mut Connection, namespace: NamespaceId, root: &Digest) -> Result<Option<(OciDigest, u64)>, DbError> {
    let doing = "find a tar";
    let row = query("SELECT digest, size_bytes FROM oci_tar WHERE namespace_id = ? AND root = ?")
        .bind(namespace.0)
        .bind(&root.as_bytes()[..])
        .fetch_optional(db)
        .await;
    let parse = |row: Row| Ok((oci_digest_at(&row, 0)?, row.try_get::<i64>(1)? as u64));
    row.map_err(failed(doing))?.map(parse).transpose().map_err(failed(doing))
}
