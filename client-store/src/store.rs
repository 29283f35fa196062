//! The store on disk: objects in packs, an index, and the images that need them.
//!
//! One folder, shared by all `turbo` processes of a user without a daemon. Packs hold the bytes, LMDB says where each
//! object lies, and what is needed is in memory only while it is used: opening takes milliseconds whatever the size.
//!
//! What is promised: an object that was found once is either returned with bytes that match its digest or is absent;
//! a crash at any point, of the process or the machine, leaves a store that opens and has lost at most what no `flush`
//! or `finish` had returned for. `docs/durability.md` has the details. What may be lost at any time, by eviction: what
//! was streamed or pulled and is neither pinned nor running, since a registry has it.
//!
//! * [`layout`] folders and locks. [`index`] the LMDB tables. [`pack_file`] whole packs. [`stream`] objects one by one.
//! * [`reader`] reading and verifying. [`images`] names. [`walk`] what an image needs.
//! * [`states`] containers at one moment.
//! * [`gc`], [`evict`] and [`repack`] give space back; [`verify`] hashes everything; [`usage`] and [`stats`] count.
//! * [`bases`] what delta frames need. [`running`], [`rebuild`].

mod bases;
mod earlier;
mod evict;
mod fragmentation;
mod gc;
mod images;
mod index;
mod layout;
mod pack_file;
mod place;
mod reader;
mod rebuild;
mod repack;
mod running;
mod states;
mod stats;
mod stream;
mod throttle;
mod usage;
mod verify;
mod walk;

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use layer_format::Digest;
use parking_lot::Mutex;

pub use evict::EvictReport;
pub use gc::{GcOptions, GcReport};
pub use images::{ImageInfo, ImageOrigin, StoredImage};
pub use index::PackOrigin;
pub use pack_file::PackWriter;
pub use repack::{RepackOptions, RepackReport};
pub use running::RunningGuard;
pub use states::{MIN_STATE_PREFIX_LEN, StoredState};
pub use stats::StoreStats;
pub use usage::ImageUsage;
pub use verify::{DamagedObject, DamagedPack, Repair, VerifyOptions, VerifyReport};
pub use walk::{ObjectKind, WalkError, references};

pub(crate) use walk::Walk;

use crate::cache::ObjectCache;
use crate::error::StoreError;
use index::{Index, Location};
use layout::Layout;
use reader::{BadObjects, PackReader, ReadError};
use stats::Counters;
use stream::Stream;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Most bytes that packs may take; 0 for no limit. Packs that can be fetched again are evicted above it.
    pub cap_bytes: u64,
    /// Most bytes of decoded frames kept in memory.
    pub frame_cache_bytes: usize,
    /// A pack's time of last use is written down again after this many seconds.
    pub touch_interval_s: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { cap_bytes: 0, frame_cache_bytes: 32 << 20, touch_interval_s: 300 }
    }
}

/// The store of a `TURBO_HOME`. A cheap handle: clones share everything. When the last one is dropped, what was
/// inserted is flushed.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("home", &self.inner.layout.home()).finish_non_exhaustive()
    }
}

struct Inner {
    layout: Layout,
    options: StoreOptions,
    index: Arc<Index>,
    reader: PackReader,
    stream: Stream,
    bad: BadObjects,
    /// Packs read since the last flush.
    touched: Mutex<HashSet<u32>>,
    /// Evictions by any process that this one has seen.
    seen_evictions: Mutex<u64>,
    counters: Counters,
    /// When the cap was last found to be out of reach.
    cap_unmet: Mutex<Option<Instant>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "what was streamed last could not be kept");
        }
        self.stream.close();
    }
}

impl Store {
    /// Opens the store below `home`, creating it (mode 0700) on first use.
    ///
    /// # Errors
    /// [`StoreError::NewerFormat`], [`StoreError::IndexDamaged`], or [`StoreError::Io`] naming the path.
    pub fn open(home: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let layout = Layout::open(home)?;
        layout.remove_leftovers();
        let index = Index::open(&layout)?;
        let inner = Inner {
            reader: PackReader::new(options.frame_cache_bytes),
            layout,
            options,
            index,
            stream: Stream::default(),
            bad: BadObjects::default(),
            touched: Mutex::default(),
            seen_evictions: Mutex::default(),
            counters: Counters::default(),
            cap_unmet: Mutex::default(),
        };
        let store = Self { inner: Arc::new(inner) };
        if !store.inner.index.is_built()? {
            store.rebuild_index()?;
        }
        Ok(store)
    }

