//! What new content is compressed against: which chunks of an earlier version of a file lie where a new chunk now is, and
//! how many of them a [delta frame](crate::frame::delta) may have as bases.
//!
//! Chunks that both versions have tell how their offsets correspond; between two of them, new content is looked for at
//! the same distance behind the last one, the less exactly the further away that is. Pure functions of the two lists of
//! chunks: who imports and who pulls choose the same.
//!
//! A reader of a delta frame should need one read more, so all bases of a frame lie close together in one pack of the
//! store that keeps it ([`BaseSet`]).

mod search;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

pub use search::{Bases, OldVersion, Search};

use crate::chunk::ChunkRef;
use crate::digest::Digest;
use crate::frame::delta::{MAX_BASE_LEN, MAX_BASES};
use crate::recipe::Extent;

/// How far around its likely place the old content of a chunk is looked for at most, in bytes: a rebuilt program moves its
/// functions by some kilobytes.
pub const MAX_MARGIN: u64 = 64 << 10;
/// The same, as a part of the distance to the last chunk that both versions have.
const MARGIN_PART: u64 = 4;
/// Most frames that hold the bases of one delta frame.
pub const MAX_BASE_FRAMES: usize = 8;
/// Most bytes of a pack from the first of these frames to the last: what is read at once.
pub const MAX_BASE_SPAN: u64 = 2 << 20;
/// Files of more chunks are not compared: the list of them takes 60 bytes a chunk.
pub const MAX_FILE_CHUNKS: usize = 1 << 19;

/// The content of a file in an earlier version.
#[derive(Debug, Default)]
pub struct OldFile {
    chunks: Vec<ChunkRef>,
    /// Offset of each chunk in the file.
    starts: Vec<u64>,
    /// By prefix of the digest; `u32::MAX` for a chunk that the file has several times.
    places: HashMap<u64, u32>,
    len: u64,
}

impl OldFile {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what follows. `false` if the file has too many chunks to be compared.
    pub fn push(&mut self, extent: &Extent) -> bool {
        if let Extent::Data(chunk) = extent {
            if self.chunks.len() >= MAX_FILE_CHUNKS {
                return false;
            }
            let at = self.chunks.len() as u32;
            self.places.entry(chunk.digest.prefix64()).and_modify(|place| *place = u32::MAX).or_insert(at);
            self.chunks.push(*chunk);
            self.starts.push(self.len);
        }
        self.len += extent.len();
        true
    }

    /// Whether it has no content to compare with.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Where a chunk that the file has once ends.
    fn end_of(&self, chunk: &ChunkRef) -> Option<u64> {
        let at = *self.places.get(&chunk.digest.prefix64())? as usize;
        let found = self.chunks.get(at)?;
        (found == chunk).then(|| self.starts.get(at).map(|start| start + u64::from(chunk.len))).flatten()
    }

    /// The chunks that overlap a range.
    fn overlapping(&self, range: &Range<u64>) -> &[ChunkRef] {
        let first = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let end = self.starts.partition_point(|start| *start < range.end).max(first);
        // The first one may end before the range, at a hole.
        let ends_before = |at: usize| self.starts.get(at).zip(self.chunks.get(at)).is_some_and(|(start, chunk)| start + u64::from(chunk.len) <= range.start);
        let first = if first < end && ends_before(first) { first + 1 } else { first };
        self.chunks.get(first..end).unwrap_or_default()
    }
}

/// Follows a new version of a file through the earlier one. Tell it of all extents, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// Where the next byte probably is in the earlier version.
    at: u64,
    /// Bytes since it was certain.
    drift: u64,
}

impl Cursor {
    /// The next extent is a hole, or a chunk that need not be compared.
    pub fn pass(&mut self, old: &OldFile, extent: &Extent) {
        let found = match extent {
            Extent::Data(chunk) => old.end_of(chunk),
            Extent::Hole(_) => None,
        };
        match found {
            Some(end) => *self = Self { at: end, drift: 0 },
            None => self.advance(extent.len()),
        }
    }

