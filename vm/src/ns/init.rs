//! Pid 1 of the VM: completes the root, starts the application, passes signals on, reaps, and ends with the application,
//! which takes every other process of the pid namespace with it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, setpgid, wait};

use super::child::die_with;
use super::protocol::{Failure, FromVm, Plan, ToVm, receive, send};
use super::{exec, mounts};
use crate::guard::Entrance;
use crate::guard::kernel_files::{self, Limits};
use crate::sys::process::{Forked, exit_now, fork_single_threaded};
use crate::sys::signals::{Watch, reset, unblock_all};

/// Runs pid 1; returns only if the application could not be started. `child` is the process that forked it, `ignored` the
/// signals to give back to the application.
pub(crate) fn run(socket: &UnixStream, plan: &Plan, staging: mounts::Staging, child: Pid, ignored: &[i32]) -> Failure {
    match start(socket, plan, staging, child, ignored) {
        Ok(failure) | Err(failure) => failure,
    }
}

fn start(socket: &UnixStream, plan: &Plan, staging: mounts::Staging, child: Pid, ignored: &[i32]) -> Result<Failure, Failure> {
    die_with(child)?;
    let mut warnings = staging.enter(plan)?;
    // What it has open is the host's.
    drop(staging);
    let limits = if plan.guard.strict { Some(Limits::open()?) } else { None };
    if plan.guard.covers_kernel_files() {
        warnings.extend(kernel_files::cover()?);
    }
    for warning in warnings {
        send(socket, &FromVm::Warning(warning)).map_err(|error| broken("socket", &error))?;
    }
    send(socket, &FromVm::Mounted).map_err(|error| broken("socket", &error))?;
    let watch = Watch::start(&[libc::SIGCHLD]).map_err(|error| broken("signals", &error))?;
    // Closed by a successful exec; otherwise it carries the failure.
    let (from_exec, to_parent) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Failure::at("pipe", "", errno))?;
    match fork_single_threaded().map_err(|error| broken("fork", &error))? {
        Forked::Child => become_application(plan, limits.as_ref(), watch, ignored, &to_parent),
        Forked::Parent(application) => {
            drop((to_parent, limits));
            Ok(supervise(socket, application, &watch, from_exec))
        }
    }
}

fn become_application(plan: &Plan, limits: Option<&Limits>, watch: Watch, ignored: &[i32], to_parent: &OwnedFd) -> ! {
    drop(watch);
    if plan.own_group {
        let _ = setpgid(None, None);
    }
    reset(ignored);
    // The Rust runtime of the parent ignores it; programs do not expect that.
    reset(&[libc::SIGPIPE]);
    unblock_all();
    let failure = match plan.guard.confine(limits, Entrance::Started) {
        Ok(()) => exec::exec(plan),
        Err(failure) => failure,
    };
    let bytes = serde_json::to_vec(&failure).unwrap_or_default();
    let _ = rustix::io::write(to_parent, &bytes);
    exit_now(127)
}

/// The loop of pid 1. Returns the failure if the application could not be executed, else ends the process.
fn supervise(socket: &UnixStream, application: Pid, watch: &Watch, from_exec: OwnedFd) -> Failure {
    let mut from_exec = Some(from_exec);
    loop {
        let mut fds = vec![PollFd::new(socket, PollFlags::IN), PollFd::from_borrowed_fd(watch.fd(), PollFlags::IN)];
        fds.extend(from_exec.as_ref().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        if !matches!(poll(&mut fds, None), Ok(_) | Err(Errno::INTR)) {
            exit_now(1);
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.get(2) == Some(&true)
            && let Some(fd) = from_exec.take()
            && let Some(failure) = report_start(socket, &fd)
        {
            return failure;
        }
        watch.take();
        reap(socket, application, &mut from_exec);
        if ready[0] {
            match receive(socket) {
                Ok(Some(ToVm::Signal(signal))) => pass_on(application, signal),
                Ok(Some(_)) => {}
                // The parent is gone.
                Ok(None) | Err(_) => exit_now(1),
            }
        }
    }
}

/// Tells the parent that the application runs, or returns why not.
fn report_start(socket: &UnixStream, from_exec: &OwnedFd) -> Option<Failure> {
    let mut bytes = [0; 16384];
    match rustix::io::read(from_exec, &mut bytes) {
        Ok(len) if len > 0 => Some(serde_json::from_slice(&bytes[..len]).unwrap_or_else(|_| Failure::at("start the application", "", Errno::IO))),
        _ => {
            let _ = send(socket, &FromVm::Started);
            None
        }
    }
}

fn reap(socket: &UnixStream, application: Pid, from_exec: &mut Option<OwnedFd>) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
        if pid != application {
            continue;
        }
        if let Some(signal) = status.stopping_signal() {
            let _ = send(socket, &FromVm::Stopped(signal));
            continue;
        }
        if let Some(fd) = from_exec.take()
            && let Some(failure) = report_start(socket, &fd)
        {
            let _ = send(socket, &FromVm::Failed(failure));
            exit_now(1);
        }
        let _ = send(socket, &ending(status));
        exit_now(0);
    }
}

fn ending(status: WaitStatus) -> FromVm {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => FromVm::Exited(code),
        (None, signal) => FromVm::Signaled(signal.unwrap_or(libc::SIGKILL)),
    }
}

fn pass_on(application: Pid, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = kill_process(application, signal);
    }
}

fn broken(what: &str, error: &io::Error) -> Failure {
    Failure::at(what, "", Errno::from_io_error(error).unwrap_or(Errno::IO))
}