    /// The folder that the store lives in.
    pub fn home(&self) -> &Path {
        self.inner.layout.home()
    }

    /// The folder for what imports remember of the files that they read. All of it is a cache; whoever writes there bounds it.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be made.
    pub fn imports_folder(&self) -> Result<PathBuf, StoreError> {
        let folder = self.inner.layout.imports();
        layout::create_dir(&folder)?;
        Ok(folder)
    }

    /// A writer for a new pack of this origin. While it exists, nothing is collected or evicted.
    ///
    /// # Errors
    /// [`StoreError::Io`] if no file can be made.
    pub fn pack_writer(&self, origin: PackOrigin) -> Result<PackWriter, StoreError> {
        PackWriter::create(self, origin)
    }

    /// Keeps gc and eviction away until it is dropped. Whoever relies on objects being here before an image names them
    /// (an import that leaves out what is present, a pull, a push) holds one from its first look to its last write.
    ///
    /// # Errors
    /// [`StoreError::Io`]. Waits while a gc runs.
    pub fn hold(&self) -> Result<ContentHold, StoreError> {
        Ok(ContentHold { _lock: self.content_shared()? })
    }

    fn content_shared(&self) -> Result<File, StoreError> {
        self.inner.layout.content_lock(false, true)?.ok_or_else(|| StoreError::Index { message: "the lock of the content was refused".into() })
    }

    /// Whether all of these are here; like [`ObjectCache::contains`].
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn contains_all(&self, digests: &[Digest]) -> Result<bool, StoreError> {
        Ok(self.contains(digests)?.into_iter().all(|found| found))
    }

    /// Calls `each` with the number and the bytes of each of these objects, in order, `None` for one that is not here (or
    /// damaged), until it returns `false`. Unlike [`ObjectCache::get`] it looks all of them up at once and copies nothing: for
    /// whoever reads many small objects.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails.
    pub fn read_each(&self, digests: &[Digest], each: &mut dyn FnMut(usize, Option<&[u8]>) -> bool) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let locations = inner.index.read(|txn| digests.iter().map(|digest| inner.index.location_in(txn, digest)).collect::<heed::Result<Vec<_>>>())?;
        for (number, (digest, location)) in digests.iter().zip(locations).enumerate() {
            let found = location.filter(|location| !inner.bad.is(digest, location)).and_then(|location| {
                let goes_on = inner.reader.with_object(inner, digest, &location, |bytes| each(number, Some(bytes))).ok()?;
                inner.counters.hits.fetch_add(1, Ordering::Relaxed);
                inner.touch(location.pack);
                Some(goes_on)
            });
            let goes_on = match found {
                Some(goes_on) => goes_on,
                // Not flushed yet, moved meanwhile, damaged or not here.
                None => each(number, inner.get(digest)?.as_deref()),
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// The folder for what checkouts remember of the files that they made: a cache but for the locks in it.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be made.
    pub fn checkouts_folder(&self) -> Result<PathBuf, StoreError> {
        let folder = self.inner.layout.checkouts();
        layout::create_dir(&folder)?;
        Ok(folder)
    }

    /// Remembers which model a repository's newest run used; the model itself is an object like any other.
    ///
    /// # Errors
    /// [`StoreError`] if the disk fails.
    pub fn model_put(&self, repository: &layer_format::reference::Repository, model: &Digest) -> Result<(), StoreError> {
        let index = &self.inner.index;
        index.write(|txn| index.models.put(txn, repository.as_str().as_bytes(), model.as_bytes()))
    }

    /// The model that the repository's newest run used. It may have been evicted since.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn model_get(&self, repository: &layer_format::reference::Repository) -> Result<Option<Digest>, StoreError> {
        let index = &self.inner.index;
        index.read(|txn| Ok(index.models.get(txn, repository.as_str().as_bytes())?.and_then(|bytes| bytes.try_into().ok()).map(Digest)))
    }
}

/// See [`Store::hold`].
#[derive(Debug)]
pub struct ContentHold {
    _lock: File,
}

impl ObjectCache for Store {
    fn get(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(digest)
    }

    fn contains(&self, digests: &[Digest]) -> Result<Vec<bool>, StoreError> {
        let inner = &*self.inner;
        let mut found = inner.index.read(|txn| {
            let look = |digest: &Digest| Ok(inner.index.location_in(txn, digest)?.is_some_and(|location| !inner.bad.is(digest, &location)));
            digests.iter().map(look).collect::<heed::Result<Vec<bool>>>()
        })?;
        inner.stream.contains(digests, &mut found);
        Ok(found)
    }

