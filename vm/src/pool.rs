//! Threads for requests that would otherwise hold up others.
//!
//! A few threads read requests from the kernel and answer them themselves, which is fastest. Any answer may have to wait
//! for the network, so the last of these threads that is free never answers: it hands the request to a further thread,
//! made on demand, and stays ready to read. Thus a request waits for another only if [`MAX_EXTRA`] others wait already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Threads that read requests.
pub(crate) const READERS: usize = 4;
/// Most further threads.
const MAX_EXTRA: usize = 128;
/// How long an idle further thread waits for work before it ends.
const KEEP: Duration = Duration::from_secs(10);

type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(crate) struct Pool {
    busy: AtomicUsize,
    extra: Arc<Extra>,
}

#[derive(Default)]
struct Extra {
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    threads: usize,
    idle: usize,
}

/// The right to answer on the thread that read the request.
pub(crate) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// The right to answer a request on this thread, unless it is the last one that reads.
    pub(crate) fn enter(&self) -> Option<Busy<'_>> {
        let busy = self.busy.fetch_add(1, Ordering::Relaxed) + 1;
        let right = Busy(&self.busy);
        (busy < READERS).then_some(right)
    }

    /// Runs `task` on this thread, unless it is the last one that reads.
    pub(crate) fn run(&self, task: impl FnOnce() + Send + 'static) {
        match self.enter() {
            Some(_busy) => task(),
            None => self.extra.push(Box::new(task)),
        }
    }
}

impl Extra {
    fn push(self: &Arc<Self>, task: Task) {
        let mut queue = self.queue.lock();
        queue.tasks.push_back(task);
        if queue.idle >= queue.tasks.len() || queue.threads >= MAX_EXTRA {
            self.work.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        let this = Arc::clone(self);
        if std::thread::Builder::new().name("turbo-fuse-extra".to_owned()).spawn(move || this.work()).is_err() {
            let mut queue = self.queue.lock();
            queue.threads -= 1;
            // Better late than never: this thread does it.
            if queue.threads == 0
                && let Some(task) = queue.tasks.pop_front()
            {
                drop(queue);
                task();
            }
        }
    }

    fn work(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                drop(queue);
                task();
                queue = self.queue.lock();
                continue;
            }
            queue.idle += 1;
            let timed_out = self.work.wait_for(&mut queue, KEEP).timed_out();
            queue.idle -= 1;
            if timed_out && queue.tasks.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn blocked_tasks_do_not_hold_up_others() {
        let pool = Arc::new(Pool::default());
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (done, results) = mpsc::channel();
        // As many blocked readers as there may be, and more blocked tasks handed over by the last one.
        for _ in 0..READERS - 1 {
            let (pool, gate) = (Arc::clone(&pool), Arc::clone(&gate));
            std::thread::spawn(move || pool.run(move || _ = gate.lock().recv()));
        }
        while pool.busy.load(Ordering::Relaxed) < READERS - 1 {
            std::thread::yield_now();
        }
        for _ in 0..20 {
            let gate = Arc::clone(&gate);
            pool.run(move || _ = gate.lock().recv());
        }
        pool.run(move || _ = done.send(7));
        assert_eq!(results.recv_timeout(Duration::from_secs(5)), Ok(7));
        drop(release);
    }
}
