//! What can go wrong between the application's read and the bytes.

use layer_format::{Digest, FormatError};

/// Why an object could not be had. Nothing unverified is ever returned in its place.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Neither the local store nor the registry has the object.
    #[error("object {digest} is neither in the local store nor on the registry")]
    NotFound {
        /// The object.
        digest: Digest,
    },
    /// The registry could not be reached in time.
    #[error("object {digest} could not be fetched within {waited_s} s: {reason}")]
    Unreachable {
        /// The object.
        digest: Digest,
        /// How long was tried, in seconds.
        waited_s: u64,
        /// The last failure.
        reason: String,
    },
    /// The object is not local, and the network must not be used.
    #[error("object {digest} is not in the local store, and turbo runs offline; `turbo pull` the image first")]
    Offline {
        /// The object.
        digest: Digest,
    },
    /// The registry answered, but refused.
    #[error("the registry refused: {message}")]
    Refused {
        /// Its error code and message.
        message: String,
    },
    /// An object is not what its reference says.
    #[error("object {digest} is not valid")]
    Format {
        /// The object.
        digest: Digest,
        /// Which rule of the format it breaks.
        #[source]
        source: FormatError,
    },
    /// The local store failed.
    #[error("the local store failed: {message}")]
    Store {
        /// What failed, with the path.
        message: String,
        /// The operating system's error number, if there is one (28 = disk full).
        errno: Option<i32>,
    },
}

/// Why the local store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An operation on a file failed.
    #[error("{action} {path} failed")]
    Io {
        /// What was done, such as `writing`.
        action: &'static str,
        /// To which file.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The index failed.
    #[error("the index of the store failed: {message}")]
    Index {
        /// What it said.
        message: String,
    },
    /// A file of the store is not what it should be.
    #[error("{path} is damaged; `turbo verify` says what it held and `turbo pull` fetches it again")]
    Damaged {
        /// The file.
        path: std::path::PathBuf,
        /// Which rule it breaks.
        #[source]
        source: FormatError,
    },
    /// The index cannot be used.
    #[error("the index {path} is damaged ({reason}); remove that folder: it is built again from the packs when the store is opened next")]
    IndexDamaged {
        /// Its folder.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A prefix names more than one image.
    #[error("`{reference}` could be any of {}: give more digits", matches.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// All that match.
        matches: Vec<String>,
    },
    /// An image manifest is not valid.
    #[error("the manifest of {reference} is not valid")]
    InvalidImage {
        /// The image.
        reference: String,
        /// Which rule of the format it breaks.
        #[source]
        source: FormatError,
    },
    /// The manifest of a state is not valid.
    #[error("the manifest of state {digest} is not valid")]
    InvalidState {
        /// The state.
        digest: Digest,
        /// Which rule of the format it breaks.
        #[source]
        source: FormatError,
    },
    /// The store was made by a newer version.
    #[error("the store at {path} has format {found}, this turbo knows {known}: use a newer turbo")]
    NewerFormat {
        /// The store.
        path: std::path::PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
}

impl StoreError {
    /// The operating system's error number, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            message = format!("{message}: {inner}");
            source = inner.source();
        }
        Self::Store { message, errno: error.errno() }
    }
}
