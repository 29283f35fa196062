//! Writes encoded frames, in order, to packs of [`layer_format::pack::TARGET_PACK_LEN`] bytes.

use layer_format::Digest;
use layer_format::pack::{self, PackBuilder};

use super::compress::EncodedFrame;
use crate::error::{ImportError, SinkError};
use crate::progress::Progress;
use crate::sink::{ObjectSink, PackSink};

pub(crate) struct PackWriter<'a> {
    sink: &'a dyn ObjectSink,
    progress: &'a dyn Progress,
    open: Option<OpenPack<'a>>,
    stored_bytes: u64,
}

struct OpenPack<'a> {
    builder: PackBuilder,
    file: Box<dyn PackSink + 'a>,
    hasher: blake3::Hasher,
}

impl<'a> OpenPack<'a> {
    fn create(sink: &'a dyn ObjectSink) -> Result<Self, ImportError> {
        let file = sink.create_pack().map_err(ImportError::Sink)?;
        let mut pack = Self { builder: PackBuilder::new(), file, hasher: blake3::Hasher::new() };
        pack.write(&if sink.earlier().is_some() { pack::header_with_deltas() } else { pack::header() })?;
        Ok(pack)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|error| ImportError::Sink(SinkError::new("could not write a pack: is the disk full?", error)))
    }
}

impl<'a> PackWriter<'a> {
    pub(crate) fn new(sink: &'a dyn ObjectSink, progress: &'a dyn Progress) -> Self {
        Self { sink, progress, open: None, stored_bytes: 0 }
    }

    /// Bytes of all finished packs.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Writes the next frame. Returns the objects of the pack if it is finished with that.
    pub(crate) fn write(&mut self, frame: &EncodedFrame) -> Result<Option<Vec<Digest>>, ImportError> {
        let mut pack = match self.open.take() {
            Some(pack) => pack,
            None => OpenPack::create(self.sink)?,
        };
        pack.builder.push(&frame.bytes, &frame.objects).map_err(|error| ImportError::Internal(error.to_string()))?;
        pack.write(&frame.bytes)?;
        self.progress.stored(frame.bytes.len() as u64);
        if pack.builder.is_full() {
            return self.finish_pack(pack).map(Some);
        }
        self.open = Some(pack);
        Ok(None)
    }

    /// Finishes the open pack, if there is one.
    pub(crate) fn finish(&mut self) -> Result<(), ImportError> {
        match self.open.take() {
            Some(pack) => self.finish_pack(pack).map(drop),
            None => Ok(()),
        }
    }

    fn finish_pack(&mut self, mut pack: OpenPack<'a>) -> Result<Vec<Digest>, ImportError> {
        let (tail, index) = std::mem::take(&mut pack.builder).finish();
        pack.write(&tail)?;
        self.stored_bytes += index.frames.iter().map(|frame| u64::from(frame.len)).sum::<u64>() + (pack::HEADER_LEN + tail.len()) as u64;
        let objects = index.objects.iter().map(|object| object.digest).collect();
        let digest = Digest(*pack.hasher.finalize().as_bytes());
        pack.file.finish(digest, index).map_err(ImportError::Sink)?;
        Ok(objects)
    }
}
