//! A pack: many objects in one file, ordered as they are read, with an index at the end.
//!
//! ```text
//! header   magic "TURBPACK" | u8 version (2 if delta frames may be in it) | 7 zero bytes
//! frames   one after the other (see `frame`); each says where the next starts, so a pack can be read as a stream
//! index    varint frame count | per frame: varint encoded length, varint object count
//!          | per object: u24 length | per object: 32-byte digest
//! footer   u64 index offset | u32 index length | BLAKE3 of the index | magic "TURBPEND"
//! ```
//!
//! A pack is named by the BLAKE3 of the whole file. That name identifies a container, not content: the same objects
//! may be packed in other ways. Digests stand once, in the index; whoever reads the stream computes them.

use crate::codec::{FormatError, Reader, Writer};
use crate::digest::Digest;
use crate::frame::{FrameBuilder, FrameHeader, MAX_ENCODED_LEN, MAX_FRAME_OBJECTS};

const MAGIC: &[u8; 8] = b"TURBPACK";
const END_MAGIC: &[u8; 8] = b"TURBPEND";
/// Without delta frames: what every reader reads.
const PLAIN_VERSION: u8 = 1;
/// With delta frames.
const VERSION: u8 = 2;

/// Length of the header, in bytes: the offset of the first frame.
pub const HEADER_LEN: usize = 16;
/// Length of the footer, in bytes.
pub const FOOTER_LEN: usize = 8 + 4 + Digest::LEN + 8;
/// A writer closes a pack once it reaches this many bytes.
pub const TARGET_PACK_LEN: u64 = 64 << 20;
/// Most bytes of a pack that a reader accepts.
pub const MAX_PACK_LEN: u64 = 128 << 20;
/// Most objects of a pack.
pub const MAX_PACK_OBJECTS: usize = 1 << 20;
/// Most frames of a pack.
pub const MAX_PACK_FRAMES: usize = 1 << 17;
/// Most bytes of an index.
pub const MAX_INDEX_LEN: usize = 64 << 20;

/// The header of a pack without delta frames.
pub fn header() -> [u8; HEADER_LEN] {
    header_of(PLAIN_VERSION)
}

/// The header of a pack that may hold delta frames ([`crate::frame::delta`]).
pub fn header_with_deltas() -> [u8; HEADER_LEN] {
    header_of(VERSION)
}

fn header_of(version: u8) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8] = version;
    out
}

/// Checks the first [`HEADER_LEN`] bytes of a pack. Says whether there may be delta frames in it.
///
/// # Errors
/// If they are not a pack's, or one of a newer version.
pub fn check_header(bytes: &[u8]) -> Result<bool, FormatError> {
    let mut reader = Reader::new("pack", bytes);
    let version = reader.header(MAGIC, VERSION)?;
    match reader.array::<7>()? {
        [0, 0, 0, 0, 0, 0, 0] => Ok(version > PLAIN_VERSION),
        _ => Err(FormatError::invalid("pack", "a reserved byte is not zero")),
    }
}

/// An object in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedObject {
    /// Its name.
    pub digest: Digest,
    /// Uncompressed length in bytes.
    pub len: u32,
    /// Number of the frame that holds it.
    pub frame: u32,
    /// Its position in the frame.
    pub slot: u16,
}

/// A frame in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedFrame {
    /// Offset of its first byte in the pack.
    pub offset: u64,
    /// Encoded length in bytes.
    pub len: u32,
    /// How many objects it holds.
    pub count: u16,
}

/// The index of a pack: its frames, and its objects in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackIndex {
    /// Frames, in order.
    pub frames: Vec<PackedFrame>,
    /// Objects, in order.
    pub objects: Vec<PackedObject>,
}

/// Where the index is, as the footer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Offset of the index in the pack.
    pub index_offset: u64,
    /// Length of the index in bytes, at most [`MAX_INDEX_LEN`].
    pub index_len: u32,
    /// BLAKE3 of the index.
    pub index_digest: Digest,
}

