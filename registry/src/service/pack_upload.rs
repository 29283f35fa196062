//! Taking a pack.
//!
//! The body goes to the storage and to a verifier at the same time, in bounded memory. Only when the verifier accepts
//! the whole is it made durable, and only then are its rows committed: a crash before the commit leaves at most a file
//! that no row names, which the same pack, pushed again, replaces.

use std::sync::Arc;

use bytes::Bytes;
use layer_format::Digest;
use tokio::sync::mpsc;

use super::objects::Objects;
use super::pack_verifier::{InvalidPack, PackVerifier, ReadBases, VerifiedPack};
use crate::blob_storage::{BlobStorage, BlobWriter, StorageError, pack_key};
use crate::db::base::base_insert;
use crate::db::namespace::{NamespaceId, namespace_ensure, namespace_find};
use crate::db::object::{object_insert_pack, object_lens};
use crate::db::pack::{pack_exists, pack_insert};
use crate::db::{Db, DbError, commit};

/// Pieces of a body between the network and the verifier.
const QUEUE: usize = 8;

/// Why a pack was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError<E> {
    /// The body could not be read to its end.
    #[error("the body did not arrive")]
    Body(#[source] E),
    /// The body is not the pack.
    #[error(transparent)]
    Invalid(#[from] InvalidPack),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The server is stopping.
    #[error("a background task was cancelled")]
    Cancelled,
}

/// A body that comes in pieces.
pub(crate) trait Pieces: Send {
    /// Why it could not be read.
    type Error: Send;

    /// The next piece.
    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, Self::Error>>> + Send;
}

/// Whether the namespace has the pack.
pub(crate) async fn pack_known(db: &Db, namespace: &str, digest: &Digest) -> Result<bool, DbError> {
    let mut db = db.read().await?;
    match namespace_find(&mut db, namespace).await? {
        Some(namespace) => pack_exists(&mut db, namespace, digest).await,
        None => Ok(false),
    }
}

/// Takes a pack; says whether it is new to the namespace. When it returns, the pack survives a power failure.
pub(crate) async fn pack_store<P: Pieces>(
    objects: &Objects,
    storage: &Arc<dyn BlobStorage>,
    namespace: &str,
    digest: Digest,
    body: &mut P,
) -> Result<bool, PackError<P::Error>> {
    let db = &objects.db;
    let known = namespace_find(&mut db.read().await?, namespace).await?;
    let mut writer = storage.create(&pack_key(&digest)).await?;
    let verified = match receive(&mut *writer, digest, read_bases(objects, known), body).await {
        Ok(verified) => verified,
        Err(error) => {
            writer.abort().await;
            return Err(error);
        }
    };
    writer.finish().await?;
    record(db, namespace, digest, &verified).await
}

/// Reads what delta frames need, within the namespace, from the verifier's thread.
fn read_bases(objects: &Objects, namespace: Option<NamespaceId>) -> ReadBases {
    let (frames, runtime) = (Arc::clone(&objects.frames), tokio::runtime::Handle::current());
    Box::new(move |bases| {
        let Some(namespace) = namespace else { return Ok(None) };
        runtime.block_on(async {
            if frames.are_bases(namespace, &[bases.to_vec()]).await? != [true] {
                return Ok(None);
            }
            match frames.prefix(namespace, bases).await {
                Ok(prefix) => Ok(Some(prefix)),
                // Gone since, or damaged.
                Err(error) if error.is_loss() => Ok(None),
                Err(error) => Err(error),
            }
        })
    })
}

async fn receive<P: Pieces>(writer: &mut dyn BlobWriter, digest: Digest, read_bases: ReadBases, body: &mut P) -> Result<VerifiedPack, PackError<P::Error>> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(QUEUE);
    let verifying = tokio::task::spawn_blocking(move || {
        let mut verifier = PackVerifier::new(digest, read_bases);
        while let Some(bytes) = receiver.blocking_recv() {
            // An empty piece says that the body ended as it should.
            if bytes.is_empty() {
                return verifier.finish().map(Some);
            }
            verifier.push(&bytes)?;
        }
        Ok(None)
    });
    let mut failure = None;
    loop {
        let bytes = match body.next().await {
            Some(Ok(bytes)) if bytes.is_empty() => continue,
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => {
                failure = Some(PackError::Body(error));
                break;
            }
            None => {
                // If the verifier has given up, its answer says why.
                let _ = sender.send(Bytes::new()).await;
                break;
            }
        };
        if sender.send(bytes.clone()).await.is_err() {
            break;
        }
        if let Err(error) = writer.write(bytes).await {
            failure = Some(error.into());
            break;
        }
    }
    drop(sender);
    let verified = verifying.await.map_err(|_| PackError::Cancelled)?;
    match failure {
        Some(failure) => Err(failure),
        None => verified?.ok_or(PackError::Cancelled),
    }
}

async fn record<E>(db: &Db, namespace: &str, digest: Digest, pack: &VerifiedPack) -> Result<bool, PackError<E>> {
    let mut transaction = db.begin().await?;
    let namespace = namespace_ensure(&mut transaction, namespace).await?;
    let inserted = pack_insert(&mut transaction, namespace, &digest, pack.size_bytes, pack.index.objects.len(), &pack.frames).await?;
    if let Some(id) = inserted {
        object_insert_pack(&mut transaction, namespace, id, &pack.index).await?;
        let bases: Vec<Digest> = pack.bases.iter().copied().collect();
        // What went away since it was read must not be needed.
        if object_lens(&mut transaction, namespace, &bases).await?.len() < bases.len() {
            return Err(InvalidPack::Bases.into());
        }
        base_insert(&mut transaction, namespace, id, &bases).await?;
    }
    commit(transaction).await?;
    Ok(inserted.is_some())
}
