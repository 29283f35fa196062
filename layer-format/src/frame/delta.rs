//! A delta frame: objects compressed against others, its *bases*, that the reader has.
//!
//! ```text
//! u8 codec (2) | u16 count | u32 payload length | count x u24 object length | payload
//! payload = u16 base count | base count x 32-byte digest | one zstd frame, whose prefix is the bases, one after the other
//! ```
//!
//! Bases are named by their digests, so that a delta frame means the same wherever they are kept. They are objects of
//! plain frames: a base is never itself a delta, so a read needs at most one step further. Writers choose bases that
//! the store which will hold the frame reads with one read: see [`crate::delta`].

use zstd::zstd_safe::{CCtx, CParameter, DCtx};

use super::{Codec, FRAME_HEADER_LEN, Frame, FrameBuilder, FrameHeader, MAX_FRAME_LEN};
use crate::codec::{FormatError, Reader, Writer};
use crate::digest::Digest;

/// Most bases of a frame.
pub const MAX_BASES: usize = 256;
/// Most uncompressed bytes of a frame's bases together: what a reader holds to decode it.
pub const MAX_BASE_LEN: usize = 1 << 20;
/// Length of the part of a payload in front of the digests, in bytes.
const COUNT_LEN: usize = 2;

/// How many of a frame's first bytes [`bases`] needs, if it is a delta frame with as many bases as there may be.
pub fn max_head_len(header: &FrameHeader) -> usize {
    match header.codec {
        Codec::Delta => header.encoded_len().min(FRAME_HEADER_LEN + 3 * header.count + COUNT_LEN + Digest::LEN * MAX_BASES),
        Codec::Stored | Codec::Zstd => FRAME_HEADER_LEN,
    }
}

/// The bases of an encoded frame, in order: none if it is a plain one. The first [`max_head_len`] bytes are enough.
///
/// # Errors
/// If it is not a frame, or has no or too many bases.
pub fn bases(encoded: &[u8]) -> Result<Vec<Digest>, FormatError> {
    let header = FrameHeader::decode(encoded)?;
    if header.codec != Codec::Delta {
        return Ok(Vec::new());
    }
    let mut reader = Reader::new("frame", encoded);
    reader.bytes(FRAME_HEADER_LEN + 3 * header.count)?;
    read_bases(&mut reader, header.payload_len)
}

fn read_bases(reader: &mut Reader<'_>, payload_len: usize) -> Result<Vec<Digest>, FormatError> {
    let what = "delta frame";
    let count = usize::from(reader.u16()?);
    if count == 0 || count > MAX_BASES {
        return Err(FormatError::TooLarge { what: "bases of a frame", value: count as u64, max: MAX_BASES as u64 });
    }
    if COUNT_LEN + count * Digest::LEN > payload_len {
        return Err(FormatError::Truncated { what });
    }
    (0..count).map(|_| reader.digest()).collect()
}

impl Frame {
    /// Decompresses an encoded frame, which must be all of `encoded`; `prefix` is the bytes of all its [`bases`], one after
    /// the other, and empty for a plain frame.
    ///
    /// # Errors
    /// As [`Frame::decode`]; also if the prefix is too long. With other bases than it was made with, a delta frame may decode to
    /// wrong bytes: whoever takes an object hashes it, as always.
    pub fn decode_delta(encoded: &[u8], prefix: &[u8]) -> Result<Self, FormatError> {
        let what = "delta frame";
        let (header, ends, payload) = Self::parts(encoded)?;
        if header.codec != Codec::Delta {
            return Self::decode(encoded);
        }
        if prefix.len() > MAX_BASE_LEN {
            return Err(FormatError::TooLarge { what: "bases of a frame", value: prefix.len() as u64, max: MAX_BASE_LEN as u64 });
        }
        let mut reader = Reader::new(what, payload);
        read_bases(&mut reader, payload.len())?;
        let rest = reader.remaining();
        let payload = reader.bytes(rest)?;
        let total = ends.last().map_or(0, |end| *end as usize);
        let mut bytes = Vec::with_capacity(total);
        let mut context = DCtx::create();
        let failed = |_| FormatError::invalid(what, "the payload does not decompress with these bases");
        context.ref_prefix(prefix).map_err(failed)?;
        context.decompress(&mut bytes, payload).map_err(failed)?;
        Self::of(bytes, ends)
    }
}

impl FrameBuilder {
    /// Encodes the frame against `bases`, whose bytes one after the other are `prefix`, at this level of zstd. `None` if that is
    /// not possible. The builder stays as it is: compare with [`FrameBuilder::finish`], or [`FrameBuilder::clear`] it.
    pub fn encode_delta(&self, level: i32, bases: &[Digest], prefix: &[u8]) -> Option<Vec<u8>> {
        if bases.is_empty() || bases.len() > MAX_BASES || prefix.len() > MAX_BASE_LEN || self.lens.is_empty() {
            return None;
        }
        let mut context = CCtx::create();
        context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
        // The window has to reach from the end of the content to the start of the prefix.
        let reach = (prefix.len() + self.bytes.len()).max(1 << 10);
        context.set_parameter(CParameter::WindowLog(reach.ilog2() + 1)).ok()?;
        context.ref_prefix(prefix).ok()?;
        let mut packed = Vec::with_capacity(zstd::zstd_safe::compress_bound(self.bytes.len()));
        context.compress2(&mut packed, &self.bytes).ok()?;
        let payload_len = COUNT_LEN + Digest::LEN * bases.len() + packed.len();
        if payload_len > MAX_FRAME_LEN {
            return None;
        }
        let mut out = self.head(2, payload_len);
        out.extend_from_slice(&(bases.len() as u16).to_le_bytes());
        for base in bases {
            out.extend_from_slice(base.as_bytes());
        }
        out.extend_from_slice(&packed);
        Some(out)
    }

