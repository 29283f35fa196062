//! Canonical Huffman codes: from lengths to codes, and a table to decode them.

use super::tables::MAX_CODE_LEN;

/// Bits that are looked up at once; longer codes are rare and decoded bit by bit.
const FAST_BITS: u32 = 10;

/// Decodes one code.
#[derive(Debug)]
pub(super) struct DecodeTable {
    /// By the next bits: symbol and, in the lowest four bits, length; 0 for a longer code or none.
    fast: Vec<u16>,
    counts: [u16; MAX_CODE_LEN + 1],
    symbols: Vec<u16>,
}

impl DecodeTable {
    /// The table for codes of these lengths; `None` if there are more codes than fit.
    pub(super) fn new(lens: &[u8]) -> Option<Self> {
        let codes = codes(lens)?;
        let mut fast = vec![0u16; 1 << FAST_BITS];
        let mut counts = [0u16; MAX_CODE_LEN + 1];
        let mut symbols = Vec::with_capacity(lens.len());
        for len in 1..=MAX_CODE_LEN as u8 {
            symbols.extend(lens.iter().enumerate().filter(|(_, other)| **other == len).map(|(symbol, _)| symbol as u16));
        }
        for (symbol, (len, code)) in lens.iter().zip(codes).enumerate().filter(|(_, (len, _))| **len > 0) {
            counts[usize::from(*len)] += 1;
            if u32::from(*len) <= FAST_BITS {
                for at in (usize::from(code)..1 << FAST_BITS).step_by(1 << len) {
                    fast[at] = (symbol as u16) << 4 | u16::from(*len);
                }
            }
        }
        Some(Self { fast, counts, symbols })
    }

    /// The symbol at the front of `bits`, and the length of its code; `None` if no code begins so.
    #[inline]
    pub(super) fn decode(&self, bits: u64) -> Option<(u16, u32)> {
        let entry = self.fast[bits as usize & ((1 << FAST_BITS) - 1)];
        if entry != 0 { Some((entry >> 4, u32::from(entry & 15))) } else { self.decode_long(bits) }
    }

    #[cold]
    fn decode_long(&self, bits: u64) -> Option<(u16, u32)> {
        let (mut code, mut first, mut index) = (0u32, 0u32, 0u32);
        for len in 1..=MAX_CODE_LEN {
            code |= (bits >> (len - 1) & 1) as u32;
            let count = u32::from(self.counts[len]);
            if code < first + count {
                return self.symbols.get((index + code - first) as usize).map(|symbol| (*symbol, len as u32));
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

/// The code of each symbol, lowest bit first as it is written; `None` if there are more codes than fit.
pub(super) fn codes(lens: &[u8]) -> Option<Vec<u16>> {
    let mut counts = [0u32; MAX_CODE_LEN + 1];
    for len in lens.iter().filter(|len| **len > 0) {
        *counts.get_mut(usize::from(*len))? += 1;
    }
    let mut next = [0u32; MAX_CODE_LEN + 2];
    for len in 1..=MAX_CODE_LEN {
        if next[len] + counts[len] > 1 << len {
            return None;
        }
        next[len + 1] = (next[len] + counts[len]) << 1;
    }
    let code = |len: &u8| {
        if *len == 0 {
            return 0;
        }
        let next = &mut next[usize::from(*len)];
        *next += 1;
        ((*next - 1) as u16).reverse_bits() >> (16 - len)
    };
    Some(lens.iter().map(code).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_decoded_to_their_symbols() {
        let mut lens = vec![0u8; 288];
        for (symbol, len) in [(0, 1), (5, 2), (7, 4), (9, 5), (20, 6), (21, 7), (22, 8), (23, 9), (24, 10), (25, 11), (287, 12), (286, 12), (100, 4)] {
            lens[symbol] = len;
        }
        let table = DecodeTable::new(&lens).unwrap();
        for (symbol, (len, code)) in lens.iter().zip(codes(&lens).unwrap()).enumerate().filter(|(_, (len, _))| **len > 0) {
            assert_eq!(table.decode(u64::from(code)), Some((symbol as u16, u32::from(*len))), "{symbol}");
        }
        assert!(DecodeTable::new(&[1, 1, 1]).is_none(), "more codes than fit");
        assert!(codes(&[16]).is_none());
        let incomplete = DecodeTable::new(&[1, 0, 0]).unwrap();
        assert_eq!((incomplete.decode(0), incomplete.decode(1)), (Some((0, 1)), None));
    }
}