    fn insert(&self, objects: &[(Digest, Bytes)]) -> Result<(), StoreError> {
        self.inner.stream.insert(&self.inner, objects)
    }

    fn flush(&self) -> Result<(), StoreError> {
        if self.inner.flush()? {
            self.enforce_cap();
        }
        Ok(())
    }
}

impl Inner {
    fn now(&self) -> u64 {
        now_s()
    }

    /// Where an object is, unless that copy is damaged.
    fn usable_location(&self, digest: &Digest) -> Result<Option<Location>, StoreError> {
        Ok(self.index.location(digest)?.filter(|location| !self.bad.is(digest, location)))
    }

    fn get(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        if let Some(Ok(bytes)) = self.stream.get(digest) {
            self.counters.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Some(bytes));
        }
        let mut vanished = None;
        // A second look finds out whether a pack that is gone was evicted or moved meanwhile.
        for _ in 0..3 {
            let Some(location) = self.usable_location(digest)? else { break };
            let reason = match self.reader.object(self, digest, &location) {
                Ok(bytes) => {
                    self.counters.hits.fetch_add(1, Ordering::Relaxed);
                    self.touch(location.pack);
                    return Ok(Some(bytes));
                }
                Err(ReadError::Vanished) if vanished != Some(location) => {
                    vanished = Some(location);
                    self.reader.forget(location.pack);
                    continue;
                }
                Err(ReadError::Vanished) => "its pack is gone".to_owned(),
                Err(ReadError::Damaged(reason)) => reason,
                Err(ReadError::Io(source)) => return Err(StoreError::Io { action: "reading", path: self.layout.packs(), source }),
            };
            self.report_bad(digest, location, &reason);
            break;
        }
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    fn report_bad(&self, digest: &Digest, location: Location, reason: &str) {
        if self.bad.add(*digest, location) {
            // Whatever was decoded of it may be what is damaged, not the disk.
            if self.counters.damaged.fetch_add(1, Ordering::Relaxed) == 0 {
                let file = self.index.pack(location.pack).ok().flatten().map(|row| row.file).unwrap_or_default();
                tracing::warn!(object = %digest, pack = file, "object {digest} in the local store is damaged ({reason}) and will be fetched again; `turbo verify` checks all");
            }
        }
    }

    fn open_pack(&self, id: u32) -> Result<File, ReadError> {
        let row = self.index.pack(id).map_err(|error| ReadError::Io(std::io::Error::other(error)))?.ok_or(ReadError::Vanished)?;
        let file = File::open(self.layout.pack(&row.file));
        Ok(file?)
    }

    fn touch(&self, pack: u32) {
        // Contended only by readers that hit; the set holds a handful of packs.
        if let Some(mut touched) = self.touched.try_lock() {
            touched.insert(pack);
        }
    }

    /// Returns whether bytes were added.
    fn flush(&self) -> Result<bool, StoreError> {
        let added = self.stream.flush(self);
        self.write_housekeeping()?;
        added
    }

    /// Takes damaged objects out of the index and notes which packs are in use. One commit, and none if nothing changed.
    fn write_housekeeping(&self) -> Result<(), StoreError> {
        let bad = self.bad.all();
        let touched: Vec<u32> = self.touched.lock().drain().collect();
        let now = self.now();
        let stale = self.index.read(|txn| {
            let mut stale = Vec::new();
            for id in &touched {
                stale.extend(self.index.pack_in(txn, *id)?.filter(|row| row.used + self.options.touch_interval_s <= now).map(|row| (*id, row)));
            }
            Ok(stale)
        })?;
        if !bad.is_empty() || !stale.is_empty() {
            self.index.write(|txn| {
                for (digest, location) in &bad {
                    if self.index.location_in(txn, digest)? == Some(*location) {
                        self.index.objects.delete(txn, digest.as_bytes())?;
                    }
                }
                for (id, _) in &stale {
                    if let Some(mut row) = self.index.pack_in(txn, *id)? {
                        row.used = now;
                        self.index.put_pack(txn, *id, &row)?;
                    }
                }
                Ok(())
            })?;
            self.bad.remove(&bad.iter().map(|(digest, _)| *digest).collect::<Vec<_>>());
        }
        self.close_files_of_evicted_packs()
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
