//! Open files.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use client_store::view::Caller;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, Stat, copy_file_range, fallocate, fdatasync, fstat, fsync, ftruncate, seek};
use rustix::io::{Errno, pread, pwrite};
use rustix::process::geteuid;

use super::super::{NodeKind, host};
use super::base::magic;
use super::node::{Node, Place};
use super::{UnionFs, copy};

/// An open file.
#[derive(Debug)]
pub(super) struct Handle {
    node: Arc<Node>,
    /// The descriptor, and for which epoch of the node it is right. `None` for what is read from a layer.
    file: Mutex<(u64, Option<Arc<OwnedFd>>)>,
    writable: bool,
    /// Whether the descriptor appends whatever the offset: on the host others may append, too.
    appends: bool,
}

/// The answer to an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Names the open file.
    pub handle: u64,
    /// Whether what the kernel has cached of the content is still right.
    pub unchanged: bool,
}

impl UnionFs {
    /// Opens a file; `flags` as in `open(2)`, without those that create.
    ///
    /// # Errors
    /// `EACCES` if it is read-only or must not be copied, and writing was asked for; what the host answers.
    pub fn open(&self, ino: u64, flags: OFlags, caller: Caller) -> Result<Opened, Errno> {
        let node = self.node(ino)?;
        if node.kind != NodeKind::File {
            return Err(if node.kind == NodeKind::Directory { Errno::ISDIR } else { Errno::NXIO });
        }
        let writable = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let truncate = flags.contains(OFlags::TRUNC);
        if writable || truncate {
            self.make_own(&node, truncate.then_some(0), caller)?;
        }
        loop {
            let epoch = node.opened.lock().epoch;
            if node.place() == Place::Layer {
                if let Some(opened) = self.hand_out(&node, None, epoch, false, false) {
                    return Ok(opened);
                }
                continue;
            }
            let on_host = node.place() == Place::Host;
            let (wanted, appends) = backing_flags(flags, on_host);
            let (file, stat) = match self.open_node(&node, wanted) {
                Err(errno) if node.opened.lock().epoch == epoch => return Err(errno),
                Err(_) => continue,
                Ok(opened) => opened,
            };
            let _content = node.content.read();
            if node.opened.lock().epoch != epoch {
                continue;
            }
            if truncate {
                truncate_opened(&node, self, &file, writable)?;
            }
            let stamp = host::stamp(&if truncate { fstat(&file)? } else { stat });
            let before = node.stamp.lock().replace(stamp);
            if let Some(opened) = self.hand_out(&node, Some(file), epoch, writable, appends) {
                return Ok(Opened { unchanged: !on_host || before == Some(stamp), ..opened });
            }
        }
    }

    /// A handle, unless the file was moved meanwhile.
    pub(super) fn hand_out(&self, node: &Arc<Node>, file: Option<OwnedFd>, epoch: u64, writable: bool, appends: bool) -> Option<Opened> {
        let file = file.map(Arc::new);
        let mut opened = node.opened.lock();
        if opened.epoch != epoch {
            return None;
        }
        opened.count += 1;
        if let Some(file) = &file
            && (opened.file.is_none() || writable && !appends)
        {
            opened.file = Some(Arc::clone(file));
        }
        drop(opened);
        let handle = self.handles.insert(Handle { node: Arc::clone(node), file: Mutex::new((epoch, file)), writable, appends });
        Some(Opened { handle, unchanged: true })
    }

    /// Closes a file.
    pub fn close(&self, handle: u64) {
        let Some(open) = self.handles.get(handle) else { return };
        self.handles.remove(handle);
        let mut opened = open.node.opened.lock();
        opened.count = opened.count.saturating_sub(1);
        let last = if opened.count == 0 { opened.file.take() } else { None };
        drop(opened);
        // Closing may block.
        drop(last);
    }

    /// The descriptor of a handle, which may be another than at its opening; `None` if a layer has the content.
    fn file_of(&self, open: &Handle) -> Option<Arc<OwnedFd>> {
        let opened = open.node.opened.lock();
        let mut file = open.file.lock();
        if file.0 != opened.epoch {
            *file = (opened.epoch, opened.file.clone());
        }
        file.1.clone()
    }

    /// A descriptor by which an open file can be truncated.
    pub(super) fn writable_of(&self, handle: u64, node: &Node) -> Option<Arc<OwnedFd>> {
        let open = self.handles.get(handle).filter(|open| open.writable && open.node.ino == node.ino)?;
        self.file_of(&open)
    }

    /// At most `len` bytes from `offset` on, fewer only at the end.
    ///
    /// # Errors
    /// `EIO` if data cannot be had.
    pub fn read(&self, handle: u64, offset: u64, len: usize, caller: Caller) -> Result<Vec<u8>, Errno> {
        let open = self.handles.get(handle).ok_or(Errno::BADF)?;
        let Some(file) = self.file_of(&open) else {
            let state = open.node.state();
            let (Some(entry), Some(layer)) = (state.entry, state.layers.first().and_then(|layer| self.layer(*layer))) else {
                // It was copied at this very moment.
                return match self.file_of(&open) {
                    Some(file) => read_all(&file, offset, len),
                    None => Err(Errno::IO),
                };
            };
            return layer.read(&entry, offset, len, caller).map_err(|error| self.failed(&entry.path, &error));
        };
        read_all(&file, offset, len)
    }

