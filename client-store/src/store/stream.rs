//! Objects that arrive one by one while an application runs: kept at once, durable with the next flush.
//!
//! They are appended to a `stream-…` pack that grows, in frames that are stored as they are: a hot chunk is read at the
//! disk's own speed and no time goes into compression. A flush makes the bytes durable and then names them in the index,
//! so that an index row never points at bytes that a crash can lose. The pack's row says how much of the file counts;
//! what lies beyond is what a crash cut off. So nothing has to be repaired after one: the next process that streams
//! cuts the file there and goes on in it, and when it reaches its full size it gets its index and footer.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use layer_format::Digest;
use layer_format::frame::{FRAME_HEADER_LEN, FrameBuilder};
use layer_format::pack::{HEADER_LEN, MAX_PACK_OBJECTS, TARGET_PACK_LEN, header};
use parking_lot::{Mutex, RwLock};

use super::index::{Location, PackOrigin, PackRow};
use super::layout::{create_locked, io_error, sync_parent};
use super::pack_file::scan_frames;
use super::reader::{ReadError, read_direct};
use super::{Inner, now_s};
use crate::error::StoreError;

/// An object that the index does not name yet.
#[derive(Clone)]
enum Local {
    Memory(Bytes),
    Written { file: Arc<File>, offset: u64, len: u32 },
}

/// Where a written object lies: offset and length in the growing pack.
type Row = (Digest, u64, u32);

/// A pack that grows; its file is locked by this process.
struct Growing {
    /// Known once the first flush has named it in the index.
    id: Option<u32>,
    file: Arc<File>,
    path: PathBuf,
    /// Bytes written.
    end: u64,
    /// Bytes that the index counts.
    committed: u64,
    objects: u64,
    rows: Vec<Row>,
}

impl Growing {
    fn is_full(&self) -> bool {
        self.end >= TARGET_PACK_LEN || self.objects >= MAX_PACK_OBJECTS as u64 / 2
    }
}

#[derive(Default)]
struct Writer {
    frame: FrameBuilder,
    names: Vec<(Digest, u32)>,
    /// The last one is written to; the others are full and wait for the flush.
    packs: Vec<Growing>,
}

/// This process's streamed objects.
#[derive(Default)]
pub(super) struct Stream {
    writer: Mutex<Writer>,
    local: RwLock<HashMap<Digest, Local>>,
    /// One flush at a time. Taken before `writer`.
    flushing: Mutex<()>,
}

impl Stream {
    /// An object that was inserted and is not in the index yet.
    pub(super) fn get(&self, digest: &Digest) -> Option<Result<Bytes, ReadError>> {
        let local = self.local.read().get(digest).cloned()?;
        match local {
            Local::Memory(bytes) => Some(Ok(bytes)),
            Local::Written { file, offset, len } => match read_direct(&file, digest, offset, len) {
                Ok(bytes) => Some(Ok(bytes)),
                Err(error) => {
                    self.local.write().remove(digest);
                    Some(Err(error))
                }
            },
        }
    }

    pub(super) fn contains(&self, digests: &[Digest], found: &mut [bool]) {
        let local = self.local.read();
        if !local.is_empty() {
            for (digest, found) in digests.iter().zip(found) {
                *found |= local.contains_key(digest);
            }
        }
    }

    /// Keeps objects that are not here yet.
    pub(super) fn insert(&self, inner: &Inner, objects: &[(Digest, Bytes)]) -> Result<(), StoreError> {
        let mut writer = self.writer.lock();
        for (digest, bytes) in objects {
            if self.local.read().contains_key(digest) || inner.usable_location(digest)?.is_some() {
                continue;
            }
            writer.frame.push(bytes).map_err(|source| StoreError::Damaged { path: inner.layout.home().to_owned(), source })?;
            writer.names.push((*digest, bytes.len() as u32));
            self.local.write().insert(*digest, Local::Memory(bytes.clone()));
            if writer.frame.is_full() {
                self.write_frame(inner, &mut writer)?;
            }
        }
        Ok(())
    }

    /// Appends the collected frame to the growing pack. If that fails, its objects are forgotten.
    fn write_frame(&self, inner: &Inner, writer: &mut Writer) -> Result<(), StoreError> {
        if writer.names.is_empty() {
            return Ok(());
        }
        let names = std::mem::take(&mut writer.names);
        let encoded = writer.frame.finish(None);
        let result = self.append(inner, writer, &names, &encoded);
        if result.is_err() {
            let mut local = self.local.write();
            for (digest, _) in &names {
                local.remove(digest);
            }
        }
        result
    }

