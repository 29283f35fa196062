//! What works here, found out by a child that does it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{WaitOptions, getegid, geteuid, waitpid};

use crate::error::VmError;
use crate::launcher::Launcher;
use crate::ns::protocol::{FromVm, ToVm, receive, send};
use crate::sandbox;

/// How each step went; [`VmError::NotTried`] after a failure that leaves no way to try.
pub(super) struct Attempts {
    pub(super) namespaces: Result<(), VmError>,
    pub(super) overlay: Result<(), VmError>,
    pub(super) fuse: Result<(), VmError>,
    pub(super) terminals: Result<(), VmError>,
}

impl Attempts {
    /// Tries, with a sandbox in `directory`.
    pub(super) fn make(directory: &Path) -> Self {
        let sandbox = directory.join(format!("probe-{}", std::process::id()));
        let mut results = run(&sandbox).unwrap_or_else(|error| vec![Err(error)]).into_iter();
        let _ = fs::remove_dir_all(&sandbox);
        let mut next = || results.next().unwrap_or(Err(VmError::NotTried));
        Self { namespaces: next(), overlay: next(), fuse: next(), terminals: next() }
    }
}

fn run(sandbox: &Path) -> Result<Vec<Result<(), VmError>>, VmError> {
    // Where no sandbox can be made the rest is still worth trying: that failure will be the overlay's.
    let prepared = sandbox::prepare(sandbox);
    let (socket, child) = Launcher::fork()?.into_child().ok_or(VmError::Died)?;
    let message = ToVm::Probe { sandbox: sandbox.as_os_str().as_bytes().to_vec(), uid: geteuid().as_raw(), gid: getegid().as_raw() };
    let _ = send(&socket, &message);
    let mut results = Vec::new();
    loop {
        match receive(&socket) {
            Ok(Some(FromVm::Passed)) => results.push(Ok(())),
            Ok(Some(FromVm::Failed(failure))) => results.push(Err(VmError::from_child(failure, sandbox.to_owned()))),
            _ => break,
        }
    }
    if results.is_empty() {
        results.push(Err(VmError::Died));
    }
    if let (Err(error), Some(overlay)) = (prepared, results.get_mut(1)) {
        *overlay = Err(error);
    }
    let _ = waitpid(Some(child), WaitOptions::empty());
    sandbox::clean(sandbox);
    Ok(results)
}
