//! Stopping everything in the VM, and letting it go on.
//!
//! Pid 1 sends SIGSTOP to every process of its pid namespace, joined ones included, until `/proc` shows that each thread
//! stands. A thread that waits for the disk or the network stops at the end of that wait, before it does anything else; it
//! is counted. Processes that were stopped before (a job in the background of a shell) are not started by a thaw.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};
use rustix::process::{Pid, Signal, kill_process};

use crate::sys::process::kill_all;

/// How often, and how far apart, it is looked whether all stand: about one second.
const ROUNDS: u32 = 200;
/// After so many rounds in which no thread ran, those that wait are waited for no longer: a parent stands behind the child
/// that it made with `vfork` for as long as that is stopped.
const QUIET_ROUNDS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// What pid 1 needs to stop all others.
pub(crate) struct Freezer {
    /// `/proc` of this pid namespace, opened before an application could mount something over it. `None` where the host's is
    /// shown in its place.
    proc: Option<OwnedFd>,
    /// Processes that were stopped already; `None` if nothing is frozen.
    stopped_before: Option<BTreeSet<i32>>,
}

impl Freezer {
    /// Call it when the VM's `/proc` is in place.
    pub(crate) fn open() -> Self {
        let proc = openat(CWD, "/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
        let is_ours = |proc: &OwnedFd| readlinkat(proc, "self", Vec::new()).is_ok_and(|link| link.as_bytes() == b"1");
        Self { proc: proc.filter(is_ours), stopped_before: None }
    }

    /// Stops all. How many threads do not stand yet.
    pub(crate) fn freeze(&mut self) -> usize {
        if self.stopped_before.is_none() {
            self.stopped_before = Some(self.pids().into_iter().filter(|pid| self.threads(*pid).iter().all(|state| *state == b'T')).collect());
        }
        let (mut left, mut quiet) = (0, 0);
        for _ in 0..ROUNDS {
            // Again each time: a process may have been forked, or have joined, meanwhile.
            let _ = kill_all(libc::SIGSTOP);
            let states = self.pids().into_iter().flat_map(|pid| self.threads(pid));
            let moving: Vec<u8> = states.filter(|state| !matches!(state, b'T' | b't' | b'Z' | b'X' | b'x')).collect();
            left = moving.len();
            quiet = if moving.iter().all(|state| *state == b'D') { quiet + 1 } else { 0 };
            if self.proc.is_some() && (left == 0 || quiet > QUIET_ROUNDS) {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        left
    }

    /// Lets those go on that [`Freezer::freeze`] stopped.
    pub(crate) fn thaw(&mut self) {
        let Some(before) = self.stopped_before.take() else { return };
        if self.proc.is_none() {
            let _ = kill_all(libc::SIGCONT);
        }
        for pid in self.pids().into_iter().filter(|pid| !before.contains(pid)).filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    /// Programs that joined: their parents are outside. `None` if that cannot be told.
    pub(crate) fn joined(&self) -> Option<Vec<i32>> {
        let proc = self.proc.as_ref()?;
        Some(self.pids().into_iter().filter(|pid| stat(proc, *pid).and_then(|stat| parent_in(&stat)) == Some(0)).collect())
    }

    /// All processes but pid 1.
    fn pids(&self) -> Vec<i32> {
        let Some(proc) = &self.proc else { return Vec::new() };
        numbers(proc).into_iter().filter(|pid| *pid != 1).collect()
    }

    /// The state of each thread of a process, as in `/proc/<pid>/stat`.
    fn threads(&self, pid: i32) -> Vec<u8> {
        let open = |proc| openat(proc, format!("{pid}/task"), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
        let Some(tasks) = self.proc.as_ref().and_then(open) else { return Vec::new() };
        numbers(&tasks).into_iter().filter_map(|thread| state_in(&stat(&tasks, thread)?)).collect()
    }
}

/// The entries of a directory that are numbers.
fn numbers(directory: &OwnedFd) -> Vec<i32> {
    let Ok(entries) = Dir::read_from(directory) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok()).collect()
}

fn stat(directory: &OwnedFd, id: i32) -> Option<Vec<u8>> {
    let file = openat(directory, format!("{id}/stat"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = vec![0; 512];
    let len = rustix::io::read(&file, &mut bytes[..]).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

/// The state in a line of `/proc/<pid>/stat`; the name before it may hold anything.
fn state_in(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2).copied()
}

/// The parent in a line of `/proc/<pid>/stat`.
fn parent_in(stat: &[u8]) -> Option<i32> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{parent_in, state_in};

    #[test]
    fn a_name_cannot_pretend_a_state() {
        assert_eq!(state_in(b"12 (sh) T 1 12"), Some(b'T'));
        assert_eq!(state_in(b"12 (a) T (b)) S 1 12"), Some(b'S'));
        assert_eq!(state_in(b"12 (cut"), None);
        assert_eq!(parent_in(b"12 (a) T 7 (b)) S 0 12"), Some(0));
        assert_eq!(parent_in(b"12 (a) T"), None);
    }
}
