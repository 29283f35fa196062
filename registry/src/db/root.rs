//! What keeps objects alive, one function a table. A collection reads all of them in one snapshot, so that what moves from
//! one table to another is seen. Whoever adds a table that refers to objects adds a function here and a line to
//! `service/gc/roots.rs`.

use futures::TryStreamExt;
use layer_format::Digest;
use sqlx::Row;

use super::namespace::NamespaceId;
use super::{Connection, DbError, digest_at, failed};

/// Manifests of images.
pub(crate) async fn root_manifests(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(&[u8]) + Send) -> Result<u64, DbError> {
    let doing = "list images";
    let mut rows =
        sqlx::query("SELECT m.bytes FROM manifest m JOIN repository r ON r.id = m.repository_id WHERE r.namespace_id = ?").bind(namespace.0).fetch(db);
    let mut count = 0;
    while let Some(row) = rows.try_next().await.map_err(failed(doing))? {
        each(row.try_get(0).map_err(failed(doing))?);
        count += 1;
    }
    Ok(count)
}

/// Layers that are the sandboxes of states.
pub(crate) async fn root_states(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(Digest) + Send) -> Result<u64, DbError> {
    let doing = "list states";
    let mut rows =
        sqlx::query("SELECT s.sandbox_digest FROM state s JOIN repository r ON r.id = s.repository_id WHERE r.namespace_id = ?").bind(namespace.0).fetch(db);
    let mut count = 0;
    while let Some(row) = rows.try_next().await.map_err(failed(doing))? {
        each(digest_at(&row, 0).map_err(failed(doing))?);
        count += 1;
    }
    Ok(count)
}

/// Blobs of container tools: the recipe of one, or the tree that it is written from.
pub(crate) async fn root_blobs(
    db: &mut Connection,
    namespace: NamespaceId,
    mut each: impl FnMut(Option<&[u8]>, Option<Digest>) + Send,
) -> Result<u64, DbError> {
    let doing = "list blobs";
    let mut rows = sqlx::query(
        "SELECT b.recipe, b.root FROM oci_blob b JOIN repository r ON r.id = b.repository_id
         WHERE r.namespace_id = ? AND (b.recipe IS NOT NULL OR b.root IS NOT NULL)",
    )
    .bind(namespace.0)
    .fetch(db);
    let mut count = 0;
    while let Some(row) = rows.try_next().await.map_err(failed(doing))? {
        let has_root = row.try_get::<Option<&[u8]>, _>(1).map_err(failed(doing))?.is_some();
        let root = has_root.then(|| digest_at(&row, 1)).transpose().map_err(failed(doing))?;
        each(row.try_get(0).map_err(failed(doing))?, root);
        count += 1;
    }
    Ok(count)
}

/// Blobs that are being pushed: their recipe nodes and chunks so far, as `service/oci/session.rs` writes them.
pub(crate) async fn root_uploads(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(&[u8], &[u8]) + Send) -> Result<u64, DbError> {
    let doing = "list uploads";
    let mut rows = sqlx::query("SELECT u.nodes, u.chunks FROM oci_upload u JOIN repository r ON r.id = u.repository_id WHERE r.namespace_id = ?")
        .bind(namespace.0)
        .fetch(db);
    let mut count = 0;
    while let Some(row) = rows.try_next().await.map_err(failed(doing))? {
        each(row.try_get(0).map_err(failed(doing))?, row.try_get(1).map_err(failed(doing))?);
        count += 1;
    }
    Ok(count)
}

/// Trees of layers of container tools that were taken apart.
pub(crate) async fn root_layers(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(Digest) + Send) -> Result<u64, DbError> {
    let doing = "list layers";
    let mut rows = sqlx::query("SELECT root FROM oci_layer WHERE namespace_id = ?").bind(namespace.0).fetch(db);
    let mut count = 0;
    while let Some(row) = rows.try_next().await.map_err(failed(doing))? {
        each(digest_at(&row, 0).map_err(failed(doing))?);
        count += 1;
    }
    Ok(count)
}

/// What was deleted and can be brought back: kind, content and detail, as `service/trash.rs` writes them.
pub(crate) async fn root_trash(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(&str, &[u8], &str) + Send) -> Result<u64, DbError> {
    let doing = "list what was deleted";
    let mut rows = sqlx::query("SELECT t.kind, t.content, t.detail FROM trash t JOIN repository r ON r.id = t.repository_id WHERE r.namespace_id = ?")
        .bind(namespace.0)
        .fetch(db);
    let mut count = 0;
    while let Some(row) = rows.try_next().await.map_err(failed(doing))? {
        let (kind, detail): (&str, &str) = (row.try_get(0).map_err(failed(doing))?, row.try_get(2).map_err(failed(doing))?);
        each(kind, row.try_get(1).map_err(failed(doing))?, detail);
        count += 1;
    }
    Ok(count)
}

