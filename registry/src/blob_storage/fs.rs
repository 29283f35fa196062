//! Blobs in a local folder. A blob is written below `tmp/`, synced, renamed to its key, and its folder synced: in this
//! order, or a crash could keep the name and lose the bytes. One server owns the folder (a lock on `lock`), so whatever
//! lies in `tmp/` when it starts was left by a crash and is removed.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use layer_format::Digest;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;

use super::{BlobStat, BlobStorage, BlobWriter, StorageError};

/// Open files kept for the next read.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(128).unwrap();
/// What one write to disk takes together, in bytes.
const WRITE_BUFFER_LEN: usize = 1 << 20;

/// Blobs below a folder.
#[derive(Debug)]
pub(crate) struct FsStorage {
    root: PathBuf,
    open: Arc<Mutex<LruCache<String, Arc<File>>>>,
    next_temp: AtomicU64,
    /// Held as long as the storage lives; released by the kernel if the process dies. `None`: beside a server.
    _lock: Option<File>,
}

impl FsStorage {
    /// Opens or creates the folder and removes what a crash left.
    pub(crate) fn open(root: PathBuf) -> Result<Self, StorageError> {
        let temp = root.join("tmp");
        for dir in [&temp, &root.join("packs")] {
            std::fs::create_dir_all(dir).map_err(|source| failed("create", dir, source))?;
        }
        let lock_path = root.join("lock");
        let lock = File::options().create(true).append(true).open(&lock_path).map_err(|source| failed("open", &lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StorageError::InUse { path: root }),
            Err(std::fs::TryLockError::Error(source)) => return Err(failed("lock", &lock_path, source)),
        }
        let entries = std::fs::read_dir(&temp).map_err(|source| failed("list", &temp, source))?;
        for entry in entries.flatten() {
            let path = entry.path();
            match std::fs::remove_file(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed what an interrupted upload left"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "could not remove what an interrupted upload left"),
            }
        }
        sync_dir(&root)?;
        Ok(Self { root, open: Arc::new(Mutex::new(LruCache::new(OPEN_FILES))), next_temp: AtomicU64::new(0), _lock: Some(lock) })
    }

    /// Opens the folder beside a server that may use it: for what an operator does. Nothing is removed.
    pub(crate) fn open_beside(root: PathBuf) -> Result<Self, StorageError> {
        let temp = root.join("tmp");
        std::fs::create_dir_all(&temp).map_err(|source| failed("create", &temp, source))?;
        Ok(Self { root, open: Arc::new(Mutex::new(LruCache::new(OPEN_FILES))), next_temp: AtomicU64::new(0), _lock: None })
    }

    async fn start(&self, key: String) -> Result<Box<dyn BlobWriter>, StorageError> {
        let number = self.next_temp.fetch_add(1, Ordering::Relaxed);
        let temp = self.root.join("tmp").join(format!("{}-{number}-{:08x}", std::process::id(), rand::random::<u32>()));
        let file = tokio::fs::OpenOptions::new().write(true).create_new(true).open(&temp).await;
        let file = file.map_err(|source| failed("create", &temp, source))?;
        let file = tokio::io::BufWriter::with_capacity(WRITE_BUFFER_LEN, file);
        let path = self.root.join(&key);
        Ok(Box::new(FsWriter { file: Some(file), temp: TempFile(Some(temp)), path, key, open: Arc::clone(&self.open) }))
    }
}

impl BlobStorage for FsStorage {
    fn create(&self, key: &str) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, StorageError>> {
        Box::pin(self.start(key.to_owned()))
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StorageError>> {
        let path = self.root.join(key);
        self.open.lock().pop(key);
        in_thread(path, "remove", |path| match std::fs::remove_file(path) {
            Ok(()) => sync_dir(path.parent().unwrap_or(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(failed("remove", path, source)),
        })
    }

    fn rename(&self, from: &str, to: &str) -> BoxFuture<'_, Result<(), StorageError>> {
        let (path, to) = (self.root.join(from), self.root.join(to));
        self.open.lock().pop(from);
        in_thread(path, "rename", move |path| match path.exists() {
            true => rename_durably(path, &to),
            false => Ok(()),
        })
    }

    fn stat(&self, key: &str) -> BoxFuture<'_, Result<Option<BlobStat>, StorageError>> {
        in_thread(self.root.join(key), "look at", stat)
    }

    fn list_packs(&self) -> BoxStream<'_, Result<(Digest, BlobStat), StorageError>> {
        let packs = self.root.join("packs");
        let folders = in_thread(packs, "list", folder).map(|folders| match folders {
            Ok(folders) => folders.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        });
        let folders = folders.into_stream().flat_map(futures::stream::iter);
        let files = folders.then(|path| async {
            match path {
                Ok(path) => in_thread(path, "list", list_folder).await.unwrap_or_else(|error| vec![Err(error)]),
                Err(error) => vec![Err(error)],
            }
        });
        files.flat_map(futures::stream::iter).boxed()
    }

