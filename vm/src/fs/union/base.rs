//! A tree on disk, walked so that no symbolic link leads out of it.
//!
//! The kernel has resolved all links of a path before it reaches us, so a link in the way is one that someone put there
//! meanwhile: with the rights of the server, which are the user's own outside the VM, it must not be followed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use layer_format::LayerPath;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, statat};
use rustix::io::Errno;

use super::super::NodeKind;
use super::super::host::kind_from;

const WALK: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A directory on disk whose content has paths.
#[derive(Debug)]
pub(super) struct Base {
    root: OwnedFd,
}

/// A name in a directory on disk.
#[derive(Debug)]
pub(super) struct OnDisk {
    pub(super) name: Vec<u8>,
    pub(super) kind: NodeKind,
    pub(super) ino: u64,
}

impl Base {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        Ok(Self { root: openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())? })
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// What is at a path, a link included, as a descriptor without any right.
    pub(super) fn at(&self, path: &LayerPath) -> Result<OwnedFd, Errno> {
        self.walk(path.as_bytes(), OFlags::PATH | OFlags::NOFOLLOW)
    }

    /// The directory at a path.
    pub(super) fn dir(&self, path: &LayerPath) -> Result<OwnedFd, Errno> {
        self.walk(path.as_bytes(), OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The directory that a path is in, and its name there.
    pub(super) fn parent<'a>(&self, path: &'a LayerPath) -> Result<(OwnedFd, &'a [u8]), Errno> {
        let (parent, name) = path.split().ok_or(Errno::BUSY)?;
        Ok((self.walk(parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    /// Opens a file for reading or writing; never blocks on a fifo that someone put there.
    pub(super) fn open_file(&self, path: &LayerPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.walk(path.as_bytes(), flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    /// `None` if there is nothing, or a link or file is in the way.
    pub(super) fn stat(&self, path: &LayerPath) -> Result<Option<Stat>, Errno> {
        match self.at(path).and_then(|found| fstat(&found)) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The names in a directory, in no order; none if it is none.
    pub(super) fn entries(&self, path: &LayerPath) -> Result<Vec<OnDisk>, Errno> {
        match self.walk(path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => read_entries(directory),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Vec::new()),
            Err(errno) => Err(errno),
        }
    }

    fn walk(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { &b"."[..] } else { path };
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), WALK)
    }
}

/// All names but `.` and `..` of a directory that is open for reading.
pub(super) fn read_entries(directory: OwnedFd) -> Result<Vec<OnDisk>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OnDisk { name: name.to_vec(), kind: kind_from(entry.file_type()), ino: entry.ino() });
        }
    }
    Ok(names)
}

/// A path by which this process reaches what a descriptor stands for, a symbolic link included.
pub(super) fn magic(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// What a directory has under a name.
pub(super) fn child(directory: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Device and inode number.
pub(super) fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
