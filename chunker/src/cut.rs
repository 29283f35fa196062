//! Where content is cut: FastCDC v2020 with the parameters of [`layer_format::chunk`].
//!
//! A cut depends only on the bytes from the previous cut on, at most [`MAX_CHUNK_LEN`] of them. So a stream is cut with
//! a window of that length, and gives the same chunks as the whole file in memory.

use fastcdc::v2020::{self, Normalization};
use layer_format::chunk::{AVERAGE_CHUNK_LEN, MAX_CHUNK_LEN, MIN_CHUNK_LEN, NORMALIZATION};

const _: () = assert!(NORMALIZATION == 1, "Cutter::new uses level 1");

/// Finds cut points.
#[derive(Clone, Copy, Debug)]
pub struct Cutter {
    strict: u64,
    relaxed: u64,
}

impl Default for Cutter {
    fn default() -> Self {
        Self::new()
    }
}

impl Cutter {
    /// With the parameters of the format.
    pub fn new() -> Self {
        let (strict, relaxed) = v2020::select_masks(AVERAGE_CHUNK_LEN as usize, Normalization::Level1);
        Self { strict, relaxed }
    }

    /// Length of the chunk at the start of `window`, which must be the rest of the content or at least
    /// [`MAX_CHUNK_LEN`] bytes of it. 0 only for an empty window.
    pub fn next(&self, window: &[u8]) -> usize {
        let (strict, relaxed) = (self.strict, self.relaxed);
        let (min, average, max) = (MIN_CHUNK_LEN as usize, AVERAGE_CHUNK_LEN as usize, MAX_CHUNK_LEN as usize);
        v2020::cut(window, min, average, max, strict, relaxed, strict << 1, relaxed << 1).1
    }

    /// Lengths of all chunks of `content`, in order.
    pub fn all<'a>(&'a self, content: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        let mut rest = content;
        std::iter::from_fn(move || {
            let len = self.next(rest);
            rest = rest.get(len..).unwrap_or_default();
            (len > 0).then_some(len)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::Digest;
    use proptest::prelude::*;

    /// SplitMix64, so that the input does not depend on a crate.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0u64;
        let words = std::iter::from_fn(|| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            Some(z ^ z >> 31)
        });
        words.flat_map(u64::to_le_bytes).take(len).collect()
    }

    /// If this fails, an update of `fastcdc` cuts in other places: every stored layer would lose its duplicates.
    #[test]
    fn golden_cuts() {
        let content = noise(400_001);
        let lens: Vec<usize> = Cutter::new().all(&content).collect();
        assert_eq!(lens, GOLDEN_LENS);
        let mut all = blake3::Hasher::new();
        let mut rest = &content[..];
        for len in lens {
            let (chunk, after) = rest.split_at(len);
            all.update(Digest::of(chunk).as_bytes());
            rest = after;
        }
        assert_eq!(all.finalize().to_hex().as_str(), GOLDEN_DIGEST);
    }
    const GOLDEN_LENS: &[usize] =
        &[23429, 19811, 22802, 26923, 22528, 17806, 26297, 24465, 36083, 19109, 22289, 16635, 22952, 8089, 11546, 5959, 14888, 38929, 19461];
    const GOLDEN_DIGEST: &str = "d8d46d28935a70d47612cd7ac61215968442c837c8331e330aade297f8ea84ee";

    #[test]
    fn short_and_monotonous_content() {
        let lens = |content: &[u8]| Cutter::new().all(content).collect::<Vec<_>>();
        assert!(lens(b"").is_empty());
        assert_eq!(lens(b"x"), [1]);
        assert_eq!(lens(&noise(MIN_CHUNK_LEN as usize)), [MIN_CHUNK_LEN as usize]);
        assert_eq!(lens(&[0; 3 * 65536 + 1]), [65536, 65536, 65536, 1]);
    }

    proptest! {
        #[test]
        fn a_window_of_one_chunk_cuts_as_the_whole(len in 0usize..300_000, from in 0usize..100_000) {
            let noise = noise(400_000);
            let content = &noise[from..from + len];
            let cutter = Cutter::new();
            let (mut at, mut windowed) = (0, Vec::new());
            while at < len {
                let cut = cutter.next(&content[at..len.min(at + MAX_CHUNK_LEN as usize)]);
                windowed.push(cut);
                at += cut;
            }
            prop_assert_eq!(cutter.all(content).collect::<Vec<_>>(), windowed);
        }
    }
}
