//! The numbers of RFC 1951: lengths and distances, their codes and extra bits.

/// Longest match, in bytes.
pub(super) const MAX_MATCH: usize = 258;
/// Shortest match, in bytes.
pub(super) const MIN_MATCH: usize = 3;
/// Farthest match, in bytes.
pub(super) const WINDOW_LEN: usize = 32 * 1024;
/// The symbol that ends a block.
pub(super) const END_OF_BLOCK: usize = 256;
/// Symbols for literals, the end of a block and lengths; the last two are never used.
pub(super) const LITERALS: usize = 288;
/// Symbols for distances; the last two are never used.
pub(super) const DISTANCES: usize = 32;
/// Longest code of a symbol, in bits.
pub(super) const MAX_CODE_LEN: usize = 15;
/// In which order a dynamic block states the lengths of the codes of its lengths.
pub(super) const LENGTH_ORDER: [u8; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Shortest length and extra bits of each length symbol, from 257 on.
pub(super) const LENGTH_CODES: [(u16, u8); 29] = {
    let mut codes = [(0u16, 0u8); 29];
    let (mut at, mut base) = (0, 3u16);
    while at < 28 {
        let extra = if at < 8 { 0 } else { (at as u8 - 4) / 4 };
        codes[at] = (base, extra);
        base += 1 << extra;
        at += 1;
    }
    codes[28] = (258, 0);
    codes
};

/// Shortest distance and extra bits of each distance symbol.
pub(super) const DISTANCE_CODES: [(u16, u8); 30] = {
    let mut codes = [(0u16, 0u8); 30];
    let (mut at, mut base) = (0, 1u32);
    while at < 30 {
        let extra = if at < 4 { 0 } else { (at as u8 - 2) / 2 };
        codes[at] = (base as u16, extra);
        base += 1 << extra;
        at += 1;
    }
    codes
};

const LENGTH_SYMBOLS: [u8; 256] = {
    let mut symbols = [0u8; 256];
    let mut len = 3usize;
    let mut symbol = 0usize;
    while len <= 258 {
        while symbol < 28 && len >= LENGTH_CODES[symbol + 1].0 as usize {
            symbol += 1;
        }
        symbols[len - 3] = symbol as u8;
        len += 1;
    }
    symbols
};

/// Index into [`LENGTH_CODES`] of a length of `3..=258`.
pub(super) fn length_code(len: u16) -> usize {
    usize::from(LENGTH_SYMBOLS[usize::from(len.saturating_sub(3).min(255))])
}

/// Index into [`DISTANCE_CODES`] of a distance of `1..=32768`.
pub(super) fn distance_code(distance: u16) -> usize {
    let below = u32::from(distance.saturating_sub(1));
    if below < 4 {
        return below as usize;
    }
    let top = 31 - below.leading_zeros();
    (2 * top + (below >> (top - 1) & 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_distance_has_the_code_whose_range_it_is_in() {
        for len in 3..=258u16 {
            let (base, extra) = LENGTH_CODES[length_code(len)];
            assert!(len >= base && len - base < 1 << extra, "{len}");
        }
        assert_eq!((length_code(257), length_code(258)), (27, 28));
        for distance in 1..=32768u16 {
            let (base, extra) = DISTANCE_CODES[distance_code(distance)];
            assert!(distance >= base && u32::from(distance - base) < 1 << extra, "{distance}");
        }
        assert_eq!(DISTANCE_CODES[29], (24577, 13));
    }
}
