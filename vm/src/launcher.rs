//! Starting a run.
//!
//! [`Launcher::fork`] comes first in `main`; the child makes its namespaces while the caller finds out what to run.
//! [`Launcher::start`] then sends the plan and serves the filesystems. Nothing of it asks a layer for data but what the
//! kernel asks for: the root directory, and the path of the command.

use std::ffi::OsString;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client_store::LayerView;
use layer_format::LayerPath;
use rustix::process::{Pid, WaitOptions, getegid, geteuid, getpid, waitpid};

use crate::error::VmError;
use crate::fuse::Ids;
use crate::guard::Guard;
use crate::ns::child;
use crate::ns::protocol::{FromVm, Plan, ToVm, receive_with, send_with};
use crate::running::{Running, owns_terminal};
use crate::sandbox;
use crate::serving::View;
use crate::spec::{Mode, RunSpec};
use crate::sys::process::{Forked, fork_single_threaded};

/// A forked child that waits to become the VM. Dropping it ends the child.
#[derive(Debug)]
pub struct Launcher {
    /// `None` once the run has taken them over.
    child: Option<(UnixStream, Pid)>,
}

impl Launcher {
    /// Forks the child. Call it at the very start of `main`: the child inherits this process's directory, descriptors,
    /// limits and signal settings, and gives them to the application.
    ///
    /// # Errors
    /// [`VmError::SetUp`] if there is more than one thread, or no process can be made. That namespaces are not allowed is
    /// reported by [`Launcher::start`].
    pub fn fork() -> Result<Self, VmError> {
        let parent = getpid();
        let (ours, theirs) = UnixStream::pair().map_err(|error| VmError::set_up("make a socket pair", error))?;
        match fork_single_threaded().map_err(|error| VmError::set_up("fork", error))? {
            Forked::Child => {
                drop(ours);
                child::main(theirs, parent)
            }
            Forked::Parent(pid) => Ok(Self { child: Some((ours, pid)) }),
        }
    }

    /// Starts the command of `spec` over `layers`, lowest first. Returns when it was executed, which may need data of the
    /// layers and hence the network. From here until [`Running`] is dropped, signals to this process are handled.
    ///
    /// # Errors
    /// [`VmError::NotFound`], [`VmError::NotExecutable`] and [`VmError::WorkingDir`] if the command cannot be executed;
    /// otherwise what the machine does not allow, with the remedy.
    pub fn start(mut self, spec: RunSpec, layers: Vec<Arc<dyn LayerView>>) -> Result<Running, VmError> {
        spec.check()?;
        let sandbox = absolute(&spec.sandbox)?;
        sandbox::prepare(&sandbox)?;
        let binds = usable_binds(&spec)?;
        let mut view = View::new(&spec, &layers, &sandbox)?;
        let plan = plan(&spec, &view, &sandbox, &binds)?;
        let ids = Ids { uid: plan.inner_uid, gid: plan.inner_gid };
        let own_group = plan.own_group;
        let (socket, pid) = self.child.take().ok_or(VmError::Died)?;
        let mut running = Running::new(socket, pid, Some(sandbox.clone()), plan.clone(), spec.since, own_group);
        running.remove_at_end(std::mem::take(&mut view.made));
        let held = spec.held.as_deref().map(|file| file.as_fd().try_clone_to_owned()).transpose();
        let held: Vec<OwnedFd> = held.map_err(|error| VmError::set_up("copy a descriptor", error))?.into_iter().collect();
        // A child that failed early has closed its end, but what it said is still there to be read.
        let _ = send_with(running.socket(), &ToVm::Start(Box::new(plan)), &held);
        drop(held);
        let devices = receive_devices(running.socket(), &sandbox)?;
        if let Err(error) = view.serve(&spec, layers, &binds, devices, ids, &mut running) {
            // A child that failed meanwhile took its mounts along; what it says comes first.
            return Err(early_failure(running.socket(), &sandbox).unwrap_or(error));
        }
        running.run_until_started()?;
        if spec.idle {
            running.ignore_signals();
        }
        Ok(running)
    }

