//! Opening what lies below a directory without ever leaving it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::{Errno, Result, retry_on_intr};

/// How directories are opened here.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Opens the directory `path`, relative to `root`, such that no part of the path is a symbolic link. `path` has no `..`;
/// the empty path is `root` itself.
pub(crate) fn open_directory(root: &impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    if path.is_empty() {
        return openat(root, c".", flags, Mode::empty());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match retry_on_intr(|| openat2(root, path, flags, Mode::empty(), resolve)) {
        // An old kernel or a filter of system calls, a path beyond PATH_MAX, a rename at the same time.
        Err(Errno::NOSYS | Errno::PERM | Errno::NAMETOOLONG | Errno::AGAIN) => {}
        other => return other,
    }
    let mut fd = openat(root, c".", flags, Mode::empty())?;
    for name in path.split(|byte| *byte == b'/') {
        fd = openat(&fd, name, flags, Mode::empty())?;
    }
    Ok(fd)
}
