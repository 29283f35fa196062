//! The FUSE protocol over a [`Tree`], and in [`union`] over the read-write union: the only modules that know fuser.

mod union;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use client_store::view::Caller;
use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request, Session, SessionACL,
};
use rustix::io::Errno;

use crate::fs::{Attr, NodeKind, Space, Time, Tree};
use crate::pending::{Pending, Refuse};
use crate::pool::{Pool, READERS};
use crate::spec::RunSpec;

pub(crate) use union::serve_union;

/// For what never changes: the longest that cannot overflow the kernel's clock (100 years).
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86400);
/// How long the kernel may believe what it knows about the host.
const HOST_TTL: Duration = Duration::from_secs(1);
/// Read-ahead on host files, in bytes: the kernel's own limit.
const HOST_READAHEAD: u32 = 128 * 1024;
/// Requests that the kernel may have under way in the background.
const MAX_BACKGROUND: u16 = 64;
/// Children asked of a tree for one answer; more do not fit.
const PAGE: usize = 256;

/// Owner of all that is shown, as seen inside the VM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// How a filesystem is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    ids: Ids,
    ttl: Duration,
    immutable: bool,
    readahead: u32,
    xattrs: bool,
}

impl Settings {
    pub(crate) fn image(spec: &RunSpec, ids: Ids) -> Self {
        Self { ids, ttl: FOR_EVER, immutable: true, readahead: spec.max_readahead, xattrs: !spec.plain_layers }
    }

    pub(crate) fn hide(ids: Ids) -> Self {
        Self { ids, ttl: Duration::ZERO, immutable: false, readahead: 1, xattrs: true }
    }

    pub(crate) fn host(ids: Ids) -> Self {
        Self { ids, ttl: HOST_TTL, immutable: false, readahead: HOST_READAHEAD, xattrs: false }
    }
}

/// Serves `tree` on a mounted device, in threads that end with the mount.
pub(crate) fn serve<T: Tree>(tree: Arc<T>, device: OwnedFd, settings: Settings, pending: &Arc<Pending>) -> io::Result<()> {
    let adapter = Adapter { tree, settings, desk: Desk::new(pending) };
    let mut config = Config::default();
    config.n_threads = Some(READERS);
    // The kernel has checked already who may ask; ids in requests are those inside.
    config.acl = SessionACL::All;
    let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
    pending.watch();
    std::thread::Builder::new().name("turbo-fuse".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::debug!("a FUSE session ended: {error}");
        }
    })?;
    Ok(())
}

/// Where requests wait for the network or a disk, without holding up those that need not.
#[derive(Clone)]
struct Desk {
    pool: Arc<Pool>,
    pending: Arc<Pending>,
}

impl Desk {
    fn new(pending: &Arc<Pending>) -> Self {
        Self { pool: Arc::default(), pending: Arc::clone(pending) }
    }

    /// Answers a request from `source`: `find` does the work, `answer` replies, `undo` takes back what nobody waits for any more.
    fn run<S: Send + Sync + 'static, R: Refuse, V>(
        &self,
        source: &Arc<S>,
        request: &Request,
        reply: R,
        find: impl FnOnce(&S, Caller) -> Result<V, Errno> + Send + 'static,
        answer: impl FnOnce(&S, R, V) + Send + 'static,
        undo: impl FnOnce(&S, V) + Send + 'static,
    ) {
        let caller = Caller { pid: request.pid() };
        let ticket = self.pending.admit(request.pid(), reply);
        let source = Arc::clone(source);
        self.pool.run(move || {
            let found = find(&source, caller);
            match (ticket.take(), found) {
                (Some(reply), Ok(value)) => answer(&source, reply, value),
                (Some(reply), Err(errno)) => reply.refuse(errno),
                (None, Ok(value)) => undo(&source, value),
                (None, Err(_)) => {}
            }
        });
    }
}

struct Adapter<T: Tree> {
    tree: Arc<T>,
    settings: Settings,
    desk: Desk,
}

impl<T: Tree> Adapter<T> {
    /// Answers a request that may have to wait: `find` does the work, `answer` replies.
    fn run<R: Refuse, V>(
        &self,
        request: &Request,
        reply: R,
        find: impl FnOnce(&T, Caller) -> Result<V, Errno> + Send + 'static,
        answer: impl FnOnce(&T, R, V) + Send + 'static,
        undo: impl FnOnce(&T, V) + Send + 'static,
    ) {
        self.desk.run(&self.tree, request, reply, find, answer, undo);
    }

    fn attr(&self) -> impl Fn(&Attr) -> FileAttr + Send + 'static {
        let ids = self.settings.ids;
        move |attr| file_attr(attr, ids)
    }
}

