//! The block fetcher: every object that a run needs, from memory, the local store or the registry.
//!
//! Threads that need an object call [`Fetcher::get_many`] and wait. Whatever is missing stands once in one queue
//! (`queue`); a task (`pump`) makes requests of it: what someone waits for goes first and at once, on requests of its
//! own, together with what is likely wanted next; the rest as the link allows ([`crate::link`]). A demand for what is
//! already queued, on its way or announced by the launch stream (`launch`) joins it and is never fetched twice. What
//! arrives is hashed, handed to the waiting threads, kept in memory (`memory`), and written to the store by a thread
//! that no one waits for (`saver`).
//!
//! Promises: nothing is returned that does not match its digest. A wait ends after [`FetcherOptions::wait_limit`],
//! whatever the registry does; while it lasts, failed requests are repeated. No lock is held across a request. Offline,
//! no request is ever made. What is fetched ahead and not used stays below the waste budget.

mod launch;
mod memory;
mod plan;
mod pump;
mod queue;
mod request;
mod saver;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use layer_format::Digest;
use layer_format::reference::Repository;
use layer_format::trace::Source;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use launch::{LaunchError, LaunchOptions, LaunchStream, OnEnd, OnModel};

use crate::cache::ObjectCache;
use crate::error::FetchError;
use crate::link::Link;
use crate::origin::Origin;
use crate::stats::{Counters, Latency, RunStats};
use crate::timeline::Timeline;
use memory::Memory;
use plan::Plan;
use queue::{Queue, Slot};
use saver::Saver;

/// How long a read waits for the registry, unless configured otherwise.
pub const DEFAULT_WAIT_LIMIT: Duration = Duration::from_secs(60);
/// Silence after which a request counts as broken, unless configured otherwise.
pub const DEFAULT_STALL_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of recently used objects kept in memory, unless configured otherwise.
pub const DEFAULT_MEMORY_BYTES: usize = 64 << 20;
/// Bytes that may be fetched ahead and not used, unless configured otherwise.
pub const DEFAULT_WASTE_BUDGET_BYTES: u64 = 32 << 20;
/// A candidate that is at least this likely comes along also when the waste budget is used up: the rest of a small
/// file, or of one that is read in order. Only what the reader knows of a file's own shape may claim it; a prediction of
/// a model never does, so the budget binds whatever a model says.
pub(crate) const SURE: f32 = 0.6;
/// What is less likely than this part of [`SURE`] is never fetched ahead; when the budget is spent, what is less than that.
const LEAST_PART: f64 = 0.3;
/// On a metered link nothing less likely is fetched ahead.
const STRICT: f64 = 0.9;
/// Beyond the budget, one byte in this many used ones may be wasted.
const WASTE_SHARE: u64 = 5;

/// Bytes fetched ahead on trust, beyond what the link holds; more when those before were used.
const TRUST_BYTES: u64 = 4 << 20;

/// How a [`Fetcher`] is made.
#[derive(Clone)]
pub struct FetcherOptions {
    /// The local store.
    pub cache: Arc<dyn ObjectCache>,
    /// The registry; `None` is the same as `offline`.
    pub origin: Option<Arc<dyn Origin>>,
    /// The repository whose objects are asked for.
    pub repository: Repository,
    /// Where requests run.
    pub runtime: tokio::runtime::Handle,
    /// How long a read waits before it fails with [`FetchError::Unreachable`].
    pub wait_limit: Duration,
    /// A request from which nothing came for this long is given up and repeated.
    pub stall_limit: Duration,
    /// Bytes of recently used objects to keep in memory.
    pub memory_bytes: usize,
    /// Bytes fetched ahead and not used at which prefetching stops (or a fifth of the used ones, if that is more).
    pub waste_budget_bytes: u64,
    /// Fetch ahead only what is nearly sure to be used.
    pub strict: bool,
    /// Never make a request.
    pub offline: bool,
    /// Told of waits, requests and arrivals.
    pub timeline: Option<Arc<Timeline>>,
}

