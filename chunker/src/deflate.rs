//! Takes gzip streams apart so that they can be made again bit for bit from their plain bytes and little else.
//!
//! What a compressor decides (where blocks end, which earlier bytes it refers to, its tables) is a function of the plain bytes
//! and the compressor. [`Analyzer`] decodes a stream together with those decisions, finds the known encoder ([`Encoder`]) that would
//! have decided most alike, and keeps only the differences, the *corrections*, range coded. [`rebuild`] runs the same
//! prediction over the same plain bytes, applies the corrections and writes the stream. So an encoder that is known exactly costs next
//! to nothing, one that is known nearly costs little, and any valid stream can be kept, at a price that the caller judges by
//! [`Analyzed::corrections`].
//!
//! * **Sections**: a stream is cut into sections of some MiB, at the borders of blocks. Each is made again on its own, from its
//!   plain bytes and [`history_len`] before them: in parallel, or only those that are wanted.
//! * **Bounded**: a section, its matches and the tables of one encoder are in memory: some 40 MiB at most, 15 usually.
//! * **Hostile streams** are an error, and corrections that are damaged give an error or other bytes, which the caller notices
//!   by their digest: nothing here panics or allocates more than a section.
//!
//! Members that follow each other, what comes behind the last, blocks of all kinds and empty ones are kept as they are. This module
//! does not check checksums: that the whole can be made again says more.

mod analyze;
mod bits;
mod detect;
mod header;
mod huffman;
mod inflate;
mod matches;
mod parse;
mod range_coder;
mod section;
mod tables;
#[cfg(test)]
mod tests;

pub use analyze::{Analyzed, Analyzer};
pub use parse::{Encoder, Family};

use parse::HISTORY_LEN;

/// Version of the corrections: whatever changes a prediction or its coding changes it.
pub const VERSION: u8 = 1;
/// Plain bytes after which a section ends with the next block.
pub const SECTION_LEN: usize = 2 << 20;
/// Most plain bytes of a section.
pub const MAX_SECTION_LEN: usize = SECTION_LEN + inflate::MAX_BLOCK_LEN + 512;

/// Why a stream was not taken apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnalyzeError {
    /// It is something else.
    #[error("it is not a gzip stream")]
    NotGzip,
    /// It is damaged, or uses what no encoder writes.
    #[error("it is not a valid gzip stream: {0}")]
    Invalid(&'static str),
    /// It ends too early.
    #[error("the gzip stream ends too early")]
    Truncated,
    /// A block is longer than a section may be.
    #[error("a block of the gzip stream has more than {} MiB", inflate::MAX_BLOCK_LEN >> 20)]
    LongBlock,
    /// Reading failed.
    #[error("the gzip stream could not be read")]
    Read(#[source] std::io::Error),
}

/// Why a section was not made again: it, or what was kept of it, is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a section of a compressed stream cannot be rebuilt: {0}")]
pub struct RebuildError(pub(crate) &'static str);

/// Where a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bits of the compressed stream before the section.
    pub packed_bits: u64,
    /// If the section begins in the middle of a byte: the bits of that byte before it.
    pub partial: u8,
    /// Plain bytes of the section, at most [`MAX_SECTION_LEN`].
    pub plain_len: u32,
    /// Plain bytes before the section that belong to the same gzip member.
    pub member_offset: u64,
}

/// How many plain bytes before a section [`rebuild`] needs.
pub fn history_len(place: &Place) -> usize {
    place.member_offset.min(HISTORY_LEN as u64) as usize
}

/// Makes the bytes of a section: from the one that it begins in, up to the one that the next section begins in.
///
/// `plain` is [`history_len`] bytes of history and the section's own, `packed_len` how many bytes there will be.
///
/// # Errors
/// If `corrections` are not those of such a section. Not every damage is noticed: compare the digest of the whole.
pub fn rebuild(place: &Place, plain: &[u8], corrections: &[u8], packed_len: usize) -> Result<Vec<u8>, RebuildError> {
    let start = history_len(place);
    if plain.len() != start + place.plain_len as usize || place.plain_len as usize > MAX_SECTION_LEN {
        return Err(RebuildError("its plain bytes are not as many as they were"));
    }
    let origin = start as i64 - place.member_offset.min(i64::MAX as u64 / 2) as i64;
    section::write(corrections, section::Plain { bytes: plain, start, origin }, place.partial, (place.packed_bits % 8) as u32, packed_len)
}