    fn append(&self, inner: &Inner, writer: &mut Writer, names: &[(Digest, u32)], encoded: &[u8]) -> Result<(), StoreError> {
        if writer.packs.last().is_none_or(Growing::is_full) {
            let pack = inner.growing_pack()?;
            writer.packs.push(pack);
        }
        let Some(pack) = writer.packs.last_mut() else { return Ok(()) };
        if let Err(error) = pack.file.write_all_at(encoded, pack.end) {
            let _ = pack.file.set_len(pack.end);
            return Err(io_error("writing", &pack.path)(error));
        }
        let mut offset = pack.end + (FRAME_HEADER_LEN + 3 * names.len()) as u64;
        let mut local = self.local.write();
        for (digest, len) in names {
            local.insert(*digest, Local::Written { file: Arc::clone(&pack.file), offset, len: *len });
            pack.rows.push((*digest, offset, *len));
            offset += u64::from(*len);
        }
        pack.end = offset;
        pack.objects += names.len() as u64;
        Ok(())
    }

    /// Makes everything inserted before the call durable and visible to others. Returns whether there was anything.
    pub(super) fn flush(&self, inner: &Inner) -> Result<bool, StoreError> {
        let _flushing = self.flushing.lock();
        let mut failed = None;
        let (batches, full) = {
            let mut writer = self.writer.lock();
            failed = self.write_frame(inner, &mut writer).err().or(failed);
            let mut batches = Vec::new();
            for pack in &mut writer.packs {
                if !pack.rows.is_empty() {
                    batches.push((pack.id, Arc::clone(&pack.file), pack.path.clone(), pack.end, std::mem::take(&mut pack.rows)));
                }
            }
            // Full packs get no more rows: they are finished below, and leave the list if all goes well.
            let full: Vec<_> = writer.packs.iter().filter(|pack| pack.is_full()).map(|pack| Arc::clone(&pack.file)).collect();
            (batches, full)
        };
        let any = !batches.is_empty();
        for (id, file, path, end, rows) in batches {
            match inner.commit_stream(id, &file, &path, end, &rows) {
                Ok((id, path)) => self.committed(&file, id, path, end, &rows),
                Err(error) => {
                    self.give_up(&file, &rows);
                    failed.get_or_insert(error);
                }
            }
        }
        for file in full {
            let taken = {
                let mut writer = self.writer.lock();
                let at = writer.packs.iter().position(|pack| Arc::ptr_eq(&pack.file, &file) && pack.rows.is_empty());
                at.map(|at| writer.packs.remove(at))
            };
            if let Some(Growing { id: Some(id), file, path, committed, .. }) = taken {
                inner.finish_stream(id, &file, &path, committed).unwrap_or_else(|error| tracing::warn!(%error, "a stream pack could not be finished"));
            }
        }
        failed.map_or(Ok(any), Err)
    }

    fn committed(&self, file: &Arc<File>, id: u32, path: PathBuf, end: u64, rows: &[Row]) {
        let mut writer = self.writer.lock();
        if let Some(pack) = writer.packs.iter_mut().find(|pack| Arc::ptr_eq(&pack.file, file)) {
            (pack.id, pack.path, pack.committed) = (Some(id), path, end);
        }
        drop(writer);
        self.forget(file, rows);
    }

    fn forget(&self, file: &Arc<File>, rows: &[Row]) {
        let mut local = self.local.write();
        for (digest, ..) in rows {
            if matches!(local.get(digest), Some(Local::Written { file: at, .. }) if Arc::ptr_eq(at, file)) {
                local.remove(digest);
            }
        }
    }

    /// After a failed flush: forgets what is not durable in that pack, and gives its space back.
    fn give_up(&self, file: &Arc<File>, rows: &[Row]) {
        let mut writer = self.writer.lock();
        if let Some(at) = writer.packs.iter().position(|pack| Arc::ptr_eq(&pack.file, file)) {
            let mut pack = writer.packs.remove(at);
            self.forget(file, &std::mem::take(&mut pack.rows));
            pack.discard_uncommitted();
        }
        drop(writer);
        self.forget(file, rows);
    }

    /// At the end of the process: an unused file is removed.
    pub(super) fn close(&self) {
        for pack in self.writer.lock().packs.drain(..) {
            pack.discard_uncommitted();
        }
    }
}

