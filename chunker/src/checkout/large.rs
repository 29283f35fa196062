//! A large file that several workers write at the same time.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use layer_format::chunk::ChunkRef;
use layer_format::entry::Entry;

/// A file of which each batch writes a part. Whoever writes the last part finishes it.
#[derive(Debug)]
pub(super) struct LargeFile {
    pub(super) entry: Entry,
    file: File,
    /// Parts that are not written yet, and one for the walk, until it has handed out all of them.
    open_parts: AtomicUsize,
}

/// A part of a large file: chunks, and where in the file they lie.
pub(super) type Part = Vec<(u64, ChunkRef)>;

impl LargeFile {
    /// A file just made.
    pub(super) fn new(entry: Entry, file: OwnedFd) -> Self {
        Self { entry, file: file.into(), open_parts: AtomicUsize::new(1) }
    }

    /// Another part will be written.
    pub(super) fn add_part(&self) {
        self.open_parts.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether that was the last part.
    pub(super) fn part_is_done(&self) -> bool {
        self.open_parts.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Writes a chunk.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Gives it the length that a hole at its end asks for.
    pub(super) fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }

    /// The file, to give it its metadata.
    pub(super) fn fd(&self) -> std::io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }
}
