//! Mount points inside a root that others have written: image layers, the sandbox, a state from another machine.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use crate::ns::protocol::Failure;

/// The folder `name` directly below `root`, made if it is missing. A symbolic link there is refused, so that no mount
/// lands anywhere else.
pub(crate) fn place(root: &OwnedFd, name: &str) -> Result<OwnedFd, Failure> {
    let open = || openat2(root, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS);
    match open() {
        Err(Errno::NOENT) => mkdirat(root, name, Mode::from_raw_mode(0o755)).and_then(|()| open()),
        other => other,
    }
    .map_err(|errno| Failure::at("an image or the sandbox has no folder where the VM mounts its own:", format!("/{name}"), errno))
}

/// A path that names what a descriptor stands for, for calls that take paths, as long as it is open. `/proc` must be mounted.
pub(crate) fn path_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
