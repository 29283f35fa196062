//! Decompressed frames, shared by all requests of the process: an LRU bounded in bytes. Requests that want the same
//! frame at the same time wait for one read. What is in a frame is not verified: whoever takes an object of it hashes
//! the object.
//!
//! A delta frame takes the frames of its bases as well, which are read with one read if they lie together. Nobody waits for it
//! while those are loaded: only plain frames are waited for, and they need nothing.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use layer_format::delta::{BasePlace, BaseSet, MAX_BASE_SPAN};
use layer_format::frame::Frame;
use layer_format::frame::delta::{self, MAX_BASE_LEN};
use layer_format::{Digest, FormatError};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::cache::SharedLru;
use super::objects::verified;
use crate::blob_storage::{BlobStorage, StorageError, pack_key};
use crate::db::namespace::NamespaceId;
use crate::db::object::{FramePlace, Location, object_locate};
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
    namespace: NamespaceId,
    frames: Vec<StoredFrame>,
}

impl StoredPack {
    fn frame(&self, offset: u32) -> Option<&StoredFrame> {
        let at = self.frames.binary_search_by_key(&offset, |frame| frame.offset).ok()?;
        self.frames.get(at)
    }

    fn is_delta(&self, offset: u32) -> bool {
        self.frame(offset).is_some_and(|frame| frame.is_delta)
    }
}