    fn read(&self, key: &str, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, StorageError>> {
        let (key, path, open) = (key.to_owned(), self.root.join(key), Arc::clone(&self.open));
        Box::pin(async move {
            let shown = path.clone();
            let read = tokio::task::spawn_blocking(move || read_range(&open, key, &path, range)).await;
            read.unwrap_or_else(|error| Err(failed("read", &shown, io::Error::other(error))))
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        let temp = self.root.join("tmp");
        Box::pin(async move { tokio::fs::metadata(&temp).await.map(drop).map_err(|source| failed("look at", &temp, source)) })
    }
}

/// Does something with a file in a thread that may wait.
fn in_thread<T: Send + 'static>(
    path: PathBuf,
    doing: &'static str,
    work: impl FnOnce(&Path) -> Result<T, StorageError> + Send + 'static,
) -> BoxFuture<'static, Result<T, StorageError>> {
    Box::pin(async move {
        let shown = path.clone();
        let done = tokio::task::spawn_blocking(move || work(&path)).await;
        done.unwrap_or_else(|error| Err(failed(doing, &shown, io::Error::other(error))))
    })
}

fn stat(path: &Path) -> Result<Option<BlobStat>, StorageError> {
    match std::fs::metadata(path) {
        Ok(found) => {
            let written = found.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
            Ok(Some(BlobStat { len: found.len(), written_at: written.map_or(0, |since| since.as_millis() as i64) }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("look at", path, source)),
    }
}

fn folder(path: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let entries = std::fs::read_dir(path).map_err(|source| failed("list", path, source))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(|source| failed("list", path, source))).collect()
}

/// A pack of a list.
type Listed = Result<(Digest, BlobStat), StorageError>;

/// The packs in one of the folders of `packs/`.
fn list_folder(path: &Path) -> Result<Vec<Listed>, StorageError> {
    let mut found = Vec::new();
    for file in folder(path)? {
        let name = file.file_name().and_then(|name| name.to_str()).and_then(|name| Digest::from_hex(name).ok());
        if let (Some(name), Some(stat)) = (name, stat(&file)?) {
            found.push(Ok((name, stat)));
        }
    }
    Ok(found)
}

fn read_range(open: &Mutex<LruCache<String, Arc<File>>>, key: String, path: &Path, range: Range<u64>) -> Result<Bytes, StorageError> {
    let cached = open.lock().get(&key).cloned();
    let file = match cached {
        Some(file) => file,
        None => match File::open(path) {
            Ok(file) => {
                let file = Arc::new(file);
                open.lock().put(key.clone(), Arc::clone(&file));
                file
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StorageError::NotFound { key }),
            Err(source) => return Err(failed("open", path, source)),
        },
    };
    let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
    match file.read_exact_at(&mut bytes, range.start) {
        Ok(()) => Ok(bytes.into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(StorageError::NotFound { key }),
        Err(source) => Err(failed("read", path, source)),
    }
}

/// A file that is removed unless it was renamed.
struct TempFile(Option<PathBuf>);

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "could not remove a temporary file");
        }
    }
}

struct FsWriter {
    file: Option<tokio::io::BufWriter<tokio::fs::File>>,
    temp: TempFile,
    path: PathBuf,
    key: String,
    open: Arc<Mutex<LruCache<String, Arc<File>>>>,
}

impl FsWriter {
    async fn commit(mut self: Box<Self>) -> Result<(), StorageError> {
        let temp = self.temp.0.clone().unwrap_or_default();
        let Some(mut file) = self.file.take() else { return Ok(()) };
        file.flush().await.map_err(|source| failed("write", &temp, source))?;
        file.get_ref().sync_all().await.map_err(|source| failed("sync", &temp, source))?;
        drop(file);
        let path = self.path.clone();
        let renamed = tokio::task::spawn_blocking(move || rename_durably(&temp, &path)).await;
        renamed.unwrap_or_else(|error| Err(failed("rename", &self.path, io::Error::other(error))))?;
        self.temp.0 = None;
        // A file that this one replaced must not be read through an old handle.
        self.open.lock().pop(&self.key);
        Ok(())
    }
}

impl BlobWriter for FsWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async move {
            let Some(file) = &mut self.file else { return Ok(()) };
            file.write_all(&bytes).await.map_err(|source| failed("write", &self.path, source))
        })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), StorageError>> {
        Box::pin(self.commit())
    }

    fn abort(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { drop(self) })
    }
}

fn rename_durably(temp: &Path, path: &Path) -> Result<(), StorageError> {
    let dir = path.parent().unwrap_or(path);
    if !dir.is_dir() {
        std::fs::create_dir_all(dir).map_err(|source| failed("create", dir, source))?;
        if let Some(above) = dir.parent() {
            sync_dir(above)?;
        }
    }
    std::fs::rename(temp, path).map_err(|source| failed("rename", path, source))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| failed("sync", dir, source))
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> StorageError {
    StorageError::Io { doing, path: path.into(), source }
}