    /// Writes all of `bytes`. `cached` if they come from the kernel's cache, so that the offset is right whatever the
    /// handle's mode; `strip` if setuid and setgid are to go.
    ///
    /// # Errors
    /// What the filesystem answers: `ENOSPC`, `EFBIG`, ...
    pub fn write(&self, handle: u64, offset: u64, bytes: &[u8], cached: bool, strip: bool) -> Result<usize, Errno> {
        let open = self.handles.get(handle).ok_or(Errno::BADF)?;
        let _content = open.node.content.read();
        let file = self.file_of(&open).ok_or(Errno::BADF)?;
        if strip && geteuid().is_root() {
            strip_privileges(&file)?;
        }
        if open.appends && cached {
            let plain = rustix::fs::open(magic(&file), OFlags::WRONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
            return copy::write_all(&plain, offset, bytes).map(|()| bytes.len());
        }
        let mut done = 0;
        while done < bytes.len() {
            match pwrite(&*file, &bytes[done..], offset + done as u64) {
                Ok(count) if count > 0 => done += count,
                Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Copies between two open files: how much was copied.
    ///
    /// # Errors
    /// `EXDEV` if the kernel should rather read and write.
    pub fn copy_range(&self, from: u64, offset_in: u64, to: u64, offset_out: u64, len: usize) -> Result<usize, Errno> {
        let (from, to) = (self.handles.get(from).ok_or(Errno::BADF)?, self.handles.get(to).ok_or(Errno::BADF)?);
        let source = self.file_of(&from).ok_or(Errno::XDEV)?;
        let _content = to.node.content.read();
        let target = self.file_of(&to).filter(|_| !to.appends).ok_or(Errno::XDEV)?;
        copy_file_range(&*source, Some(&mut offset_in.clone()), &*target, Some(&mut offset_out.clone()), len)
    }

    /// Reserves or frees space; `mode` as in `fallocate(2)`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the filesystem below cannot do it.
    pub fn allocate(&self, handle: u64, offset: u64, len: u64, mode: u32) -> Result<(), Errno> {
        let open = self.handles.get(handle).ok_or(Errno::BADF)?;
        let _content = open.node.content.read();
        let file = self.file_of(&open).ok_or(Errno::BADF)?;
        fallocate(&*file, FallocateFlags::from_bits_retain(mode), offset, len)
    }

    /// The next data or hole at or after `offset`, as `lseek(2)`.
    ///
    /// # Errors
    /// `ENXIO` beyond the end.
    pub fn seek(&self, handle: u64, offset: u64, hole: bool, caller: Caller) -> Result<u64, Errno> {
        let open = self.handles.get(handle).ok_or(Errno::BADF)?;
        let state = open.node.state();
        match (self.file_of(&open), state.entry) {
            // The descriptor's own position is not used by anything else.
            (Some(file), _) => seek(&*file, if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) }),
            (None, Some(entry)) if offset < entry.len() => {
                let layer = state.layers.first().and_then(|layer| self.layer(*layer)).ok_or(Errno::IO)?;
                layer.seek(&entry, offset, hole, caller).map_err(|error| self.failed(&entry.path, &error))?.ok_or(Errno::NXIO)
            }
            _ => Err(Errno::NXIO),
        }
    }

    /// Has an open file's content written to the disk; with `data`, without what is not needed to read it.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn sync(&self, handle: u64, data: bool) -> Result<(), Errno> {
        let open = self.handles.get(handle).ok_or(Errno::BADF)?;
        match self.file_of(&open) {
            Some(file) if data => fdatasync(&*file),
            Some(file) => fsync(&*file),
            None => Ok(()),
        }
    }
}

/// How to open the file below: as asked, but in the sandbox always so that it can be read.
fn backing_flags(flags: OFlags, on_host: bool) -> (OFlags, bool) {
    let access = flags & (OFlags::WRONLY | OFlags::RDWR);
    let appends = on_host && flags.contains(OFlags::APPEND) && !access.is_empty();
    let mut wanted = match on_host {
        false if !access.is_empty() => OFlags::RDWR,
        _ => access,
    };
    wanted |= flags & (OFlags::SYNC | OFlags::DSYNC);
    if appends {
        wanted |= OFlags::APPEND;
    }
    (wanted, appends)
}

fn truncate_opened(node: &Node, fs: &UnionFs, file: &OwnedFd, writable: bool) -> Result<(), Errno> {
    if writable { ftruncate(file, 0) } else { ftruncate(&fs.open_node(node, OFlags::WRONLY)?.0, 0) }
}

fn read_all(file: &OwnedFd, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; len];
    let mut have = 0;
    while have < len {
        match pread(file, &mut bytes[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}

/// As the kernel does at a write by anyone but root.
fn strip_privileges(file: &OwnedFd) -> Result<(), Errno> {
    let stat: Stat = fstat(file)?;
    let executable = stat.st_mode & 0o010 != 0;
    let gone = 0o4000 | if executable { 0o2000 } else { 0 };
    if stat.st_mode & gone == 0 {
        return Ok(());
    }
    rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(stat.st_mode & 0o7777 & !gone))
}
