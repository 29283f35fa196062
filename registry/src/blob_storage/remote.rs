//! Blobs in an object store (S3 and the like). A multipart upload becomes visible, whole and durable, when it is
//! completed; one that is cut is aborted, or left to the bucket's rule for incomplete uploads if the server died.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use layer_format::Digest;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};

use super::{BlobStat, BlobStorage, BlobWriter, StorageError};

/// Parts in flight of one upload; with the default part of 5 MiB this bounds its memory.
const PARTS_IN_FLIGHT: usize = 4;

/// Blobs below a prefix of an object store.
#[derive(Debug)]
pub(crate) struct RemoteStorage {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl RemoteStorage {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix }
    }

    /// By URL; credentials and endpoint come from the environment (`AWS_*`).
    pub(crate) fn open(url: &url::Url) -> Result<Self, StorageError> {
        let options = std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).map(|(name, value)| (name.to_ascii_lowercase(), value));
        let (store, prefix) = object_store::parse_url_opts(url, options).map_err(|source| StorageError::Url {
            url: format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path()),
            source: source.into(),
        })?;
        Ok(Self::new(store.into(), prefix))
    }

    fn path(&self, key: &str) -> Path {
        Path::from_iter(self.prefix.parts().chain(Path::from(key).parts()))
    }
}

fn failed(doing: &'static str, key: &str, source: object_store::Error) -> StorageError {
    match source {
        object_store::Error::NotFound { .. } => StorageError::NotFound { key: key.to_owned() },
        source => StorageError::Remote { doing, key: key.to_owned(), source },
    }
}

fn absent_is_done(done: object_store::Result<()>) -> object_store::Result<()> {
    match done {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        done => done,
    }
}

fn blob_stat(meta: &object_store::ObjectMeta) -> BlobStat {
    BlobStat { len: meta.size, written_at: meta.last_modified.timestamp_millis() }
}

impl BlobStorage for RemoteStorage {
    fn create(&self, key: &str) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, StorageError>> {
        let (path, key) = (self.path(key), key.to_owned());
        Box::pin(async move {
            let upload = self.store.put_multipart(&path).await.map_err(|source| failed("start", &key, source))?;
            Ok(Box::new(RemoteWriter { upload: WriteMultipart::new(upload), key }) as Box<dyn BlobWriter>)
        })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StorageError>> {
        let (path, key) = (self.path(key), key.to_owned());
        Box::pin(async move { absent_is_done(self.store.delete(&path).await).map_err(|source| failed("remove", &key, source)) })
    }

    fn rename(&self, from: &str, to: &str) -> BoxFuture<'_, Result<(), StorageError>> {
        let (from, to, key) = (self.path(from), self.path(to), from.to_owned());
        Box::pin(async move { absent_is_done(self.store.rename(&from, &to).await).map_err(|source| failed("rename", &key, source)) })
    }

    fn stat(&self, key: &str) -> BoxFuture<'_, Result<Option<BlobStat>, StorageError>> {
        let (path, key) = (self.path(key), key.to_owned());
        Box::pin(async move {
            match self.store.head(&path).await {
                Ok(meta) => Ok(Some(blob_stat(&meta))),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(source) => Err(failed("look at", &key, source)),
            }
        })
    }

    fn list_packs(&self) -> BoxStream<'_, Result<(Digest, BlobStat), StorageError>> {
        let listed = self.store.list(Some(&self.path("packs")));
        let packs = listed.filter_map(|found| async {
            match found {
                Ok(meta) => meta.location.filename().and_then(|name| Digest::from_hex(name).ok()).map(|name| Ok((name, blob_stat(&meta)))),
                Err(source) => Some(Err(failed("list", "packs", source))),
            }
        });
        packs.boxed()
    }

    fn read(&self, key: &str, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, StorageError>> {
        let (path, key) = (self.path(key), key.to_owned());
        Box::pin(async move {
            let wanted = range.end.saturating_sub(range.start);
            let bytes = self.store.get_range(&path, range).await.map_err(|source| failed("read", &key, source))?;
            if bytes.len() as u64 == wanted { Ok(bytes) } else { Err(StorageError::NotFound { key }) }
        })
    }
}

struct RemoteWriter {
    upload: WriteMultipart,
    key: String,
}

impl BlobWriter for RemoteWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async move {
            self.upload.wait_for_capacity(PARTS_IN_FLIGHT).await.map_err(|source| failed("write", &self.key, source))?;
            self.upload.put(bytes);
            Ok(())
        })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), StorageError>> {
        Box::pin(async move { self.upload.finish().await.map(drop).map_err(|source| failed("complete", &self.key, source)) })
    }

    fn abort(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Err(error) = self.upload.abort().await {
                tracing::warn!(key = self.key, %error, "could not abort an upload");
            }
        })
    }
}
