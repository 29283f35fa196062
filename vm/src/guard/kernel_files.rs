//! Files that are no files: switches of the kernel in `/proc` and `/sys`.
//!
//! Most answer to root alone, but not all: a user owns the control groups of his session and could kill or freeze
//! everything in them; and to a run of root's all of them answer, whatever its user namespace.

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use crate::ns::protocol::Failure;
use crate::sys::confine::make_mount_inert;

/// Parts of `/proc` that are only read.
const READ_ONLY: [&CStr; 8] = [c"/proc/sys", c"/proc/sysrq-trigger", c"/proc/irq", c"/proc/bus", c"/proc/fs", c"/proc/acpi", c"/proc/scsi", c"/proc/mtrr"];
/// Parts of `/proc` that tell about the whole machine what only root outside should know.
const EMPTY: [&CStr; 10] = [
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/key-users",
    c"/proc/kmsg",
    c"/proc/kpagecgroup",
    c"/proc/kpagecount",
    c"/proc/kpageflags",
    c"/proc/sched_debug",
    c"/proc/timer_list",
    c"/proc/latency_stats",
];

/// Limits on namespaces, to be set from inside a namespace: `/proc/sys/user`, opened before it is covered.
#[derive(Debug)]
pub(crate) struct Limits(OwnedFd);

impl Limits {
    /// Opens them, from `/proc`.
    pub(crate) fn open() -> Result<Self, Failure> {
        openat(CWD, "/proc/sys/user", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map(Self)
            .map_err(|errno| Failure::at("open", "/proc/sys/user", errno))
    }

    /// Lets no more user namespaces be made below the one that this process is in.
    pub(super) fn forbid_namespaces(&self) -> Result<(), Errno> {
        let file = openat(&self.0, "max_user_namespaces", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, b"0").map(drop)
    }
}

/// Covers them. The new root must be entered. Returns warnings.
pub(crate) fn cover() -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    match make_mount_inert(c"/sys", true) {
        // Nothing is mounted there: it was not available.
        Ok(()) | Err(Errno::INVAL) => {}
        // Linux 5.11.
        Err(Errno::NOSYS) => {
            unmount("/sys", UnmountFlags::DETACH).map_err(|errno| Failure::at("unmount", "/sys", errno))?;
            warnings.push("/sys is not available in this VM: Linux 5.12 or later is needed to make it read-only".to_owned());
        }
        Err(errno) => return Err(Failure::at("make read-only:", "/sys", errno)),
    }
    for path in READ_ONLY {
        match mount_bind(path, path) {
            Err(Errno::NOENT) => continue,
            bound => bound.and_then(|()| read_only(path)),
        }
        .map_err(|errno| Failure::at("make read-only:", path.to_bytes(), errno))?;
    }
    for path in EMPTY {
        match mount_bind(c"/dev/null", path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(Failure::at("cover", path.to_bytes(), errno)),
        }
    }
    Ok(warnings)
}

fn read_only(path: &CStr) -> Result<(), Errno> {
    match make_mount_inert(path, false) {
        Err(Errno::NOSYS) => {
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount_remount(path, flags, CString::default())
        }
        other => other,
    }
}
