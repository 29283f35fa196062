//! How an import uses all cores in bounded memory.
//!
//! ```text
//! producer ──batches──► workers ──hashed──► sequencer ──frames──► workers ──encoded──► sequencer ──► pack
//! walk, or parse tar    open, read, cut,    in batch order:       compress              in frame order:
//! and cut the stream    hash, ask the sink  drop what is known,                         write, hash
//!                                           fill frames, tree
//! ```
//!
//! One producer thread describes the entries in order, in batches of [`BATCH_LEN`] bytes or [`BATCH_ITEMS`] files. Small
//! files are only named there; a worker opens, reads, cuts and hashes a batch of them at a time. A large file is handed
//! out in segments, which workers cut in turn and hash side by side. Content that can only be read in order (a tar
//! stream; also a large sparse file) is read and cut by the producer and only hashed by workers. The
//! caller's thread is the sequencer: it takes hashed batches **in the producer's order** and decides what is new, so
//! the same input gives the same frames and packs whatever the number of threads. Workers do frames before batches, so
//! that what is finished leaves memory first.
//!
//! **Memory.** With n workers at most n + 14 batches and n + 14 frames (and those of one batch) are under way: so many
//! that a worker still has work while the sequencer waits for a busy core. A batch holds at most [`BATCH_LEN`] +
//! [`LARGE_FILE_LEN`] bytes (mostly [`BATCH_LEN`]), a frame at most 320 KiB plus as much compressed, a worker's
//! compressors 2 MiB: at most 28 MiB for two workers, 3.5 MiB more for each further one. On top of that, and independent
//! of the length of the content:
//! * with an earlier version to compress against, for each worker 1 MiB and a compressor for it, and the list of chunks of one
//!   file there: 60 bytes each, of at most half a million;
//! * the names of one directory, and of directories found and not yet visited;
//! * the objects of one open pack: up to 120 bytes each, about 3 MB for a pack of 16 KiB chunks;
//! * references to tree nodes: about 80 bytes for each 60 entries; to recipe nodes: 40 bytes for each 2 MiB of one file;
//! * hard links: 100 bytes a file, and entries between the first and the last name of a hard-linked file wait for it
//!   (if some names are outside of the tree, until the end: about 300 bytes an entry);
//! * for a tar, which is not sorted, all entries: about 300 bytes each.

mod batch;
mod compress;
mod feed;
mod pack_writer;
mod packer;
mod sequencer;
mod worker;

pub(crate) use batch::{Batch, Begin, FileToRead, Item, KnownFile, Link, Span};
pub(crate) use compress::{Compressor, FrameJob};
pub(crate) use feed::{DataError, Feed};
pub(crate) use pack_writer::PackWriter;
pub(crate) use packer::{Packer, present};
pub(crate) use sequencer::{Collect, Settings, run};

/// A batch is handed on once it holds this many bytes of content.
pub const BATCH_LEN: usize = 256 * 1024;
/// A batch is handed on once it holds this many items, such as empty files and links.
pub const BATCH_ITEMS: usize = 512;
/// Files longer than this are read in segments; others by a worker at once.
pub const LARGE_FILE_LEN: u64 = 512 * 1024;
