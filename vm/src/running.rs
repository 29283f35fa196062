//! A run in progress: its signals, its end.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpgrp, getpid, getsid, kill_process, waitpid};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

use crate::control::{Answers, Control};
use crate::error::VmError;
use crate::guard::printable;
use crate::joiner::Ticket;
use crate::ns::protocol::{FromVm, Plan, ToVm, receive, send};
use crate::pending::Pending;
use crate::sandbox::{self, Made};
use crate::sys::signals::{Arrived, Watch, ignore, reset};

/// Signals passed on to the application.
const FORWARDED: [i32; 9] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH, libc::SIGTSTP, libc::SIGCONT];

/// How the application ended: exactly one of the two is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code, `0..=255`.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
}

impl ExitStatus {
    /// As a shell would report it: the code, or 128 plus the signal.
    pub fn shell_code(&self) -> i32 {
        self.code.unwrap_or_else(|| 128 + self.signal.unwrap_or(0))
    }
}

/// When what happened, in microseconds after `RunSpec::since`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// The VM's root was complete.
    pub mounted_us: u64,
    /// The command was executed.
    pub started_us: u64,
}

/// A run in progress. While it exists, signals to this process go to the application. Dropping it kills everything in
/// the VM.
#[derive(Debug)]
pub struct Running {
    socket: UnixStream,
    control: Option<Control>,
    child: Option<Pid>,
    init: i32,
    /// `None` of a program that joined: the sandbox is not ours to clean.
    sandbox: Option<PathBuf>,
    /// Directories of the sandbox that go with the run, unless it used them.
    made: Vec<Made>,
    plan: Plan,
    answers: Arc<Answers>,
    since: Instant,
    timings: Timings,
    watch: Option<Watch>,
    terminal: Option<Terminal>,
    pending: Arc<Pending>,
    /// How the application ended, once it has.
    status: Option<ExitStatus>,
}

enum Event {
    Started,
    Ended,
    Other,
}

