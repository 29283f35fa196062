//! Where packs are kept: whole files under keys such as `packs/ab/<hex>`, written once and never changed.

mod copies;
mod fs;
mod remote;

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use layer_format::Digest;

pub(crate) use fs::FsStorage;
pub(crate) use remote::RemoteStorage;

/// The key of a pack.
pub(crate) fn pack_key(digest: &Digest) -> String {
    let hex = digest.to_hex();
    format!("packs/{}/{hex}", &hex[..2])
}

/// Where a pack is put that no row names, until someone has looked at it.
pub(crate) fn undo_key(name: &Digest) -> String {
    format!("undo/{}", name.to_hex())
}

/// Why a blob could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// There is no blob under this key, or it is shorter than the range.
    #[error("blob {key} is not there, or was cut short")]
    NotFound {
        /// The key.
        key: String,
    },
    /// A file operation failed.
    #[error("could not {doing} {path}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The object store failed.
    #[error("object store: could not {doing} {key}")]
    Remote {
        /// The operation.
        doing: &'static str,
        /// The key.
        key: String,
        /// Why.
        source: object_store::Error,
    },
    /// The URL names no store.
    #[error("`{url}` names no storage")]
    Url {
        /// The URL, without what may be secret in it.
        url: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another server uses the folder.
    #[error("{path} is in use by another turbo-registry")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

impl StorageError {
    /// Whether the same may well work a little later: the object store is out of reach.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Remote { .. })
    }
}

/// Immutable blobs. What every implementation keeps:
/// * a reader sees a whole blob or none, also after a crash at any point;
/// * once [`BlobWriter::finish`] returned, the blob survives a power failure;
/// * writing a key again replaces its blob whole, so that a damaged one can be healed;
/// * a writer that is dropped leaves nothing visible.
pub(crate) trait BlobStorage: Debug + Send + Sync {
    /// Starts to write the blob of `key`.
    fn create(&self, key: &str) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, StorageError>>;
    /// The bytes of `range`, all of them.
    fn read(&self, key: &str, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, StorageError>>;
    /// Bytes of copies that reads are answered with, if there are any. They may be damaged or old, so what was read must be
    /// compared with what it should be; [`BlobStorage::forget`] gets rid of them.
    fn copies_bytes(&self) -> Option<u64> {
        None
    }
    /// Reads the blob from where it is when it is asked for next.
    fn forget(&self, _key: &str) {}
    /// Removes the blob, durably. One that is not there was removed before: no error.
    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StorageError>>;
    /// Renames a blob; one that is not there is no error.
    fn rename(&self, from: &str, to: &str) -> BoxFuture<'_, Result<(), StorageError>>;
    /// Length and age of the blob, if it is there.
    fn stat(&self, key: &str) -> BoxFuture<'_, Result<Option<BlobStat>, StorageError>>;
    /// The names of all packs that are there, with length and age, in no order. What comes or goes meanwhile may be missing.
    fn list_packs(&self) -> BoxStream<'_, Result<(Digest, BlobStat), StorageError>>;
    /// Whether blobs can be read and written now, as far as that can be told without writing.
    fn check(&self) -> BoxFuture<'_, Result<(), StorageError>>;
}

/// What is known of a blob without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlobStat {
    /// Its length in bytes.
    pub(crate) len: u64,
    /// When it was written, in milliseconds since 1970.
    pub(crate) written_at: i64,
}

/// A blob being written.
pub(crate) trait BlobWriter: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StorageError>>;
    /// Makes the blob durable, then visible.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), StorageError>>;
    /// Gives up: removes what was written.
    fn abort(self: Box<Self>) -> BoxFuture<'static, ()>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    /// The contract of [`BlobStorage`], for every implementation.
    async fn conformance(storage: &dyn BlobStorage) {
        let key = "packs/ab/abcd";
        assert!(matches!(storage.read(key, 0..1).await, Err(StorageError::NotFound { .. })));
        let mut dropped = storage.create(key).await.unwrap();
        dropped.write(Bytes::from_static(b"gone")).await.unwrap();
        dropped.abort().await;
        assert!(storage.read(key, 0..1).await.is_err());
        for content in [&b"first"[..], b"again, and longer"] {
            let mut writer = storage.create(key).await.unwrap();
            for part in content.chunks(4) {
                writer.write(Bytes::copy_from_slice(part)).await.unwrap();
            }
            writer.finish().await.unwrap();
            assert_eq!(storage.read(key, 1..4).await.unwrap(), content[1..4]);
            for cut in [0..100, 90..100] {
                assert!(matches!(storage.read(key, cut).await, Err(StorageError::NotFound { .. })));
            }
            storage.check().await.unwrap();
        }
        let name = Digest::of(b"a pack");
        let key = pack_key(&name);
        let mut writer = storage.create(&key).await.unwrap();
        writer.write(Bytes::from_static(b"content")).await.unwrap();
        writer.finish().await.unwrap();
        let listed: Vec<_> = storage.list_packs().map(|found| found.unwrap()).collect().await;
        assert_eq!(listed.iter().map(|(name, stat)| (*name, stat.len)).collect::<Vec<_>>(), [(name, 7)]);
        assert_eq!(storage.stat(&key).await.unwrap().unwrap().len, 7);
        storage.rename(&key, &undo_key(&name)).await.unwrap();
        storage.rename(&key, &undo_key(&name)).await.unwrap();
        assert_eq!(storage.stat(&key).await.unwrap(), None);
        assert_eq!(storage.read(&undo_key(&name), 0..7).await.unwrap(), "content");
        assert_eq!(storage.list_packs().count().await, 0);
        for _ in 0..2 {
            storage.delete(&undo_key(&name)).await.unwrap();
        }
        assert!(storage.read(&undo_key(&name), 0..1).await.is_err());
    }

    #[tokio::test]
    async fn fs_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        let storage = FsStorage::open(dir.path().into()).unwrap();
        conformance(&storage).await;
        assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
        assert!(matches!(FsStorage::open(dir.path().into()), Err(StorageError::InUse { .. })));
        drop(storage);
        std::fs::write(dir.path().join("tmp/left-over"), b"x").unwrap();
        FsStorage::open(dir.path().into()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn remote_keeps_the_contract() {
        let storage = RemoteStorage::new(std::sync::Arc::new(object_store::memory::InMemory::new()), Default::default());
        conformance(&storage).await;
    }

    #[tokio::test]
    async fn a_long_remote_blob_comes_back_whole() {
        let storage = RemoteStorage::new(std::sync::Arc::new(object_store::memory::InMemory::new()), "prefix".into());
        let content: Vec<u8> = (0..12_000_000u32).flat_map(|n| (n / 7).to_le_bytes()[..1].to_vec()).collect();
        let mut writer = storage.create("packs/ab/abcd").await.unwrap();
        for part in content.chunks(999_983) {
            writer.write(Bytes::copy_from_slice(part)).await.unwrap();
        }
        assert!(storage.read("packs/ab/abcd", 0..1).await.is_err(), "not visible before it is finished");
        writer.finish().await.unwrap();
        assert_eq!(storage.read("packs/ab/abcd", 0..content.len() as u64).await.unwrap(), content);
    }
}
