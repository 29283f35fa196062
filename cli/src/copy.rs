//! Copies of files and folders with all their metadata: modes, times, extended attributes, hard links, holes, links, fifos.
//!
//! Every step is taken from an open folder and follows no symbolic link, so that a program that changes the tree meanwhile
//! cannot lead a copy out of it. Data is shared rather than copied where the filesystem can (reflinks).

mod metadata;

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat, unlinkat};
use rustix::io::Errno;

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Files as an application sees them.
    Files,
    /// A sandbox, which no one uses meanwhile: with what overlayfs keeps there, and files that its own user may not read.
    Sandbox,
}

/// A copy in progress.
#[derive(Debug)]
pub struct Copier {
    kind: Kind,
    /// The folder that the copy ends up in; hard links are found again from there.
    top: OwnedFd,
    /// Where the first name of a file with several was copied to, below `top`.
    links: HashMap<(u64, u64), PathBuf>,
    /// Names in the topmost folder that are left out.
    left_out: &'static [&'static str],
    /// What could not be copied, and why.
    skipped: Vec<String>,
}

/// One name in an open folder.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The folder.
    pub folder: BorrowedFd<'a>,
    /// The name in it.
    pub name: &'a CStr,
}

impl Copier {
    /// A copy into the folder `top`.
    pub fn new(kind: Kind, top: OwnedFd) -> Self {
        Self { kind, top, links: HashMap::new(), left_out: &[], skipped: Vec::new() }
    }

    /// Leaves these names of the topmost folder out.
    pub fn leave_out(mut self, names: &'static [&'static str]) -> Self {
        self.left_out = names;
        self
    }

    /// What could not be copied, and why.
    pub fn into_skipped(self) -> Vec<String> {
        self.skipped
    }

    /// Copies `from`, with all that is below it, to the name `to` in the top folder, in place of what is there: but a folder
    /// is merged into a folder.
    pub fn copy(&mut self, from: At<'_>, to: &CStr) -> Result<()> {
        let top = self.top.try_clone().context("copying a descriptor")?;
        self.entry(from, At { folder: top.as_fd(), name: to }, &path_of(to), true)
    }

    /// Copies what is in the folder `from` into the top folder, and its metadata.
    pub fn copy_content(&mut self, from: BorrowedFd<'_>) -> Result<()> {
        let source = openat(from, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context("opening a folder")?;
        let target = openat(&self.top, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context("opening a folder")?;
        self.children(&source, &target, Path::new(""), true)
    }

    fn entry(&mut self, from: At<'_>, to: At<'_>, below: &Path, is_top: bool) -> Result<()> {
        let stat = statat(from.folder, from.name, AtFlags::SYMLINK_NOFOLLOW).with_context(|| format!("looking at {}", below.display()))?;
        let copied = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.folder(from, to, below, &stat, is_top),
            _ if stat.st_nlink > 1 && self.link(to, below, &stat)? => return Ok(()),
            FileType::RegularFile => self.file(from, to, &stat),
            FileType::Symlink => symlink(from, to, &stat),
            FileType::Fifo => node(to, &stat),
            FileType::CharacterDevice if self.kind == Kind::Sandbox && stat.st_rdev == 0 => node(to, &stat),
            FileType::Socket if self.kind == Kind::Sandbox => node(to, &stat),
            other => {
                self.skipped.push(format!("{}: a {other:?} is not copied", below.display()));
                return Ok(());
            }
        };
        copied.with_context(|| format!("copying {}", below.display()))?;
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), below.to_owned());
        }
        Ok(())
    }

    fn folder(&mut self, from: At<'_>, to: At<'_>, below: &Path, stat: &Stat, is_top: bool) -> Result<()> {
        let shown = || format!("the folder {}", below.display());
        let source = self.open_source(from, stat, OFlags::DIRECTORY).with_context(shown)?;
        match mkdirat(to.folder, to.name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if kind_at(to) == Some(FileType::Directory) => {}
            Err(Errno::EXIST) => bail!("{} cannot take the place of a file", shown()),
            Err(errno) => Err(errno).with_context(|| format!("making {}", shown()))?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(to.folder, to.name, flags, Mode::empty()).with_context(shown)?;
        self.children(&source, &target, below, is_top)?;
        self.metadata(source.as_fd(), target.as_fd(), stat, below).with_context(shown)
    }

    fn children(&mut self, source: &OwnedFd, target: &OwnedFd, below: &Path, is_top: bool) -> Result<()> {
        let read = || Dir::read_from(source)?.collect::<Result<Vec<_>, _>>();
        let entries = read().with_context(|| format!("listing {}", below.display()))?;
        for entry in entries {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = below.join(path_of(name));
            if is_top && self.left_out.iter().any(|left| left.as_bytes() == name.to_bytes()) {
                continue;
            }
            self.entry(At { folder: source.as_fd(), name }, At { folder: target.as_fd(), name }, &path, false)?;
        }
        Ok(())
    }

    fn file(&mut self, from: At<'_>, to: At<'_>, stat: &Stat) -> Result<()> {
        let source = File::from(self.open_source(from, stat, OFlags::NONBLOCK)?);
        let opened = rustix::fs::fstat(&source)?;
        if FileType::from_raw_mode(opened.st_mode) != FileType::RegularFile {
            bail!("it was replaced meanwhile");
        }
        remove_file(to)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = File::from(openat(to.folder, to.name, flags, Mode::RUSR | Mode::WUSR)?);
        if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
            content(&source, &target)?;
        }
        self.metadata(source.as_fd(), target.as_fd(), &opened, &path_of(to.name))
    }

    fn metadata(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, stat: &Stat, below: &Path) -> Result<()> {
        for name in metadata::copy_attributes(source, target, self.kind)? {
            self.skipped.push(format!("{}: the attribute {name} is not copied", below.display()));
        }
        metadata::set(target, stat)
    }

    /// Makes another name of a file that was copied before; whether it was.
    fn link(&self, to: At<'_>, below: &Path, stat: &Stat) -> Result<bool> {
        let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) else { return Ok(false) };
        let made = || -> Result<()> {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = first.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let parent = openat2(&self.top, parent, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
            let name = first.file_name().context("a file has a name")?;
            remove_file(to)?;
            rustix::fs::linkat(&parent, name, to.folder, to.name, AtFlags::empty())?;
            Ok(())
        };
        made().with_context(|| format!("linking {} to {}", below.display(), first.display()))?;
        Ok(true)
    }

    /// Opens a file or folder for reading, of a sandbox also where the application took the right away.
    fn open_source(&self, from: At<'_>, stat: &Stat, flags: OFlags) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | flags;
        match openat(from.folder, from.name, flags, Mode::empty()) {
            Err(Errno::ACCESS) if self.kind == Kind::Sandbox => {}
            opened => return opened.context("opening"),
        }
        // Through the descriptor, so that it is this very file, whatever its name means by now.
        let found = openat(from.folder, from.name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).context("opening")?;
        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
        rustix::fs::chmod(&*path, Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o500)).context("getting the right to read")?;
        let opened = rustix::fs::open(&*path, flags - OFlags::NOFOLLOW, Mode::empty());
        let back = rustix::fs::chmod(&*path, Mode::from_raw_mode(stat.st_mode & 0o7777));
        let opened = opened.context("opening")?;
        back.context("giving the right to read back")?;
        Ok(opened)
    }
}

