//! What delta frames need: reading their bases, finding objects that can be bases, and keeping them.
//!
//! A delta frame names its bases by digest; they are looked up like any other object, so it does not matter where they
//! are. Whoever wrote the frame chose bases that lie close together in one pack: they are read with one read. If they were
//! moved apart since, they are read one by one. A base that is gone, damaged, or itself in a delta frame makes the objects
//! of the frame count as damaged: they are fetched again, and then not against it.
//!
//! An object that is a base of a frame of which something is needed is needed itself ([`Store::live_bases`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use layer_format::Digest;
use layer_format::delta::{BasePlace, BaseSet, MAX_BASE_SPAN, Place};
use layer_format::frame::delta::{self, MAX_BASE_LEN, max_head_len};
use layer_format::frame::{Codec, FRAME_HEADER_LEN, Frame, FrameHeader, MAX_ENCODED_LEN};
use layer_format::pack::{HEADER_LEN, check_header};

use super::index::{Location, PackRow};
use super::pack_file::read_index;
use super::reader::{Decoded, FrameKey, PackReader, ReadError, read_direct};
use super::{Inner, Store};
use crate::error::StoreError;

/// A delta frame of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeltaFrame {
    /// Offset in the pack.
    pub(crate) offset: u64,
    /// Its objects, if the pack's index can be read.
    pub(crate) objects: Vec<Digest>,
    /// What it is compressed against.
    pub(crate) bases: Vec<Digest>,
}

/// Whether there may be delta frames in this pack, as its header says; `false` if it cannot be read.
pub(super) fn may_hold_deltas(file: &File) -> bool {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0).is_ok() && check_header(&header).is_ok_and(|deltas| deltas)
}

/// The bases of the frame at `offset`, in a pack whose frames end at or before `end`, and where the next frame begins.
pub(super) fn bases_at(file: &File, offset: u64, end: u64) -> Option<(Vec<Digest>, u64)> {
    if offset + FRAME_HEADER_LEN as u64 > end {
        return None;
    }
    let mut head = vec![0; FRAME_HEADER_LEN];
    file.read_exact_at(&mut head, offset).ok()?;
    let header = FrameHeader::decode(&head).ok()?;
    let next = offset + header.encoded_len() as u64;
    if next > end {
        return None;
    }
    if header.codec == Codec::Delta {
        head.resize(max_head_len(&header), 0);
        file.read_exact_at(&mut head, offset).ok()?;
    }
    Some((delta::bases(&head).ok()?, next))
}

impl PackReader {
    /// The bytes of these objects one after the other, each verified. They must lie in plain frames.
    pub(super) fn prefix(&self, inner: &Inner, bases: &[Digest]) -> Result<Vec<u8>, ReadError> {
        // A pack that was removed after the look-up: a second look says where its objects went.
        match self.prefix_once(inner, bases) {
            Err(ReadError::Vanished) => self.prefix_once(inner, bases).map_err(|error| match error {
                ReadError::Vanished => ReadError::Damaged("the pack of one of its bases is gone".into()),
                error => error,
            }),
            result => result,
        }
    }

    fn prefix_once(&self, inner: &Inner, bases: &[Digest]) -> Result<Vec<u8>, ReadError> {
        let missing = |digest: &Digest| ReadError::Damaged(format!("object {digest}, which it is compressed against, is not here"));
        let mut places = Vec::with_capacity(bases.len());
        let found = inner.index.read(|txn| bases.iter().map(|digest| inner.index.location_in(txn, digest)).collect::<heed::Result<Vec<_>>>());
        for (digest, location) in bases.iter().zip(found.map_err(|error| ReadError::Io(std::io::Error::other(error)))?) {
            places.push((*digest, location.filter(|location| !inner.bad.is(digest, location)).ok_or_else(|| missing(digest))?));
        }
        let frames = self.base_frames(inner, &places)?;
        let mut prefix = Vec::with_capacity(places.iter().map(|(_, place)| place.len as usize).sum::<usize>().min(MAX_BASE_LEN));
        for (digest, place) in &places {
            let mut append = |bytes: &[u8]| prefix.extend_from_slice(bytes);
            let read = match frames.get(&(place.pack, place.offset)) {
                _ if place.slot == Location::DIRECT => {
                    let file = self.file(place.pack, || inner.open_pack(place.pack))?;
                    read_direct(&file, digest, place.offset.into(), place.len).map(|bytes| append(&bytes))
                }
                Some(frame) => frame.object(digest, place).map(append),
                None => Err(missing(digest)),
            };
            if let Err(ReadError::Damaged(reason)) = &read {
                inner.report_bad(digest, *place, reason);
            }
            read?;
            if prefix.len() > MAX_BASE_LEN {
                return Err(ReadError::Damaged("it is compressed against more than is allowed".into()));
            }
        }
        Ok(prefix)
    }