impl Growing {
    fn discard_uncommitted(&self) {
        let _ = match self.id {
            None => std::fs::remove_file(&self.path),
            Some(_) => self.file.set_len(self.committed),
        };
    }
}

impl Inner {
    /// A pack to append to: one that a process left unfinished, or a new one.
    fn growing_pack(&self) -> Result<Growing, StoreError> {
        for (id, row) in self.index.all_packs()?.into_iter().filter(|(_, row)| row.origin == PackOrigin::Streamed && !row.finished && row.len < TARGET_PACK_LEN)
        {
            let path = self.layout.pack(&row.file);
            let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
            if file.try_lock().is_err() {
                continue;
            }
            // Only now nobody else changes it.
            let Some(row) = self.index.pack(id)?.filter(|row| !row.finished) else { continue };
            if file.metadata().is_ok_and(|meta| meta.len() >= row.len) && file.set_len(row.len).is_ok() {
                return Ok(Growing { id: Some(id), file: Arc::new(file), path, end: row.len, committed: row.len, objects: row.objects, rows: Vec::new() });
            }
        }
        let (path, file) = create_locked(|| self.layout.tmp_name("stream"))?;
        if let Err(error) = file.write_all_at(&header(), 0) {
            let _ = std::fs::remove_file(&path);
            return Err(io_error("writing", &path)(error));
        }
        let end = HEADER_LEN as u64;
        Ok(Growing { id: None, file: Arc::new(file), path, end, committed: 0, objects: 0, rows: Vec::new() })
    }

    /// Syncs the file up to `end` and names `rows` in the index. Returns the pack's number and path.
    fn commit_stream(&self, id: Option<u32>, file: &File, path: &Path, end: u64, rows: &[Row]) -> Result<(u32, PathBuf), StoreError> {
        file.sync_data().map_err(io_error("syncing", path))?;
        let is_new = id.is_none();
        let path = match id {
            Some(_) => path.to_owned(),
            None => {
                let name = format!("stream-{:016x}.pack", rand::random::<u64>());
                let to = self.layout.pack(&name);
                std::fs::rename(path, &to).map_err(io_error("renaming", path))?;
                sync_parent(&to)?;
                to
            }
        };
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut sorted: Vec<_> = rows.iter().collect();
        sorted.sort_unstable_by_key(|(digest, ..)| *digest);
        let mut repaired = Vec::new();
        let id = self.index.write(|txn| {
            let id = id.map_or_else(|| self.index.next_pack(txn), Ok)?;
            let fresh = PackRow { finished: false, ..PackRow::finished(file_name, PackOrigin::Streamed, 0) };
            let mut row = self.index.pack_in(txn, id)?.unwrap_or(fresh);
            for (digest, offset, len) in sorted {
                let old = self.index.location_in(txn, digest)?;
                if old.is_some_and(|old| !self.bad.is(digest, &old)) {
                    continue;
                }
                if old.is_some() {
                    repaired.push(*digest);
                }
                let location = Location { pack: id, offset: *offset as u32, frame_len: *len, slot: Location::DIRECT, len: *len };
                self.index.put_location(txn, digest, &location)?;
            }
            row.len = end;
            row.plain += rows.iter().map(|(.., len)| u64::from(*len)).sum::<u64>();
            row.objects += rows.len() as u64;
            row.used = now_s();
            self.index.put_pack(txn, id, &row)?;
            Ok(id)
        });
        let id = id.inspect_err(|_| {
            if is_new {
                let _ = std::fs::remove_file(&path);
            }
        })?;
        self.bad.remove(&repaired);
        Ok((id, path))
    }

    /// Writes index and footer of a full stream pack.
    pub(super) fn finish_stream(&self, id: u32, file: &File, path: &Path, committed: u64) -> Result<(), StoreError> {
        let scanned = scan_frames(file, committed);
        if scanned.len() != committed {
            // A frame is damaged; the rows of the others stay good. It stays without index, and is read through the rows.
            return Ok(());
        }
        let (tail, _) = scanned.finish();
        file.set_len(committed).and_then(|()| file.write_all_at(&tail, committed)).and_then(|()| file.sync_data()).map_err(io_error("finishing", path))?;
        self.index.write(|txn| {
            let Some(mut row) = self.index.pack_in(txn, id)? else { return Ok(()) };
            row.finished = true;
            row.len = committed + tail.len() as u64;
            self.index.put_pack(txn, id, &row)
        })
    }
}
