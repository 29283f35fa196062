//! Brings the rest of an image here while the application runs and needs nothing, so that the next start needs no network.
//!
//! It begins when the launch has been quiet for a while, goes in tree order, which is that of the registry's packs, and
//! pauses at once whenever a thread waits for something ([`crate::fetch`] gives it the link only when nothing else wants
//! it). What is here is skipped: an interrupted completion is gone on with by the next run. An image is told to be complete
//! only when every object of it is in the store, each verified when it arrived, and durable.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layer_format::Digest;
use parking_lot::{Condvar, Mutex};

use crate::cache::ObjectCache;
use crate::fetch::Fetcher;
use crate::store::{ObjectKind, references};

/// How long no thread must have waited for anything before it begins.
pub const QUIET: Duration = Duration::from_secs(5);
/// How often it looks whether it may begin or go on.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Objects, and bytes of them, that are handed to the fetcher at a time.
const BATCH: usize = 1024;
const BATCH_BYTES: u64 = 4 << 20;
/// Rounds without any progress after which it gives up until the next run, and the pause between them.
const MAX_ROUNDS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(5);

/// Told the digest of the image when all of it is here.
pub type OnComplete = Box<dyn Fn(&Digest) + Send + Sync>;

/// How a run completes its image.
pub struct CompletionOptions {
    /// See [`QUIET`].
    pub quiet: Duration,
    /// Most uncompressed bytes that may be added to the store; `None` for no limit.
    pub room_bytes: Option<u64>,
    /// Told at the end.
    pub on_complete: OnComplete,
}

impl std::fmt::Debug for CompletionOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompletionOptions").field("quiet", &self.quiet).field("room_bytes", &self.room_bytes).finish_non_exhaustive()
    }
}

/// What a completion does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// There is none: it is switched off, or nothing is missing.
    #[default]
    Off,
    /// It waits until the launch is over.
    Waiting,
    /// It brings objects, or waits for the link.
    Running,
    /// It gave up: the store has no room for the rest, or the registry does not have it.
    Stopped,
    /// All is here.
    Done,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What it does.
    pub state: State,
    /// Bytes of the image, uncompressed, each object once; 0 while that is not known.
    pub total_bytes: u64,
    /// Those of them that are here.
    pub local_bytes: u64,
    /// How fast it was over the last seconds, in bytes a second.
    pub bytes_per_s: u64,
}

#[derive(Debug)]
struct Inner {
    progress: Progress,
    closing: bool,
}

/// The completion of one image. Shared by its thread and whoever looks.
#[derive(Debug)]
pub struct Completion {
    fetcher: Arc<Fetcher>,
    cache: CacheOf,
    image: Digest,
    layers: Vec<Digest>,
    options: CompletionOptions,
    inner: Mutex<Inner>,
    wake: Condvar,
}

struct CacheOf(Arc<dyn ObjectCache>);

impl std::fmt::Debug for CacheOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectCache")
    }
}

/// Why it ends.
enum End {
    Closed,
    GivenUp(&'static str),
}

impl Completion {
    /// Of this image of these layers.
    pub fn new(fetcher: Arc<Fetcher>, cache: Arc<dyn ObjectCache>, image: Digest, layers: Vec<Digest>, options: CompletionOptions) -> Self {
        let progress = Progress { state: State::Waiting, ..Progress::default() };
        Self { fetcher, cache: CacheOf(cache), image, layers, options, inner: Mutex::new(Inner { progress, closing: false }), wake: Condvar::new() }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.inner.lock().progress
    }

    /// Ends [`Completion::run`] soon.
    pub fn close(&self) {
        self.inner.lock().closing = true;
        self.wake.notify_all();
    }

    /// Completes the image, or gives up, or is closed. To be called on a thread of its own.
    pub fn run(&self) {
        let state = match self.complete() {
            Ok(()) => {
                (self.options.on_complete)(&self.image);
                State::Done
            }
            Err(End::Closed) => return,
            Err(End::GivenUp(reason)) => {
                tracing::debug!(reason, "the image is not completed in this run");
                State::Stopped
            }
        };
        let mut inner = self.inner.lock();
        (inner.progress.state, inner.progress.bytes_per_s) = (state, 0);
    }

