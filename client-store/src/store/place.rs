//! Where objects lie, for a push that sends stored frames as they are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use layer_format::Digest;
use layer_format::frame::{FRAME_HEADER_LEN, FrameHeader};

use super::Store;
use super::bases::bases_at;
use super::index::Location;
use super::layout::create_locked;
use crate::error::StoreError;

/// Where an object lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pack: u32,
    pub(crate) offset: u64,
    /// Slot and encoded length of the frame at `offset`; `None` if the object lies there by itself.
    pub(crate) frame: Option<(u16, u32)>,
    /// Uncompressed length.
    pub(crate) len: u32,
}

/// An encoded frame, and its objects with their lengths.
pub(crate) type VerifiedFrame = (Vec<u8>, Vec<(Digest, u32)>);

impl Store {
    /// Where each of these objects lies; what was inserted and not flushed is flushed first.
    pub(crate) fn places(&self, digests: &[Digest]) -> Result<Vec<Option<Place>>, StoreError> {
        let inner = &*self.inner;
        inner.flush()?;
        inner.index.read(|txn| {
            let place = |location: Location| Place {
                pack: location.pack,
                offset: location.offset.into(),
                frame: (location.slot != Location::DIRECT).then_some((location.slot, location.frame_len)),
                len: location.len,
            };
            let look = |digest: &Digest| Ok(inner.index.location_in(txn, digest)?.filter(|location| !inner.bad.is(digest, location)).map(place));
            digests.iter().map(look).collect()
        })
    }

    /// How many objects the frame at `offset` holds, if it can be read.
    pub(crate) fn frame_count(&self, pack: u32, offset: u64) -> Option<usize> {
        let mut head = [0; FRAME_HEADER_LEN];
        let file = self.inner.reader.file(pack, || self.inner.open_pack(pack)).ok()?;
        file.read_exact_at(&mut head, offset).ok()?;
        FrameHeader::decode(&head).ok().map(|header| header.count)
    }

    /// How many objects the frame at `offset` holds, and what it is compressed against, if it can be read.
    pub(crate) fn frame_head(&self, pack: u32, offset: u64) -> Option<(usize, Vec<Digest>)> {
        let count = self.frame_count(pack, offset)?;
        let file = self.inner.reader.file(pack, || self.inner.open_pack(pack)).ok()?;
        let (bases, _) = bases_at(&file, offset, u64::MAX)?;
        Some((count, bases))
    }

    /// The encoded frame at `offset` and its objects' lengths, if it holds exactly these objects, undamaged.
    pub(crate) fn verified_frame(&self, pack: u32, offset: u64, len: u32, objects: &[Digest]) -> Option<VerifiedFrame> {
        let file = self.inner.reader.file(pack, || self.inner.open_pack(pack)).ok()?;
        let mut encoded = vec![0; (len as usize).min(layer_format::frame::MAX_ENCODED_LEN)];
        file.read_exact_at(&mut encoded, offset).ok()?;
        let frame = self.inner.decode_frame(&encoded).ok()?;
        let names: Vec<_> = frame.objects().map(|object| (Digest::of(object), object.len() as u32)).collect();
        names.iter().map(|(digest, _)| digest).eq(objects).then_some((encoded, names))
    }

    /// A new file below `tmp/`, locked: gone when this process is.
    pub(crate) fn temporary(&self, what: &str) -> Result<(PathBuf, File), StoreError> {
        create_locked(|| self.inner.layout.tmp_name(what))
    }
}