/// A namespace's number and name.
pub(crate) async fn namespace_list(db: &mut Connection) -> Result<Vec<(NamespaceId, String)>, DbError> {
    let doing = "list namespaces";
    let rows = sqlx::query("SELECT id, name FROM namespace ORDER BY id").fetch_all(db).await.map_err(failed(doing))?;
    rows.iter().map(|row| Ok((NamespaceId(row.try_get(0)?), row.try_get(1)?))).collect::<Result<_, sqlx::Error>>().map_err(failed(doing))
}

/// Something visible that needs objects, with its repository's name: for reports.
#[derive(Clone, Debug)]
pub(crate) enum Rooted {
    /// An image and its releases.
    Image { repository: String, bytes: Vec<u8>, tags: Vec<String> },
    /// A state.
    State { repository: String, bytes: Vec<u8> },
    /// A blob of container tools.
    Blob { repository: String, digest: String, recipe: Option<Vec<u8>>, root: Option<Digest> },
    /// A manifest of container tools and its tags.
    OciManifest { repository: String, digest: String, media_type: String, bytes: Vec<u8>, tags: Vec<String> },
}

/// All that is visible in the namespace; manifests of container tools after the blobs.
pub(crate) async fn rooted_list(db: &mut Connection, namespace: NamespaceId) -> Result<Vec<Rooted>, DbError> {
    let doing = "list what needs objects";
    let query = |sql: &'static str| sqlx::query(sql).bind(namespace.0);
    let mut found = Vec::new();
    let mut tags: std::collections::HashMap<(i64, Vec<u8>), Vec<String>> = std::collections::HashMap::new();
    let rows =
        query("SELECT t.repository_id, t.digest, t.name FROM tag t JOIN repository r ON r.id = t.repository_id WHERE r.namespace_id = ? ORDER BY t.name");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        let key = (row.try_get(0).map_err(failed(doing))?, row.try_get(1).map_err(failed(doing))?);
        tags.entry(key).or_default().push(row.try_get(2).map_err(failed(doing))?);
    }
    let rows = query("SELECT r.id, r.name, m.digest, m.bytes FROM manifest m JOIN repository r ON r.id = m.repository_id WHERE r.namespace_id = ?");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        let key = (row.try_get(0).map_err(failed(doing))?, row.try_get(2).map_err(failed(doing))?);
        let (repository, bytes) = (row.try_get(1).map_err(failed(doing))?, row.try_get(3).map_err(failed(doing))?);
        found.push(Rooted::Image { repository, bytes, tags: tags.remove(&key).unwrap_or_default() });
    }
    let rows = query("SELECT r.name, s.bytes FROM state s JOIN repository r ON r.id = s.repository_id WHERE r.namespace_id = ?");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        found.push(Rooted::State { repository: row.try_get(0).map_err(failed(doing))?, bytes: row.try_get(1).map_err(failed(doing))? });
    }
    let rows = query(
        "SELECT r.name, b.digest, b.recipe, b.root FROM oci_blob b JOIN repository r ON r.id = b.repository_id
         WHERE r.namespace_id = ? AND (b.recipe IS NOT NULL OR b.root IS NOT NULL)",
    );
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        let has_root = row.try_get::<Option<&[u8]>, _>(3).map_err(failed(doing))?.is_some();
        let root = has_root.then(|| digest_at(&row, 3)).transpose().map_err(failed(doing))?;
        let read = || Ok(Rooted::Blob { repository: row.try_get(0)?, digest: row.try_get(1)?, recipe: row.try_get(2)?, root });
        found.push(read().map_err(failed(doing))?);
    }
    let mut tags: std::collections::HashMap<(i64, String), Vec<String>> = std::collections::HashMap::new();
    let rows =
        query("SELECT t.repository_id, t.digest, t.name FROM oci_tag t JOIN repository r ON r.id = t.repository_id WHERE r.namespace_id = ? ORDER BY t.name");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        let key = (row.try_get(0).map_err(failed(doing))?, row.try_get(1).map_err(failed(doing))?);
        tags.entry(key).or_default().push(row.try_get(2).map_err(failed(doing))?);
    }
    let rows =
        query("SELECT r.id, r.name, m.digest, m.media_type, m.bytes FROM oci_manifest m JOIN repository r ON r.id = m.repository_id WHERE r.namespace_id = ?");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        let digest: String = row.try_get(2).map_err(failed(doing))?;
        let key = (row.try_get(0).map_err(failed(doing))?, digest.clone());
        let read = || {
            let (repository, media_type, bytes) = (row.try_get(1)?, row.try_get(3)?, row.try_get(4)?);
            Ok(Rooted::OciManifest { repository, digest, media_type, bytes, tags: tags.remove(&key).unwrap_or_default() })
        };
        found.push(read().map_err(failed(doing))?);
    }
    Ok(found)
}