impl Footer {
    /// Parses the last [`FOOTER_LEN`] bytes of a pack of `pack_len` bytes.
    ///
    /// # Errors
    /// If they are not a footer: the pack was cut short, say.
    pub fn decode(bytes: &[u8], pack_len: u64) -> Result<Self, FormatError> {
        let what = "pack footer";
        let mut reader = Reader::new(what, bytes);
        let footer = Self { index_offset: reader.u64()?, index_len: reader.u32()?, index_digest: reader.digest()? };
        if reader.array::<8>()? != *END_MAGIC {
            return Err(FormatError::WrongMagic { what });
        }
        reader.finish()?;
        if footer.index_len as usize > MAX_INDEX_LEN {
            return Err(FormatError::TooLarge { what: "pack index", value: footer.index_len.into(), max: MAX_INDEX_LEN as u64 });
        }
        let end = footer.index_offset.checked_add(u64::from(footer.index_len) + FOOTER_LEN as u64);
        if end != Some(pack_len) || footer.index_offset < HEADER_LEN as u64 || pack_len > MAX_PACK_LEN {
            return Err(FormatError::invalid(what, "the index does not lie between the frames and the footer"));
        }
        Ok(footer)
    }
}

impl PackIndex {
    /// Parses an index, and checks it against the footer.
    ///
    /// # Errors
    /// If it does not match its digest, or its frames do not lie one after the other up to the index.
    pub fn decode(bytes: &[u8], footer: &Footer) -> Result<Self, FormatError> {
        let what = "pack index";
        if Digest::of(bytes) != footer.index_digest {
            return Err(FormatError::DigestMismatch { what });
        }
        let mut reader = Reader::new(what, bytes);
        let frame_count = reader.count(MAX_PACK_FRAMES as u64, 2)?;
        let mut frames = Vec::with_capacity(frame_count);
        let mut offset = HEADER_LEN as u64;
        let mut object_count = 0usize;
        for _ in 0..frame_count {
            let len = reader.varint(MAX_ENCODED_LEN as u64)? as u32;
            let count = reader.varint(MAX_FRAME_OBJECTS as u64)? as u16;
            frames.push(PackedFrame { offset, len, count });
            offset += u64::from(len);
            object_count += usize::from(count);
        }
        if offset != footer.index_offset {
            return Err(FormatError::invalid(what, "the frames do not end where the index starts"));
        }
        if object_count > MAX_PACK_OBJECTS {
            return Err(FormatError::TooLarge { what: "objects of a pack", value: object_count as u64, max: MAX_PACK_OBJECTS as u64 });
        }
        if reader.remaining() != object_count * (3 + Digest::LEN) {
            return Err(FormatError::invalid(what, "the number of objects does not match its length"));
        }
        let mut lens = reader.clone();
        reader.bytes(3 * object_count)?;
        let mut objects = Vec::with_capacity(object_count);
        for (frame, info) in frames.iter().enumerate() {
            for slot in 0..info.count {
                objects.push(PackedObject { len: lens.u24()?, digest: reader.digest()?, frame: frame as u32, slot });
            }
        }
        reader.finish()?;
        Ok(Self { frames, objects })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + 6 * self.frames.len() + 35 * self.objects.len());
        out.put_varint(self.frames.len() as u64);
        for frame in &self.frames {
            out.put_varint(frame.len.into());
            out.put_varint(frame.count.into());
        }
        for object in &self.objects {
            out.put_u24(object.len);
        }
        for object in &self.objects {
            out.extend_from_slice(object.digest.as_bytes());
        }
        out
    }
}

/// Lays out a pack: the caller writes what it returns, in order, and nothing else.
#[derive(Debug)]
pub struct PackBuilder {
    index: PackIndex,
    offset: u64,
}

impl Default for PackBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl PackBuilder {
    /// Starts a pack. The caller writes [`header`] first.
    pub fn new() -> Self {
        Self { index: PackIndex::default(), offset: HEADER_LEN as u64 }
    }

    /// Accounts for the next frame, `encoded` by [`FrameBuilder::finish`] and holding `objects` in order, which the
    /// caller then writes.
    ///
    /// # Errors
    /// If `encoded` is not a frame of as many objects.
    pub fn push(&mut self, encoded: &[u8], objects: &[(Digest, u32)]) -> Result<PackedFrame, FormatError> {
        let head = FrameHeader::decode(encoded)?;
        if head.count != objects.len() || head.encoded_len() != encoded.len() {
            return Err(FormatError::invalid("pack", "a frame does not hold the objects given"));
        }
        let frame = PackedFrame { offset: self.offset, len: encoded.len() as u32, count: head.count as u16 };
        let number = self.index.frames.len() as u32;
        self.index.frames.push(frame);
        let slots = objects.iter().enumerate();
        self.index.objects.extend(slots.map(|(slot, (digest, len))| PackedObject { digest: *digest, len: *len, frame: number, slot: slot as u16 }));
        self.offset += encoded.len() as u64;
        Ok(frame)
    }

