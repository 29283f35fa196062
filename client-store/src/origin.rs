//! What the fetcher needs of a registry.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use layer_format::Digest;
use layer_format::api::LaunchRequest;
use layer_format::reference::{ImageReference, Repository};

/// A record of an object stream, received. The bytes of `Object` are not verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// An object's bytes.
    Object(Bytes),
    /// A stored frame, encoded.
    Frame(Bytes),
    /// The registry has no such object.
    Missing(Digest),
    /// The image manifest.
    Image(Bytes),
    /// The model that the registry predicts with.
    Model(Bytes),
    /// Prefixes ([`Digest::prefix64`]) of the objects that will follow, in order.
    Plan(Vec<u64>),
    /// The answer is complete; if not empty, why it ends early.
    End(String),
}

/// Records as they arrive. A stream that ends without [`Received::End`] yields an error as its last item.
pub type ObjectStream = BoxStream<'static, Result<Received, OriginError>>;

/// Why a request to the registry failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OriginError {
    /// No connection, or it broke: worth another try.
    #[error("{url} cannot be reached: {reason}")]
    Network {
        /// The registry.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The registry is busy: worth another try, not sooner than `retry_after`.
    #[error("the registry is busy ({message})")]
    Busy {
        /// Its message.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// There is no such image, model or object.
    #[error("{what} is not on the registry {url}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry.
        url: String,
    },
    /// The registry answered, and refuses.
    #[error("the registry refused: {message} ({code})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its error code.
        code: String,
        /// Its message.
        message: String,
    },
    /// The answer is not what the protocol says: damaged on the way, or not a Turbo registry. Worth another try.
    #[error("the answer of {url} is not valid: {reason}")]
    Protocol {
        /// The registry.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl OriginError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Busy { .. } | Self::Protocol { .. })
    }
}

/// A registry, as the fetcher sees it. Implemented over HTTP by `remote::Registry` and by fakes in tests. A call makes
/// exactly one request and never retries: that is the fetcher's business. Dropping a future or a stream ends its request.
pub trait Origin: Send + Sync {
    /// The objects of these names, in this order, of at most [`layer_format::api::MAX_DIGESTS`].
    /// `launch` takes them out of that launch's stream; `frames` allows stored frames in the answer.
    fn objects(
        &self,
        repository: &Repository,
        digests: Vec<Digest>,
        launch: Option<&str>,
        frames: bool,
    ) -> BoxFuture<'static, Result<ObjectStream, OriginError>>;

    /// The launch request: one answer with manifests, trees, model and predicted objects.
    fn launch(&self, image: &ImageReference, launch: &str, request: LaunchRequest) -> BoxFuture<'static, Result<ObjectStream, OriginError>>;

    /// Opens connections ahead of need, so that a first demand does not wait for a handshake. Errors do not matter.
    fn warm_up(&self, connections: usize) -> BoxFuture<'static, ()>;

    /// Bytes of answers as they came over the wire, if they are counted.
    fn received_bytes(&self) -> Option<u64> {
        None
    }

    /// Sends an encoded trace.
    fn put_trace(&self, repository: &Repository, trace: Vec<u8>) -> BoxFuture<'static, Result<(), OriginError>>;
}
