//! Taking a blob: over one request or many, from one server or several.
//!
//! What arrives is hashed, cut and packed on the way in by a thread of its own ([`super::writer`]), so a blob of any length takes
//! little memory and is written once; what the namespace has already is not written at all. When a request ends, also one
//! whose client is gone, everything up to there is made durable, and the row of the upload says how to go on: after a
//! restart, or at another server. The row of the blob, which makes it visible, is written in the transaction that ends the
//! upload, and only if the digest is the one that the client names. An upload that no one touches for [`MAX_AGE`] is
//! forgotten, like one that is cancelled; what it has stored is no one's then.

use std::time::Duration;

use bytes::Bytes;
use layer_format::oci::{Algorithm, OciDigest};
use layer_format::reference::Repository;
use tokio::sync::mpsc;

use super::blob::BlobStream;
use super::hash::{Hasher, InvalidHash};
use super::session::Session;
use super::writer::{Held, Written, write};
use super::{Crowded, Oci};
use crate::db::oci_blob::{BlobRow, oci_blob_get, oci_blob_put, oci_blob_renew};
use crate::db::oci_upload::{oci_upload_count, oci_upload_delete, oci_upload_expire, oci_upload_get, oci_upload_insert, oci_upload_received};
use crate::db::repository::{RepositoryRow, repository_ensure, repository_find};
use crate::db::{DbError, commit};
use crate::service::frames::ReadError;
use crate::service::lease::LongWork;
use crate::service::pack_upload::Pieces;

/// How long an upload is kept that no one goes on with.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Pieces of a body between the network and the writer.
const QUEUE: usize = 4;

