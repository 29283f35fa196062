//! One section of a stream: what has to be kept besides its plain bytes, and back.
//!
//! Kept are, in one range-coded string: the encoder that is predicted; the elements (containers' bytes, blocks and how many
//! tokens each has); for each match whether it is the one predicted, and else what it is; the tables of dynamic blocks.
//! [`code`] is both directions, so they cannot differ.

use super::RebuildError;
use super::bits::BitWriter;
use super::header::{Header, HeaderModel};
use super::huffman::codes;
use super::inflate::{Element, fixed_lens};
use super::matches::{MatchModel, Segment};
use super::parse::{Encoder, Job, Match, Parser};
use super::range_coder::{Bit, Coder, Decoder, Numbers, Symbols};
use super::tables::{DISTANCE_CODES, END_OF_BLOCK, LENGTH_CODES, distance_code, length_code};

/// Most elements of a section.
pub(super) const MAX_ELEMENTS: usize = 1 << 16;
/// Most bytes of containers in a section.
pub(super) const MAX_RAW_LEN: usize = 1 << 20;

/// What a section is, besides its plain bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) encoder: Encoder,
    pub(super) elements: Vec<Element>,
    /// Plain bytes up to each [`Element::Raw`]; the rest follows the last.
    pub(super) segments: Vec<u32>,
    pub(super) matches: Vec<Match>,
}

/// Plain bytes of a section with those before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain<'a> {
    pub(super) bytes: &'a [u8],
    /// Where the section begins.
    pub(super) start: usize,
    /// Where the stream that the section begins in does, possibly before the bytes.
    pub(super) origin: i64,
}

#[derive(Debug, Default)]
struct ElementModel {
    kinds: Symbols<3>,
    last: Bit,
    same_tokens: Bit,
    tokens: Numbers,
    lens: Numbers,
    raw_lens: Numbers,
    segments: Numbers,
}

/// Codes a section. `known` is ignored by a decoder.
pub(super) fn code<C: Coder>(coder: &mut C, parser: &mut Parser, plain: Plain<'_>, known: &Content) -> Result<Content, RebuildError> {
    let numbers = known.encoder.to_numbers();
    let numbers = [coder.direct(numbers[0], 8), coder.direct(numbers[1], 8), coder.direct(numbers[2], 32)];
    let encoder = Encoder::from_numbers(numbers).ok_or(RebuildError("it names an encoder that is not known"))?;
    let mut model = ElementModel::default();
    let mut elements = code_elements(coder, &mut model, &known.elements)?;
    let mut left = (plain.bytes.len() - plain.start) as u32;
    let raw_count = elements.iter().filter(|element| matches!(element, Element::Raw { .. })).count();
    let mut segments = Vec::with_capacity(raw_count);
    for at in 0..raw_count {
        let len = model.segments.code(coder, known.segments.get(at).copied().unwrap_or_default());
        left = left.checked_sub(len).ok_or(RebuildError("its streams are longer than its plain bytes"))?;
        segments.push(len);
    }
    let matches = code_matches(coder, parser, encoder, plain, &segments, &known.matches)?;
    let mut tokens = Tokens::new(plain, &matches);
    let mut headers = HeaderModel::default();
    let none = Header::default();
    for (at, element) in elements.iter_mut().enumerate() {
        match element {
            Element::Raw { .. } => {}
            Element::Stored { len, .. } => tokens.skip(usize::from(*len))?,
            Element::Fixed { tokens: count, .. } => tokens.pass(*count, |_| {})?,
            Element::Dynamic { tokens: count, header, .. } => {
                let (mut literals, mut distances) = ([0u32; 288], [0u32; 32]);
                literals[END_OF_BLOCK] = 1;
                tokens.pass(*count, |token| match token {
                    Token::Literal(byte) => literals[usize::from(byte)] += 1,
                    Token::Match { len, distance } => {
                        literals[END_OF_BLOCK + 1 + length_code(len)] += 1;
                        distances[distance_code(distance)] += 1;
                    }
                })?;
                let known = if let Some(Element::Dynamic { header, .. }) = known.elements.get(at) { header } else { &none };
                **header = headers.code(coder, known, &literals, &distances).ok_or(RebuildError("it has a table that is none"))?;
            }
        }
    }
    Ok(Content { encoder, elements, segments, matches })
}

