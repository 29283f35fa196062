//! The sandbox on disk, in the form that overlayfs gives its upper directory, since overlayfs and captures read it, too.
//!
//! Whatever becomes visible is made complete in a working directory and then renamed into place, so that after a crash at any
//! point each name is what it was before or after; the working directory is emptied at the next start. Two things take two
//! steps: the right to write of a directory that denies it to its owner is given for the moment of a change below it, and
//! a directory moved over an empty one first removes that.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use layer_format::LayerPath;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, XattrFlags, chmod, fstat, getxattr, linkat, mkdirat, mknodat, openat,
    renameat, renameat_with, setxattr, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::super::NodeKind;
use super::base::{Base, OnDisk, child, is_dir, magic, read_entries};
use super::copy::Meta;

/// Attributes that belong to overlayfs: never shown, never set by anyone but us.
pub(super) const OVERLAY_PREFIX: &[u8] = b"user.overlay.";
const OPAQUE: &str = "user.overlay.opaque";
/// The working directory in the sandbox's `work`, beside overlayfs' own.
const WORK: &str = "union";
/// The working directory in `upper`, if `work` lies on another device. Never shown.
pub(super) const INNER_WORK: &[u8] = b".turbo-union-work";

/// The sandbox's directory tree.
#[derive(Debug)]
pub(super) struct Upper {
    base: Base,
    work: OwnedFd,
    next: AtomicU64,
}

/// Something in the working directory, removed with all below it when dropped.
#[derive(Debug)]
pub(super) struct Temp<'a> {
    work: &'a OwnedFd,
    name: String,
    placed: bool,
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if !self.placed {
            let _ = remove_tree(self.work, self.name.as_bytes());
        }
    }
}

/// What is to be made at a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum New<'a> {
    File,
    Directory { opaque: bool },
    Symlink(&'a [u8]),
    Special(FileType),
}

