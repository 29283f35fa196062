//! Writes objects to the local store behind the run's back, on a thread of its own that the first object starts.
//!
//! An object waits here in memory until the store has it, and can be read meanwhile. The store is flushed about once
//! a second, and at the end. If it fails, what was to be written is dropped (the run has it in memory), the failure is
//! reported once, and the store is left alone for [`PAUSE`] before it is tried again.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use layer_format::Digest;
use parking_lot::{Condvar, Mutex};

use crate::cache::ObjectCache;
use crate::error::{FetchError, StoreError};

/// How long objects gather before they are written, unless there are many.
const GATHER: Duration = Duration::from_millis(100);
/// How many bytes are many.
const MANY_BYTES: usize = 1 << 20;
/// Time between two flushes.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How long a store that failed is left alone.
const PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Waiting {
    objects: HashMap<Digest, Bytes>,
    bytes: usize,
    /// Number of flushes asked for and done.
    asked: u64,
    done: u64,
    closing: bool,
    thread: Option<JoinHandle<()>>,
    failure: Option<FetchError>,
    paused_until: Option<Instant>,
}

/// Objects on their way to the store.
pub(crate) struct Saver {
    cache: Arc<dyn ObjectCache>,
    waiting: Mutex<Waiting>,
    /// Wakes the thread.
    work: Condvar,
    /// Wakes those who wait for a flush.
    idle: Condvar,
}

impl Saver {
    pub(crate) fn new(cache: Arc<dyn ObjectCache>) -> Arc<Self> {
        Arc::new(Self { cache, waiting: Mutex::default(), work: Condvar::new(), idle: Condvar::new() })
    }

    /// An object that the store may not have yet.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.waiting.lock().objects.get(digest).cloned()
    }

    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.waiting.lock().objects.contains_key(digest)
    }

    /// Hands over a verified object. Never waits.
    pub(crate) fn put(self: &Arc<Self>, digest: Digest, bytes: Bytes) {
        let mut waiting = self.waiting.lock();
        if waiting.closing || waiting.paused_until.is_some_and(|until| Instant::now() < until) || !self.is_running(&mut waiting) {
            return;
        }
        let len = bytes.len();
        if waiting.objects.insert(digest, bytes).is_none() {
            waiting.bytes += len;
        }
        if waiting.objects.len() == 1 || (waiting.bytes >= MANY_BYTES && waiting.bytes - len < MANY_BYTES) {
            self.work.notify_one();
        }
    }

    /// Starts the thread if there is none yet. A run of an image that is all local needs none.
    fn is_running(self: &Arc<Self>, waiting: &mut Waiting) -> bool {
        if waiting.thread.is_none() {
            let this = self.clone();
            match std::thread::Builder::new().name("turbo-saver".into()).spawn(move || this.run()) {
                Ok(thread) => waiting.thread = Some(thread),
                Err(error) => {
                    waiting.paused_until = Some(Instant::now() + PAUSE);
                    let message = format!("starting a thread failed: {error}");
                    waiting.failure.get_or_insert(FetchError::Store { message, errno: error.raw_os_error() });
                }
            }
        }
        waiting.thread.is_some()
    }

    /// Bytes that wait to be written: who fetches ahead of use slows down when they grow.
    pub(crate) fn backlog(&self) -> usize {
        self.waiting.lock().bytes
    }

    /// Whether the store failed last time.
    pub(crate) fn is_failing(&self) -> bool {
        self.waiting.lock().paused_until.is_some()
    }

    /// The first failure of the store.
    pub(crate) fn failure(&self) -> Option<FetchError> {
        self.waiting.lock().failure.clone()
    }

    /// Waits until all that was put so far is in the store and durable, or the store failed.
    pub(crate) fn flush(&self) {
        let mut waiting = self.waiting.lock();
        if waiting.closing || waiting.thread.is_none() {
            return;
        }
        waiting.asked += 1;
        let mine = waiting.asked;
        self.work.notify_one();
        while waiting.done < mine && !waiting.closing {
            self.idle.wait(&mut waiting);
        }
    }

    /// Waits until the thread has written what there is, and ends it.
    pub(crate) fn close(&self) {
        let thread = {
            let mut waiting = self.waiting.lock();
            waiting.closing = true;
            waiting.thread.take()
        };
        self.work.notify_one();
        if let Some(thread) = thread {
            // A panic of the thread was reported by itself; the store is consistent without it.
            let _ = thread.join();
        }
    }

    fn run(&self) {
        let mut flushed = Instant::now();
        let mut dirty = false;
        loop {
            let (asked, closing, batch) = self.gather(dirty, flushed);
            let mut result = Ok(());
            if !batch.is_empty() {
                dirty = true;
                result = self.cache.insert(&batch);
                self.written(&batch);
            }
            if result.is_ok() && dirty && (closing || asked.is_some() || flushed.elapsed() >= FLUSH_EVERY) {
                result = self.cache.flush();
                flushed = Instant::now();
                dirty = false;
            }
            self.report(result, asked);
            if closing {
                self.idle.notify_all();
                return;
            }
        }
    }

    /// Waits for something to do. The batch stays readable until it is [written](Saver::written).
    fn gather(&self, dirty: bool, flushed: Instant) -> (Option<u64>, bool, Vec<(Digest, Bytes)>) {
        let mut waiting = self.waiting.lock();
        let idle = |waiting: &Waiting| waiting.objects.is_empty() && waiting.asked == waiting.done && !waiting.closing;
        while idle(&waiting) {
            if !dirty {
                self.work.wait(&mut waiting);
            } else if self.work.wait_until(&mut waiting, flushed + FLUSH_EVERY).timed_out() {
                break;
            }
        }
        let until = Instant::now() + GATHER;
        while !waiting.objects.is_empty() && waiting.bytes < MANY_BYTES && waiting.asked == waiting.done && !waiting.closing {
            if self.work.wait_until(&mut waiting, until).timed_out() {
                break;
            }
        }
        let batch = waiting.objects.iter().map(|(digest, bytes)| (*digest, bytes.clone())).collect();
        ((waiting.asked != waiting.done).then_some(waiting.asked), waiting.closing, batch)
    }

    fn written(&self, batch: &[(Digest, Bytes)]) {
        let mut waiting = self.waiting.lock();
        for (digest, bytes) in batch {
            if waiting.objects.remove(digest).is_some() {
                waiting.bytes -= bytes.len();
            }
        }
    }

    fn report(&self, result: Result<(), StoreError>, asked: Option<u64>) {
        let mut waiting = self.waiting.lock();
        match result {
            Ok(()) => waiting.paused_until = waiting.paused_until.filter(|until| Instant::now() < *until),
            Err(error) => {
                waiting.paused_until = Some(Instant::now() + PAUSE);
                let error = FetchError::from(error);
                if waiting.failure.is_none() {
                    tracing::warn!(%error, "what is fetched cannot be kept in the local store; the run goes on from memory");
                    waiting.failure = Some(error);
                }
            }
        }
        if let Some(asked) = asked {
            waiting.done = asked;
            self.idle.notify_all();
        }
    }
}
