//! Copies of blocks of remote blobs in a local folder: a request to an object store takes tens of milliseconds however little
//! is asked for, and who reads a frame mostly reads its neighbours next. So a read fetches whole blocks, and keeps them.
//!
//! The copies are bounded in bytes, those used longest ago go first, and all of them go when the server starts: nothing relies on
//! them. Requests that want the same block at the same time wait for one fetch. A copy may be damaged, or older than a blob
//! that was healed: whoever finds that out ([`super::BlobStorage::forget`]) reads again, and not from here.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::StorageError;
use crate::service::cache::SharedLru;

/// Bytes that are fetched together. At the rate of a network in a data centre they take about as long as the request itself.
pub(super) const BLOCK_LEN: u64 = 512 << 10;
/// Blobs of which it is remembered that their copies were not good: few, or something is wrong with the disk.
const MAX_FORGOTTEN: usize = 1 << 16;

/// A block: of which blob (a hash of its key and of how often it was forgotten), and its number.
type BlockId = ([u8; 16], u64);

/// The copies.
#[derive(Debug)]
pub(super) struct Copies {
    folder: PathBuf,
    blocks: SharedLru<BlockId, Block>,
    next_file: AtomicU64,
    forgotten: Mutex<std::collections::HashMap<String, u32>>,
}

/// A block, in a file that goes with it. It is opened for each read: there may be more blocks than a process may open files.
#[derive(Debug)]
struct Block {
    path: PathBuf,
    len: u64,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove a copy of a block");
        }
    }
}

/// Why a block was not kept.
enum NotKept {
    Fetch(StorageError),
    /// It is here, but the folder did not take it.
    Write(Bytes),
}

