//! Reads one large file on all cores.
//!
//! Where a chunk ends is known only when the chunk before it is cut. So the segments of a file are read and cut one after
//! the other, each by the worker that comes along, and hashed at the same time as the following ones are cut. A worker
//! waits for its turn only while another one works on an earlier segment of the file (segments are handed out in
//! order), so someone always gets on.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use layer_format::chunk::MAX_CHUNK_LEN;

use crate::error::ImportError;
use crate::pipeline::{BATCH_LEN, Batch, Begin, FileToRead, Item, Span};
use crate::read::{FileReader, check_same, read_run};

/// A file without holes that is read in segments of [`BATCH_LEN`] bytes.
#[derive(Debug)]
pub(crate) struct SegmentedFile {
    file: FileToRead,
    state: Mutex<State>,
    turn: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The segment whose turn it is.
    next: u64,
    /// Open from the first segment on.
    fd: Option<OwnedFd>,
    /// Bytes of earlier segments that are not cut yet.
    uncut: Vec<u8>,
    /// A segment could not be read: no later one has a turn.
    failed: bool,
}

impl SegmentedFile {
    pub(crate) fn new(file: FileToRead) -> Self {
        Self { file, state: Mutex::default(), turn: Condvar::new() }
    }

    /// How many segments there are, `1..`.
    pub(crate) fn count(&self) -> u64 {
        self.file.identity.len.div_ceil(BATCH_LEN as u64).max(1)
    }

    /// Reads and cuts segment `index` into `batch`, once those before it are cut.
    pub(crate) fn read(&self, index: u64, reader: &FileReader, batch: &mut Batch) -> Result<(), ImportError> {
        let mut turn = self.wait_for(index)?;
        self.read_next(&mut turn.state, reader, batch)?;
        turn.done = true;
        Ok(())
    }

    fn wait_for(&self, index: u64) -> Result<Turn<'_>, ImportError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.next != index && !state.failed {
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.failed { Err(ImportError::Stopped) } else { Ok(Turn { file: self, state, done: false }) }
    }

    fn read_next(&self, state: &mut State, reader: &FileReader, batch: &mut Batch) -> Result<(), ImportError> {
        let path = || self.file.directory.show(&self.file.name);
        if state.fd.is_none() {
            let (fd, xattrs, skipped) = reader.open_with_xattrs(&self.file)?;
            batch.items.extend(skipped.into_iter().map(Item::Skipped));
            let Begin { entry, link, stamp } = &*self.file.begin;
            let mut begin = Begin { entry: entry.clone(), link: link.clone(), stamp: *stamp };
            begin.entry.meta.xattrs = xattrs;
            batch.items.push(Item::Begin(Box::new(begin)));
            state.fd = Some(fd);
        }
        let Some(fd) = &state.fd else { return Err(ImportError::Stopped) };
        let len = self.file.identity.len;
        let start = state.next * BATCH_LEN as u64;
        let run = start..len.min(start + BATCH_LEN as u64);
        batch.bytes.append(&mut state.uncut);
        let carried = batch.bytes.len() as u64;
        read_run(fd.as_fd(), &run, &mut batch.bytes).map_err(|error| ImportError::read("read", path(), error))?;
        if batch.bytes.len() as u64 - carried != run.end - run.start {
            return Err(ImportError::Changed { path: path() });
        }
        let is_last = run.end == len;
        let window = if is_last { 1 } else { MAX_CHUNK_LEN as usize };
        let (first, mut at) = (batch.spans.len(), 0);
        while batch.bytes.len() - at >= window {
            let cut = reader.cutter().next(&batch.bytes[at..]);
            batch.spans.push(Span::Data(cut as u32));
            at += cut;
        }
        state.uncut = batch.bytes.split_off(at);
        batch.items.push(Item::Content { count: batch.spans.len() - first });
        if is_last {
            check_same(fd.as_fd(), &self.file.identity, path)?;
            batch.items.push(Item::End);
        }
        Ok(())
    }
}

/// The right to read a segment. Ends the file's reading unless it is done, also by a panic.
struct Turn<'a> {
    file: &'a SegmentedFile,
    state: MutexGuard<'a, State>,
    done: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.state.next += 1;
        self.state.failed |= !self.done;
        self.file.turn.notify_all();
    }
}
