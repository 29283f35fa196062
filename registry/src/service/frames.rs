//! Decompressed frames, shared by all requests of the process: an LRU bounded in bytes. Requests that want the same
//! frame at the same time wait for one read. What is in a frame is not verified: whoever takes an object of it hashes
//! the object.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use layer_format::FormatError;
use layer_format::frame::Frame;
use lru::LruCache;
use parking_lot::Mutex;

use super::cache::SharedLru;
use crate::blob_storage::{BlobStorage, StorageError, pack_key};
use crate::db::object::FramePlace;
use crate::db::pack::{PackId, StoredFrame, pack_get};
use crate::db::{Db, DbError};
use crate::metrics::Metrics;

/// Why a frame, or an object of it, could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The pack or part of it is gone.
    #[error("the stored bytes are not there")]
    Gone(#[source] Option<StorageError>),
    /// The stored bytes are not a frame.
    #[error("a stored frame is damaged")]
    Damaged(#[source] FormatError),
    /// The storage does not answer.
    #[error("the storage failed")]
    Storage(#[source] StorageError),
    /// The database does not answer.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The server is stopping.
    #[error("a background task was cancelled")]
    Cancelled,
}

impl ReadError {
    /// Whether the object is lost, rather than out of reach for now.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Damaged(_))
    }
}

impl From<StorageError> for ReadError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::NotFound { .. } => Self::Gone(Some(error)),
            error => Self::Storage(error),
        }
    }
}

/// A pack's place in the storage and its frames.
#[derive(Debug)]
pub(crate) struct StoredPack {
    key: String,
    frames: Vec<StoredFrame>,
}

impl StoredPack {
    fn check(&self, offset: u32) -> Option<[u8; 16]> {
        let at = self.frames.binary_search_by_key(&offset, |frame| frame.offset).ok()?;
        self.frames.get(at).map(|frame| frame.check)
    }
}

/// Reads frames.
#[derive(Debug)]
pub(crate) struct Frames {
    db: Db,
    storage: Arc<dyn BlobStorage>,
    metrics: Arc<Metrics>,
    packs: Mutex<LruCache<PackId, Arc<StoredPack>>>,
    cache: SharedLru<FramePlace, Frame>,
}

/// Packs whose frame tables are kept: about 8 KiB each.
const KEPT_PACKS: std::num::NonZeroUsize = std::num::NonZeroUsize::new(2048).unwrap();

impl Frames {
    pub(crate) fn new(db: Db, storage: Arc<dyn BlobStorage>, metrics: Arc<Metrics>, max_bytes: u64) -> Self {
        Self { db, storage, metrics, packs: Mutex::new(LruCache::new(KEPT_PACKS)), cache: SharedLru::new(max_bytes) }
    }

    async fn pack(&self, id: PackId) -> Result<Arc<StoredPack>, ReadError> {
        let cached = self.packs.lock().get(&id).cloned();
        if let Some(pack) = cached {
            return Ok(pack);
        }
        let mut db = self.db.read().await?;
        let (digest, frames) = pack_get(&mut db, id).await?.ok_or(ReadError::Gone(None))?;
        let pack = Arc::new(StoredPack { key: pack_key(&digest), frames });
        self.packs.lock().put(id, Arc::clone(&pack));
        Ok(pack)
    }

    /// The frame as it is stored, or `None` if its bytes are not those that were stored.
    pub(crate) async fn encoded(&self, place: FramePlace) -> Result<Option<Bytes>, ReadError> {
        let pack = self.pack(place.pack).await?;
        let bytes = self.read(&pack, place).await?;
        let Some(check) = pack.check(place.offset) else { return Ok(None) };
        let work = tokio::task::spawn_blocking(move || (blake3::hash(&bytes).as_bytes()[..16] == check).then_some(bytes));
        work.await.map_err(|_| ReadError::Cancelled)
    }

    async fn read(&self, pack: &StoredPack, place: FramePlace) -> Result<Bytes, ReadError> {
        let range = u64::from(place.offset)..u64::from(place.offset) + u64::from(place.len);
        self.metrics.storage_read_bytes.fetch_add(place.len.into(), Ordering::Relaxed);
        let read = self.storage.read(&pack.key, range.clone()).await;
        if self.storage.copies_bytes().is_none() {
            return Ok(read?);
        }
        let is_good = match (&read, pack.check(place.offset)) {
            (Ok(bytes), Some(check)) => {
                let bytes = bytes.clone();
                tokio::task::spawn_blocking(move || blake3::hash(&bytes).as_bytes()[..16] == check).await.map_err(|_| ReadError::Cancelled)?
            }
            (Err(error), _) => !matches!(error, StorageError::NotFound { .. } | StorageError::Io { .. }),
            (Ok(_), None) => true,
        };
        if is_good {
            return Ok(read?);
        }
        // What is stored may be better than its copy here.
        self.storage.forget(&pack.key);
        Ok(self.storage.read(&pack.key, range).await?)
    }

    /// The frame, decompressed.
    pub(crate) async fn frame(&self, place: FramePlace) -> Result<Arc<Frame>, ReadError> {
        self.metrics.frame_reads.fetch_add(1, Ordering::Relaxed);
        let load = async {
            let pack = self.pack(place.pack).await?;
            let bytes = self.read(&pack, place).await?;
            self.metrics.frame_cache_misses.fetch_add(1, Ordering::Relaxed);
            let decoded = tokio::task::spawn_blocking(move || Frame::decode(&bytes)).await.map_err(|_| ReadError::Cancelled)?;
            decoded.map_err(ReadError::Damaged)
        };
        self.cache.get_or_load(place, |frame| frame.len() as u64, load).await
    }

    /// Bytes of decompressed frames that are kept.
    pub(crate) fn cached_bytes(&self) -> u64 {
        self.cache.bytes()
    }
}
