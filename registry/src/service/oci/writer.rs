//! The thread that stores a blob while it arrives.

use bytes::Bytes;
use chunker::blob::BlobWriter;
use layer_format::oci::{Algorithm, OciDigest};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, mpsc};

use super::hash::Hasher;
use super::session::Session;
use super::sink::NamespaceStore;
use super::upload::{UploadError, WriteError};
use crate::db::commit;
use crate::db::oci_blob::{BlobContent, BlobRow, oci_blob_renew};
use crate::db::oci_upload::{UploadRow, oci_upload_delete, oci_upload_save};
use crate::db::repository::RepositoryRow;

/// Blobs up to this length are kept in their row: a pack of their own would cost more.
const MAX_INLINE_LEN: usize = 16 << 10;
/// Level of zstd: what container tools push is mostly compressed already.
const ZSTD_LEVEL: i32 = 3;

/// An upload with the right to go on with it.
pub(super) struct Held {
    pub(super) id: String,
    pub(super) repository: RepositoryRow,
    pub(super) session: Session,
    _lock: OwnedMutexGuard<()>,
    _turn: OwnedSemaphorePermit,
}

/// What became of a request.
pub(super) enum Written {
    /// The upload can go on after this many bytes.
    Suspended(u64),
    /// The blob is visible.
    Done,
    /// All of it is stored, and its digest is still to be computed.
    Unverified(RepositoryRow, BlobRow),
}

impl Held {
    /// What a request holds as long as its blob is stored, also when its client is gone.
    pub(super) fn new(id: &str, repository: RepositoryRow, session: Session, lock: OwnedMutexGuard<()>, turn: OwnedSemaphorePermit) -> Self {
        Self { id: id.to_owned(), repository, session, _lock: lock, _turn: turn }
    }
}

/// The writer's thread. A body that ends early leaves the upload where it ended.
pub(super) fn write(held: Held, store: &NamespaceStore, mut body: mpsc::Receiver<Bytes>, close: Option<OciDigest>) -> Result<Written, WriteError> {
    let before = held.session.state.len();
    let Session { mut hasher, state } = held.session;
    let mut writer = BlobWriter::resume(store, ZSTD_LEVEL, state).map_err(WriteError::Store)?;
    let mut complete = false;
    while let Some(bytes) = body.blocking_recv() {
        if bytes.is_empty() {
            complete = true;
            break;
        }
        hasher.update(&bytes);
        writer.push(&bytes).map_err(WriteError::Store)?;
    }
    let Some(wanted) = close.filter(|_| complete) else {
        let session = Session { hasher, state: writer.suspend().map_err(WriteError::Store)? };
        let row = session.to_row();
        store.runtime.block_on(save(store, &held.id, before, &row))?;
        return Ok(Written::Suspended(row.received));
    };
    let same_algorithm = matches!((&hasher, wanted.algorithm()), (Hasher::Sha256(_), Algorithm::Sha256) | (Hasher::Sha512(_), Algorithm::Sha512));
    if same_algorithm {
        // Before the rest is stored: what is not the blob need not be.
        let got = hasher.finish().ok_or(WriteError::Cancelled)?;
        if got != wanted {
            return Err(UploadError::Digest { wanted, got });
        }
    }
    let size_bytes = writer.len();
    let content = match writer.short().filter(|short| short.len() <= MAX_INLINE_LEN) {
        Some(short) => BlobContent::Inline(short.to_vec()),
        None => BlobContent::Recipe(writer.finish().map_err(WriteError::Store)?),
    };
    let blob = BlobRow { size_bytes, content };
    if !same_algorithm {
        return Ok(Written::Unverified(held.repository, blob));
    }
    let record = async {
        let mut transaction = store.objects.db.begin().await?;
        if !oci_upload_delete(&mut transaction, held.repository.id, &held.id).await? {
            return Err(UploadError::Unknown);
        }
        oci_blob_renew(&mut transaction, held.repository.id, &wanted, &blob).await?;
        commit(transaction).await?;
        Ok::<_, WriteError>(Written::Done)
    };
    store.runtime.block_on(record)
}

async fn save(store: &NamespaceStore, id: &str, before: u64, row: &UploadRow) -> Result<(), WriteError> {
    let mut transaction = store.objects.db.begin().await?;
    // Another server went on with it meanwhile, or it was cancelled.
    if !oci_upload_save(&mut transaction, id, before, row, store.objects.db.now()).await? {
        return Err(UploadError::Unknown);
    }
    commit(transaction).await?;
    Ok(())
}