/// Why an upload did not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError<E> {
    /// There is no such upload in this repository.
    #[error("the repository has no such upload, or it has ended")]
    Unknown,
    /// The bytes are not those that come next.
    #[error("the next byte of this upload is byte {received}")]
    OutOfOrder {
        /// What is there.
        received: u64,
    },
    /// The body is not as long as its range says.
    #[error("the body has {got} bytes, and its range {wanted}")]
    Length {
        /// By its range.
        wanted: u64,
        /// What came.
        got: u64,
    },
    /// The bytes are not those that the client names.
    #[error("the blob's digest is {got}, and the request names {wanted}")]
    Digest {
        /// As in the request.
        wanted: OciDigest,
        /// Of the bytes.
        got: OciDigest,
    },
    /// The body could not be read to its end; what came is kept.
    #[error("the body did not arrive")]
    Body(#[source] E),
    /// The repository has too many uploads that were begun and not ended.
    #[error("the repository has {0} open uploads: end or cancel some")]
    TooMany(u64),
    /// The blob is longer than this server takes.
    #[error("a blob has at most {0} bytes here")]
    TooLong(u64),
    /// Too many at a time.
    #[error(transparent)]
    Crowded(#[from] Crowded),
    /// The row of the upload cannot be used.
    #[error(transparent)]
    Hash(#[from] InvalidHash),
    /// Storing failed.
    #[error("could not store a blob")]
    Store(#[source] chunker::ImportError),
    /// Reading back failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The server is stopping.
    #[error("a background task was cancelled")]
    Cancelled,
}

/// Why the writer's thread failed: the same, without the body.
pub(super) type WriteError = UploadError<std::convert::Infallible>;

fn widen<E>(error: WriteError) -> UploadError<E> {
    match error {
        UploadError::Unknown => UploadError::Unknown,
        UploadError::OutOfOrder { received } => UploadError::OutOfOrder { received },
        UploadError::Length { wanted, got } => UploadError::Length { wanted, got },
        UploadError::Digest { wanted, got } => UploadError::Digest { wanted, got },
        UploadError::Body(never) => match never {},
        UploadError::TooMany(most) => UploadError::TooMany(most),
        UploadError::TooLong(most) => UploadError::TooLong(most),
        UploadError::Crowded(error) => UploadError::Crowded(error),
        UploadError::Hash(error) => UploadError::Hash(error),
        UploadError::Store(error) => UploadError::Store(error),
        UploadError::Read(error) => UploadError::Read(error),
        UploadError::Database(error) => UploadError::Database(error),
        UploadError::Cancelled => UploadError::Cancelled,
    }
}

/// A part of a blob, as its request describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkRange {
    pub(crate) first: u64,
    /// Inclusive.
    pub(crate) last: u64,
}

impl ChunkRange {
    fn len(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }
}

impl Oci {
    /// Begins an upload, and the repository with it; forgets old ones. Returns its id.
    pub(crate) async fn upload_start<E>(&self, repository: &Repository, algorithm: Algorithm) -> Result<String, UploadError<E>> {
        let id = format!("{:032x}", rand::random::<u128>());
        let mut transaction = self.objects.db.begin().await?;
        let row = repository_ensure(&mut transaction, repository).await?;
        oci_upload_expire(&mut transaction, self.objects.db.now() - MAX_AGE.as_millis() as i64).await?;
        let most = self.limits.max_open_uploads;
        if oci_upload_count(&mut transaction, row.id).await? >= most {
            return Err(UploadError::TooMany(most));
        }
        oci_upload_insert(&mut transaction, row.id, &id, &Session::new(algorithm).to_row(), self.objects.db.now()).await?;
        commit(transaction).await?;
        Ok(id)
    }

    /// How much the upload has received.
    pub(crate) async fn upload_status(&self, repository: &Repository, id: &str) -> Result<Option<u64>, DbError> {
        let mut db = self.objects.db.read().await?;
        match repository_find(&mut db, repository).await? {
            Some(row) => oci_upload_received(&mut db, row.id, id).await,
            None => Ok(None),
        }
    }

    /// Forgets the upload. Says whether it was there.
    pub(crate) async fn upload_cancel(&self, repository: &Repository, id: &str) -> Result<bool, DbError> {
        let _lock = self.sessions.lock(id).await;
        let mut transaction = self.objects.db.begin().await?;
        let Some(row) = repository_find(&mut transaction, repository).await? else { return Ok(false) };
        let deleted = oci_upload_delete(&mut transaction, row.id, id).await?;
        commit(transaction).await?;
        Ok(deleted)
    }

    /// Takes the next part of a blob. Returns how much the upload has received then.
    pub(crate) async fn upload_append<P: Pieces>(
        &self,
        repository: &Repository,
        id: &str,
        range: Option<ChunkRange>,
        body: &mut P,
    ) -> Result<u64, UploadError<P::Error>> {
        let held = self.hold(repository, id, range).await?;
        match self.receive(held, range, body, None).await? {
            Written::Suspended(received) => Ok(received),
            Written::Done | Written::Unverified(..) => Err(UploadError::Cancelled),
        }
    }

    /// Takes the last part of a blob, which may be empty, and makes the blob visible if it has this digest. If it has not,
    /// the upload is over.
    pub(crate) async fn upload_finish<P: Pieces>(
        &self,
        repository: &Repository,
        id: &str,
        range: Option<ChunkRange>,
        body: &mut P,
        digest: &OciDigest,
    ) -> Result<(), UploadError<P::Error>> {
        let mut held = self.hold(repository, id, range).await?;
        if held.session.state.is_empty() {
            held.session = Session::new(digest.algorithm());
        }
        match self.receive(held, range, body, Some(digest.clone())).await {
            Ok(Written::Done) => Ok(()),
            Ok(Written::Suspended(_)) => Err(UploadError::Cancelled),
            Ok(Written::Unverified(row, blob)) => self.verify_stored(repository, id, &row, blob, digest).await,
            Err(error @ UploadError::Digest { .. }) => {
                self.upload_cancel(repository, id).await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn hold<E>(&self, repository: &Repository, id: &str, range: Option<ChunkRange>) -> Result<Held, UploadError<E>> {
        // In this order: who waits for another request of the same upload takes no place from others.
        let lock = self.sessions.lock(id).await;
        let turn = self.upload_turn().await?;
        let (row, upload) = {
            let mut db = self.objects.db.read().await?;
            let row = repository_find(&mut db, repository).await?.ok_or(UploadError::<E>::Unknown)?;
            (row, oci_upload_get(&mut db, row.id, id).await?.ok_or(UploadError::<E>::Unknown)?)
        };
        if let Some(range) = range
            && range.first != upload.received
        {
            return Err(UploadError::OutOfOrder { received: upload.received });
        }
        Ok(Held::new(id, row, Session::from_row(upload)?, lock, turn))
    }

    /// Passes a body on to a writer, which goes on with the upload. What came is kept, whatever happens to the request.
    async fn receive<P: Pieces>(
        &self,
        held: Held,
        range: Option<ChunkRange>,
        body: &mut P,
        close: Option<OciDigest>,
    ) -> Result<Written, UploadError<P::Error>> {
        let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
        let (most, before) = (self.limits.max_blob_bytes, held.session.state.len());
        let store = self.store(held.repository.namespace);
        let _lease = LongWork::begin(self.objects.db.clone(), held.repository.namespace);
        let writing = tokio::task::spawn_blocking(move || write(held, &store, receiver, close));
        let mut got = 0;
        let failure = loop {
            match body.next().await {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    got += bytes.len() as u64;
                    if before.saturating_add(got) > most {
                        break Some(UploadError::TooLong(most));
                    }
                    if let Some(range) = range.filter(|range| got > range.len()) {
                        break Some(UploadError::Length { wanted: range.len(), got });
                    }
                    if sender.send(bytes).await.is_err() {
                        break None;
                    }
                }
                Some(Err(error)) => break Some(UploadError::Body(error)),
                None => match range.filter(|range| got != range.len()) {
                    Some(range) => break Some(UploadError::Length { wanted: range.len(), got }),
                    None => {
                        // An empty piece says that the body ended as it should.
                        let _ = sender.send(Bytes::new()).await;
                        break None;
                    }
                },
            }
        };
        drop(sender);
        let written = writing.await.map_err(|_| UploadError::<P::Error>::Cancelled)?;
        match failure {
            Some(failure) => Err(failure),
            None => written.map_err(widen),
        }
    }

    /// Computes the digest of what is stored, and makes it visible if it is the right one.
    async fn verify_stored<E>(&self, repository: &Repository, id: &str, row: &RepositoryRow, blob: BlobRow, wanted: &OciDigest) -> Result<(), UploadError<E>> {
        let len = blob.size_bytes;
        let mut stream = self.blob_stream(super::blob::Blob { repository: *row, row: blob.clone() }, 0..len);
        let hashing = tokio::task::spawn_blocking({
            let algorithm = wanted.algorithm();
            move || {
                let mut hasher = Hasher::new(algorithm);
                while let Some(bytes) = stream.blocking_recv() {
                    hasher.update(&bytes?);
                }
                Ok::<_, ReadError>(hasher.finish())
            }
        });
        let got = hashing.await.map_err(|_| UploadError::<E>::Cancelled)??.ok_or(UploadError::<E>::Cancelled)?;
        if got != *wanted {
            self.upload_cancel(repository, id).await?;
            return Err(UploadError::Digest { wanted: wanted.clone(), got });
        }
        let mut transaction = self.objects.db.begin().await?;
        oci_upload_delete(&mut transaction, row.id, id).await?;
        oci_blob_renew(&mut transaction, row.id, wanted, &blob).await?;
        commit(transaction).await?;
        Ok(())
    }

    /// Gives the repository a blob that another one has, without the client sending it. Says whether it could: not if `from`
    /// does not have it. Within a namespace nothing is copied but a row; from another one, the server takes the bytes in as if
    /// they had been sent, since namespaces share nothing.
    pub(crate) async fn blob_mount(&self, repository: &Repository, from: &Repository, digest: &OciDigest) -> Result<bool, UploadError<ReadError>> {
        let Some(blob) = self.blob_find(from, digest).await? else { return Ok(false) };
        if repository.namespace() == from.namespace() {
            let mut transaction = self.objects.db.begin().await?;
            let row = repository_ensure(&mut transaction, repository).await?;
            // It may have been deleted meanwhile.
            let there = oci_blob_get(&mut transaction, blob.repository.id, digest).await?;
            let Some(there) = there else { return Ok(false) };
            oci_blob_put(&mut transaction, row.id, digest, &there).await?;
            commit(transaction).await?;
            return Ok(true);
        }
        let id = self.upload_start(repository, digest.algorithm()).await?;
        let len = blob.row.size_bytes;
        let mut body = Copied(self.blob_stream(blob, 0..len));
        match self.upload_finish(repository, &id, None, &mut body, digest).await {
            Ok(()) => Ok(true),
            Err(error) => {
                self.upload_cancel(repository, &id).await?;
                Err(error)
            }
        }
    }
}

/// A stored blob as a body.
struct Copied(BlobStream);

impl Pieces for Copied {
    type Error = ReadError;

    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, ReadError>>> + Send {
        self.0.recv()
    }
}
