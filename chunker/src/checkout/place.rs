//! Where a checkout goes: the directory that is there, the new one beside it, and how they change places.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use layer_format::{Digest, LayerPath};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, StatxFlags, fchmod, fremovexattr, fsync, mkdirat, openat, renameat, renameat_with, statat, statx,
    syncfs,
};
use rustix::io::Errno;

use super::{CheckoutOptions, remove};
use crate::beneath::DIRECTORY;
use crate::clock;
use crate::restore::RestoreError;

/// The target and what is remembered of it. No other checkout to it runs meanwhile.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) target: PathBuf,
    parent: OwnedFd,
    name: OsString,
    /// The directory that is there, if the last checkout made it and its times can be believed.
    pub(super) old: Option<OwnedFd>,
    /// Whether anything is there.
    is_taken: bool,
    /// Where the index of the checkout is.
    pub(super) index: PathBuf,
    /// Where it is noted which directory the last checkout made.
    record: PathBuf,
    /// Whether times of change can be believed here.
    pub(super) believes: bool,
    _lock: File,
}

/// The new directory; removed if it does not come to stand in the place of the target.
#[derive(Debug)]
pub(super) struct New<'a> {
    place: &'a Place,
    pub(super) root: OwnedFd,
    name: OsString,
    is_placed: Cell<bool>,
}

impl Place {
    /// Looks at the target, and waits for another checkout to it.
    pub(super) fn open(target: &Path, options: &CheckoutOptions<'_>) -> Result<Self, RestoreError> {
        let io = |step: &'static str, error: io::Error| RestoreError::Write { step, path: LayerPath::root(), target: target.to_owned(), source: error };
        let name = target.file_name().ok_or_else(|| io("find a name in", io::ErrorKind::InvalidInput.into()))?.to_owned();
        let above = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let above = above.canonicalize().map_err(|error| io("find the folder of", error))?;
        let parent =
            openat(CWD, &above, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|error| io("open the folder of", error.into()))?;
        let key = Digest::of(above.join(&name).as_os_str().as_bytes()).to_hex();
        let beside = |end: &str| options.folder.join(format!("{}.{end}", &key[..32]));
        let lock = File::create(beside("lock")).and_then(|file| file.lock().map(|()| file)).map_err(|error| io("take the lock of", error))?;
        let believes = clock::is_own(&parent);
        let target = above.join(&name);
        let (index, record) = (beside("index"), beside("made"));
        let mut place = Self { target, parent, name, old: None, is_taken: false, index, record, believes, _lock: lock };
        place.look(options.overwrite)?;
        place.remove_leftovers();
        Ok(place)
    }

    /// What is there, if it may be replaced.
    fn look(&mut self, overwrite: bool) -> Result<(), RestoreError> {
        let occupied = |reason: &'static str| RestoreError::Occupied { target: self.target.clone(), reason };
        let stat = match statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(self.failed("look at", &LayerPath::root())(error)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(occupied("is there and not a directory: choose another one, or remove it"));
        }
        let above = statat(&self.parent, c".", AtFlags::empty()).map_err(self.failed("look at the folder of", &LayerPath::root()))?;
        if stat.st_dev != above.st_dev {
            return Err(occupied("is a mount point, and cannot be replaced: choose a directory in it"));
        }
        let fd = openat(&self.parent, &self.name, DIRECTORY, Mode::empty()).map_err(self.failed("open", &LayerPath::root()))?;
        let made = std::fs::read_to_string(&self.record).unwrap_or_default();
        let is_ours = identity(&fd).is_ok_and(|identity| made.lines().any(|line| line == identity));
        if !is_ours && !overwrite && !is_empty(&fd) {
            return Err(occupied("holds files that no checkout has made: choose another directory, or say --overwrite to remove what is in it"));
        }
        self.is_taken = true;
        self.old = Some(fd).filter(|_| is_ours && self.believes);
        Ok(())
    }

    fn temporary_prefix(&self) -> Vec<u8> {
        // Names have at most 255 bytes.
        let name = self.name.as_bytes();
        [b".", &name[..name.len().min(200)], b".turbo-"].concat()
    }

    /// Removes what killed checkouts left: no other one runs.
    fn remove_leftovers(&self) {
        let Ok(entries) = Dir::read_from(&self.parent) else { return };
        let prefix = self.temporary_prefix();
        for entry in entries.flatten() {
            if entry.file_name().to_bytes().starts_with(&prefix) {
                let _ = remove::tree(&self.parent, OsStr::from_bytes(entry.file_name().to_bytes()));
            }
        }
    }

