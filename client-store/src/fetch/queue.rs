//! What is wanted and not here yet: one queue for demand and prefetch, in which each object stands once.
//!
//! Pure bookkeeping under one lock; no I/O, no waiting. An object's [`Job`] goes from a waiting phase to
//! [`Phase::Flying`] when it is put in a request, and is gone when it [lands](Queue::landed). A demand for an object
//! that has a job joins it and raises its class: it is never asked for twice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use layer_format::Digest;
use layer_format::recording::Class;
use parking_lot::{Condvar, Mutex};

use super::Candidate;
use crate::error::FetchError;

/// Most digests of a request for objects that someone waits for.
const MAX_DEMAND_DIGESTS: usize = 1024;
/// Most objects that wait to be prefetched; what is beyond is forgotten.
const MAX_PREFETCH_QUEUE: usize = 8192;
/// Most objects that wait to go along with a demand.
const MAX_RIDERS: usize = 2048;
/// Length assumed of an object of unknown length, in bytes.
pub(crate) const UNKNOWN_LEN: u32 = 8 << 10;

/// Where the waiting threads find the answer.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    answer: Mutex<Option<Result<Bytes, FetchError>>>,
    ready: Condvar,
}

impl Slot {
    pub(crate) fn set(&self, answer: Result<Bytes, FetchError>) {
        self.answer.lock().get_or_insert(answer);
        self.ready.notify_all();
    }

    pub(crate) fn wait_until(&self, deadline: Instant) -> Option<Result<Bytes, FetchError>> {
        let mut answer = self.answer.lock();
        while answer.is_none() {
            if self.ready.wait_until(&mut answer, deadline).timed_out() {
                break;
            }
        }
        answer.clone()
    }
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for its turn, as demand or as prefetch.
    Queued,
    /// Goes along with the next request for demanded objects.
    Riding,
    /// In the request of this number.
    Flying(u64),
    /// The launch stream will bring it; asked for by itself when this moment has passed.
    Planned(Instant),
}

#[derive(Debug)]
pub(crate) struct Job {
    /// How many threads wait. None: prefetch.
    pub(crate) waiters: u32,
    pub(crate) phase: Phase,
    pub(crate) slot: Arc<Slot>,
    /// Expected length.
    pub(crate) len: u32,
    probability: f32,
    attempts: u32,
    ready_at: Instant,
    /// Whether a thread waits or waited for it.
    demanded: bool,
    /// Place among the prefetches, if it has one.
    place: Option<Place>,
    /// Since the start of the run: the earlier, the sooner it is asked for.
    urgency: Duration,
    /// Whether it is brought to complete the image, and for nothing else.
    pub(crate) background: bool,
    /// Bytes of it that are counted in [`Queue::ahead_flying`].
    counted: u64,
}

/// Newest plan first, then the most urgent, then in the order in which it was made.
type Place = (std::cmp::Reverse<u64>, Duration, u64);

/// What to put in one request.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) number: u64,
    pub(crate) demand: bool,
    /// Why it is asked for.
    pub(crate) class: Class,
    /// Those who are waited for first.
    pub(crate) digests: Vec<Digest>,
}

/// How a demand found its object.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) slot: Arc<Slot>,
    /// Whether it has to be asked for.
    pub(crate) new: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    jobs: HashMap<Digest, Job>,
    /// Demanded and queued. May hold digests whose job has moved on.
    demand: VecDeque<Digest>,
    riders: Vec<Digest>,
    prefetch: BTreeMap<Place, Digest>,
    planned: Vec<Digest>,
    /// What completes the image, in order; requested only when nothing else is wanted.
    background: VecDeque<(Digest, u32)>,
    /// Those of them that are in a request.
    background_flying: usize,
    /// When a thread last had to wait for something.
    pub(crate) last_demand: Option<Instant>,
    generation: u64,
    next_place: u64,
    next_request: u64,
    /// Requests under way.
    pub(crate) demand_requests: usize,
    pub(crate) prefetch_requests: usize,
    /// Expected bytes on the way for which no one waits.
    pub(crate) ahead_flying: u64,
    /// Consecutive failures, and when to try again.
    pub(crate) demand_failures: u32,
    pub(crate) demand_not_before: Option<Instant>,
    /// The registry itself asked for that wait.
    pub(crate) is_busy: bool,
    pub(crate) prefetch_failures: u32,
    pub(crate) prefetch_not_before: Option<Instant>,
    /// The last failure, for the message when waiting ends.
    pub(crate) last_failure: Option<String>,
    pub(crate) closing: bool,
}

