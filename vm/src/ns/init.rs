//! Pid 1 of the VM: completes the root, runs the startup scripts, starts the application, passes signals on, reaps, stands
//! until no one uses the VM any more, runs the shutdown scripts, and ends, which takes every other process of the pid
//! namespace with it.

use std::os::unix::net::UnixStream;

use rustix::process::Pid;

use super::child::{die_with, lost};
use super::protocol::{Failure, FromVm, Plan, send};
use super::supervise::{Streams, Supervisor, ending};
use super::{mounts, scripts};
use crate::guard::Entrance;
use crate::guard::kernel_files::{self, Limits};
use crate::sys::process::exit_now;

/// Runs pid 1; returns only if the application could not be started. `child` is the process that forked it, `ignored` the
/// signals to give back to the application.
pub(crate) fn run(socket: &UnixStream, plan: &Plan, staging: mounts::Staging, child: Pid, ignored: &[i32]) -> Failure {
    let Err(failure) = start(socket, plan, staging, child, ignored);
    failure
}

fn start(socket: &UnixStream, plan: &Plan, staging: mounts::Staging, child: Pid, ignored: &[i32]) -> Result<std::convert::Infallible, Failure> {
    die_with(child)?;
    let mut warnings = staging.enter(plan)?;
    // What it has open is the host's.
    drop(staging);
    let limits = if plan.guard.strict { Some(Limits::open()?) } else { None };
    if plan.guard.covers_kernel_files() {
        warnings.extend(kernel_files::cover()?);
    }
    for warning in warnings {
        send(socket, &FromVm::Warning(warning)).map_err(lost)?;
    }
    send(socket, &FromVm::Mounted).map_err(lost)?;
    let mut supervisor = Supervisor::new(socket, plan, ignored, Entrance::Started, limits)?;
    let started = || drop(send(socket, &FromVm::Started));
    if plan.idle {
        started();
        supervisor.stand()?;
        supervisor.kill_all();
        exit_now(0)
    }
    scripts::startup(&mut supervisor, plan)?;
    let application = supervisor.spawn(plan, Streams::Ours, || Ok(()))?;
    supervisor.start_beside(plan)?;
    let status = supervisor.attend(application, started)?;
    supervisor.attend_beside()?;
    send(socket, &ending(status)).map_err(lost)?;
    // Programs that joined may go on; what the application left behind goes on with them.
    supervisor.stand()?;
    for warning in scripts::shutdown(&mut supervisor, plan, status) {
        let _ = send(socket, &FromVm::Warning(warning));
    }
    let _ = send(socket, &FromVm::Finished);
    exit_now(0)
}
