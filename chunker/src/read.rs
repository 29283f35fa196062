//! Reads regular files: whole small ones for a worker, large ones with holes block by block for the producer. Large ones
//! without holes are read by [`crate::segments`].
//!
//! A file is opened relative to its directory and never through a symbolic link. After reading, the open file is
//! compared to what was seen in the directory: another file, length or time means that it changed.

use std::ffi::{CStr, OsStr};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags, Stat, fdatasync, fstat, openat, seek};
use rustix::io::{Errno, pread, retry_on_intr};

use crate::capture::unlock::Unlocker;
use crate::cut::Cutter;
use crate::error::ImportError;
use crate::import::Skipped;
use crate::pipeline::{Batch, DataError, Feed, FileToRead, Item, LARGE_FILE_LEN, Link, Span};
use crate::xattr::{self, Xattrs};

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) fd: OwnedFd,
    /// How to call it in messages.
    pub(crate) shown: PathBuf,
}

impl Directory {
    /// How to call `name` in it in messages.
    pub(crate) fn show(&self, name: &CStr) -> PathBuf {
        self.shown.join(OsStr::from_bytes(name.to_bytes()))
    }
}

/// What tells whether a file is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    dev: u64,
    ino: u64,
    /// Length in bytes.
    pub(crate) len: u64,
    mtime: (i64, u64),
    /// Whether fewer bytes are allocated than it is long.
    pub(crate) has_holes: bool,
}

impl Identity {
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the fields' types differ between architectures")]
    pub(crate) fn of(stat: &Stat) -> Self {
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let mtime = (stat.st_mtime as i64, stat.st_mtime_nsec as u64);
        Self { dev: stat.st_dev as u64, ino: stat.st_ino as u64, len, mtime, has_holes: allocated < len }
    }

    /// Device and inode number.
    pub(crate) fn inode(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// How an entry of this inode is joined to others.
    #[allow(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
    pub(crate) fn link(&self, stat: &Stat) -> Link {
        match stat.st_nlink as u64 {
            0 | 1 => Link::None,
            names => Link::Inode { dev: self.dev, ino: self.ino, names },
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        Self { has_holes: false, ..*self } == Self { has_holes: false, ..*other }
    }
}

/// Everything by which a later look at a regular file tells that neither content nor attributes have changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    /// Length in bytes.
    pub(crate) len: u64,
    pub(crate) mtime: (i64, u32),
    /// Unlike `mtime` no program can set it back.
    pub(crate) ctime: (i64, u32),
}

impl Stamp {
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the fields' types differ between architectures")]
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            len: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: (stat.st_mtime as i64, (stat.st_mtime_nsec as u32).min(999_999_999)),
            ctime: (stat.st_ctime as i64, (stat.st_ctime_nsec as u32).min(999_999_999)),
        }
    }
}

/// Opens and reads files; shared by all workers.
#[derive(Debug, Default)]
pub(crate) struct FileReader {
    cutter: Cutter,
    /// Whether `O_NOATIME` was refused: only a file's owner may use it.
    touches_atime: AtomicBool,
    /// Write each file back before it is read: then a store to a mapping of it shows in its `ctime`.
    pub(crate) syncs: bool,
    /// Makes files readable that their owner may not read.
    pub(crate) unlocker: Option<Arc<Unlocker>>,
    /// Files opened so far.
    pub(crate) opened: AtomicU64,
}

impl FileReader {
    /// Opens what may be opened, or can be made so.
    fn open(&self, file: &FileToRead) -> Result<OwnedFd, ImportError> {
        let opened = match (self.open_as_is(file), &self.unlocker) {
            (Err(ImportError::Denied { .. }), Some(unlocker)) => {
                let (dev, ino) = file.identity.inode();
                let path = file.begin.entry.path.as_bytes();
                unlocker.unlock(path, dev, ino).map_err(|error| ImportError::read("make readable", file.directory.show(&file.name), error))?;
                self.open_as_is(file)
            }
            (other, _) => other,
        }?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        if self.syncs {
            retry_on_intr(|| fdatasync(&opened)).map_err(|error| ImportError::read("write back", file.directory.show(&file.name), error))?;
        }
        Ok(opened)
    }

    fn open_as_is(&self, file: &FileToRead) -> Result<OwnedFd, ImportError> {
        // A pipe that took the file's place must not block us.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = |flags| retry_on_intr(|| openat(&file.directory.fd, &file.name, flags, Mode::empty()));
        let opened = match self.touches_atime.load(Ordering::Relaxed) {
            false => open(flags | OFlags::NOATIME).or_else(|error| match error {
                Errno::PERM => {
                    self.touches_atime.store(true, Ordering::Relaxed);
                    open(flags)
                }
                error => Err(error),
            }),
            true => open(flags),
        };
        opened.map_err(|error| match error {
            Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NODEV => ImportError::Changed { path: file.directory.show(&file.name) },
            error => ImportError::read("open", file.directory.show(&file.name), error),
        })
    }

    /// Where files are cut.
    pub(crate) fn cutter(&self) -> &Cutter {
        &self.cutter
    }