    /// Makes the new directory, which no one else may enter.
    pub(super) fn create(&self) -> Result<New<'_>, RestoreError> {
        let failed = || self.failed("make a directory beside", &LayerPath::root());
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(failed())?;
        let suffix = format!("{:016x}", u64::from_le_bytes(random));
        let name = OsStr::from_bytes(&[&self.temporary_prefix()[..], suffix.as_bytes()].concat()).to_owned();
        mkdirat(&self.parent, &name, Mode::RWXU).map_err(failed())?;
        let root = openat(&self.parent, &name, DIRECTORY, Mode::empty()).map_err(failed())?;
        let new = New { place: self, root, name, is_placed: Cell::new(false) };
        // What a directory hands down to what is made in it, and had handed down to it: group and access lists.
        fchmod(&new.root, Mode::RWXU).map_err(failed())?;
        for name in [c"system.posix_acl_default", c"system.posix_acl_access"] {
            let _ = fremovexattr(&new.root, name);
        }
        Ok(new)
    }

    /// Lets the new directory take the place of the old one, which is removed after `then`.
    pub(super) fn exchange(&self, new: &New<'_>, then: impl FnOnce()) -> Result<(), RestoreError> {
        let failed = |step: &'static str| self.failed(step, &LayerPath::root());
        syncfs(&new.root).map_err(failed("write back"))?;
        let identity = identity(&new.root).map_err(failed("look at"))?;
        // Both may be the one that a crash leaves there.
        let before = std::fs::read_to_string(&self.record).unwrap_or_default();
        self.note(&format!("{identity}\n{before}"))?;
        match self.is_taken {
            true => self.swap(&new.name),
            false => match renameat_with(&self.parent, &new.name, &self.parent, &self.name, RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS) => renameat(&self.parent, &new.name, &self.parent, &self.name),
                other => other,
            },
        }
        .map_err(failed("put in place"))?;
        new.is_placed.set(true);
        // Nothing that fails from here on takes back that the new version is in place.
        let _ = fsync(&self.parent);
        let _ = self.note(&format!("{identity}\n"));
        then();
        if self.is_taken {
            let _ = remove::tree(&self.parent, &new.name);
        }
        Ok(())
    }

    fn note(&self, text: &str) -> Result<(), RestoreError> {
        let beside = self.record.with_extension("made-new");
        let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &self.record));
        written.map_err(|source| RestoreError::Write { step: "note the making of", path: LayerPath::root(), target: self.target.clone(), source })
    }

    fn swap(&self, other: &OsStr) -> rustix::io::Result<()> {
        match renameat_with(&self.parent, other, &self.parent, &self.name, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS) => {}
            done => return done,
        }
        // A file system that cannot exchange: for a moment nothing is there.
        let aside = OsStr::from_bytes(&[other.as_bytes(), b"-old"].concat()).to_owned();
        renameat(&self.parent, &self.name, &self.parent, &aside)?;
        if let Err(error) = renameat(&self.parent, other, &self.parent, &self.name) {
            let _ = renameat(&self.parent, &aside, &self.parent, &self.name);
            return Err(error);
        }
        renameat(&self.parent, &aside, &self.parent, other)
    }

    /// Maps an error of the system at an entry.
    pub(super) fn failed(&self, step: &'static str, path: &LayerPath) -> impl FnOnce(Errno) -> RestoreError + use<> {
        let (path, target) = (path.clone(), self.target.clone());
        move |error| match error {
            Errno::EXIST => RestoreError::Tree { path, rule: "the tree has this name twice" },
            Errno::NOTDIR | Errno::LOOP if !path.is_root() => RestoreError::Tree { path, rule: "it lies below something that is not a directory" },
            Errno::FBIG | Errno::INVAL if step == "write" => RestoreError::Tree { path, rule: "it is longer than a file can be here" },
            error => RestoreError::Write { step, path, target, source: error.into() },
        }
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if !self.is_placed.get() {
            let _ = remove::tree(&self.place.parent, &self.name);
        }
    }
}

/// What tells a directory from all others that ever had its name, also after a restart of the machine: the numbers of devices
/// may change by that.
fn identity(fd: impl AsFd) -> rustix::io::Result<String> {
    let found = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::BTIME)?;
    Ok(format!("{} {} {}", found.stx_ino, found.stx_btime.tv_sec, found.stx_btime.tv_nsec))
}

fn is_empty(fd: impl AsFd) -> bool {
    let Ok(entries) = Dir::read_from(fd) else { return false };
    let mut names = entries.map(|entry| entry.map(|entry| matches!(entry.file_name().to_bytes(), b"." | b"..")));
    names.all(|name| name.unwrap_or(false))
}
