//! The producer's end of the pipeline: collects entries and content into batches.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender};
use layer_format::chunk::MAX_CHUNK_LEN;

use super::batch::{Batch, Begin, FileToRead, Item, KnownFile, Span};
use super::{BATCH_ITEMS, BATCH_LEN};
use crate::cut::Cutter;
use crate::error::ImportError;
use crate::import::Skipped;
use crate::read::Directory;
use crate::segments::SegmentedFile;

/// Takes entries in order: `begin`, for a file its content by `data` and `hole`, then `end`; or `read` for a file that a
/// worker shall read. Blocks while too many batches are under way. Every method fails with [`ImportError::Stopped`]
/// once another part of the import has failed.
#[derive(Debug)]
pub(crate) struct Feed {
    batches: Sender<Batch>,
    /// Empty buffers; having one is the permission to fill a batch.
    buffers: Receiver<Vec<u8>>,
    /// How many batches were handed on.
    issued: Arc<AtomicU64>,
    cutter: Cutter,
    batch: Option<Batch>,
    /// Bytes at the end of the batch that are not cut yet.
    uncut: usize,
    /// Bytes of the files in the batch that a worker shall read.
    to_read: Option<u64>,
    /// The last directory of the batch, and how many it keeps open.
    directories: (Option<Arc<Directory>>, usize),
    /// Most directories that a batch may keep open, so that all batches together stay far below the usual 1024 files.
    max_directories: usize,
}

/// Why content could not be passed on.
pub(crate) enum DataError {
    /// The source failed.
    Read(io::Error),
    /// The pipeline failed.
    Import(ImportError),
}

impl From<ImportError> for DataError {
    fn from(error: ImportError) -> Self {
        Self::Import(error)
    }
}

impl Feed {
    pub(super) fn new(batches: Sender<Batch>, buffers: Receiver<Vec<u8>>, issued: Arc<AtomicU64>, max_batches: usize) -> Self {
        let max_directories = (256 / max_batches.max(1)).max(2);
        Self { batches, buffers, issued, cutter: Cutter::new(), batch: None, uncut: 0, to_read: None, directories: (None, 0), max_directories }
    }

    /// Begins an entry.
    pub(crate) fn begin(&mut self, begin: impl Into<Box<Begin>>) -> Result<(), ImportError> {
        self.item(Item::Begin(begin.into()))
    }

    /// Ends the file that was begun.
    pub(crate) fn end(&mut self) -> Result<(), ImportError> {
        self.item(Item::End)
    }

    /// Reports something that could not be kept.
    pub(crate) fn skipped(&mut self, skipped: Skipped) -> Result<(), ImportError> {
        self.item(Item::Skipped(skipped))
    }

    /// A whole file for a worker to read.
    pub(crate) fn read(&mut self, file: FileToRead) -> Result<(), ImportError> {
        let (directory, len) = (Arc::clone(&file.directory), file.identity.len);
        self.delegate(directory, len, Item::Read(Box::new(file)))
    }

    /// A file that a worker reads only if the sink has lost a part of it.
    pub(crate) fn known(&mut self, file: KnownFile) -> Result<(), ImportError> {
        let directory = Arc::clone(&file.file.directory);
        self.delegate(directory, 0, Item::Known(Box::new(file)))
    }

    /// A file with its recipe.
    pub(crate) fn ready(&mut self, begin: Box<Begin>) -> Result<(), ImportError> {
        self.item(Item::Ready(begin))
    }

