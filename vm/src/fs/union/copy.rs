//! Copies of files with all that belongs to them: content with its holes, permissions, times, extended attributes.

use std::os::fd::OwnedFd;

use client_store::LayerView;
use client_store::view::Caller;
use layer_format::entry::Entry;
use rustix::fs::{
    AtFlags, CWD, Mode, SeekFrom, Stat, Timespec, Timestamps, XattrFlags, chmod, copy_file_range, fdatasync, fstat, ftruncate, getxattr, listxattr, seek,
    setxattr, utimensat,
};
use rustix::io::{Errno, pread, pwrite};

use super::base::magic;
use super::upper::OVERLAY_PREFIX;

/// How much is copied at a time, in bytes.
const STEP: u64 = 1 << 20;
/// Room for the names of all extended attributes of a file, in bytes: the kernel's own limit.
const NAMES: usize = 65536;

/// Where content comes from.
pub(super) enum Source<'a> {
    Layer(&'a dyn LayerView, &'a Entry, Caller),
    File(&'a OwnedFd),
}

impl Source<'_> {
    fn len(&self) -> Result<u64, Errno> {
        match self {
            Self::Layer(_, entry, _) => Ok(entry.len()),
            Self::File(file) => Ok(fstat(file)?.st_size as u64),
        }
    }

    /// The start and the end of the next data from `offset` on; `None` if there is no more.
    fn data(&self, offset: u64, len: u64, failed: &dyn Fn(&client_store::FetchError) -> Errno) -> Result<Option<(u64, u64)>, Errno> {
        if offset >= len {
            return Ok(None);
        }
        match self {
            Self::Layer(layer, entry, caller) => {
                let find = |offset, hole| layer.seek(entry, offset, hole, *caller).map_err(|error| failed(&error));
                let Some(start) = find(offset, false)? else { return Ok(None) };
                Ok(Some((start, find(start, true)?.unwrap_or(len))))
            }
            Self::File(file) => match seek(file, SeekFrom::Data(offset)) {
                Ok(start) => Ok(Some((start, seek(file, SeekFrom::Hole(start))?))),
                Err(Errno::NXIO) => Ok(None),
                // A filesystem that knows no holes.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some((offset, len))),
                Err(errno) => Err(errno),
            },
        }
    }
}

/// Copies at most the first `most` bytes of the content, with its holes, and has them written to the disk: after the
/// rename that follows, a crash of the machine must not leave an empty file where a full one was.
pub(super) fn copy(from: &Source<'_>, to: &OwnedFd, most: Option<u64>, failed: &dyn Fn(&client_store::FetchError) -> Errno) -> Result<(), Errno> {
    let len = most.map_or(from.len()?, |most| most.min(from.len().unwrap_or(most)));
    let mut at = 0;
    while let Some((start, end)) = from.data(at, len, failed)? {
        let end = end.min(len);
        at = start;
        while at < end {
            at += copy_piece(from, to, at, (end - at).min(STEP), failed)?;
        }
        if end <= start {
            break;
        }
    }
    ftruncate(to, len)?;
    if len > 0 { fdatasync(to) } else { Ok(()) }
}

fn copy_piece(from: &Source<'_>, to: &OwnedFd, at: u64, len: u64, failed: &dyn Fn(&client_store::FetchError) -> Errno) -> Result<u64, Errno> {
    let bytes = match from {
        Source::Layer(layer, entry, caller) => layer.read(entry, at, len as usize, *caller).map_err(|error| failed(&error))?,
        Source::File(file) => {
            match copy_file_range(file, Some(&mut at.clone()), to, Some(&mut at.clone()), len as usize) {
                Ok(count) if count > 0 => return Ok(count as u64),
                _ => {}
            }
            let mut bytes = vec![0; len as usize];
            let count = pread(file, &mut bytes, at)?;
            bytes.truncate(count);
            bytes
        }
    };
    write_all(to, at, &bytes)?;
    // A source that has become shorter: the rest is a hole.
    Ok(if bytes.is_empty() { len } else { bytes.len() as u64 })
}

/// Writes all of `bytes` at `offset`.
pub(super) fn write_all(to: &OwnedFd, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match pwrite(to, &bytes[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What belongs to a file besides its content.
#[derive(Clone, Debug, Default)]
pub(super) struct Meta {
    pub(super) mode: u32,
    times: Option<Timestamps>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    pub(super) fn of_entry(entry: &Entry) -> Self {
        let time = Timespec { tv_sec: entry.meta.mtime_s, tv_nsec: entry.meta.mtime_ns.into() };
        let xattrs = entry.meta.xattrs.iter().filter(|(name, _)| !name.starts_with(OVERLAY_PREFIX)).cloned().collect();
        Self { mode: entry.meta.mode.into(), times: Some(Timestamps { last_access: time, last_modification: time }), xattrs }
    }

    /// Of something on disk. Attributes that cannot be read are left out.
    pub(super) fn of_file(file: &OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(file)?;
        let path = magic(file);
        let names = xattr_names(&path).unwrap_or_default();
        let xattrs = names.into_iter().filter_map(|name| xattr(&path, &name).ok().map(|value| (name, value))).collect();
        Ok(Self { xattrs, ..Self::of_stat(&stat) })
    }

    fn of_stat(stat: &Stat) -> Self {
        let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos as _ };
        let times = Timestamps { last_access: time(stat.st_atime, stat.st_atime_nsec), last_modification: time(stat.st_mtime, stat.st_mtime_nsec) };
        Self { mode: stat.st_mode & 0o7777, times: Some(times), xattrs: Vec::new() }
    }

    pub(super) fn with_mode(mode: u32) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Gives all this to `target`, with the permissions `mode` unless it is a link, and the times last.
    pub(super) fn apply(&self, target: &OwnedFd, mode: u32) -> Result<(), Errno> {
        let path = magic(target);
        for (name, value) in &self.xattrs {
            match setxattr(&path, name.as_slice(), value, XattrFlags::empty()) {
                // What only root may set, or the filesystem does not have, would be without effect in the VM.
                Ok(()) | Err(Errno::PERM | Errno::NOTSUP | Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
        match chmod(&path, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(errno) => return Err(errno),
        }
        match &self.times {
            Some(times) => utimensat(CWD, &path, times, AtFlags::empty()),
            None => Ok(()),
        }
    }
}

/// The names of the attributes to show.
pub(super) fn xattr_names(path: &str) -> Result<Vec<Vec<u8>>, Errno> {
    let mut buffer = vec![0u8; NAMES];
    let len = listxattr(path, &mut buffer[..])?;
    let names = buffer[..len].split(|b| *b == 0).filter(|name| !name.is_empty() && !name.starts_with(OVERLAY_PREFIX));
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// The value of an attribute.
pub(super) fn xattr(path: &str, name: &[u8]) -> Result<Vec<u8>, Errno> {
    if name.starts_with(OVERLAY_PREFIX) {
        return Err(Errno::NODATA);
    }
    let mut buffer = vec![0u8; layer_format::entry::MAX_XATTR_LEN];
    let len = getxattr(path, name, &mut buffer[..])?;
    buffer.truncate(len);
    Ok(buffer)
}
