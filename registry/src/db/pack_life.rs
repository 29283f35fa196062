//! Table `pack`: what becomes of packs after they were stored. A pack that loses objects is not the pack any more that its
//! digest names: it can be pushed again, beside what is left of it. A pack in which no object is found is retired: its bytes
//! stay until whoever looked an object up before is done. Then the bytes go, and the row last.

use layer_format::Digest;

use super::Row;
use super::namespace::NamespaceId;
use super::pack::PackId;
use super::{Connection, DbError, batches, digest_at, failed, query};
use sqlx::AssertSqlSafe;

/// A pack, without its frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackRow {
    pub(crate) id: PackId,
    /// The BLAKE3 of its bytes, if `is_whole`.
    pub(crate) digest: Digest,
    /// Under which the storage keeps it.
    pub(crate) name: Digest,
    pub(crate) size_bytes: u64,
    /// Objects that it was stored with.
    pub(crate) object_count: u64,
    pub(crate) stored_at: i64,
    pub(crate) is_whole: Option<bool>,
    pub(crate) retired_at: Option<i64>,
    pub(crate) scrubbed_at: Option<i64>,
}

const COLUMNS: &str = "id, digest, COALESCE(name, digest), size_bytes, object_count, stored_at, is_whole, retired_at, scrubbed_at";

fn pack_row(row: &Row) -> Result<PackRow, sqlx::Error> {
    let whole: Option<i64> = row.try_get(6)?;
    Ok(PackRow {
        id: PackId(row.try_get(0)?),
        digest: digest_at(row, 1)?,
        name: digest_at(row, 2)?,
        size_bytes: row.try_get::<i64>(3)?.max(0).cast_unsigned(),
        object_count: row.try_get::<i64>(4)?.max(0).cast_unsigned(),
        stored_at: row.try_get(5)?,
        is_whole: whole.map(|whole| whole != 0),
        retired_at: row.try_get(7)?,
        scrubbed_at: row.try_get(8)?,
    })
}

/// All packs of the namespace, oldest first.
pub(crate) async fn pack_list(db: &mut Connection, namespace: NamespaceId) -> Result<Vec<PackRow>, DbError> {
    let doing = "list packs";
    let sql = format!("SELECT {COLUMNS} FROM pack WHERE namespace_id = ? ORDER BY id");
    let rows = query(AssertSqlSafe(sql)).bind(namespace.0).fetch_all(db).await.map_err(failed(doing))?;
    rows.iter().map(pack_row).collect::<Result<_, _>>().map_err(failed(doing))
}

/// The pack that this digest names, if the namespace has it.
pub(crate) async fn pack_by_digest(db: &mut Connection, namespace: NamespaceId, digest: &Digest) -> Result<Option<PackRow>, DbError> {
    let doing = "find a pack";
    let sql = format!("SELECT {COLUMNS} FROM pack WHERE namespace_id = ? AND digest = ?");
    let row = query(AssertSqlSafe(sql)).bind(namespace.0).bind(&digest.as_bytes()[..]).fetch_optional(db).await.map_err(failed(doing))?;
    row.as_ref().map(pack_row).transpose().map_err(failed(doing))
}

/// Makes packs forget their digests, since objects of them are gone. Idempotent.
pub(crate) async fn pack_break(db: &mut Connection, packs: impl IntoIterator<Item = PackId>) -> Result<(), DbError> {
    for pack in packs {
        query("UPDATE pack SET name = COALESCE(name, digest), digest = ?, is_whole = 0 WHERE id = ? AND (is_whole IS NULL OR is_whole <> 0)")
            .bind(random().as_bytes().to_vec())
            .bind(pack.0)
            .execute(&mut *db)
            .await
            .map_err(failed("note that a pack is not whole any more"))?;
    }
    Ok(())
}

/// Retires a pack that no object's row names. Idempotent; says whether it was in use.
pub(crate) async fn pack_retire(db: &mut Connection, pack: PackId, now: i64) -> Result<bool, DbError> {
    pack_break(&mut *db, [pack]).await?;
    let done = query("UPDATE pack SET retired_at = ? WHERE id = ? AND retired_at IS NULL").bind(now).bind(pack.0).execute(db).await;
    Ok(done.map_err(failed("retire a pack"))?.rows_affected() == 1)
}

