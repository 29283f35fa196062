//! Table `pack`: what is stored, and where its frames lie.

use layer_format::Digest;

use super::namespace::NamespaceId;
use super::{Connection, DbError, digest_at, failed, now_ms, query};

/// A pack's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PackId(pub(super) i64);

impl PackId {
    #[cfg(test)]
    pub(crate) fn of(number: i64) -> Self {
        Self(number)
    }

    /// A number that no other pack has.
    pub(crate) fn number(self) -> u64 {
        self.0 as u64
    }
}

/// What the registry remembers of a frame, so that it can pass it on without decompressing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredFrame {
    pub(crate) offset: u32,
    pub(crate) len: u32,
    /// The first half of the BLAKE3 of the encoded frame.
    pub(crate) check: [u8; 16],
    /// Whether it needs bases: then it is not passed on to who has not said that they have them.
    pub(crate) is_delta: bool,
}

impl PackId {
    /// The number of no pack.
    pub(crate) const NONE: Self = Self(0);
}

const STORED_FRAME_LEN: usize = 24;
/// The bit of the length that says that a frame is a delta frame; no frame is so long.
const DELTA_BIT: u32 = 1 << 31;

fn encode(frames: &[StoredFrame]) -> Vec<u8> {
    let mut out = Vec::with_capacity(STORED_FRAME_LEN * frames.len());
    for frame in frames {
        out.extend_from_slice(&frame.offset.to_le_bytes());
        out.extend_from_slice(&(frame.len | if frame.is_delta { DELTA_BIT } else { 0 }).to_le_bytes());
        out.extend_from_slice(&frame.check);
    }
    out
}

fn decode(bytes: &[u8]) -> Vec<StoredFrame> {
    let number = |bytes: &[u8; STORED_FRAME_LEN], at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let one = |bytes: &[u8; STORED_FRAME_LEN]| {
        let mut check = [0; 16];
        check.copy_from_slice(&bytes[8..]);
        let len = number(bytes, 4);
        StoredFrame { offset: number(bytes, 0), len: len & !DELTA_BIT, check, is_delta: len & DELTA_BIT != 0 }
    };
    bytes.as_chunks::<STORED_FRAME_LEN>().0.iter().map(one).collect()
}

/// Records a pack whose bytes are durable, and kept under `name`. `None` if the namespace has it already.
pub(crate) async fn pack_insert(
    db: &mut Connection,
    namespace: NamespaceId,
    digest: &Digest,
    name: &Digest,
    size_bytes: u64,
    object_count: usize,
    frames: &[StoredFrame],
) -> Result<Option<PackId>, DbError> {
    let doing = "record a pack";
    let row = query(
        "INSERT INTO pack (namespace_id, digest, name, is_whole, size_bytes, object_count, frames, stored_at) VALUES (?, ?, ?, 1, ?, ?, ?, ?)
         ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(namespace.0)
    .bind(&digest.as_bytes()[..])
    .bind(&name.as_bytes()[..])
    .bind(size_bytes as i64)
    .bind(object_count as i64)
    .bind(encode(frames))
    .bind(now_ms())
    .fetch_optional(db)
    .await
    .map_err(failed(doing))?;
    row.map(|row| row.try_get(0)).transpose().map(|id| id.map(PackId)).map_err(failed(doing))
}

/// The name under which the storage keeps the pack, its namespace, and its frames.
pub(crate) async fn pack_get(db: &mut Connection, id: PackId) -> Result<Option<(Digest, NamespaceId, Vec<StoredFrame>)>, DbError> {
    let doing = "read a pack's frames";
    let row = query("SELECT COALESCE(name, digest), frames, namespace_id FROM pack WHERE id = ?").bind(id.0).fetch_optional(db).await.map_err(failed(doing))?;
    let Some(row) = row else { return Ok(None) };
    let frames: &[u8] = row.try_get(1).map_err(failed(doing))?;
    let namespace = row.try_get(2).map(NamespaceId).map_err(failed(doing))?;
    Ok(Some((digest_at(&row, 0).map_err(failed(doing))?, namespace, decode(frames))))
}

/// Sums over all packs in use, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PackTotals {
    pub(crate) packs: u64,
    pub(crate) bytes: u64,
    pub(crate) objects: u64,
}

/// How much is stored.
pub(crate) async fn pack_totals(db: &mut Connection) -> Result<PackTotals, DbError> {
    let doing = "count packs";
    let row = query(
        "SELECT count(*), CAST(coalesce(sum(size_bytes), 0) AS BIGINT), CAST(coalesce(sum(object_count), 0) AS BIGINT) FROM pack WHERE retired_at IS NULL",
    )
    .fetch_one(db)
    .await
    .map_err(failed(doing))?;
    let number = |at: usize| row.try_get::<i64>(at).map(|n| n as u64).map_err(failed(doing));
    Ok(PackTotals { packs: number(0)?, bytes: number(1)?, objects: number(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let frames =
            [StoredFrame { offset: 16, len: 70_000, check: [7; 16], is_delta: false }, StoredFrame { offset: 70_016, len: 1, check: [9; 16], is_delta: true }];
        assert_eq!(decode(&encode(&frames)), frames);
    }
}
