//! Taking a pack.
//!
//! The body goes to the storage and to a verifier at the same time, in bounded memory. Only when the verifier accepts
//! the whole is it made durable, and only then are its rows committed: a crash before the commit leaves at most a file
//! that no row names, which `turbo-registry reconcile` finds. Each stored pack has a random name of its own in the storage, so
//! that the removal of one never hits another of the same content.

use std::sync::Arc;

use bytes::Bytes;
use layer_format::Digest;
use layer_format::pack::{FOOTER_LEN, Footer, PackIndex};
use tokio::sync::mpsc;

use super::frames::ReadError;
use super::objects::Objects;
use super::pack_verifier::{InvalidPack, PackVerifier, ReadBases, VerifiedPack};
use crate::blob_storage::{BlobStorage, BlobWriter, StorageError, pack_key};
use crate::db::base::base_insert;
use crate::db::gc::{candidate_delete, candidate_find};
use crate::db::namespace::{NamespaceId, namespace_ensure, namespace_find};
use crate::db::object::{object_insert_pack, object_lens};
use crate::db::pack::{StoredFrame, pack_insert};
use crate::db::pack_life::{PackRow, pack_by_digest};
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
    let name = Digest(rand::random());
    let mut writer = storage.create(&pack_key(&name)).await?;
    let verified = match receive(&mut *writer, digest, read_bases(objects, known), body).await {
        Ok(verified) => verified,
        Err(error) => {
            writer.abort().await;
            return Err(error);
        }
    };
    writer.finish().await?;
    let bases: Vec<Digest> = verified.bases.iter().copied().collect();
    let new = NewPack { digest, name, size_bytes: verified.size_bytes, frames: &verified.frames, index: &verified.index, bases: &bases };
    match pack_record(db, storage, Owner::Name(namespace), new).await? {
        Recorded::New => Ok(true),
        Recorded::Known => Ok(false),
        Recorded::BasesGone => Err(InvalidPack::Bases.into()),
    }
}

/// Reads what delta frames need, within the namespace, from the verifier's thread.
pub(crate) fn read_bases(objects: &Objects, namespace: Option<NamespaceId>) -> ReadBases {
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

/// Whose pack it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner<'a> {
    /// A namespace, which is made if it is new.
    Name(&'a str),
    /// A namespace that exists.
    Id(NamespaceId),
}

/// A pack whose bytes are durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewPack<'a> {
    /// The BLAKE3 of its bytes.
    pub(crate) digest: Digest,
    /// Under which the storage keeps it.
    pub(crate) name: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) frames: &'a [StoredFrame],
    pub(crate) index: &'a PackIndex,
    /// What its delta frames need, each once.
    pub(crate) bases: &'a [Digest],
}

/// What became of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is one of the namespace's now.
    New,
    /// The namespace had it; the copy was removed.
    Known,
    /// The namespace does not have all that its delta frames need any more; it was removed.
    BasesGone,
}

/// Makes a pack's objects visible, in one transaction; those that are there already, and what its delta frames need, are no
/// candidates for removal any more. A pack that is not recorded is removed from the storage.
pub(crate) async fn pack_record(db: &Db, storage: &Arc<dyn BlobStorage>, owner: Owner<'_>, pack: NewPack<'_>) -> Result<Recorded, DbError> {
    let mut transaction = db.begin().await?;
    let namespace = match owner {
        Owner::Name(name) => namespace_ensure(&mut transaction, name).await?,
        Owner::Id(id) => id,
    };
    let digests: Vec<Digest> = pack.index.objects.iter().map(|object| object.digest).chain(pack.bases.iter().copied()).collect();
    let candidates = candidate_find(&mut transaction, namespace, &digests).await?;
    candidate_delete(&mut transaction, namespace, &candidates).await?;
    let inserted = pack_insert(&mut transaction, namespace, &pack.digest, &pack.name, pack.size_bytes, pack.index.objects.len(), pack.frames).await?;
    if let Some(id) = inserted {
        object_insert_pack(&mut transaction, namespace, id, pack.index).await?;
        // What went away since it was read must not be needed.
        if object_lens(&mut transaction, namespace, pack.bases).await?.len() < pack.bases.len() {
            drop(transaction);
            remove_copy(storage, &pack.name).await;
            return Ok(Recorded::BasesGone);
        }
        base_insert(&mut transaction, namespace, id, pack.bases).await?;
    }
    commit(transaction).await?;
    match inserted {
        Some(_) => Ok(Recorded::New),
        None => {
            remove_copy(storage, &pack.name).await;
            Ok(Recorded::Known)
        }
    }
}

async fn remove_copy(storage: &Arc<dyn BlobStorage>, name: &Digest) {
    if let Err(error) = storage.delete(&pack_key(name)).await {
        tracing::warn!(error = crate::chain(&error), "could not remove the copy of a pack; `turbo-registry reconcile` will");
    }
}

/// Whether the namespace has the pack and all its objects, which stay there for a lease from now.
pub(crate) async fn pack_promise(objects: &Objects, storage: &Arc<dyn BlobStorage>, namespace: &str, digest: &Digest) -> Result<bool, ReadError> {
    let found = {
        let mut db = objects.db.read().await?;
        match namespace_find(&mut db, namespace).await? {
            Some(namespace) => pack_by_digest(&mut db, namespace, digest).await?.map(|pack| (namespace, pack)),
            None => None,
        }
    };
    let Some((namespace, pack)) = found.filter(|(_, pack)| pack.retired_at.is_none()) else { return Ok(false) };
    let index = match read_index(&**storage, &pack).await {
        Ok(index) => index,
        // Then it is pushed again, which heals it.
        Err(error) if error.is_loss() => return Ok(false),
        Err(error) => return Err(error),
    };
    let digests: Vec<Digest> = index.objects.iter().map(|object| object.digest).collect();
    let present = objects.promise(namespace, &digests).await?;
    Ok(digests.iter().all(|digest| present.contains_key(digest)))
}

/// The index at the end of a stored pack.
pub(crate) async fn read_index(storage: &dyn BlobStorage, pack: &PackRow) -> Result<PackIndex, ReadError> {
    let key = pack_key(&pack.name);
    let start = pack.size_bytes.saturating_sub(FOOTER_LEN as u64);
    let footer = Footer::decode(&storage.read(&key, start..pack.size_bytes).await?, pack.size_bytes).map_err(ReadError::Damaged)?;
    let index = storage.read(&key, footer.index_offset..start).await?;
    PackIndex::decode(&index, &footer).map_err(ReadError::Damaged)
}
