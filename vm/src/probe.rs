//! Can this machine and user run VMs? By trying.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{WaitOptions, getegid, geteuid, waitpid};

use crate::error::VmError;
use crate::launcher::Launcher;
use crate::ns::protocol::{FromVm, ToVm, receive, send};
use crate::sandbox;

/// One thing that a VM needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `fuse-device`, `user-namespaces`, `overlayfs` or `fuse-in-namespace`.
    pub name: &'static str,
    /// Whether it is there. False also for what could not be tried because an earlier check failed.
    pub ok: bool,
    /// What is wrong and how to cure it; `None` if nothing is.
    pub remedy: Option<String>,
}

/// Tries everything that a run needs, with a sandbox in `directory` (where sandboxes will be; made if missing). Forks, so
/// call it before threads start. A few milliseconds.
pub fn probe(directory: &Path) -> Vec<Check> {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let mut checks = vec![check("fuse-device", device.map(drop).map_err(|source| VmError::FuseDevice { source }.to_string()))];
    let sandbox = directory.join(format!(".probe-{}", std::process::id()));
    let outcome = try_namespaces(&sandbox);
    let _ = fs::remove_dir_all(&sandbox);
    let (passed, error) = match outcome {
        Ok(()) => (usize::MAX, None),
        Err((passed, error)) => (passed, Some(error.to_string())),
    };
    for (at, name) in ["user-namespaces", "overlayfs", "fuse-in-namespace"].into_iter().enumerate() {
        let result = match at.cmp(&passed) {
            std::cmp::Ordering::Less => Ok(()),
            std::cmp::Ordering::Equal => Err(error.clone().unwrap_or_default()),
            std::cmp::Ordering::Greater => Err("not tried, since an earlier check failed".to_owned()),
        };
        checks.push(check(name, result));
    }
    checks
}

fn check(name: &'static str, result: Result<(), String>) -> Check {
    Check { name, ok: result.is_ok(), remedy: result.err() }
}

/// On failure, how many steps passed.
fn try_namespaces(sandbox: &Path) -> Result<(), (usize, VmError)> {
    let early = |error: VmError| (0, error);
    sandbox::prepare(sandbox).map_err(early)?;
    let (socket, child) = Launcher::fork().map_err(early)?.into_child().ok_or((0, VmError::Died))?;
    let broken = |error: io::Error| VmError::set_up("talk to the VM", error);
    let message = ToVm::Probe { sandbox: sandbox.as_os_str().as_bytes().to_vec(), uid: geteuid().as_raw(), gid: getegid().as_raw() };
    let _ = send(&socket, &message);
    let mut passed = 0;
    let outcome = loop {
        match receive(&socket).map_err(|error| (passed, broken(error)))? {
            Some(FromVm::Passed) => passed += 1,
            Some(FromVm::Failed(failure)) => break Err((passed, VmError::from_child(failure, sandbox.to_owned()))),
            _ if passed == 3 => break Ok(()),
            _ => break Err((passed, VmError::Died)),
        }
    };
    let _ = waitpid(Some(child), WaitOptions::empty());
    sandbox::clean(sandbox);
    outcome
}
