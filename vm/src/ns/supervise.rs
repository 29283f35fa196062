//! Attending to a process until it ends: signals from the parent go to it, what it does is reported, orphans are reaped.
//!
//! Pid 1 attends to the application and to the scripts around it; the child that joins a VM attends to the joined program.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group, setpgid, wait};
use rustix::termios::tcsetpgrp;

use super::freeze::Freezer;
use super::protocol::{Failure, FromVm, Plan, Step, ToVm, receive, send};
use super::{exec, regions};
use crate::guard::Entrance;
use crate::guard::kernel_files::Limits;
use crate::sys::process::{Forked, exit_now, fork_joined, fork_single_threaded, kill_all};
use crate::sys::signals::{Watch, reset, unblock_all};

/// Exit code of a forked process that could not execute its program.
const NOT_EXECUTED: i32 = 127;

/// A process that was forked to execute a program.
pub(crate) struct Spawned {
    pid: Pid,
    /// Closed by a successful exec; otherwise it carries the failure. `None` once it was read.
    from_exec: Option<OwnedFd>,
}

/// What becomes of the standard streams of a program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// They are turbo's own.
    Ours,
    /// It reads nothing, and prints to stderr: it stands beside the application, whose streams those are.
    Aside,
}

/// The loop of a process that has others to look after.
pub(crate) struct Supervisor<'a> {
    socket: &'a UnixStream,
    /// Of the VM.
    plan: &'a Plan,
    /// Tells of ended children; `None` in what was forked.
    watch: Option<Watch>,
    /// Signals to give back to programs.
    ignored: &'a [i32],
    /// Only pid 1 has one; who joins has none.
    freezer: Option<Freezer>,
    limits: Option<Limits>,
    /// Commands that run beside the application.
    beside: Vec<Pid>,
    /// Whether the parent wants the VM to end.
    finish: bool,
}

impl<'a> Supervisor<'a> {
    /// `limits` are those of a strict VM.
    pub(crate) fn new(socket: &'a UnixStream, plan: &'a Plan, ignored: &'a [i32], entrance: Entrance, limits: Option<Limits>) -> Result<Self, Failure> {
        let watch = Watch::start(&[libc::SIGCHLD]).map_err(|error| broken("signals", &error))?;
        let freezer = (entrance == Entrance::Started).then(Freezer::open);
        Ok(Self { socket, plan, watch: Some(watch), ignored, freezer, limits, beside: Vec::new(), finish: false })
    }