impl FetcherOptions {
    /// Defaults for all that can have one.
    pub fn new(cache: Arc<dyn ObjectCache>, origin: Option<Arc<dyn Origin>>, repository: Repository, runtime: tokio::runtime::Handle) -> Self {
        Self {
            cache,
            origin,
            repository,
            runtime,
            wait_limit: DEFAULT_WAIT_LIMIT,
            stall_limit: DEFAULT_STALL_LIMIT,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            waste_budget_bytes: DEFAULT_WASTE_BUDGET_BYTES,
            strict: false,
            offline: false,
            timeline: None,
        }
    }
}

impl fmt::Debug for FetcherOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetcherOptions")
            .field("repository", &self.repository)
            .field("offline", &self.offline)
            .field("wait_limit", &self.wait_limit)
            .finish_non_exhaustive()
    }
}

/// An object that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes; 0 if not known.
    pub len: u32,
}

/// An object that may be needed soon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes; 0 if not known.
    pub len: u32,
    /// How likely it is needed, `0.0..=1.0`.
    pub probability: f32,
    /// In how many microseconds from now it is needed, if that is known; else 0.
    pub within_us: u32,
}

/// What candidates are chosen by, when an object has to be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes worth asking for along with a miss without any prediction: those of one round trip.
    pub read_ahead: u64,
    /// Bytes worth asking for if they are predicted.
    pub predicted: u64,
}

/// Chooses candidates, likeliest first. Called only if something has to be asked for; must not wait for the network.
pub type Choose<'a> = &'a dyn Fn(Room) -> Vec<Candidate>;

/// An object, and where it came from.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its bytes, verified.
    pub bytes: Bytes,
    /// Whether it was there in time.
    pub source: Source,
}

/// Numbers that are zero when nothing is going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Objects that a thread waits for.
    pub demanded: usize,
    /// Objects queued or on the way for which no one waits.
    pub prefetches: usize,
    /// Requests under way.
    pub requests: usize,
    /// Expected bytes on the way for which no one waits.
    pub ahead_bytes: u64,
    /// Answers that are arriving.
    pub answers: u32,
}

/// What the parts of the fetcher share. Locks are taken in the order of the fields.
pub(crate) struct Shared {
    pub(crate) options: FetcherOptions,
    pub(crate) plan: Mutex<Plan>,
    pub(crate) queue: Mutex<Queue>,
    pub(crate) memory: Mutex<Memory>,
    pub(crate) link: Mutex<Link>,
    pub(crate) saver: Arc<Saver>,
    pub(crate) counters: Counters,
    /// How long threads waited for what they needed.
    pub(crate) latency: Latency,
    /// Bytes that may be wasted beyond the budget: nodes, which are bounded by themselves.
    pub(crate) allowance: AtomicU64,
    /// Bytes wasted by a model that proved wrong: they do not count against what is guessed after it.
    pub(crate) forgiven: AtomicU64,
    /// Wakes the pump.
    pub(crate) wake: Notify,
    /// Name of the launch whose stream is open, for requests that take objects out of it.
    pub(crate) launch_id: Mutex<Option<String>>,
    pub(crate) started: Instant,
}

impl Shared {
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// An object that is on this machine, without counting it as used.
    fn find(&self, digest: &Digest) -> Option<Bytes> {
        if let Some(bytes) = self.memory.lock().get(digest) {
            return Some(bytes);
        }
        if let Some(bytes) = self.saver.get(digest) {
            return Some(bytes);
        }
        match self.options.cache.get(digest) {
            Ok(found) => {
                let bytes = found?;
                self.memory.lock().keep(*digest, bytes.clone());
                Some(bytes)
            }
            Err(error) => {
                tracing::debug!(%digest, %error, "the local store could not be read; asking the registry instead");
                None
            }
        }
    }

    fn in_memory(&self, digest: &Digest) -> bool {
        self.memory.lock().holds(digest) || self.saver.holds(digest)
    }