    fn delegate(&mut self, directory: Arc<Directory>, len: u64, item: Item) -> Result<(), ImportError> {
        if self.batch.as_ref().is_some_and(|batch| !batch.bytes.is_empty()) {
            self.flush()?;
        }
        let bytes = self.to_read.unwrap_or(0) + len;
        if self.directories.0.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &directory)) {
            self.directories = (Some(directory), self.directories.1 + 1);
        }
        self.to_read = Some(bytes);
        let full = bytes >= BATCH_LEN as u64 || self.directories.1 >= self.max_directories;
        self.item(item)?;
        if full { self.flush() } else { Ok(()) }
    }

    /// A whole large file for workers to read, each segment as a batch of its own.
    pub(crate) fn segments(&mut self, file: SegmentedFile) -> Result<(), ImportError> {
        let file = Arc::new(file);
        for index in 0..file.count() {
            self.flush()?;
            self.batch()?.items.push(Item::Segment { file: Arc::clone(&file), index });
        }
        self.flush()
    }

    /// A hole of `len` bytes in the file that was begun; nothing if `len` is 0.
    pub(crate) fn hole(&mut self, len: u64) -> Result<(), ImportError> {
        if len == 0 {
            return Ok(());
        }
        self.finish_reads()?;
        self.span(Span::Hole(len))
    }

    /// Up to `len` bytes from `reader`: content of the file that was begun, between two holes or the file's ends.
    /// Returns how many came; fewer if the reader ended.
    pub(crate) fn data(&mut self, reader: &mut impl Read, len: u64) -> Result<u64, DataError> {
        self.finish_reads()?;
        let mut left = len;
        while left > 0 {
            let bytes = &mut self.batch()?.bytes;
            // What is not cut yet is shorter than a chunk, so that there is always room after a flush.
            let room = BATCH_LEN.saturating_sub(bytes.len()).max(1) as u64;
            let before = bytes.len();
            let wanted = left.min(room);
            reader.by_ref().take(wanted).read_to_end(bytes).map_err(DataError::Read)?;
            let came = (bytes.len() - before) as u64;
            self.uncut += came as usize;
            left -= came;
            self.cut(MAX_CHUNK_LEN as usize)?;
            if came < wanted {
                break;
            }
            if self.batch()?.bytes.len() >= BATCH_LEN {
                self.flush()?;
            }
        }
        self.cut(1)?;
        Ok(len - left)
    }

    /// Hands on a batch with files to read, whose content a worker appends: other content must not come after them.
    fn finish_reads(&mut self) -> Result<(), ImportError> {
        if self.to_read.is_some() { self.flush() } else { Ok(()) }
    }

    /// Cuts while at least `window` bytes are uncut.
    fn cut(&mut self, window: usize) -> Result<(), ImportError> {
        while self.uncut >= window {
            let (cutter, uncut) = (self.cutter, self.uncut);
            let bytes = &self.batch()?.bytes;
            let len = cutter.next(&bytes[bytes.len() - uncut..]);
            self.uncut -= len;
            self.span(Span::Data(len as u32))?;
        }
        Ok(())
    }

    fn span(&mut self, span: Span) -> Result<(), ImportError> {
        let batch = self.batch()?;
        batch.spans.push(span);
        match batch.items.last_mut() {
            Some(Item::Content { count }) => *count += 1,
            _ => batch.items.push(Item::Content { count: 1 }),
        }
        Ok(())
    }

    fn item(&mut self, item: Item) -> Result<(), ImportError> {
        let batch = self.batch()?;
        batch.items.push(item);
        if batch.items.len() >= BATCH_ITEMS && self.uncut == 0 {
            self.flush()?;
        }
        Ok(())
    }

    fn batch(&mut self) -> Result<&mut Batch, ImportError> {
        if self.batch.is_none() {
            let mut bytes = self.buffers.recv().map_err(|_| ImportError::Stopped)?;
            bytes.reserve(BATCH_LEN + BATCH_LEN / 8);
            self.batch = Some(Batch { bytes, ..Batch::default() });
        }
        self.batch.as_mut().ok_or(ImportError::Stopped)
    }

    /// Hands the batch on. Bytes that are not cut yet go to the next one.
    fn flush(&mut self) -> Result<(), ImportError> {
        let Some(mut batch) = self.batch.take() else { return Ok(()) };
        let rest = batch.bytes.split_off(batch.bytes.len() - self.uncut);
        self.to_read = None;
        self.directories = (None, 0);
        batch.number = self.issued.fetch_add(1, Ordering::SeqCst);
        self.batches.send(batch).map_err(|_| ImportError::Stopped)?;
        if !rest.is_empty() {
            self.batch()?.bytes.extend_from_slice(&rest);
        }
        Ok(())
    }

    /// Hands on what is left; returns how many batches there were.
    pub(super) fn finish(mut self) -> Result<u64, ImportError> {
        self.flush()?;
        Ok(self.issued.load(Ordering::SeqCst))
    }
}