impl<T: Tree> Filesystem for Adapter<T> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO | InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_CACHE_SYMLINKS;
        wanted |= if self.settings.immutable { InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT } else { InitFlags::FUSE_AUTO_INVAL_DATA };
        for flag in wanted.iter() {
            // What an older kernel does not know only costs time.
            let _ = config.add_capabilities(flag);
        }
        if let Err(most) = config.set_max_readahead(self.settings.readahead.max(1)) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (ttl, attr, ids) = (self.settings.ttl, self.attr(), self.settings.ids);
        let name = name.as_bytes().to_vec();
        self.run(
            request,
            reply,
            move |tree, caller| tree.lookup(parent.0, &name, caller),
            move |_, reply, found| match found {
                Some(found) => reply.entry(&ttl, &attr(&found), Generation(0)),
                // Inode 0: there is none, and the kernel may remember that.
                None => reply.entry(&ttl, &absent(ids), Generation(0)),
            },
            |tree, found| {
                if let Some(found) = found {
                    tree.forget(found.ino, 1);
                }
            },
        );
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        self.tree.forget(ino.0, nlookup);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (ttl, attr) = (self.settings.ttl, self.attr());
        self.run(request, reply, move |tree, caller| tree.attr(ino.0, caller), move |_, reply, found| reply.attr(&ttl, &attr(&found)), |_, _| ());
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.run(request, reply, move |tree, _| tree.read_link(ino.0), |_, reply, target| reply.data(&target), |_, _| ());
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.settings.immutable {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let _ = flags;
        match self.tree.open(ino.0) {
            Ok((handle, unchanged)) => {
                let keep = if unchanged { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
                reply.opened(FileHandle(handle), keep | FopenFlags::FOPEN_NOFLUSH);
            }
            Err(errno) => reply.error(convert(errno)),
        }
    }

    fn release(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, _owner: Option<LockOwner>, _flush: bool, reply: ReplyEmpty) {
        self.tree.close(fh.0);
        reply.ok();
    }

    fn read(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, size: u32, _flags: OpenFlags, _owner: Option<LockOwner>, reply: ReplyData) {
        let find = move |tree: &T, caller| tree.read(ino.0, fh.0, offset, size as usize, caller);
        self.run(request, reply, find, |_, reply, bytes| reply.data(&bytes), |_, _| ());
    }

    fn lseek(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let find = move |tree: &T, caller| {
            let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
            match whence {
                libc::SEEK_DATA => tree.seek(ino.0, fh.0, offset, false, caller),
                libc::SEEK_HOLE => tree.seek(ino.0, fh.0, offset, true, caller),
                _ => Err(Errno::INVAL),
            }
        };
        self.run(request, reply, find, |_, reply, at| reply.offset(at as i64), |_, _| ());
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.settings.immutable {
            return reply.error(fuser::Errno::ENOSYS);
        }
        match self.tree.open_dir(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(convert(errno)),
        }
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.tree.close_dir(fh.0);
        reply.ok();
    }

    fn readdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let answer = move |tree: &T, mut reply: ReplyDirectory, children: Vec<T::Child>| {
            let dots = [&b"."[..], b".."].into_iter().enumerate().skip(offset as usize);
            let mut full = dots.fold(false, |full, (at, name)| full || reply.add(ino, at as u64 + 1, FileType::Directory, OsStr::from_bytes(name)));
            for (at, child) in children.iter().enumerate() {
                if full {
                    break;
                }
                let (ino, kind) = tree.peek(child);
                full = reply.add(INodeNo(ino), offset.max(2) + at as u64 + 1, file_type(kind), OsStr::from_bytes(T::name(child)));
            }
            reply.ok();
        };
        let find = move |tree: &T, caller| tree.list(ino.0, fh.0, index(offset), PAGE, caller);
        self.run(request, reply, find, answer, |_, _| ());
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let (ttl, attr, ids) = (self.settings.ttl, self.attr(), self.settings.ids);
        let answer = move |tree: &T, mut reply: ReplyDirectoryPlus, children: Vec<T::Child>| {
            let dot = FileAttr { kind: FileType::Directory, ino, ..absent(ids) };
            let dots = [&b"."[..], b".."].into_iter().enumerate().skip(offset as usize);
            // The kernel takes no reference to these two.
            let mut full = dots.fold(false, |full, (at, name)| full || reply.add(ino, at as u64 + 1, OsStr::from_bytes(name), &ttl, &dot, Generation(0)));
            for (at, child) in children.iter().enumerate() {
                if full {
                    break;
                }
                let next = offset.max(2) + at as u64 + 1;
                let Some(found) = tree.enter(child) else { continue };
                full = reply.add(INodeNo(found.ino), next, OsStr::from_bytes(T::name(child)), &ttl, &attr(&found), Generation(0));
                if full {
                    tree.forget(found.ino, 1);
                }
            }
            reply.ok();
        };
        let find = move |tree: &T, caller| tree.list(ino.0, fh.0, index(offset), PAGE, caller);
        self.run(request, reply, find, answer, |_, _| ());
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let Space { block_size, blocks, free, available, files, files_free } = self.tree.space();
        reply.statfs(blocks, free, available, files, files_free, block_size, 255, block_size);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.settings.xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        answer_xattr(self.tree.xattr(ino.0, name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.settings.xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        answer_xattr(self.tree.xattr_names(ino.0), size, reply);
    }
}

fn answer_xattr(found: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match found {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(convert(errno)),
    }
}

/// The index of the first child to list: the first two offsets are `.` and `..`.
fn index(offset: u64) -> usize {
    offset.saturating_sub(2) as usize
}

fn convert(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
        NodeKind::CharDevice => FileType::CharDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
    }
}

fn time((seconds, nanos): Time) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds >= 0 { SystemTime::UNIX_EPOCH.checked_add(whole) } else { SystemTime::UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(nanos.into()))).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn file_attr(attr: &Attr, ids: Ids) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: time(attr.ctime),
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: ids.uid,
        gid: ids.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

fn absent(ids: Ids) -> FileAttr {
    let none = Attr { ino: 0, kind: NodeKind::File, perm: 0, nlink: 0, size: 0, blocks: 0, atime: (0, 0), mtime: (0, 0), ctime: (0, 0), rdev: 0 };
    file_attr(&none, ids)
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

refuse!(ReplyEntry, ReplyAttr, ReplyData, ReplyLseek, ReplyDirectory, ReplyDirectoryPlus);
