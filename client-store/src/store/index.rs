//! The index: LMDB tables that say which object lies where.
//!
//! LMDB gives us what several processes on one store need: readers never block or wait, one writer at a time, a commit
//! is all or nothing and durable when it returns, and a process that dies in the middle leaves nothing to repair. Only
//! the pages in use take memory. The map is large and virtual; the file grows as it is used.
//!
//! The index holds nothing that is not also in packs and `images/`: if its folder is missing it is built again.

mod create;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions, MdbError, PutFlags, RoTxn, RwTxn, WithoutTls};
use layer_format::Digest;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use crate::error::StoreError;

/// Sizes of the map to try, in bytes: 64 GiB of address space are some 700 million objects; less where the address
/// space is limited.
const MAP_SIZES: [usize; 3] = [64 << 30, 4 << 30, 1 << 30];
/// Above this length of its file, LMDB's pages are read one by one: names are random, and reading ahead would bring in all of
/// it. Of a cold index of 1 GiB, 1 000 look-ups read 1 GiB with it. Below, all of it is soon here anyway.
const LARGE_LEN: u64 = 64 << 20;
/// Read transactions open at once, over all processes.
const MAX_READERS: u32 = 1024;

/// The tables, in the order of the fields of [`Index`].
const TABLES: [&str; 7] = ["objects", "packs", "refs", "images", "manifests", "models", "meta"];

/// A table of the index. Keys and values are bytes; this module encodes them.
pub(crate) type Table = heed::Database<'static, Bytes, Bytes>;

/// Where an object's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// Number of the pack.
    pub(crate) pack: u32,
    /// Offset of the frame in the pack; with [`Location::DIRECT`], of the object itself.
    pub(crate) offset: u32,
    /// Encoded length of the frame; with [`Location::DIRECT`], of the object.
    pub(crate) frame_len: u32,
    /// Position in the frame.
    pub(crate) slot: u16,
    /// Uncompressed length of the object.
    pub(crate) len: u32,
}

impl Location {
    /// The slot of an object that lies in the pack as it is and can be read without its frame.
    pub(crate) const DIRECT: u16 = u16::MAX;
    const ENCODED_LEN: usize = 18;

    fn encode(&self) -> [u8; Self::ENCODED_LEN] {
        let mut out = [0; Self::ENCODED_LEN];
        out[..4].copy_from_slice(&self.pack.to_le_bytes());
        out[4..8].copy_from_slice(&self.offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.frame_len.to_le_bytes());
        out[12..14].copy_from_slice(&self.slot.to_le_bytes());
        out[14..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::ENCODED_LEN] = bytes.try_into().ok()?;
        let word = |at: usize| bytes[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        Some(Self { pack: word(0), offset: word(4), frame_len: word(8), slot: u16::from_le_bytes([bytes[12], bytes[13]]), len: word(14) })
    }
}

/// How the objects of a pack came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackOrigin {
    /// Made here: perhaps the only copy.
    Imported,
    /// Pulled from a registry.
    Pulled,
    /// Fetched while an application ran.
    Streamed,
}

/// What the index says of a pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PackRow {
    /// File name below `packs/`.
    pub(crate) file: String,
    pub(crate) origin: PackOrigin,
    /// Bytes of the file that count: all of a finished pack; of a growing one, what is durable.
    pub(crate) len: u64,
    /// Uncompressed bytes of its objects.
    pub(crate) plain: u64,
    pub(crate) objects: u64,
    /// Whether index and footer are written.
    pub(crate) finished: bool,
    /// When it was last read or written: seconds since 1970.
    pub(crate) used: u64,
    /// Whether all of it is known to be on a registry.
    #[serde(default)]
    pub(crate) on_registry: bool,
    /// Uncompressed bytes of objects that no image needed at the last gc.
    #[serde(default)]
    pub(crate) dead: u64,
    /// Whether a verification found that its file is not as it was written. What its rows lead to is told apart.
    #[serde(default)]
    pub(crate) damaged: bool,
}

impl PackRow {
    /// The row of a whole pack of `len` bytes that holds nothing yet.
    pub(crate) fn finished(file: String, origin: PackOrigin, len: u64) -> Self {
        Self { file, origin, len, plain: 0, objects: 0, finished: true, used: 0, on_registry: false, dead: 0, damaged: false }
    }
}

/// The open index. One a process and store, shared by all handles.
pub(crate) struct Index {
    env: Env<WithoutTls>,
    path: PathBuf,
    pub(crate) objects: Table,
    pub(crate) packs: Table,
    pub(crate) refs: Table,
    pub(crate) images: Table,
    pub(crate) manifests: Table,
    pub(crate) models: Table,
    pub(crate) meta: Table,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("path", &self.path).finish_non_exhaustive()
    }
}

static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Index>>>> = LazyLock::new(Mutex::default);

