//! How far two places of the input are the same.

/// Length of what is the same at `a < b`, at most `max`; `b + max` must lie in the input.
#[inline]
pub(super) fn match_len(input: &[u8], a: usize, b: usize, max: usize) -> usize {
    let (Some(one), Some(other)) = (input.get(a..a + max), input.get(b..b + max)) else { return 0 };
    let mut len = 0;
    let (ones, others) = (one.as_chunks::<8>().0, other.as_chunks::<8>().0);
    for (one, other) in ones.iter().zip(others) {
        let differ = u64::from_le_bytes(*one) ^ u64::from_le_bytes(*other);
        if differ != 0 {
            return len + (differ.trailing_zeros() >> 3) as usize;
        }
        len += 8;
    }
    len + one[len..].iter().zip(&other[len..]).take_while(|(one, other)| one == other).count()
}

/// The two bytes at `at`, which must be there.
#[inline]
pub(super) fn load16(input: &[u8], at: usize) -> u16 {
    input.get(at..at + 2).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

/// The four bytes at `at`, which must be there.
#[inline]
pub(super) fn load32(input: &[u8], at: usize) -> u32 {
    input.get(at..at + 4).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The eight bytes at `at`; zeros where they are not all there.
#[inline]
pub(super) fn load64(input: &[u8], at: usize) -> u64 {
    input.get(at..at + 8).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
