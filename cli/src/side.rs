//! The two sides of a copy between containers and the host.
//!
//! A container's files are reached through the root of its VM, `/proc/<pid 1>/root`. One that does not run gets a VM for the
//! while, without its application. Paths in a container are resolved as inside of it: no link leads out.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use crate::app::App;
use crate::commands::cp::Place;
use crate::commands::launch_options::remembered;
use crate::containers::{Container, Locked};
use crate::control::client::{Client, Reached, reach};
use crate::control::{Invitation, Op};
use crate::copy::{At, Copier, Kind, name_of};
use crate::forks::Forks;
use crate::launch::visit::Visit;

/// Folders of a container's root that are not its files.
const NOT_FILES: &[&str] = &["proc", "sys", "dev"];

/// Where files are.
#[derive(Debug)]
pub struct Side {
    /// The root of the container; `None` for the host.
    root: Option<OwnedFd>,
    _kept: Kept,
}

/// What keeps the root there.
#[derive(Debug)]
#[allow(dead_code, reason = "they are kept to be dropped, in this order")]
enum Kept {
    Nothing,
    Running(Client),
    Visited(Box<Visit>, Box<Locked>),
}

impl Side {
    /// A container, or the host.
    pub fn open(app: &App, forks: &mut Forks, container: Option<Container>, for_writing: bool) -> Result<Self> {
        let Some(container) = container else { return Ok(Self { root: None, _kept: Kept::Nothing }) };
        let (init, kept) = match reach(&app.containers(), &container)? {
            Reached::Running(mut client) => {
                // As for a program that joins: the container stays up until the copy is done.
                let invitation: Invitation = client.ask(Op::Join).with_context(|| format!("reaching {}", container.shown()))?;
                (invitation.ticket.pid(), Kept::Running(client))
            }
            Reached::Stopped(mut locked) => {
                if for_writing && !locked.container.dirty {
                    locked.container.dirty = true;
                    locked.save()?;
                }
                let visit = remembered(&locked.container)?.visit(app, forks.take_launcher()?, &locked)?;
                (visit.init(), Kept::Visited(Box::new(visit), locked))
            }
        };
        let path = format!("/proc/{init}/root");
        let root = openat(CWD, &*path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = root.with_context(|| format!("the files of {} cannot be reached", container.shown()))?;
        let mut side = Self { root: Some(root), _kept: kept };
        // The number could mean another process only if the VM ended; then whoever runs it does not answer.
        if let Kept::Running(client) = &mut side._kept {
            client.status().with_context(|| format!("{} ended", container.shown()))?;
        }
        Ok(side)
    }

    /// Opens what a path means, following links; `None` if there is nothing.
    fn look(&self, path: &Path) -> Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = match &self.root {
            Some(root) => openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT),
            None => openat(CWD, path, flags, Mode::empty()),
        };
        match opened {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("looking at {}", path.display())),
        }
    }

    /// Opens the folder that has the last name of a path, and gives that name.
    fn parent(&self, path: &Path) -> Result<(OwnedFd, CString)> {
        let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = self.look(parent)?.filter(is_folder).with_context(|| format!("there is no folder {}", parent.display()))?;
        Ok((folder, name_of(name)?))
    }
}

fn is_folder(file: &OwnedFd) -> bool {
    fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Copies from one side to the other. What could not be copied is told.
pub fn copy(source: &Side, from: &Place, target: &Side, to: &Place) -> Result<Vec<String>> {
    let missing = || format!("there is no {}", from.path.display());
    let source_is_folder = if from.is_folder {
        if !source.look(&from.path)?.as_ref().is_some_and(is_folder) {
            bail!("{} is not a folder", from.path.display());
        }
        true
    } else {
        let (folder, name) = named(source, &from.path)?;
        let stat = rustix::fs::statat(&folder, &*name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok().with_context(missing)?;
        FileType::from_raw_mode(stat.st_mode) == FileType::Directory
    };
    let is_root = source.root.is_some() && from.path.components().all(|part| part.as_os_str() == OsStr::new("/"));
    let copier = |top: OwnedFd| Copier::new(Kind::Files, top).leave_out(if is_root { NOT_FILES } else { &[] });
    let existing = target.look(&to.path)?;
    if from.is_content || is_root {
        let top = match existing {
            Some(found) if is_folder(&found) => found,
            Some(_) => bail!("{} is not a folder", to.path.display()),
            None => make_folder(target, &to.path)?,
        };
        let mut copier = copier(top);
        let content = source.look(&from.path)?.with_context(missing)?;
        copier.copy_content(content.as_fd())?;
        return Ok(copier.into_skipped());
    }
    let (folder, name) = named(source, &from.path)?;
    let (top, new_name) = match existing {
        Some(found) if is_folder(&found) => (found, name.clone()),
        Some(_) if to.is_folder || source_is_folder => bail!("{} is not a folder", to.path.display()),
        None if to.is_folder && !source_is_folder => bail!("there is no folder {}", to.path.display()),
        _ => target.parent(&without_slash(&to.path))?,
    };
    let mut copier = copier(top);
    copier.copy(At { folder: folder.as_fd(), name: &name }, &new_name)?;
    Ok(copier.into_skipped())
}

/// The source's folder and name: a link is copied as a link, unless a slash behind it asks for what it means.
fn named(source: &Side, path: &Path) -> Result<(OwnedFd, CString)> {
    source.parent(&without_slash(path))
}

fn make_folder(target: &Side, path: &Path) -> Result<OwnedFd> {
    let (folder, name) = target.parent(&without_slash(path))?;
    rustix::fs::mkdirat(&folder, &*name, Mode::RWXU).with_context(|| format!("making {}", path.display()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&folder, &*name, flags, Mode::empty()).with_context(|| format!("opening {}", path.display()))
}

fn without_slash(path: &Path) -> PathBuf {
    path.components().collect()
}
