//! Removes a directory with all that is in it, on all cores, following no link.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, Mode, chmodat, openat, unlinkat};
use rustix::io::{Errno, Result};

use crate::beneath::{DIRECTORY, open_directory};

/// Most threads: unlinking is bound by locks of the file system.
const MAX_THREADS: usize = 4;

/// Directories to empty, and those found.
#[derive(Default)]
struct Found {
    /// Not visited yet.
    pending: VecDeque<Vec<u8>>,
    /// All of them, parents before what is below them.
    all: Vec<Vec<u8>>,
    /// Being visited.
    busy: usize,
    failed: Option<Errno>,
}

struct Work<'a> {
    root: &'a OwnedFd,
    found: Mutex<Found>,
    changed: Condvar,
}

/// Removes `name` from the open directory `parent`.
///
/// # Errors
/// The first that the system said; as much as can be is removed.
pub(super) fn tree(parent: &OwnedFd, name: &OsStr) -> Result<()> {
    // A directory that its owner may not list, or change, cannot be emptied.
    let open = || openat(parent, name, DIRECTORY, Mode::empty());
    let root = match open() {
        Err(Errno::NOTDIR | Errno::LOOP) => return unlinkat(parent, name, AtFlags::empty()),
        Err(Errno::ACCESS) => {
            chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        other => other?,
    };
    let work = Work { root: &root, found: Mutex::default(), changed: Condvar::new() };
    work.add(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without more threads this one does all of it.
            let _ = std::thread::Builder::new().spawn_scoped(scope, || work.run());
        }
        work.run();
    });
    let found = work.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    for path in found.all.iter().skip(1).rev() {
        let (above, last) = path.iter().rposition(|byte| *byte == b'/').map_or((&b""[..], &path[..]), |at| (&path[..at], &path[at + 1..]));
        let _ = open_directory(&root, above, DIRECTORY).and_then(|above| unlinkat(&above, last, AtFlags::REMOVEDIR));
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(|error| found.failed.unwrap_or(error))
}

impl Work<'_> {
    fn add(&self, path: Vec<u8>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.pending.push_back(path.clone());
        found.all.push(path);
        self.changed.notify_one();
    }

    fn run(&self) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some(path) = found.pending.pop_front() else {
                if found.busy == 0 {
                    self.changed.notify_all();
                    return;
                }
                found = self.changed.wait(found).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            found.busy += 1;
            drop(found);
            let done = self.empty(&path);
            found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.busy -= 1;
            if let Err(error) = done {
                found.failed.get_or_insert(error);
            }
        }
    }

    /// Removes the files of a directory, and notes what directories are in it.
    fn empty(&self, path: &[u8]) -> Result<()> {
        let fd = open_directory(self.root, path, DIRECTORY)?;
        // Of an owner who has no right to change it; who is not the owner cannot do this, and will be told below.
        let _ = rustix::fs::fchmod(&fd, Mode::RWXU);
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => matches!(unlinkat(&fd, name, AtFlags::empty()), Err(Errno::ISDIR | Errno::PERM)),
                _ => {
                    unlinkat(&fd, name, AtFlags::empty())?;
                    false
                }
            };
            if is_directory {
                // Opened by its path later: that takes the right to list it.
                let _ = chmodat(&fd, OsStr::from_bytes(name.to_bytes()), Mode::RWXU, AtFlags::SYMLINK_NOFOLLOW);
                let below = if path.is_empty() { name.to_bytes().to_vec() } else { [path, name.to_bytes()].join(&b'/') };
                self.add(below);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn all_of_a_tree_goes_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("tree");
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("stays"), b"x").unwrap();
        for number in 0..300 {
            let below = top.join(format!("d{}/e{}", number % 7, number % 31));
            fs::create_dir_all(&below).unwrap();
            fs::write(below.join(format!("f{number}")), b"x").unwrap();
        }
        symlink(&outside, top.join("d0/link")).unwrap();
        symlink("nowhere", top.join("dangling")).unwrap();
        for locked in ["d1/e1", "d2"] {
            fs::set_permissions(top.join(locked), fs::Permissions::from_mode(0o000)).unwrap();
        }
        let parent = rustix::fs::openat(rustix::fs::CWD, folder.path(), DIRECTORY, Mode::empty()).unwrap();
        tree(&parent, OsStr::new("tree")).unwrap();
        assert!(!top.exists());
        assert!(outside.join("stays").exists());
        symlink(&outside, &top).unwrap();
        tree(&parent, OsStr::new("tree")).unwrap();
        assert!(!top.is_symlink() && outside.join("stays").exists());
        assert_eq!(tree(&parent, OsStr::new("tree")), Err(Errno::NOENT));
    }
}
