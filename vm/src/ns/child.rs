//! The forked child: makes the namespaces, mounts FUSE and overlayfs, starts pid 1, and waits for it.
//!
//! The namespaces are made at once, while the parent still resolves the image; the rest waits for the plan. The child dies
//! with the parent (`PR_SET_PDEATHSIG`), and pid 1 with the child, so that nothing survives a `kill -9` of the parent.

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getppid, set_parent_process_death_signal, waitpid};

use super::protocol::{Failure, FromVm, Plan, Step, ToVm, receive_with, send, send_with};
use super::{init, mounts};
use crate::sys::process::{Forked, exit_now, fork_single_threaded, unshare_namespaces};
use crate::sys::signals;

/// Signals that a terminal or a process group may send to all of us: they are for the application alone. SIGTTOU would stop
/// who gives the terminal to the application.
pub(crate) const FOR_THE_APPLICATION: [i32; 9] =
    [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP, libc::SIGTSTP, libc::SIGTTOU, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM];

/// Runs the child to its end. `parent` is the process that forked it.
pub(crate) fn main(socket: UnixStream, parent: Pid) -> ! {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&socket, parent)));
    match outcome {
        Ok(Ok(())) => exit_now(0),
        Ok(Err(failure)) => {
            let _ = send(&socket, &FromVm::Failed(failure));
            exit_now(1)
        }
        Err(_) => exit_now(101),
    }
}

fn run(socket: &UnixStream, parent: Pid) -> Result<(), Failure> {
    die_with(parent)?;
    let ignored = signals::ignore(&FOR_THE_APPLICATION);
    let unshared = unshare_namespaces();
    match receive_with(socket) {
        // What came with the plan stays open until this process and pid 1 end.
        Ok(Some((ToVm::Start(plan), _held))) => {
            unshared.map_err(|errno| Failure::new(Step::Unshare, errno))?;
            start(socket, &plan, parent, &ignored)
        }
        Ok(Some((ToVm::Probe { sandbox, uid, gid }, _))) => {
            unshared.map_err(|errno| Failure::new(Step::Unshare, errno))?;
            probe(socket, &sandbox, uid, gid)
        }
        // The launcher was dropped.
        _ => Ok(()),
    }
}

/// Has this process killed when its parent ends.
pub(crate) fn die_with(parent: Pid) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|errno| Failure::at("PR_SET_PDEATHSIG", "", errno))?;
    // It may have ended before the call. In another pid namespace the parent has no pid at all.
    if getppid().is_some_and(|pid| pid != parent) {
        exit_now(1);
    }
    Ok(())
}

fn start(socket: &UnixStream, plan: &Plan, parent: Pid, ignored: &[i32]) -> Result<(), Failure> {
    mounts::write_maps(plan.uid, plan.gid, plan.inner_uid, plan.inner_gid)?;
    // A change of credentials may have cleared it.
    die_with(parent)?;
    mounts::leave_host_mounts()?;
    let staging = mounts::Staging::new(&plan.sandbox)?;
    let fds = staging.mount_fuse(plan)?;
    send_with(socket, &FromVm::Fuse, &fds).map_err(lost)?;
    // Only the parent holds the device now: if it dies, the filesystem dies, and nobody waits for an answer for ever.
    drop(fds);
    staging.mount_root(plan)?;
    let me = rustix::process::getpid();
    match fork_single_threaded().map_err(lost)? {
        Forked::Child => {
            let failure = init::run(socket, plan, staging, me, ignored);
            let _ = send(socket, &FromVm::Failed(failure));
            exit_now(1)
        }
        Forked::Parent(pid) => {
            send(socket, &FromVm::Init(pid.as_raw_nonzero().get())).map_err(lost)?;
            // While this end is open the parent would not notice that pid 1 died. The process ends right after it.
            while let Err(Errno::INTR) = waitpid(Some(pid), WaitOptions::empty()) {}
            Ok(())
        }
    }
}

/// Tries one thing after another and says how each went.
fn probe(socket: &UnixStream, sandbox: &[u8], uid: u32, gid: u32) -> Result<(), Failure> {
    mounts::write_maps(uid, gid, uid, gid)?;
    mounts::leave_host_mounts()?;
    let report = |result: Result<(), Failure>| send(socket, &result.map_or_else(FromVm::Failed, |()| FromVm::Passed)).map_err(lost);
    report(Ok(()))?;
    let staging = mounts::Staging::new(sandbox);
    let on = |act: &dyn Fn(&mounts::Staging) -> Result<(), Failure>| match &staging {
        Ok(staging) => act(staging),
        Err(failure) => Err(failure.clone()),
    };
    report(on(&mounts::Staging::try_overlay))?;
    report(on(&|staging| staging.try_fuse(uid, gid)))?;
    report(on(&mounts::Staging::try_terminals))
}

pub(crate) fn lost(error: std::io::Error) -> Failure {
    Failure::at("talk to the parent", "", Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
