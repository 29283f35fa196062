//! What the fetcher needs of the local store.

use bytes::Bytes;
use layer_format::Digest;

use crate::error::StoreError;

/// Objects kept on this machine, by digest. Implemented by the store on disk and, in tests, by a map.
///
/// Contract: what `get` returns matches its digest: it was verified on this very call, or the bytes have not left
/// memory since they were. A damaged object counts as absent, so that it is fetched again. Calls may come from many
/// threads, and other processes may add and evict at any time: what `contains` said may be gone at `get`.
pub trait ObjectCache: Send + Sync {
    /// The object's bytes, verified, or `None` if it is not here (or damaged).
    ///
    /// # Errors
    /// [`StoreError`] if the disk fails; never because an object is absent or damaged.
    fn get(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError>;

    /// For each digest whether it is here. Cheap: looks at the index only, reads and verifies nothing.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    fn contains(&self, digests: &[Digest]) -> Result<Vec<bool>, StoreError>;

    /// Keeps objects that the caller has verified. They can be read by `get` in this process when the call returns, by
    /// other processes and after a crash once `flush` has returned. Does not wait for the disk.
    ///
    /// # Errors
    /// [`StoreError`] if they could not be kept (disk full); the caller still has the bytes and goes on.
    fn insert(&self, objects: &[(Digest, Bytes)]) -> Result<(), StoreError>;

    /// Makes all that was inserted so far visible to other processes, and durable.
    ///
    /// # Errors
    /// [`StoreError`] if the disk fails.
    fn flush(&self) -> Result<(), StoreError>;
}