/// Forgets a retired pack whose bytes are gone. The newest row stays, so that its number is not given again: readers
/// remember packs by number.
pub(crate) async fn pack_delete(db: &mut Connection, pack: PackId) -> Result<bool, DbError> {
    let done = query("DELETE FROM pack WHERE id = ? AND retired_at IS NOT NULL AND id < (SELECT max(id) FROM pack)").bind(pack.0).execute(db).await;
    Ok(done.map_err(failed("forget a pack"))?.rows_affected() == 1)
}

/// Notes that all bytes of the pack were found right.
pub(crate) async fn pack_scrubbed(db: &mut Connection, pack: PackId, now: i64) -> Result<(), DbError> {
    let done = query("UPDATE pack SET scrubbed_at = ? WHERE id = ?").bind(now).bind(pack.0).execute(db).await;
    done.map_err(failed("note that a pack was verified")).map(drop)
}

/// The namespace of a pack.
pub(crate) async fn pack_namespace(db: &mut Connection, pack: PackId) -> Result<Option<NamespaceId>, DbError> {
    let doing = "find a pack";
    let row = query("SELECT namespace_id FROM pack WHERE id = ? AND retired_at IS NULL").bind(pack.0).fetch_optional(db).await.map_err(failed(doing))?;
    Ok(row.map(|row| row.try_get(0)).transpose().map_err(failed(doing))?.map(NamespaceId))
}

/// Those of the objects whose rows name this pack. With their frame's offset and slot.
pub(crate) async fn pack_objects(db: &mut Connection, namespace: NamespaceId, pack: PackId, digests: &[Digest]) -> Result<Vec<(Digest, u32, u16)>, DbError> {
    let doing = "find the objects of a pack";
    let mut found = Vec::new();
    for batch in batches(digests) {
        let query = query("SELECT digest, frame_offset, slot FROM object WHERE namespace_id = ? AND pack_id = ? AND digest IN (?*)")
            .bind(namespace.0)
            .bind(pack.0)
            .bind(&batch);
        for row in query.fetch_all(&mut *db).await.map_err(failed(doing))? {
            found.push(placed(&row).map_err(failed(doing))?);
        }
    }
    Ok(found)
}

/// All objects whose rows name this pack. Looks through all objects of the namespace: for damaged packs, whose own index
/// cannot be used.
pub(crate) async fn pack_objects_all(db: &mut Connection, namespace: NamespaceId, pack: PackId) -> Result<Vec<(Digest, u32, u16)>, DbError> {
    let doing = "find the objects of a pack";
    let rows = query("SELECT digest, frame_offset, slot FROM object WHERE namespace_id = ? AND pack_id = ? ORDER BY frame_offset, slot")
        .bind(namespace.0)
        .bind(pack.0)
        .fetch_all(db)
        .await
        .map_err(failed(doing))?;
    rows.iter().map(placed).collect::<Result<_, _>>().map_err(failed(doing))
}

fn placed(row: &Row) -> Result<(Digest, u32, u16), sqlx::Error> {
    Ok((digest_at(row, 0)?, row.try_get::<i64>(1)? as u32, row.try_get::<i64>(2)? as u16))
}

/// Whether any pack, of whatever namespace, is kept under this name.
pub(crate) async fn pack_name_used(db: &mut Connection, name: &Digest, except: PackId) -> Result<bool, DbError> {
    let row = query("SELECT 1 FROM pack WHERE (name = ?1 OR (name IS NULL AND digest = ?1)) AND id <> ?2 LIMIT 1")
        .bind(&name.as_bytes()[..])
        .bind(except.0)
        .fetch_optional(db)
        .await;
    Ok(row.map_err(failed("find packs by name"))?.is_some())
}

/// Names under which the storage keeps packs: all of them, in no order.
pub(crate) async fn pack_names(db: &mut Connection) -> Result<Vec<Digest>, DbError> {
    let doing = "list packs";
    let rows = query("SELECT COALESCE(name, digest) FROM pack").fetch_all(db).await.map_err(failed(doing))?;
    rows.iter().map(|row| digest_at(row, 0)).collect::<Result<_, _>>().map_err(failed(doing))
}

fn random() -> Digest {
    Digest(rand::random())
}