impl Index {
    /// Opens the index of a store, and makes it if there is none. LMDB must not be opened twice in a process, so all handles
    /// of one store share it.
    pub(crate) fn open(layout: &Layout) -> Result<Arc<Self>, StoreError> {
        let path = layout.index();
        let mut open = OPEN.lock();
        if let Some(index) = open.get(&path).and_then(Weak::upgrade) {
            return Ok(index);
        }
        create::ensure(layout)?;
        let index = Arc::new(Self::open_new(&path)?);
        open.retain(|_, index| index.strong_count() > 0);
        open.insert(path, Arc::downgrade(&index));
        Ok(index)
    }

    fn open_new(path: &Path) -> Result<Self, StoreError> {
        let fail = |error| index_error(path, error);
        let env = open_env(path)?;
        check_length(&env, path)?;
        let _ = env.clear_stale_readers();
        let rtxn = env.read_txn().map_err(fail)?;
        let found = env.open_databases_and_commit(rtxn, |opener, rtxn| {
            let mut tables = Vec::new();
            for name in TABLES {
                tables.push(opener.open_database::<Bytes, Bytes>(rtxn, Some(name))?);
            }
            let tables: [_; TABLES.len()] = tables.try_into().unwrap_or_default();
            Ok(CommitOrAbort::<_, ()>::Commit(tables))
        });
        let found: [Option<Table>; TABLES.len()] = found.map_err(fail)?.commit().unwrap_or_default();
        let found: Option<Vec<Table>> = found.into_iter().collect();
        let [objects, packs, refs, images, manifests, models, meta] = match found.and_then(|tables| tables.try_into().ok()) {
            Some(tables) => tables,
            None => create::create_tables(&env, path)?,
        };
        Ok(Self { env, path: path.to_owned(), objects, packs, refs, images, manifests, models, meta })
    }

    /// Runs `f` on a snapshot. Never waits for writers. Keep it short: pages freed meanwhile cannot be reused.
    pub(crate) fn read<R>(&self, f: impl FnOnce(&RoTxn<'_, WithoutTls>) -> heed::Result<R>) -> Result<R, StoreError> {
        let txn = match self.env.read_txn() {
            Err(heed::Error::Mdb(MdbError::ReadersFull)) => {
                let _ = self.env.clear_stale_readers();
                self.env.read_txn()
            }
            other => other,
        };
        txn.and_then(|txn| f(&txn)).map_err(|error| index_error(&self.path, error))
    }

    /// Runs `f` as the only writer on this machine and commits: all or nothing, durable on return.
    pub(crate) fn write<R>(&self, f: impl FnOnce(&mut RwTxn<'_>) -> heed::Result<R>) -> Result<R, StoreError> {
        let fail = |error| index_error(&self.path, error);
        let mut txn = self.env.write_txn().map_err(fail)?;
        let result = f(&mut txn).map_err(fail)?;
        txn.commit().map_err(fail)?;
        Ok(result)
    }

    pub(crate) fn location(&self, digest: &Digest) -> Result<Option<Location>, StoreError> {
        self.read(|txn| Ok(self.objects.get(txn, digest.as_bytes())?.and_then(Location::decode)))
    }

    pub(crate) fn location_in(&self, txn: &RoTxn<'_>, digest: &Digest) -> heed::Result<Option<Location>> {
        Ok(self.objects.get(txn, digest.as_bytes())?.and_then(Location::decode))
    }

    pub(crate) fn put_location(&self, txn: &mut RwTxn<'_>, digest: &Digest, location: &Location) -> heed::Result<()> {
        self.objects.put(txn, digest.as_bytes(), &location.encode())
    }

    /// The same for a digest that is greater than all in the table: fills pages, where a put in order would leave each half
    /// empty.
    pub(crate) fn append_location(&self, txn: &mut RwTxn<'_>, digest: &Digest, location: &Location) -> heed::Result<()> {
        self.objects.put_with_flags(txn, PutFlags::APPEND, digest.as_bytes(), &location.encode())
    }

    pub(crate) fn pack(&self, id: u32) -> Result<Option<PackRow>, StoreError> {
        self.read(|txn| self.pack_in(txn, id))
    }

    pub(crate) fn pack_in(&self, txn: &RoTxn<'_>, id: u32) -> heed::Result<Option<PackRow>> {
        self.packs.get(txn, &id.to_be_bytes())?.map(decode).transpose()
    }

    pub(crate) fn put_pack(&self, txn: &mut RwTxn<'_>, id: u32, row: &PackRow) -> heed::Result<()> {
        self.packs.put(txn, &id.to_be_bytes(), &encode(row)?)
    }

    /// All packs, oldest first.
    pub(crate) fn all_packs(&self) -> Result<Vec<(u32, PackRow)>, StoreError> {
        self.read(|txn| {
            let mut packs = Vec::new();
            for item in self.packs.iter(txn)? {
                let (key, row) = item?;
                packs.push((key.iter().fold(0, |id, byte| id << 8 | u32::from(*byte)), decode(row)?));
            }
            Ok(packs)
        })
    }

    /// The number for a new pack. Numbers are never used again, so whoever remembers one cannot meet another pack.
    pub(crate) fn next_pack(&self, txn: &mut RwTxn<'_>) -> heed::Result<u32> {
        let key = b"next-pack".as_slice();
        let id = self.meta.get(txn, key)?.and_then(|bytes| bytes.try_into().ok()).map_or(1, u32::from_le_bytes);
        self.meta.put(txn, key, &id.wrapping_add(1).to_le_bytes())?;
        Ok(id)
    }

    /// Whether the index names everything that was there when it was made.
    pub(crate) fn is_built(&self) -> Result<bool, StoreError> {
        self.read(|txn| Ok(self.meta.get(txn, b"built".as_slice())?.is_some()))
    }

    pub(crate) fn set_built(&self) -> Result<(), StoreError> {
        self.write(|txn| self.meta.put(txn, b"built".as_slice(), b"1"))
    }

    /// Calls `f` with all objects, in the order of their digests.
    pub(crate) fn for_each_object(&self, mut f: impl FnMut(Digest, Location)) -> Result<(), StoreError> {
        // All of it is needed now, in an order that is not that of the file.
        if let Ok(file) = std::fs::File::open(self.path.join("data.mdb")) {
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed);
        }
        self.read(|txn| {
            for item in self.objects.iter(txn)? {
                let (key, value) = item?;
                if let (Ok(digest), Some(location)) = (key.try_into().map(Digest), Location::decode(value)) {
                    f(digest, location);
                }
            }
            Ok(())
        })
    }
}

/// JSON for a row.
pub(crate) fn encode(row: &impl Serialize) -> heed::Result<Vec<u8>> {
    serde_json::to_vec(row).map_err(|error| heed::Error::Encoding(error.into()))
}

/// A row from JSON.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> heed::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| heed::Error::Decoding(error.into()))
}