fn code_elements<C: Coder>(coder: &mut C, model: &mut ElementModel, known: &[Element]) -> Result<Vec<Element>, RebuildError> {
    let mut elements = Vec::new();
    let (mut before, mut raw_len) = (0, 0);
    loop {
        let known = known.get(elements.len());
        let kind = match known {
            None => 0,
            Some(Element::Raw { .. }) => 1,
            Some(Element::Stored { .. }) => 2,
            Some(Element::Fixed { .. }) => 3,
            Some(Element::Dynamic { .. }) => 4,
        };
        let kind = model.kinds.code(coder, kind);
        if kind == 0 {
            return Ok(elements);
        }
        if elements.len() >= MAX_ELEMENTS {
            return Err(RebuildError("it has too many blocks"));
        }
        let last = kind > 1 && coder.bit(&mut model.last, known.is_some_and(Element::is_last));
        elements.push(match kind {
            1 => {
                let (padding, bytes) = if let Some(Element::Raw { padding, bytes }) = known { (*padding, &bytes[..]) } else { (0, &[][..]) };
                let padding = coder.direct(padding.into(), 7) as u8;
                let len = model.raw_lens.code(coder, bytes.len() as u32) as usize;
                raw_len += len;
                if raw_len > 2 * MAX_RAW_LEN {
                    return Err(RebuildError("it has too many bytes of containers"));
                }
                let bytes = (0..len).map(|at| coder.direct(bytes.get(at).copied().unwrap_or_default().into(), 8) as u8).collect();
                Element::Raw { padding, bytes }
            }
            2 => {
                let (padding, len) = if let Some(Element::Stored { padding, len, .. }) = known { (*padding, *len) } else { (0, 0) };
                let padding = coder.direct(padding.into(), 7) as u8;
                let len = model.lens.code(coder, len.into());
                Element::Stored { last, padding, len: u16::try_from(len).map_err(|_| RebuildError("it has a stored block that is too long"))? }
            }
            3 | 4 => {
                let count = if let Some(Element::Fixed { tokens, .. } | Element::Dynamic { tokens, .. }) = known { *tokens } else { 0 };
                let tokens = match coder.bit(&mut model.same_tokens, count != before) {
                    true => model.tokens.code(coder, count),
                    false => before,
                };
                before = tokens;
                if kind == 3 { Element::Fixed { last, tokens } } else { Element::Dynamic { last, tokens, header: Box::default() } }
            }
            _ => return Err(RebuildError("it has a block of an unknown kind")),
        });
    }
}

fn code_matches<C: Coder>(
    coder: &mut C,
    parser: &mut Parser,
    encoder: Encoder,
    plain: Plain<'_>,
    segments: &[u32],
    known: &[Match],
) -> Result<Vec<Match>, RebuildError> {
    let mut model = MatchModel::default();
    let mut matches = Vec::with_capacity(known.len());
    let mut predicted = Vec::new();
    let (mut start, mut origin) = (plain.start, plain.origin);
    for end in ends(plain, segments) {
        let Some(input) = plain.bytes.get(..end) else { return Err(RebuildError("its streams are longer than its plain bytes")) };
        predicted.clear();
        parser.parse(encoder, Job { input, start, origin }, &mut predicted);
        model.code(coder, Segment { input, start, origin, predicted: &predicted }, known, &mut matches)?;
        (start, origin) = (end, end as i64);
    }
    Ok(matches)
}

/// Where each stream of the section ends, or its part in the section.
pub(super) fn ends<'a>(plain: Plain<'a>, segments: &'a [u32]) -> impl Iterator<Item = usize> + 'a {
    let mut at = plain.start;
    let inner = segments.iter().map(move |len| {
        at += *len as usize;
        at
    });
    inner.chain([plain.bytes.len()])
}

/// Makes the bytes of a section again. `packed_len` is how many there should be, `partial` and `partial_bits` what of the first
/// byte belongs to the section before.
pub(super) fn write(corrections: &[u8], plain: Plain<'_>, partial: u8, partial_bits: u32, packed_len: usize) -> Result<Vec<u8>, RebuildError> {
    let nothing = Content {
        encoder: Encoder::all(0).next().ok_or(RebuildError("no encoder is known"))?,
        elements: Vec::new(),
        segments: Vec::new(),
        matches: Vec::new(),
    };
    let content = code(&mut Decoder::new(corrections), &mut Parser::default(), plain, &nothing)?;
    let mut writer = BitWriter::resume(partial, partial_bits);
    writer.bytes.reserve(packed_len.min(2 * plain.bytes.len() + MAX_RAW_LEN));
    let mut tokens = Tokens::new(plain, &content.matches);
    let (fixed_literals, fixed_distances) = fixed_lens();
    for element in &content.elements {
        match element {
            Element::Raw { padding, bytes } => {
                align(&mut writer, *padding);
                writer.bytes.extend_from_slice(bytes);
            }
            Element::Stored { last, padding, len } => {
                writer.put(u32::from(*last), 3);
                align(&mut writer, *padding);
                writer.bytes.extend_from_slice(&len.to_le_bytes());
                writer.bytes.extend_from_slice(&(!len).to_le_bytes());
                let from = tokens.at;
                tokens.skip(usize::from(*len))?;
                writer.bytes.extend_from_slice(&plain.bytes[from..tokens.at]);
            }
            Element::Fixed { last, tokens: count } => {
                writer.put(u32::from(*last) | 1 << 1, 3);
                tokens.write(*count, &fixed_literals, &fixed_distances, &mut writer)?;
            }
            Element::Dynamic { last, tokens: count, header } => {
                writer.put(u32::from(*last) | 2 << 1, 3);
                header.write(&mut writer).ok_or(RebuildError("it has a table that is none"))?;
                tokens.write(*count, &header.literals, &header.distances, &mut writer)?;
            }
        }
        if writer.bytes.len() > packed_len {
            return Err(RebuildError("it becomes longer than it was"));
        }
    }
    writer.flush();
    if tokens.at != plain.bytes.len() || writer.bytes.len() != packed_len {
        return Err(RebuildError("it does not become as long as it was"));
    }
    Ok(writer.bytes)
}

