//! Makes single entries in an open directory, and gives them their metadata.

use std::os::fd::{AsFd, OwnedFd};

use layer_format::LayerPath;
use layer_format::entry::{Entry, Kind, Meta};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr, futimens, makedev, mknodat,
    openat, symlinkat, utimensat,
};
use rustix::io::{Errno, Result};
use rustix::process::{getegid, geteuid};

use crate::import::Skipped;
use crate::xattr::is_kept;

/// Bits that give others the rights of an owner.
const SET_ID: u16 = 0o6000;

/// What this process may restore.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights {
    uid: u32,
    gid: u32,
    is_superuser: bool,
    /// Bits that new files do not get.
    umask: u32,
}

impl Rights {
    /// Of this process.
    pub(super) fn of_process() -> Self {
        // Asking by `umask` would change it for other threads.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let umask = status.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok()).unwrap_or(0o777);
        let uid = geteuid();
        Self { uid: uid.as_raw(), gid: getegid().as_raw(), is_superuser: uid.is_root(), umask }
    }

    /// Owner and group that an entry gets here.
    fn owner(&self, meta: &Meta) -> (u32, u32) {
        if self.is_superuser { (meta.uid, meta.gid) } else { (self.uid, self.gid) }
    }

    /// The bits that an entry gets here.
    pub(super) fn mode(&self, meta: &Meta) -> u16 {
        let owned = self.owner(meta) == (meta.uid, meta.gid);
        if owned { meta.mode } else { meta.mode & !SET_ID }
    }

    /// Whether a file has the bits and the owner that it gets here.
    pub(super) fn are_as(&self, stat: &Stat, meta: &Meta) -> bool {
        stat.st_mode & 0o7777 == u32::from(self.mode(meta)) && (stat.st_uid, stat.st_gid) == self.owner(meta)
    }

    /// The bits that a new file or directory has at once, if it is asked for with those that it gets in the end.
    fn at_once(&self, meta: &Meta) -> u16 {
        (u32::from(self.mode(meta)) & 0o777 & !self.umask) as u16
    }

    /// Whether a new file belongs to someone else than it will.
    fn needs_owner(&self, meta: &Meta) -> bool {
        self.owner(meta) != (self.uid, self.gid)
    }
}

/// Times as an entry states them.
pub(super) fn times(meta: &Meta) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime_s, tv_nsec: meta.mtime_ns.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Makes an empty file.
pub(super) fn file(directory: &OwnedFd, name: &[u8], meta: &Meta, rights: &Rights) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::from_raw_mode((rights.mode(meta) & 0o777).into()))
}

/// Gives a file that [`file`] made, and that is written, its owner, attributes, bits and times. What could not be set is told.
pub(super) fn finish_file(file: &OwnedFd, path: &LayerPath, meta: &Meta, rights: &Rights, skipped: &mut Vec<Skipped>) -> Result<()> {
    if rights.needs_owner(meta) {
        let (uid, gid) = rights.owner(meta);
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    xattrs(file, path, meta, skipped);
    // Writing and a change of owner take set-user-ID bits away, and access lists change bits: so they come after those.
    let mode = rights.mode(meta);
    if mode != rights.at_once(meta) || !meta.xattrs.is_empty() {
        fchmod(file, Mode::from_raw_mode(mode.into()))?;
    }
    tell_set_id(path, meta, mode, skipped);
    futimens(file, &times(meta))
}

/// Makes a directory that its owner may fill; what else it gets follows at the end ([`finish_directory`]).
pub(super) fn directory(parent: &OwnedFd, name: &[u8], meta: &Meta, rights: &Rights) -> Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode((rights.mode(meta) & 0o777 | 0o700).into()))
}

/// Whether a directory has the bits, owner and attributes that it gets as soon as it is made.
pub(super) fn is_simple(meta: &Meta, rights: &Rights) -> bool {
    meta.xattrs.is_empty() && !rights.needs_owner(meta) && meta.mode & 0o700 == 0o700 && rights.at_once(meta) == meta.mode
}

/// Gives a directory its owner, attributes, bits and times.
pub(super) fn finish_directory(fd: &OwnedFd, path: &LayerPath, meta: &Meta, rights: &Rights, skipped: &mut Vec<Skipped>) -> Result<()> {
    if rights.needs_owner(meta) {
        let (uid, gid) = rights.owner(meta);
        fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    xattrs(fd, path, meta, skipped);
    let mode = rights.mode(meta);
    fchmod(fd, Mode::from_raw_mode(mode.into()))?;
    tell_set_id(path, meta, mode, skipped);
    futimens(fd, &times(meta))
}

fn tell_set_id(path: &LayerPath, meta: &Meta, mode: u16, skipped: &mut Vec<Skipped>) {
    if meta.mode != mode {
        skipped.push(Skipped { path: path.clone(), reason: "its set-user-ID or set-group-ID bit is left out: it belongs to you here".to_owned() });
    }
}

fn xattrs(file: impl AsFd, path: &LayerPath, meta: &Meta, skipped: &mut Vec<Skipped>) {
    for (name, value) in &meta.xattrs {
        let set = match is_kept(name) {
            true => fsetxattr(&file, &name[..], value, XattrFlags::empty()),
            false => Err(Errno::PERM),
        };
        if let Err(error) = set {
            let reason = format!("its attribute `{}` cannot be set here: {error}", String::from_utf8_lossy(name));
            skipped.push(Skipped { path: path.clone(), reason });
        }
    }
}

/// Makes what is neither file nor directory, with its metadata.
pub(super) fn other(directory: &OwnedFd, name: &[u8], entry: &Entry, rights: &Rights, skipped: &mut Vec<Skipped>) -> Result<()> {
    let (meta, mut skip) = (&entry.meta, |reason: &str| skipped.push(Skipped { path: entry.path.clone(), reason: reason.to_owned() }));
    let mode = rights.mode(meta);
    let device = |kind, (major, minor): (u32, u32)| mknodat(directory, name, kind, Mode::from_raw_mode(0o600), makedev(major, minor));
    let made = match &entry.kind {
        Kind::Symlink(target) => symlinkat(&target[..], directory, name),
        Kind::Fifo => mknodat(directory, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0),
        Kind::CharDevice { major, minor } => device(FileType::CharacterDevice, (*major, *minor)),
        Kind::BlockDevice { major, minor } => device(FileType::BlockDevice, (*major, *minor)),
        Kind::Socket => {
            skip("a socket does not outlive its program");
            return Ok(());
        }
        Kind::File(_) | Kind::Directory { .. } | Kind::Whiteout => return Ok(()),
    };
    match (made, &entry.kind) {
        (Err(Errno::PERM), Kind::CharDevice { .. } | Kind::BlockDevice { .. }) => {
            skip("only the superuser can make devices");
            return Ok(());
        }
        (made, _) => made?,
    }
    if rights.needs_owner(meta) {
        let (uid, gid) = rights.owner(meta);
        chownat(directory, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if !matches!(entry.kind, Kind::Symlink(_)) {
        // Made here and now, and not a link: nothing is followed.
        chmodat(directory, name, Mode::from_raw_mode(mode.into()), AtFlags::empty())?;
    }
    if !meta.xattrs.is_empty() {
        skip("extended attributes of what is not a file or directory are not restored");
    }
    utimensat(directory, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)
}
