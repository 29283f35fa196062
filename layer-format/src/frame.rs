//! A frame: neighbouring objects compressed together, and still readable one by one.
//!
//! The unit of deduplication is small, the unit of compression is large: compressing neighbours together saves a
//! quarter to a half of the bytes of trees of small files. A frame is the least that is read and decompressed to get
//! one object of it.
//!
//! ```text
//! u8 codec (0 stored, 1 zstd, 2 delta) | u16 count | u32 payload length | count x u24 object length | payload
//! ```
//!
//! A [`delta`] frame is compressed against objects of other frames.

pub mod delta;

use crate::chunk::MAX_OBJECT_LEN;
use crate::codec::{FormatError, Reader};

/// A writer closes a frame once its objects reach this many uncompressed bytes.
pub const TARGET_FRAME_LEN: usize = 256 * 1024;
/// Most uncompressed bytes of a frame: the target, and one object of the largest size.
pub const MAX_FRAME_LEN: usize = TARGET_FRAME_LEN + MAX_OBJECT_LEN as usize;
/// Most objects of a frame.
pub const MAX_FRAME_OBJECTS: usize = 8192;
/// Length of the fixed part of a frame's header, in bytes.
pub const FRAME_HEADER_LEN: usize = 7;
/// Most bytes of an encoded frame: what is not smaller compressed is stored.
pub const MAX_ENCODED_LEN: usize = FRAME_HEADER_LEN + 3 * MAX_FRAME_OBJECTS + MAX_FRAME_LEN;

/// How a frame's payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Stored,
    /// One zstd frame.
    Zstd,
    /// One zstd frame with a prefix, after the names of what the prefix is made of: see [`delta`].
    Delta,
}

/// The header of an encoded frame: enough to know where the next one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// How the payload is stored.
    pub codec: Codec,
    /// How many objects it holds, `1..=MAX_FRAME_OBJECTS`.
    pub count: usize,
    /// Bytes of the payload as stored.
    pub payload_len: usize,
}

impl FrameHeader {
    /// Parses the first [`FRAME_HEADER_LEN`] bytes of a frame.
    ///
    /// # Errors
    /// If they are not a frame's, or a length is beyond its bound.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "frame";
        let mut reader = Reader::new(what, bytes);
        let codec = match reader.u8()? {
            0 => Codec::Stored,
            1 => Codec::Zstd,
            2 => Codec::Delta,
            _ => return Err(FormatError::invalid(what, "the codec is unknown")),
        };
        let count = usize::from(reader.u16()?);
        let payload_len = reader.u32()? as usize;
        if count == 0 || count > MAX_FRAME_OBJECTS {
            return Err(FormatError::TooLarge { what: "objects of a frame", value: count as u64, max: MAX_FRAME_OBJECTS as u64 });
        }
        if payload_len > MAX_FRAME_LEN {
            return Err(FormatError::TooLarge { what, value: payload_len as u64, max: MAX_FRAME_LEN as u64 });
        }
        Ok(Self { codec, count, payload_len })
    }

    /// Length of the whole encoded frame, in bytes.
    pub fn encoded_len(&self) -> usize {
        FRAME_HEADER_LEN + 3 * self.count + self.payload_len
    }
}

/// A frame decompressed: its objects' bytes one after the other. They are not verified: hash an object before use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: Vec<u8>,
    /// Offset of the end of each object.
    ends: Vec<u32>,
}

