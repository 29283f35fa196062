//! Reading objects that a namespace may see.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use layer_format::Digest;
use layer_format::frame::Frame;

use super::frames::{Frames, ReadError};
use crate::db::gc::{candidate_delete, candidate_find};
use crate::db::namespace::NamespaceId;
use crate::db::object::{Location, object_lens, object_locate};
use crate::db::{Db, DbError, commit};

/// Finds and reads objects.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    pub(crate) db: Db,
    pub(crate) frames: Arc<Frames>,
    /// Those that may be found; all of the namespace if `None`.
    pub(crate) only: Option<Arc<HashSet<Digest>>>,
}

impl Objects {
    /// The same, of which nothing but these objects is found.
    pub(crate) fn only(&self, visible: HashSet<Digest>) -> Self {
        Self { only: Some(Arc::new(visible)), ..self.clone() }
    }

    /// Whether this object may be found, if it is there.
    pub(crate) fn may_find(&self, digest: &Digest) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(digest))
    }

    /// Where these objects are; those that the namespace does not have are left out.
    pub(crate) async fn locate(&self, namespace: NamespaceId, digests: &[Digest]) -> Result<HashMap<Digest, Location>, DbError> {
        let mut db = self.db.read().await?;
        match &self.only {
            None => object_locate(&mut db, namespace, digests).await,
            Some(only) => {
                let visible: Vec<Digest> = digests.iter().filter(|digest| only.contains(*digest)).copied().collect();
                object_locate(&mut db, namespace, &visible).await
            }
        }
    }

    /// The lengths of those of the objects that the namespace has.
    pub(crate) async fn lens(&self, namespace: NamespaceId, digests: &[Digest]) -> Result<HashMap<Digest, u32>, DbError> {
        let mut db = self.db.read().await?;
        object_lens(&mut db, namespace, digests).await
    }

    /// The same as [`Objects::lens`], for a caller who relies on it: what is there stays for [`LEASE`](super::lease::LEASE).
    pub(crate) async fn promise(&self, namespace: NamespaceId, digests: &[Digest]) -> Result<HashMap<Digest, u32>, DbError> {
        self.rescue(namespace, digests).await?;
        self.lens(namespace, digests).await
    }

    /// The same as [`Objects::locate`], for a caller who relies on it.
    pub(crate) async fn promise_places(&self, namespace: NamespaceId, digests: &[Digest]) -> Result<HashMap<Digest, Location>, DbError> {
        self.rescue(namespace, digests).await?;
        self.locate(namespace, digests).await
    }

    /// Takes objects out of the queue of removals. Before they are looked up: what was removed before is not found then.
    async fn rescue(&self, namespace: NamespaceId, digests: &[Digest]) -> Result<(), DbError> {
        let candidates = {
            let mut db = self.db.read().await?;
            candidate_find(&mut db, namespace, digests).await?
        };
        if candidates.is_empty() {
            return Ok(());
        }
        let mut transaction = self.db.begin().await?;
        candidate_delete(&mut transaction, namespace, &candidates).await?;
        commit(transaction).await
    }

    /// The object's bytes, verified.
    pub(crate) async fn read(&self, digest: &Digest, location: &Location) -> Result<Vec<u8>, ReadError> {
        let loaded = self.frames.frame(location.frame).await;
        let frame = loaded.inspect_err(|error| report(digest, location, error))?;
        let bytes = verified(&frame, location.slot, digest).map(<[u8]>::to_vec);
        bytes.ok_or_else(|| {
            let error = ReadError::Damaged(layer_format::FormatError::DigestMismatch { what: "object" });
            report(digest, location, &error);
            error
        })
    }
}

/// The object in this slot of the frame, if it is the one that the digest names.
pub(crate) fn verified<'a>(frame: &'a Frame, slot: u16, digest: &Digest) -> Option<&'a [u8]> {
    frame.object(slot.into()).filter(|bytes| Digest::of(bytes) == *digest)
}

/// Logs that a stored object cannot be read.
pub(crate) fn report(digest: &Digest, location: &Location, error: &ReadError) {
    let chain = crate::chain(error);
    tracing::error!(object.digest = %digest, place = ?location.frame, error = chain, "cannot read object {digest}, which is recorded as stored");
}
