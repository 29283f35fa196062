//! Blobs that are stored by what is in them, and made again bit for bit: a compressed layer shares nothing with the next build's,
//! what is in it nearly everything.
//!
//! A blob is taken as it comes ([`super::upload`]), so a push is as fast as without this. A little later, in the background, it
//! is decompressed, and its plain bytes are stored with the contents of files apart, cut as the files alone would be; so they are the
//! same chunks as those of the layer that it becomes, and of the builds before ([`ingest`]). What the compressor decided is kept as
//! corrections of what a known one would have ([`chunker::deflate`]). Then the blob is made again from what was stored, as
//! for a client ([`serve`]), and only if its digest is right does its row refer to that in place of its own chunks, which are then no
//! one's. Whatever goes wrong before leaves the row as it was.
//!
//! Which blobs are to be looked at is in the database, so a restart loses nothing, and of several servers one does each.

mod ingest;
mod serve;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use layer_format::Digest;
use layer_format::oci::OciDigest;
use layer_format::rebuild::Rebuild;
use layer_format::recipe::Recipe;
use tokio::sync::Semaphore;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use self::ingest::{IngestError, Ingested, ingest};
use super::Oci;
use super::blob::Blob;
use super::hash::Hasher;
use super::unpack::StreamReader;
use crate::db::namespace::NamespaceId;
use crate::db::oci_blob::{BlobContent, BlobRow};
use crate::db::oci_rebuild::{
    Pending, Saving, SavingSum, oci_blob_any, oci_blob_set_rebuild, oci_pending_claim, oci_pending_delete, oci_pending_next, oci_saving_put, oci_saving_reason,
    oci_savings,
};
use crate::db::repository::{RepositoryRow, repository_find};
use crate::db::{DbError, commit, now_ms};
use crate::service::cache::SharedLru;
use crate::service::frames::ReadError;
use crate::service::lease::LongWork;

/// How often the database is asked for blobs to look at.
const PAUSE: Duration = Duration::from_secs(1);
/// How long nobody else looks at a blob that a server looks at, also if the server dies.
const LEASE_MS: i64 = 15 * 60 * 1000;
/// How often a blob is tried that fails for reasons that are not its own.
const MAX_ATTEMPTS: u32 = 4;

/// Bytes of sections that were made lately and are kept.
const KEPT_BYTES: u64 = 64 << 20;

/// Sections that are being made, or were lately.
#[derive(Debug)]
pub(super) struct Rebuilds {
    /// As many at a time as there are cores, and one that reads; each takes some 20 MiB.
    turns: Semaphore,
    /// By blob and number of the section.
    made: SharedLru<(Digest, u32), Bytes>,
}

impl Default for Rebuilds {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { turns: Semaphore::new(cores + 1), made: SharedLru::new(KEPT_BYTES) }
    }
}

