//! A plain directory with the files of an image: its layers merged, on all cores.
//!
//! Modes, times, attributes, hard links, holes, symbolic links, pipes and, for the superuser, owners and devices are restored.
//! Where owners cannot be, everything belongs to whoever checks out, and set-user-ID bits are left out: they would give that
//! user's rights away. Sockets are left out. What is left out is named in [`CheckedOut::skipped`].
//!
//! **At once.** The tree is made in a directory beside the target, written back to the disk, and exchanged with what is there. So
//! the target is the old version or the new one, also after a crash; the old one is removed after that.
//!
//! **Only what changed.** A file that the last checkout here made, and that nobody has touched since (by device, inode number,
//! length, `mtime` and `ctime`, as in an import), gets a second name in the new tree if content, mode, owner and attributes are
//! what the new version has; then only its `mtime` may differ, and is set after the exchange. With another mode its content is
//! shared where the file system can (reflink). All else is written from the store. What the last checkout made is known from an
//! index in [`CheckoutOptions::folder`]; without it, or with a damaged one, everything is written.
//!
//! **Never someone else's files.** A directory is replaced only if it is empty, or is the one that the last checkout left there,
//! unless [`CheckoutOptions::overwrite`] says otherwise.
//!
//! **Hostile trees.** Nothing outside of the new directory is touched: each parent is opened beneath it without following a link,
//! each name is new (`O_EXCL`), no one else can enter it while it is made, and a tree in which something lies below a file or a
//! link is refused.
//!
//! Memory: [`BATCH_LEN`] bytes of content and some frames for each worker, and what is known of directories and of names of hard
//! links: about 100 bytes each.

mod entries;
mod kept;
mod large;
mod make;
mod place;
mod remove;
mod walk;
mod work;

use std::path::Path;

use layer_format::Digest;

use crate::import::Skipped;
use crate::progress::Progress;
use crate::restore::RestoreError;
use crate::source::ObjectSource;

/// Bytes of content that a worker writes at a time, mostly.
const BATCH_LEN: u64 = 1 << 20;
/// Most entries that a worker makes at a time.
const BATCH_ITEMS: usize = 256;

/// How to check out.
#[derive(Clone, Copy, Debug)]
pub struct CheckoutOptions<'a> {
    /// A folder for what is remembered of checkouts, and nothing else.
    pub folder: &'a Path,
    /// Replace also a directory that no checkout has made. What is in it is removed.
    pub overwrite: bool,
    /// Worker threads; 0 for one for each core.
    pub threads: usize,
}

/// A finished checkout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckedOut {
    /// Entries of the directory, itself among them.
    pub entries: u64,
    /// Bytes of content, with holes; a file with several names counts once.
    pub bytes: u64,
    /// Files written.
    pub written_files: u64,
    /// Bytes of data written to them, without holes.
    pub written_bytes: u64,
    /// Files that were there already.
    pub kept_files: u64,
    /// What could not be restored here: to show as warnings.
    pub skipped: Vec<Skipped>,
}

impl CheckedOut {
    fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.written_files += other.written_files;
        self.written_bytes += other.written_bytes;
        self.kept_files += other.kept_files;
        self.skipped.extend(other.skipped);
    }
}

/// Makes `target` the files of the layers with these roots, lowest first. See the module.
///
/// # Errors
/// [`RestoreError`]; then `target` is as it was, and nothing is left beside it. [`RestoreError::Occupied`] if it is not one to
/// replace.
pub fn checkout(
    layers: &[Digest],
    source: &dyn ObjectSource,
    target: &Path,
    options: &CheckoutOptions<'_>,
    progress: &dyn Progress,
) -> Result<CheckedOut, RestoreError> {
    let place = place::Place::open(target, options)?;
    let new = place.create()?;
    let work::Done { counted, late } = walk::run(layers, source, &place, &new, options, progress)?;
    place.exchange(&new, || kept::set_times(&new.root, &late))?;
    // The files are in place: what is not remembered of them is written again by the next checkout.
    let _ = kept::remember(layers, source, &place, &new.root);
    Ok(counted)
}
