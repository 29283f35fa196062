//! The host, read with the rights of whoever started the run, from outside the VM.
//!
//! An inode is a (device, inode) pair of the host together with the path under which it was last seen; every call goes by
//! that path. If another file has taken its place the answer is `ESTALE`, and the kernel looks the name up again. Only paths
//! whose mode shows the host exist here; `/proc`, `/dev` and `/sys` are mounted natively over it.
//!
//! This server has the user's rights, the application has fewer, and may be able to change the host's tree where a mount
//! lets it. So no symbolic link is ever followed here (the kernel follows them inside the VM, where the modes hold), and
//! what the modes hide is hidden under its other names as well ([`super::veil`]).

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client_store::view::Caller;
use layer_format::LayerPath;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, fstat, openat, openat2, readlinkat, seek, statat, statvfs};
use rustix::io::Errno;

use super::inodes::{Identity, Inodes};
use super::veil::Veil;
use super::{Attr, NodeKind, ROOT, Space, Stubs, Tree};
use crate::rules::Rules;

/// Directories that are not shown: the VM has its own.
pub(super) const NATIVE: [&str; 3] = ["proc", "dev", "sys"];

/// Is told what of the host is looked at: what changes about it later must be told to the kernel.
pub trait Witness: std::fmt::Debug + Send + Sync {
    /// A name in this directory is about to be looked for.
    fn looks_into(&self, directory: &LayerPath);

    /// Whether the host had the name.
    fn saw(&self, path: &LayerPath, there: bool);
}

/// The part of the host that the modes show, and stubs for mount points that it lacks.
#[derive(Debug)]
pub struct HostFs {
    rules: Arc<Rules>,
    stubs: Stubs,
    hidden: Vec<LayerPath>,
    /// Directories with the mode Hide: found, so that they can be mounted over, but empty and not listed.
    covered: BTreeSet<LayerPath>,
    witness: Option<Arc<dyn Witness>>,
    veil: Veil,
    inodes: Inodes<Node>,
    handles: Handles<OwnedFd>,
    listings: Handles<Vec<Child>>,
    /// What each file was like when it was last opened.
    opened: Mutex<HashMap<u64, Stamp>>,
}

#[derive(Debug)]
struct Node {
    path: LayerPath,
    /// `None` for what only the modes or stubs make exist.
    id: Option<(u64, u64)>,
}

#[derive(PartialEq, Hash)]
enum Key<'a> {
    Host(u64, u64),
    Stub(&'a [u8]),
}

impl Identity for Node {
    type Key<'a> = Key<'a>;

    fn key(&self) -> Key<'_> {
        match self.id {
            Some((device, inode)) => Key::Host(device, inode),
            None => Key::Stub(self.path.as_bytes()),
        }
    }
}

/// Length, mtime and ctime.
pub(super) type Stamp = (i64, i64, i64, i64, i64);

/// A child in a listing.
#[derive(Clone, Debug)]
pub struct Child {
    /// The directory, as long as the listing is open; `None` for a stub.
    directory: Option<Arc<OwnedFd>>,
    path: LayerPath,
    kind: NodeKind,
    ino: u64,
}

impl HostFs {
    /// `hidden` are host paths not to show.
    pub fn new(rules: Arc<Rules>, stubs: Stubs, hidden: &[PathBuf]) -> Self {
        let native = NATIVE.iter().filter_map(|name| LayerPath::new(*name).ok());
        let hidden = hidden.iter().filter_map(|path| LayerPath::from_absolute(path.as_os_str().as_bytes()).ok()).filter(|path| !path.is_root());
        let hidden: Vec<LayerPath> = hidden.collect();
        let veil = Veil::new(&rules, &hidden);
        let hidden = native.chain(hidden).collect();
        let (covered, inodes) = (BTreeSet::new(), Inodes::new(Node { path: LayerPath::root(), id: None }));
        let (handles, listings) = (Handles::default(), Handles::default());
        Self { rules, stubs, hidden, covered, witness: None, veil, inodes, handles, listings, opened: Mutex::default() }
    }

    /// Shows nothing at these paths but a place to mount on, which is not listed.
    #[must_use]
    pub fn covering(self, covered: BTreeSet<LayerPath>) -> Self {
        Self { covered, ..self }
    }