    /// Bytes so far, with the header and without the tail.
    pub fn len(&self) -> u64 {
        self.offset
    }

    /// Whether there is no frame yet.
    pub fn is_empty(&self) -> bool {
        self.index.frames.is_empty()
    }

    /// Whether it is time to finish: [`TARGET_PACK_LEN`] or half of a count's bound is reached.
    pub fn is_full(&self) -> bool {
        self.offset >= TARGET_PACK_LEN || self.index.objects.len() >= MAX_PACK_OBJECTS / 2 || self.index.frames.len() >= MAX_PACK_FRAMES / 2
    }

    /// The index and footer that end the pack, and the index for the caller's own use.
    pub fn finish(self) -> (Vec<u8>, PackIndex) {
        let mut out = self.index.encode();
        let digest = Digest::of(&out);
        let len = out.len() as u32;
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(digest.as_bytes());
        out.extend_from_slice(END_MAGIC);
        (out, self.index)
    }
}

/// A whole pack from objects in memory: for small packs and for tests.
///
/// # Errors
/// [`FormatError::TooLarge`] if an object is too long.
pub fn build(objects: impl IntoIterator<Item = impl AsRef<[u8]>>, level: Option<i32>) -> Result<(Vec<u8>, PackIndex), FormatError> {
    let mut compressor = level.and_then(|level| zstd::bulk::Compressor::new(level).ok());
    let mut out = header().to_vec();
    let mut pack = PackBuilder::new();
    let mut frame = FrameBuilder::new();
    let mut names = Vec::new();
    let mut objects = objects.into_iter().peekable();
    while let Some(object) = objects.next() {
        let object = object.as_ref();
        frame.push(object)?;
        names.push((Digest::of(object), object.len() as u32));
        if frame.is_full() || objects.peek().is_none() {
            let encoded = frame.finish(compressor.as_mut());
            pack.push(&encoded, &names)?;
            out.extend_from_slice(&encoded);
            names.clear();
        }
    }
    let (tail, index) = pack.finish();
    out.extend_from_slice(&tail);
    Ok((out, index))
}

/// The index of a whole pack in memory.
///
/// # Errors
/// If the header, footer or index is not valid.
pub fn read_index(pack: &[u8]) -> Result<PackIndex, FormatError> {
    let what = "pack";
    check_header(pack)?;
    let at = pack.len().checked_sub(FOOTER_LEN).ok_or(FormatError::Truncated { what })?;
    let (before, tail) = pack.split_at(at);
    let footer = Footer::decode(tail, pack.len() as u64)?;
    let index = usize::try_from(footer.index_offset).ok().and_then(|start| before.get(start..)).ok_or(FormatError::Truncated { what })?;
    PackIndex::decode(index, &footer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_object_is_found_through_the_index(objects in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20_000), 0..60)) {
            let (bytes, index) = build(&objects, Some(1)).unwrap();
            prop_assert_eq!(&read_index(&bytes).unwrap(), &index);
            prop_assert_eq!(index.objects.len(), objects.len());
            for (object, wanted) in index.objects.iter().zip(&objects) {
                let place = index.frames[object.frame as usize];
                let frame = Frame::decode(&bytes[place.offset as usize..][..place.len as usize]).unwrap();
                prop_assert_eq!(frame.object(object.slot.into()).unwrap(), &wanted[..]);
                prop_assert_eq!(object.digest, Digest::of(wanted));
            }
        }

        #[test]
        fn damage_to_the_tail_is_noticed(at: proptest::sample::Index, bit in 0u8..8) {
            let (mut bytes, index) = build([b"one".to_vec(), b"two".to_vec()], None).unwrap();
            let tail = bytes.len() - FOOTER_LEN - index.objects.len() * 35 - 3;
            let at = tail + at.index(bytes.len() - tail);
            bytes[at] ^= 1 << bit;
            prop_assert!(read_index(&bytes).is_err());
        }
    }

    #[test]
    fn golden_pack() {
        let (bytes, _) = build([b"hello".as_slice(), b"world"], None).unwrap();
        assert_eq!(Digest::of(&bytes).to_hex(), "f0f2b393e9e7e0deca18d3c86f271eeca1d2c1d8f06c43c80419b61ed65d08f4");
    }
}
