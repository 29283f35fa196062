//! Reads a gzip stream section by section.

use std::io::Read;

use super::bits::BitReader;
use super::detect::detect;
use super::inflate::{Element, block};
use super::parse::{Encoder, HISTORY_LEN, Match, Parser};
use super::range_coder;
use super::section::{Content, MAX_ELEMENTS, MAX_RAW_LEN, Plain, code};
use super::{AnalyzeError, Place, SECTION_LEN};

/// Longest gzip header with its name and comment, and most bytes behind the last member.
const MAX_HEADER_LEN: usize = 128 * 1024;
/// How often an encoder that is wrong often is looked for again.
const MAX_TRIALS: u32 = 3;
/// Wrong matches in a thousand, from which on another encoder may do better.
const DOUBTFUL: usize = 40;

/// What was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing, or a whole member.
    Outside,
    /// A block that is not the last.
    Inside,
    /// The last block of a member.
    LastBlock,
    End,
}

/// A section that was taken apart.
#[derive(Debug)]
pub struct Analyzed<'a> {
    /// Where it is.
    pub place: Place,
    /// Its plain bytes.
    pub plain: &'a [u8],
    /// What [`super::rebuild`] needs besides.
    pub corrections: Vec<u8>,
    /// Whose choices the corrections correct.
    pub encoder: Encoder,
    /// Bits of the compressed stream up to its end.
    pub packed_end_bits: u64,
}

/// Takes a gzip stream apart.
#[derive(Debug)]
pub struct Analyzer<R> {
    reader: BitReader<R>,
    state: State,
    /// History and the section.
    plain: Vec<u8>,
    /// Where the section begins in it.
    start: usize,
    /// Where the member does; before the bytes that are kept if negative.
    origin: i64,
    /// Plain bytes of the member at which the first flush was seen, if any.
    block_len: u32,
    encoder: Option<Encoder>,
    trials: u32,
    parser: Parser,
    matches: Vec<Match>,
}

impl<R: Read> Analyzer<R> {
    /// Reads from `source`, which may end anywhere.
    pub fn new(source: R) -> Self {
        Self {
            reader: BitReader::new(source),
            state: State::Outside,
            plain: Vec::new(),
            start: 0,
            origin: 0,
            block_len: 0,
            encoder: None,
            trials: 0,
            parser: Parser::default(),
            matches: Vec::new(),
        }
    }