impl Running {
    pub(crate) fn new(socket: UnixStream, child: Pid, sandbox: Option<PathBuf>, plan: Plan, since: Instant, own_group: bool) -> Self {
        let terminal = if own_group { None } else { Terminal::find() };
        Self {
            socket,
            control: None,
            child: Some(child),
            init: plan.join,
            sandbox,
            made: Vec::new(),
            plan,
            answers: Arc::default(),
            since,
            timings: Timings::default(),
            watch: None,
            terminal,
            pending: Arc::new(Pending::default()),
            status: None,
        }
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    pub(crate) fn remove_at_end(&mut self, made: Vec<Made>) {
        self.made = made;
    }

    pub(crate) fn pending(&self) -> &Arc<Pending> {
        &self.pending
    }

    /// The VM's pid 1, as a process id of the host: for joining its namespaces.
    pub fn pid(&self) -> i32 {
        self.init
    }

    /// What another process needs to join this VM.
    pub fn ticket(&self) -> Ticket {
        Ticket::new(&self.plan, self.init)
    }

    /// When what happened.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Something that can send signals while another thread is in [`Running::wait`].
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn control(&mut self) -> io::Result<Control> {
        if let Some(control) = &self.control {
            return Ok(control.clone());
        }
        let control = Control::new(self.socket.try_clone()?, Arc::clone(&self.answers));
        self.control = Some(control.clone());
        Ok(control)
    }

    /// Sends a signal to the application.
    pub fn kill(&self, signal: i32) {
        self.tell(&ToVm::Signal(signal));
    }

    /// Messages of several threads must not mix.
    fn tell(&self, message: &ToVm) {
        let _ = match &self.control {
            Some(control) => control.tell(message),
            None => send(&self.socket, message),
        };
    }

    /// The application has ended; the VM may be in use by others.
    fn application_ended(&mut self, status: ExitStatus) {
        self.status = Some(status);
        let (is_over, leases) = self.answers.application_ended();
        if is_over {
            self.tell(&ToVm::Finish);
        } else if leases > 0 {
            tracing::warn!(leases, "the application has ended; programs that joined ({leases}) still run");
            if let Some(terminal) = &self.terminal {
                terminal.take_back();
            }
        }
    }

    /// Waits for the end of the application and of all that have a [`crate::Lease`], passing signals on meanwhile. When it returns
    /// no process of the VM is left, and the sandbox holds all that was written.
    ///
    /// # Errors
    /// [`VmError::Died`] if the VM was killed from outside.
    pub fn wait(&mut self) -> Result<ExitStatus, VmError> {
        loop {
            if let Event::Ended = self.next()? {
                self.finish();
                return self.status.ok_or(VmError::Died);
            }
        }
    }

    pub(crate) fn run_until_started(&mut self) -> Result<(), VmError> {
        self.watch = Some(Watch::start(&FORWARDED).map_err(|error| VmError::set_up("handle signals", error))?);
        loop {
            if let Event::Started = self.next()? {
                return Ok(());
            }
        }
    }

    /// Gives signals back their effect on this process: there is no application to pass them on to.
    pub(crate) fn ignore_signals(&mut self) {
        self.watch = None;
    }

    fn next(&mut self) -> Result<Event, VmError> {
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
        fds.extend(self.watch.as_ref().map(|watch| PollFd::from_borrowed_fd(watch.fd(), PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(VmError::set_up("wait for the VM", errno)),
        }
        let ready = !fds[0].revents().is_empty();
        drop(fds);
        for arrived in self.watch.as_ref().map(Watch::take).unwrap_or_default() {
            self.on_signal(arrived);
        }
        if ready { self.on_message() } else { Ok(Event::Other) }
    }

    fn on_signal(&self, arrived: Arrived) {
        if self.status.is_some() {
            // Only those that joined are left: whoever wants us to end wants them to.
            if matches!(arrived.signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT) {
                self.tell(&ToVm::Stop(arrived.signal));
            }
            return;
        }
        // A shell moved us to the foreground; that means the application.
        if arrived.signal == libc::SIGCONT && self.plan.terminal && self.terminal.as_ref().is_some_and(Terminal::is_ours) {
            self.tell(&ToVm::Foreground);
        }
        // A terminal's key reached the application without us, if it is in our process group.
        if !(arrived.by_kernel && self.terminal.is_some() && !self.plan.terminal) {
            self.kill(arrived.signal);
        }
    }

    fn on_message(&mut self) -> Result<Event, VmError> {
        let elapsed = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        match receive(&self.socket).map_err(|error| VmError::set_up("talk to the VM", error))? {
            // Once: a later one would be a lie about whom to join.
            Some(FromVm::Init(pid)) if self.init == 0 => self.init = pid,
            Some(FromVm::Mounted) => self.timings.mounted_us = elapsed,
            Some(FromVm::Started) => {
                self.timings.started_us = elapsed;
                return Ok(Event::Started);
            }
            Some(FromVm::Warning(text)) => tracing::warn!("{}", printable(&text)),
            Some(FromVm::Failed(failure)) => {
                self.finish();
                return Err(VmError::from_child(failure, self.sandbox.clone().unwrap_or_default()));
            }
            Some(FromVm::Stopped(signal)) => self.stop(signal),
            Some(FromVm::Exited(code)) => self.application_ended(ExitStatus { code: Some(code), signal: None }),
            Some(FromVm::Signaled(signal)) => self.application_ended(ExitStatus { code: None, signal: Some(signal) }),
            Some(FromVm::Finished) => return Ok(Event::Ended),
            Some(FromVm::Frozen(left)) => self.answers.frozen(left),
            Some(FromVm::Thawed) => self.answers.thawed(),
            Some(FromVm::Init(_) | FromVm::Fuse | FromVm::Passed) => {}
            None => {
                self.finish();
                return Err(VmError::Died);
            }
        }
        Ok(Event::Other)
    }

    /// The application was stopped from the terminal: stop as well, so that the shell notices. Only then, since it may want
    /// to read files on its way.
    fn stop(&self, signal: i32) {
        if self.terminal.is_some() && matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) {
            let _ = kill_process(getpid(), Signal::STOP);
        }
    }

    /// Cleans up after the last process.
    fn finish(&mut self) {
        let Some(child) = self.child.take() else { return };
        // Whoever waits for data has been killed; without an answer it could not die.
        self.pending.close();
        self.answers.ended();
        while let Err(Errno::INTR) = waitpid(Some(child), WaitOptions::empty()) {}
        self.watch = None;
        if let Some(terminal) = &self.terminal {
            terminal.take_back();
        }
        if let Some(sandbox) = &self.sandbox {
            sandbox::clean(sandbox);
        }
        sandbox::remove_unused(&self.made);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = self.child {
            let _ = kill_process(child, Signal::KILL);
            self.finish();
        }
    }
}

/// Whether the application may have the terminal for itself: this process alone uses it. Not so in a pipeline, whose other
/// programs may read keys, nor in a script, which keys should reach, too.
pub(crate) fn owns_terminal() -> bool {
    let is_terminal = rustix::termios::isatty(rustix::stdio::stdin()) && rustix::termios::isatty(rustix::stdio::stdout());
    is_terminal && getpgrp() == getpid() && Terminal::find().is_some_and(|terminal| terminal.foreground)
}

/// The controlling terminal, if this process started in its foreground.
#[derive(Debug)]
struct Terminal {
    device: File,
    foreground: bool,
}

impl Terminal {
    fn find() -> Option<Self> {
        let device = File::open("/dev/tty").ok()?;
        let foreground = tcgetpgrp(&device).is_ok_and(|group| group == getpgrp());
        Some(Self { device, foreground })
    }

    /// Whether our process group is in the foreground.
    fn is_ours(&self) -> bool {
        tcgetpgrp(&self.device).is_ok_and(|group| group == getpgrp())
    }

    /// The terminal is with a process group of the VM, which is gone now. But not if the shell that started us has it, since
    /// we are in the background.
    fn take_back(&self) {
        let has_shell = || getsid(None).is_ok_and(|shell| shell != getpgrp() && tcgetpgrp(&self.device).is_ok_and(|group| group == shell));
        if self.foreground && !self.is_ours() && !has_shell() {
            let changed = ignore(&[libc::SIGTTOU]);
            let _ = tcsetpgrp(&self.device, getpgrp());
            reset(&changed);
        }
    }
}
