//! Decodes a deflate stream to plain bytes, and keeps what its encoder decided: blocks, tables, matches.

use std::io::Read;

use super::AnalyzeError;
use super::bits::BitReader;
use super::header::Header;
use super::huffman::DecodeTable;
use super::parse::Match;
use super::tables::{DISTANCE_CODES, DISTANCES, END_OF_BLOCK, LENGTH_CODES, LITERALS, WINDOW_LEN};

/// Most plain bytes of one block.
pub(super) const MAX_BLOCK_LEN: usize = 9 << 20;

/// A part of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// Bytes of the container around the deflate streams: after one of these a new stream begins.
    Raw {
        /// Bits before it, up to a whole byte.
        padding: u8,
        bytes: Vec<u8>,
    },
    /// A block without compression.
    Stored { last: bool, padding: u8, len: u16 },
    /// A block with the codes that need no table, and how many tokens it has.
    Fixed { last: bool, tokens: u32 },
    /// A block with codes of its own.
    Dynamic { last: bool, tokens: u32, header: Box<Header> },
}

impl Element {
    /// Whether the stream ends after this.
    pub(super) fn is_last(&self) -> bool {
        match self {
            Self::Raw { .. } => false,
            Self::Stored { last, .. } | Self::Fixed { last, .. } | Self::Dynamic { last, .. } => *last,
        }
    }
}

/// Lengths of the fixed codes.
pub(super) fn fixed_lens() -> ([u8; LITERALS], [u8; DISTANCES]) {
    let literals = std::array::from_fn(|symbol| match symbol {
        0..=143 => 8,
        144..=255 => 9,
        256..=279 => 7,
        _ => 8,
    });
    (literals, [5; DISTANCES])
}

/// Decodes one block: appends to `plain`, whose first byte of this stream is at `origin`, and to `matches`.
pub(super) fn block<R: Read>(reader: &mut BitReader<R>, origin: usize, plain: &mut Vec<u8>, matches: &mut Vec<Match>) -> Result<Element, AnalyzeError> {
    let last = reader.bits(1)? == 1;
    match reader.bits(2)? {
        0 => {
            let (padding, _) = reader.align()?;
            let len = reader.bits(16)? as u16;
            if reader.bits(16)? as u16 != !len {
                return Err(AnalyzeError::Invalid("a stored block states two different lengths"));
            }
            reader.bytes(len.into(), plain)?;
            Ok(Element::Stored { last, padding: padding as u8, len })
        }
        1 => {
            let (literals, distances) = fixed_lens();
            let tokens = coded(reader, &literals, &distances, origin, plain, matches)?;
            Ok(Element::Fixed { last, tokens })
        }
        2 => {
            let header = Header::read(reader)?;
            let tokens = coded(reader, &header.literals, &header.distances, origin, plain, matches)?;
            Ok(Element::Dynamic { last, tokens, header: Box::new(header) })
        }
        _ => Err(AnalyzeError::Invalid("a block is of an unknown kind")),
    }
}

/// The tokens of a block; returns their number.
fn coded<R: Read>(
    reader: &mut BitReader<R>,
    literals: &[u8],
    distances: &[u8],
    origin: usize,
    plain: &mut Vec<u8>,
    matches: &mut Vec<Match>,
) -> Result<u32, AnalyzeError> {
    const TOO_MANY: AnalyzeError = AnalyzeError::Invalid("a table has more codes than there can be");
    const UNKNOWN: AnalyzeError = AnalyzeError::Invalid("a code is in no table");
    let literal_table = DecodeTable::new(literals).ok_or(TOO_MANY)?;
    let distance_table = DecodeTable::new(distances).ok_or(TOO_MANY)?;
    let most = plain.len() + MAX_BLOCK_LEN;
    let mut tokens = 0u32;
    loop {
        if plain.len() > most {
            return Err(AnalyzeError::LongBlock);
        }
        // A literal or length, its extra bits, a distance and its extra bits: 15 + 5 + 15 + 13 bits.
        reader.need(48)?;
        let (symbol, len) = literal_table.decode(reader.peek()).ok_or(UNKNOWN)?;
        reader.take(len)?;
        match usize::from(symbol) {
            0..END_OF_BLOCK => {
                plain.push(symbol as u8);
                tokens += 1;
                continue;
            }
            END_OF_BLOCK => return Ok(tokens),
            _ => {}
        }
        let (base, extra) = *LENGTH_CODES.get(usize::from(symbol) - END_OF_BLOCK - 1).ok_or(UNKNOWN)?;
        let len = base + reader.bits(extra.into())? as u16;
        // The length of 258 has a code of its own.
        if len == 258 && extra > 0 {
            return Err(AnalyzeError::Invalid("a length is written in an unusual way"));
        }
        let (symbol, code_len) = distance_table.decode(reader.peek()).ok_or(UNKNOWN)?;
        reader.take(code_len)?;
        let (base, extra) = *DISTANCE_CODES.get(usize::from(symbol)).ok_or(UNKNOWN)?;
        let distance = base + reader.bits(extra.into())? as u16;
        let start = plain.len();
        if usize::from(distance) > start - origin || usize::from(distance) > WINDOW_LEN {
            return Err(AnalyzeError::Invalid("a match begins before the stream"));
        }
        copy(plain, distance.into(), len.into());
        matches.push(Match { start: start as u32, len, distance });
        tokens += 1;
    }
}

/// Appends `len` bytes from `distance` bytes ago, which may be those that are just being appended.
fn copy(plain: &mut Vec<u8>, distance: usize, mut len: usize) {
    while len > 0 {
        let start = plain.len() - distance;
        let now = len.min(distance);
        plain.extend_from_within(start..start + now);
        len -= now;
    }
}