    /// Forks a process that executes the plan's command. `prepare` runs in it first.
    pub(crate) fn spawn(&mut self, plan: &Plan, streams: Streams, prepare: impl FnOnce() -> Result<(), Failure>) -> Result<Spawned, Failure> {
        let (from_exec, to_parent) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Failure::at("pipe", "", errno))?;
        let forked = if self.freezer.is_some() { fork_single_threaded() } else { fork_joined() };
        match forked.map_err(|error| broken("fork", &error))? {
            Forked::Child => {
                self.watch = None;
                let failure = match prepare() {
                    Ok(()) => self.become_program(plan, streams),
                    Err(failure) => failure,
                };
                let bytes = serde_json::to_vec(&failure).unwrap_or_default();
                let _ = rustix::io::write(&to_parent, &bytes);
                exit_now(NOT_EXECUTED)
            }
            Forked::Parent(pid) => Ok(Spawned { pid, from_exec: Some(from_exec) }),
        }
    }

    /// Starts the commands that run beside the application. What cannot be executed is told on its stderr.
    pub(crate) fn start_beside(&mut self, plan: &Plan) -> Result<(), Failure> {
        for argv in &plan.beside {
            match fork_single_threaded().map_err(|error| broken("fork", &error))? {
                Forked::Parent(pid) => self.beside.push(pid),
                Forked::Child => {
                    self.watch = None;
                    let failure = self.become_program(&Plan { argv: argv.clone(), terminal: false, ..plan.clone() }, Streams::Ours);
                    let text = format!("turbo: {} cannot be started: {}\n", failure.path, io::Error::from_raw_os_error(failure.errno));
                    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
                    exit_now(NOT_EXECUTED)
                }
            }
        }
        Ok(())
    }

    /// Attends to what runs beside the application until the last of it has ended, or the parent wants the VM to end.
    pub(crate) fn attend_beside(&mut self) -> Result<(), Failure> {
        while !self.beside.is_empty() && !self.finish {
            self.turn(None, &mut || ())?;
        }
        Ok(())
    }

    /// Attends to a process to its end. `started` is called when its program was executed.
    ///
    /// Ends this process, and with pid 1 the VM, if the parent is gone.
    pub(crate) fn attend(&mut self, mut process: Spawned, mut started: impl FnMut()) -> Result<WaitStatus, Failure> {
        loop {
            if let Some(status) = self.turn(Some(&mut process), &mut started)? {
                return Ok(status);
            }
        }
    }

    /// Attends to what is left until [`ToVm::Finish`], which may have come already.
    pub(crate) fn stand(&mut self) -> Result<(), Failure> {
        while !self.finish {
            self.turn(None, &mut || ())?;
        }
        Ok(())
    }

    /// Waits for something to happen, and deals with it. The status of the process, if it ended.
    fn turn(&mut self, mut process: Option<&mut Spawned>, started: &mut impl FnMut()) -> Result<Option<WaitStatus>, Failure> {
        let mut fds = vec![PollFd::new(self.socket, PollFlags::IN)];
        fds.extend(self.watch.as_ref().map(|watch| PollFd::from_borrowed_fd(watch.fd(), PollFlags::IN)));
        let from_exec = process.as_ref().and_then(|process| process.from_exec.as_ref());
        fds.extend(from_exec.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        if !matches!(poll(&mut fds, None), Ok(_) | Err(Errno::INTR)) {
            exit_now(1);
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.get(2) == Some(&true) {
            was_executed(process.as_deref_mut(), started)?;
        }
        if let Some(watch) = &self.watch {
            watch.take();
        }
        let pid = process.as_ref().map(|process| process.pid);
        if let Some(status) = self.reap(pid) {
            was_executed(process, started)?;
            return Ok(Some(status));
        }
        if ready[0] {
            self.on_message(pid);
        }
        Ok(None)
    }

    /// Kills every other process of this pid namespace, and waits for them. Only for pid 1.
    pub(crate) fn kill_all(&mut self) {
        let _ = kill_all(libc::SIGKILL);
        // Children of processes that ended are ours, so none is left when there are no children. Those that joined have their
        // parents outside, and are dead, too.
        while !matches!(wait(WaitOptions::empty()), Err(Errno::CHILD) | Ok(None)) {}
    }

    /// Becomes the plan's command, held down as the VM's guard says; returns only if that fails.
    fn become_program(&self, plan: &Plan, streams: Streams) -> Failure {
        if plan.own_group || plan.terminal {
            let _ = setpgid(None, None);
        }
        if plan.terminal {
            // SIGTTOU is still ignored here.
            let _ = tcsetpgrp(rustix::stdio::stdin(), getpid());
        }
        if streams == Streams::Aside {
            step_aside();
        }
        reset(self.ignored);
        // The Rust runtime of the parent ignores it; programs do not expect that.
        reset(&[libc::SIGPIPE]);
        unblock_all();
        let entrance = if self.freezer.is_some() { Entrance::Started } else { Entrance::Joined };
        match plan.guard.confine(self.limits.as_ref(), entrance) {
            Ok(()) => exec::exec(plan),
            Err(failure) => failure,
        }
    }

    /// Reaps all that has ended: its signal is taken, and comes no second time. The status of `process`, if it has.
    fn reap(&mut self, process: Option<Pid>) -> Option<WaitStatus> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            match (Some(pid) == process, status.stopping_signal()) {
                (true, Some(signal)) => drop(send(self.socket, &FromVm::Stopped(signal))),
                (true, None) => ended = Some(status),
                (false, Some(_)) => {}
                (false, None) => self.beside.retain(|other| *other != pid),
            }
        }
        ended
    }

    fn on_message(&mut self, process: Option<Pid>) {
        match (receive(self.socket), self.freezer.as_mut()) {
            // All that a key of the terminal stopped goes on.
            (Ok(Some(ToVm::Signal(libc::SIGCONT))), _) => process.iter().chain(&self.beside).for_each(|pid| go_on(Some(*pid))),
            (Ok(Some(ToVm::Signal(signal))), _) => process.iter().chain(&self.beside).for_each(|pid| pass_on(Some(*pid), signal)),
            (Ok(Some(ToVm::Foreground)), _) => drop(process.map(|process| tcsetpgrp(rustix::stdio::stdin(), process))),
            (Ok(Some(ToVm::Stop(signal))), Some(freezer)) => match freezer.joined() {
                Some(joined) => {
                    process.iter().chain(&self.beside).for_each(|pid| pass_on(Some(*pid), signal));
                    joined.into_iter().for_each(|pid| pass_on(Pid::from_raw(pid), signal));
                }
                None => drop(kill_all(signal)),
            },
            (Ok(Some(ToVm::Finish)), Some(_)) => {
                self.finish = true;
                let _ = kill_all(libc::SIGKILL);
            }
            (Ok(Some(ToVm::Refresh)), Some(_)) => regions::refresh(self.plan),
            (Ok(Some(ToVm::Freeze)), Some(freezer)) => drop(send(self.socket, &FromVm::Frozen(freezer.freeze()))),
            (Ok(Some(ToVm::Thaw)), Some(freezer)) => {
                freezer.thaw();
                let _ = send(self.socket, &FromVm::Thawed);
            }
            (Ok(Some(_)), _) => {}
            // The parent is gone.
            (Ok(None) | Err(_), _) => exit_now(1),
        }
    }
}