    /// The header of an encoded frame of these objects.
    pub(super) fn head(&self, codec: u8, payload_len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(FRAME_HEADER_LEN + 3 * self.lens.len() + payload_len);
        out.push(codec);
        out.extend_from_slice(&(self.lens.len() as u16).to_le_bytes());
        out.extend_from_slice(&(payload_len as u32).to_le_bytes());
        for len in &self.lens {
            out.put_u24(*len);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn builder(objects: &[Vec<u8>]) -> FrameBuilder {
        let mut builder = FrameBuilder::new();
        for object in objects {
            builder.push(object).unwrap();
        }
        builder
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(len)
        .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn objects_come_back_with_their_bases(lens in proptest::collection::vec(0usize..40_000, 1..20), base_len in 1usize..300_000, from: usize) {
            let base = noise(base_len, 7);
            let objects: Vec<Vec<u8>> = lens.iter().map(|len| base.iter().cycle().skip(from % base_len).take(*len).copied().collect()).collect();
            let bases = [Digest::of(&base), Digest::of(b"")];
            let encoded = builder(&objects).encode_delta(3, &bases, &base).unwrap();
            let header = FrameHeader::decode(&encoded).unwrap();
            prop_assert_eq!((header.encoded_len(), header.codec), (encoded.len(), Codec::Delta));
            prop_assert_eq!(super::bases(&encoded[..max_head_len(&header)]).unwrap(), bases);
            let frame = Frame::decode_delta(&encoded, &base).unwrap();
            prop_assert_eq!(frame.objects().map(<[u8]>::to_vec).collect::<Vec<_>>(), objects);
            prop_assert!(Frame::decode(&encoded).is_err(), "without its bases it is refused");
        }

        #[test]
        fn no_damage_panics_or_gives_longer_objects(at: proptest::sample::Index, byte: u8, cut: proptest::sample::Index) {
            let base = noise(50_000, 3);
            let mut encoded = builder(&[base[100..30_000].to_vec(), base[..5000].to_vec()]).encode_delta(3, &[Digest::of(&base)], &base).unwrap();
            let at = at.index(encoded.len());
            encoded[at] = byte;
            let _ = super::bases(&encoded[..cut.index(encoded.len())]);
            if let Ok(frame) = Frame::decode_delta(&encoded, &base) {
                prop_assert!(frame.len() <= MAX_FRAME_LEN);
            }
        }
    }

    #[test]
    fn a_delta_is_worth_it_and_reaches_the_start_of_its_bases() {
        let base = noise(MAX_BASE_LEN, 5);
        let objects = vec![base[..60_000].to_vec(), noise(100, 9), base[500_000..560_000].to_vec()];
        let encoded = builder(&objects).encode_delta(3, &[Digest::of(&base)], &base).unwrap();
        assert!(encoded.len() < 1000, "{}", encoded.len());
        assert!(Frame::decode_delta(&encoded, &base[1..]).is_err() || Frame::decode_delta(&encoded, &base[1..]).unwrap().object(0) != Some(&objects[0]));
    }

    #[test]
    fn bounds_are_kept() {
        let one = builder(&[b"x".to_vec()]);
        let digest = Digest::of(b"x");
        assert!(one.encode_delta(3, &[], b"x").is_none());
        assert!(one.encode_delta(3, &vec![digest; MAX_BASES + 1], b"x").is_none());
        assert!(one.encode_delta(3, &[digest], &vec![0; MAX_BASE_LEN + 1]).is_none());
        let good = one.encode_delta(3, &[digest], b"x").unwrap();
        assert!(Frame::decode_delta(&good, &vec![0; MAX_BASE_LEN + 1]).is_err());
        for count in [0u16, MAX_BASES as u16 + 1, 200] {
            let mut bad = good.clone();
            bad[FRAME_HEADER_LEN + 3..FRAME_HEADER_LEN + 5].copy_from_slice(&count.to_le_bytes());
            assert!(bases(&bad).is_err() && Frame::decode_delta(&bad, b"x").is_err(), "{count}");
        }
        // A stored frame has no bases, and needs no prefix.
        let plain = builder(&[b"x".to_vec()]).finish(None);
        assert_eq!(bases(&plain), Ok(Vec::new()));
        assert_eq!(Frame::decode_delta(&plain, b"").unwrap().object(0), Some(&b"x"[..]));
    }

    #[test]
    fn golden_delta_frame() {
        let base = b"the quick brown fox jumps over the lazy dog, and then sleeps".to_vec();
        let objects = [b"the quick brown fox jumps over the lazy cat, and then sleeps".to_vec(), b"".to_vec()];
        let encoded = builder(&objects).encode_delta(3, &[Digest::of(&base)], &base).unwrap();
        // What was written once is read for ever; the compressed bytes may change with zstd.
        let golden = "020200360000003c000000000001009ebe783a37adc94223623633539d506fbbbd1900322acd1daef37cbc7591c65a28b52ffd203c5d0000186361740200609ebf5440";
        let bytes: Vec<u8> = (0..golden.len() / 2).map(|at| u8::from_str_radix(&golden[2 * at..2 * at + 2], 16).unwrap()).collect();
        assert_eq!(Frame::decode_delta(&bytes, &base).unwrap().object(0), Some(&objects[0][..]));
        assert_eq!(encoded[..7 + 6 + 2 + 32], bytes[..7 + 6 + 2 + 32]);
    }
}
