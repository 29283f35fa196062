//! Processes at the ends of a link: started in a group of their own, and ended with all that they
//! have started.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use super::namespace::Namespace;
use crate::sys;

/// How long a process may take to end after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(10);

/// A background process. Dropped, it ends with its whole process group. It also ends with the thread
/// that started it, so that a benchmark killed with SIGKILL leaves no server behind.
#[derive(Debug)]
pub struct Spawned {
    child: Child,
}

impl Spawned {
    /// Starts `command` in a new process group. Call it on a thread that outlives the process.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.process_group(0);
        end_with_thread(&mut command);
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until something listens on the TCP port in the process's network namespace. Looks the
    /// port up instead of connecting, since some servers serve one connection only.
    ///
    /// # Errors
    /// If the process ends before, or after the time.
    pub fn wait_listening(&mut self, port: u16, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        while !listens(self.child.id(), port) {
            if let Some(status) = self.child.try_wait().context("cannot wait for a process")? {
                bail!("the server ended ({status}) before it listened on port {port}");
            }
            if start.elapsed() > timeout {
                bail!("nothing listens on port {port} after {timeout:?}");
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// Never, unless something else has reaped it.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("cannot wait for a process")
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        let Some(group) = Pid::from_raw(self.child.id() as i32) else { return };
        let _ = rustix::process::kill_process_group(group, Signal::TERM);
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < GRACE {
            std::thread::sleep(POLL);
        }
        // Also when the leader has ended: others of its group may not have.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Lets the command's process get SIGKILL when the thread that starts it ends, however that happens.
/// Call it after the command was given its end of a link: entering a user namespace undoes it.
fn end_with_thread(command: &mut Command) {
    sys::before_exec(command, || rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(std::io::Error::from));
}

/// Runs `command` to its end in the foreground. A signal that asks this program to end meanwhile goes to
/// the command's process instead, once, so that the caller can clean up after it.
///
/// # Errors
/// If the program cannot be started.
pub fn run_in_foreground(mut command: Command, held: HeldSignals) -> Result<ExitStatus> {
    end_with_thread(&mut command);
    let program = command.get_program().to_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let pid = Pid::from_raw(child.id() as i32);
    std::thread::spawn(move || {
        let number = (held.0)();
        if let Some((pid, signal)) = pid.zip(Signal::from_named_raw(number)) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    });
    child.wait().context("cannot wait for a process")
}

/// The signals that ask this program to end, held back.
pub struct HeldSignals(Box<dyn FnOnce() -> i32 + Send>);

impl HeldSignals {
    /// Holds them from now on, in this thread and those that it starts.
    pub fn hold() -> Self {
        Self(Box::new(sys::hold_end_signals()))
    }
}

impl std::fmt::Debug for HeldSignals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldSignals")
    }
}

/// Whether a socket listens on the port in the network namespace of the process.
fn listens(pid: u32, port: u16) -> bool {
    let hex = format!(":{port:04X}");
    ["tcp", "tcp6"].into_iter().any(|table| {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        table.lines().skip(1).any(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            // Local address, remote address, state; 0A is listening.
            fields.next().is_some_and(|local| local.ends_with(&hex)) && fields.nth(1) == Some("0A")
        })
    })
}

/// Ends every process in the namespace, also those that have left their group or session.
pub(super) fn end_all_in(namespace: &Namespace) {
    let Ok(identity) = namespace.identity() else { return };
    let start = Instant::now();
    loop {
        let members = members(identity);
        if members.is_empty() {
            return;
        }
        let signal = if start.elapsed() < GRACE { Signal::TERM } else { Signal::KILL };
        if start.elapsed() > 2 * GRACE {
            return eprintln!("warning: processes {members:?} in the link's namespace do not end");
        }
        for pid in members {
            let _ = rustix::process::kill_process(pid, signal);
        }
        std::thread::sleep(POLL);
    }
}

fn members(identity: (u64, u64)) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbered = processes.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    // A zombie has no namespace any more, and what we may not look at is not ours.
    numbered
        .filter(|pid| {
            let meta = std::fs::metadata(format!("/proc/{}/ns/net", pid.as_raw_nonzero()));
            meta.is_ok_and(|meta| (meta.dev(), meta.ino()) == identity)
        })
        .collect()
}