impl Upper {
    /// Opens the tree `upper`, with its working directory in `work`; leftovers of a crash are removed.
    pub(super) fn open(upper: &Path, work: &Path) -> io::Result<Self> {
        let make = |path: &Path| DirBuilder::new().mode(0o700).recursive(true).create(path);
        make(upper)?;
        let base = Base::open(upper)?;
        let _ = remove_tree(base.root(), INNER_WORK);
        make(work)?;
        let (parent, name) = if work.symlink_metadata()?.dev() == upper.symlink_metadata()?.dev() {
            (openat(CWD, work, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?, WORK.as_bytes())
        } else {
            (openat(base.root(), ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?, INNER_WORK)
        };
        remove_tree(&parent, name)?;
        mkdirat(&parent, name, Mode::RWXU)?;
        let work = openat(&parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { base, work, next: AtomicU64::new(0) })
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    /// What the tree has at a path, tombstones included.
    pub(super) fn stat(&self, path: &LayerPath) -> Result<Option<Stat>, Errno> {
        self.base.stat(path)
    }

    pub(super) fn is_opaque(&self, path: &LayerPath) -> Result<bool, Errno> {
        let mut value = [0; 1];
        match getxattr(magic(&self.base.at(path)?), OPAQUE, &mut value) {
            Ok(1) => Ok(value == *b"y"),
            Ok(_) | Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn set_opaque(&self, path: &LayerPath) -> Result<(), Errno> {
        setxattr(magic(&self.base.at(path)?), OPAQUE, b"y", XattrFlags::empty())
    }

    /// The names in a directory, tombstones included. A directory that denies reading to its owner is read all the same.
    pub(super) fn entries(&self, path: &LayerPath) -> Result<Vec<OnDisk>, Errno> {
        let found = match self.base.entries(path) {
            Err(Errno::ACCESS) => with_right(&self.base.dir(path)?, 0o500, || self.base.entries(path)),
            other => other,
        };
        let mut found = found?;
        if path.is_root() {
            found.retain(|entry| entry.name != INNER_WORK);
        }
        Ok(found)
    }

    /// Opens a file, which is ours whatever its permissions say: the kernel has checked those of the VM.
    pub(super) fn open_file(&self, path: &LayerPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        match self.base.open_file(path, flags) {
            Err(Errno::ACCESS) => with_right(&self.base.at(path)?, 0o600, || self.base.open_file(path, flags)),
            other => other,
        }
    }

    /// Makes something in the working directory, with all rights for the owner.
    pub(super) fn make(&self, new: New<'_>) -> Result<(Temp<'_>, Option<OwnedFd>), Errno> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let temp = Temp { work: &self.work, name, placed: false };
        let file = make_at(&self.work, temp.name.as_bytes(), new)?;
        if let New::Directory { opaque: true } = new {
            setxattr(magic(&temp.open()?), OPAQUE, b"y", XattrFlags::empty())?;
        }
        Ok((temp, file))
    }

    /// Makes something at a free name or over a tombstone, with exactly the permissions `mode`.
    pub(super) fn create(&self, path: &LayerPath, new: New<'_>, mode: u32) -> Result<(Stat, Option<OwnedFd>), Errno> {
        let (parent, name) = self.base.parent(path)?;
        if child(&parent, name)?.is_none() && !matches!(new, New::Directory { opaque: true }) {
            let file = writable(&parent, || make_at(&parent, name, new))?;
            let made = openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            set_mode(&made, mode, new)?;
            return Ok((fstat(&made)?, file));
        }
        let (temp, file) = self.make(new)?;
        let made = temp.open()?;
        self.place(temp, path)?;
        set_mode(&made, mode, new)?;
        Ok((fstat(&made)?, file))
    }

    /// Moves something to its name, over whatever is there.
    pub(super) fn place(&self, mut temp: Temp<'_>, path: &LayerPath) -> Result<(), Errno> {
        let (parent, name) = self.base.parent(path)?;
        let there = child(&parent, name)?;
        let moved = child(&self.work, temp.name.as_bytes())?.ok_or(Errno::IO)?;
        let (work, from) = (&self.work, temp.name.as_str());
        match there {
            None => writable(&parent, || renameat_with(work, from, &parent, name, RenameFlags::NOREPLACE))?,
            Some(there) if !is_dir(&there) && !is_dir(&moved) => writable(&parent, || renameat(work, from, &parent, name))?,
            Some(there) => {
                if is_dir(&there) {
                    give_right(&parent, name, &there)?;
                }
                // What was there goes with the temporary name.
                return writable(&parent, || renameat_with(work, from, &parent, name, RenameFlags::EXCHANGE));
            }
        }
        temp.placed = true;
        Ok(())
    }

    /// Leaves a tombstone at a path, in place of what is there.
    pub(super) fn whiteout(&self, path: &LayerPath) -> Result<(), Errno> {
        let (temp, _) = self.make(New::Special(FileType::CharacterDevice))?;
        self.place(temp, path)
    }

    /// Removes what is at a path, with all below it.
    pub(super) fn remove(&self, path: &LayerPath) -> Result<(), Errno> {
        let (parent, name) = self.base.parent(path)?;
        match child(&parent, name)? {
            None => Ok(()),
            Some(there) if is_dir(&there) => {
                // At once for whoever looks, and then piece by piece.
                give_right(&parent, name, &there)?;
                let gone = Temp { work: &self.work, name: self.next.fetch_add(1, Ordering::Relaxed).to_string(), placed: false };
                writable(&parent, || renameat(&parent, name, &self.work, gone.name.as_str()))
            }
            Some(_) => writable(&parent, || unlinkat(&parent, name, AtFlags::empty())),
        }
    }

    /// Moves what is at `from` to `to`, over a file, a tombstone or a directory without visible content; with `leave`, a tombstone
    /// stays at `from`.
    pub(super) fn rename(&self, from: &LayerPath, to: &LayerPath, leave: bool) -> Result<(), Errno> {
        let ((a, x), (b, y)) = (self.base.parent(from)?, self.base.parent(to)?);
        let moved = child(&a, x)?.ok_or(Errno::NOENT)?;
        let mut there = child(&b, y)?;
        let both = |change: &dyn Fn() -> Result<(), Errno>| writable(&a, || writable(&b, change));
        if is_dir(&moved) || there.as_ref().is_some_and(is_dir) {
            // A directory and a tombstone change places.
            if leave && !there.as_ref().is_some_and(is_whiteout) || there.as_ref().is_some_and(is_dir) {
                if leave {
                    self.whiteout(to)?
                } else {
                    self.remove(to)?
                }
                there = child(&b, y)?;
            }
            return match there {
                None => both(&|| renameat_with(&a, x, &b, y, RenameFlags::NOREPLACE)),
                Some(_) => {
                    both(&|| renameat_with(&a, x, &b, y, RenameFlags::EXCHANGE))?;
                    if leave { Ok(()) } else { writable(&a, || unlinkat(&a, x, AtFlags::empty())) }
                }
            };
        }
        if leave {
            match both(&|| renameat_with(&a, x, &b, y, RenameFlags::WHITEOUT)) {
                Err(Errno::INVAL) => {}
                other => return other,
            }
        }
        both(&|| renameat(&a, x, &b, y))?;
        if leave { self.whiteout(from) } else { Ok(()) }
    }

    /// Two things change places.
    pub(super) fn exchange(&self, one: &LayerPath, other: &LayerPath) -> Result<(), Errno> {
        let ((a, x), (b, y)) = (self.base.parent(one)?, self.base.parent(other)?);
        writable(&a, || writable(&b, || renameat_with(&a, x, &b, y, RenameFlags::EXCHANGE)))
    }

    /// Another name for a file: at a free name or over a tombstone.
    pub(super) fn link(&self, file: &OwnedFd, path: &LayerPath) -> Result<(), Errno> {
        let (parent, name) = self.base.parent(path)?;
        if child(&parent, name)?.is_none() {
            return writable(&parent, || linkat(CWD, magic(file), &parent, name, AtFlags::SYMLINK_FOLLOW));
        }
        let temp = Temp { work: &self.work, name: self.next.fetch_add(1, Ordering::Relaxed).to_string(), placed: false };
        linkat(CWD, magic(file), &self.work, temp.name.as_str(), AtFlags::SYMLINK_FOLLOW)?;
        self.place(temp, path)
    }

    /// Places something that is not a change of its directory, whose times stay.
    pub(super) fn place_quietly(&self, temp: Temp<'_>, path: &LayerPath) -> Result<(), Errno> {
        self.quietly(path, || self.place(temp, path))
    }

    /// A change of a directory that leaves its times as they are.
    pub(super) fn quietly(&self, path: &LayerPath, change: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let (parent, _) = self.base.parent(path)?;
        let before = fstat(&parent)?;
        change()?;
        let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos as _ };
        let times = Timestamps { last_access: time(before.st_atime, before.st_atime_nsec), last_modification: time(before.st_mtime, before.st_mtime_nsec) };
        let _ = utimensat(CWD, magic(&parent), &times, AtFlags::empty());
        Ok(())
    }

    /// Copies a directory of metadata `meta` to a path where the tree has nothing.
    pub(super) fn make_dir(&self, path: &LayerPath, meta: &Meta) -> Result<Stat, Errno> {
        let (temp, _) = self.make(New::Directory { opaque: false })?;
        let made = temp.open()?;
        // Moving a directory needs the right to write it.
        meta.apply(&made, meta.mode | 0o200)?;
        match self.place_quietly(temp, path) {
            Ok(()) => {}
            Err(Errno::EXIST) => return self.stat(path)?.ok_or(Errno::IO),
            Err(errno) => return Err(errno),
        }
        if meta.mode & 0o200 == 0 {
            chmod(magic(&made), Mode::from_raw_mode(meta.mode))?;
        }
        fstat(&made)
    }

    /// Removes the tombstones below a directory that nothing lies under.
    pub(super) fn sweep(&self, path: &LayerPath) -> Result<(), Errno> {
        for entry in self.entries(path)? {
            let Ok(at) = path.join(&entry.name) else { continue };
            match entry.kind {
                NodeKind::Directory => self.sweep(&at)?,
                NodeKind::CharDevice if self.stat(&at)?.as_ref().is_some_and(is_whiteout) => self.quietly(&at, || self.remove(&at))?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Temp<'_> {
    pub(super) fn open(&self) -> Result<OwnedFd, Errno> {
        openat(self.work, self.name.as_str(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn make_at(directory: &OwnedFd, name: &[u8], new: New<'_>) -> Result<Option<OwnedFd>, Errno> {
    match new {
        New::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return openat(directory, name, flags, Mode::RUSR | Mode::WUSR).map(Some);
        }
        New::Directory { .. } => mkdirat(directory, name, Mode::RWXU)?,
        New::Symlink(target) => symlinkat(target, directory, name)?,
        New::Special(kind) => mknodat(directory, name, kind, Mode::RUSR | Mode::WUSR, 0)?,
    }
    Ok(None)
}

fn set_mode(made: &OwnedFd, mode: u32, new: New<'_>) -> Result<(), Errno> {
    if matches!(new, New::Symlink(_)) { Ok(()) } else { chmod(magic(made), Mode::from_raw_mode(mode)) }
}

/// Changes a directory's names though its permissions may deny that to its owner: the change is ours, or was checked.
fn writable<T>(directory: &OwnedFd, mut change: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    match change() {
        Err(Errno::ACCESS) => with_right(directory, 0o700, change),
        other => other,
    }
}

fn with_right<T>(target: &OwnedFd, right: u32, mut action: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mode = fstat(target)?.st_mode & 0o7777;
    if mode & right == right {
        return Err(Errno::ACCESS);
    }
    chmod(magic(target), Mode::from_raw_mode(mode | right))?;
    let outcome = action();
    let _ = chmod(magic(target), Mode::from_raw_mode(mode));
    outcome
}

/// Lets a directory that is about to be removed be moved and emptied.
fn give_right(parent: &OwnedFd, name: &[u8], stat: &Stat) -> Result<(), Errno> {
    if stat.st_mode & 0o700 == 0o700 {
        return Ok(());
    }
    let target = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    chmod(magic(&target), Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o700))
}

fn remove_tree(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let Some(there) = child(parent, name)? else { return Ok(()) };
    if !is_dir(&there) {
        return unlinkat(parent, name, AtFlags::empty());
    }
    give_right(parent, name, &there)?;
    let open = |flags| openat(parent, name, flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let directory = open(OFlags::PATH)?;
    for entry in read_entries(open(OFlags::RDONLY)?)? {
        remove_tree(&directory, &entry.name)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}
