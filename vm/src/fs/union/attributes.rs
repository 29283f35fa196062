//! Metadata: attributes, extended attributes, links' targets.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use client_store::view::Caller;
use layer_format::LayerPath;
use layer_format::entry::Kind;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, chmod, fstat, ftruncate, readlinkat, removexattr, setxattr,
    utimensat,
};
use rustix::io::Errno;

use super::super::{Attr, NodeKind, ROOT, Time};
use super::base::{Base, id, magic};
use super::copy;
use super::node::{Node, Place, State};
use super::upper::OVERLAY_PREFIX;
use super::view::Found;
use super::{Shown, UnionFs};

/// What to change about an inode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Permissions, `0..=0o7777`.
    pub mode: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access; `Some(None)` is now.
    pub atime: Option<Option<Time>>,
    /// Last change of content; `Some(None)` is now.
    pub mtime: Option<Option<Time>>,
}

impl UnionFs {
    /// The attributes of an inode.
    ///
    /// # Errors
    /// `ESTALE` if the host has something else there by now.
    pub fn attr(&self, ino: u64) -> Result<Shown, Errno> {
        self.shown_now(&*self.node(ino)?)
    }

    pub(super) fn shown_now(&self, node: &Node) -> Result<Shown, Errno> {
        match self.present(node) {
            Ok(found) => Ok(self.shown(node, &found)),
            Err(errno) => match node.state().last {
                Some(attr) => Ok(Shown { attr: Attr { nlink: 0, ..attr }, user: true, group: true, fixed: true }),
                None => Err(errno),
            },
        }
    }

    /// What an inode is now, as if it had been looked up.
    fn present(&self, node: &Node) -> Result<Found, Errno> {
        loop {
            let state = node.state();
            let path = self.path(node).unwrap_or_default();
            let stat = match state.place {
                Place::Upper | Place::Host => match self.reach(node).and_then(|target| fstat(&target)) {
                    Ok(stat) => Some(stat),
                    Err(_) if node.place() != state.place => continue,
                    Err(errno) => return Err(errno),
                },
                Place::Layer | Place::Stub => None,
            };
            if node.place() != state.place {
                continue;
            }
            let merged = state.place == Place::Host && self.policy(&path).writes_host();
            let State { place, entry, layers, closed, .. } = state;
            return Ok(Found { path, kind: node.kind, place, stat, entry: entry.filter(|_| place == Place::Layer), layers, closed, merged, seed: false });
        }
    }

    /// What to answer about what was found.
    pub(super) fn shown(&self, node: &Node, found: &Found) -> Shown {
        let mut attr = found.attr(node.ino);
        let state = node.state();
        if let Some(touched) = state.touched.filter(|touched| found.place != Place::Host && *touched > attr.mtime) {
            (attr.mtime, attr.ctime) = (touched, touched.max(attr.ctime));
        }
        if let Some(group) = state.group.as_ref().and_then(|key| self.table.read().group(key).cloned()) {
            attr.nlink = group.left + if found.place == Place::Upper { attr.nlink } else { 0 };
        }
        let (user, group) = match &found.stat {
            // What the user may not change on the host must not look as if: the kernel checks permissions by what it sees. What all
            // may change must belong to someone known in there, since the kernel refuses any change of what belongs to nobody.
            Some(stat) if found.merged => {
                (stat.st_uid == self.uid || stat.st_mode & 0o002 != 0, self.groups.contains(&stat.st_gid) || stat.st_mode & 0o002 != 0)
            }
            _ => (true, true),
        };
        Shown { attr, user, group, fixed: !matches!(found.place, Place::Host | Place::Stub) }
    }

    /// The tree on disk that an inode is in.
    fn disk(&self, place: Place) -> Result<&Base, Errno> {
        match place {
            Place::Upper => Ok(self.upper.base()),
            Place::Host => Ok(&self.host),
            Place::Layer | Place::Stub => Err(Errno::STALE),
        }
    }

    /// Paths of an inode, the root's included.
    pub(super) fn paths(&self, node: &Node) -> Vec<LayerPath> {
        if node.ino == ROOT {
            return vec![LayerPath::root()];
        }
        let table = self.table.read();
        table.names(node.ino).iter().filter_map(|(parent, name)| table.place_of(*parent, name).ok()).map(|(path, _)| path).collect()
    }

    /// A descriptor without rights of something on disk, by any of its names or by being open.
    pub(super) fn reach(&self, node: &Node) -> Result<Arc<OwnedFd>, Errno> {
        let state = node.state();
        let disk = self.disk(state.place)?;
        let mut failed = Errno::STALE;
        for path in self.paths(node) {
            match disk.at(&path).and_then(|target| fstat(&target).map(|stat| (target, stat))) {
                Ok((target, stat)) if state.id == Some(id(&stat)) => return Ok(Arc::new(target)),
                Err(errno @ Errno::ACCESS) => failed = errno,
                _ => {}
            }
        }
        node.opened.lock().file.clone().ok_or(failed)
    }

    /// Opens what an inode stands for.
    pub(super) fn open_node(&self, node: &Node, flags: OFlags) -> Result<(OwnedFd, Stat), Errno> {
        let state = node.state();
        self.disk(state.place)?;
        let mut failed = Errno::STALE;
        for path in self.paths(node) {
            let file = if state.place == Place::Upper { self.upper.open_file(&path, flags) } else { self.host.open_file(&path, flags) };
            match file.and_then(|file| fstat(&file).map(|stat| (file, stat))) {
                Ok((file, stat)) if state.id == Some(id(&stat)) => return Ok((file, stat)),
                Err(errno) if !matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => failed = errno,
                _ => {}
            }
        }
        let Some(open) = node.opened.lock().file.clone() else { return Err(failed) };
        let file = rustix::fs::open(magic(&open), flags | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&file)?;
        Ok((file, stat))
    }

