//! A chunk: a piece of one file's content, the unit of deduplication and of fetching.
//!
//! Cut points come from FastCDC (Xia et al., 2020) with the parameters below, per file; a file of at most
//! [`MIN_CHUNK_LEN`] bytes is one chunk. The parameters are part of the format: other ones give other digests.

use crate::digest::Digest;

/// Shortest chunk that is not the end of a file, in bytes.
pub const MIN_CHUNK_LEN: u32 = 4 * 1024;
/// Average length that FastCDC aims at, in bytes.
pub const AVERAGE_CHUNK_LEN: u32 = 16 * 1024;
/// Longest chunk, in bytes. A random read waits for a whole chunk, so this bounds the cost of one page fault.
pub const MAX_CHUNK_LEN: u32 = 64 * 1024;
/// FastCDC's normalisation level.
pub const NORMALIZATION: u8 = 1;

/// Longest object of any kind, in bytes: the bound that every reader checks before it allocates. Only the root of a
/// tree of millions of entries comes near it; everything else is far smaller.
pub const MAX_OBJECT_LEN: u32 = 4 * 1024 * 1024;

/// A reference to a chunk: which bytes, and how many. Its place in the file follows from its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// BLAKE3 of the uncompressed bytes.
    pub digest: Digest,
    /// Uncompressed length, `1..=MAX_CHUNK_LEN`.
    pub len: u32,
}