impl Frame {
    /// Decompresses an encoded frame, which must be all of `bytes`.
    ///
    /// # Errors
    /// If it is not a frame, is longer than its bound, its payload does not decompress to the lengths it states, or it is a
    /// delta frame ([`Frame::decode_delta`]).
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "frame";
        let (header, ends, payload) = Self::parts(bytes)?;
        let total = ends.last().map_or(0, |end| *end as usize);
        let bytes = match header.codec {
            Codec::Stored => payload.to_vec(),
            Codec::Zstd => zstd::bulk::decompress(payload, total).map_err(|_| FormatError::invalid(what, "the payload does not decompress"))?,
            Codec::Delta => return Err(FormatError::invalid(what, "it is compressed against other objects")),
        };
        Self::of(bytes, ends)
    }

    /// Header, ends of objects, and payload.
    fn parts(bytes: &[u8]) -> Result<(FrameHeader, Vec<u32>, &[u8]), FormatError> {
        let what = "frame";
        let header = FrameHeader::decode(bytes)?;
        let mut reader = Reader::new(what, bytes);
        reader.bytes(FRAME_HEADER_LEN)?;
        let mut ends = Vec::with_capacity(header.count);
        let mut total = 0u32;
        for _ in 0..header.count {
            let len = reader.u24()?;
            if len > MAX_OBJECT_LEN {
                return Err(FormatError::TooLarge { what: "object", value: len.into(), max: MAX_OBJECT_LEN.into() });
            }
            total += len;
            if total as usize > MAX_FRAME_LEN {
                return Err(FormatError::TooLarge { what, value: total.into(), max: MAX_FRAME_LEN as u64 });
            }
            ends.push(total);
        }
        let payload = reader.bytes(header.payload_len)?;
        reader.finish()?;
        Ok((header, ends, payload))
    }

    fn of(bytes: Vec<u8>, ends: Vec<u32>) -> Result<Self, FormatError> {
        match ends.last() {
            Some(total) if bytes.len() == *total as usize => Ok(Self { bytes, ends }),
            _ => Err(FormatError::invalid("frame", "the payload is not as long as its objects")),
        }
    }

    /// How many objects it holds.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// The object at `index`, unverified.
    pub fn object(&self, index: usize) -> Option<&[u8]> {
        let range = self.range(index)?;
        self.bytes.get(range)
    }

    /// Where the object at `index` lies in [`Frame::into_bytes`].
    pub fn range(&self, index: usize) -> Option<std::ops::Range<usize>> {
        let end = *self.ends.get(index)? as usize;
        let start = match index {
            0 => 0,
            _ => *self.ends.get(index - 1)? as usize,
        };
        Some(start..end)
    }

    /// All objects, in order.
    pub fn objects(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.count()).filter_map(|index| self.object(index))
    }

    /// The bytes of all objects, one after the other.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Uncompressed length, in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether all objects are empty.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Collects objects and encodes them as a frame.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    bytes: Vec<u8>,
    lens: Vec<u32>,
}

impl FrameBuilder {
    /// An empty frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an object of at most [`MAX_OBJECT_LEN`] bytes.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] if it is longer.
    pub fn push(&mut self, object: &[u8]) -> Result<(), FormatError> {
        if object.len() > MAX_OBJECT_LEN as usize {
            return Err(FormatError::TooLarge { what: "object", value: object.len() as u64, max: MAX_OBJECT_LEN.into() });
        }
        self.bytes.extend_from_slice(object);
        self.lens.push(object.len() as u32);
        Ok(())
    }

    /// Whether it is time to encode: [`TARGET_FRAME_LEN`] or [`MAX_FRAME_OBJECTS`] is reached.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= TARGET_FRAME_LEN || self.lens.len() >= MAX_FRAME_OBJECTS
    }

    /// Whether there is no object yet.
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// Uncompressed bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Lengths of the objects, in order.
    pub fn lens(&self) -> &[u32] {
        &self.lens
    }

    /// Encodes the frame and empties the builder. `compressor` is `None` to store the payload as it is; what zstd does
    /// not make smaller is stored as well.
    pub fn finish(&mut self, compressor: Option<&mut zstd::bulk::Compressor<'_>>) -> Vec<u8> {
        let packed = compressor.and_then(|c| c.compress(&self.bytes).ok()).filter(|packed| packed.len() < self.bytes.len());
        let (codec, payload) = match &packed {
            Some(packed) => (1, &packed[..]),
            None => (0, &self.bytes[..]),
        };
        let mut out = self.head(codec, payload.len());
        out.extend_from_slice(payload);
        self.clear();
        out
    }

    /// Forgets the objects.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.lens.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn objects_come_back(objects in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..50), compress: bool) {
            let mut builder = FrameBuilder::new();
            for object in &objects {
                builder.push(object).unwrap();
            }
            let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
            let bytes = builder.finish(compress.then_some(&mut compressor));
            prop_assert_eq!(FrameHeader::decode(&bytes).unwrap().encoded_len(), bytes.len());
            let frame = Frame::decode(&bytes).unwrap();
            prop_assert_eq!(frame.objects().map(<[u8]>::to_vec).collect::<Vec<_>>(), objects);
        }
    }

    #[test]
    fn a_payload_that_would_unpack_to_more_than_it_states_is_refused() {
        let mut builder = FrameBuilder::new();
        builder.push(&vec![0; 1 << 20]).unwrap();
        let mut bytes = builder.finish(Some(&mut zstd::bulk::Compressor::new(1).unwrap()));
        assert!(bytes.len() < 1000);
        bytes[FRAME_HEADER_LEN..FRAME_HEADER_LEN + 3].copy_from_slice(&[16, 0, 0]);
        assert!(Frame::decode(&bytes).is_err());
    }
}
