//! The FUSE protocol over the read-write union.
//!
//! What is virtual changes only through us, so the kernel may believe what it knows of it for ever; what is the host's for a
//! second, and that something is absent there not at all. Data stay cached over an open unless the host's file
//! has changed. Locks are the kernel's, local to the VM. There is no `O_TMPFILE`: the protocol crate does not know it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use client_store::view::Caller;
use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Desk, FOR_EVER, HOST_READAHEAD, HOST_TTL, Ids, MAX_BACKGROUND, PAGE, absent, answer_xattr, convert, file_attr, file_type, index};
use crate::fs::{Answer, Change, Opened, Rename, Shown, Space, Special, Time, UnionFs};
use crate::pending::{Pending, Refuse};
use crate::pool::READERS;

/// Who owns what the VM's user does not: nobody that is known inside.
const NOBODY: u32 = 65534;

/// Serves a union on a mounted device, in threads that end with the mount.
pub(crate) fn serve_union(fs: Arc<UnionFs>, device: OwnedFd, ids: Ids, pending: &Arc<Pending>) -> io::Result<()> {
    let adapter = Adapter { fs, ids, desk: Desk::new(pending) };
    let mut config = Config::default();
    config.n_threads = Some(READERS);
    config.acl = SessionACL::All;
    let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
    pending.watch();
    std::thread::Builder::new().name("turbo-union".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::debug!("a FUSE session ended: {error}");
        }
    })?;
    Ok(())
}

struct Adapter {
    fs: Arc<UnionFs>,
    ids: Ids,
    desk: Desk,
}

impl Adapter {
    /// Answers a request that may have to wait, for the network or for a disk.
    fn run<R: Refuse, V>(
        &self,
        request: &Request,
        reply: R,
        find: impl FnOnce(&UnionFs, Caller) -> Result<V, Errno> + Send + 'static,
        answer: impl FnOnce(&UnionFs, R, V) + Send + 'static,
        undo: impl FnOnce(&UnionFs, V) + Send + 'static,
    ) {
        self.desk.run(&self.fs, request, reply, find, answer, undo);
    }

    fn done(&self, request: &Request, reply: ReplyEmpty, act: impl FnOnce(&UnionFs, Caller) -> Result<(), Errno> + Send + 'static) {
        self.run(request, reply, act, |_, reply, ()| reply.ok(), |_, ()| ());
    }

    fn entry(&self, request: &Request, reply: ReplyEntry, make: impl FnOnce(&UnionFs, Caller) -> Result<Shown, Errno> + Send + 'static) {
        let ids = self.ids;
        let answer = move |_: &UnionFs, reply: ReplyEntry, shown: Shown| reply.entry(&ttl(&shown), &attr(&shown, ids), Generation(0));
        self.run(request, reply, make, answer, |fs, shown| fs.forget(shown.attr.ino, 1));
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // With KILLPRIV_V2 the kernel does not ask for `security.capability` before each write.
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        for flag in wanted.iter() {
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_readahead(HOST_READAHEAD);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (ids, name) = (self.ids, name.as_bytes().to_vec());
        let answer = move |_: &UnionFs, reply: ReplyEntry, answer: Answer| match answer {
            Answer::Present(shown) => reply.entry(&ttl(&shown), &attr(&shown, ids), Generation(0)),
            Answer::Absent { fixed: true } => reply.entry(&FOR_EVER, &absent(ids), Generation(0)),
            Answer::Absent { fixed: false } => reply.error(fuser::Errno::ENOENT),
        };
        let undo = |fs: &UnionFs, answer| {
            if let Answer::Present(shown) = answer {
                fs.forget(shown.attr.ino, 1);
            }
        };
        self.run(request, reply, move |fs, caller| fs.lookup(parent.0, &name, caller), answer, undo);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let ids = self.ids;
        self.run(request, reply, move |fs, _| fs.attr(ino.0), move |_, reply, shown| reply.attr(&ttl(&shown), &attr(&shown, ids)), |_, _| ());
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ids = self.ids;
        if uid.is_some_and(|uid| uid != ids.uid) || gid.is_some_and(|gid| gid != ids.gid) {
            return reply.error(fuser::Errno::EPERM);
        }
        let change = Change { mode, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        let act = move |fs: &UnionFs, caller| match change {
            // A change of the owner to what it is already.
            Change { mode: None, size: None, atime: None, mtime: None } => fs.attr(ino.0),
            _ => fs.change(ino.0, &change, fh.map(|fh| fh.0), caller),
        };
        self.run(request, reply, act, move |_, reply, shown| reply.attr(&ttl(&shown), &attr(&shown, ids)), |_, _| ());
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.run(request, reply, move |fs, _| fs.read_link(ino.0), |_, reply, target| reply.data(&target), |_, _| ());
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, _rdev: u32, reply: ReplyEntry) {
        let special = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => Special::File,
            libc::S_IFIFO => Special::Fifo,
            libc::S_IFSOCK => Special::Socket,
            _ => return reply.error(fuser::Errno::EPERM),
        };
        let name = name.as_bytes().to_vec();
        self.entry(request, reply, move |fs, caller| fs.make_special(parent.0, &name, special, mode & 0o7777, caller));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.entry(request, reply, move |fs, caller| fs.make_dir(parent.0, &name, mode & 0o7777, caller));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target) = (link_name.as_bytes().to_vec(), target.as_os_str().as_bytes().to_vec());
        self.entry(request, reply, move |fs, caller| fs.make_link(parent.0, &name, &target, caller));
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let name = newname.as_bytes().to_vec();
        self.entry(request, reply, move |fs, caller| fs.link(ino.0, newparent.0, &name, caller));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.done(request, reply, move |fs, caller| fs.unlink(parent.0, &name, caller));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.done(request, reply, move |fs, caller| fs.remove_dir(parent.0, &name, caller));
    }

