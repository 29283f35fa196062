//! The container's directory on disk: what a run finds there and what it leaves.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::error::VmError;

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