    /// For [`crate::probe()`]: the socket and the child's pid.
    pub(crate) fn into_child(mut self) -> Option<(UnixStream, Pid)> {
        self.child.take()
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        if let Some((socket, pid)) = self.child.take() {
            // Not only closed: a child that was forked after this one has a copy of it.
            let _ = socket.shutdown(Shutdown::Both);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

fn receive_devices(socket: &UnixStream, sandbox: &Path) -> Result<Vec<OwnedFd>, VmError> {
    match receive_with(socket).map_err(|error| VmError::set_up("talk to the VM", error))? {
        Some((FromVm::Fuse, devices)) => Ok(devices),
        Some((FromVm::Failed(failure), _)) => Err(VmError::from_child(failure, sandbox.to_owned())),
        _ => Err(VmError::Died),
    }
}

/// What the VM's processes report instead of starting the application, if they do.
fn early_failure(socket: &UnixStream, sandbox: &Path) -> Option<VmError> {
    loop {
        match receive_with(socket).ok()?? {
            (FromVm::Failed(failure), _) => return Some(VmError::from_child(failure, sandbox.to_owned())),
            (FromVm::Init(_) | FromVm::Mounted | FromVm::Warning(_), _) => {}
            _ => return None,
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, VmError> {
    std::path::absolute(path).map_err(|source| VmError::Sandbox { path: path.to_owned(), source })
}

/// Sources and targets, absolute, of the mounts that can be made.
fn usable_binds(spec: &RunSpec) -> Result<Vec<(PathBuf, PathBuf)>, VmError> {
    let mut binds = Vec::new();
    for mount in &spec.mounts {
        let source = absolute(&mount.source)?;
        let target = mount.target.clone().unwrap_or_else(|| source.clone());
        if let Err(error) = source.metadata() {
            tracing::warn!(source = %source.display(), "mount left out: {} cannot be used: {error}", source.display());
        } else if !target.is_absolute() || LayerPath::from_absolute(target.as_os_str().as_bytes()).map_or(true, |path| path.is_root()) {
            tracing::warn!(target = %target.display(), "mount left out: {} is not an absolute path below /, without `..`", target.display());
        } else {
            binds.push((source, target));
        }
    }
    Ok(binds)
}

fn plan(spec: &RunSpec, view: &View, sandbox: &Path, binds: &[(PathBuf, PathBuf)]) -> Result<Plan, VmError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    let path = spec.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_bytes().to_vec());
    Ok(Plan {
        sandbox: bytes(sandbox),
        argv: spec.command.iter().cloned().map(OsStringExt::into_vec).collect(),
        beside: spec.beside.iter().map(|command| command.iter().cloned().map(OsStringExt::into_vec).collect()).collect(),
        env: spec.env.iter().map(|(name, value)| [name.as_bytes(), value.as_bytes()].join(&b'=')).collect(),
        path: path.unwrap_or_default(),
        working_dir: bytes(&spec.working_dir),
        working_dir_required: spec.working_dir_required,
        binds: binds.iter().map(|(source, target)| (bytes(source), bytes(target))).collect(),
        uid,
        gid,
        inner_uid: if spec.map_root { 0 } else { uid },
        inner_gid: if spec.map_root { 0 } else { gid },
        fuse: view.fuse.clone(),
        regions: view.regions(),
        private_tmp: view.has_private_tmp(),
        host_shm: view.has_host_shm(),
        guard: Guard { strict: spec.rules.mode(&LayerPath::root()) >= Mode::Full, root_inside: spec.map_root || uid == 0, root_outside: uid == 0 },
        own_group: std::fs::File::open("/dev/tty").is_err(),
        terminal: !spec.idle && owns_terminal(),
        startup_scripts: if spec.idle { Vec::new() } else { commands(&spec.scripts.startup) },
        shutdown_scripts: if spec.idle { Vec::new() } else { commands(&spec.scripts.shutdown) },
        idle: spec.idle,
        join: 0,
    })
}

fn commands(commands: &[Vec<OsString>]) -> Vec<Vec<Vec<u8>>> {
    commands.iter().map(|command| command.iter().cloned().map(OsStringExt::into_vec).collect()).collect()
}
