//! What known encoders would do: each turns plain bytes into the matches that it chooses, without writing anything.
//!
//! An encoder's choices depend on nothing but the plain bytes since the start of its member, and of those only on what is in its
//! window, so a section can be parsed from a little before it. Where the real encoder was in another state, a few matches at
//! the section's start differ, and are corrected like any others.

mod chain;
mod klauspost;
mod match_len;

use self::chain::Chain;
use self::klauspost::Klauspost;

/// Plain bytes before a section that its parse may need.
pub(super) const HISTORY_LEN: usize = 192 * 1024;
/// Shortest block of an encoder that compresses blocks on their own.
pub(super) const MIN_BLOCK_LEN: u32 = 32 * 1024;

/// Bytes that are the same as some that came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Index of the first byte in the plain bytes with their history.
    pub(super) start: u32,
    /// `3..=258`.
    pub(super) len: u16,
    /// `1..=32768`.
    pub(super) distance: u16,
}

/// Whose choices are predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `compress/flate` of Go's standard library, levels 2 to 9.
    Go,
    /// zlib and GNU gzip, levels 1 to 9.
    Zlib,
    /// `github.com/klauspost/compress/flate`, levels 5 and 6.
    Klauspost,
}

/// An encoder and its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Encoder {
    /// The algorithm.
    pub family: Family,
    /// Its level.
    pub level: u8,
    /// Bytes of the blocks that are compressed on their own, one beside the other, each with the end of the one before as a
    /// dictionary; 0 if the stream is compressed as a whole.
    pub block_len: u32,
}

impl std::fmt::Display for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            Family::Go => "go",
            Family::Zlib => "zlib",
            Family::Klauspost => "klauspost",
        };
        match self.block_len {
            0 => write!(f, "{family}-{}", self.level),
            len => write!(f, "{family}-{} in blocks of {} KiB", self.level, len >> 10),
        }
    }
}

impl Encoder {
    /// All that are known, the most frequent first.
    pub(super) fn all(block_len: u32) -> impl Iterator<Item = Self> {
        let go = [6, 9, 1, 5, 4, 7, 8, 3, 2].map(|level| (Family::Go, level));
        let zlib = [6, 9, 1, 5, 4, 7, 8, 3, 2].map(|level| (Family::Zlib, level));
        let klauspost = [5, 6].map(|level| (Family::Klauspost, level));
        let first = if block_len == 0 {
            [(Family::Go, 6), (Family::Zlib, 6), (Family::Klauspost, 5)]
        } else {
            [(Family::Klauspost, 5), (Family::Zlib, 6), (Family::Klauspost, 6)]
        };
        let rest = go.into_iter().chain(zlib).chain(klauspost).filter(move |one| !first.contains(one));
        let all = first.into_iter().chain(rest).map(move |(family, level)| Self { family, level, block_len });
        all.filter(Self::is_known)
    }

    fn is_known(&self) -> bool {
        match self.family {
            Family::Go => (2..=9).contains(&self.level),
            Family::Zlib => (1..=9).contains(&self.level),
            Family::Klauspost => (5..=6).contains(&self.level),
        }
    }

    /// Three numbers that [`Self::from_numbers`] takes.
    pub(super) fn to_numbers(self) -> [u32; 3] {
        [self.family as u32, u32::from(self.level), self.block_len]
    }

    /// `None` if there is no such encoder.
    pub(super) fn from_numbers([family, level, block_len]: [u32; 3]) -> Option<Self> {
        let family = match family {
            0 => Family::Go,
            1 => Family::Zlib,
            2 => Family::Klauspost,
            _ => return None,
        };
        let encoder = Self { family, level: u8::try_from(level).ok()?, block_len };
        (encoder.is_known() && (block_len == 0 || block_len >= MIN_BLOCK_LEN)).then_some(encoder)
    }
}

/// What is parsed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job<'a> {
    /// Plain bytes: history, then those to parse, up to the end.
    pub(super) input: &'a [u8],
    /// The first byte to parse.
    pub(super) start: usize,
    /// Index of the first byte of the member, which may lie before the input.
    pub(super) origin: i64,
}

impl Job<'_> {
    /// Splits the bytes to parse at the borders of the encoder's blocks: start and end of each piece, and whether a block
    /// begins there.
    fn blocks(&self, block_len: u32) -> impl Iterator<Item = (usize, usize, bool)> {
        let (end, origin, block_len) = (self.input.len(), self.origin, i64::from(block_len));
        let mut at = self.start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let from = at;
            let into = if block_len == 0 { from as i64 - origin } else { (from as i64 - origin) % block_len };
            let to = if block_len == 0 { end } else { end.min(from + (block_len - into) as usize) };
            at = to;
            Some((from, to, into == 0))
        })
    }
}

/// Parses; keeps its tables from one time to the next.
#[derive(Debug, Default)]
pub(super) struct Parser {
    chain: Chain,
    klauspost: Klauspost,
}

impl Parser {
    /// Appends the matches that `encoder` would choose, in order.
    pub(super) fn parse(&mut self, encoder: Encoder, job: Job<'_>, out: &mut Vec<Match>) {
        match encoder.family {
            Family::Go | Family::Zlib => self.chain.parse(encoder, job, out),
            Family::Klauspost => self.klauspost.parse(encoder, job, out),
        }
    }
}
