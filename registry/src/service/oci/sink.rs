//! A namespace as the target of an import and the source of an export. For threads of their own: each call waits.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use chunker::{ObjectSink, ObjectSource, PackSink, SinkError, SourceError};
use layer_format::Digest;
use layer_format::pack::PackIndex;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::blob_storage::{BlobStorage, BlobWriter, pack_key};
use crate::db::namespace::NamespaceId;
use crate::db::object::Location;
use crate::db::pack::StoredFrame;
use crate::service::objects::Objects;
use crate::service::pack_upload::{NewPack, Owner, pack_record};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct NamespaceStore {
    pub(super) runtime: Handle,
    pub(super) objects: Objects,
    pub(super) storage: Arc<dyn BlobStorage>,
    pub(super) namespace: NamespaceId,
    /// Where the objects are that an export said it will ask for.
    pub(super) expected: Arc<Mutex<HashMap<Digest, Location>>>,
}

impl ObjectSink for NamespaceStore {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        let found = self.runtime.block_on(self.objects.promise(self.namespace, digests));
        let found = found.map_err(|error| SinkError::new("the database could not be asked what the namespace has", error))?;
        Ok(digests.iter().map(|digest| found.contains_key(digest)).collect())
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        let name = Digest(rand::random());
        let writer = self.runtime.block_on(self.storage.create(&pack_key(&name)));
        let writer = writer.map_err(|error| SinkError::new("no pack can be written", error))?;
        Ok(Box::new(StoredPack { store: self, name, writer: Some(writer), frames: Vec::new(), len: 0 }))
    }
}

impl ObjectSource for NamespaceStore {
    fn object(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        let read = async {
            let expected = self.expected.lock().get(digest).copied();
            // It may have been moved to another pack since.
            if let Some(place) = expected
                && let Ok(bytes) = self.objects.read(digest, &place).await
            {
                return Ok(bytes);
            }
            let place = self.objects.locate(self.namespace, &[*digest]).await?.remove(digest);
            match place {
                Some(place) => self.objects.read(digest, &place).await,
                None => Err(crate::service::frames::ReadError::Gone(None)),
            }
        };
        self.runtime.block_on(read).map_err(|error| SourceError::new(format!("object {digest} cannot be read"), error))
    }

    fn expect(&self, digests: &[Digest]) {
        let located = self.runtime.block_on(self.objects.locate(self.namespace, digests));
        // A failure shows when the object is asked for.
        *self.expected.lock() = located.unwrap_or_default();
    }
}

struct StoredPack<'a> {
    store: &'a NamespaceStore,
    name: Digest,
    writer: Option<Box<dyn BlobWriter>>,
    /// What was written, piece by piece; most are frames.
    frames: Vec<StoredFrame>,
    len: u64,
}

impl Write for StoredPack<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(writer) = &mut self.writer else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let mut check = [0; 16];
        check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
        self.frames.push(StoredFrame { offset: self.len as u32, len: bytes.len() as u32, check, is_delta: false });
        self.len += bytes.len() as u64;
        self.store.runtime.block_on(writer.write(Bytes::copy_from_slice(bytes))).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PackSink for StoredPack<'_> {
    fn finish(mut self: Box<Self>, digest: Digest, index: PackIndex) -> Result<(), SinkError> {
        let Some(writer) = self.writer.take() else { return Err(SinkError::message("a pack was finished twice")) };
        let mut pieces = std::mem::take(&mut self.frames).into_iter();
        // A frame is written in one piece.
        let frames: Vec<StoredFrame> =
            index.frames.iter().filter_map(|frame| pieces.find(|piece| u64::from(piece.offset) == frame.offset && piece.len == frame.len)).collect();
        if frames.len() != index.frames.len() {
            return Err(SinkError::message("a frame was written in pieces; please report this"));
        }
        let (store, name, len) = (self.store, self.name, self.len);
        let record = async {
            writer.finish().await.map_err(|error| SinkError::new("a pack could not be finished", error))?;
            let new = NewPack { digest, name, size_bytes: len, frames: &frames, index: &index, bases: &[] };
            let recorded = pack_record(&store.objects.db, &store.storage, Owner::Id(store.namespace), new).await;
            recorded.map(drop).map_err(|error| SinkError::new("a pack could not be recorded", error))
        };
        store.runtime.block_on(record)
    }
}

impl Drop for StoredPack<'_> {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.store.runtime.spawn(writer.abort());
        }
    }
}
