//! Table `object`: where a namespace finds an object. Every query is bound to one namespace.

use std::collections::HashMap;

use layer_format::Digest;
use layer_format::pack::PackIndex;
use sqlx::{AssertSqlSafe, Row};

use super::namespace::NamespaceId;
use super::pack::PackId;
use super::{BATCHES, Connection, DbError, batches, digest_at, failed, marks};

/// A frame of a pack: what is read to get an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FramePlace {
    pub(crate) pack: PackId,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) frame: FramePlace,
    /// Position in the frame.
    pub(crate) slot: u16,
    /// Uncompressed bytes of the object.
    pub(crate) len: u32,
}

/// Finds many objects. Those that the namespace does not have are left out. About a microsecond an object.
pub(crate) async fn object_locate(db: &mut Connection, namespace: NamespaceId, digests: &[Digest]) -> Result<HashMap<Digest, Location>, DbError> {
    let doing = "find objects";
    let mut found = HashMap::with_capacity(digests.len());
    for batch in batches(digests) {
        let sql = format!("SELECT digest, pack_id, frame_offset, frame_len, slot, len FROM object WHERE namespace_id = ? AND digest IN {}", marks(batch.len()));
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(namespace.0);
        for digest in &batch {
            query = query.bind(digest.as_bytes().to_vec());
        }
        for row in query.fetch_all(&mut *db).await.map_err(failed(doing))? {
            let number = |at: usize| row.try_get::<i64, _>(at).map_err(failed(doing));
            let frame = FramePlace { pack: PackId(number(1)?), offset: number(2)? as u32, len: number(3)? as u32 };
            let location = Location { frame, slot: number(4)? as u16, len: number(5)? as u32 };
            found.insert(digest_at(&row, 0).map_err(failed(doing))?, location);
        }
    }
    Ok(found)
}

/// The lengths of those of the objects that the namespace has.
pub(crate) async fn object_lens(db: &mut Connection, namespace: NamespaceId, digests: &[Digest]) -> Result<HashMap<Digest, u32>, DbError> {
    let doing = "look for objects";
    let mut found = HashMap::with_capacity(digests.len());
    for batch in batches(digests) {
        let sql = format!("SELECT digest, len FROM object WHERE namespace_id = ? AND digest IN {}", marks(batch.len()));
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(namespace.0);
        for digest in &batch {
            query = query.bind(digest.as_bytes().to_vec());
        }
        for row in query.fetch_all(&mut *db).await.map_err(failed(doing))? {
            let len: i64 = row.try_get(1).map_err(failed(doing))?;
            found.insert(digest_at(&row, 0).map_err(failed(doing))?, len as u32);
        }
    }
    Ok(found)
}

/// Records the objects of a pack. What another pack of the namespace holds already stays where it is.
pub(crate) async fn object_insert_pack(db: &mut Connection, namespace: NamespaceId, pack: PackId, index: &PackIndex) -> Result<(), DbError> {
    for objects in index.objects.chunks(BATCHES[BATCHES.len() - 1]) {
        let row = format!("({}, ?, {}, ?, ?, ?, ?)", namespace.0, pack.0);
        let rows = vec![row; objects.len()].join(",");
        let sql = format!("INSERT INTO object (namespace_id, digest, pack_id, frame_offset, frame_len, slot, len) VALUES {rows} ON CONFLICT DO NOTHING");
        // The text names the pack, so it is of no use to the next one.
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(objects.len() == BATCHES[BATCHES.len() - 1] && index.objects.len() > 2 * objects.len());
        for object in objects {
            let Some(frame) = index.frames.get(object.frame as usize) else { continue };
            query = query.bind(object.digest.as_bytes().to_vec()).bind(frame.offset as i64).bind(frame.len).bind(object.slot).bind(object.len);
        }
        query.execute(&mut *db).await.map_err(failed("record objects"))?;
    }
    Ok(())
}