impl Copies {
    /// Empties the folder, and keeps at most `max_bytes` there.
    pub(super) fn open(folder: PathBuf, max_bytes: u64) -> Result<Self, StorageError> {
        let failed = |doing, source| StorageError::Io { doing, path: folder.clone(), source };
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("empty", error)),
            _ => std::fs::create_dir_all(&folder).map_err(|error| failed("create", error))?,
        }
        Ok(Self { folder, blocks: SharedLru::new(max_bytes), next_file: AtomicU64::new(0), forgotten: Mutex::default() })
    }

    /// The bytes of `range`, fewer if the blob ends before. `fetch` gives those of a range, fewer if the blob ends before.
    pub(super) async fn read<F>(&self, key: &str, range: Range<u64>, fetch: impl Fn(Range<u64>) -> F) -> Result<Bytes, StorageError>
    where
        F: Future<Output = Result<Bytes, StorageError>>,
    {
        let blob = self.blob(key);
        let numbers = range.start / BLOCK_LEN..range.end.div_ceil(BLOCK_LEN);
        let parts = numbers.map(|number| {
            let begin = number * BLOCK_LEN;
            let part = range.start.max(begin) - begin..range.end.min(begin + BLOCK_LEN) - begin;
            self.read_block((blob, number), part, fetch(begin..begin + BLOCK_LEN))
        });
        let parts = futures::future::try_join_all(parts).await?;
        if let [part] = &parts[..] {
            return Ok(part.clone());
        }
        let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        for part in parts {
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    /// Reads the blob again when it is asked for next.
    pub(super) fn forget(&self, key: &str) {
        let mut forgotten = self.forgotten.lock();
        if forgotten.len() >= MAX_FORGOTTEN {
            forgotten.clear();
        }
        *forgotten.entry(key.to_owned()).or_insert_with(rand::random) += 1;
    }

    /// Bytes of all copies.
    pub(super) fn bytes(&self) -> u64 {
        self.blocks.bytes()
    }

    fn blob(&self, key: &str) -> [u8; 16] {
        let times = self.forgotten.lock().get(key).copied().unwrap_or(0);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&times.to_le_bytes()).update(key.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        id
    }

    async fn read_block(&self, id: BlockId, part: Range<u64>, fetch: impl Future<Output = Result<Bytes, StorageError>>) -> Result<Bytes, StorageError> {
        let load = async {
            let bytes = fetch.await.map_err(NotKept::Fetch)?;
            let path = self.folder.join(self.next_file.fetch_add(1, Ordering::Relaxed).to_string());
            let writing = tokio::task::spawn_blocking({
                let bytes = bytes.clone();
                move || write(&path, &bytes)
            });
            match writing.await {
                Ok(Ok(block)) => Ok(block),
                Ok(Err(error)) => {
                    tracing::warn!(folder = %self.folder.display(), %error, "could not keep a copy of a block");
                    Err(NotKept::Write(bytes))
                }
                Err(_) => Err(NotKept::Write(bytes)),
            }
        };
        let block = match self.blocks.get_or_load(id, |block| block.len, load).await {
            Ok(block) => block,
            Err(NotKept::Write(bytes)) => return Ok(bytes.slice(part.start.min(bytes.len() as u64) as usize..part.end.min(bytes.len() as u64) as usize)),
            Err(NotKept::Fetch(error)) => return Err(error),
        };
        let failed = |source| StorageError::Io { doing: "read", path: self.folder.clone(), source };
        let reading = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; (part.end.min(block.len) - part.start.min(block.len)) as usize];
            File::open(&block.path)?.read_exact_at(&mut bytes, part.start)?;
            Ok::<_, io::Error>(Bytes::from(bytes))
        });
        reading.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed)
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<Block> {
    let file = File::options().write(true).create_new(true).open(path)?;
    // From here on the file goes if it cannot be written.
    let block = Block { path: path.into(), len: bytes.len() as u64 };
    file.write_all_at(bytes, 0)?;
    Ok(block)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 3 % 251) as u8).collect()
    }

    /// A blob, and how often it was asked for.
    struct Remote {
        bytes: Vec<u8>,
        fetches: AtomicUsize,
    }

    impl Remote {
        async fn fetch(&self, range: Range<u64>) -> Result<Bytes, StorageError> {
            self.fetches.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            let len = self.bytes.len() as u64;
            Ok(Bytes::copy_from_slice(&self.bytes[range.start.min(len) as usize..range.end.min(len) as usize]))
        }
    }

    #[tokio::test]
    async fn any_range_is_what_the_blob_has_there() {
        let folder = tempfile::tempdir().unwrap();
        let block = BLOCK_LEN as usize;
        let remote = Remote { bytes: content(3 * block + 777), fetches: AtomicUsize::new(0) };
        let copies = Copies::open(folder.path().join("copies"), 64 << 20).unwrap();
        let mut state = 7u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..200 {
            let start = next(remote.bytes.len() + 1000);
            let most = if next(2) == 0 { 100 } else { 2 * block };
            let end = start + 1 + next(most);
            let wanted = &remote.bytes[start.min(remote.bytes.len())..end.min(remote.bytes.len())];
            assert!(copies.read("a", start as u64..end as u64, |range| remote.fetch(range)).await.unwrap() == wanted, "{start}..{end}");
        }
        let fetched = remote.fetches.load(Ordering::Relaxed);
        assert!(fetched <= 6, "each block once: {fetched}");
        copies.forget("a");
        copies.read("a", 0..10, |range| remote.fetch(range)).await.unwrap();
        assert_eq!(remote.fetches.load(Ordering::Relaxed), fetched + 1, "forgotten");
    }

    #[tokio::test]
    async fn copies_are_bounded_and_their_files_go() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("left-over"), b"x").unwrap();
        let remote = Remote { bytes: content(BLOCK_LEN as usize), fetches: AtomicUsize::new(0) };
        let copies = Copies::open(folder.path().into(), 3 * BLOCK_LEN).unwrap();
        for at in 0..10 {
            copies.read(&at.to_string(), 5..6, |range| remote.fetch(range)).await.unwrap();
        }
        assert_eq!(copies.bytes(), 3 * BLOCK_LEN);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        // Many at once are one fetch.
        let before = remote.fetches.load(Ordering::Relaxed);
        futures::future::join_all((0..10).map(|_| copies.read("new", 1..9, |range| remote.fetch(range)))).await;
        assert_eq!(remote.fetches.load(Ordering::Relaxed), before + 1);
        // A folder that takes nothing costs speed only.
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert!(copies.read("other", 5..900, |range| remote.fetch(range)).await.unwrap() == remote.bytes[5..900]);
    }
}
