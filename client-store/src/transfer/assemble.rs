//! Putting a pack together from frames as they are and from single objects.

use std::io::{self, Write};

use layer_format::frame::FrameBuilder;
use layer_format::pack::{PackBuilder, PackIndex, header, header_with_deltas};
use layer_format::{Digest, FormatError};

/// Writes a pack to `W`, hashing it on the way.
pub(crate) struct Assembler<W> {
    out: W,
    hasher: blake3::Hasher,
    pack: PackBuilder,
    frame: FrameBuilder,
    names: Vec<(Digest, u32)>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    pub(crate) plain_bytes: u64,
}

/// A finished pack.
pub(crate) struct Assembled<W> {
    pub(crate) out: W,
    pub(crate) digest: Digest,
    pub(crate) index: PackIndex,
    pub(crate) len: u64,
}

/// Why a pack could not be written.
pub(crate) enum AssembleError {
    Io(io::Error),
    Format(FormatError),
}

impl From<io::Error> for AssembleError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FormatError> for AssembleError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

impl<W: Write> Assembler<W> {
    /// Starts a pack; single objects are compressed at `level`. Says whether delta frames may come.
    pub(crate) fn new(out: W, level: i32, deltas: bool) -> Result<Self, AssembleError> {
        let compressor = zstd::bulk::Compressor::new(level).ok();
        let mut this =
            Self { out, hasher: blake3::Hasher::new(), pack: PackBuilder::new(), frame: FrameBuilder::new(), names: Vec::new(), compressor, plain_bytes: 0 };
        this.write(&if deltas { header_with_deltas() } else { header() })?;
        Ok(this)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }

    /// Adds an encoded frame as it is. The caller has verified its objects.
    pub(crate) fn push_frame(&mut self, encoded: &[u8], objects: &[(Digest, u32)]) -> Result<(), AssembleError> {
        self.pack.push(encoded, objects)?;
        self.plain_bytes += objects.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
        Ok(self.write(encoded)?)
    }

    /// Adds an object, to be compressed with its neighbours.
    pub(crate) fn push_object(&mut self, digest: Digest, object: &[u8]) -> Result<(), AssembleError> {
        self.frame.push(object)?;
        self.names.push((digest, object.len() as u32));
        if self.frame.is_full() { self.end_frame() } else { Ok(()) }
    }

    fn end_frame(&mut self) -> Result<(), AssembleError> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let encoded = self.frame.finish(self.compressor.as_mut());
        let names = std::mem::take(&mut self.names);
        self.push_frame(&encoded, &names)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.pack.is_full()
    }

    pub(crate) fn finish(mut self) -> Result<Assembled<W>, AssembleError> {
        self.end_frame()?;
        let len = self.pack.len();
        let (tail, index) = std::mem::take(&mut self.pack).finish();
        self.write(&tail)?;
        self.out.flush()?;
        Ok(Assembled { out: self.out, digest: Digest(*self.hasher.finalize().as_bytes()), index, len: len + tail.len() as u64 })
    }
}
