//! An adaptive binary range coder, and models of numbers over it.
//!
//! The coder is that of LZMA (Igor Pavlov, public domain) with probabilities of 15 bits: what is always the same costs
//! about 1/700 bit.

/// Bits of a probability.
const SCALE: u32 = 15;
/// How fast a probability follows: the higher, the slower.
const RATE: u32 = 5;
/// Below this the range is widened by a byte.
const TOP: u32 = 1 << 24;

/// How probable a 0 is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bit(u16);

impl Default for Bit {
    fn default() -> Self {
        Self(1 << (SCALE - 1))
    }
}

/// What encoder and decoder have in common, so that a format is written once: an encoder takes the value it is given and
/// returns it; a decoder ignores it and returns the one that was written.
pub(super) trait Coder {
    /// Codes a bit.
    fn bit(&mut self, model: &mut Bit, value: bool) -> bool;

    /// Codes `count <= 32` bits of which nothing is known.
    fn direct(&mut self, value: u32, count: u32) -> u32;
}

/// Writes.
#[derive(Debug)]
pub(super) struct Encoder {
    out: Vec<u8>,
    low: u64,
    range: u32,
    cache: u8,
    /// Bytes that wait for a carry, `cache` among them.
    waiting: u64,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { out: Vec::new(), low: 0, range: u32::MAX, cache: 0, waiting: 1 }
    }

    fn shift(&mut self) {
        if self.low < 0xff00_0000 || self.low > 0xffff_ffff {
            let carry = (self.low >> 32) as u8;
            let mut byte = self.cache;
            for _ in 0..self.waiting {
                self.out.push(byte.wrapping_add(carry));
                byte = 0xff;
            }
            self.waiting = 0;
            self.cache = (self.low >> 24) as u8;
        }
        self.waiting += 1;
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    /// All bytes. Zeros at their end are left out: a decoder reads them behind the end.
    pub(super) fn finish(mut self) -> Vec<u8> {
        for _ in 0..5 {
            self.shift();
        }
        let used = self.out.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        self.out.truncate(used);
        self.out
    }
}

impl Coder for Encoder {
    #[inline]
    fn bit(&mut self, model: &mut Bit, value: bool) -> bool {
        let bound = (self.range >> SCALE) * u32::from(model.0);
        if value {
            self.low += u64::from(bound);
            self.range -= bound;
            model.0 -= model.0 >> RATE;
        } else {
            self.range = bound;
            model.0 += ((1 << SCALE) - model.0) >> RATE;
        }
        while self.range < TOP {
            self.range <<= 8;
            self.shift();
        }
        value
    }

    fn direct(&mut self, value: u32, count: u32) -> u32 {
        for at in (0..count).rev() {
            self.range >>= 1;
            if value >> at & 1 == 1 {
                self.low += u64::from(self.range);
            }
            while self.range < TOP {
                self.range <<= 8;
                self.shift();
            }
        }
        value
    }
}

/// Reads. Any bytes are read to something.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    bytes: &'a [u8],
    code: u32,
    range: u32,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes, code: 0, range: u32::MAX };
        for _ in 0..5 {
            decoder.code = decoder.code << 8 | decoder.next();
        }
        decoder
    }

    fn next(&mut self) -> u32 {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        u32::from(*first)
    }
}

impl Coder for Decoder<'_> {
    #[inline]
    fn bit(&mut self, model: &mut Bit, _: bool) -> bool {
        let bound = (self.range >> SCALE) * u32::from(model.0);
        let value = self.code >= bound;
        if value {
            self.code -= bound;
            self.range -= bound;
            model.0 -= model.0 >> RATE;
        } else {
            self.range = bound;
            model.0 += ((1 << SCALE) - model.0) >> RATE;
        }
        while self.range < TOP {
            self.range <<= 8;
            self.code = self.code << 8 | self.next();
        }
        value
    }

    fn direct(&mut self, _: u32, count: u32) -> u32 {
        let mut value = 0;
        for _ in 0..count {
            self.range >>= 1;
            let bit = self.code >= self.range;
            if bit {
                self.code -= self.range;
            }
            value = value << 1 | u32::from(bit);
            while self.range < TOP {
                self.range <<= 8;
                self.code = self.code << 8 | self.next();
            }
        }
        value
    }
}

/// Symbols of `BITS` bits: a tree of bits, each with a model of its own.
#[derive(Clone, Debug)]
pub(super) struct Symbols<const BITS: u32>(Vec<Bit>);

impl<const BITS: u32> Default for Symbols<BITS> {
    fn default() -> Self {
        Self(vec![Bit::default(); 1 << BITS])
    }
}

impl<const BITS: u32> Symbols<BITS> {
    pub(super) fn code(&mut self, coder: &mut impl Coder, value: u32) -> u32 {
        let mut node = 1usize;
        for at in (0..BITS).rev() {
            node = node << 1 | usize::from(coder.bit(&mut self.0[node], value >> at & 1 == 1));
        }
        node as u32 - (1 << BITS)
    }
}

/// Numbers of which small ones are likely: the count of bits, the bit below the highest one, then the rest as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    sizes: Symbols<6>,
    seconds: Symbols<6>,
}

impl Numbers {
    pub(super) fn code(&mut self, coder: &mut impl Coder, value: u32) -> u32 {
        let size = self.sizes.code(coder, 32 - value.leading_zeros()).min(32);
        if size < 2 {
            return size;
        }
        let second = coder.bit(&mut self.seconds.0[size as usize], value >> (size - 2) & 1 == 1);
        let low = coder.direct(value & ((1u64 << (size - 2)) - 1) as u32, size - 2);
        1u32 << (size - 1) | u32::from(second) << (size - 2) | low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(values in proptest::collection::vec(prop_oneof![0u32..4, any::<u32>(), Just(u32::MAX)], 0..400), symbols in proptest::collection::vec(0u32..8, 0..400)) {
            let (mut encoder, mut numbers, mut tree) = (Encoder::new(), Numbers::default(), Symbols::<3>::default());
            for value in &values {
                numbers.code(&mut encoder, *value);
                encoder.direct(value >> 3, 29);
            }
            for symbol in &symbols {
                tree.code(&mut encoder, *symbol);
            }
            let bytes = encoder.finish();
            let (mut decoder, mut numbers, mut tree) = (Decoder::new(&bytes), Numbers::default(), Symbols::<3>::default());
            for value in &values {
                prop_assert_eq!(numbers.code(&mut decoder, 0), *value);
                prop_assert_eq!(decoder.direct(0, 29), value >> 3);
            }
            for symbol in &symbols {
                prop_assert_eq!(tree.code(&mut decoder, 0), *symbol);
            }
        }
    }

    #[test]
    fn what_is_always_the_same_costs_next_to_nothing() {
        let (mut encoder, mut model) = (Encoder::new(), Bit::default());
        for _ in 0..100_000 {
            encoder.bit(&mut model, false);
        }
        assert!(encoder.finish().len() < 40);
    }
}