    /// The decoded frames of bases. Those that are not in memory are read at once if they lie close together.
    fn base_frames(&self, inner: &Inner, places: &[(Digest, Location)]) -> Result<HashMap<FrameKey, Arc<Decoded>>, ReadError> {
        let mut frames = HashMap::new();
        let mut wanted: BTreeMap<FrameKey, (Location, Digest)> = BTreeMap::new();
        for (digest, place) in places.iter().filter(|(_, place)| place.slot != Location::DIRECT) {
            let key = (place.pack, place.offset);
            if frames.contains_key(&key) || wanted.contains_key(&key) {
                continue;
            }
            if place.frame_len as usize > MAX_ENCODED_LEN {
                return Err(ReadError::Damaged("the index gives a frame an impossible length".into()));
            }
            // Never wait here: who holds the lock may be waiting for us.
            let known = self.cell(key).try_lock().and_then(|frame| frame.clone());
            match known {
                Some(frame) if frame.is_delta => return Err(is_delta(digest)),
                Some(frame) => drop(frames.insert(key, frame)),
                None => drop(wanted.insert(key, (*place, *digest))),
            }
        }
        let (Some((first, _)), Some((last, _))) = (wanted.first_key_value(), wanted.last_key_value()) else { return Ok(frames) };
        let end = wanted.values().map(|(place, _)| u64::from(place.offset) + u64::from(place.frame_len)).max().unwrap_or_default();
        let (pack, start) = (first.0, u64::from(first.1));
        let together = last.0 == pack && end - start <= 2 * MAX_BASE_SPAN;
        let mut run = Vec::new();
        if together {
            run.resize((end - start) as usize, 0);
            self.base_file(inner, pack)?.read_exact_at(&mut run, start)?;
        }
        for (key, (place, digest)) in wanted {
            let mut one = Vec::new();
            let from = (u64::from(place.offset) - if together { start } else { place.offset.into() }) as usize;
            let encoded = match together {
                true => run.get(from..from + place.frame_len as usize).unwrap_or_default(),
                false => {
                    one.resize(place.frame_len as usize, 0);
                    self.base_file(inner, place.pack)?.read_exact_at(&mut one, place.offset.into())?;
                    &one[..]
                }
            };
            if FrameHeader::decode(encoded).is_ok_and(|header| header.codec == Codec::Delta) {
                return Err(is_delta(&digest));
            }
            let frame = Frame::decode(encoded).inspect_err(|error| inner.report_bad(&digest, place, &error.to_string()))?;
            let len = frame.len();
            let frame = Arc::new(Decoded::new(frame, false));
            self.decoded.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if let Some(mut cell) = self.cell(key).try_lock() {
                *cell = Some(Arc::clone(&frame));
                drop(cell);
                self.account(key, len);
            }
            frames.insert(key, frame);
        }
        Ok(frames)
    }

    fn base_file(&self, inner: &Inner, pack: u32) -> Result<Arc<File>, ReadError> {
        self.file(pack, || inner.open_pack(pack)).inspect_err(|_| self.forget(pack))
    }
}

fn is_delta(digest: &Digest) -> ReadError {
    ReadError::Damaged(format!("object {digest}, which it is compressed against, is itself compressed against others"))
}

impl Inner {
    /// Decodes a frame, with its bases if it needs some.
    pub(super) fn decode_frame(&self, encoded: &[u8]) -> Result<Frame, ReadError> {
        let bases = delta::bases(encoded)?;
        match bases.is_empty() {
            true => Ok(Frame::decode(encoded)?),
            false => Ok(Frame::decode_delta(encoded, &self.reader.prefix(self, &bases)?)?),
        }
    }

    /// The delta frames of a pack. If its index cannot be read, they come without their objects.
    pub(super) fn delta_frames(&self, row: &PackRow) -> Vec<DeltaFrame> {
        let path = self.layout.pack(&row.file);
        let Ok(file) = File::open(&path) else { return Vec::new() };
        if !may_hold_deltas(&file) {
            return Vec::new();
        }
        let mut found = Vec::new();
        match read_index(&file, &path) {
            Ok(Ok(index)) => {
                let mut objects = index.objects.iter().peekable();
                for (number, frame) in (0..).zip(&index.frames) {
                    let Some((bases, _)) = bases_at(&file, frame.offset, row.len) else { continue };
                    let own = std::iter::from_fn(|| objects.next_if(|object| object.frame <= number));
                    let objects: Vec<Digest> = own.filter(|object| object.frame == number).map(|object| object.digest).collect();
                    if !bases.is_empty() {
                        found.push(DeltaFrame { offset: frame.offset, objects, bases });
                    }
                }
            }
            _ => {
                let mut offset = HEADER_LEN as u64;
                while let Some((bases, next)) = bases_at(&file, offset, row.len) {
                    if !bases.is_empty() {
                        found.push(DeltaFrame { offset, objects: Vec::new(), bases });
                    }
                    offset = next;
                }
            }
        }
        found
    }
}

