//! Starting a program in a VM that runs already.
//!
//! Whoever runs the VM gives out a [`Ticket`]. The joining process turns it into a [`Held`] pid 1, makes sure that the VM
//! still runs, and starts its command there; from then on the run is like any other: signals, terminal and exit code pass
//! through. The VM's end ends the command, but not the other way round.

use std::ffi::OsString;
use std::fs::File;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, waitpid};
use serde::{Deserialize, Serialize};

use crate::error::VmError;
use crate::ns::join;
use crate::ns::protocol::{Plan, ToVm, send_with};
use crate::running::{Running, owns_terminal};
use crate::sys::process::{Forked, fork_single_threaded};

/// What it takes to join a VM, to be passed to another process of the same user. Holds how programs are started in it, but
/// no environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ticket {
    plan: Plan,
}

/// A VM's pid 1, whose number cannot come to mean another process any more.
#[derive(Debug)]
pub struct Held {
    pidfd: OwnedFd,
    plan: Plan,
}

/// A command to run in a VM that runs already.
#[derive(Debug)]
pub struct JoinSpec {
    /// The VM.
    pub vm: Held,
    /// As [`crate::RunSpec::command`].
    pub command: Vec<OsString>,
    /// As [`crate::RunSpec::env`].
    pub env: Vec<(OsString, OsString)>,
    /// As [`crate::RunSpec::working_dir`].
    pub working_dir: PathBuf,
    /// As [`crate::RunSpec::working_dir_required`].
    pub working_dir_required: bool,
    /// From when [`crate::Timings`] count.
    pub since: Instant,
}

/// A forked child that waits to join a VM. Dropping it ends the child.
#[derive(Debug)]
pub struct Joiner {
    /// `None` once the run has taken them over.
    child: Option<(UnixStream, Pid)>,
}

impl Ticket {
    pub(crate) fn new(plan: &Plan, init: i32) -> Self {
        let plan = Plan { argv: Vec::new(), env: Vec::new(), startup_scripts: Vec::new(), shutdown_scripts: Vec::new(), join: init, ..plan.clone() };
        Self { plan }
    }

    /// The VM's pid 1, as a process id of the host.
    pub fn pid(&self) -> i32 {
        self.plan.join
    }

    /// Takes hold of pid 1. The ticket may be old and the number reused: ask whoever gave it out, *after* this, whether the
    /// VM still runs.
    ///
    /// # Errors
    /// [`VmError::Ended`] if there is no such process.
    pub fn hold(self) -> Result<Held, VmError> {
        let pid = Pid::from_raw(self.plan.join).filter(|pid| pid.as_raw_nonzero().get() > 1).ok_or(VmError::Ended)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
            rustix::io::Errno::SRCH => VmError::Ended,
            errno => VmError::Join { source: errno.into() },
        })?;
        Ok(Held { pidfd, plan: self.plan })
    }
}

impl Joiner {
    /// Forks the child; as [`crate::Launcher::fork`].
    ///
    /// # Errors
    /// [`VmError::SetUp`] if there is more than one thread, or no process can be made.
    pub fn fork() -> Result<Self, VmError> {
        let parent = getpid();
        let (ours, theirs) = UnixStream::pair().map_err(|error| VmError::set_up("make a socket pair", error))?;
        match fork_single_threaded().map_err(|error| VmError::set_up("fork", error))? {
            Forked::Child => {
                drop(ours);
                join::main(theirs, parent)
            }
            Forked::Parent(pid) => Ok(Self { child: Some((ours, pid)) }),
        }
    }

    /// Starts the command in the VM. As [`crate::Launcher::start`]; what [`Running`] says of the VM's end is said of the
    /// command's.
    ///
    /// # Errors
    /// [`VmError::Ended`] if the VM ended meanwhile, [`VmError::Join`] if it may not be entered; otherwise as
    /// [`crate::Launcher::start`].
    pub fn start(mut self, spec: JoinSpec) -> Result<Running, VmError> {
        if spec.command.is_empty() {
            return Err(VmError::NoCommand);
        }
        let path = spec.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_bytes().to_vec());
        let own_group = File::open("/dev/tty").is_err();
        let plan = Plan {
            argv: spec.command.into_iter().map(OsStringExt::into_vec).collect(),
            env: spec.env.iter().map(|(name, value)| [name.as_bytes(), value.as_bytes()].join(&b'=')).collect(),
            path: path.unwrap_or_default(),
            working_dir: spec.working_dir.into_os_string().into_vec(),
            working_dir_required: spec.working_dir_required,
            own_group,
            terminal: owns_terminal(),
            ..spec.vm.plan
        };
        let (socket, pid) = self.child.take().ok_or(VmError::Died)?;
        let mut running = Running::new(socket, pid, None, plan.clone(), spec.since, own_group);
        let _ = send_with(running.socket(), &ToVm::Join(Box::new(plan)), &[spec.vm.pidfd]);
        running.run_until_started()?;
        Ok(running)
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        if let Some((socket, pid)) = self.child.take() {
            // Not only closed: a child that was forked after this one has a copy of it.
            let _ = socket.shutdown(Shutdown::Both);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}
