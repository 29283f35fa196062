//! Reading objects: open packs, decoded frames, and the check of every digest.
//!
//! Frames are decoded once and kept while there is room; a thread that needs a frame which another is decoding waits for
//! it. An object is hashed when it is first taken out of a decoded frame, and again whenever the frame was read again.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use layer_format::frame::{Frame, MAX_ENCODED_LEN, delta};
use layer_format::{Digest, FormatError};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::Inner;
use super::index::Location;

/// Pack files kept open.
const OPEN_PACKS: NonZeroUsize = NonZeroUsize::new(96).expect("not zero");
/// Locks of the frame cache. Each shard has its part of the bytes; the largest frame must fit one.
const SHARDS: usize = 4;

/// Why an object's bytes could not be had from its place.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The file is not there.
    Vanished,
    /// The bytes are not what they should be.
    Damaged(String),
    /// The system failed.
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        // A sector that cannot be read and a file that is too short are damage: the object is fetched again.
        const EIO: i32 = 5;
        match error.kind() {
            io::ErrorKind::NotFound => Self::Vanished,
            io::ErrorKind::UnexpectedEof => Self::Damaged("the pack ends before it".into()),
            _ if error.raw_os_error() == Some(EIO) => Self::Damaged(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

impl From<FormatError> for ReadError {
    fn from(error: FormatError) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// A decoded frame, and which of its objects were found to match their digests.
pub(super) struct Decoded {
    frame: Frame,
    /// Whether it needed bases: then it cannot be one.
    pub(super) is_delta: bool,
    verified: Box<[AtomicU64]>,
}

impl Decoded {
    pub(super) fn new(frame: Frame, is_delta: bool) -> Self {
        let verified = (0..frame.count().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { frame, is_delta, verified }
    }

    pub(super) fn object(&self, digest: &Digest, location: &Location) -> Result<&[u8], ReadError> {
        let slot = usize::from(location.slot);
        let object = self.frame.object(slot).ok_or_else(|| ReadError::Damaged("its frame has fewer objects".into()))?;
        let (word, bit) = (&self.verified[slot / 64], 1 << (slot % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            if Digest::of(object) != *digest {
                return Err(ReadError::Damaged("its bytes do not match its digest".into()));
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(object)
    }
}

pub(super) type FrameKey = (u32, u32);
/// `None` until the first thread that needs the frame has decoded it; the lock is held meanwhile.
pub(super) type FrameCell = Arc<Mutex<Option<Arc<Decoded>>>>;

struct Shard {
    frames: LruCache<FrameKey, (FrameCell, usize)>,
    bytes: usize,
}

/// Open packs and decoded frames.
pub(super) struct PackReader {
    files: Mutex<LruCache<u32, Arc<File>>>,
    shards: [Mutex<Shard>; SHARDS],
    shard_bytes: usize,
    /// Frames decoded.
    pub(super) decoded: AtomicU64,
}

impl PackReader {
    pub(super) fn new(cache_bytes: usize) -> Self {
        let shard = || Mutex::new(Shard { frames: LruCache::unbounded(), bytes: 0 });
        Self {
            files: Mutex::new(LruCache::new(OPEN_PACKS)),
            shards: std::array::from_fn(|_| shard()),
            shard_bytes: cache_bytes / SHARDS,
            decoded: AtomicU64::new(0),
        }
    }

    /// The object at `location`, verified.
    pub(super) fn object(&self, inner: &Inner, digest: &Digest, location: &Location) -> Result<Bytes, ReadError> {
        // A copy: a slice would keep the whole frame in memory for as long as the caller keeps one small object.
        self.with_object(inner, digest, location, Bytes::copy_from_slice)
    }

    /// What `take` makes of the object at `location`, verified.
    pub(super) fn with_object<R>(&self, inner: &Inner, digest: &Digest, location: &Location, take: impl FnOnce(&[u8]) -> R) -> Result<R, ReadError> {
        if location.slot == Location::DIRECT {
            let file = self.file(location.pack, || inner.open_pack(location.pack))?;
            return read_direct(&file, digest, location.offset.into(), location.len).map(|bytes| take(&bytes));
        }
        let decoded = self.decoded_frame(inner, location)?;
        decoded.object(digest, location).map(take)
    }

    fn decoded_frame(&self, inner: &Inner, location: &Location) -> Result<Arc<Decoded>, ReadError> {
        let cell = self.cell((location.pack, location.offset));
        let mut guard = cell.lock();
        let decoded = match &*guard {
            Some(decoded) => Arc::clone(decoded),
            None => {
                let decoded = Arc::new(self.decode(inner, location).inspect_err(|_| self.drop_frame((location.pack, location.offset)))?);
                self.account((location.pack, location.offset), decoded.frame.len());
                *guard = Some(Arc::clone(&decoded));
                decoded
            }
        };
        Ok(decoded)
    }

    fn decode(&self, inner: &Inner, location: &Location) -> Result<Decoded, ReadError> {
        if location.frame_len as usize > MAX_ENCODED_LEN {
            return Err(ReadError::Damaged("the index gives its frame an impossible length".into()));
        }
        let file = self.file(location.pack, || inner.open_pack(location.pack))?;
        let mut encoded = vec![0; location.frame_len as usize];
        file.read_exact_at(&mut encoded, location.offset.into())?;
        let bases = delta::bases(&encoded)?;
        let frame = match bases.is_empty() {
            true => Frame::decode(&encoded)?,
            false => Frame::decode_delta(&encoded, &self.prefix(inner, &bases)?)?,
        };
        self.decoded.fetch_add(1, Ordering::Relaxed);
        Ok(Decoded::new(frame, !bases.is_empty()))
    }

    fn shard(&self, key: FrameKey) -> &Mutex<Shard> {
        // Neighbouring frames go to different shards.
        let mixed = (key.0 ^ key.1).wrapping_mul(0x9E37_79B1);
        &self.shards[(mixed >> 24) as usize % SHARDS]
    }

    pub(super) fn cell(&self, key: FrameKey) -> FrameCell {
        let mut shard = self.shard(key).lock();
        Arc::clone(&shard.frames.get_or_insert(key, || (FrameCell::default(), 0)).0)
    }

    /// Counts a decoded frame's bytes and drops the frames used longest ago.
    pub(super) fn account(&self, key: FrameKey, len: usize) {
        let mut shard = self.shard(key).lock();
        if let Some((_, counted)) = shard.frames.get_mut(&key) {
            let more = len - std::mem::replace(counted, len).min(len);
            shard.bytes += more;
        }
        while shard.bytes > self.shard_bytes {
            match shard.frames.pop_lru() {
                Some((_, (_, len))) => shard.bytes -= len.min(shard.bytes),
                None => break,
            }
        }
    }

    fn drop_frame(&self, key: FrameKey) {
        let mut shard = self.shard(key).lock();
        if let Some((_, len)) = shard.frames.pop(&key) {
            shard.bytes -= len.min(shard.bytes);
        }
    }

    /// The file of a pack. `open` opens it if it is not open yet.
    pub(super) fn file(&self, pack: u32, open: impl FnOnce() -> Result<File, ReadError>) -> Result<Arc<File>, ReadError> {
        if let Some(file) = self.files.lock().get(&pack) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(open()?);
        self.files.lock().put(pack, Arc::clone(&file));
        Ok(file)
    }

    /// Forgets what is open and decoded of a pack.
    pub(super) fn forget(&self, pack: u32) {
        self.files.lock().pop(&pack);
        for shard in &self.shards {
            let mut shard = shard.lock();
            let stale: Vec<_> = shard.frames.iter().filter(|((id, _), _)| *id == pack).map(|(key, _)| *key).collect();
            for key in stale {
                if let Some((_, len)) = shard.frames.pop(&key) {
                    shard.bytes -= len.min(shard.bytes);
                }
            }
        }
    }

    /// Closes files, so that packs which others have removed give their space back.
    pub(super) fn close_files(&self) {
        self.files.lock().clear();
    }
}

/// Reads and verifies an object that lies in a file as it is.
pub(super) fn read_direct(file: &File, digest: &Digest, offset: u64, len: u32) -> Result<Bytes, ReadError> {
    if len > layer_format::chunk::MAX_OBJECT_LEN {
        return Err(ReadError::Damaged("the index gives it an impossible length".into()));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    match Digest::of(&bytes) == *digest {
        true => Ok(bytes.into()),
        false => Err(ReadError::Damaged("its bytes do not match its digest".into())),
    }
}

/// Objects found damaged by this process: absent at once, taken out of the index with the next flush, since a commit in
/// the middle of an application's read would cost it milliseconds.
#[derive(Default)]
pub(super) struct BadObjects {
    count: AtomicUsize,
    objects: RwLock<HashMap<Digest, Location>>,
}

impl BadObjects {
    /// Whether this copy of the object is damaged.
    pub(super) fn is(&self, digest: &Digest, location: &Location) -> bool {
        self.count.load(Ordering::Acquire) != 0 && self.objects.read().get(digest) == Some(location)
    }

    /// Returns whether it is news.
    pub(super) fn add(&self, digest: Digest, location: Location) -> bool {
        let mut objects = self.objects.write();
        let news = objects.insert(digest, location) != Some(location);
        self.count.store(objects.len(), Ordering::Release);
        news
    }

    pub(super) fn remove(&self, digests: &[Digest]) {
        if digests.is_empty() {
            return;
        }
        let mut objects = self.objects.write();
        for digest in digests {
            objects.remove(digest);
        }
        self.count.store(objects.len(), Ordering::Release);
    }

    pub(super) fn all(&self) -> Vec<(Digest, Location)> {
        match self.count.load(Ordering::Acquire) {
            0 => Vec::new(),
            _ => self.objects.read().iter().map(|(digest, location)| (*digest, *location)).collect(),
        }
    }
}
