//! A `/dev` of the VM's own: what every program may expect, and no way to the host's devices and terminals.
//!
//! The host's `/dev/pts` has every terminal of the user's: reading one spies on what is typed elsewhere, writing to one
//! speaks for another program. A new instance has none of them. The terminal that the application was started on goes on
//! working through its descriptors and `/dev/tty`; it is also bound to `/dev/console`, where `ttyname(3)` finds it.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, readlinkat, statat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive};
use rustix::stdio::{stderr, stdin, stdout};

use super::place::{path_of, place};
use crate::ns::protocol::Failure;

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// What a run of root's gets besides, where the host is visible: whoever may use them outside may use them inside.
const FOR_ROOT: [&str; 5] = ["fuse", "net", "dri", "snd", "kvm"];
const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
    ("/proc/kcore", "core"),
];

/// Mounts it below `root`. The host's `/dev` and `/proc` must still be in sight.
pub(crate) fn mount_private(root: &OwnedFd, strict: bool) -> Result<(), Failure> {
    tmpfs(&place(root, "dev")?, c"mode=0755,size=1m")?;
    // Opened anew: what lies on top now.
    let dev = place(root, "dev")?;
    for name in DEVICES {
        bind(&dev, &format!("/dev/{name}"), name).map_err(|errno| Failure::at("bind", format!("/dev/{name}"), errno))?;
    }
    for name in FOR_ROOT.iter().filter(|_| !strict) {
        // Not every machine has them.
        let _ = bind(&dev, &format!("/dev/{name}"), name);
    }
    for name in ["pts", "shm"] {
        mkdirat(&dev, name, Mode::from_raw_mode(0o755)).map_err(|errno| Failure::at("make", format!("/dev/{name}"), errno))?;
    }
    let terminals = place(&dev, "pts")?;
    mount_terminals(&path_of(&terminals))?;
    tmpfs(&place(&dev, "shm")?, c"mode=1777")?;
    if let Some(name) = [stdin(), stdout(), stderr()].into_iter().find_map(terminal) {
        let _ = bind(&dev, &name, "console");
    }
    for (target, name) in LINKS {
        symlinkat(target, &dev, name).map_err(|errno| Failure::at("link", format!("/dev/{name}"), errno))?;
    }
    Ok(())
}

/// Mounts a devpts that has none of the terminals of others.
pub(crate) fn mount_terminals(target: &str) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devpts", target, "devpts", flags, c"newinstance,ptmxmode=0666,mode=0620").map_err(|errno| Failure::at("mount devpts on", target, errno))
}

/// Mounts a tmpfs.
pub(crate) fn tmpfs(place: &OwnedFd, options: &std::ffi::CStr) -> Result<(), Failure> {
    let mounted = mount("tmpfs", path_of(place), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options);
    mounted.map_err(|errno| Failure::at("mount a tmpfs on", path_of(place), errno))
}

fn bind(dev: &OwnedFd, source: &str, name: &str) -> Result<(), Errno> {
    let kind = FileType::from_raw_mode(statat(CWD, source, AtFlags::empty())?.st_mode);
    if kind == FileType::Directory {
        mkdirat(dev, name, Mode::from_raw_mode(0o755))?;
    } else {
        openat(dev, name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o666))?;
    }
    let place = openat(dev, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let target = path_of(&place);
    if kind == FileType::Directory { mount_bind_recursive(source, target) } else { mount_bind(source, target) }
}

/// The name of the terminal that a descriptor stands for.
fn terminal(fd: BorrowedFd<'_>) -> Option<String> {
    let stat = fstat(fd).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
    let name = readlinkat(CWD, format!("/proc/self/fd/{number}"), Vec::new()).ok()?.into_string().ok()?;
    let found = statat(CWD, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let same = (found.st_dev, found.st_ino, found.st_rdev) == (stat.st_dev, stat.st_ino, stat.st_rdev);
    (same && rustix::termios::isatty(fd)).then_some(name)
}
