//! Writing a pack into the store, and finding out what a pack holds.
//!
//! A pack is written under a temporary name, made durable, renamed, and only then named in the index, in one
//! transaction: a reader sees all of its objects or none, and a crash leaves nothing but a file that nobody names.
//!
//! A pack that is written anew from others takes their objects' rows over in that same transaction.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use layer_format::frame::{FRAME_HEADER_LEN, Frame, FrameHeader};
use layer_format::pack::{FOOTER_LEN, Footer, HEADER_LEN, MAX_PACK_LEN, PackBuilder, PackIndex};
use layer_format::{Digest, FormatError};

use super::Store;
use super::index::{Location, PackOrigin, PackRow};
use super::layout::{create_locked, io_error, sync_parent};
use crate::error::StoreError;

/// Bytes collected for one write.
const WRITE_BUFFER_LEN: usize = 256 << 10;

/// A pack being written: give it the whole file in order, then [`PackWriter::finish`]. Dropped before, it leaves nothing.
#[derive(Debug)]
pub struct PackWriter {
    store: Store,
    file: Option<io::BufWriter<File>>,
    path: PathBuf,
    len: u64,
    origin: PackOrigin,
    /// Keeps gc and eviction away until the caller has named its image.
    content: Option<File>,
}

impl PackWriter {
    pub(super) fn create(store: &Store, origin: PackOrigin) -> Result<Self, StoreError> {
        let layout = &store.inner.layout;
        let content = store.content_shared()?;
        let (path, file) = create_locked(|| layout.tmp_name("pack"))?;
        let file = Some(io::BufWriter::with_capacity(WRITE_BUFFER_LEN, file));
        Ok(Self { store: store.clone(), file, path, len: 0, origin, content: Some(content) })
    }

    /// Makes the pack and its objects visible and durable. `digest` is the BLAKE3 of all bytes written, `index` what the
    /// file's own index says; the caller vouches for both. A pack that is here already is not kept twice.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the disk is full or fails; then nothing of the pack is visible.
    pub fn finish(self, digest: Digest, index: &PackIndex) -> Result<(), StoreError> {
        let (store, origin) = (self.store.clone(), self.origin);
        self.publish(digest, |file, len| store.add_pack(PackRow::finished(file, origin, len), index, &HashSet::new()))?;
        store.enforce_cap();
        Ok(())
    }

    /// The same for a pack of objects of the packs `from`, which lie here from now on. What is known of the packs goes on
    /// to hold of this one: whether it is on a registry, and when it was used last.
    pub(super) fn finish_moved(self, digest: Digest, index: &PackIndex, from: &HashSet<u32>, on_registry: bool, used: u64) -> Result<(), StoreError> {
        let (store, origin) = (self.store.clone(), self.origin);
        self.publish(digest, |file, len| store.add_pack(PackRow { on_registry, used, ..PackRow::finished(file, origin, len) }, index, from))
    }

    fn publish(mut self, digest: Digest, add: impl FnOnce(String, u64) -> Result<u32, StoreError>) -> Result<(), StoreError> {
        let Some(writer) = self.file.take() else { return Ok(()) };
        let file = writer.into_inner().map_err(|error| io_error("writing", &self.path)(error.into_error()))?;
        // Order matters: sync, rename, sync the folder, index. Renaming first would let a crash keep the name and lose
        // the bytes.
        file.sync_data().map_err(io_error("syncing", &self.path))?;
        let name = format!("{}.pack", digest.to_hex());
        let path = self.store.inner.layout.pack(&name);
        std::fs::rename(&self.path, &path).map_err(io_error("renaming", &self.path))?;
        sync_parent(&path)?;
        add(name, self.len)?;
        self.content = None;
        Ok(())
    }
}

