//! Traces of the last runs, kept beside the store: the newest of each repository. And recordings, in files: what they
//! say in numbers ([`summary`]) and as a picture ([`waterfall`]).

pub mod summary;
pub mod waterfall;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use layer_format::recording::Recording;
use layer_format::reference::Repository;
use layer_format::trace::Trace;

/// Where the newest trace of a repository is.
pub fn path(home: &Path, repository: &Repository) -> PathBuf {
    home.join("traces").join(repository.as_str().replace('/', "+"))
}

/// Keeps a trace in place of the one before. A full disk loses it, and nothing else.
pub fn save(home: &Path, repository: &Repository, trace: &Trace) {
    let path = path(home, repository);
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || {
        std::fs::create_dir_all(home.join("traces"))?;
        std::fs::write(&temporary, trace.encode())?;
        std::fs::rename(&temporary, &path)
    };
    if let Err(error) = write() {
        let _ = std::fs::remove_file(&temporary);
        tracing::warn!("the trace of {repository} could not be kept: {error}");
    }
}

/// The newest trace of a repository.
pub fn load(home: &Path, repository: &Repository) -> Result<Trace> {
    let path = path(home, repository);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("there is no trace of {repository} here; run it first"),
        read => read.with_context(|| format!("reading {}", path.display()))?,
    };
    Trace::decode(&bytes).with_context(|| format!("{} is damaged", path.display()))
}

/// A recording, or a bare trace, from a file.
///
/// # Errors
/// If it cannot be read, or is neither.
pub fn open(file: &Path) -> Result<Recording> {
    let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Recording::decode(&bytes).with_context(|| format!("{} is neither a recording nor a trace", file.display()))
}
