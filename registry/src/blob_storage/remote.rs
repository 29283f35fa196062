//! Blobs in an object store (S3 and the like). A blob that fits one part is put by one request; a longer one is a
//! multipart upload, whose parts leave while the blob is still arriving, and which becomes visible, whole and durable, when
//! it is completed. A cut one is aborted; what a killed server left is for the bucket's rule for incomplete uploads
//! (`AbortIncompleteMultipartUpload`; docs/operations.md).
//!
//! A read is one ranged request, or, with a folder for [`Copies`] of blocks, mostly none; nothing is ever listed to serve a client. Requests that fail are repeated with growing
//! pauses by `object_store`; what fails after that is an outage.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use layer_format::Digest;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::copies::Copies;
use super::{BlobStat, BlobStorage, BlobWriter, StorageError};
use crate::config::S3Options;

/// Length of a part: the least that S3 takes. All but the last are of this length, as some stores demand.
const PART_LEN: usize = 5 << 20;
/// Parts in flight of all uploads together: bounds their memory, beside one part that each upload collects.
const PARTS_IN_FLIGHT: usize = 16;
/// Parts in flight of one upload.
const PARTS_OF_ONE: usize = 4;
/// How long requests are repeated before it counts as an outage.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_RETRIES: usize = 4;
/// How long a connection may take, and a whole request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Stores of one's own ignore the region, but requests are signed with one.
const DEFAULT_REGION: &str = "us-east-1";

/// Blobs below a prefix of an object store.
#[derive(Debug)]
pub(crate) struct RemoteStorage {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    in_flight: Arc<Semaphore>,
    copies: Option<Copies>,
}

impl RemoteStorage {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix, in_flight: Arc::new(Semaphore::new(PARTS_IN_FLIGHT)), copies: None }
    }

    /// Keeps copies of what is read in a folder that is the server's alone, at most so many bytes; none if 0.
    pub(crate) fn with_copies(self, folder: std::path::PathBuf, max_bytes: u64) -> Result<Self, StorageError> {
        let copies = (max_bytes > 0).then(|| Copies::open(folder, max_bytes)).transpose()?;
        Ok(Self { copies, ..self })
    }

    /// By URL. What `options` do not say comes from the environment (`AWS_*`).
    pub(crate) fn open(url: &url::Url, options: &S3Options) -> Result<Self, StorageError> {
        let invalid = |source: object_store::Error| StorageError::Url {
            url: format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path()),
            source: source.into(),
        };
        if url.scheme() == "s3" {
            let prefix = Path::from_url_path(url.path()).map_err(|error| invalid(error.into()))?;
            return Ok(Self::new(Arc::new(s3(url, options).build().map_err(invalid)?), prefix));
        }
        let environment = std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).map(|(name, value)| (name.to_ascii_lowercase(), value));
        let (store, prefix) = object_store::parse_url_opts(url, environment).map_err(invalid)?;
        Ok(Self::new(store.into(), prefix))
    }

    fn path(&self, key: &str) -> Path {
        Path::from_iter(self.prefix.parts().chain(Path::from(key).parts()))
    }

    async fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let wanted = range.end.saturating_sub(range.start);
        let bytes = match &self.copies {
            Some(copies) => copies.read(key, range, |range| self.fetch(key, range)).await?,
            None => self.fetch(key, range).await?,
        };
        if bytes.len() as u64 == wanted { Ok(bytes) } else { Err(StorageError::NotFound { key: key.to_owned() }) }
    }

    /// The bytes of a range, fewer if the blob ends before.
    async fn fetch(&self, key: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let path = self.path(key);
        let begin = range.start;
        match self.store.get_range(&path, range).await {
            Ok(bytes) => Ok(bytes),
            // A range that begins behind the end is refused: that is no outage.
            Err(source @ object_store::Error::Generic { .. }) => match self.store.head(&path).await {
                Ok(there) if there.size <= begin => Ok(Bytes::new()),
                _ => Err(failed("read", key, source)),
            },
            Err(source) => Err(failed("read", key, source)),
        }
    }
}

