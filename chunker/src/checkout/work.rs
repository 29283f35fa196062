//! What workers do: make the entries of a batch, and write what is in their files.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Receiver;
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::recipe::{Extent, Recipe};
use layer_format::{Digest, FormatError, LayerPath};
use rustix::io::Errno;

use super::CheckedOut;
use super::kept::{Old, keep, share};
use super::large::{LargeFile, Part};
use super::make::{self, Rights};
use super::place::Place;
use crate::progress::Progress;
use crate::read::Stamp;
use crate::restore::RestoreError;
use crate::source::ObjectSource;

/// Bytes of a file that are written at once.
const WRITE_LEN: usize = 256 * 1024;

/// A directory of the new version, and that of the same path in the old one.
#[derive(Debug)]
pub(super) struct Both {
    pub(super) new: OwnedFd,
    pub(super) old: Option<OwnedFd>,
}

/// Something to do.
pub(super) enum Job {
    /// Make an entry that is not a directory, nor a file whose recipe has nodes. With a stamp, the old version has a file of the
    /// same content, if it has that stamp.
    Entry(Arc<Both>, Box<Entry>, Option<Stamp>),
    /// Write a part of a large file.
    Part(Arc<LargeFile>, Part),
}

/// What all workers share.
pub(super) struct Shared<'a> {
    pub(super) source: &'a dyn ObjectSource,
    pub(super) place: &'a Place,
    pub(super) progress: &'a dyn Progress,
    pub(super) rights: Rights,
    /// Something has failed: no more is to be done.
    pub(super) stop: AtomicBool,
    /// Content cannot be shared here.
    pub(super) cannot_share: AtomicBool,
}

/// What a worker, or the walk, has done.
#[derive(Default)]
pub(super) struct Done {
    pub(super) counted: CheckedOut,
    /// Files that were kept and have another time.
    pub(super) late: Vec<(LayerPath, Meta)>,
}

/// Works until there are no more batches, or something has failed.
pub(super) fn work(batches: &Receiver<Vec<Job>>, shared: &Shared<'_>) -> Result<Done, RestoreError> {
    let mut done = Done::default();
    while let Ok(batch) = batches.recv() {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let (entries, bytes) = (batch.len() as u64, done.counted.written_bytes);
        if let Err(error) = shared.batch(batch, &mut done) {
            shared.stop.store(true, Ordering::Relaxed);
            return Err(error);
        }
        shared.progress.advance(entries, done.counted.written_bytes - bytes);
    }
    Ok(done)
}

/// A chunk to write: of which job of the batch, where to, and whether it is the job's last one.
struct Piece {
    job: usize,
    offset: u64,
    len: u32,
    is_last: bool,
}

