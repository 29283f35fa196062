//! A sandbox from a layer: the upper directory of an overlay mount that holds what the layer's tree says.
//!
//! Whiteouts become character devices 0:0, opaque directories get `user.overlay.opaque`; modes, times, attributes, hard links,
//! holes, symbolic links and fifos are restored. Owners are not: all belongs to whoever restores. Sockets and devices are left
//! out, and named in [`Restored::skipped`], as are attributes that take a privilege.
//!
//! **All or nothing.** The tree is made in a directory beside the target and renamed at the end, when its bytes are on the
//! disk: a crash leaves no half sandbox, only a directory whose name starts with `.restore-`.
//!
//! **Hostile trees.** Nothing outside of that directory is ever touched: each parent is opened beneath it without following a
//! link, each name is new (`O_EXCL`), and set-user-ID bits mean nothing to others in a folder that only its owner can enter. A
//! tree in which something lies below a file or a link is refused. Length is bounded by [`RestoreOptions::max_bytes`].
//!
//! The capture index of the new sandbox is written, too, so that its first capture reads only what has changed since.

mod maker;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use layer_format::tree::Scan;
use layer_format::{Digest, FormatError, LayerPath};
use rustix::fs::{CWD, Mode, mkdirat, openat, syncfs};

use crate::beneath::DIRECTORY;
use crate::import::Skipped;
use crate::progress::Progress;
use crate::source::{ObjectSource, SourceError};
use maker::Maker;

/// How to restore.
#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions<'a> {
    /// Where the capture index of the sandbox is written; see [`crate::CaptureOptions::folder`].
    pub folder: &'a Path,
    /// Most bytes of data, holes not counted, that are written: what the layer says that it has.
    pub max_bytes: u64,
}

/// A finished restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Entries made.
    pub entries: u64,
    /// Bytes of data written.
    pub bytes: u64,
    /// What could not be restored here: to show as warnings.
    pub skipped: Vec<Skipped>,
}

/// Why a restore failed. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// An object could not be had.
    #[error("could not read what is to be restored")]
    Source(#[source] SourceError),
    /// An object is not what its place says.
    #[error("object {digest} is not valid: verify the store and fetch it again")]
    Object {
        /// The object.
        digest: Digest,
        /// What is wrong.
        source: FormatError,
    },
    /// The tree is one that no sandbox can have.
    #[error("{path}: {rule}")]
    Tree {
        /// The entry.
        path: LayerPath,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// What is in the place of a checkout is not to be replaced.
    #[error("{} {reason}", target.display())]
    Occupied {
        /// The place.
        target: PathBuf,
        /// What is there, and what to do.
        reason: &'static str,
    },
    /// The file system did not do what it should.
    #[error("could not {step} {path} below {}", target.display())]
    Write {
        /// What was tried.
        step: &'static str,
        /// The entry.
        path: LayerPath,
        /// The sandbox.
        target: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes `target`, which must not exist (or be an empty directory), of the tree with this root. See the module.
///
/// # Errors
/// [`RestoreError`]; then `target` is as it was.
pub fn restore(
    root: Digest,
    source: &dyn ObjectSource,
    target: &Path,
    options: &RestoreOptions<'_>,
    progress: &dyn Progress,
) -> Result<Restored, RestoreError> {
    let failed = |step: &'static str, error: io::Error| RestoreError::Write { step, path: LayerPath::root(), target: target.to_owned(), source: error };
    let temporary = Temporary::create(target).map_err(|error| failed("make a directory beside", error))?;
    let fd = openat(CWD, &temporary.path, DIRECTORY, Mode::empty()).map_err(|error| failed("open", error.into()))?;
    let mut maker = Maker::new(fd, target, source, progress, options);
    let mut scan = Scan::all(root);
    while let Some(entry) = maker.next(&mut scan)? {
        maker.entry(&entry)?;
    }
    maker.index(root, &temporary.path)?;
    maker.finish_directories()?;
    syncfs(&maker.root).map_err(|error| failed("write back", error.into()))?;
    std::fs::rename(&temporary.path, target).map_err(|error| failed("put in place", error))?;
    temporary.keep();
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| failed("write back", error))?;
    Ok(maker.restored)
}

/// A new directory that goes away unless it is kept.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn create(target: &Path) -> io::Result<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let path = target.with_file_name(format!(".restore-{:016x}", u64::from_le_bytes(random)));
        mkdirat(CWD, &path, Mode::from_raw_mode(0o700))?;
        Ok(Self { path })
    }

    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Directories have their own bits only at the very end: until then all of it can be removed.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