fn s3(url: &url::Url, options: &S3Options) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(url.host_str().unwrap_or_default());
    let region = options.region.clone().or_else(|| std::env::var("AWS_REGION").or_else(|_| std::env::var("AWS_DEFAULT_REGION")).ok());
    builder = builder.with_region(region.unwrap_or_else(|| DEFAULT_REGION.to_owned()));
    let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    let endpoint = options.endpoint.clone().or_else(|| variables.iter().find_map(|name| std::env::var(name).ok()));
    // Whoever names a plain endpoint means it.
    let is_plain = endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let path_style = options.path_style.unwrap_or(endpoint.is_some());
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(id) = &options.access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(key) = &options.secret_access_key {
        builder = builder.with_secret_access_key(key);
    }
    let client = ClientOptions::new().with_allow_http(is_plain).with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT);
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2.0 };
    builder.with_virtual_hosted_style_request(!path_style).with_client_options(client).with_retry(RetryConfig {
        backoff,
        max_retries: MAX_RETRIES,
        retry_timeout: RETRY_TIMEOUT,
    })
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
        let writer = RemoteWriter {
            store: Arc::clone(&self.store),
            path: self.path(key),
            key: key.to_owned(),
            buffer: BytesMut::new(),
            upload: None,
            parts: JoinSet::new(),
            in_flight: Arc::clone(&self.in_flight),
        };
        // The store hears of it with the first part.
        Box::pin(async move { Ok(Box::new(writer) as Box<dyn BlobWriter>) })
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
        let key = key.to_owned();
        Box::pin(async move { self.read_range(&key, range).await })
    }

    fn copies_bytes(&self) -> Option<u64> {
        self.copies.as_ref().map(Copies::bytes)
    }

    fn forget(&self, key: &str) {
        if let Some(copies) = &self.copies {
            copies.forget(key);
        }
    }

    fn check(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async move {
            // Nothing has this key: that the store says so shows that it is there and lets us in.
            match self.store.head(&self.path("ready")).await {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(source) => Err(failed("reach", "ready", source)),
            }
        })
    }
}

struct RemoteWriter {
    store: Arc<dyn ObjectStore>,
    path: Path,
    key: String,
    /// What did not make a part yet.
    buffer: BytesMut,
    /// `None` as long as one part is enough.
    upload: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
    in_flight: Arc<Semaphore>,
}

impl RemoteWriter {
    fn failed(&self, doing: &'static str, source: object_store::Error) -> StorageError {
        failed(doing, &self.key, source)
    }

    async fn joined(&mut self, most: usize) -> Result<(), StorageError> {
        while self.parts.len() > most {
            let Some(joined) = self.parts.join_next().await else { break };
            joined.unwrap_or_else(|source| Err(object_store::Error::JoinError { source })).map_err(|source| self.failed("write", source))?;
        }
        Ok(())
    }

    /// Sends a part.
    async fn send(&mut self, part: Bytes) -> Result<(), StorageError> {
        self.joined(PARTS_OF_ONE - 1).await?;
        let permit = Arc::clone(&self.in_flight).acquire_owned().await.ok();
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => {
                let upload = self.store.put_multipart(&self.path).await.map_err(|source| failed("start", &self.key, source))?;
                self.upload.insert(upload)
            }
        };
        let sent = upload.put_part(PutPayload::from_bytes(part));
        self.parts.spawn(async move {
            let sent = sent.await;
            drop(permit);
            sent
        });
        Ok(())
    }

    async fn push(&mut self, mut bytes: Bytes) -> Result<(), StorageError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PART_LEN - self.buffer.len()));
            self.buffer.extend_from_slice(&piece);
            if self.buffer.len() == PART_LEN {
                let part = std::mem::take(&mut self.buffer).freeze();
                self.send(part).await?;
            }
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<(), StorageError> {
        let rest = std::mem::take(&mut self.buffer).freeze();
        if self.upload.is_none() {
            // The name is that of the bytes: whoever else writes it writes the same.
            return self.store.put(&self.path, PutPayload::from_bytes(rest)).await.map(drop).map_err(|source| self.failed("write", source));
        }
        if !rest.is_empty() {
            self.send(rest).await?;
        }
        self.joined(0).await?;
        if let Some(upload) = &mut self.upload {
            upload.complete().await.map_err(|source| failed("complete", &self.key, source))?;
        }
        self.upload = None;
        Ok(())
    }

    async fn give_up(&mut self) {
        self.parts.shutdown().await;
        if let Some(mut upload) = self.upload.take()
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(key = self.key, %error, "could not abort an upload");
        }
    }
}

impl Drop for RemoteWriter {
    fn drop(&mut self) {
        // Its request was cut off.
        if let (Some(mut upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

impl BlobWriter for RemoteWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(self.push(bytes))
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, Result<(), StorageError>> {
        Box::pin(async move {
            let completed = self.complete().await;
            if completed.is_err() {
                self.give_up().await;
            }
            completed
        })
    }

    fn abort(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.give_up().await })
    }
}