    /// Tells somebody what is looked at.
    #[must_use]
    pub fn witnessed(self, witness: Option<Arc<dyn Witness>>) -> Self {
        Self { witness, ..self }
    }

    /// Finds something in `directory`, and tells the witness.
    fn witness(
        &self,
        directory: &LayerPath,
        path: &LayerPath,
        find: impl FnOnce() -> Result<Option<(Node, Attr)>, Errno>,
    ) -> Result<Option<(Node, Attr)>, Errno> {
        let Some(witness) = &self.witness else { return find() };
        // First: what changes in between is seen.
        witness.looks_into(directory);
        let found = find()?;
        witness.saw(path, found.is_some());
        Ok(found)
    }

    /// Whether overlayfs finds a directory here when it merges `path`. Symbolic links are not followed: overlayfs would not.
    pub fn has_directory(&self, path: &LayerPath) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let gone = self.hidden.iter().chain(&self.covered).any(|hidden| path.starts_with(hidden));
        let shown = !gone && (self.shows(path) || self.rules.leads_to_host(path));
        shown && open(path, flags).and_then(|file| fstat(&file)).is_ok_and(|stat| self.admits(path, &stat))
    }

    fn node(&self, ino: u64) -> Result<Arc<Node>, Errno> {
        self.inodes.get(ino).ok_or(Errno::STALE)
    }

    fn shows(&self, path: &LayerPath) -> bool {
        self.rules.shows_host(path) && !self.hidden.iter().any(|hidden| path.starts_with(hidden))
    }

    /// Whether what is at a path may be seen there.
    fn admits(&self, path: &LayerPath, stat: &Stat) -> bool {
        if self.shows(path) {
            // A path that states its own mode is meant, whatever other names the file has.
            return !self.veil.covers(stat) || self.rules.states(path);
        }
        let native = self.hidden.iter().any(|hidden| path.starts_with(hidden));
        !native && kind_of(stat) == NodeKind::Directory && self.rules.leads_to_host(path)
    }

    /// What is at a path: the host's, if it is to be seen; otherwise a stub.
    fn find(&self, path: &LayerPath) -> Result<Option<(Node, Attr)>, Errno> {
        if let Some(covered) = self.covered.iter().find(|covered| path.starts_with(covered)) {
            let node = Node { path: path.clone(), id: None };
            let attr = synthetic(Inodes::number(&node), NodeKind::Directory, 0o700);
            return Ok((path == covered).then_some((node, attr)));
        }
        self.judge(path, open(path, OFlags::PATH).and_then(|file| fstat(&file)))
    }

    /// The same, when the host has answered.
    fn judge(&self, path: &LayerPath, answer: Result<Stat, Errno>) -> Result<Option<(Node, Attr)>, Errno> {
        let found = match answer {
            Ok(stat) => Some(stat).filter(|stat| self.admits(path, stat)),
            // ELOOP: a directory of the path has become a symbolic link.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(errno) => return Err(errno),
        };
        Ok(match (found, self.stubs.get(path)) {
            (Some(stat), _) => {
                let node = Node { path: path.clone(), id: Some((stat.st_dev, stat.st_ino)) };
                let attr = attr(Inodes::number(&node), &stat);
                Some((node, attr))
            }
            (None, Some(stub)) => {
                let node = Node { path: path.clone(), id: None };
                let kind = if stub.is_dir() { NodeKind::Directory } else { NodeKind::File };
                let attr = synthetic(Inodes::number(&node), kind, stub.meta.mode);
                Some((node, attr))
            }
            (None, None) => None,
        })
    }

    /// What a child of a listing is now: looked up in the directory that was listed, wherever that is by now.
    fn look(&self, child: &Child) -> Result<Option<(Node, Attr)>, Errno> {
        match &child.directory {
            Some(directory) => self.judge(&child.path, statat(directory, child.path.name(), AtFlags::SYMLINK_NOFOLLOW)),
            None => self.find(&child.path),
        }
    }

    fn remember(&self, (node, attr): (Node, Attr)) -> Attr {
        let (ino, _) = self.inodes.insert(node, |known, new| known.path != new.path);
        Attr { ino, ..attr }
    }

    /// Opens what an inode stands for; `ESTALE` if it is something else by now.
    fn open_as(&self, ino: u64, flags: OFlags) -> Result<(OwnedFd, Stat), Errno> {
        let node = self.node(ino)?;
        let file = open(&node.path, flags | OFlags::NONBLOCK)?;
        let stat = fstat(&file)?;
        match node.id {
            Some(id) if id != (stat.st_dev, stat.st_ino) => Err(Errno::STALE),
            _ => Ok((file, stat)),
        }
    }

    fn children(&self, ino: u64) -> Result<Vec<Child>, Errno> {
        let directory = self.node(ino)?.path.clone();
        let mut children = Vec::new();
        if self.covered.contains(&directory) {
            return Ok(children);
        }
        match open(&directory, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => {
                let fd = Arc::new(fd);
                for entry in Dir::read_from(&*fd)? {
                    let entry = entry?;
                    let name = entry.file_name().to_bytes();
                    let Ok(path) = directory.join(name) else { continue };
                    let child = Child { directory: Some(Arc::clone(&fd)), path, kind: kind_from(entry.file_type()), ino: entry.ino().max(ROOT + 1) };
                    let shown = (self.shows(&child.path) || self.rules.leads_to_host(&child.path)) && !self.covered.contains(&child.path);
                    if shown && (!self.veil.may_cover(entry.ino()) || matches!(self.look(&child), Ok(Some(_)))) {
                        children.push(child);
                    }
                }
            }
            Err(Errno::NOENT | Errno::LOOP) => {}
            Err(errno) => return Err(errno),
        }
        for stub in self.stubs.children(&directory) {
            if !children.iter().any(|child| child.path == stub.path) {
                children.push(Child { directory: None, path: stub.path.clone(), kind: NodeKind::Directory, ino: ROOT + 1 });
            }
        }
        // The order of the host's filesystem means nothing; sorted, a listing is the same each time.
        children.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(children)
    }
}

