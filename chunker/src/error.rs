//! What can go wrong in an import, with the file and the remedy.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use layer_format::{FormatError, LayerPath};

use crate::tar_import::TarError;

/// Why an import failed. Nothing that was not finished before is visible in the sink.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A file or directory may not be read.
    #[error("no permission to read {}: import as its owner or as root, make it readable with `chmod u+r`, or exclude it", path.display())]
    Denied {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or directory could not be read for another reason.
    #[error("could not {step} {}", path.display())]
    Read {
        /// What was tried.
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or directory was changed, replaced or removed during the import.
    #[error("{} changed while it was imported: try again when nothing writes to it", path.display())]
    Changed {
        /// The file or directory.
        path: PathBuf,
    },
    /// The source is not a directory.
    #[error("{} is not a directory: to import a tar file, use the tar import", path.display())]
    NotADirectory {
        /// The source.
        path: PathBuf,
    },
    /// An entry does not fit the bounds of a layer.
    #[error("{} does not fit into a layer: shorten or exclude it", path.display())]
    Unfit {
        /// The file or directory.
        path: PathBuf,
        /// The bound.
        source: FormatError,
    },
    /// An entry's path, names or attributes are beyond a layer's bounds.
    #[error("{path}: {rule}")]
    Entry {
        /// The entry.
        path: LayerPath,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The tree has more entries than a layer can hold.
    #[error("the tree has more entries than a layer can hold: import it as several layers")]
    TooManyEntries,
    /// The compression level does not exist.
    #[error("zstd has no level {level}: choose one of {min}..={max}")]
    Level {
        /// What was asked for.
        level: i32,
        /// Lowest level.
        min: i32,
        /// Highest level.
        max: i32,
    },
    /// A tar is damaged, hostile or not a tar.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The sink failed.
    #[error("could not store what was imported")]
    Sink(#[source] SinkError),
    /// A thread could not be started.
    #[error("could not start a thread: allow more processes (`ulimit -u`) or use fewer threads")]
    Thread(#[source] io::Error),
    /// The importer itself is at fault.
    #[error("the importer failed: {0}; please report this")]
    Internal(String),
    /// Another part of the import failed first; never returned to a caller.
    #[doc(hidden)]
    #[error("the import was stopped")]
    Stopped,
}

impl ImportError {
    /// The error of a failed system call on `path`.
    pub(crate) fn read(step: &'static str, path: PathBuf, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied { path, source },
            _ => Self::Read { step, path, source },
        }
    }
}

/// Why a sink could not do what it was asked to: a sentence, and what caused it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl SinkError {
    /// An error with its cause. `message` names the file and the remedy, and does not repeat the cause.
    pub fn new(message: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { message: message.into(), source: Some(source.into()) }
    }

    /// An error without a further cause.
    pub fn message(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }
}