    /// A verified object arrived: wakes who waits for it, and keeps it.
    pub(crate) fn deliver(&self, digest: Digest, bytes: Bytes) {
        self.saver.put(digest, bytes.clone());
        let len = bytes.len();
        let mut queue = self.queue.lock();
        let job = queue.landed(&digest);
        let background = job.as_ref().is_some_and(|job| job.background && job.waiters == 0);
        let ahead = !background && job.as_ref().is_none_or(|job| job.waiters == 0);
        {
            let mut memory = self.memory.lock();
            let first = memory.arrived(&digest, len, ahead);
            // What no one asked for goes to the store, and leaves in memory what is used.
            if !background {
                memory.keep(digest, bytes.clone());
            }
            self.counters.bytes_fetched.add(len as u64);
            match (first, &job) {
                _ if background => self.counters.bytes_background.add(len as u64),
                (false, None) => self.counters.bytes_wasted.add(len as u64),
                _ if ahead => self.counters.bytes_prefetched.add(len as u64),
                _ => {}
            }
        }
        queue.demand_failures = 0;
        if !queue.is_busy {
            queue.demand_not_before = None;
        }
        drop(queue);
        if let Some(job) = job {
            job.slot.set(Ok(bytes));
        }
    }

    /// The object can never be had: tells who waits for it.
    pub(crate) fn refuse(&self, digest: &Digest, error: FetchError) {
        let job = self.queue.lock().landed(digest);
        if let Some(job) = job {
            job.slot.set(Err(error));
        }
    }

    /// Bytes that may still be fetched ahead of use.
    pub(crate) fn waste_room(&self, ahead_flying: u64) -> u64 {
        let usage = self.memory.lock().usage();
        let mut budget = self.options.waste_budget_bytes.max(usage.needed / WASTE_SHARE);
        // A prediction earns its budget: a wrong one is left long before it is spent.
        budget = budget.min(TRUST_BYTES + self.link.lock().window() + 2 * usage.ahead_used);
        if self.saver.is_failing() {
            // It lives in memory only: what does not fit would be fetched again.
            budget = budget.min(self.options.memory_bytes as u64 / 2);
        }
        budget += self.allowance.load(Ordering::Relaxed);
        budget.saturating_sub((usage.ahead_unused + ahead_flying + self.counters.bytes_wasted.get()).saturating_sub(self.forgiven.load(Ordering::Relaxed)))
    }

    /// Whether something is fetched ahead: if it is likelier than P\*, and the likelier the less is left of the waste budget, so that
    /// what is unlikely does not take it from what is likely.
    pub(crate) fn admission(&self) -> impl Fn(u32, f32) -> bool + use<> {
        let usage = self.memory.lock().usage();
        let budget = self.options.waste_budget_bytes.max(usage.needed / WASTE_SHARE) + self.allowance.load(Ordering::Relaxed);
        let spent = (usage.ahead_unused + self.counters.bytes_wasted.get()).saturating_sub(self.forgiven.load(Ordering::Relaxed));
        let spent = spent as f64 / budget.max(1) as f64;
        let least = if self.options.strict { STRICT } else { f64::from(SURE) * (LEAST_PART + (1.0 - LEAST_PART) * spent.min(1.0)) };
        let link = self.link.lock().clone();
        move |len, probability| f64::from(probability) > link.threshold(len.into()) && f64::from(probability) >= least
    }

    fn is_offline(&self) -> bool {
        self.options.offline || self.options.origin.is_none()
    }
}

/// Fetches objects of one repository for one run. Share it in an [`Arc`]; dropping the last one ends its requests.
pub struct Fetcher {
    shared: Arc<Shared>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("options", &self.shared.options).field("gauges", &self.gauges()).finish()
    }
}