impl Tree for HostFs {
    type Child = Child;

    fn lookup(&self, parent: u64, name: &[u8], _caller: Caller) -> Result<Option<Attr>, Errno> {
        let directory = self.node(parent)?;
        let path = directory.path.join(name).map_err(|_| Errno::NAMETOOLONG)?;
        Ok(self.witness(&directory.path, &path, || self.find(&path))?.map(|found| self.remember(found)))
    }

    fn forget(&self, ino: u64, count: u64) {
        self.inodes.forget(ino, count);
        if self.inodes.get(ino).is_none() {
            self.opened.lock().remove(&ino);
        }
    }

    fn attr(&self, ino: u64, _caller: Caller) -> Result<Attr, Errno> {
        let node = self.node(ino)?;
        if ino == ROOT {
            return statat(CWD, "/", AtFlags::empty()).map(|stat| attr(ROOT, &stat));
        }
        match self.find(&node.path)? {
            Some((found, attr)) if found.key() == node.key() => Ok(Attr { ino, ..attr }),
            _ => Err(Errno::STALE),
        }
    }

    fn open(&self, ino: u64) -> Result<(u64, bool), Errno> {
        if self.node(ino)?.id.is_none() {
            return openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(|file| (self.handles.insert(file), true));
        }
        let (file, stat) = self.open_as(ino, OFlags::RDONLY)?;
        let stamp = stamp(&stat);
        let unchanged = self.opened.lock().insert(ino, stamp) == Some(stamp);
        Ok((self.handles.insert(file), unchanged))
    }

    fn close(&self, handle: u64) {
        self.handles.remove(handle);
    }

