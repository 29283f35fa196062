//! The container's directory on disk: what a run finds there and what it leaves.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use layer_format::LayerPath;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, listxattr, utimensat};

use crate::error::VmError;
use crate::surroundings::DirectoryMeta;

/// Makes the directories that a run needs. `upper` is the mode of the VM's `/`, hence readable for all; the container's
/// directory itself is the user's own.
pub(crate) fn prepare(sandbox: &Path) -> Result<(), VmError> {
    let make = |path: &Path, mode: u32| match DirBuilder::new().mode(mode).recursive(true).create(path) {
        Ok(()) => Ok(()),
        Err(source) => Err(VmError::Sandbox { path: path.to_owned(), source }),
    };
    make(sandbox, 0o700)?;
    clean_work(sandbox).map_err(|source| VmError::Sandbox { path: sandbox.join("work"), source })?;
    for name in ["upper", "work", "mnt"] {
        make(&sandbox.join(name), 0o755)?;
    }
    Ok(())
}

/// Removes overlayfs's own leftovers: `work/work` has no permission bits, so that even its owner cannot remove it as it is.
/// Harmless if a run is still on: nothing is removed that is in use, since those directories are not empty or busy.
pub(crate) fn clean(sandbox: &Path) {
    let _ = clean_work(sandbox);
    let _ = fs::remove_dir(sandbox.join("mnt"));
}

/// A directory that was made in `upper` before a run, and what it was like then.
#[derive(Debug)]
pub(crate) struct Made {
    path: PathBuf,
    meta: DirectoryMeta,
}

/// Makes directories in `upper` with their parents, looking like what they stand for. Those that are there stay as they
/// are. Overlayfs and the union write to one `upper`, each to subtrees of its own; the directories above such a border are
/// shared, and overlayfs would stumble over one that appeared while it ran.
pub(crate) fn make_shared<'p>(
    upper: &Path,
    paths: impl IntoIterator<Item = &'p LayerPath>,
    meta: impl Fn(&LayerPath) -> Option<DirectoryMeta>,
) -> Result<Vec<Made>, VmError> {
    let mut made = Vec::new();
    for path in paths {
        let mut chain: Vec<LayerPath> = std::iter::successors(Some(path.clone()), LayerPath::parent).filter(|path| !path.is_root()).collect();
        chain.reverse();
        for path in chain {
            let place = upper.join(std::ffi::OsStr::from_bytes(path.as_bytes()));
            match DirBuilder::new().mode(0o700).create(&place) {
                Ok(()) => made.push(Made { path: place, meta: meta(&path).unwrap_or(DirectoryMeta { mode: 0o755, mtime_s: 0, mtime_ns: 0 }) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && place.symlink_metadata().is_ok_and(|found| found.is_dir()) => {}
                Err(source) => return Err(VmError::Sandbox { path: place, source }),
            }
        }
    }
    // Deepest first: making a child changes the time of its parent.
    made.reverse();
    for Made { path, meta } in &mut made {
        let time = Timespec { tv_sec: meta.mtime_s, tv_nsec: meta.mtime_ns.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        let set = fs::set_permissions(&*path, Permissions::from_mode(meta.mode & 0o7777)).and_then(|()| Ok(utimensat(CWD, &*path, &times, AtFlags::empty())?));
        let found = set.and_then(|()| path.symlink_metadata()).map_err(|source| VmError::Sandbox { path: path.clone(), source })?;
        // As the filesystem keeps it: it may have no setgid bit, or whole seconds only.
        *meta = DirectoryMeta { mode: found.mode() & 0o7777, mtime_s: found.mtime(), mtime_ns: found.mtime_nsec() as u32 };
    }
    Ok(made)
}

/// Removes those that the run did not use.
pub(crate) fn remove_unused(made: &[Made]) {
    for Made { path, meta } in made {
        let Ok(found) = path.symlink_metadata() else { continue };
        let as_made = found.is_dir()
            && found.mode() & 0o7777 == meta.mode & 0o7777
            && (found.mtime(), found.mtime_nsec()) == (meta.mtime_s, meta.mtime_ns.into())
            && has_only_own_attributes(path);
        if !as_made {
            continue;
        }
        let parent = path.parent().and_then(|parent| Some((parent, parent.symlink_metadata().ok()?)));
        if fs::remove_dir(path).is_ok()
            && let Some((parent, before)) = parent
        {
            // So that the parent still looks as it was made.
            let time = |s, ns| Timespec { tv_sec: s, tv_nsec: ns };
            let times = Timestamps { last_access: time(before.atime(), before.atime_nsec()), last_modification: time(before.mtime(), before.mtime_nsec()) };
            let _ = utimensat(CWD, parent, &times, AtFlags::empty());
        }
    }
}

/// Whether overlayfs alone set attributes, if anyone.
fn has_only_own_attributes(path: &Path) -> bool {
    let mut names = [0; 4096];
    match listxattr(path, &mut names[..]) {
        Ok(len) => names[..len].split(|b| *b == 0).all(|name| name.is_empty() || name.starts_with(b"user.overlay.")),
        Err(errno) => errno == rustix::io::Errno::OPNOTSUPP,
    }
}

fn clean_work(sandbox: &Path) -> io::Result<()> {
    let work = sandbox.join("work");
    for name in ["work", "index"] {
        let inner = work.join(name);
        if inner.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            fs::set_permissions(&inner, Permissions::from_mode(0o700))?;
        }
    }
    match fs::remove_dir_all(&work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_directories_look_like_their_models_and_go_if_nothing_used_them() {
        let upper = tempfile::tempdir().unwrap();
        let path = |text: &str| LayerPath::new(text).unwrap();
        fs::create_dir(upper.path().join("kept")).unwrap();
        let meta = |path: &LayerPath| (path.as_bytes() != b"a/b/c").then_some(DirectoryMeta { mode: 0o1500, mtime_s: 77, mtime_ns: 5 });
        let made = make_shared(upper.path(), [&path("a/b/c"), &path("a/b"), &path("a/x"), &path("kept")], meta).unwrap();
        assert_eq!(made.len(), 4);
        let found = fs::metadata(upper.path().join("a/b")).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime(), found.mtime_nsec()), (0o1500, 77, 5));
        // Used: given other permissions, and so with its parents.
        fs::set_permissions(upper.path().join("a/x"), Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(upper.path().join("a"), Permissions::from_mode(0o1700)).unwrap();
        fs::set_permissions(upper.path().join("a/b"), Permissions::from_mode(0o1700)).unwrap();
        remove_unused(&made);
        assert!(upper.path().join("a/x").exists() && upper.path().join("a/b").exists() && upper.path().join("kept").exists());
        assert!(!upper.path().join("a/b/c").exists());
        let again = make_shared(upper.path(), [&path("y/z")], |_| None).unwrap();
        remove_unused(&again);
        assert!(!upper.path().join("y").exists());
    }

    #[test]
    fn a_file_in_the_way_is_an_error_that_names_it() {
        let upper = tempfile::tempdir().unwrap();
        fs::write(upper.path().join("f"), "").unwrap();
        let error = make_shared(upper.path(), [&LayerPath::new("f/g").unwrap()], |_| None).unwrap_err();
        assert!(matches!(&error, VmError::Sandbox { path, .. } if path.ends_with("f")), "{error}");
    }
}