impl Store {
    /// The bases of all delta frames that hold an object for which `is_live` holds; all bases of a pack that cannot say what its
    /// frames hold. Reads a pack's index and the beginnings of its frames, of packs that have delta frames.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub(crate) fn live_bases(&self, is_live: impl Fn(&Digest) -> bool) -> Result<HashSet<Digest>, StoreError> {
        let mut bases = HashSet::new();
        for (_, row) in self.inner.index.all_packs()? {
            for frame in self.inner.delta_frames(&row) {
                if frame.objects.is_empty() || frame.objects.iter().any(&is_live) {
                    bases.extend(frame.bases);
                }
            }
        }
        Ok(bases)
    }

    /// Of each pack with delta frames, the packs in which their bases lie.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub(crate) fn base_packs(&self) -> Result<HashMap<u32, HashSet<u32>>, StoreError> {
        let mut found: HashMap<u32, HashSet<u32>> = HashMap::new();
        for (id, row) in self.inner.index.all_packs()? {
            for frame in self.inner.delta_frames(&row) {
                let packs = found.entry(id).or_default();
                let index = &self.inner.index;
                packs.extend(index.read(|txn| {
                    let look = |digest| Ok(index.location_in(txn, digest)?.map(|location| location.pack));
                    frame.bases.iter().filter_map(|digest| look(digest).transpose()).collect::<heed::Result<Vec<_>>>()
                })?);
            }
        }
        Ok(found)
    }

    /// Decodes a frame that came from elsewhere, with bases that are here. `None` if they are not, or it is damaged.
    pub(crate) fn decode_received(&self, encoded: &[u8]) -> Option<Frame> {
        self.inner.decode_frame(encoded).ok()
    }

    /// Whether one read gets all of these, from plain frames: so a delta frame that needs them can be kept as it is.
    pub(crate) fn are_bases(&self, digests: &[Digest]) -> Result<bool, StoreError> {
        let mut places = Vec::with_capacity(digests.len());
        for (digest, place) in digests.iter().zip(self.base_places(digests)?) {
            match place {
                Place::Plain(place) => places.push((*digest, place)),
                Place::Absent | Place::Delta(_) => return Ok(false),
            }
        }
        Ok(BaseSet::new().add(&places))
    }

    /// How these objects are kept, in the order asked: whether they can be bases.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn base_places(&self, digests: &[Digest]) -> Result<Vec<Place>, StoreError> {
        let inner = &*self.inner;
        let locations = inner.index.read(|txn| digests.iter().map(|digest| inner.index.location_in(txn, digest)).collect::<heed::Result<Vec<_>>>())?;
        // Neighbours lie in one frame.
        let mut last: Option<(FrameKey, Option<Vec<Digest>>)> = None;
        let mut places = Vec::with_capacity(digests.len());
        for (digest, location) in digests.iter().zip(locations) {
            let Some(location) = location.filter(|location| !inner.bad.is(digest, location)) else {
                places.push(Place::Absent);
                continue;
            };
            let key = (location.pack, location.offset);
            let bases = match &last {
                _ if location.slot == Location::DIRECT => Some(Vec::new()),
                Some((of, bases)) if *of == key => bases.clone(),
                _ => {
                    let file = inner.reader.file(location.pack, || inner.open_pack(location.pack)).ok();
                    let end = u64::from(location.offset) + u64::from(location.frame_len);
                    let bases = file.and_then(|file| bases_at(&file, location.offset.into(), end)).map(|(bases, _)| bases);
                    last = Some((key, bases.clone()));
                    bases
                }
            };
            let start = u64::from(location.offset);
            places.push(match bases {
                None => Place::Absent,
                Some(bases) if bases.is_empty() => {
                    Place::Plain(BasePlace { pack: location.pack.into(), start, end: start + u64::from(location.frame_len), len: location.len })
                }
                Some(bases) => Place::Delta(bases),
            });
        }
        Ok(places)
    }
}
