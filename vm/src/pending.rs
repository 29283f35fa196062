//! Requests that the kernel has given to us and that are not answered yet.
//!
//! A process that waits for an answer cannot die, not even by SIGKILL, once its request was read; and fuser does not tell
//! us of interrupts. So that a fetch that waits for a lost network never makes an unkillable process, a watcher looks at
//! requests that take longer than [`PATIENCE`], and answers those whose process was killed with `EINTR`. At the end of a
//! run all are answered. The late result of the fetch is dropped.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

/// How long a request may take before its process is looked at, and how often that happens.
const PATIENCE: Duration = Duration::from_millis(200);

/// An answer that can be a refusal.
pub(crate) trait Refuse: Send + 'static {
    /// Answers with an error.
    fn refuse(self, errno: Errno);
}

#[derive(Default)]
pub(crate) struct Pending {
    next: AtomicU64,
    waiting: Mutex<Waiting>,
    change: Condvar,
    closed: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    requests: HashMap<u64, Request>,
    /// Whether the watcher runs.
    watched: bool,
}

struct Request {
    thread: u32,
    since: Instant,
    refuse: Box<dyn FnOnce(Errno) + Send>,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("requests", &self.waiting.lock().requests.len()).finish_non_exhaustive()
    }
}

/// The right to answer one request, shared with the watcher.
pub(crate) struct Ticket<R: Refuse> {
    reply: Arc<Mutex<Option<R>>>,
    id: u64,
    pending: Arc<Pending>,
}

impl<R: Refuse> Ticket<R> {
    /// Takes the reply, unless someone refused the request meanwhile.
    pub(crate) fn take(self) -> Option<R> {
        self.pending.waiting.lock().requests.remove(&self.id);
        self.reply.lock().take()
    }
}

impl Pending {
    /// Registers a request of the host's thread `thread`.
    pub(crate) fn admit<R: Refuse>(self: &Arc<Self>, thread: u32, reply: R) -> Ticket<R> {
        let reply = Arc::new(Mutex::new(Some(reply)));
        let shared = Arc::clone(&reply);
        let refuse = Box::new(move |errno| {
            let reply = shared.lock().take();
            if let Some(reply) = reply {
                reply.refuse(errno);
            }
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        if self.closed.load(Ordering::Relaxed) {
            drop(waiting);
            refuse(Errno::IO);
        } else {
            waiting.requests.insert(id, Request { thread, since: Instant::now(), refuse });
        }
        Ticket { reply, id, pending: Arc::clone(self) }
    }

    /// Starts the watcher thread.
    pub(crate) fn watch(self: &Arc<Self>) {
        if std::mem::replace(&mut self.waiting.lock().watched, true) {
            return;
        }
        let this = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("turbo-watcher".to_owned()).spawn(move || this.run());
        if let Err(error) = spawned {
            tracing::warn!("processes that wait for data cannot be killed: no thread for the watcher: {error}");
        }
    }

    /// Refuses all requests, and those to come.
    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock();
        self.closed.store(true, Ordering::Relaxed);
        let requests = std::mem::take(&mut waiting.requests);
        self.change.notify_all();
        drop(waiting);
        for request in requests.into_values() {
            (request.refuse)(Errno::IO);
        }
    }

    fn run(&self) {
        let mut waiting = self.waiting.lock();
        while !self.closed.load(Ordering::Relaxed) {
            self.change.wait_for(&mut waiting, PATIENCE);
            let slow = |request: &Request| request.thread != 0 && request.since.elapsed() > PATIENCE;
            let suspects: Vec<(u64, u32)> = waiting.requests.iter().filter(|(_, request)| slow(request)).map(|(id, request)| (*id, request.thread)).collect();
            if suspects.is_empty() {
                continue;
            }
            parking_lot::MutexGuard::unlocked(&mut waiting, || {
                for (id, thread) in suspects {
                    if is_killed(thread) {
                        let request = self.waiting.lock().requests.remove(&id);
                        if let Some(request) = request {
                            (request.refuse)(Errno::INTR);
                        }
                    }
                }
            });
        }
    }
}

/// Whether SIGKILL is pending for a thread: also the form that any other deadly signal takes.
fn is_killed(thread: u32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else { return false };
    status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))).any(has_kill)
}

fn has_kill(mask: &str) -> bool {
    u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 1 << (libc::SIGKILL - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    impl Refuse for mpsc::Sender<Errno> {
        fn refuse(self, errno: Errno) {
            let _ = self.send(errno);
        }
    }

    #[test]
    fn a_request_is_answered_once() {
        let pending = Arc::new(Pending::default());
        let (sender, answers) = mpsc::channel();
        let ticket = pending.admit(1, sender.clone());
        assert!(ticket.take().is_some());
        let late = pending.admit(1, sender.clone());
        pending.close();
        assert_eq!(answers.try_recv(), Ok(Errno::IO));
        assert!(late.take().is_none());
        assert!(pending.admit(1, sender).take().is_none());
        assert_eq!(answers.try_recv(), Ok(Errno::IO));
    }

    #[test]
    fn masks() {
        assert!(has_kill("\t0000000000000100"));
        assert!(!has_kill("\t0000000000004000"));
    }
}
