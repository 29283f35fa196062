//! The tables of a dynamic block, exactly as they are written: most follow from the lengths of the codes, and those nearly from
//! how often each symbol occurs.

use std::io::Read;

use super::AnalyzeError;
use super::bits::{BitReader, BitWriter};
use super::huffman::{DecodeTable, codes};
use super::range_coder::{Bit, Coder, Numbers, Symbols};
use super::tables::LENGTH_ORDER;

/// Most lengths of codes in one header.
const MAX_LENS: usize = 286 + 32;

/// The head of a dynamic block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Lengths of the codes of literals and lengths, as many as are written: `257..=288`.
    pub(super) literals: Vec<u8>,
    /// Lengths of the codes of distances, as many as are written: `1..=32`.
    pub(super) distances: Vec<u8>,
    /// Both, as they are written: symbol, and how often it is repeated beyond the least.
    runs: Vec<(u8, u8)>,
    /// Lengths of the codes of those symbols.
    run_lens: [u8; 19],
    /// How many of those are written.
    run_len_count: u8,
}

/// Least repetitions and extra bits of the symbols 16 to 18.
const fn repetition(symbol: u8) -> (usize, u32) {
    match symbol {
        16 => (3, 2),
        17 => (3, 3),
        _ => (11, 7),
    }
}

impl Header {
    /// Reads what follows the kind of the block.
    pub(super) fn read<R: Read>(reader: &mut BitReader<R>) -> Result<Self, AnalyzeError> {
        let literal_count = 257 + reader.bits(5)? as usize;
        let distance_count = 1 + reader.bits(5)? as usize;
        let run_len_count = 4 + reader.bits(4)? as u8;
        let mut run_lens = [0; 19];
        for symbol in LENGTH_ORDER.iter().take(run_len_count.into()) {
            run_lens[usize::from(*symbol)] = reader.bits(3)? as u8;
        }
        let table = DecodeTable::new(&run_lens).ok_or(AnalyzeError::Invalid("a table has more codes than there can be"))?;
        let mut lens = Vec::with_capacity(literal_count + distance_count);
        let mut runs = Vec::new();
        while lens.len() < literal_count + distance_count {
            reader.need(16)?;
            let (symbol, len) = table.decode(reader.peek()).ok_or(AnalyzeError::Invalid("a code is in no table"))?;
            reader.take(len)?;
            let extra = if symbol < 16 { 0 } else { reader.bits(repetition(symbol as u8).1)? as u8 };
            runs.push((symbol as u8, extra));
            expand(symbol as u8, extra, &mut lens).ok_or(AnalyzeError::Invalid("a table repeats nothing"))?;
        }
        if lens.len() > literal_count + distance_count {
            return Err(AnalyzeError::Invalid("a table is longer than it says"));
        }
        let distances = lens.split_off(literal_count);
        Ok(Self { literals: lens, distances, runs, run_lens, run_len_count })
    }

    /// Writes what [`Self::read`] read. `None` if this is no header.
    pub(super) fn write(&self, writer: &mut BitWriter) -> Option<()> {
        writer.put((self.literals.len() as u32).checked_sub(257)?, 5);
        writer.put((self.distances.len() as u32).checked_sub(1)?, 5);
        writer.put(u32::from(self.run_len_count).checked_sub(4)?, 4);
        for symbol in LENGTH_ORDER.iter().take(self.run_len_count.into()) {
            writer.put(u32::from(self.run_lens[usize::from(*symbol)]), 3);
        }
        let codes = codes(&self.run_lens)?;
        for (symbol, extra) in &self.runs {
            let (code, len) = (*codes.get(usize::from(*symbol))?, *self.run_lens.get(usize::from(*symbol))?);
            writer.put(code.into(), len.into());
            if *symbol >= 16 {
                writer.put((*extra).into(), repetition(*symbol).1);
            }
        }
        Some(())
    }
}

#[cfg(test)]
impl Header {
    /// One with these lengths, written as usual or one by one.
    pub(super) fn of(literals: Vec<u8>, distances: Vec<u8>, is_usual: bool) -> Self {
        let all: Vec<u8> = literals.iter().chain(&distances).copied().collect();
        let runs = if is_usual { usual_runs(&all) } else { all.iter().map(|len| (*len, 0)).collect() };
        Self { literals, distances, runs, run_lens: [5; 19], run_len_count: 19 }
    }
}

/// Appends what a symbol of a header means.
fn expand(symbol: u8, extra: u8, lens: &mut Vec<u8>) -> Option<()> {
    let (value, count) = match symbol {
        0..=15 => (symbol, 1),
        16 => (*lens.last()?, 3 + usize::from(extra)),
        17 | 18 => (0, repetition(symbol).0 + usize::from(extra)),
        _ => return None,
    };
    lens.resize(lens.len() + count, value);
    (lens.len() <= MAX_LENS + 258).then_some(())
}

/// How all common encoders write lengths: runs as long as can be.
fn usual_runs(lens: &[u8]) -> Vec<(u8, u8)> {
    let mut runs = Vec::new();
    for group in lens.chunk_by(|one, other| one == other) {
        let (Some(len), mut count) = (group.first(), group.len()) else { continue };
        if *len == 0 {
            while count >= 11 {
                let now = count.min(138);
                runs.push((18, (now - 11) as u8));
                count -= now;
            }
            if count >= 3 {
                runs.push((17, (count - 3) as u8));
                count = 0;
            }
        } else {
            runs.push((*len, 0));
            count -= 1;
            while count >= 3 {
                let now = count.min(6);
                runs.push((16, (now - 3) as u8));
                count -= now;
            }
        }
        runs.extend(std::iter::repeat_n((*len, 0), count));
    }
    runs
}

