//! What keeps objects alive, one function a table. A collection reads all of them in one snapshot, so that what moves from
//! one table to another is seen. Whoever adds a table that refers to objects adds a function here and a line to
//! `service/gc/roots.rs`.

use layer_format::Digest;

use super::namespace::NamespaceId;
use super::{Connection, DbError, Row, digest_at, failed, query};

/// Rows that are read at a time: manifests have up to 4 MiB.
const PAGE: u32 = 16;

/// Reads the rows of a table that belongs to repositories, page by page, in the order of its key: the first two columns, a
/// repository's number and a digest or the like. Says how many there were.
async fn pages<K>(
    db: &mut Connection,
    sql: &'static str,
    namespace: NamespaceId,
    first: K,
    doing: &'static str,
    mut each: impl FnMut(&Row) -> Result<K, sqlx::Error> + Send,
) -> Result<u64, DbError>
where
    K: Clone + Send,
    super::query::Value<'static>: From<K>,
{
    let (mut count, mut repository, mut after) = (0, 0i64, first);
    loop {
        let rows = query(sql).bind(namespace.0).bind(repository).bind(after.clone()).bind(PAGE).fetch_all(&mut *db).await.map_err(failed(doing))?;
        for row in &rows {
            repository = row.try_get(0).map_err(failed(doing))?;
            after = each(row).map_err(failed(doing))?;
            count += 1;
        }
        if (rows.len() as u32) < PAGE {
            return Ok(count);
        }
    }
}

/// Manifests of images.
pub(crate) async fn root_manifests(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(&[u8]) + Send) -> Result<u64, DbError> {
    let sql = "SELECT m.repository_id, m.digest, m.bytes FROM manifest m JOIN repository r ON r.id = m.repository_id
         WHERE r.namespace_id = ? AND (m.repository_id, m.digest) > (?, ?) ORDER BY m.repository_id, m.digest LIMIT ?";
    let read = |row: &Row| {
        each(row.try_get(2)?);
        row.try_get(1)
    };
    pages(db, sql, namespace, Vec::<u8>::new(), "list images", read).await
}

/// Layers that are the sandboxes of states.
pub(crate) async fn root_states(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(Digest) + Send) -> Result<u64, DbError> {
    let sql = "SELECT s.repository_id, s.digest, s.sandbox_digest FROM state s JOIN repository r ON r.id = s.repository_id
         WHERE r.namespace_id = ? AND (s.repository_id, s.digest) > (?, ?) ORDER BY s.repository_id, s.digest LIMIT ?";
    let read = |row: &Row| {
        each(digest_at(row, 2)?);
        row.try_get(1)
    };
    pages(db, sql, namespace, Vec::<u8>::new(), "list states", read).await
}

/// Blobs of container tools: the recipe of one, or the tree that it is written from.
pub(crate) async fn root_blobs(
    db: &mut Connection,
    namespace: NamespaceId,
    mut each: impl FnMut(Option<&[u8]>, Option<Digest>) + Send,
) -> Result<u64, DbError> {
    let sql = "SELECT b.repository_id, b.digest, b.recipe, b.root FROM oci_blob b JOIN repository r ON r.id = b.repository_id
         WHERE r.namespace_id = ? AND (b.repository_id, b.digest) > (?, ?) AND (b.recipe IS NOT NULL OR b.root IS NOT NULL)
         ORDER BY b.repository_id, b.digest LIMIT ?";
    let read = |row: &Row| {
        each(row.try_get(2)?, row.try_get(3)?);
        row.try_get(1)
    };
    pages(db, sql, namespace, String::new(), "list blobs", read).await
}

/// Blobs that are being pushed: their recipe nodes and chunks so far, as `service/oci/session.rs` writes them.
pub(crate) async fn root_uploads(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(&[u8], &[u8]) + Send) -> Result<u64, DbError> {
    let sql = "SELECT u.repository_id, u.id, u.nodes, u.chunks FROM oci_upload u JOIN repository r ON r.id = u.repository_id
         WHERE r.namespace_id = ? AND (u.repository_id, u.id) > (?, ?) ORDER BY u.repository_id, u.id LIMIT ?";
    let read = |row: &Row| {
        each(row.try_get(2)?, row.try_get(3)?);
        row.try_get(1)
    };
    pages(db, sql, namespace, String::new(), "list uploads", read).await
}

/// Trees of layers of container tools that were taken apart.
pub(crate) async fn root_layers(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(Digest) + Send) -> Result<u64, DbError> {
    let sql = "SELECT namespace_id, blob_digest, root FROM oci_layer
         WHERE namespace_id = ? AND ? >= 0 AND blob_digest > ? ORDER BY blob_digest LIMIT ?";
    let read = |row: &Row| {
        each(digest_at(row, 2)?);
        row.try_get(1)
    };
    pages(db, sql, namespace, String::new(), "list layers", read).await
}

