//! Extended attributes of files: those that belong to an image.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use layer_format::entry::{MAX_XATTR_LEN, MAX_XATTRS};
use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr};
use rustix::io::{Errno, Result};

/// Most bytes of all attributes of an entry: an entry has to fit an object of
/// [`layer_format::chunk::MAX_OBJECT_LEN`] together with a leaf's other entries.
pub(crate) const MAX_XATTRS_LEN: usize = 1 << 20;

/// Names and values, sorted by name.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes of a file, and what concerns overlayfs.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) kept: Xattrs,
    /// Names of attributes that belong to an image and could not be read.
    pub(crate) unreadable: Vec<Vec<u8>>,
    /// Whether overlayfs takes the directory to be opaque.
    pub(crate) opaque: bool,
}

/// Whether an attribute belongs to an image: `user.*` but for overlayfs's own, capabilities, and access lists. Others
/// (`security.selinux`, `trusted.*`) belong to the host.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

/// What is wrong with these attributes, if they are beyond the bounds of an entry.
pub(crate) fn check(xattrs: &[(Vec<u8>, Vec<u8>)]) -> std::result::Result<(), &'static str> {
    let len: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if xattrs.len() > MAX_XATTRS || len > MAX_XATTRS_LEN {
        return Err("it has more extended attributes than a layer can hold: remove some");
    }
    if xattrs.iter().any(|(name, value)| name.len() > 255 || value.len() > MAX_XATTR_LEN) {
        return Err("an extended attribute is longer than Linux allows");
    }
    Ok(())
}

/// Of an open file.
pub(crate) fn of_file(file: BorrowedFd<'_>) -> Result<Found> {
    read(|list| flistxattr(file, list), |name, value| fgetxattr(file, name, value))
}

/// Of `name` in an open directory, whatever it is, without following a link. There is no such call relative to a
/// directory on all kernels, so the directory is named through `/proc`; where that is not mounted, nothing is found.
pub(crate) fn of_name(directory: BorrowedFd<'_>, name: &CStr) -> Result<Found> {
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(OsStr::from_bytes(name.to_bytes()));
    match read(|list| llistxattr(&path, list), |name, value| lgetxattr(&path, name, value)) {
        Err(Errno::NOENT) => Ok(Found::default()),
        other => other,
    }
}

fn read(list: impl Fn(&mut [u8]) -> Result<usize>, get: impl Fn(&CStr, &mut [u8]) -> Result<usize>) -> Result<Found> {
    let mut found = Found::default();
    let mut few = [0; 512];
    let names = match list(&mut few) {
        Ok(0) | Err(Errno::NOTSUP | Errno::PERM) => return Ok(found),
        Ok(len) => few[..len].to_vec(),
        Err(Errno::RANGE) => {
            let mut many = vec![0; 1 << 16];
            let len = list(&mut many)?;
            many.truncate(len);
            many
        }
        Err(error) => return Err(error),
    };
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let opaque = matches!(name, b"user.overlay.opaque" | b"trusted.overlay.opaque");
        if !opaque && !is_kept(name) {
            continue;
        }
        let Ok(c_name) = CString::new(name) else { continue };
        let mut value = vec![0; MAX_XATTR_LEN];
        match get(&c_name, &mut value) {
            Ok(len) => value.truncate(len),
            Err(Errno::NODATA) => continue,
            Err(Errno::ACCESS | Errno::PERM) => {
                found.unreadable.push(name.to_vec());
                continue;
            }
            Err(error) => return Err(error),
        }
        if opaque {
            found.opaque = value == b"y";
        } else {
            value.shrink_to_fit();
            found.kept.push((name.to_vec(), value));
        }
    }
    found.kept.sort();
    Ok(found)
}
