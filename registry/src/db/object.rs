//! Table `object`: where a namespace finds an object. Every query is bound to one namespace.

use std::collections::HashMap;

use layer_format::Digest;
use layer_format::pack::PackIndex;
use sqlx::AssertSqlSafe;

use super::namespace::NamespaceId;
use super::pack::PackId;
use super::{BATCHES, Connection, DbError, Dialect, batches, digest_at, failed, query};

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
        let query = query("SELECT digest, pack_id, frame_offset, frame_len, slot, len FROM object WHERE namespace_id = ? AND digest IN (?*)");
        for row in query.bind(namespace.0).bind(&batch).fetch_all(&mut *db).await.map_err(failed(doing))? {
            let number = |at: usize| row.try_get::<i64>(at).map_err(failed(doing));
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
        let query = query("SELECT digest, len FROM object WHERE namespace_id = ? AND digest IN (?*)");
        for row in query.bind(namespace.0).bind(&batch).fetch_all(&mut *db).await.map_err(failed(doing))? {
            let len: i64 = row.try_get(1).map_err(failed(doing))?;
            found.insert(digest_at(&row, 0).map_err(failed(doing))?, len as u32);
        }
    }
    Ok(found)
}

/// Records the objects of a pack. What another pack of the namespace holds already stays where it is.
pub(crate) async fn object_insert_pack(db: &mut Connection, namespace: NamespaceId, pack: PackId, index: &PackIndex) -> Result<(), DbError> {
    let mut objects: Vec<(Digest, [i64; 4])> = Vec::with_capacity(index.objects.len());
    for object in &index.objects {
        let Some(frame) = index.frames.get(object.frame as usize) else { continue };
        objects.push((object.digest, [frame.offset as i64, frame.len.into(), object.slot.into(), object.len.into()]));
    }
    // In one order by all, so that two packs with the same objects wait for each other and not in a circle. The slot of the
    // first of several equal ones counts, as the sort is stable.
    objects.sort_by_key(|(digest, _)| *digest);
    match db.dialect() {
        Dialect::Sqlite => insert_rows(db, namespace, pack, &objects).await,
        Dialect::Postgres => insert_arrays(db, namespace, pack, &objects).await,
    }
}

async fn insert_rows(db: &mut Connection, namespace: NamespaceId, pack: PackId, all: &[(Digest, [i64; 4])]) -> Result<(), DbError> {
    let most = BATCHES[BATCHES.len() - 1];
    for objects in all.chunks(most) {
        let row = format!("({}, ?, {}, ?, ?, ?, ?)", namespace.0, pack.0);
        let rows = vec![row; objects.len()].join(",");
        let sql = format!("INSERT INTO object (namespace_id, digest, pack_id, frame_offset, frame_len, slot, len) VALUES {rows} ON CONFLICT DO NOTHING");
        // The text names the pack, so it is of no use to the next one.
        let mut query = query(AssertSqlSafe(sql)).persistent(objects.len() == most && all.len() > 2 * objects.len());
        for (digest, numbers) in objects {
            query = numbers.iter().fold(query.bind(digest), |query, number| query.bind(*number));
        }
        query.execute(&mut *db).await.map_err(failed("record objects"))?;
    }
    Ok(())
}

async fn insert_arrays(db: &mut Connection, namespace: NamespaceId, pack: PackId, all: &[(Digest, [i64; 4])]) -> Result<(), DbError> {
    for objects in all.chunks(8 * BATCHES[BATCHES.len() - 1]) {
        let column = |at: usize| objects.iter().map(|(_, numbers)| numbers[at]).collect::<Vec<i64>>();
        let digests: Vec<&[u8]> = objects.iter().map(|(digest, _)| &digest.0[..]).collect();
        query(
            "INSERT INTO object (namespace_id, digest, pack_id, frame_offset, frame_len, slot, len)
             SELECT ?, digest, ?, frame_offset, frame_len, slot, len
             FROM unnest(?::bytea[], ?::bigint[], ?::bigint[], ?::bigint[], ?::bigint[]) AS new (digest, frame_offset, frame_len, slot, len)
             ON CONFLICT DO NOTHING",
        )
        .bind(namespace.0)
        .bind(pack.0)
        .bind(digests)
        .bind(column(0))
        .bind(column(1))
        .bind(column(2))
        .bind(column(3))
        .execute(&mut *db)
        .await
        .map_err(failed("record objects"))?;
    }
    Ok(())
}