fn align(writer: &mut BitWriter, padding: u8) {
    let missing = writer.missing();
    writer.put(u32::from(padding) & ((1 << missing) - 1), missing);
    writer.flush();
}

/// What a block is made of.
#[derive(Clone, Copy, Debug)]
enum Token {
    Literal(u8),
    Match { len: u16, distance: u16 },
}

/// The tokens of a section, one after the other.
struct Tokens<'a> {
    plain: &'a [u8],
    at: usize,
    matches: std::slice::Iter<'a, Match>,
    /// Where the next match begins.
    next: usize,
}

impl<'a> Tokens<'a> {
    fn new(plain: Plain<'a>, matches: &'a [Match]) -> Self {
        let next = matches.first().map_or(usize::MAX, |found| found.start as usize);
        Self { plain: plain.bytes, at: plain.start, matches: matches.iter(), next }
    }

    /// Passes over bytes that are in no match.
    fn skip(&mut self, len: usize) -> Result<(), RebuildError> {
        self.at += len;
        if self.at > self.plain.len() || self.at > self.next { Err(RebuildError("a stored block goes beyond its bytes")) } else { Ok(()) }
    }

    #[inline]
    fn pass(&mut self, count: u32, mut each: impl FnMut(Token)) -> Result<(), RebuildError> {
        const BEYOND: RebuildError = RebuildError("a block goes beyond its bytes");
        for _ in 0..count {
            if self.at == self.next {
                let found = self.matches.next().ok_or(BEYOND)?;
                each(Token::Match { len: found.len, distance: found.distance });
                self.at += usize::from(found.len);
                self.next = self.matches.as_slice().first().map_or(usize::MAX, |found| found.start as usize);
            } else {
                each(Token::Literal(*self.plain.get(self.at).ok_or(BEYOND)?));
                self.at += 1;
            }
        }
        Ok(())
    }

    /// Writes the next tokens and the end of the block.
    fn write(&mut self, count: u32, literals: &[u8], distances: &[u8], writer: &mut BitWriter) -> Result<(), RebuildError> {
        const TOO_MANY: RebuildError = RebuildError("it has a table with more codes than there can be");
        let literal_codes = codes(literals).ok_or(TOO_MANY)?;
        let distance_codes = codes(distances).ok_or(TOO_MANY)?;
        let table = |codes: &[u16], lens: &[u8], symbol: usize| match (codes.get(symbol), lens.get(symbol)) {
            (Some(code), Some(len)) => (u32::from(*code), u32::from(*len)),
            _ => (0, 0),
        };
        let literal_table: [(u32, u32); 288] = std::array::from_fn(|symbol| table(&literal_codes, literals, symbol));
        let distance_table: [(u32, u32); 32] = std::array::from_fn(|symbol| table(&distance_codes, distances, symbol));
        let mut is_known = true;
        self.pass(count, |token| match token {
            Token::Literal(byte) => {
                let (code, len) = literal_table[usize::from(byte)];
                is_known &= len > 0;
                writer.put(code, len);
            }
            Token::Match { len, distance } => {
                let symbol = length_code(len);
                let (base, extra) = LENGTH_CODES[symbol];
                let (code, code_len) = literal_table[END_OF_BLOCK + 1 + symbol];
                is_known &= code_len > 0;
                writer.put(code | u32::from(len - base) << code_len, code_len + u32::from(extra));
                let symbol = distance_code(distance);
                let (base, extra) = DISTANCE_CODES[symbol];
                let (code, code_len) = distance_table[symbol];
                is_known &= code_len > 0;
                writer.put(code | u32::from(distance - base) << code_len, code_len + u32::from(extra));
            }
        })?;
        let (code, len) = literal_table[END_OF_BLOCK];
        writer.put(code, len);
        if is_known && len > 0 { Ok(()) } else { Err(RebuildError("a block uses a code that its table does not have")) }
    }
}