    /// Opens a file; returns its attributes too, and those that could not be read.
    pub(crate) fn open_with_xattrs(&self, file: &FileToRead) -> Result<(OwnedFd, Xattrs, Vec<Skipped>), ImportError> {
        let fd = self.open(file)?;
        let found = xattr::of_file(fd.as_fd()).map_err(|error| ImportError::read("read extended attributes of", file.directory.show(&file.name), error))?;
        let path = &file.begin.entry.path;
        xattr::check(&found.kept).map_err(|rule| ImportError::Entry { path: path.clone(), rule })?;
        let skipped = found.unreadable.into_iter().map(|name| Skipped::xattr(path.clone(), &name)).collect();
        Ok((fd, found.kept, skipped))
    }

    /// Reads a file of at most [`LARGE_FILE_LEN`] bytes into a batch.
    pub(crate) fn read_small(&self, mut file: FileToRead, batch: &mut Batch) -> Result<(), ImportError> {
        let (fd, xattrs, skipped) = self.open_with_xattrs(&file)?;
        let path = || file.directory.show(&file.name);
        let first = batch.spans.len();
        let mut at = 0;
        let len = file.identity.len;
        while let Some(run) = next_run(fd.as_fd(), at, &file.identity).map_err(|error| ImportError::read("find holes of", path(), error))? {
            push_hole(batch, run.start - at);
            let start = batch.bytes.len();
            read_run(fd.as_fd(), &run, &mut batch.bytes).map_err(|error| ImportError::read("read", path(), error))?;
            if (batch.bytes.len() - start) as u64 != run.end - run.start {
                return Err(ImportError::Changed { path: path() });
            }
            batch.spans.extend(self.cutter.all(&batch.bytes[start..]).map(|len| Span::Data(len as u32)));
            at = run.end;
        }
        push_hole(batch, len - at);
        check_same(fd.as_fd(), &file.identity, path)?;
        file.begin.entry.meta.xattrs = xattrs;
        batch.items.extend(skipped.into_iter().map(Item::Skipped));
        batch.items.push(Item::Begin(file.begin));
        batch.items.push(Item::Content { count: batch.spans.len() - first });
        batch.items.push(Item::End);
        Ok(())
    }

    /// Passes on a file with holes, of any length, block by block.
    pub(crate) fn read_sparse(&self, mut file: FileToRead, feed: &mut Feed) -> Result<(), ImportError> {
        let (fd, xattrs, skipped) = self.open_with_xattrs(&file)?;
        let path = file.directory.show(&file.name);
        let read_error = |step: &'static str, error: io::Error| ImportError::read(step, path.clone(), error);
        for skipped in skipped {
            feed.skipped(skipped)?;
        }
        file.begin.entry.meta.xattrs = xattrs;
        let FileToRead { directory, name, identity, begin } = file;
        feed.begin(begin)?;
        let mut stream = std::fs::File::from(fd);
        let mut at = 0;
        while let Some(run) = next_run(stream.as_fd(), at, &identity).map_err(|error| read_error("find holes of", error.into()))? {
            feed.hole(run.start - at)?;
            stream.seek(SeekFrom::Start(run.start)).map_err(|error| read_error("read", error))?;
            let came = feed.data(&mut stream, run.end - run.start).map_err(|error| match error {
                DataError::Read(error) => read_error("read", error),
                DataError::Import(error) => error,
            })?;
            if came != run.end - run.start {
                return Err(ImportError::Changed { path });
            }
            at = run.end;
        }
        feed.hole(identity.len - at)?;
        check_same(stream.as_fd(), &identity, || directory.show(&name))?;
        feed.end()
    }
}

/// Notices that another file, length or time is there now.
pub(crate) fn check_same(fd: BorrowedFd<'_>, identity: &Identity, path: impl Fn() -> PathBuf) -> Result<(), ImportError> {
    let now = fstat(fd).map_err(|error| ImportError::read("read", path(), error))?;
    if Identity::of(&now).is_same(identity) { Ok(()) } else { Err(ImportError::Changed { path: path() }) }
}

fn push_hole(batch: &mut Batch, len: u64) {
    if len > 0 {
        batch.spans.push(Span::Hole(len));
    }
}

/// The next run of data at or after `from`: the whole rest of a file without holes.
fn next_run(fd: BorrowedFd<'_>, from: u64, identity: &Identity) -> rustix::io::Result<Option<Range<u64>>> {
    let len = identity.len;
    if from >= len {
        return Ok(None);
    }
    if !identity.has_holes {
        return Ok(Some(from..len));
    }
    let start = match seek(fd, rustix::fs::SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that cannot tell: all is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..len)),
        Err(error) => return Err(error),
    };
    if start >= len {
        return Ok(None);
    }
    let end = seek(fd, rustix::fs::SeekFrom::Hole(start))?.clamp(start, len);
    // Only a file that shrinks has an empty run; the comparison after reading notices.
    Ok(Some(start..end).filter(|run| !run.is_empty()))
}

/// Appends the bytes of `run`, fewer if the file ends, or some more if it has grown.
pub(crate) fn read_run(fd: BorrowedFd<'_>, run: &Range<u64>, bytes: &mut Vec<u8>) -> rustix::io::Result<()> {
    let wanted = run.end - run.start;
    debug_assert!(wanted <= LARGE_FILE_LEN, "larger runs are read in pieces");
    let target = bytes.len() + wanted as usize;
    bytes.reserve(wanted as usize);
    let mut at = run.start;
    while bytes.len() < target {
        match retry_on_intr(|| pread(fd, spare_capacity(bytes), at))? {
            0 => break,
            count => at += count as u64,
        }
    }
    // The spare capacity may be larger than the run: what follows is a hole, or added by someone else.
    bytes.truncate(target);
    Ok(())
}
