//! Modes, owners, times and extended attributes of copies.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode, Stat, Timespec, Timestamps, XattrFlags, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, futimens, utimensat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};

use super::{At, Kind};

/// What overlayfs notes about lower files of one mount: of no meaning in a copy.
const OF_ONE_MOUNT: [&str; 5] = ["user.overlay.origin", "user.overlay.impure", "user.overlay.nlink", "user.overlay.uuid", "user.overlay.upper"];
/// Set by the system for each file anew.
const BY_THE_SYSTEM: [&str; 2] = ["security.selinux", "security.ima"];

/// Copies extended attributes. Those that may not be set are named.
pub fn copy_attributes(source: BorrowedFd<'_>, target: BorrowedFd<'_>, kind: Kind) -> Result<Vec<String>> {
    let mut refused = Vec::new();
    for name in names(source)? {
        let text = name.to_string_lossy().into_owned();
        if (kind == Kind::Sandbox && OF_ONE_MOUNT.contains(&text.as_str())) || BY_THE_SYSTEM.contains(&text.as_str()) {
            continue;
        }
        let Some(value) = value(source, &name)? else { continue };
        match fsetxattr(target, &*name, &value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => refused.push(text),
            Err(errno) => return Err(errno).with_context(|| format!("setting the attribute {text}")),
        }
    }
    Ok(refused)
}

fn names(file: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let mut buffer = vec![0u8; 1024];
    let len = loop {
        match flistxattr(file, &mut buffer[..]) {
            Ok(len) => break len,
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
            Err(errno) => return Err(errno).context("listing extended attributes"),
        }
    };
    Ok(buffer[..len].split_inclusive(|byte| *byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok()).map(CStr::to_owned).collect())
}

/// `None` if it is gone, or may not be read.
fn value(file: BorrowedFd<'_>, name: &CStr) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0u8; 256];
    loop {
        match fgetxattr(file, name, &mut buffer[..]) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(Some(buffer));
            }
            // An attribute is at most 64 KiB long.
            Err(Errno::RANGE) if buffer.len() < 1 << 16 => buffer.resize(1 << 16, 0),
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("reading the attribute {}", name.to_string_lossy())),
        }
    }
}

/// Sets owner (where that is allowed), mode and times. Comes last: a change of owner clears setuid bits, any other one the
/// times.
pub fn set(target: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
    if geteuid().is_root() {
        // Owners that this user namespace does not know stay out.
        let _ = fchown(target, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    }
    fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777)).context("setting the mode")?;
    futimens(target, &times(stat)).context("setting the times")
}

/// Sets the times of what cannot be opened.
pub fn set_times(at: At<'_>, stat: &Stat) -> Result<()> {
    utimensat(at.folder, at.name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).context("setting the times")
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}