fn open_env(path: &Path) -> Result<Env<WithoutTls>, StoreError> {
    let mut size = 0;
    let is_large = std::fs::metadata(path.join("data.mdb")).is_ok_and(|meta| meta.len() > LARGE_LEN);
    let flags = if is_large { EnvFlags::NO_READ_AHEAD } else { EnvFlags::empty() };
    for _ in 0..100 {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP_SIZES[size]).max_dbs(8).max_readers(MAX_READERS);
        // SAFETY: the map is of a file that only LMDB writes, under LMDB's own locks, in a folder that only its owner
        // can enter. No transaction outlives a call of `read` or `write`, none crosses a fork. The flag is advice to the
        // kernel.
        #[allow(unsafe_code)]
        let opened = unsafe { options.flags(flags).open(path) };
        match opened {
            Err(heed::Error::Io(error)) if error.raw_os_error() == Some(rustix::io::Errno::NOMEM.raw_os_error()) && size + 1 < MAP_SIZES.len() => size += 1,
            // The last handle is being dropped by another thread.
            Err(heed::Error::EnvAlreadyOpened) => std::thread::sleep(Duration::from_millis(10)),
            other => return other.map_err(|error| index_error(path, error)),
        }
    }
    Err(StoreError::Index { message: format!("{} is still open in this process", path.display()) })
}

/// Refuses a file that was cut short: reading beyond its end would kill the process. A few pages at the end may have been
/// allocated and never written; they are made to exist, and LMDB says of a page of zeros that it is damaged.
fn check_length(env: &Env<WithoutTls>, path: &Path) -> Result<(), StoreError> {
    const SLACK_PAGES: u64 = 64;
    let fail = |error| index_error(path, error);
    let len = env.real_disk_size().map_err(fail)?;
    let page = u64::from(env.unnamed_database_stat().page_size);
    let wanted = page * (env.info().last_page_number as u64 + 1);
    if len + SLACK_PAGES * page < wanted {
        return Err(StoreError::IndexDamaged { path: path.to_owned(), reason: format!("the file ends after {len} of {wanted} bytes") });
    }
    if len < wanted {
        // Unlike setting the length, this never takes away what another process has just added.
        let file = std::fs::OpenOptions::new().write(true).open(path.join("data.mdb")).map_err(super::layout::io_error("opening", path))?;
        let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), len, wanted - len);
    }
    Ok(())
}

/// Maps an error of LMDB: what the disk said, what is damaged, and the rest.
fn index_error(path: &Path, error: heed::Error) -> StoreError {
    match error {
        heed::Error::Io(source) => StoreError::Io { action: "writing", path: path.join("data.mdb"), source },
        heed::Error::Mdb(kind @ (MdbError::Corrupted | MdbError::Invalid | MdbError::PageNotFound | MdbError::VersionMismatch | MdbError::Panic)) => {
            StoreError::IndexDamaged { path: path.to_owned(), reason: kind.to_string() }
        }
        heed::Error::Decoding(reason) => StoreError::IndexDamaged { path: path.to_owned(), reason: reason.to_string() },
        other => StoreError::Index { message: other.to_string() },
    }
}