/// Continues a process, with its process group if it leads one.
fn go_on(process: Option<Pid>) {
    if let Some(process) = process {
        let _ = kill_process_group(process, Signal::CONT).or_else(|_| kill_process(process, Signal::CONT));
    }
}

fn pass_on(process: Option<Pid>, signal: i32) {
    if let (Some(process), Some(signal)) = (process, Signal::from_named_raw(signal)) {
        let _ = kill_process(process, signal);
    }
}

/// Once, as soon as it is known: whether the program was executed.
fn was_executed(process: Option<&mut Spawned>, started: &mut impl FnMut()) -> Result<(), Failure> {
    let Some(fd) = process.and_then(|process| process.from_exec.take()) else { return Ok(()) };
    let mut bytes = [0; 16384];
    match rustix::io::read(&fd, &mut bytes) {
        Ok(len) if len > 0 => Err(serde_json::from_slice(&bytes[..len]).unwrap_or_else(|_| Failure::at("start the application", "", Errno::IO))),
        _ => {
            started();
            Ok(())
        }
    }
}

/// See [`Streams::Aside`]. What cannot be done here does no harm.
fn step_aside() {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    if let Ok(null) = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
    }
    let _ = rustix::stdio::dup2_stdout(rustix::stdio::stderr());
}

/// How a process ended, for the parent.
pub(crate) fn ending(status: WaitStatus) -> FromVm {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => FromVm::Exited(code),
        (None, signal) => FromVm::Signaled(signal.unwrap_or(libc::SIGKILL)),
    }
}

pub(crate) fn broken(what: &str, error: &io::Error) -> Failure {
    Failure { path: String::new(), ..Failure::new(Step::Other(what.to_owned()), Errno::from_io_error(error).unwrap_or(Errno::IO)) }
}
