//! A store in memory: for tests and small trees.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use layer_format::Digest;
use layer_format::delta::{BasePlace, Place};
use layer_format::frame::{Frame, delta};
use layer_format::pack::{PackIndex, PackedObject};

use crate::earlier::Earlier;
use crate::error::SinkError;
use crate::sink::{ObjectSink, PackSink};
use crate::source::{ObjectSource, SourceError};

/// Holds packs as they were written.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    /// Trees that imports compress against.
    earlier: Vec<Digest>,
}

#[derive(Debug, Default)]
struct State {
    packs: Vec<(Digest, Vec<u8>, PackIndex)>,
    /// Number of the pack that holds it, and its place there.
    objects: HashMap<Digest, (usize, PackedObject)>,
    /// The frame read last: number of the pack, number of the frame.
    last: Option<((usize, u32), Frame)>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets imports from now on compress against the trees with these roots, which are in this store.
    pub fn compress_against(&mut self, roots: Vec<Digest>) {
        self.earlier = roots;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The packs, in the order in which they were finished: name and bytes.
    pub fn packs(&self) -> Vec<(Digest, Vec<u8>)> {
        self.state().packs.iter().map(|(digest, bytes, _)| (*digest, bytes.clone())).collect()
    }

    /// The digests of all objects, in the order of the packs; a digest that was written twice is there twice.
    pub fn objects(&self) -> Vec<Digest> {
        self.state().packs.iter().flat_map(|(_, _, index)| index.objects.iter().map(|object| object.digest)).collect()
    }
}

impl State {
    fn object(&mut self, digest: &Digest) -> Result<Vec<u8>, String> {
        let (pack, object) = *self.objects.get(digest).ok_or("it is not in the store")?;
        let at = (pack, object.frame);
        if self.last.as_ref().is_none_or(|(last, _)| *last != at) {
            let encoded = self.encoded(at)?;
            let bases = delta::bases(encoded).map_err(|error| error.to_string())?;
            let mut prefix = Vec::new();
            for base in bases {
                prefix.extend_from_slice(&self.base(&base)?);
            }
            self.last = Some((at, Frame::decode_delta(self.encoded(at)?, &prefix).map_err(|error| error.to_string())?));
        }
        let found = self.last.as_ref().and_then(|(_, frame)| frame.object(object.slot.into())).ok_or("it is not in its frame")?;
        if Digest::of(found) == *digest { Ok(found.to_vec()) } else { Err("it is damaged".to_owned()) }
    }

    /// An object of a plain frame.
    fn base(&self, digest: &Digest) -> Result<Vec<u8>, String> {
        let (pack, object) = *self.objects.get(digest).ok_or("one of its bases is not in the store")?;
        let frame = Frame::decode(self.encoded((pack, object.frame))?).map_err(|error| error.to_string())?;
        frame.object(object.slot.into()).map(<[u8]>::to_vec).ok_or_else(|| "one of its bases is not in its frame".to_owned())
    }

    fn encoded(&self, (pack, frame): (usize, u32)) -> Result<&[u8], String> {
        let (_, bytes, index) = self.packs.get(pack).ok_or("its pack is gone")?;
        let place = index.frames.get(frame as usize).ok_or("its frame is not in the index")?;
        let start = usize::try_from(place.offset).map_err(|error| error.to_string())?;
        bytes.get(start..start + place.len as usize).ok_or_else(|| "its pack is cut short".to_owned())
    }

    fn place(&self, digest: &Digest) -> Place {
        let Some((pack, object)) = self.objects.get(digest) else { return Place::Absent };
        let found = self.encoded((*pack, object.frame)).ok().and_then(|encoded| delta::bases(encoded).ok());
        let frame = self.packs.get(*pack).and_then(|(_, _, index)| index.frames.get(object.frame as usize));
        match (found, frame) {
            (Some(bases), Some(frame)) if bases.is_empty() => {
                Place::Plain(BasePlace { pack: *pack as u64, start: frame.offset, end: frame.offset + u64::from(frame.len), len: object.len })
            }
            (Some(bases), Some(_)) => Place::Delta(bases),
            _ => Place::Absent,
        }
    }
}

impl Earlier for MemoryStore {
    fn roots(&self) -> &[Digest] {
        &self.earlier
    }

    fn places(&self, digests: &[Digest]) -> Result<Vec<Place>, SourceError> {
        let state = self.state();
        Ok(digests.iter().map(|digest| state.place(digest)).collect())
    }
}

impl ObjectSource for MemoryStore {
    fn object(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        self.state().object(digest).map_err(|reason| SourceError::message(format!("cannot read object {digest}: {reason}")))
    }
}

impl ObjectSink for MemoryStore {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        let state = self.state();
        Ok(digests.iter().map(|digest| state.objects.contains_key(digest)).collect())
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        Ok(Box::new(MemoryPack { store: self, bytes: Vec::new() }))
    }

    fn earlier(&self) -> Option<&dyn Earlier> {
        (!self.earlier.is_empty()).then_some(self as &dyn Earlier)
    }
}

struct MemoryPack<'a> {
    store: &'a MemoryStore,
    bytes: Vec<u8>,
}

impl Write for MemoryPack<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PackSink for MemoryPack<'_> {
    fn finish(self: Box<Self>, digest: Digest, index: PackIndex) -> Result<(), SinkError> {
        if Digest::of(&self.bytes) != digest {
            return Err(SinkError::message("the pack does not have the digest that names it"));
        }
        let mut state = self.store.state();
        let pack = state.packs.len();
        state.objects.extend(index.objects.iter().map(|object| (object.digest, (pack, *object))));
        state.packs.push((digest, self.bytes, index));
        Ok(())
    }
}
