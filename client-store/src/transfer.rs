//! Push and pull: all of an image, or of a state, to a registry, or from one.
//!
//! Only what the other side lacks travels, as frames that are compressed already: a push sends stored frames as they
//! are, a pull stores received ones as they are. Both can be cut at any point and repeated: what has arrived stays, and
//! what is missing is asked for anew. An image has a name on the other side only when all of it is there.

pub(crate) mod assemble;
mod like;
mod pull;
mod push;
mod restore;
mod sink;
mod state;

use std::path::PathBuf;
use std::sync::Arc;

use layer_format::{Digest, FormatError};
use serde::Serialize;

pub use pull::pull;
pub use push::push;
pub use restore::restore;
pub use state::{PulledState, pull_state, push_state};

use crate::error::StoreError;
use crate::origin::OriginError;
use crate::remote::retry::RetryPolicy;
use crate::store::WalkError;

/// What a transfer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Asking for the manifest.
    Manifest,
    /// Pull: fetching layer manifests, trees and recipes.
    Trees,
    /// Push: walking the image and asking what is missing.
    Compare,
    /// Moving data.
    Data,
    /// Push: sending the manifest. Pull: keeping it.
    Commit,
}

/// Told how a transfer goes. Calls come from several threads and must return at once.
pub trait Progress: Send + Sync {
    /// A phase begins. `total_bytes` is what it will move, if known: encoded bytes for a push, plain ones for a pull.
    fn phase(&self, phase: Phase, total_bytes: Option<u64>);
    /// So many bytes more are done in this phase.
    fn advance(&self, bytes: u64);
}

/// Tells no one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: Phase, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
}

/// How a transfer is done.
#[derive(Clone)]
pub struct TransferOptions {
    /// Requests that carry data at a time.
    pub parallel: usize,
    /// How failed requests are repeated. A request that made progress starts over with the count.
    pub retry: RetryPolicy,
    /// Who is told.
    pub progress: Arc<dyn Progress>,
    /// Pull: whether what is wanted may come compressed against an earlier version that is here.
    pub deltas: bool,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self { parallel: 3, retry: RetryPolicy::default(), progress: Arc::new(Silent), deltas: true }
    }
}

impl std::fmt::Debug for TransferOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransferOptions").field("parallel", &self.parallel).field("retry", &self.retry).finish_non_exhaustive()
    }
}

/// What a push or pull did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TransferReport {
    /// The image or state.
    pub digest: Digest,
    /// Objects that the image needs, as far as they had to be looked at; 0 if a shortcut knew that all are there.
    pub objects: u64,
    /// Objects that travelled.
    pub moved_objects: u64,
    /// Their uncompressed bytes.
    pub moved_plain_bytes: u64,
    /// Bytes of the packs sent, or of the frames and objects received.
    pub moved_bytes: u64,
    /// Packs sent or written.
    pub packs: u64,
    /// Requests made, repeated ones included.
    pub requests: u64,
}

impl TransferReport {
    fn new(digest: Digest) -> Self {
        Self { digest, objects: 0, moved_objects: 0, moved_plain_bytes: 0, moved_bytes: 0, packs: 0, requests: 0 }
    }
}

/// Why a transfer ended. What had arrived by then stays; the same call goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The registry failed or refused.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image has no name in the local store.
    #[error("{image} is not in the local store")]
    NotLocal {
        /// The image.
        image: String,
    },
    /// Objects that must be sent are not here, or damaged.
    #[error(
        "{count} objects of {image} are neither on the registry nor (undamaged) in the local store, such as {example}; `turbo pull` fetches them from where the image came from"
    )]
    Incomplete {
        /// The image.
        image: String,
        /// How many.
        count: u64,
        /// One of them.
        example: Digest,
    },
    /// An object that was here was found damaged on the way. A pull notices, forgets it, and fetches it.
    #[error("object {digest} in the local store is damaged; `turbo verify --repair` forgets what is, the same call then fetches it")]
    LocalDamage {
        /// The object.
        digest: Digest,
    },
    /// The registry lacks what its own manifest names.
    #[error("the registry lacks {count} objects of {image}: {}; the image has to be pushed again", list(examples))]
    MissingOnRegistry {
        /// The image.
        image: String,
        /// How many.
        count: u64,
        /// Some of them.
        examples: Vec<Digest>,
    },
    /// Objects keep arriving damaged.
    #[error("{count} objects of {image} arrived damaged again and again, such as {example}; the registry's administrator can verify its storage")]
    Damaged {
        /// The image.
        image: String,
        /// How many.
        count: u64,
        /// One of them.
        example: Digest,
    },
    /// An object is not of the kind that the image says.
    #[error("object {digest} of the image is not valid")]
    Format {
        /// The object.
        digest: Digest,
        /// The rule that it breaks.
        #[source]
        source: FormatError,
    },
    /// There is not enough room.
    #[error("{path} has {free} bytes free, and {image} has {needed} to fetch; make room, or set a smaller cap and run `turbo gc`")]
    DiskFull {
        /// The image.
        image: String,
        /// The store.
        path: PathBuf,
        /// Uncompressed bytes to fetch.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A part of this process died.
    #[error("a worker of the transfer failed: {0}")]
    Worker(String),
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::to_string).collect::<Vec<_>>().join(", ")
}

impl From<WalkError> for TransferError {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Store(error) => Self::Store(error),
            WalkError::Format { digest, source, .. } => Self::Format { digest, source },
        }
    }
}

/// Runs work on the disk away from the threads that serve the network.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, TransferError> + Send + 'static) -> Result<T, TransferError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| TransferError::Worker(error.to_string()))?
}
