//! New names: files, directories, links, special files.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use client_store::view::Caller;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, chmod, fstat, linkat, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;

use super::super::NodeKind;
use super::base::{id, is_dir, magic};
use super::files::Opened;
use super::node::{Node, Place};
use super::upper::New;
use super::view::Found;
use super::{Ground, Shown, Spot, UnionFs};

/// Which kind of special file to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A regular file, empty.
    File,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl UnionFs {
    /// Makes a file and opens it; `mode` has the umask applied. One that exists is opened, unless `flags` exclude that.
    ///
    /// # Errors
    /// `EEXIST`; `ENOENT` where nothing may be seen; `EACCES` where the path is read-only; what the host answers.
    pub fn create(&self, parent: u64, name: &[u8], mode: u32, flags: OFlags, caller: Caller) -> Result<(Shown, Opened), Errno> {
        self.settle(parent);
        loop {
            let made = self.change_name(parent, name, caller, |spot| match self.find_spot(spot)? {
                Some(_) if flags.contains(OFlags::EXCL) => Err(Errno::EXIST),
                Some(_) => Ok(None),
                None => self.make(spot, New::File, mode).map(Some),
            })?;
            if let Some((node, shown, file)) = made {
                let appends = node.place() == Place::Host && flags.contains(OFlags::APPEND);
                let file = if appends { None } else { file };
                let opened = match file.and_then(|file| self.hand_out(&node, Some(file), 0, true, false)) {
                    Some(opened) => opened,
                    None => self.open(node.ino, flags & !(OFlags::TRUNC | OFlags::EXCL), caller)?,
                };
                return Ok((shown, opened));
            }
            if let Some((node, shown)) = self.look(parent, name, caller)? {
                let opened = self.open(node.ino, flags, caller).inspect_err(|_| self.forget(node.ino, 1))?;
                return Ok((self.attr(node.ino).unwrap_or(shown), opened));
            }
        }
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`UnionFs::create`].
    pub fn make_dir(&self, parent: u64, name: &[u8], mode: u32, caller: Caller) -> Result<Shown, Errno> {
        self.settle(parent);
        self.make_new(parent, name, New::Directory { opaque: false }, mode, caller)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`UnionFs::create`].
    pub fn make_link(&self, parent: u64, name: &[u8], target: &[u8], caller: Caller) -> Result<Shown, Errno> {
        self.settle(parent);
        self.make_new(parent, name, New::Symlink(target), 0o777, caller)
    }

    /// Makes a special file or an empty one.
    ///
    /// # Errors
    /// As [`UnionFs::create`].
    pub fn make_special(&self, parent: u64, name: &[u8], special: Special, mode: u32, caller: Caller) -> Result<Shown, Errno> {
        let new = match special {
            Special::File => New::File,
            Special::Fifo => New::Special(FileType::Fifo),
            Special::Socket => New::Special(FileType::Socket),
        };
        self.settle(parent);
        self.make_new(parent, name, new, mode, caller)
    }

    pub(super) fn make_new(&self, parent: u64, name: &[u8], new: New<'_>, mode: u32, caller: Caller) -> Result<Shown, Errno> {
        self.change_name(parent, name, caller, |spot| match self.find_spot(spot)? {
            Some(_) => Err(Errno::EXIST),
            None => self.make(spot, new, mode).map(|(_, shown, _)| shown),
        })
    }

    /// Where something new goes.
    pub(super) fn ground(&self, spot: &Spot) -> Result<Ground, Errno> {
        spot.policy.may_write()?;
        if spot.policy.hides() {
            return Err(Errno::NOENT);
        }
        if spot.policy.is_defaulted() {
            return Ok(Ground::Host);
        }
        if !spot.policy.writes_host() || spot.view.closed || Self::is_held(spot) || self.is_ours(&spot.path) {
            return Ok(Ground::Sandbox);
        }
        let held = spot.view.upper && self.upper.stat(&spot.path)?.is_some();
        // A file or link of the host may be in the way of a virtual directory.
        let blocked = || matches!(self.host.dir(&spot.view.path), Err(Errno::NOTDIR | Errno::LOOP));
        Ok(if held || blocked() { Ground::Sandbox } else { Ground::Host })
    }

    /// The directory on the host for something new; `None` if it goes to the sandbox.
    pub(super) fn ground_on_host(&self, spot: &Spot) -> Result<Option<OwnedFd>, Errno> {
        match self.ground(spot)? {
            Ground::Sandbox => Ok(None),
            Ground::Host => self.host_dir(&spot.dir).map(Some),
        }
    }

    fn make(&self, spot: &Spot, new: New<'_>, mode: u32) -> Result<(Arc<Node>, Shown, Option<OwnedFd>), Errno> {
        let host = self.ground_on_host(spot)?;
        self.make_on(spot, host, new, mode)
    }

    /// Makes something in a directory of the host, or in the sandbox.
    pub(super) fn make_on(&self, spot: &Spot, host: Option<OwnedFd>, new: New<'_>, mode: u32) -> Result<(Arc<Node>, Shown, Option<OwnedFd>), Errno> {
        if spot.policy.file.is_some() && matches!(new, New::Directory { .. }) {
            // The rules say that this is a file.
            return Err(Errno::PERM);
        }
        let (stat, file, place) = match host {
            Some(dir) => {
                let (stat, file) = self.make_on_host(&dir, spot.name(), new, mode)?;
                self.touch(&spot.dir);
                (stat, file, Place::Host)
            }
            None => {
                self.ensure_upper(&spot.dir)?;
                let mode = self.inherit(&spot.dir, new, mode)?;
                let new = match new {
                    // What the layers or the host have below must not show through. Where the host is not seen, it may be later.
                    New::Directory { opaque } => {
                        New::Directory { opaque: opaque || Self::is_held(spot) || self.behind(spot)?.is_some() || self.upper.stat(&spot.path)?.is_some() }
                    }
                    other => other,
                };
                let (stat, file) = self.upper.create(&spot.path, new, mode)?;
                (stat, file, Place::Upper)
            }
        };
        if spot.policy.is_defaulted() {
            self.settled.lock().insert(spot.path.clone());
        }
        let mut found = Found::on_disk(spot.path.clone(), place, stat, place == Place::Host);
        found.closed = matches!(new, New::Directory { .. }) && place == Place::Upper && self.upper.is_opaque(&spot.path)?;
        self.table.write().is_new(&found.key());
        match self.register(&spot.dir, &spot.view, spot.name(), &found, None) {
            Some((node, shown)) => Ok((node, shown, file)),
            None => Err(Errno::STALE),
        }
    }

    /// The mode of something new: in a setgid directory, directories are setgid.
    fn inherit(&self, dir: &Node, new: New<'_>, mode: u32) -> Result<u32, Errno> {
        let inherits = matches!(new, New::Directory { .. }) && self.shown_now(dir)?.attr.perm & 0o2000 != 0;
        Ok(if inherits { mode | 0o2000 } else { mode })
    }

    fn make_on_host(&self, dir: &OwnedFd, name: &[u8], new: New<'_>, mode: u32) -> Result<(Stat, Option<OwnedFd>), Errno> {
        let bits = Mode::from_raw_mode(mode);
        let file = match new {
            New::File => Some(openat(dir, name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, bits)?),
            New::Directory { .. } => mkdirat(dir, name, bits).map(|()| None)?,
            New::Symlink(target) => symlinkat(target, dir, name).map(|()| None)?,
            New::Special(kind) => mknodat(dir, name, kind, bits, 0).map(|()| None)?,
        };
        let made = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&made)?;
        let lacking = mode & 0o7777 & !stat.st_mode & self.umask;
        if lacking == 0 || matches!(new, New::Symlink(_)) {
            return Ok((stat, file));
        }
        // The umask of the application counts, not ours.
        chmod(magic(&made), Mode::from_raw_mode(stat.st_mode & 0o7777 | lacking))?;
        Ok((fstat(&made)?, file))
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// `EXDEV` if the file is on the host and the name would be in the sandbox, or the other way round; as [`UnionFs::create`].
    pub fn link(&self, ino: u64, parent: u64, name: &[u8], caller: Caller) -> Result<Shown, Errno> {
        self.settle(parent);
        let node = self.node(ino)?;
        if node.kind == NodeKind::Directory {
            return Err(Errno::PERM);
        }
        self.may_write(&node)?;
        if !self.is_on_host(&node) {
            self.copy_up(&node, None, caller)?;
        }
        self.change_name(parent, name, caller, |spot| {
            if self.find_spot(spot)?.is_some() {
                return Err(Errno::EXIST);
            }
            let target = self.reach(&node)?;
            self.ground(spot)?;
            match node.place() {
                Place::Host => {
                    let dir = self.ground_on_host(spot)?.ok_or(Errno::XDEV)?;
                    linkat(CWD, magic(&target), &dir, spot.name(), AtFlags::SYMLINK_FOLLOW)?;
                    self.touch(&spot.dir);
                }
                // A virtual file stays virtual; only what must be the host's cannot be a name of it.
                _ if spot.policy.is_defaulted() => return Err(Errno::XDEV),
                _ => {
                    self.ensure_upper(&spot.dir)?;
                    self.upper.link(&target, &spot.path)?;
                }
            }
            let stat = fstat(&*target)?;
            debug_assert!(!is_dir(&stat) && node.state().id == Some(id(&stat)));
            let found = Found::on_disk(spot.path.clone(), node.place(), stat, node.place() == Place::Host);
            let mut table = self.table.write();
            table.add_name(spot.dir.ino, spot.name(), node.ino);
            table.hold(node.ino);
            drop(table);
            Ok(self.shown(&node, &found))
        })
    }
}
