//! A layer from a sandbox: the upper directory of an overlay mount, of which only what changed is read.
//!
//! A character device 0:0 is a whiteout, a directory with `user.overlay.opaque` is opaque; other attributes of overlayfs
//! are dropped. Owners are set to 0:0, and the root directory has no time, so that equal content gives equal digests on
//! every machine. Sockets and devices are left out and named in [`Captured::imported`]`.skipped`. Everything else is kept:
//! modes, times, attributes, links, holes, fifos.
//!
//! **Cost.** Every name is looked at (`lstat`), and a file is opened only if it is not the one that the *capture index* knows:
//! same device, inode number, length, `mtime` and `ctime`, the latter older than that capture (see the module `index`).
//! The index lies in [`CaptureOptions::folder`]; without it, or with a damaged one, all files are read.
//! Content that is known and that the store lost is read again.
//!
//! **Crashes.** Nothing in the sandbox is changed but the permission bits of what its owner may not read; a journal in the
//! same folder undoes that ([`undo_unlocked`]). What a killed capture has put into the store is of use to the next one.
//!
//! **A sandbox in use.** With [`CaptureOptions::live`] each file is written back before it is read: a program that goes on
//! writing through a mapping then changes its `ctime`, and the next capture notices. A file that changes while it is read
//! fails the capture ([`ImportError::Changed`]): freeze the programs, or try again.

pub(crate) mod index;
pub(crate) mod known;
pub(crate) mod oldest;
pub(crate) mod unlock;
pub(crate) mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer_format::LayerPath;
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, statat, unlinkat};

use crate::error::ImportError;
use crate::import::{ImportOptions, Imported, settings};
use crate::pipeline;
use crate::progress::Progress;
use crate::scan::Scanner;
use crate::sink::ObjectSink;
use crate::sorted::Sorted;
use crate::source::ObjectSource;
use index::{IndexReader, IndexWriter};
use known::KnownFiles;
use unlock::Unlocker;
use walk::CaptureWalk;

/// How to capture.
#[derive(Clone, Copy)]
pub struct CaptureOptions<'a> {
    /// Where the capture index and the journal are: a folder of the container's own, outside of the sandbox.
    pub folder: &'a Path,
    /// Whether a path of the sandbox, with all that is below, is left out.
    pub leave_out: &'a (dyn Fn(&LayerPath) -> bool + Sync),
    /// Programs may be writing to the sandbox.
    pub live: bool,
    /// Level of zstd.
    pub zstd_level: i32,
    /// Worker threads; 0 for one for each core.
    pub threads: usize,
}

impl std::fmt::Debug for CaptureOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureOptions").field("folder", &self.folder).field("live", &self.live).finish_non_exhaustive()
    }
}

impl<'a> CaptureOptions<'a> {
    /// The capture of everything in a sandbox that no one uses.
    pub fn new(folder: &'a Path) -> Self {
        Self { folder, leave_out: &|_| false, live: false, zstd_level: 3, threads: 0 }
    }
}

/// A finished capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The tree, and what of it is new in the store.
    pub imported: Imported,
    /// Files that were opened, to read them.
    pub files_read: u64,
}

/// Captures the sandbox `upper` into `store`. See the module for what it costs and what a crash leaves.
///
/// # Errors
/// As [`crate::import_directory`]; [`ImportError::Changed`] also if a program writes to the sandbox meanwhile.
pub fn capture<S: ObjectSink + ObjectSource>(upper: &Path, options: &CaptureOptions<'_>, store: &S, progress: &dyn Progress) -> Result<Captured, ImportError> {
    let import = ImportOptions { zstd_level: options.zstd_level, threads: options.threads, owner: Some((0, 0)), overlay: true, ..ImportOptions::default() };
    let failed = |error: std::io::Error| ImportError::read("prepare the capture of", upper.to_owned(), error);
    let unlocker = Arc::new(Unlocker::open(upper, &journal(options.folder)).map_err(failed)?);
    unlock_root(upper, &unlocker).map_err(|error| failed(error.into()))?;
    let mut settings = settings(&import)?;
    settings.source = Some(store);
    settings.reader.syncs = options.live;
    settings.reader.unlocker = Some(Arc::clone(&unlocker));
    let path = index_path(options.folder);
    // From now on a change to a file gives it a `ctime` at or after this.
    let begun = file_system_now(upper).map_err(|error| failed(error.into()))?;
    let mut index = IndexWriter::create(&path, begun);
    let walk = CaptureWalk { leave_out: options.leave_out, unlocker };
    let known = KnownFiles { index: IndexReader::open(&path), dev: None, sink: store, source: store };
    let scanner = Scanner::open(upper, &import, &settings.reader, Some(walk), Some(known))?;
    let imported = pipeline::run(&settings, store, progress, Sorted::with_index(&mut index), |feed| scanner.run(feed))?;
    index.finish();
    Ok(Captured { imported, files_read: settings.reader.opened.load(Ordering::Relaxed) })
}

/// Puts back the permission bits that a capture of `upper` with this folder changed before it was killed. Call it before a
/// sandbox is used again; it costs one look for a file that is not there.
///
/// # Errors
/// If the journal cannot be read or removed.
pub fn undo_unlocked(upper: &Path, folder: &Path) -> std::io::Result<()> {
    unlock::undo(upper, &journal(folder))
}

/// Where the capture index of a container is.
pub(crate) fn index_path(folder: &Path) -> PathBuf {
    folder.join("capture.index")
}

fn journal(folder: &Path) -> PathBuf {
    folder.join("capture.unlocked")
}

#[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the fields' types differ between architectures")]
fn unlock_root(upper: &Path, unlocker: &Unlocker) -> rustix::io::Result<()> {
    let stat = statat(CWD, upper, rustix::fs::AtFlags::empty())?;
    match stat.st_mode & 0o500 {
        0o500 => Ok(()),
        _ => unlocker.unlock(b"", stat.st_dev as u64, stat.st_ino as u64),
    }
}

/// What the clock of the file system beside `path` says: the time that a change made now would get.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the fields' types differ between architectures")]
pub(crate) fn file_system_now(path: &Path) -> rustix::io::Result<(i64, u32)> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let file = match openat(CWD, folder, flags | OFlags::TMPFILE, mode) {
        Ok(file) => file,
        // A file system without nameless files.
        Err(_) => {
            let name = folder.join(format!(".turbo-clock-{}", std::process::id()));
            let file = openat(CWD, &name, flags | OFlags::CREATE | OFlags::NOFOLLOW, mode)?;
            let _ = rustix::fs::futimens(&file, &now());
            let _ = unlinkat(CWD, &name, rustix::fs::AtFlags::empty());
            file
        }
    };
    let stat = fstat(&file)?;
    Ok((stat.st_ctime as i64, stat.st_ctime_nsec as u32))
}

fn now() -> rustix::fs::Timestamps {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    rustix::fs::Timestamps { last_access: now, last_modification: now }
}