    fn complete(&self) -> Result<(), End> {
        while self.fetcher.quiet_for() < self.options.quiet || !self.fetcher.is_idle() {
            self.pause(LOOK_AGAIN)?;
        }
        self.inner.lock().progress.state = State::Running;
        // What the launch brought last may not be in the store yet, and need not come again.
        self.fetcher.flush();
        let mut rounds = 0;
        loop {
            let (objects, whole) = self.walk()?;
            let missing = self.missing(&objects)?;
            let (total, left): (u64, u64) = (sum(&objects), sum(&missing));
            {
                let mut inner = self.inner.lock();
                (inner.progress.total_bytes, inner.progress.local_bytes) = (if whole { total } else { 0 }, total - left);
            }
            if whole && missing.is_empty() {
                self.fetcher.flush();
                // What was evicted meanwhile is missing again.
                return if self.missing(&objects)?.is_empty() { Ok(()) } else { self.give_up("the store evicts what is brought") };
            }
            if self.options.room_bytes.is_some_and(|room| left > room) {
                return self.give_up("the rest of the image does not fit below the store's limit");
            }
            match self.bring(missing)? {
                0 => rounds += 1,
                _ => rounds = 0,
            }
            if rounds >= MAX_ROUNDS {
                return self.give_up("the registry does not give the rest");
            }
            if rounds > 0 {
                self.pause(PAUSE)?;
            }
        }
    }

    fn give_up<T>(&self, reason: &'static str) -> Result<T, End> {
        Err(End::GivenUp(reason))
    }

    /// Waits for that time.
    fn pause(&self, time: Duration) -> Result<(), End> {
        let mut inner = self.inner.lock();
        let until = Instant::now() + time;
        while !inner.closing && !self.wake.wait_until(&mut inner, until).timed_out() {}
        if inner.closing { Err(End::Closed) } else { Ok(()) }
    }

    /// All objects of the image in tree order, as far as the nodes that are here tell; and whether that is all.
    fn walk(&self) -> Result<(Vec<(Digest, u32)>, bool), End> {
        let mut stack: Vec<(Digest, ObjectKind)> = self.layers.iter().rev().map(|digest| (*digest, ObjectKind::Layer)).collect();
        let (mut inner, mut chunks, mut seen, mut whole) = (Vec::new(), Vec::new(), HashSet::new(), true);
        while let Some((digest, kind)) = stack.pop() {
            if !seen.insert(digest) {
                continue;
            }
            if let ObjectKind::Chunk { len } = kind {
                chunks.push((digest, len));
                continue;
            }
            if self.inner.lock().closing {
                return Err(End::Closed);
            }
            let Some(bytes) = self.fetcher.local(&digest) else {
                inner.push((digest, 0));
                whole = false;
                continue;
            };
            inner.push((digest, bytes.len() as u32));
            match references(&digest, kind, &bytes) {
                Ok(found) => stack.extend(found.into_iter().rev()),
                Err(_) => return self.give_up("an object of the image is not valid"),
            }
        }
        // Nodes first: they tell what else there is.
        if whole {
            inner.append(&mut chunks);
        }
        Ok((inner, whole))
    }

    /// Those that are not in the store.
    fn missing(&self, objects: &[(Digest, u32)]) -> Result<Vec<(Digest, u32)>, End> {
        let digests: Vec<Digest> = objects.iter().map(|(digest, _)| *digest).collect();
        let Ok(here) = self.cache.0.contains(&digests) else { return self.give_up("the store cannot be read") };
        Ok(objects.iter().zip(here).filter(|(_, here)| !here).map(|(object, _)| *object).collect())
    }

    /// Brings these here as the link allows. Says how many came.
    fn bring(&self, objects: Vec<(Digest, u32)>) -> Result<usize, End> {
        let mut came = 0;
        let mut rest = &objects[..];
        let mut rate = (Instant::now(), 0u64);
        while !rest.is_empty() {
            if self.fetcher.is_store_failing() {
                return self.give_up("the store does not take more");
            }
            let mut bytes = 0;
            let count = rest.iter().take(BATCH).take_while(|(_, len)| (bytes < BATCH_BYTES, bytes += u64::from(*len)).0).count();
            let (batch, next) = rest.split_at(count);
            rest = next;
            self.fetcher.bring(batch);
            while self.fetcher.background_left() > 0 {
                self.pause(LOOK_AGAIN / 5)?;
            }
            let arrived: Vec<&(Digest, u32)> = batch.iter().filter(|(digest, _)| self.fetcher.is_here(digest)).collect();
            came += arrived.len();
            let bytes: u64 = arrived.iter().map(|(_, len)| u64::from(*len)).sum();
            rate.1 += bytes;
            let mut inner = self.inner.lock();
            inner.progress.local_bytes = (inner.progress.local_bytes + bytes).min(inner.progress.total_bytes.max(inner.progress.local_bytes));
            let elapsed = rate.0.elapsed();
            if elapsed >= Duration::from_secs(1) {
                inner.progress.bytes_per_s = (rate.1 as f64 / elapsed.as_secs_f64()) as u64;
                rate = (Instant::now(), 0);
            }
        }
        self.fetcher.flush();
        Ok(came)
    }
}

fn sum(objects: &[(Digest, u32)]) -> u64 {
    objects.iter().map(|(_, len)| u64::from(*len)).sum()
}
