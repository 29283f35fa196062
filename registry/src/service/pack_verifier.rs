//! Verifies a pack while it streams in: decodes each frame, hashes each object, and at the end compares with the index.
//!
//! A frame says where the next one starts, but nothing says that the last one was the last, so what does not decode as a
//! frame may be the tail (index and footer). It is kept until the end of the stream, bounded by what the index of the
//! frames seen so far can take: a damaged frame early in a pack is therefore noticed early. Memory: one frame, plus 40
//! bytes an object; of a delta frame, the bytes of its bases, which are objects that the namespace has.

use std::collections::HashSet;

use layer_format::frame::{FRAME_HEADER_LEN, Frame, FrameHeader, delta};
use layer_format::pack::{FOOTER_LEN, Footer, HEADER_LEN, MAX_PACK_FRAMES, MAX_PACK_LEN, MAX_PACK_OBJECTS, PackIndex, check_header};
use layer_format::{Digest, FormatError};

use super::frames::ReadError;
use crate::db::pack::StoredFrame;

/// What is wrong with a pack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum InvalidPack {
    /// Longer than allowed.
    #[error("the pack is longer than {MAX_PACK_LEN} bytes")]
    TooLong,
    /// The bytes are not a pack, or one that was cut or damaged.
    #[error("the pack is damaged or was cut short ({0})")]
    Format(#[from] FormatError),
    /// What the frames hold is not what the index says.
    #[error("the frames of the pack are not those that its index lists")]
    Mismatch,
    /// Delta frames need what the namespace does not have, or not so that one read gets it.
    #[error("delta frames of the pack need objects that are not in this namespace, or not close together: send their objects plain")]
    Bases,
    /// What delta frames need could not be read, for now.
    #[error("what a delta frame needs could not be read")]
    Read(#[source] ReadError),
    /// Another pack than the URL names.
    #[error("the pack's digest is {got}, and the request names {wanted}")]
    Digest {
        /// As in the request.
        wanted: Digest,
        /// Of the bytes.
        got: Digest,
    },
}

/// A pack that is what it says.
#[derive(Debug)]
pub(crate) struct VerifiedPack {
    pub(crate) index: PackIndex,
    pub(crate) frames: Vec<StoredFrame>,
    pub(crate) size_bytes: u64,
    /// What its delta frames need.
    pub(crate) bases: HashSet<Digest>,
}

/// Reads the bytes of bases, one after the other; `None` if they may not be bases.
pub(crate) type ReadBases = Box<dyn Fn(&[Digest]) -> Result<Option<Vec<u8>>, ReadError> + Send>;

/// Why something is no frame.
#[derive(Clone, Debug)]
enum NoFrame {
    Format(FormatError),
    Bases,
}

impl From<NoFrame> for InvalidPack {
    fn from(why: NoFrame) -> Self {
        match why {
            NoFrame::Format(error) => Self::Format(error),
            NoFrame::Bases => Self::Bases,
        }
    }
}

#[derive(Debug)]
enum State {
    Header,
    Frames,
    /// Something that is no frame: the tail, if the pack is not damaged.
    Tail(NoFrame),
}

/// A pack being verified. Feed it all bytes, then [`PackVerifier::finish`].
pub(crate) struct PackVerifier {
    wanted: Digest,
    hasher: blake3::Hasher,
    state: State,
    buffer: Vec<u8>,
    len: u64,
    /// Offset of the first byte of `buffer` in the pack.
    offset: u64,
    frames: Vec<StoredFrame>,
    counts: Vec<u16>,
    objects: Vec<(Digest, u32)>,
    /// Whether the header says that there may be delta frames.
    deltas: bool,
    bases: HashSet<Digest>,
    read_bases: ReadBases,
}

impl PackVerifier {
    /// Expects the pack of this digest. What delta frames need comes from `read_bases`.
    pub(crate) fn new(wanted: Digest, read_bases: ReadBases) -> Self {
        Self {
            wanted,
            hasher: blake3::Hasher::new(),
            state: State::Header,
            buffer: Vec::new(),
            len: 0,
            offset: 0,
            frames: Vec::new(),
            counts: Vec::new(),
            objects: Vec::new(),
            deltas: false,
            bases: HashSet::new(),
            read_bases,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), InvalidPack> {
        self.len += bytes.len() as u64;
        if self.len > MAX_PACK_LEN {
            return Err(InvalidPack::TooLong);
        }
        self.hasher.update(bytes);
        self.buffer.extend_from_slice(bytes);
        let mut done = 0;
        while let Some(taken) = self.step(done)? {
            done += taken;
        }
        self.buffer.drain(..done);
        self.offset += done as u64;
        self.check_tail()
    }

    /// Takes one header or frame from `buffer[done..]`; `None` if it takes more bytes to know.
    fn step(&mut self, done: usize) -> Result<Option<usize>, InvalidPack> {
        let rest = self.buffer.get(done..).unwrap_or_default();
        match self.state {
            State::Header => {
                let Some(header) = rest.get(..HEADER_LEN) else { return Ok(None) };
                self.deltas = check_header(header)?;
                self.state = State::Frames;
                Ok(Some(HEADER_LEN))
            }
            State::Tail(_) => Ok(None),
            State::Frames => {
                let Some(head) = rest.get(..FRAME_HEADER_LEN) else { return Ok(None) };
                let len = match FrameHeader::decode(head) {
                    Ok(head) => head.encoded_len(),
                    Err(error) => {
                        self.state = State::Tail(NoFrame::Format(error));
                        return Ok(None);
                    }
                };
                let Some(encoded) = rest.get(..len) else { return Ok(None) };
                let (decoded, bases) = self.decode(encoded)?;
                match decoded {
                    Ok(frame) => {
                        let mut check = [0; 16];
                        check.copy_from_slice(&blake3::hash(encoded).as_bytes()[..16]);
                        let offset = (self.offset + done as u64) as u32;
                        self.frames.push(StoredFrame { offset, len: len as u32, check, is_delta: !bases.is_empty() });
                        self.counts.push(frame.count() as u16);
                        self.objects.extend(frame.objects().map(|object| (Digest::of(object), object.len() as u32)));
                        self.bases.extend(bases);
                        self.check_counts()?;
                        Ok(Some(len))
                    }
                    Err(why) => {
                        self.state = State::Tail(why);
                        Ok(None)
                    }
                }
            }
        }
    }

    /// Decodes a frame, and says what it needs.
    fn decode(&self, encoded: &[u8]) -> Result<(Result<Frame, NoFrame>, Vec<Digest>), InvalidPack> {
        let bases = match delta::bases(encoded) {
            Ok(bases) if !self.deltas || bases.is_empty() => return Ok((Frame::decode(encoded).map_err(NoFrame::Format), Vec::new())),
            Ok(bases) => bases,
            Err(error) => return Ok((Err(NoFrame::Format(error)), Vec::new())),
        };
        match (self.read_bases)(&bases).map_err(InvalidPack::Read)? {
            Some(prefix) => Ok((Frame::decode_delta(encoded, &prefix).map_err(NoFrame::Format), bases)),
            None => Ok((Err(NoFrame::Bases), Vec::new())),
        }
    }

    fn check_counts(&self) -> Result<(), FormatError> {
        let too_large = |what, value: usize, max: usize| Err(FormatError::TooLarge { what, value: value as u64, max: max as u64 });
        if self.objects.len() > MAX_PACK_OBJECTS {
            return too_large("objects of a pack", self.objects.len(), MAX_PACK_OBJECTS);
        }
        if self.frames.len() > MAX_PACK_FRAMES {
            return too_large("frames of a pack", self.frames.len(), MAX_PACK_FRAMES);
        }
        Ok(())
    }

    /// A tail is no longer than the index of the frames seen.
    fn check_tail(&self) -> Result<(), InvalidPack> {
        let longest = 10 + 8 * self.frames.len() + 35 * self.objects.len() + FOOTER_LEN;
        match &self.state {
            State::Tail(why) if self.buffer.len() > longest => Err(why.clone().into()),
            _ => Ok(()),
        }
    }

    /// Ends the pack.
    pub(crate) fn finish(self) -> Result<VerifiedPack, InvalidPack> {
        if let State::Header = self.state {
            return Err(FormatError::Truncated { what: "pack" }.into());
        }
        let at = self.buffer.len().checked_sub(FOOTER_LEN).ok_or(FormatError::Truncated { what: "pack" })?;
        let (index, footer) = self.buffer.split_at(at);
        let footer = Footer::decode(footer, self.len).map_err(|error| self.cause(error))?;
        if footer.index_offset != self.offset {
            return Err(self.cause(FormatError::Truncated { what: "pack" }));
        }
        let index = PackIndex::decode(index, &footer)?;
        let same_frames = index.frames.iter().map(|frame| (frame.offset, frame.len, frame.count));
        let seen_frames = self.frames.iter().zip(&self.counts).map(|(frame, count)| (u64::from(frame.offset), frame.len, *count));
        let same_objects = index.objects.iter().map(|object| (object.digest, object.len));
        if !same_frames.eq(seen_frames) || !same_objects.eq(self.objects.iter().copied()) {
            return Err(InvalidPack::Mismatch);
        }
        let got = Digest(*self.hasher.finalize().as_bytes());
        if got != self.wanted {
            return Err(InvalidPack::Digest { wanted: self.wanted, got });
        }
        Ok(VerifiedPack { index, frames: self.frames, size_bytes: self.len, bases: self.bases })
    }

    /// What is no frame was not the tail either: then the damaged frame is the cause.
    fn cause(&self, error: FormatError) -> InvalidPack {
        match &self.state {
            State::Tail(why) => why.clone().into(),
            _ => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::pack;

    fn no_bases() -> ReadBases {
        Box::new(|_| Ok(None))
    }

    fn verify(bytes: &[u8], digest: Digest, piece: usize) -> Result<VerifiedPack, InvalidPack> {
        let mut verifier = PackVerifier::new(digest, no_bases());
        for bytes in bytes.chunks(piece) {
            verifier.push(bytes)?;
        }
        verifier.finish()
    }

    fn sample(count: usize, len: usize, level: Option<i32>) -> Vec<u8> {
        let object = |n: usize| (0..len).map(|at| (at * (n + 7) % 251) as u8).collect::<Vec<_>>();
        pack::build((0..count).map(object), level).unwrap().0
    }

    #[test]
    fn packs_of_any_shape_are_accepted_in_pieces_of_any_size() {
        for (count, len, level) in [(0, 0, None), (1, 0, None), (1, 10, Some(1)), (3, 100, None), (200, 5000, Some(1)), (9000, 3, Some(1))] {
            let bytes = sample(count, len, level);
            for piece in [1, 7, 1000, 1 << 20] {
                let verified =
                    verify(&bytes, Digest::of(&bytes), piece).unwrap_or_else(|error| panic!("{count} objects of {len} in pieces of {piece}: {error}"));
                assert_eq!(verified.index, pack::read_index(&bytes).unwrap());
                assert_eq!(verified.frames.len(), verified.index.frames.len());
            }
        }
    }

    #[test]
    fn no_prefix_and_no_damaged_pack_is_accepted() {
        let bytes = sample(40, 60, Some(1));
        let digest = Digest::of(&bytes);
        for len in 0..bytes.len() {
            assert!(verify(&bytes[..len], digest, 64).is_err());
            assert!(verify(&bytes[..len], Digest::of(&bytes[..len]), 64).is_err(), "{len} bytes under their own name");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(verify(&damaged, digest, 64).is_err());
            assert!(verify(&damaged, Digest::of(&damaged), 64).is_err(), "byte {at} under its own name");
        }
        assert!(matches!(verify(&bytes, Digest::of(b"other"), 64), Err(InvalidPack::Digest { .. })));
    }

    #[test]
    fn damage_in_front_is_noticed_before_the_end() {
        let mut bytes = sample(2000, 2000, None);
        bytes[HEADER_LEN + 300_000] ^= 1;
        bytes[HEADER_LEN] = 9;
        let mut verifier = PackVerifier::new(Digest::of(&bytes), no_bases());
        assert!(verifier.push(&bytes[..4096]).is_err());
    }
}