    fn rename(&self, request: &Request, parent: INodeNo, name: &OsStr, newparent: INodeNo, newname: &OsStr, flags: RenameFlags, reply: ReplyEmpty) {
        let how = match flags.bits() {
            0 => Rename::Replace,
            libc::RENAME_NOREPLACE => Rename::NoReplace,
            libc::RENAME_EXCHANGE => Rename::Exchange,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        self.done(request, reply, move |fs, caller| fs.rename((parent.0, &name), (newparent.0, &newname), how, caller));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let answer = |_: &UnionFs, reply: ReplyOpen, opened: Opened| reply.opened(FileHandle(opened.handle), open_flags(&opened));
        self.run(request, reply, move |fs, caller| fs.open(ino.0, to_oflags(flags.0), caller), answer, |fs, opened| fs.close(opened.handle));
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, flags: i32, reply: ReplyCreate) {
        let (ids, name) = (self.ids, name.as_bytes().to_vec());
        let answer = move |_: &UnionFs, reply: ReplyCreate, (shown, opened): (Shown, Opened)| {
            reply.created(&ttl(&shown), &attr(&shown, ids), Generation(0), FileHandle(opened.handle), open_flags(&opened));
        };
        let undo = |fs: &UnionFs, (shown, opened): (Shown, Opened)| {
            fs.close(opened.handle);
            fs.forget(shown.attr.ino, 1);
        };
        self.run(request, reply, move |fs, caller| fs.create(parent.0, &name, mode & 0o7777, to_oflags(flags), caller), answer, undo);
    }

    fn release(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, _owner: Option<LockOwner>, _flush: bool, reply: ReplyEmpty) {
        self.fs.close(fh.0);
        reply.ok();
    }

    fn read(&self, request: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, size: u32, _flags: OpenFlags, _owner: Option<LockOwner>, reply: ReplyData) {
        let find = move |fs: &UnionFs, caller| fs.read(fh.0, offset, size as usize, caller);
        self.run(request, reply, find, |_, reply, bytes| reply.data(&bytes), |_, _| ());
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let strip = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        if let Some(_busy) = self.desk.pool.enter() {
            // Nothing is fetched for a write, and the data need not be copied.
            return match self.fs.write(fh.0, offset, data, cached, strip) {
                Ok(count) => reply.written(count as u32),
                Err(errno) => reply.error(convert(errno)),
            };
        }
        let data = data.to_vec();
        let act = move |fs: &UnionFs, _| fs.write(fh.0, offset, &data, cached, strip);
        self.run(request, reply, act, |_, reply, count| reply.written(count as u32), |_, _| ());
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
        let act = move |fs: &UnionFs, _| fs.copy_range(fh_in.0, offset_in, fh_out.0, offset_out, len);
        self.run(request, reply, act, |_, reply, count| reply.written(count as u32), |_, _| ());
    }

    fn fsync(&self, request: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.done(request, reply, move |fs, _| fs.sync(fh.0, datasync));
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.done(request, reply, move |fs, _| fs.sync_dir(ino.0));
    }

    fn fallocate(&self, request: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        self.done(request, reply, move |fs, _| fs.allocate(fh.0, offset, length, mode as u32));
    }

    fn lseek(&self, request: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let find = move |fs: &UnionFs, caller| {
            let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
            match whence {
                libc::SEEK_DATA => fs.seek(fh.0, offset, false, caller),
                libc::SEEK_HOLE => fs.seek(fh.0, offset, true, caller),
                _ => Err(Errno::INVAL),
            }
        };
        self.run(request, reply, find, |_, reply, at| reply.offset(at as i64), |_, _| ());
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let answer = |_: &UnionFs, reply: ReplyOpen, handle| reply.opened(FileHandle(handle), FopenFlags::empty());
        self.run(request, reply, move |fs, caller| fs.open_dir(ino.0, caller), answer, |fs, handle| fs.close_dir(handle));
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.fs.close_dir(fh.0);
        reply.ok();
    }

    fn readdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let answer = move |_: &UnionFs, mut reply: ReplyDirectory, names: Vec<crate::fs::Name>| {
            let dots = [&b"."[..], b".."].into_iter().enumerate().skip(offset as usize);
            let mut full = dots.fold(false, |full, (at, name)| full || reply.add(ino, at as u64 + 1, FileType::Directory, OsStr::from_bytes(name)));
            for (at, name) in names.iter().enumerate() {
                if full {
                    break;
                }
                full = reply.add(INodeNo(name.ino), offset.max(2) + at as u64 + 1, file_type(name.kind), OsStr::from_bytes(&name.name));
            }
            reply.ok();
        };
        self.run(request, reply, move |fs, caller| fs.list(fh.0, index(offset), PAGE, caller), answer, |_, _| ());
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let (ids, caller) = (self.ids, Caller { pid: request.pid() });
        let answer = move |fs: &UnionFs, mut reply: ReplyDirectoryPlus, names: Vec<crate::fs::Name>| {
            let dot = FileAttr { kind: FileType::Directory, ino, ..absent(ids) };
            let dots = [&b"."[..], b".."].into_iter().enumerate().skip(offset as usize);
            // The kernel takes no reference to these two.
            let mut full = dots.fold(false, |full, (at, name)| full || reply.add(ino, at as u64 + 1, OsStr::from_bytes(name), &HOST_TTL, &dot, Generation(0)));
            for (at, name) in names.iter().enumerate() {
                if full {
                    break;
                }
                let next = offset.max(2) + at as u64 + 1;
                match fs.enter(ino.0, &name.name, caller) {
                    Some(shown) => {
                        full = reply.add(INodeNo(shown.attr.ino), next, OsStr::from_bytes(&name.name), &ttl(&shown), &attr(&shown, ids), Generation(0));
                        if full {
                            fs.forget(shown.attr.ino, 1);
                        }
                    }
                    None => {
                        // The name alone: without an inode the kernel looks for itself.
                        let kind = FileAttr { kind: file_type(name.kind), ..absent(ids) };
                        full = reply.add(INodeNo(name.ino), next, OsStr::from_bytes(&name.name), &Duration::ZERO, &kind, Generation(0));
                    }
                }
            }
            reply.ok();
        };
        self.run(request, reply, move |fs, caller| fs.list(fh.0, index(offset), PAGE, caller), answer, |_, _| ());
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let Space { block_size, blocks, free, available, files, files_free } = self.fs.space();
        reply.statfs(blocks, free, available, files, files_free, block_size, 255, block_size);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        answer_xattr(self.fs.xattr(ino.0, name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        answer_xattr(self.fs.xattr_names(ino.0), size, reply);
    }

    fn setxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32, reply: ReplyEmpty) {
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.done(request, reply, move |fs, caller| fs.set_xattr(ino.0, &name, &value, flags as u32, caller));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.done(request, reply, move |fs, caller| fs.remove_xattr(ino.0, &name, caller));
    }
}

fn ttl(shown: &Shown) -> Duration {
    if shown.fixed { FOR_EVER } else { HOST_TTL }
}

fn attr(shown: &Shown, ids: Ids) -> FileAttr {
    let owners = Ids { uid: if shown.user { ids.uid } else { NOBODY }, gid: if shown.group { ids.gid } else { NOBODY } };
    file_attr(&shown.attr, owners)
}

fn open_flags(opened: &Opened) -> FopenFlags {
    let keep = if opened.unchanged { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
    keep | FopenFlags::FOPEN_NOFLUSH
}

fn to_oflags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags as u32)
}

fn set_time(time: TimeOrNow) -> Option<Time> {
    match time {
        TimeOrNow::Now => None,
        TimeOrNow::SpecificTime(time) => Some(match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
            // The protocol crate gives what is before 1970 as whole seconds back from there, with the nanoseconds further back.
            Err(before) => (i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds), before.duration().subsec_nanos()),
        }),
    }
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(convert(errno));
            }
        })*
    };
}

refuse!(ReplyOpen, ReplyCreate, ReplyWrite, ReplyEmpty);

#[cfg(test)]
#[path = "union_tests.rs"]
mod tests;