impl Write for PackWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let written = file.write(bytes)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        if let Some(writer) = self.file.take() {
            // Not flushed: the bytes are not wanted.
            drop(writer.into_parts());
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Store {
    /// Names a pack's objects in the index, in one transaction. An object that another pack holds as well stays there,
    /// unless that copy is known to be damaged, or in one of the packs `moved_from`.
    pub(super) fn add_pack(&self, row: PackRow, index: &PackIndex, moved_from: &HashSet<u32>) -> Result<u32, StoreError> {
        let inner = &*self.inner;
        let plain = index.objects.iter().map(|object| u64::from(object.len)).sum();
        let used = if row.used == 0 { inner.now() } else { row.used };
        let row = PackRow { plain, objects: index.objects.len() as u64, used, ..row };
        // Sorted keys make the tree's pages warm for one another.
        let mut objects: Vec<_> = index.objects.iter().collect();
        objects.sort_unstable_by_key(|object| object.digest);
        let mut repaired = Vec::new();
        let id = inner.index.write(|txn| {
            let mut greatest = inner.index.objects.last(txn)?.and_then(|(key, _)| key.try_into().ok()).map(Digest);
            let known = inner.pack_of_file(txn, &row.file)?;
            let id = match known {
                Some(id) => id,
                None => inner.index.next_pack(txn)?,
            };
            for object in &objects {
                let Some(frame) = index.frames.get(object.frame as usize) else { continue };
                let old = inner.index.location_in(txn, &object.digest)?;
                let damaged = old.is_some_and(|old| inner.bad.is(&object.digest, &old));
                if old.is_some_and(|old| !damaged && old.pack != id && !moved_from.contains(&old.pack)) {
                    continue;
                }
                if damaged {
                    repaired.push(object.digest);
                }
                let location = Location { pack: id, offset: frame.offset as u32, frame_len: frame.len, slot: object.slot, len: object.len };
                match greatest.is_none_or(|greatest| greatest < object.digest) {
                    true => {
                        inner.index.append_location(txn, &object.digest, &location)?;
                        greatest = Some(object.digest);
                    }
                    false => inner.index.put_location(txn, &object.digest, &location)?,
                }
            }
            inner.index.put_pack(txn, id, &row)?;
            Ok(id)
        })?;
        inner.bad.remove(&repaired);
        // A copy of the same name that was damaged may still be in the caches.
        inner.reader.forget(id);
        Ok(id)
    }
}

/// The index of the finished pack in `file`, from its tail.
pub(super) fn read_index(file: &File, path: &Path) -> Result<Result<PackIndex, FormatError>, StoreError> {
    let what = "pack";
    let fail = |error| io_error("reading", path)(error);
    let len = file.metadata().map_err(fail)?.len();
    if len > MAX_PACK_LEN || len < (HEADER_LEN + FOOTER_LEN) as u64 {
        return Ok(Err(FormatError::Truncated { what }));
    }
    let mut footer = [0; FOOTER_LEN];
    file.read_exact_at(&mut footer, len - FOOTER_LEN as u64).map_err(fail)?;
    let footer = match Footer::decode(&footer, len) {
        Ok(footer) => footer,
        Err(error) => return Ok(Err(error)),
    };
    let mut index = vec![0; footer.index_len as usize];
    file.read_exact_at(&mut index, footer.index_offset).map_err(fail)?;
    Ok(PackIndex::decode(&index, &footer))
}

/// What the first `len` bytes of a pack without delta frames hold, found by reading its frames; stops at the first that is
/// damaged. Returns the builder, so that the pack can be finished.
pub(super) fn scan_frames(file: &File, len: u64) -> PackBuilder {
    scan_frames_with(file, len, |encoded| Frame::decode(encoded).ok())
}

/// The same for any pack.
pub(super) fn scan_frames_with(file: &File, len: u64, decode: impl Fn(&[u8]) -> Option<Frame>) -> PackBuilder {
    let mut pack = PackBuilder::new();
    while let Some(encoded) = read_encoded(file, pack.len(), len) {
        let Some(frame) = decode(&encoded) else { break };
        let objects: Vec<_> = frame.objects().map(|object| (Digest::of(object), object.len() as u32)).collect();
        if pack.push(&encoded, &objects).is_err() {
            break;
        }
    }
    pack
}

/// The encoded frame at `offset` of a pack whose frames end at or before `end`; `None` at the end or if it is damaged.
fn read_encoded(file: &File, offset: u64, end: u64) -> Option<Vec<u8>> {
    let mut head = [0; FRAME_HEADER_LEN];
    if offset + FRAME_HEADER_LEN as u64 > end {
        return None;
    }
    file.read_exact_at(&mut head, offset).ok()?;
    let header = FrameHeader::decode(&head).ok()?;
    if offset + header.encoded_len() as u64 > end {
        return None;
    }
    let mut encoded = vec![0; header.encoded_len()];
    file.read_exact_at(&mut encoded, offset).ok()?;
    Some(encoded)
}