    /// The next extent is a new chunk of `len` bytes: the chunks of the earlier version that are probably like it, in order.
    pub fn like<'a>(&mut self, old: &'a OldFile, len: u32) -> &'a [ChunkRef] {
        let len = u64::from(len);
        let margin = (self.drift / MARGIN_PART).min(MAX_MARGIN);
        // What was added at the end is like what was there.
        let start = self.at.min(old.len.saturating_sub(len)).saturating_sub(margin);
        let range = start..self.at.min(old.len).saturating_add(len + margin);
        self.advance(len);
        old.overlapping(&range)
    }

    fn advance(&mut self, len: u64) {
        self.at = self.at.saturating_add(len);
        self.drift = self.drift.saturating_add(len);
    }
}

/// Where a store keeps an object that can be a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasePlace {
    /// Which pack.
    pub pack: u64,
    /// Offset of its frame in the pack.
    pub start: u64,
    /// Where the frame ends.
    pub end: u64,
    /// Uncompressed bytes of the object.
    pub len: u32,
}

/// How a store keeps an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Not at all.
    Absent,
    /// In a plain frame: it can be a base.
    Plain(BasePlace),
    /// In a delta frame with these bases, which can stand in for it.
    Delta(Vec<Digest>),
}

/// Those of the objects, or the bases that stand in for them, that lie in the pack that has most of their bytes. `places` says
/// where objects are; what it cannot say is left out.
pub fn in_one_pack(digests: &[Digest], places: impl Fn(&[Digest]) -> Option<Vec<Place>>) -> Vec<(Digest, BasePlace)> {
    let mut found: Vec<(Digest, BasePlace)> = Vec::new();
    let (mut known, mut stand_ins) = (HashSet::new(), Vec::new());
    for (digest, place) in digests.iter().zip(places(digests).unwrap_or_default()) {
        match place {
            Place::Absent => {}
            Place::Plain(place) if known.insert(*digest) => found.push((*digest, place)),
            Place::Plain(_) => {}
            Place::Delta(bases) => stand_ins.extend(bases.into_iter().filter(|base| known.insert(*base))),
        }
    }
    if !stand_ins.is_empty() {
        for (digest, place) in stand_ins.iter().zip(places(&stand_ins).unwrap_or_default()) {
            if let Place::Plain(place) = place {
                found.push((*digest, place));
            }
        }
    }
    let mut bytes: HashMap<u64, u64> = HashMap::new();
    for (_, place) in &found {
        *bytes.entry(place.pack).or_default() += u64::from(place.len);
    }
    let most = bytes.into_iter().max_by_key(|(pack, bytes)| (*bytes, *pack)).map(|(pack, _)| pack);
    found.retain(|(_, place)| Some(place.pack) == most);
    found
}

/// The bases of one delta frame: so few, and so close together in one pack, that one read gets them all.
#[derive(Clone, Debug, Default)]
pub struct BaseSet {
    digests: Vec<Digest>,
    known: HashSet<Digest>,
    bytes: usize,
    pack: u64,
    span: Range<u64>,
    frames: Vec<u64>,
}

impl BaseSet {
    /// No bases.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds these, or none of them if that were too many, too long, or too far apart. Says whether it did.
    pub fn add(&mut self, bases: &[(Digest, BasePlace)]) -> bool {
        let fresh: Vec<_> = bases.iter().filter(|(digest, _)| !self.known.contains(digest)).collect();
        let mut next = (self.bytes, self.pack, self.span.clone(), self.frames.clone());
        for (number, (_, place)) in fresh.iter().enumerate() {
            let (bytes, pack, span, frames) = &mut next;
            if self.digests.is_empty() && number == 0 {
                (*pack, *span) = (place.pack, place.start..place.end);
            }
            *bytes += place.len as usize;
            *span = span.start.min(place.start)..span.end.max(place.end);
            if !frames.contains(&place.start) {
                frames.push(place.start);
            }
            if *pack != place.pack || *bytes > MAX_BASE_LEN || span.end - span.start > MAX_BASE_SPAN || frames.len() > MAX_BASE_FRAMES {
                return false;
            }
        }
        if self.digests.len() + fresh.len() > MAX_BASES {
            return false;
        }
        for (digest, _) in fresh {
            if self.known.insert(*digest) {
                self.digests.push(*digest);
            }
        }
        (self.bytes, self.pack, self.span, self.frames) = next;
        true
    }

    /// As many of these as there may be, the first ones first.
    pub fn add_some(&mut self, bases: &[(Digest, BasePlace)]) {
        for base in bases {
            self.add(std::slice::from_ref(base));
        }
    }

