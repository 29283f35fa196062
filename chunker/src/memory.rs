//! A store in memory: for tests and small trees.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use layer_format::Digest;
use layer_format::frame::Frame;
use layer_format::pack::{PackIndex, PackedObject};

use crate::error::SinkError;
use crate::sink::{ObjectSink, PackSink};
use crate::source::{ObjectSource, SourceError};

/// Holds packs as they were written.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
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
            let (_, bytes, index) = self.packs.get(pack).ok_or("its pack is gone")?;
            let place = index.frames.get(object.frame as usize).ok_or("its frame is not in the index")?;
            let encoded = usize::try_from(place.offset).ok().and_then(|start| bytes.get(start..start + place.len as usize)).ok_or("its pack is cut short")?;
            self.last = Some((at, Frame::decode(encoded).map_err(|error| error.to_string())?));
        }
        let found = self.last.as_ref().and_then(|(_, frame)| frame.object(object.slot.into())).ok_or("it is not in its frame")?;
        if Digest::of(found) == *digest { Ok(found.to_vec()) } else { Err("it is damaged".to_owned()) }
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
