//! How far an import or export is.

use std::sync::atomic::{AtomicU64, Ordering};

/// Hears how far the work is. Called once a batch (about every 256 KiB), from one thread at a time: it must be quick.
pub trait Progress: Sync {
    /// `entries` more entries are done, and `bytes` more bytes of file content have been read or written.
    fn advance(&self, entries: u64, bytes: u64);

    /// `bytes` more bytes were written to packs.
    fn stored(&self, _bytes: u64) {}
}

/// No one listens.
impl Progress for () {
    fn advance(&self, _entries: u64, _bytes: u64) {}
}

/// Totals so far, for a progress bar that looks now and then.
#[derive(Debug, Default)]
pub struct Counters {
    /// Entries done.
    pub entries: AtomicU64,
    /// Bytes of content read or written.
    pub bytes: AtomicU64,
    /// Bytes written to packs.
    pub stored: AtomicU64,
}

impl Progress for Counters {
    fn advance(&self, entries: u64, bytes: u64) {
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn stored(&self, bytes: u64) {
        self.stored.fetch_add(bytes, Ordering::Relaxed);
    }
}