/// Codes headers.
#[derive(Debug, Default)]
pub(super) struct HeaderModel {
    counts: [Numbers; 2],
    /// By the length that a symbol should have, in halves of a bit, and by how the last one deviated.
    lens: Vec<Symbols<4>>,
    usual: Bit,
    runs: Symbols<5>,
    extras: [Numbers; 3],
    run_lens: Vec<Symbols<3>>,
    run_len_counts: Symbols<4>,
}

/// Twice the bits that a symbol of this frequency should have; 63 for one that does not occur.
fn ideal(frequency: u32, total: u32) -> usize {
    if frequency == 0 {
        return 63;
    }
    // log2 in 64ths, from integers only, so that all machines agree.
    let log = |value: u32| {
        let top = value.ilog2();
        let rest = (u64::from(value) << 16 >> top) - (1 << 16);
        (u64::from(top) << 16) + rest
    };
    let bits = log(total.max(1)).saturating_sub(log(frequency));
    ((2 * bits + (1 << 15)) >> 16).min(40) as usize
}

impl HeaderModel {
    /// Codes the header of a block whose literals, lengths and distances have these frequencies. `None` if what is read is no
    /// header.
    pub(super) fn code<C: Coder>(&mut self, coder: &mut C, known: &Header, literals: &[u32; 288], distances: &[u32; 32]) -> Option<Header> {
        self.lens.resize(2 * 3 * 64, Symbols::default());
        self.run_lens.resize(64, Symbols::default());
        let last = |frequencies: &[u32], least: usize| frequencies.iter().rposition(|one| *one > 0).map_or(least, |at| (at + 1).max(least));
        let mut header = Header::default();
        for (which, (frequencies, known, least, most)) in
            [(&literals[..], &known.literals, 257, 288), (&distances[..], &known.distances, 1, 32)].into_iter().enumerate()
        {
            let expected = last(frequencies, least);
            let more = zigzag(known.len() as i64 - expected as i64);
            let count = expected as i64 + unzigzag(self.counts[which].code(coder, more));
            let count = usize::try_from(count).ok().filter(|count| (least..=most).contains(count))?;
            let total = frequencies.iter().sum();
            let mut deviation = 1;
            let mut lens = Vec::with_capacity(count);
            for (symbol, frequency) in frequencies.iter().enumerate().take(count) {
                let ideal = ideal(*frequency, total);
                let model = &mut self.lens[(which * 3 + deviation) * 64 + ideal];
                let len = model.code(coder, known.get(symbol).copied().unwrap_or_default().into()) as u8;
                if ideal < 63 {
                    deviation = match (2 * usize::from(len)).cmp(&ideal) {
                        std::cmp::Ordering::Less => 0,
                        std::cmp::Ordering::Equal => 1,
                        std::cmp::Ordering::Greater => 2,
                    };
                }
                lens.push(len);
            }
            if which == 0 { header.literals = lens } else { header.distances = lens }
        }
        self.code_runs(coder, known, &mut header)?;
        Some(header)
    }

    fn code_runs<C: Coder>(&mut self, coder: &mut C, known: &Header, header: &mut Header) -> Option<()> {
        let all: Vec<u8> = header.literals.iter().chain(&header.distances).copied().collect();
        let usual = usual_runs(&all);
        header.runs = if coder.bit(&mut self.usual, known.runs != usual) { self.unusual_runs(coder, known, &all)? } else { usual };
        let mut frequencies = [0u32; 19];
        for (symbol, _) in &header.runs {
            frequencies[usize::from(*symbol)] += 1;
        }
        let total = frequencies.iter().sum();
        for (symbol, frequency) in frequencies.iter().enumerate() {
            header.run_lens[symbol] = self.run_lens[ideal(*frequency, total)].code(coder, known.run_lens[symbol].into()) as u8;
        }
        header.run_len_count = 4 + self.run_len_counts.code(coder, u32::from(known.run_len_count.saturating_sub(4))) as u8;
        (header.run_len_count <= 19).then_some(())
    }

    fn unusual_runs<C: Coder>(&mut self, coder: &mut C, known: &Header, all: &[u8]) -> Option<Vec<(u8, u8)>> {
        let (mut runs, mut lens) = (Vec::new(), Vec::with_capacity(all.len()));
        while lens.len() < all.len() {
            let (symbol, extra) = known.runs.get(runs.len()).copied().unwrap_or_default();
            let symbol = self.runs.code(coder, symbol.into()) as u8;
            let extra = match symbol {
                0..=15 => 0,
                16..=18 => self.extras[usize::from(symbol) - 16].code(coder, extra.into()),
                _ => return None,
            };
            let extra = u8::try_from(extra).ok().filter(|extra| symbol < 16 || u32::from(*extra) < 1 << repetition(symbol).1)?;
            runs.push((symbol, extra));
            expand(symbol, extra, &mut lens)?;
        }
        (lens == all).then_some(runs)
    }
}

fn zigzag(value: i64) -> u32 {
    (if value < 0 { -2 * value - 1 } else { 2 * value }) as u32
}

fn unzigzag(value: u32) -> i64 {
    let half = i64::from(value >> 1);
    if value & 1 == 1 { -half - 1 } else { half }
}