/// What was deleted and can be brought back: kind, content and detail, as `service/trash.rs` writes them.
pub(crate) async fn root_trash(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(&str, &[u8], &str) + Send) -> Result<u64, DbError> {
    let sql = "SELECT t.repository_id, t.id, t.kind, t.content, t.detail FROM trash t JOIN repository r ON r.id = t.repository_id
         WHERE r.namespace_id = ? AND (t.repository_id, t.id) > (?, ?) ORDER BY t.repository_id, t.id LIMIT ?";
    let read = |row: &Row| {
        each(row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
        row.try_get(1)
    };
    pages(db, sql, namespace, 0i64, "list what was deleted", read).await
}

/// What the delta frames of packs are compressed against, of all packs whose bytes are there.
pub(crate) async fn root_bases(db: &mut Connection, namespace: NamespaceId, mut each: impl FnMut(Digest) + Send) -> Result<u64, DbError> {
    let sql = "SELECT pack_id, digest FROM base WHERE namespace_id = ? AND (pack_id, digest) > (?, ?) ORDER BY pack_id, digest LIMIT ?";
    let read = |row: &Row| {
        each(digest_at(row, 1)?);
        row.try_get(1)
    };
    pages(db, sql, namespace, Vec::<u8>::new(), "list what delta frames need", read).await
}

/// A namespace's number and name.
pub(crate) async fn namespace_list(db: &mut Connection) -> Result<Vec<(NamespaceId, String)>, DbError> {
    let doing = "list namespaces";
    let rows = query("SELECT id, name FROM namespace ORDER BY id").fetch_all(db).await.map_err(failed(doing))?;
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
    let of = |sql: &'static str| query(sql).bind(namespace.0);
    let mut found = Vec::new();
    let mut tags: std::collections::HashMap<(i64, Vec<u8>), Vec<String>> = std::collections::HashMap::new();
    let rows = of("SELECT t.repository_id, t.digest, t.name FROM tag t JOIN repository r ON r.id = t.repository_id WHERE r.namespace_id = ? ORDER BY t.name");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        let key = (row.try_get(0).map_err(failed(doing))?, row.try_get(1).map_err(failed(doing))?);
        tags.entry(key).or_default().push(row.try_get(2).map_err(failed(doing))?);
    }
    let rows = of("SELECT r.id, r.name, m.digest, m.bytes FROM manifest m JOIN repository r ON r.id = m.repository_id WHERE r.namespace_id = ?");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        let key = (row.try_get(0).map_err(failed(doing))?, row.try_get(2).map_err(failed(doing))?);
        let (repository, bytes) = (row.try_get(1).map_err(failed(doing))?, row.try_get(3).map_err(failed(doing))?);
        found.push(Rooted::Image { repository, bytes, tags: tags.remove(&key).unwrap_or_default() });
    }
    let rows = of("SELECT r.name, s.bytes FROM state s JOIN repository r ON r.id = s.repository_id WHERE r.namespace_id = ?");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        found.push(Rooted::State { repository: row.try_get(0).map_err(failed(doing))?, bytes: row.try_get(1).map_err(failed(doing))? });
    }
    let rows = of("SELECT r.name, b.digest, b.recipe, b.root FROM oci_blob b JOIN repository r ON r.id = b.repository_id
         WHERE r.namespace_id = ? AND (b.recipe IS NOT NULL OR b.root IS NOT NULL)");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        let has_root = row.try_get::<Option<&[u8]>>(3).map_err(failed(doing))?.is_some();
        let root = has_root.then(|| digest_at(&row, 3)).transpose().map_err(failed(doing))?;
        let read = || Ok(Rooted::Blob { repository: row.try_get(0)?, digest: row.try_get(1)?, recipe: row.try_get(2)?, root });
        found.push(read().map_err(failed(doing))?);
    }
    let mut tags: std::collections::HashMap<(i64, String), Vec<String>> = std::collections::HashMap::new();
    let rows =
        of("SELECT t.repository_id, t.digest, t.name FROM oci_tag t JOIN repository r ON r.id = t.repository_id WHERE r.namespace_id = ? ORDER BY t.name");
    for row in rows.fetch_all(&mut *db).await.map_err(failed(doing))? {
        let key = (row.try_get(0).map_err(failed(doing))?, row.try_get(1).map_err(failed(doing))?);
        tags.entry(key).or_default().push(row.try_get(2).map_err(failed(doing))?);
    }
    let rows =
        of("SELECT r.id, r.name, m.digest, m.media_type, m.bytes FROM oci_manifest m JOIN repository r ON r.id = m.repository_id WHERE r.namespace_id = ?");
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