    /// The next section; `None` at the end.
    ///
    /// # Errors
    /// [`AnalyzeError`]: the stream cannot be taken apart.
    pub fn next_section(&mut self) -> Result<Option<Analyzed<'_>>, AnalyzeError> {
        if self.state == State::End {
            return Ok(None);
        }
        let kept = self.plain.len().min(HISTORY_LEN);
        let dropped = self.plain.len() - kept;
        self.plain.drain(..dropped);
        self.origin -= dropped as i64;
        self.start = kept;
        self.matches.clear();
        let origin = self.origin;
        let mut place =
            Place { packed_bits: self.reader.position(), partial: self.reader.partial(), plain_len: 0, member_offset: (self.start as i64 - origin) as u64 };
        let (elements, segments) = self.read()?;
        place.plain_len = (self.plain.len() - self.start) as u32;
        // History of another member is none.
        let history = super::history_len(&place);
        let skipped = self.start - history;
        let origin = origin - skipped as i64;
        if skipped > 0 {
            self.plain.drain(..skipped);
            self.origin -= skipped as i64;
            self.start = history;
            for found in &mut self.matches {
                found.start -= skipped as u32;
            }
        }
        let plain = Plain { bytes: &self.plain, start: self.start, origin };
        if self.encoder.is_none() {
            self.trials += 1;
            let (encoder, wrong) =
                detect(&mut self.parser, plain, &segments, self.block_len, &self.matches).ok_or(AnalyzeError::Invalid("it has no encoder"))?;
            // One that is seldom right is looked for again in the next section.
            self.encoder = Some(encoder).filter(|_| wrong < DOUBTFUL || self.trials >= MAX_TRIALS);
            return self.encode(place, plain.origin, encoder, elements, segments).map(Some);
        }
        let encoder = self.encoder.ok_or(AnalyzeError::NotGzip)?;
        self.encode(place, plain.origin, encoder, elements, segments).map(Some)
    }

    fn encode(&mut self, place: Place, origin: i64, encoder: Encoder, elements: Vec<Element>, segments: Vec<u32>) -> Result<Analyzed<'_>, AnalyzeError> {
        let content = Content { encoder, elements, segments, matches: std::mem::take(&mut self.matches) };
        let mut coder = range_coder::Encoder::new();
        let plain = Plain { bytes: &self.plain, start: self.start, origin };
        code(&mut coder, &mut self.parser, plain, &content).map_err(|error| AnalyzeError::Invalid(error.0))?;
        self.matches = content.matches;
        Ok(Analyzed { place, plain: &self.plain[self.start..], corrections: coder.finish(), encoder, packed_end_bits: self.reader.position() })
    }

    /// Reads elements until the section is long enough, or the stream ends.
    fn read(&mut self) -> Result<(Vec<Element>, Vec<u32>), AnalyzeError> {
        let (mut elements, mut segments) = (Vec::new(), Vec::new());
        let (mut raw_len, mut segment_start) = (0, self.start);
        while self.plain.len() - self.start < SECTION_LEN && elements.len() < MAX_ELEMENTS - 1 && raw_len < MAX_RAW_LEN - 2 * MAX_HEADER_LEN {
            if self.state != State::Inside {
                let (padding, bytes) = self.container()?;
                raw_len += bytes.len();
                elements.push(Element::Raw { padding, bytes });
                segments.push((self.plain.len() - segment_start) as u32);
                segment_start = self.plain.len();
                self.origin = segment_start as i64;
                if self.state == State::End {
                    break;
                }
                continue;
            }
            let element = block(&mut self.reader, self.origin.max(0) as usize, &mut self.plain, &mut self.matches)?;
            if let Element::Stored { last: false, len: 0, .. } = element
                && self.block_len == 0
            {
                self.block_len = u32::try_from(self.plain.len() as i64 - self.origin).unwrap_or_default();
            }
            self.state = if element.is_last() { State::LastBlock } else { State::Inside };
            elements.push(element);
        }
        Ok((elements, segments))
    }

    /// What is between two deflate streams, before the first or after the last.
    fn container(&mut self) -> Result<(u8, Vec<u8>), AnalyzeError> {
        let mut bytes = Vec::new();
        let is_first = self.state == State::Outside;
        let mut padding = 0;
        if !is_first {
            padding = self.reader.align()?.0 as u8;
            self.reader.bytes(8, &mut bytes)?;
        }
        self.state = State::Inside;
        let before = bytes.len();
        // Magic number and method.
        while bytes.len() < before + 3 && !self.reader.is_at_end()? {
            self.reader.bytes(1, &mut bytes)?;
        }
        match (&bytes[before..], is_first) {
            ([0x1f, 0x8b, 8], _) => self.header(before, &mut bytes)?,
            (_, true) => return Err(AnalyzeError::NotGzip),
            _ => {
                while !self.reader.is_at_end()? {
                    if bytes.len() > MAX_HEADER_LEN {
                        return Err(AnalyzeError::Invalid("much that is not gzip follows"));
                    }
                    self.reader.bytes(1, &mut bytes)?;
                }
                self.state = State::End;
            }
        }
        Ok((padding, bytes))
    }

    /// The rest of a member's header.
    fn header(&mut self, start: usize, bytes: &mut Vec<u8>) -> Result<(), AnalyzeError> {
        self.reader.bytes(7, bytes)?;
        let flags = bytes[start + 3];
        if flags & 0xe0 != 0 {
            return Err(AnalyzeError::Invalid("its header has unknown flags"));
        }
        if flags & 4 != 0 {
            self.reader.bytes(2, bytes)?;
            let len = u16::from_le_bytes([bytes[bytes.len() - 2], bytes[bytes.len() - 1]]);
            self.reader.bytes(len.into(), bytes)?;
        }
        // A name and a comment end with a zero.
        for _ in [8, 16].into_iter().filter(|flag| flags & flag != 0) {
            loop {
                self.reader.bytes(1, bytes)?;
                if bytes.last() == Some(&0) {
                    break;
                }
                if bytes.len() > MAX_HEADER_LEN {
                    return Err(AnalyzeError::Invalid("its header is too long"));
                }
            }
        }
        if flags & 2 != 0 {
            self.reader.bytes(2, bytes)?;
        }
        Ok(())
    }
}