/// Frames of one pack that are read with one read, when the first of them is.
struct Run {
    bytes: OnceCell<Bytes>,
    range: Range<u64>,
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
        let (name, namespace, frames) = pack_get(&mut db, id).await?.ok_or(ReadError::Gone(None))?;
        let pack = Arc::new(StoredPack { key: pack_key(&name), namespace, frames });
        self.packs.lock().put(id, Arc::clone(&pack));
        Ok(pack)
    }

    /// The frame as it is stored, or `None` if its bytes are not those that were stored.
    pub(crate) async fn encoded(&self, place: FramePlace) -> Result<Option<Bytes>, ReadError> {
        let pack = self.pack(place.pack).await?;
        let bytes = self.read(&pack, place).await?;
        let Some(check) = pack.frame(place.offset).map(|frame| frame.check) else { return Ok(None) };
        let work = tokio::task::spawn_blocking(move || (blake3::hash(&bytes).as_bytes()[..16] == check).then_some(bytes));
        work.await.map_err(|_| ReadError::Cancelled)
    }

    async fn read(&self, pack: &StoredPack, place: FramePlace) -> Result<Bytes, ReadError> {
        let range = u64::from(place.offset)..u64::from(place.offset) + u64::from(place.len);
        let read = self.read_range(pack, range.clone()).await;
        if self.storage.copies_bytes().is_none() {
            return read;
        }
        let is_good = match (&read, pack.frame(place.offset).map(|frame| frame.check)) {
            (Ok(bytes), Some(check)) => {
                let bytes = bytes.clone();
                tokio::task::spawn_blocking(move || blake3::hash(&bytes).as_bytes()[..16] == check).await.map_err(|_| ReadError::Cancelled)?
            }
            (Err(error), _) => !error.is_loss(),
            (Ok(_), None) => true,
        };
        if is_good {
            return read;
        }
        // What is stored may be better than its copy here.
        self.storage.forget(&pack.key);
        Ok(self.storage.read(&pack.key, range).await?)
    }

    async fn read_range(&self, pack: &StoredPack, range: Range<u64>) -> Result<Bytes, ReadError> {
        self.metrics.storage_read_bytes.fetch_add(range.end - range.start, Ordering::Relaxed);
        Ok(self.storage.read(&pack.key, range).await?)
    }

    /// Whether it is a delta frame.
    pub(crate) async fn is_delta(&self, place: FramePlace) -> Result<bool, ReadError> {
        Ok(self.pack(place.pack).await?.is_delta(place.offset))
    }

    /// The frame, decompressed.
    pub(crate) async fn frame(&self, place: FramePlace) -> Result<Arc<Frame>, ReadError> {
        self.metrics.frame_reads.fetch_add(1, Ordering::Relaxed);
        if let Some(frame) = self.cache.get(&place) {
            return Ok(frame);
        }
        let pack = self.pack(place.pack).await?;
        if !pack.is_delta(place.offset) {
            return self.plain_frame(&pack, place, None).await;
        }
        let encoded = self.read(&pack, place).await?;
        let prefix = self.prefix(pack.namespace, &delta::bases(&encoded).map_err(ReadError::Damaged)?).await?;
        self.metrics.frame_cache_misses.fetch_add(1, Ordering::Relaxed);
        let decoding = async {
            let decoded = tokio::task::spawn_blocking(move || Frame::decode_delta(&encoded, &prefix)).await.map_err(|_| ReadError::Cancelled)?;
            decoded.map_err(ReadError::Damaged)
        };
        self.cache.get_or_load(place, |frame| frame.len() as u64, decoding).await
    }

    async fn plain_frame(&self, pack: &StoredPack, place: FramePlace, run: Option<&Run>) -> Result<Arc<Frame>, ReadError> {
        let load = async {
            let bytes = match run {
                None => self.read(pack, place).await?,
                Some(run) => {
                    let all = run.bytes.get_or_try_init(|| self.read_range(pack, run.range.clone())).await?;
                    let start = (u64::from(place.offset) - run.range.start) as usize;
                    all.slice(start..all.len().min(start + place.len as usize))
                }
            };
            self.metrics.frame_cache_misses.fetch_add(1, Ordering::Relaxed);
            let decoded = tokio::task::spawn_blocking(move || Frame::decode(&bytes)).await.map_err(|_| ReadError::Cancelled)?;
            decoded.map_err(ReadError::Damaged)
        };
        self.cache.get_or_load(place, |frame| frame.len() as u64, load).await
    }

    /// What a frame of this pack, encoded, is decoded with: nothing if it is a plain one.
    pub(crate) async fn prefix_of(&self, pack: PackId, encoded: &[u8]) -> Result<Vec<u8>, ReadError> {
        let bases = delta::bases(encoded).map_err(ReadError::Damaged)?;
        match bases.is_empty() {
            true => Ok(Vec::new()),
            false => self.prefix(self.pack(pack).await?.namespace, &bases).await,
        }
    }

    /// The bytes of these objects of a namespace one after the other, each verified. They lie in plain frames, or it fails as for
    /// a damaged frame.
    pub(crate) async fn prefix(&self, namespace: NamespaceId, bases: &[Digest]) -> Result<Vec<u8>, ReadError> {
        let places = {
            let mut db = self.db.read().await?;
            object_locate(&mut db, namespace, bases).await?
        };
        let places: Vec<(Digest, Location)> =
            bases.iter().map(|digest| places.get(digest).map(|place| (*digest, *place)).ok_or(ReadError::Gone(None))).collect::<Result<_, _>>()?;
        if places.iter().map(|(_, place)| place.len as usize).sum::<usize>() > MAX_BASE_LEN {
            return Err(ReadError::Damaged(FormatError::Invalid { what: "delta frame", rule: "its bases are too long" }));
        }
        let frames = self.plain_frames(places.iter().map(|(_, place)| place.frame)).await?;
        let join = move || {
            let mut prefix = Vec::new();
            for (digest, place) in &places {
                let object = frames.get(&place.frame).and_then(|frame| verified(frame, place.slot, digest));
                prefix.extend_from_slice(object.ok_or(ReadError::Damaged(FormatError::DigestMismatch { what: "base of a delta frame" }))?);
            }
            Ok(prefix)
        };
        tokio::task::spawn_blocking(join).await.map_err(|_| ReadError::Cancelled)?
    }

    /// These frames, which must be plain, with one read for those of one pack that lie close together.
    async fn plain_frames(&self, places: impl Iterator<Item = FramePlace>) -> Result<HashMap<FramePlace, Arc<Frame>>, ReadError> {
        let mut runs: BTreeMap<FramePlace, ()> = places.map(|place| (place, ())).collect();
        let mut frames = HashMap::new();
        while let Some((first, ())) = runs.pop_first() {
            let pack = self.pack(first.pack).await?;
            let mut run = vec![first];
            let mut range = u64::from(first.offset)..u64::from(first.offset) + u64::from(first.len);
            while let Some((next, ())) = runs.first_key_value() {
                let end = u64::from(next.offset) + u64::from(next.len);
                if next.pack != first.pack || end - range.start > MAX_BASE_SPAN {
                    break;
                }
                range.end = range.end.max(end);
                run.push(*next);
                runs.pop_first();
            }
            if run.iter().any(|place| pack.is_delta(place.offset)) {
                return Err(ReadError::Damaged(FormatError::Invalid { what: "delta frame", rule: "a base is itself compressed against others" }));
            }
            let one_read = Run { bytes: OnceCell::new(), range };
            for place in run {
                frames.insert(place, self.plain_frame(&pack, place, Some(&one_read)).await?);
            }
        }
        Ok(frames)
    }

    /// For each group of objects of a namespace, whether a delta frame may have them as bases: all are there, in plain frames that
    /// one read gets.
    pub(crate) async fn are_bases(&self, namespace: NamespaceId, groups: &[Vec<Digest>]) -> Result<Vec<bool>, ReadError> {
        let mut all: Vec<Digest> = groups.concat();
        all.sort_unstable();
        all.dedup();
        let places = {
            let mut db = self.db.read().await?;
            object_locate(&mut db, namespace, &all).await?
        };
        let mut answers = Vec::with_capacity(groups.len());
        for group in groups {
            let mut bases = Vec::with_capacity(group.len());
            for digest in group {
                let Some(place) = places.get(digest) else { break };
                if self.is_delta(place.frame).await? {
                    break;
                }
                let (start, end) = (u64::from(place.frame.offset), u64::from(place.frame.offset) + u64::from(place.frame.len));
                bases.push((*digest, BasePlace { pack: place.frame.pack.number(), start, end, len: place.len }));
            }
            answers.push(bases.len() == group.len() && BaseSet::new().add(&bases));
        }
        Ok(answers)
    }

    /// Bytes of decompressed frames that are kept.
    pub(crate) fn cached_bytes(&self) -> u64 {
        self.cache.bytes()
    }
}