impl Fetcher {
    /// Starts a fetcher. Makes no request and starts no thread until something is asked for.
    pub fn new(options: FetcherOptions) -> Self {
        let saver = Saver::new(options.cache.clone());
        let shared = Arc::new(Shared {
            plan: Mutex::default(),
            queue: Mutex::default(),
            memory: Mutex::new(Memory::new(options.memory_bytes)),
            link: Mutex::default(),
            saver,
            counters: Counters::default(),
            latency: Latency::default(),
            allowance: AtomicU64::new(0),
            forgiven: AtomicU64::new(0),
            wake: Notify::new(),
            launch_id: Mutex::default(),
            started: Instant::now(),
            options,
        });
        if !shared.is_offline() {
            shared.options.runtime.spawn(pump::run(shared.clone()));
        }
        Self { shared }
    }

    /// One object. See [`Fetcher::get_many`].
    ///
    /// # Errors
    /// As [`Fetcher::get_many`].
    pub fn get(&self, digest: &Digest, choose: Choose<'_>) -> Result<Bytes, FetchError> {
        let mut found = self.get_many(&[Wanted { digest: *digest, len: 0 }], choose)?;
        found.pop().map(|fetched| fetched.bytes).ok_or(FetchError::NotFound { digest: *digest })
    }

    /// All of these objects, in this order; waits for those that are not here. They are asked for together, and with
    /// them what `choose` says.
    ///
    /// # Errors
    /// [`FetchError::Offline`] at once if one is missing and there is no network; [`FetchError::Unreachable`] after
    /// the wait limit; [`FetchError::NotFound`], [`FetchError::Refused`] if the registry says so.
    pub fn get_many(&self, wanted: &[Wanted], choose: Choose<'_>) -> Result<Vec<Fetched>, FetchError> {
        let shared = &*self.shared;
        let mut found: Vec<Option<Bytes>> = wanted.iter().map(|wanted| shared.find(&wanted.digest)).collect();
        let missing: Vec<usize> = (0..wanted.len()).filter(|at| found[*at].is_none()).collect();
        let mut waited = vec![false; wanted.len()];
        if !missing.is_empty() {
            if shared.is_offline() {
                return Err(FetchError::Offline { digest: wanted[missing[0]].digest });
            }
            let started = Instant::now();
            let waits = self.ask(wanted, &missing, &mut found, choose)?;
            let deadline = started + shared.options.wait_limit;
            let _waiting = shared.options.timeline.as_ref().filter(|_| !waits.is_empty());
            let _waiting = _waiting.map(|timeline| timeline.waiting(waits.len(), waits.iter().all(|wait| !wait.is_new)));
            let mut failure = None;
            for wait in &waits {
                // One that failed decides; the others are left without waiting.
                if failure.is_none() {
                    match wait.slot.wait_until(deadline) {
                        Some(Ok(bytes)) => (found[wait.at], waited[wait.at]) = (Some(bytes), true),
                        Some(Err(error)) => failure = Some(error),
                        None => failure = Some(self.unreachable(wait.digest, started)),
                    }
                }
            }
            drop(waits);
            let stalled = started.elapsed();
            shared.counters.stall_us.add(stalled.as_micros() as u64);
            shared.latency.add(stalled);
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        let mut memory = shared.memory.lock();
        let fetched = wanted.iter().zip(found).zip(waited).map(|((wanted, bytes), waited)| {
            let bytes = bytes.ok_or(FetchError::NotFound { digest: wanted.digest })?;
            let source = memory.used(&wanted.digest, bytes.len(), waited);
            Ok(Fetched { bytes, source })
        });
        fetched.collect()
    }

    /// Queues what is missing, and what may be wanted with it.
    fn ask(&self, wanted: &[Wanted], missing: &[usize], found: &mut [Option<Bytes>], choose: Choose<'_>) -> Result<Vec<Wait<'_>>, FetchError> {
        let shared = &*self.shared;
        // A joined wait needs no candidates: they went along with the first one.
        let is_new = {
            let queue = shared.queue.lock();
            missing.iter().any(|at| !queue.contains(&wanted[*at].digest))
        };
        let riders = if is_new { self.choose(choose) } else { Vec::new() };
        let now = Instant::now();
        let mut waits = Vec::with_capacity(missing.len());
        let mut plan = shared.plan.lock();
        let mut queue = shared.queue.lock();
        if queue.closing {
            return Err(ended(wanted[missing[0]].digest));
        }
        let mut any_new = false;
        for at in missing {
            let Wanted { digest, len } = wanted[*at];
            // It may have arrived since we looked.
            let arrived = shared.memory.lock().get(&digest).or_else(|| shared.saver.get(&digest));
            if arrived.is_some() {
                found[*at] = arrived;
                continue;
            }
            let expected = if queue.contains(&digest) { None } else { self.expected(&mut plan, &digest, len, now) };
            let joined = queue.join(digest, len, expected, now);
            any_new |= joined.new;
            shared.counters.demand_misses.add(1);
            waits.push(Wait { fetcher: self, at: *at, digest, slot: joined.slot, is_new: joined.new });
        }
        if any_new {
            let mut room = shared.waste_room(queue.ahead_flying);
            for rider in &riders {
                let len = u64::from(if rider.len == 0 { queue::UNKNOWN_LEN } else { rider.len });
                let affordable = room >= len || (rider.probability >= SURE && !shared.options.strict);
                if !affordable || plan.is_expected(&rider.digest) || shared.in_memory(&rider.digest) {
                    continue;
                }
                room = room.saturating_sub(len);
                queue.ride(rider, now);
            }
        }
        drop(queue);
        drop(plan);
        shared.wake.notify_one();
        Ok(waits)
    }

    /// Until when to wait for the launch stream to bring an object, if that is sooner than asking for it.
    fn expected(&self, plan: &mut Plan, digest: &Digest, len: u32, now: Instant) -> Option<Instant> {
        let link = self.shared.link.lock();
        let ahead = link.transfer(plan.bytes_until(digest)?);
        let ask = link.round_trip() + link.transfer(len.into());
        let slack = (link.round_trip() / 4).max(Duration::from_millis(5));
        if ahead <= ask + slack {
            return Some(now + (ahead + slack) * 2 + link.round_trip());
        }
        self.shared.counters.promotions.add(1);
        plan.taken_out(digest);
        None
    }

    /// Candidates that are worth asking for now and are not here.
    fn choose(&self, choose: Choose<'_>) -> Vec<Candidate> {
        let room = {
            let link = self.shared.link.lock();
            Room { read_ahead: link.read_ahead(), predicted: link.window() }
        };
        let mut candidates = choose(room);
        let admits = self.shared.admission();
        candidates.retain(|candidate| admits(candidate.len, candidate.probability));
        let mut bytes = 0;
        let mut absent = self.absent(candidates);
        absent.retain(|candidate| {
            bytes += u64::from(candidate.len);
            bytes <= room.predicted
        });
        absent
    }

    /// Those that are not on this machine.
    fn absent(&self, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        if candidates.is_empty() {
            return candidates;
        }
        let digests: Vec<Digest> = candidates.iter().map(|candidate| candidate.digest).collect();
        let Ok(present) = self.shared.options.cache.contains(&digests) else { return Vec::new() };
        let mut present = present.into_iter();
        candidates.retain(|candidate| !present.next().unwrap_or(false) && !self.shared.in_memory(&candidate.digest));
        candidates
    }

    fn unreachable(&self, digest: Digest, started: Instant) -> FetchError {
        let reason = self.shared.queue.lock().last_failure.clone();
        FetchError::Unreachable { digest, waited_s: started.elapsed().as_secs(), reason: reason.unwrap_or_else(|| "the registry does not answer".into()) }
    }

    /// The application used an object that it did not get from here: counts it, and says where it came from.
    pub(crate) fn used(&self, digest: &Digest, len: usize) -> Source {
        self.shared.memory.lock().used(digest, len, false)
    }

    /// Whether an object is on this machine, so far as that can be told without reading it.
    pub(crate) fn is_here(&self, digest: &Digest) -> bool {
        self.shared.in_memory(digest) || self.shared.options.cache.contains(std::slice::from_ref(digest)).is_ok_and(|here| here == [true])
    }

    /// These bytes of nodes that are asked for ahead of use are bounded by whoever asks, not by the waste budget.
    pub(crate) fn allow(&self, bytes: u64) {
        self.shared.allowance.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The model proved wrong: what it wasted so far, as far as the budget goes, is not charged to what follows. So all that
    /// a launch wastes is at most twice the budget, and a wrong model costs little more than none.
    pub(crate) fn forgive(&self) {
        let wasted = self.shared.memory.lock().usage().ahead_unused + self.shared.counters.bytes_wasted.get();
        self.shared.forgiven.store(wasted.min(self.shared.options.waste_budget_bytes), Ordering::Relaxed);
    }

    /// Whether an object of this length and probability would be fetched ahead now.
    pub(crate) fn admission(&self) -> impl Fn(u32, f32) -> bool + use<> {
        self.shared.admission()
    }

    /// The delivery rate as last measured, in uncompressed bytes a second.
    pub(crate) fn rate(&self) -> f64 {
        self.shared.link.lock().rate()
    }

    /// An object that is on this machine. Makes no request, and does not count as use.
    pub fn local(&self, digest: &Digest) -> Option<Bytes> {
        self.shared.find(digest)
    }

    /// Queues objects to be fetched ahead of use, the most urgent first ([`crate::link::Link::urgency`]), with `replan` before
    /// all that is queued already. Those that are here, or that the launch stream will bring, are left out. Does nothing offline.
    pub fn prefetch(&self, candidates: Vec<Candidate>, replan: bool) {
        if self.shared.is_offline() {
            return;
        }
        let absent = self.absent(candidates);
        if absent.is_empty() {
            return;
        }
        let now = Instant::now();
        {
            let plan = self.shared.plan.lock();
            let mut queue = self.shared.queue.lock();
            if queue.closing {
                return;
            }
            if replan {
                queue.replan();
            }
            let (link, since) = (self.shared.link.lock().clone(), self.shared.now());
            // What arrived since we looked is in memory: an object lands under this lock.
            for candidate in absent.iter().filter(|candidate| !plan.is_expected(&candidate.digest) && !self.shared.in_memory(&candidate.digest)) {
                let len = if candidate.len == 0 { queue::UNKNOWN_LEN } else { candidate.len };
                let urgency = link.urgency(len.into(), candidate.probability, Duration::from_micros(candidate.within_us.into()));
                queue.enqueue(candidate, since + urgency, now);
            }
        }
        self.shared.wake.notify_one();
    }

    /// Brings objects here in this order when nothing else is wanted of the link. What does not come is forgotten.
    pub(crate) fn bring(&self, objects: &[(Digest, u32)]) {
        if !self.shared.is_offline() {
            self.shared.queue.lock().bring(objects);
            self.shared.wake.notify_one();
        }
    }

    /// Objects of [`Fetcher::bring`] that have not come, and are not forgotten.
    pub(crate) fn background_left(&self) -> usize {
        self.shared.queue.lock().background_left()
    }

    /// For how long no thread has had to wait for anything.
    pub(crate) fn quiet_for(&self) -> Duration {
        let last = self.shared.queue.lock().last_demand;
        last.unwrap_or(self.shared.started).elapsed()
    }

    /// Whether nothing is being fetched ahead of use, nor announced.
    pub(crate) fn is_idle(&self) -> bool {
        let is_open = self.shared.plan.lock().open;
        let queue = self.shared.queue.lock();
        !is_open && !queue.has_prefetch() && queue.demand_requests + queue.prefetch_requests == 0
    }

    /// Whether the store failed last time.
    pub(crate) fn is_store_failing(&self) -> bool {
        self.shared.saver.is_failing()
    }

    /// Prefixes of the objects that the launch stream has announced and not brought yet.
    pub(crate) fn planned(&self) -> Vec<u64> {
        self.shared.plan.lock().outstanding()
    }

    /// Leaves the launch stream: what it has not brought is fetched as needed.
    pub(crate) fn leave_stream(&self) {
        self.shared.plan.lock().leave();
        self.shared.wake.notify_one();
    }

    /// Forgets what is queued ahead of use; what is on its way still arrives.
    pub fn stop_prefetch(&self) {
        self.shared.queue.lock().drop_prefetch();
    }

    /// Reads the launch of an image: see [`LaunchStream`].
    pub fn launch(&self, options: LaunchOptions) -> LaunchStream {
        LaunchStream::start(self.shared.clone(), options)
    }

    /// Whether only what is nearly sure to be used is fetched ahead.
    pub(crate) fn is_strict(&self) -> bool {
        self.shared.options.strict
    }

    /// What is told of waits and arrivals.
    pub(crate) fn timeline(&self) -> Option<&Arc<Timeline>> {
        self.shared.options.timeline.as_ref()
    }

    /// Whether no request can ever be made.
    pub fn is_offline(&self) -> bool {
        self.shared.is_offline()
    }

    /// Waits until all that was fetched is in the local store and durable, as far as the store can.
    pub fn flush(&self) {
        self.shared.saver.flush();
    }

    /// What was needed and fetched so far. The hit rate is the recorder's to tell.
    pub fn stats(&self) -> RunStats {
        let usage = self.shared.memory.lock().usage();
        let mut stats = self.shared.counters.report();
        stats.bytes_received = self.shared.options.origin.as_ref().and_then(|origin| origin.received_bytes()).unwrap_or(stats.bytes_fetched);
        stats.bytes_needed = usage.needed;
        stats.local_bytes = usage.local;
        stats.bytes_prefetched_used = usage.ahead_used;
        stats.bytes_wasted += usage.ahead_unused;
        stats.hit_rate = 1.0;
        let micros = |share| self.shared.latency.quantile(share).as_micros() as u64;
        (stats.demand_p50_us, stats.demand_p99_us, stats.demand_max_us) = (micros(0.5), micros(0.99), micros(1.0));
        stats.store_error = self.shared.saver.failure().map(|error| error.to_string());
        let link = self.shared.link.lock();
        stats.round_trip_us = link.round_trip().as_micros() as u64;
        stats.rate_bytes_per_s = link.rate() as u64;
        stats
    }

    /// What is going on now.
    pub fn gauges(&self) -> Gauges {
        let queue = self.shared.queue.lock();
        let (demanded, prefetches) = queue.gauges();
        let (requests, ahead_bytes) = (queue.demand_requests + queue.prefetch_requests, queue.ahead_flying);
        drop(queue);
        Gauges { demanded, prefetches, requests, ahead_bytes, answers: self.shared.link.lock().open_answers() }
    }

    /// Ends all requests and the launch stream, and writes what there is to the store. Reads of what is not local fail
    /// from here on. Dropping the fetcher does the same.
    pub fn close(&self) {
        let jobs = {
            let mut queue = self.shared.queue.lock();
            queue.closing = true;
            queue.clear()
        };
        for (digest, job) in jobs {
            job.slot.set(Err(ended(digest)));
        }
        self.shared.wake.notify_one();
        self.shared.saver.close();
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.close();
    }
}

/// A thread waiting for an object; leaves the job when dropped.
struct Wait<'a> {
    fetcher: &'a Fetcher,
    at: usize,
    digest: Digest,
    slot: Arc<Slot>,
    /// Nobody had asked for it, nor was it announced.
    is_new: bool,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.fetcher.shared.queue.lock().leave(&self.digest, &self.slot);
    }
}

fn ended(digest: Digest) -> FetchError {
    FetchError::Unreachable { digest, waited_s: 0, reason: "the run has ended".into() }
}

/// For demands of which nothing more is known.
pub fn no_candidates(_: Room) -> Vec<Candidate> {
    Vec::new()
}
