//! Standard input, output and error of the application: what would lead out is replaced by `/dev/null`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fstat, openat};
use rustix::io::Errno;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};

/// Replaces descriptors 0 to 2 that are directories, from which `openat(fd, "..")` would walk the host, or that only name
/// a file (`O_PATH`), and gives those that are closed a meaning.
pub(super) fn make_safe() -> Result<(), Errno> {
    if leads_out(stdin()) {
        dup2_stdin(null()?)?;
    }
    if leads_out(stdout()) {
        dup2_stdout(null()?)?;
    }
    if leads_out(stderr()) {
        dup2_stderr(null()?)?;
    }
    Ok(())
}

fn leads_out(fd: BorrowedFd<'_>) -> bool {
    let is_dir = |fd: BorrowedFd<'_>| fstat(fd).map_or(true, |stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    is_dir(fd.as_fd()) || fcntl_getfl(fd).map_or(true, |flags| flags.contains(OFlags::PATH))
}

fn null() -> Result<OwnedFd, Errno> {
    openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}