    /// Whether changes of an inode are the host's.
    pub(super) fn is_on_host(&self, node: &Node) -> bool {
        node.place() == Place::Host && self.path(node).map_or(true, |path| self.policy(&path).writes_host())
    }

    /// # Errors
    /// `EACCES` if an inode has a name that may not be written.
    pub(super) fn may_write(&self, node: &Node) -> Result<(), Errno> {
        if self.bare {
            return Ok(());
        }
        self.paths(node).iter().try_for_each(|path| self.policy(path).may_write())
    }

    /// Brings an inode to where it is changed. Only the first `most` bytes of it are needed.
    pub(super) fn make_own(&self, node: &Arc<Node>, most: Option<u64>, caller: Caller) -> Result<(), Errno> {
        self.may_write(node)?;
        if self.is_on_host(node) {
            return Ok(());
        }
        if node.kind == NodeKind::Directory {
            let _gate = self.gate.read();
            return self.ensure_upper(node);
        }
        self.copy_up(node, most, caller)
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// `EACCES` if the path is read-only or must not be copied; what the host or the sandbox's filesystem answers.
    pub fn change(&self, ino: u64, change: &Change, handle: Option<u64>, caller: Caller) -> Result<Shown, Errno> {
        let node = self.node(ino)?;
        self.make_own(&node, change.size, caller)?;
        let _content = node.content.read();
        if let Some(size) = change.size {
            match handle.and_then(|handle| self.writable_of(handle, &node)) {
                Some(file) => ftruncate(&file, size)?,
                None => ftruncate(&self.open_node(&node, OFlags::WRONLY)?.0, size)?,
            }
        }
        let reached = self.reach(&node)?;
        let target = magic(&reached);
        if let Some(mode) = change.mode {
            chmod(&target, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps { last_access: timespec(change.atime), last_modification: timespec(change.mtime) };
            utimensat(CWD, &target, &times, AtFlags::empty())?;
        }
        self.shown_now(&node)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    pub fn read_link(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let node = self.node(ino)?;
        if node.kind != NodeKind::Symlink {
            return Err(Errno::INVAL);
        }
        let state = node.state();
        match (state.place, state.entry.as_deref().map(|entry| &entry.kind)) {
            (Place::Layer, Some(Kind::Symlink(target))) => Ok(target.clone()),
            _ => readlinkat(&*self.reach(&node)?, "", Vec::new()).map(|target| target.into_bytes()),
        }
    }

    /// An extended attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is none.
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let node = self.node(ino)?;
        let state = node.state();
        match (state.place, &state.entry) {
            (Place::Layer, Some(entry)) => {
                let found = entry.meta.xattrs.iter().find(|(have, _)| have == name && !have.starts_with(OVERLAY_PREFIX));
                found.map(|(_, value)| value.clone()).ok_or(Errno::NODATA)
            }
            (Place::Layer | Place::Stub, _) => Err(Errno::NODATA),
            _ => copy::xattr(&magic(&*self.reach(&node)?), name),
        }
    }

    /// The names of all extended attributes, each with a NUL after it.
    ///
    /// # Errors
    /// `ESTALE`, as [`UnionFs::attr`].
    pub fn xattr_names(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let node = self.node(ino)?;
        let state = node.state();
        let names = match (state.place, &state.entry) {
            (Place::Layer, Some(entry)) => entry.meta.xattrs.iter().map(|(name, _)| name.clone()).filter(|name| !name.starts_with(OVERLAY_PREFIX)).collect(),
            (Place::Layer | Place::Stub, _) => Vec::new(),
            _ => match copy::xattr_names(&magic(&*self.reach(&node)?)) {
                Err(Errno::NOTSUP) => Vec::new(),
                other => other?,
            },
        };
        Ok(names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect())
    }

    /// Sets an extended attribute; `flags` as in `setxattr(2)`.
    ///
    /// # Errors
    /// `EPERM` for those of overlayfs; as [`UnionFs::change`].
    pub fn set_xattr(&self, ino: u64, name: &[u8], value: &[u8], flags: u32, caller: Caller) -> Result<(), Errno> {
        if name.starts_with(OVERLAY_PREFIX) {
            return Err(Errno::PERM);
        }
        let node = self.node(ino)?;
        self.make_own(&node, None, caller)?;
        let _content = node.content.read();
        setxattr(magic(&*self.reach(&node)?), name, value, XattrFlags::from_bits_retain(flags))
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is none; as [`UnionFs::change`].
    pub fn remove_xattr(&self, ino: u64, name: &[u8], caller: Caller) -> Result<(), Errno> {
        if name.starts_with(OVERLAY_PREFIX) {
            return Err(Errno::PERM);
        }
        self.xattr(ino, name)?;
        let node = self.node(ino)?;
        self.make_own(&node, None, caller)?;
        let _content = node.content.read();
        removexattr(magic(&*self.reach(&node)?), name)
    }

    /// Notes that a name in a directory has changed on the host, whose times are not those that are shown.
    pub(super) fn touch(&self, dir: &Node) {
        if dir.place() != Place::Host {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            dir.change(|state| state.touched = Some((now.tv_sec, now.tv_nsec as u32)));
        }
    }

    /// Remembers what an inode is like whose last name goes.
    pub(super) fn remember_last(&self, node: &Node) {
        let last = self.present(node).map(|found| self.shown(node, &found).attr).ok();
        node.change(|state| state.last = last);
    }
}

/// A time to set; `None` leaves it.
fn timespec(time: Option<Option<Time>>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(None) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(Some((seconds, nanos))) => Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}