/// Why a blob was not looked at to its end.
#[derive(Debug, thiserror::Error)]
enum RebuildError {
    /// The blob's chunks could not be read, or those of its rebuild.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The new chunks could not be stored.
    #[error("could not store what is in a blob")]
    Store(#[source] chunker::ImportError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The server is stopping.
    #[error("a background task was cancelled")]
    Cancelled,
}

impl Oci {
    /// Looks at blobs in the background, each `delay` after it was pushed: until the server stops.
    pub(crate) fn rebuild_in_background(self: &Arc<Self>, delay: Duration) {
        let oci = Arc::clone(self);
        self.in_background(async move {
            loop {
                // Whoever wants to run an image goes first; and then most of what is in its layers is stored already.
                let is_free = oci.conversions.available_permits() == oci.limits.max_conversions;
                if !is_free || !oci.rebuild_next(delay).await {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
    }

    /// Looks at the blob that has waited longest. Says whether there was one.
    async fn rebuild_next(&self, delay: Duration) -> bool {
        let claimed = async {
            let due = now_ms() - delay.as_millis() as i64;
            let next = {
                let mut db = self.objects.db.read().await?;
                oci_pending_next(&mut db, due).await?
            };
            let Some(next) = next else { return Ok::<_, DbError>(None) };
            let mut transaction = self.objects.db.begin().await?;
            let is_ours = oci_pending_claim(&mut transaction, &next, LEASE_MS).await?;
            commit(transaction).await?;
            Ok(is_ours.then_some(next))
        };
        let pending = match claimed.await {
            // It was begun so often and never ended: perhaps it ends the server.
            Ok(Some(pending)) if pending.attempts > MAX_ATTEMPTS => {
                if let Err(error) = self.rebuild_give_up(&pending).await {
                    tracing::warn!(error = crate::chain(&error), "cannot note that a blob is kept as it was pushed");
                }
                return true;
            }
            Ok(Some(pending)) => pending,
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(error = crate::chain(&error), "cannot ask which blobs are to be looked at");
                return false;
            }
        };
        let digest = &pending.digest;
        match self.rebuild(&pending).await {
            Ok(Some(Saving { outcome: Ok(encoder), pushed_bytes, stored_bytes, .. })) => {
                self.metrics.blobs_rebuilt.fetch_add(1, Ordering::Relaxed);
                self.metrics.rebuilt_pushed_bytes.fetch_add(pushed_bytes, Ordering::Relaxed);
                self.metrics.rebuilt_stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
                tracing::info!(blob.digest = %digest, pushed_bytes, stored_bytes, encoder, "blob {digest} is stored by what is in it");
            }
            Ok(Some(Saving { outcome: Err(reason), .. })) => {
                self.metrics.blobs_kept.fetch_add(1, Ordering::Relaxed);
                tracing::info!(blob.digest = %digest, reason, "blob {digest} is kept as it was pushed: {reason}");
            }
            Ok(None) => {}
            Err(error) if pending.attempts < MAX_ATTEMPTS => {
                tracing::warn!(blob.digest = %digest, error = crate::chain(&error), "blob {digest} could not be looked at; it is tried again later");
            }
            Err(error) => {
                tracing::error!(blob.digest = %digest, error = crate::chain(&error), "blob {digest} cannot be looked at, and is kept as it was pushed");
                if let Err(error) = self.rebuild_give_up(&pending).await {
                    tracing::warn!(error = crate::chain(&error), "cannot note that a blob is kept as it was pushed");
                }
            }
        }
        true
    }

    async fn rebuild_give_up(&self, pending: &Pending) -> Result<(), DbError> {
        let mut transaction = self.objects.db.begin().await?;
        if let Some((_, row)) = oci_blob_any(&mut transaction, pending.namespace, &pending.digest).await? {
            let saving = kept(row.size_bytes, 0, "it could not be read");
            oci_saving_put(&mut transaction, pending.namespace, &pending.digest, &saving).await?;
        }
        oci_pending_delete(&mut transaction, pending).await?;
        commit(transaction).await
    }

    /// Looks at one blob; `None` if nothing is to be done.
    async fn rebuild(&self, pending: &Pending) -> Result<Option<Saving>, RebuildError> {
        let (namespace, digest) = (pending.namespace, &pending.digest);
        let mut transaction = self.objects.db.begin().await?;
        let found = oci_blob_any(&mut transaction, namespace, digest).await?;
        let was_kept = oci_saving_reason(&mut transaction, namespace, digest).await?.is_some();
        let (repository, row) = match found {
            Some((repository, row)) if !was_kept && matches!(row.content, BlobContent::Recipe(_)) => (repository, row),
            // Pushed again, to this or another repository of the namespace: the others' rebuild serves, if it is whole.
            Some((repository, row @ BlobRow { content: BlobContent::Rebuilt(..), .. })) if !was_kept => {
                drop(transaction);
                return self.rebuild_adopt(pending, repository, row).await.map(|()| None);
            }
            _ => {
                // Gone, or looked at before.
                oci_pending_delete(&mut transaction, pending).await?;
                commit(transaction).await?;
                return Ok(None);
            }
        };
        drop(transaction);
        // What is stored is no one's until the row refers to it.
        let _lease = LongWork::begin(self.objects.db.clone(), namespace);
        let saving = match self.take_apart(repository, &row).await? {
            Err(reason) => kept(row.size_bytes, 0, &reason),
            Ok(ingested) => match self.is_same(repository, &row, &BlobContent::Rebuilt(ingested.recipe.clone(), ingested.head), digest).await? {
                false => kept(row.size_bytes, ingested.plain_bytes, "it could not be made again bit for bit"),
                true => return self.rebuild_commit(pending, row.size_bytes, ingested).await.map(Some),
            },
        };
        let mut transaction = self.objects.db.begin().await?;
        oci_saving_put(&mut transaction, namespace, digest, &saving).await?;
        oci_pending_delete(&mut transaction, pending).await?;
        commit(transaction).await?;
        Ok(Some(saving))
    }

    /// Takes a rebuild of the namespace over to all of its repositories that have the blob in chunks.
    async fn rebuild_adopt(&self, pending: &Pending, repository: RepositoryRow, row: BlobRow) -> Result<(), RebuildError> {
        let is_whole = self.is_same(repository, &row, &row.content, &pending.digest).await?;
        let mut transaction = self.objects.db.begin().await?;
        if let (true, BlobContent::Rebuilt(recipe, head)) = (is_whole, &row.content) {
            oci_blob_set_rebuild(&mut transaction, pending.namespace, &pending.digest, recipe, head).await?;
        }
        oci_pending_delete(&mut transaction, pending).await?;
        Ok(commit(transaction).await?)
    }

    async fn rebuild_commit(&self, pending: &Pending, pushed_bytes: u64, ingested: Ingested) -> Result<Saving, RebuildError> {
        let Ingested { recipe, head, plain_bytes, stored_bytes, encoder } = ingested;
        let saving = Saving { pushed_bytes, plain_bytes, stored_bytes, outcome: Ok(encoder) };
        let mut transaction = self.objects.db.begin().await?;
        oci_blob_set_rebuild(&mut transaction, pending.namespace, &pending.digest, &recipe, &head).await?;
        oci_saving_put(&mut transaction, pending.namespace, &pending.digest, &saving).await?;
        oci_pending_delete(&mut transaction, pending).await?;
        commit(transaction).await?;
        Ok(saving)
    }

    /// Stores what is in the blob; the inner error says why the blob is to be kept as it is.
    async fn take_apart(&self, repository: RepositoryRow, row: &BlobRow) -> Result<Result<Ingested, String>, RebuildError> {
        let len = row.size_bytes;
        let stream = self.blob_stream(Blob { repository, row: row.clone() }, 0..len);
        let store = self.store(repository.namespace);
        let work = tokio::task::spawn_blocking(move || ingest(StreamReader::new(stream), len, &store));
        match work.await.map_err(|_| RebuildError::Cancelled)? {
            Ok(ingested) => Ok(Ok(ingested)),
            Err(IngestError::Keep(reason)) => Ok(Err(reason)),
            Err(IngestError::Store(error)) => Err(RebuildError::Store(error)),
            Err(IngestError::Read(error)) => match error.downcast::<ReadError>() {
                Ok(error) => Err(error.into()),
                Err(error) => Ok(Err(format!("it could not be read: {error}"))),
            },
        }
    }

    /// Whether the blob comes back: made again from what is stored, as for a client.
    async fn is_same(&self, repository: RepositoryRow, row: &BlobRow, content: &BlobContent, digest: &OciDigest) -> Result<bool, RebuildError> {
        let again = Blob { repository, row: BlobRow { size_bytes: row.size_bytes, content: content.clone() } };
        let mut stream = ReceiverStream::new(self.blob_stream(again, 0..row.size_bytes));
        let mut hasher = Hasher::new(digest.algorithm());
        while let Some(bytes) = stream.next().await {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(ReadError::Damaged(_)) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            hasher = tokio::task::spawn_blocking(move || {
                hasher.update(&bytes);
                hasher
            })
            .await
            .map_err(|_| RebuildError::Cancelled)?;
        }
        Ok(hasher.finish().as_ref() == Some(digest))
    }

    /// What came of the blobs of a repository; `None` if there is no such repository.
    pub(crate) async fn savings(&self, repository: &layer_format::reference::Repository) -> Result<Option<Vec<SavingSum>>, DbError> {
        let mut db = self.objects.db.read().await?;
        match repository_find(&mut db, repository).await? {
            Some(row) => oci_savings(&mut db, row.id).await.map(Some),
            None => Ok(None),
        }
    }

    /// Streams a part of a blob that is made again.
    pub(super) fn rebuilt_stream(
        &self,
        namespace: NamespaceId,
        recipe: Recipe,
        head: Rebuild,
        range: std::ops::Range<u64>,
        sender: tokio::sync::mpsc::Sender<Result<Bytes, ReadError>>,
    ) {
        let source = serve::Source::new(self.reader(namespace), recipe, head, Arc::clone(&self.rebuilds));
        tokio::spawn(async move {
            if let Err(error) = source.send(range, &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
    }
}

fn kept(pushed_bytes: u64, plain_bytes: u64, reason: &str) -> Saving {
    Saving { pushed_bytes, plain_bytes, stored_bytes: pushed_bytes, outcome: Err(reason.to_owned()) }
}
