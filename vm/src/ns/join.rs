//! The forked child that joins a VM which runs already: enters the namespaces of its pid 1, and executes a command there.
//!
//! Only a child of a process changes its pid namespace, so there are two: this one, which stays outside that namespace and
//! attends, and the program, which has pid 1 of the VM for a parent once this one is gone. Both are in the terminal session
//! of the `turbo` that joins. The program dies with it, and with the VM.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use rustix::process::{Pid, getpid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::child::{FOR_THE_APPLICATION, die_with};
use super::protocol::{Failure, FromVm, Plan, Step, ToVm, receive_with, send};
use super::supervise::{Streams, Supervisor, ending};
use crate::guard::Entrance;
use crate::guard::kernel_files::Limits;
use crate::sys::process::exit_now;
use crate::sys::signals;

/// Namespaces that a VM may have of its own, beside the user namespace.
const NAMESPACES: [(&str, ThreadNameSpaceType); 6] = [
    ("mnt", ThreadNameSpaceType::MOUNT),
    ("pid", ThreadNameSpaceType::PROCESS_ID),
    ("net", ThreadNameSpaceType::NETWORK),
    ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    ("cgroup", ThreadNameSpaceType::CONTROL_GROUP),
];

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
    // Anything else means that the joiner was dropped.
    let Ok(Some((ToVm::Join(plan), fds))) = receive_with(socket) else { return Ok(()) };
    let pidfd = fds.into_iter().next().ok_or_else(|| Failure::new(Step::Join, Errno::BADF))?;
    // Opened while the host's `/proc` is in sight.
    let limits = if plan.guard.strict { Some(Limits::open()?) } else { None };
    enter(&pidfd, plan.join)?;
    drop(pidfd);
    // The change of credentials may have cleared it.
    die_with(parent)?;
    execute(socket, &plan, &ignored, limits)
}

/// Enters the namespaces that the VM does not share with us: whoever has all rights in its user namespace has them in those
/// that were made in it, and in no other.
fn enter(pidfd: &OwnedFd, init: i32) -> Result<(), Failure> {
    let link = |who: &str, name: &str| std::fs::read_link(format!("/proc/{who}/ns/{name}")).ok();
    let differs = |name: &str| link("self", name) != link(&init.to_string(), name);
    let own = NAMESPACES.iter().filter(|(name, _)| differs(name)).map(|(_, flag)| *flag);
    let all = own.fold(ThreadNameSpaceType::USER, |all, flag| all | flag);
    move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(pidfd), all).map_err(|errno| Failure::new(Step::Join, errno))
}

fn execute(socket: &UnixStream, plan: &Plan, ignored: &[i32], limits: Option<Limits>) -> Result<(), Failure> {
    let me = getpid();
    let mut supervisor = Supervisor::new(socket, plan, ignored, Entrance::Joined, limits)?;
    // A fork fails with ENOMEM if pid 1 of the namespace has ended.
    let program = supervisor.spawn(plan, Streams::Ours, || die_with(me)).map_err(|failure| Failure { step: Step::Join, ..failure })?;
    let status = supervisor.attend(program, || drop(send(socket, &FromVm::Started)))?;
    let _ = send(socket, &ending(status));
    let _ = send(socket, &FromVm::Finished);
    Ok(())
}