    /// Their names, in order.
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Their names; none are left.
    pub fn take(&mut self) -> Vec<Digest> {
        std::mem::take(self).digests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(name: u32, len: u32) -> ChunkRef {
        ChunkRef { digest: Digest::of(&name.to_le_bytes()), len }
    }

    fn file(chunks: &[ChunkRef]) -> OldFile {
        let mut old = OldFile::new();
        assert!(chunks.iter().all(|chunk| old.push(&Extent::Data(*chunk))));
        old
    }

    #[test]
    fn a_changed_chunk_is_compared_with_the_one_that_it_replaces() {
        let chunks: Vec<_> = (0..10).map(|name| chunk(name, 10_000 + name)).collect();
        let old = file(&chunks);
        let mut cursor = Cursor::default();
        assert_eq!(cursor.like(&old, 10_000), &chunks[..1]);
        // Whatever came before, a chunk that both have says where we are.
        cursor.pass(&old, &Extent::Hole(1 << 30));
        cursor.pass(&old, &Extent::Data(chunks[6]));
        assert_eq!(cursor.like(&old, 9_000), &chunks[7..8]);
        assert_eq!(cursor.like(&old, 12_000).first(), Some(&chunks[7]), "part of the old one is left, and the place is less certain");
        cursor.pass(&old, &Extent::Data(chunks[9]));
        assert_eq!(cursor.like(&old, 5_000), &chunks[9..], "what is added at the end");
    }

    #[test]
    fn a_repeated_chunk_says_nothing() {
        let chunks = [chunk(1, 5000), chunk(2, 5000), chunk(1, 5000), chunk(3, 5000)];
        let old = file(&chunks);
        let mut cursor = Cursor::default();
        cursor.pass(&old, &Extent::Data(chunks[2]));
        assert!(cursor.like(&old, 5000).contains(&chunks[1]));
    }

    proptest! {
        #[test]
        fn what_is_like_is_found_as_a_scan_finds_it(lens in proptest::collection::vec((1u32..50_000, any::<bool>()), 0..40), start in 0u64..900_000, len in 1u64..200_000) {
            let mut old = OldFile::new();
            let (mut expected, mut at) = (Vec::new(), 0);
            for (name, (len_of, is_hole)) in lens.into_iter().enumerate() {
                let chunk = chunk(name as u32, len_of);
                let extent = if is_hole { Extent::Hole(len_of.into()) } else { Extent::Data(chunk) };
                old.push(&extent);
                if !is_hole && at < start + len && at + u64::from(len_of) > start {
                    expected.push(chunk);
                }
                at += extent.len();
            }
            prop_assert_eq!(old.overlapping(&(start..start + len)), expected);
        }

        #[test]
        fn sets_stay_within_their_bounds(places in proptest::collection::vec((0u64..2, 0u64..40, 1u32..90_000), 0..400), group in 1usize..5) {
            let mut set = BaseSet::new();
            let places: Vec<_> = places.into_iter().enumerate().map(|(name, (pack, frame, len))| {
                (Digest::of(&name.to_le_bytes()), BasePlace { pack, start: frame * 100_000, end: (frame + 1) * 100_000, len })
            }).collect();
            let by_name: HashMap<_, _> = places.iter().copied().collect();
            for group in places.chunks(group) {
                let before = set.digests().len();
                let added = set.add(group);
                prop_assert_eq!(set.digests().len(), if added { before + group.len() } else { before });
            }
            let chosen: Vec<_> = set.digests().iter().map(|digest| by_name[digest]).collect();
            let frames: HashSet<_> = chosen.iter().map(|place| place.start).collect();
            prop_assert!(chosen.len() <= MAX_BASES && frames.len() <= MAX_BASE_FRAMES);
            prop_assert!(chosen.iter().map(|place| place.len as usize).sum::<usize>() <= MAX_BASE_LEN);
            prop_assert!(chosen.iter().all(|place| place.pack == chosen[0].pack));
            let span = chosen.iter().map(|place| place.end).max().unwrap_or(0) - chosen.iter().map(|place| place.start).min().unwrap_or(0);
            prop_assert!(span <= MAX_BASE_SPAN);
        }
    }
}
