//! The local store as the target of an import, and as the source of an export.

use std::io::Write;

use chunker::{Earlier, ObjectSink, PackSink, SinkError, SourceError};
use client_store::store::{ContentHold, PackOrigin, PackWriter};
use client_store::{ObjectCache, Store};
use layer_format::Digest;
use layer_format::delta::Place;
use layer_format::pack::PackIndex;

/// Writes what an import makes to the store. While it exists nothing is collected or evicted there.
#[derive(Debug)]
pub struct StoreSink<'a> {
    store: &'a Store,
    /// Roots of trees that what is new is compressed against.
    earlier: Vec<Digest>,
    _hold: ContentHold,
}

impl<'a> StoreSink<'a> {
    /// A sink over this store.
    pub fn new(store: &'a Store) -> Result<Self, client_store::StoreError> {
        Ok(Self { store, earlier: Vec::new(), _hold: store.hold()? })
    }

    /// Compresses what is new against the trees with these roots, lowest layer first, as far as they are here.
    pub fn compress_against(self, earlier: Vec<Digest>) -> Self {
        Self { earlier, ..self }
    }
}

impl ObjectSink for StoreSink<'_> {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        self.store.contains(digests).map_err(|error| SinkError::new("the local store could not be asked what it has", error))
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        let writer = self.store.pack_writer(PackOrigin::Imported).map_err(|error| SinkError::new("no pack can be written", error))?;
        Ok(Box::new(Writer(writer)))
    }

    fn earlier(&self) -> Option<&dyn Earlier> {
        (!self.earlier.is_empty()).then_some(self as &dyn Earlier)
    }
}

impl Earlier for StoreSink<'_> {
    fn roots(&self) -> &[Digest] {
        &self.earlier
    }

    fn places(&self, digests: &[Digest]) -> Result<Vec<Place>, SourceError> {
        self.store.base_places(digests).map_err(|error| SourceError::new("the local store could not be asked what it has", error))
    }
}

struct Writer(PackWriter);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl PackSink for Writer {
    fn finish(self: Box<Self>, digest: Digest, index: PackIndex) -> Result<(), SinkError> {
        self.0.finish(digest, &index).map_err(|error| SinkError::new("a pack could not be finished", error))
    }
}

impl chunker::ObjectSource for StoreSink<'_> {
    fn object(&self, digest: &Digest) -> Result<Vec<u8>, chunker::SourceError> {
        StoreSource(self.store).object(digest)
    }

    fn each_object(&self, digests: &[Digest], each: &mut dyn FnMut(usize, &[u8]) -> bool) -> Result<(), chunker::SourceError> {
        StoreSource(self.store).each_object(digests, each)
    }
}

/// Reads what an export needs from the local store.
#[derive(Debug)]
pub struct StoreSource<'a>(pub &'a Store);

impl chunker::ObjectSource for StoreSource<'_> {
    fn object(&self, digest: &Digest) -> Result<Vec<u8>, chunker::SourceError> {
        let found = self.0.get(digest).map_err(|error| chunker::SourceError::new("the local store could not be read", error))?;
        let missing = || chunker::SourceError::message(format!("object {digest} is not here (or damaged); `turbo pull` the image first"));
        found.map(|bytes| bytes.to_vec()).ok_or_else(missing)
    }

    fn each_object(&self, digests: &[Digest], each: &mut dyn FnMut(usize, &[u8]) -> bool) -> Result<(), chunker::SourceError> {
        let mut missing = None;
        let read = self.0.read_each(digests, &mut |number, bytes| match bytes {
            Some(bytes) => each(number, bytes),
            None => {
                missing = digests.get(number);
                false
            }
        });
        read.map_err(|error| chunker::SourceError::new("the local store could not be read", error))?;
        match missing {
            Some(digest) => Err(chunker::SourceError::message(format!("object {digest} is not here (or damaged); `turbo pull` the image first"))),
            None => Ok(()),
        }
    }
}