/// A name as a path.
pub fn path_of(name: &CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

/// A name for system calls.
pub fn name_of(name: &std::ffi::OsStr) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(name.as_bytes()).context("a name has no NUL")
}

fn kind_at(at: At<'_>) -> Option<FileType> {
    statat(at.folder, at.name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| FileType::from_raw_mode(stat.st_mode))
}

/// Makes room for a file.
fn remove_file(at: At<'_>) -> Result<()> {
    match unlinkat(at.folder, at.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => bail!("a file cannot take the place of a folder"),
        Err(errno) => Err(errno).context("removing what is in its place"),
    }
}

/// Copies data, not holes.
fn content(source: &File, target: &File) -> Result<()> {
    let (mut reader, mut writer) = (source, target);
    let len = source.metadata()?.len();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(source, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            // Only holes follow.
            Err(Errno::NXIO) => break,
            // A filesystem without holes.
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno).context("looking for data"),
        };
        let end = rustix::fs::seek(source, rustix::fs::SeekFrom::Hole(start)).unwrap_or(len).min(len);
        reader.seek(SeekFrom::Start(start))?;
        writer.seek(SeekFrom::Start(start))?;
        let copied = std::io::copy(&mut reader.take(end.saturating_sub(start)), &mut writer)?;
        if copied == 0 {
            // It became shorter meanwhile.
            break;
        }
        at = start + copied;
    }
    target.set_len(len)?;
    Ok(())
}

fn symlink(from: At<'_>, to: At<'_>, stat: &Stat) -> Result<()> {
    let target = readlinkat(from.folder, from.name, Vec::new())?;
    remove_file(to)?;
    symlinkat(&*target, to.folder, to.name)?;
    metadata::set_times(to, stat)
}

/// A fifo, a socket without a listener, or the device that marks a deleted name.
fn node(to: At<'_>, stat: &Stat) -> Result<()> {
    remove_file(to)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    mknodat(to.folder, to.name, FileType::from_raw_mode(stat.st_mode), mode, stat.st_rdev)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        // The umask took some of it.
        rustix::fs::chmodat(to.folder, to.name, mode, AtFlags::empty())?;
    }
    metadata::set_times(to, stat)
}

/// Opens a folder by path, following symbolic links.
pub fn open_folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).with_context(|| format!("opening {}", path.display()))
}

#[cfg(test)]
mod tests;
