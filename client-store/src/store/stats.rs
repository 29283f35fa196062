//! Numbers about a store.

use std::sync::atomic::{AtomicU64, Ordering};

use layer_format::Digest;
use serde::Serialize;

use super::Store;
use super::index::PackOrigin;
use crate::error::StoreError;

/// What this process counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) evicted_packs: AtomicU64,
    pub(super) evicted_bytes: AtomicU64,
}

/// A store in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// Packs.
    pub packs: u64,
    /// Objects that can be found.
    pub objects: u64,
    /// Bytes of packs on disk.
    pub stored_bytes: u64,
    /// Uncompressed bytes of the objects in packs.
    pub plain_bytes: u64,
    /// Of the stored bytes, those of packs made here.
    pub imported_bytes: u64,
    /// Of the stored bytes, those of pulled packs.
    pub pulled_bytes: u64,
    /// Of the stored bytes, those that were streamed.
    pub streamed_bytes: u64,
    /// Bytes of the index on disk.
    pub index_bytes: u64,
    /// Uncompressed bytes that no image needed at the last gc.
    pub dead_bytes: u64,
    /// Images.
    pub images: u64,
    /// Objects found, by this process.
    pub hits_count: u64,
    /// Objects looked for in vain, by this process.
    pub misses_count: u64,
    /// Objects found damaged, by this process.
    pub damaged_count: u64,
    /// Frames decoded, by this process.
    pub decoded_frames_count: u64,
    /// Packs evicted, by this process.
    pub evicted_packs_count: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
}

impl Store {
    /// The names of all objects in packs, or `None` if there are more than `max`.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn digests(&self, max: usize) -> Result<Option<Vec<Digest>>, StoreError> {
        let index = &self.inner.index;
        if index.read(|txn| index.objects.len(txn))? > max as u64 {
            return Ok(None);
        }
        let mut found = Vec::new();
        index.for_each_object(|digest, _| found.push(digest))?;
        Ok(Some(found))
    }

    /// Counts packs, objects and bytes. Reads the table of packs, so some milliseconds at most.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        let inner = &*self.inner;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (objects, images) = inner.index.read(|txn| Ok((inner.index.objects.len(txn)?, inner.index.images.len(txn)?)))?;
        let mut stats = StoreStats {
            objects,
            images,
            index_bytes: std::fs::metadata(inner.layout.index().join("data.mdb")).map_or(0, |meta| meta.len()),
            hits_count: load(&inner.counters.hits),
            misses_count: load(&inner.counters.misses),
            damaged_count: load(&inner.counters.damaged),
            decoded_frames_count: load(&inner.reader.decoded),
            evicted_packs_count: load(&inner.counters.evicted_packs),
            evicted_bytes: load(&inner.counters.evicted_bytes),
            ..StoreStats::default()
        };
        for (_, row) in inner.index.all_packs()? {
            stats.packs += 1;
            stats.stored_bytes += row.len;
            stats.plain_bytes += row.plain;
            stats.dead_bytes += row.dead;
            *match row.origin {
                PackOrigin::Imported => &mut stats.imported_bytes,
                PackOrigin::Pulled => &mut stats.pulled_bytes,
                PackOrigin::Streamed => &mut stats.streamed_bytes,
            } += row.len;
        }
        Ok(stats)
    }
}