impl Queue {
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.jobs.contains_key(digest)
    }

    /// Number of jobs someone waits for, and of others.
    pub(crate) fn gauges(&self) -> (usize, usize) {
        let waited = self.jobs.values().filter(|job| job.waiters > 0).count();
        (waited, self.jobs.len() - waited)
    }

    fn add(&mut self, digest: Digest, len: u32, phase: Phase, now: Instant) -> &mut Job {
        self.jobs.entry(digest).or_insert_with(|| Job {
            waiters: 0,
            phase,
            slot: Arc::default(),
            len: if len == 0 { UNKNOWN_LEN } else { len },
            probability: 1.0,
            attempts: 0,
            ready_at: now,
            demanded: false,
            place: None,
            urgency: Duration::ZERO,
            background: false,
            counted: 0,
        })
    }

    /// A thread wants the object now: joins or makes its job. `expected` says until when the launch stream is trusted
    /// to bring it, if it will.
    pub(crate) fn join(&mut self, digest: Digest, len: u32, expected: Option<Instant>, now: Instant) -> Joined {
        self.last_demand = Some(now);
        let new = match self.jobs.get_mut(&digest) {
            Some(job) => {
                if job.waiters == 0 && matches!(job.phase, Phase::Queued | Phase::Riding) {
                    if let Some(place) = job.place.take() {
                        self.prefetch.remove(&place);
                    }
                    (job.phase, job.ready_at) = (Phase::Queued, now);
                    self.demand.push_back(digest);
                }
                // Bytes that someone waits for are not ahead of use.
                self.ahead_flying -= std::mem::take(&mut job.counted);
                false
            }
            None => {
                let phase = match expected {
                    Some(until) => Phase::Planned(until),
                    None => Phase::Queued,
                };
                self.add(digest, len, phase, now);
                match expected {
                    Some(_) => self.planned.push(digest),
                    None => self.demand.push_back(digest),
                }
                expected.is_none()
            }
        };
        let slot = match self.jobs.get_mut(&digest) {
            Some(job) => {
                job.waiters += 1;
                job.demanded = true;
                job.slot.clone()
            }
            None => Arc::default(),
        };
        Joined { slot, new }
    }

    /// A thread stops waiting.
    pub(crate) fn leave(&mut self, digest: &Digest, slot: &Arc<Slot>) {
        let Some(job) = self.jobs.get_mut(digest).filter(|job| Arc::ptr_eq(&job.slot, slot)) else { return };
        job.waiters -= 1;
        if job.waiters == 0 && !matches!(job.phase, Phase::Flying(_)) {
            self.remove(digest);
        }
    }

    /// Adds an object to the next request for demanded ones.
    pub(crate) fn ride(&mut self, candidate: &Candidate, now: Instant) {
        if self.riders.len() < MAX_RIDERS && !self.jobs.contains_key(&candidate.digest) {
            self.add(candidate.digest, candidate.len, Phase::Riding, now).probability = candidate.probability;
            self.riders.push(candidate.digest);
        }
    }

    /// What is added from here on goes before all that was added earlier: the application took another path.
    pub(crate) fn replan(&mut self) {
        self.generation += 1;
    }

    /// Queues an object to be fetched ahead of use.
    pub(crate) fn enqueue(&mut self, candidate: &Candidate, urgency: Duration, now: Instant) {
        if self.jobs.contains_key(&candidate.digest) {
            return;
        }
        let job = self.add(candidate.digest, candidate.len, Phase::Queued, now);
        (job.probability, job.urgency) = (candidate.probability, urgency);
        self.place(candidate.digest);
        while self.prefetch.len() > MAX_PREFETCH_QUEUE {
            let Some((_, digest)) = self.prefetch.pop_last() else { return };
            self.jobs.remove(&digest);
        }
    }

    fn place(&mut self, digest: Digest) {
        if let Some(job) = self.jobs.get_mut(&digest) {
            let place = (std::cmp::Reverse(self.generation), job.urgency, self.next_place);
            self.next_place += 1;
            job.place = Some(place);
            self.prefetch.insert(place, digest);
        }
    }

    /// Queues what completes the image.
    pub(crate) fn bring(&mut self, objects: &[(Digest, u32)]) {
        self.background.extend(objects);
    }

    /// Objects of [`Queue::bring`] that are queued or on the way.
    pub(crate) fn background_left(&self) -> usize {
        self.background.len() + self.background_flying
    }

    /// Whether something is queued only to complete the image.
    pub(crate) fn has_background(&self) -> bool {
        !self.background.is_empty()
    }

    /// The next request of those, of at most `max_bytes`.
    pub(crate) fn take_background(&mut self, now: Instant, max_bytes: u64) -> Option<Batch> {
        if self.prefetch_not_before.is_some_and(|until| now < until) {
            return None;
        }
        let number = self.next_request;
        let (mut digests, mut bytes) = (Vec::new(), 0u64);
        while bytes < max_bytes && digests.len() < layer_format::api::MAX_DIGESTS / 4 {
            let Some((digest, len)) = self.background.pop_front() else { break };
            if self.jobs.contains_key(&digest) {
                continue;
            }
            let job = self.add(digest, len, Phase::Flying(number), now);
            job.background = true;
            bytes += u64::from(job.len);
            digests.push(digest);
        }
        if digests.is_empty() {
            return None;
        }
        self.background_flying += digests.len();
        self.next_request += 1;
        self.prefetch_requests += 1;
        Some(Batch { number, demand: false, class: Class::Background, digests })
    }

    /// Forgets everything that is queued and that no one waits for.
    pub(crate) fn drop_prefetch(&mut self) {
        for digest in std::mem::take(&mut self.prefetch).into_values() {
            self.jobs.remove(&digest);
        }
        self.background.clear();
    }

    fn remove(&mut self, digest: &Digest) -> Option<Job> {
        let job = self.jobs.remove(digest)?;
        if let Some(place) = &job.place {
            self.prefetch.remove(place);
        }
        self.ahead_flying -= job.counted;
        self.background_flying -= usize::from(job.background);
        Some(job)
    }

    /// The object is here (or will never be): its job ends. The caller tells the waiting threads.
    pub(crate) fn landed(&mut self, digest: &Digest) -> Option<Job> {
        self.remove(digest)
    }

    /// All jobs end.
    pub(crate) fn clear(&mut self) -> Vec<(Digest, Job)> {
        (self.ahead_flying, self.riders, self.demand, self.planned) = (0, Vec::new(), VecDeque::new(), Vec::new());
        self.prefetch.clear();
        self.background.clear();
        self.background_flying = 0;
        self.jobs.drain().collect()
    }

    /// Planned objects that did not come in time are asked for; all of them, if `all`. Says which.
    pub(crate) fn give_up_plan(&mut self, now: Instant, all: bool, skipped: impl Fn(&Digest) -> bool) -> Vec<Digest> {
        let mut promoted = Vec::new();
        let mut planned = std::mem::take(&mut self.planned);
        planned.retain(|digest| {
            let Some(job) = self.jobs.get_mut(digest) else { return false };
            let Phase::Planned(until) = job.phase else { return false };
            if !(all || until <= now || skipped(digest)) {
                return true;
            }
            (job.phase, job.ready_at) = (Phase::Queued, now);
            self.demand.push_back(*digest);
            promoted.push(*digest);
            false
        });
        self.planned = planned;
        promoted
    }

    /// The next request for objects that someone waits for, with their riders.
    pub(crate) fn take_demand(&mut self, now: Instant) -> Option<Batch> {
        if self.demand_not_before.is_some_and(|until| now < until) {
            return None;
        }
        let number = self.next_request;
        let (mut digests, mut later) = (Vec::new(), VecDeque::new());
        while let Some(digest) = self.demand.pop_front() {
            let Some(job) = self.jobs.get_mut(&digest).filter(|job| job.phase == Phase::Queued && job.waiters > 0) else { continue };
            if job.ready_at > now || digests.len() >= MAX_DEMAND_DIGESTS {
                later.push_back(digest);
                continue;
            }
            job.phase = Phase::Flying(number);
            digests.push(digest);
        }
        self.demand = later;
        if digests.is_empty() && self.riders.is_empty() {
            return None;
        }
        let demand = !digests.is_empty();
        for digest in std::mem::take(&mut self.riders) {
            let Some(job) = self.jobs.get_mut(&digest).filter(|job| job.phase == Phase::Riding) else { continue };
            job.phase = Phase::Flying(number);
            job.counted = job.len.into();
            self.ahead_flying += job.counted;
            digests.push(digest);
        }
        if digests.is_empty() {
            return None;
        }
        self.next_request += 1;
        match demand {
            true => self.demand_requests += 1,
            false => self.prefetch_requests += 1,
        }
        Some(Batch { number, demand, class: if demand { Class::Demand } else { Class::Prefetch }, digests })
    }

    /// Whether something is queued ahead of use.
    pub(crate) fn has_prefetch(&self) -> bool {
        !self.prefetch.is_empty()
    }

    /// Whether a thread waits for an object of the launch stream.
    pub(crate) fn has_planned(&self) -> bool {
        !self.planned.is_empty()
    }

    /// Whether a thread waits for something that is not on its way.
    pub(crate) fn has_demand(&self) -> bool {
        self.demand.iter().any(|digest| self.jobs.get(digest).is_some_and(|job| job.phase == Phase::Queued && job.waiters > 0))
    }

    /// The next request of prefetches, of at most `max_bytes`. `admit` says by length and probability whether one is
    /// still worth it; those that are not are forgotten.
    pub(crate) fn take_prefetch(&mut self, now: Instant, max_bytes: u64, admit: impl Fn(u32, f32) -> bool) -> Option<Batch> {
        if self.prefetch_not_before.is_some_and(|until| now < until) {
            return None;
        }
        let number = self.next_request;
        let (mut digests, mut bytes) = (Vec::new(), 0u64);
        while bytes < max_bytes && digests.len() < layer_format::api::MAX_DIGESTS / 4 {
            let Some((_, digest)) = self.prefetch.first_key_value() else { break };
            let digest = *digest;
            let Some(job) = self.jobs.get_mut(&digest) else {
                self.prefetch.pop_first();
                continue;
            };
            if !digests.is_empty() && bytes + u64::from(job.len) > max_bytes {
                break;
            }
            self.prefetch.pop_first();
            job.place = None;
            if !admit(job.len, job.probability) {
                self.jobs.remove(&digest);
                continue;
            }
            job.phase = Phase::Flying(number);
            job.counted = job.len.into();
            self.ahead_flying += job.counted;
            bytes += job.counted;
            digests.push(digest);
        }
        if digests.is_empty() {
            return None;
        }
        self.next_request += 1;
        self.prefetch_requests += 1;
        Some(Batch { number, demand: false, class: Class::Prefetch, digests })
    }

    /// The request `number` ended without this object. Whoever waits for it: again, `delay(attempts)` from now. Else
    /// once more, or forgotten. Says whether it will be asked for again.
    pub(crate) fn missed(&mut self, digest: &Digest, number: u64, now: Instant, delay: impl Fn(u32) -> Duration) -> bool {
        let Some(job) = self.jobs.get_mut(digest).filter(|job| job.phase == Phase::Flying(number)) else { return false };
        self.ahead_flying -= std::mem::take(&mut job.counted);
        job.phase = Phase::Queued;
        if job.waiters > 0 {
            job.ready_at = now + delay(job.attempts);
            job.attempts += 1;
            self.demand.push_back(*digest);
            return true;
        }
        job.attempts += 1;
        if job.attempts > 1 || job.demanded || job.background {
            // Failed twice, or whoever wanted it has given up or asks again by itself.
            self.remove(digest);
            return false;
        }
        self.place(*digest);
        true
    }

    /// When something becomes possible without anything else happening.
    pub(crate) fn next_moment(&self, now: Instant) -> Option<Instant> {
        let demand = self.demand.iter().filter_map(|digest| self.jobs.get(digest)).filter(|job| job.phase == Phase::Queued && job.waiters > 0);
        let demand = demand.map(|job| self.demand_not_before.map_or(job.ready_at, |until| until.max(job.ready_at))).min();
        let planned = self.planned.iter().filter_map(|digest| match self.jobs.get(digest)?.phase {
            Phase::Planned(until) => Some(until),
            _ => None,
        });
        let prefetch = self.prefetch_not_before.filter(|until| *until > now && !self.prefetch.is_empty());
        demand.into_iter().chain(planned.min()).chain(prefetch).min()
    }
}