    fn read(&self, _ino: u64, handle: u64, offset: u64, len: usize, _caller: Caller) -> Result<Vec<u8>, Errno> {
        let file = self.handles.get(handle).ok_or(Errno::BADF)?;
        let mut bytes = vec![0; len];
        let mut have = 0;
        while have < len {
            match rustix::io::pread(&*file, &mut bytes[have..], offset + have as u64) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        bytes.truncate(have);
        Ok(bytes)
    }

    fn seek(&self, _ino: u64, handle: u64, offset: u64, hole: bool, _caller: Caller) -> Result<u64, Errno> {
        let file = self.handles.get(handle).ok_or(Errno::BADF)?;
        // The descriptor's own position is not used by anything else.
        seek(&*file, if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) })
    }

    fn open_dir(&self, ino: u64) -> Result<u64, Errno> {
        self.children(ino).map(|children| self.listings.insert(children))
    }

    fn close_dir(&self, handle: u64) {
        self.listings.remove(handle);
    }

    fn list(&self, _ino: u64, handle: u64, index: usize, max: usize, _caller: Caller) -> Result<Vec<Child>, Errno> {
        let children = self.listings.get(handle).ok_or(Errno::BADF)?;
        Ok(children.iter().skip(index).take(max).cloned().collect())
    }

    fn name(child: &Child) -> &[u8] {
        child.path.name()
    }

    fn peek(&self, child: &Child) -> (u64, NodeKind) {
        (child.ino, child.kind)
    }

    fn enter(&self, child: &Child) -> Option<Attr> {
        let directory = child.path.parent()?;
        let found = self.witness(&directory, &child.path, || self.look(child));
        found.ok().flatten().map(|found| self.remember(found))
    }

    fn read_link(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let link = open(&self.node(ino)?.path, OFlags::PATH)?;
        match readlinkat(&link, "", Vec::new()) {
            // So the kernel says that an open file is no symbolic link.
            Err(Errno::NOENT) => Err(Errno::INVAL),
            target => target.map(|target| target.into_bytes()),
        }
    }

    fn xattr(&self, _ino: u64, _name: &[u8]) -> Result<Vec<u8>, Errno> {
        Err(Errno::NOSYS)
    }

    fn xattr_names(&self, _ino: u64) -> Result<Vec<u8>, Errno> {
        Err(Errno::NOSYS)
    }

    fn space(&self) -> Space {
        let Ok(found) = statvfs("/") else { return Space::default() };
        Space {
            block_size: found.f_frsize as u32,
            blocks: found.f_blocks,
            free: found.f_bfree,
            available: found.f_bavail,
            files: found.f_files,
            files_free: found.f_ffree,
        }
    }
}

/// Values by number.
#[derive(Debug)]
pub(super) struct Handles<T> {
    next: AtomicU64,
    values: Mutex<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), values: Mutex::default() }
    }
}

impl<T> Handles<T> {
    pub(super) fn insert(&self, value: T) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.values.lock().insert(handle, Arc::new(value));
        handle
    }

    pub(super) fn get(&self, handle: u64) -> Option<Arc<T>> {
        self.values.lock().get(&handle).cloned()
    }

    pub(super) fn remove(&self, handle: u64) {
        let value = self.values.lock().remove(&handle);
        // Closing may block; not under the lock.
        drop(value);
    }
}

/// Opens a path of the host. No symbolic link is followed, whatever anybody puts in the way meanwhile; one at the end can
/// be opened with `O_PATH`.
fn open(path: &LayerPath, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(CWD, host_path(path), flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

pub(super) fn host_path(path: &LayerPath) -> Vec<u8> {
    [b"/", path.as_bytes()].concat()
}

pub(super) fn stamp(stat: &Stat) -> Stamp {
    (stat.st_size, stat.st_mtime, stat.st_mtime_nsec as i64, stat.st_ctime, stat.st_ctime_nsec as i64)
}

pub(super) fn kind_of(stat: &Stat) -> NodeKind {
    kind_from(FileType::from_raw_mode(stat.st_mode))
}

pub(super) fn kind_from(file_type: FileType) -> NodeKind {
    match file_type {
        FileType::Directory => NodeKind::Directory,
        FileType::Symlink => NodeKind::Symlink,
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
        FileType::CharacterDevice => NodeKind::CharDevice,
        FileType::BlockDevice => NodeKind::BlockDevice,
        _ => NodeKind::File,
    }
}

pub(super) fn attr(ino: u64, stat: &Stat) -> Attr {
    let kind = kind_of(stat);
    Attr {
        ino,
        kind,
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: if kind == NodeKind::Directory { 1 } else { stat.st_nlink as u32 },
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: (stat.st_atime, stat.st_atime_nsec as u32),
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        ctime: (stat.st_ctime, stat.st_ctime_nsec as u32),
        rdev: stat.st_rdev as u32,
    }
}

pub(super) fn synthetic(ino: u64, kind: NodeKind, perm: u16) -> Attr {
    Attr { ino, kind, perm, nlink: 1, size: 0, blocks: 0, atime: (0, 0), mtime: (0, 0), ctime: (0, 0), rdev: 0 }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "host_race_tests.rs"]
mod race_tests;