impl Shared<'_> {
    fn batch(&self, batch: Vec<Job>, done: &mut Done) -> Result<(), RestoreError> {
        let (mut digests, mut pieces) = (Vec::new(), Vec::new());
        for (number, job) in batch.iter().enumerate() {
            let before = pieces.len();
            let mut piece = |offset: u64, digest: Digest, len: u32| {
                digests.push(digest);
                pieces.push(Piece { job: number, offset, len, is_last: false });
            };
            match job {
                Job::Part(_, chunks) => chunks.iter().for_each(|(offset, chunk)| piece(*offset, chunk.digest, chunk.len)),
                Job::Entry(directory, entry, stamp) => {
                    let Kind::File(Recipe::Extents(extents)) = &entry.kind else {
                        self.other(directory, entry, done)?;
                        continue;
                    };
                    done.counted.entries += 1;
                    done.counted.bytes += entry.len();
                    if self.is_kept(directory, entry, stamp.as_ref(), done)? {
                        continue;
                    }
                    let mut offset = 0;
                    for extent in extents {
                        if let Extent::Data(chunk) = extent {
                            piece(offset, chunk.digest, chunk.len);
                        }
                        offset += extent.len();
                    }
                    if pieces.len() == before {
                        let file = self.start(directory, entry)?;
                        self.finish(file, entry, done)?;
                    }
                }
            }
            if let Some(last) = pieces.get_mut(before..).and_then(|new| new.last_mut()) {
                last.is_last = true;
            }
        }
        let mut writer = Writer { shared: self, batch: &batch, done, open: None, buffer: Vec::new(), start: 0 };
        let mut failed = None;
        let read = self.source.each_object(&digests, &mut |at, bytes| match writer.piece(&pieces[at], digests[at], bytes) {
            Ok(()) => true,
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        match failed {
            Some(error) => Err(error),
            None => read.map_err(RestoreError::Source),
        }
    }

    fn other(&self, directory: &Both, entry: &Entry, done: &mut Done) -> Result<(), RestoreError> {
        let Some((_, name)) = entry.path.split() else { return Ok(()) };
        let before = done.counted.skipped.len();
        make::other(&directory.new, name, entry, &self.rights, &mut done.counted.skipped).map_err(self.place.failed("make", &entry.path))?;
        // What was left out altogether is no entry; what lost an attribute is.
        let left_out = done.counted.skipped.len() > before && !matches!(entry.kind, Kind::Symlink(_) | Kind::Fifo);
        done.counted.entries += u64::from(!left_out);
        Ok(())
    }

    /// Whether a file came from the old version, as it is or with its content shared.
    pub(super) fn is_kept(&self, directory: &Both, entry: &Entry, stamp: Option<&Stamp>, done: &mut Done) -> Result<bool, RestoreError> {
        let (Some(stamp), Some((_, name))) = (stamp, entry.path.split()) else { return Ok(false) };
        match keep(directory, name, &entry.meta, stamp, &self.rights) {
            Old::Other => return Ok(false),
            Old::Content(old) => {
                if self.cannot_share.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                let file = self.start(directory, entry)?;
                if !share(&file, &old) {
                    self.cannot_share.store(true, Ordering::Relaxed);
                    rustix::fs::unlinkat(&directory.new, name, rustix::fs::AtFlags::empty()).map_err(self.place.failed("remove", &entry.path))?;
                    return Ok(false);
                }
                make::finish_file(&file, &entry.path, &entry.meta, &self.rights, &mut done.counted.skipped)
                    .map_err(self.place.failed("finish", &entry.path))?;
            }
            Old::Kept { has_its_time: false } => done.late.push((entry.path.clone(), Meta { xattrs: Vec::new(), ..entry.meta.clone() })),
            Old::Kept { has_its_time: true } => {}
        }
        done.counted.kept_files += 1;
        Ok(true)
    }

    /// Makes a file.
    pub(super) fn start(&self, directory: &Both, entry: &Entry) -> Result<OwnedFd, RestoreError> {
        let (_, name) = entry.path.split().unwrap_or_default();
        make::file(&directory.new, name, &entry.meta, &self.rights).map_err(self.place.failed("make the file", &entry.path))
    }

    /// Gives a file that is written its length, if it ends in a hole, and its metadata.
    fn finish(&self, file: OwnedFd, entry: &Entry, done: &mut Done) -> Result<(), RestoreError> {
        let ends_in_hole = matches!(&entry.kind, Kind::File(Recipe::Extents(extents)) if matches!(extents.last(), Some(Extent::Hole(_))));
        let file = File::from(file);
        if ends_in_hole {
            file.set_len(entry.len()).map_err(|error| self.write_failed(&entry.path, &error))?;
        }
        let skipped = &mut done.counted.skipped;
        make::finish_file(&file.into(), &entry.path, &entry.meta, &self.rights, skipped).map_err(self.place.failed("finish", &entry.path))?;
        done.counted.written_files += 1;
        Ok(())
    }

    /// A part of a large file is written, or the walk has handed out all of them: whoever is last finishes the file.
    pub(super) fn part_is_done(&self, large: &LargeFile, done: &mut Done) -> Result<(), RestoreError> {
        if large.part_is_done() {
            let file = large.fd().map_err(|error| self.write_failed(&large.entry.path, &error))?;
            self.finish(file, &large.entry, done)?;
        }
        Ok(())
    }

    pub(super) fn write_failed(&self, path: &LayerPath, error: &std::io::Error) -> RestoreError {
        self.place.failed("write", path)(Errno::from_io_error(error).unwrap_or(Errno::IO))
    }
}

/// Writes the chunks of a batch as they come.
struct Writer<'a, 'b> {
    shared: &'a Shared<'b>,
    batch: &'a [Job],
    done: &'a mut Done,
    /// The small file being written.
    open: Option<File>,
    /// What of it is not written yet, and where it goes.
    buffer: Vec<u8>,
    start: u64,
}

impl Writer<'_, '_> {
    fn piece(&mut self, piece: &Piece, digest: Digest, bytes: &[u8]) -> Result<(), RestoreError> {
        if bytes.len() != piece.len as usize {
            return Err(RestoreError::Object { digest, source: FormatError::Truncated { what: "chunk" } });
        }
        self.done.counted.written_bytes += bytes.len() as u64;
        match &self.batch[piece.job] {
            Job::Part(large, _) => {
                large.write(bytes, piece.offset).map_err(|error| self.shared.write_failed(&large.entry.path, &error))?;
                if piece.is_last { self.shared.part_is_done(large, self.done) } else { Ok(()) }
            }
            Job::Entry(directory, entry, _) => self.small(piece, directory, entry, bytes),
        }
    }

    fn small(&mut self, piece: &Piece, directory: &Both, entry: &Entry, bytes: &[u8]) -> Result<(), RestoreError> {
        let file = match self.open.take() {
            Some(file) => file,
            None => self.shared.start(directory, entry)?.into(),
        };
        let fail = |error: std::io::Error| self.shared.write_failed(&entry.path, &error);
        let follows = self.start + self.buffer.len() as u64 == piece.offset;
        if !self.buffer.is_empty() && (!follows || self.buffer.len() + bytes.len() > WRITE_LEN) {
            file.write_all_at(&self.buffer, self.start).map_err(fail)?;
            self.buffer.clear();
        }
        if self.buffer.is_empty() {
            self.start = piece.offset;
        }
        if self.buffer.is_empty() && piece.is_last {
            // Most files are one chunk: it need not be copied.
            file.write_all_at(bytes, piece.offset).map_err(fail)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        if !piece.is_last {
            self.open = Some(file);
            return Ok(());
        }
        if !self.buffer.is_empty() {
            file.write_all_at(&self.buffer, self.start).map_err(fail)?;
            self.buffer.clear();
        }
        self.shared.finish(file.into(), entry, self.done)
    }
}
