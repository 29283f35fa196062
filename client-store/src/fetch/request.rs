//! One request for objects, from sending it to what becomes of those that did not come.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use layer_format::Digest;
use layer_format::frame::Frame;
use layer_format::recording::Class;
use tokio::time::timeout;

use super::Shared;
use super::queue::Batch;
use crate::error::FetchError;
use crate::origin::{Origin, OriginError, Received};
use crate::timeline::Ended;

/// First and longest wait before a demand is repeated; each doubles the one before, and a random part of it is waited.
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);
/// Longest wait that a registry can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Failures in a row after which nothing is prefetched for a while, and how long at first and at most.
const BREAKER_FAILURES: u32 = 3;
const BREAKER_PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(60);
/// Rate from which on stored frames are taken as they are: compressing them together again would slow the answer down.
const FRAMES_FROM_RATE: f64 = 60e6;

/// How long to wait after `failures` failures before this one.
pub(crate) fn backoff(failures: u32) -> Duration {
    let longest = BACKOFF.start().saturating_mul(1 << failures.min(10)).min(*BACKOFF.end());
    longest.mul_f64(rand::random::<f64>())
}

/// Makes a request and hands over what it brings. Every object of it ends up delivered, refused or queued again, also
/// if the task is dropped.
pub(crate) async fn run(shared: Arc<Shared>, origin: Arc<dyn Origin>, batch: Batch) {
    let answer = Answer::new(shared, batch.class, batch.digests.len());
    let mut flight = Flight { answer, left: batch.digests.iter().copied().collect(), batch, outcome: None };
    let outcome = flight.receive(&*origin).await;
    flight.outcome = Some(outcome);
}

/// The measuring side of one answer: tells the link when it opens and closes.
pub(crate) struct Answer {
    pub(crate) shared: Arc<Shared>,
    class: Class,
    objects: usize,
    bytes: u64,
    started: Instant,
    first_byte: Option<Duration>,
}

impl Answer {
    /// An answer that is asked for now, for so many objects.
    pub(crate) fn new(shared: Arc<Shared>, class: Class, objects: usize) -> Self {
        shared.counters.requests.add(1);
        Self { shared, class, objects, bytes: 0, started: Instant::now(), first_byte: None }
    }

    /// A record of so many bytes arrived.
    pub(crate) fn record(&mut self, bytes: usize) {
        let mut link = self.shared.link.lock();
        if self.first_byte.is_some() {
            link.delivered(bytes as u64, self.shared.now());
        } else {
            let elapsed = self.started.elapsed();
            self.first_byte = Some(elapsed);
            link.opened(elapsed, self.shared.now());
        }
        drop(link);
        self.bytes += bytes as u64;
        if let Some(timeline) = &self.shared.options.timeline {
            timeline.arrived(self.class, bytes as u64, || self.shared.link.lock().clone());
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(timeline) = &self.shared.options.timeline {
            let Self { class, started, first_byte, bytes, objects, .. } = *self;
            timeline.requested(Ended { class, started, first_byte, bytes, objects });
        }
        if self.first_byte.is_some() {
            self.shared.link.lock().closed(self.shared.now());
        }
    }
}

/// Length of what a record carries.
pub(crate) fn payload_len(record: &Received) -> usize {
    match record {
        Received::Object(bytes) | Received::Frame(bytes) | Received::Image(bytes) | Received::Model(bytes) => bytes.len(),
        Received::Plan(prefixes) => 8 * prefixes.len(),
        Received::Missing(_) | Received::End(_) => 0,
    }
}

pub(crate) fn silence(limit: Duration) -> OriginError {
    OriginError::Network { url: "the registry".into(), reason: format!("nothing came for {} s", limit.as_secs()) }
}

struct Flight {
    answer: Answer,
    batch: Batch,
    left: HashSet<Digest>,
    outcome: Option<Result<(), OriginError>>,
}

impl Flight {
    async fn receive(&mut self, origin: &dyn Origin) -> Result<(), OriginError> {
        let shared = self.answer.shared.clone();
        let limit = shared.options.stall_limit;
        if self.batch.demand {
            shared.counters.demand_requests.add(1);
        }
        let launch = shared.launch_id.lock().clone();
        let frames = !self.batch.demand && shared.link.lock().rate() > FRAMES_FROM_RATE;
        let request = origin.objects(&shared.options.repository, self.batch.digests.clone(), launch.as_deref(), frames);
        let mut stream = timeout(limit, request).await.map_err(|_| silence(limit))??;
        while let Some(record) = timeout(limit, stream.next()).await.map_err(|_| silence(limit))? {
            let record = record?;
            self.answer.record(payload_len(&record));
            match record {
                Received::Object(bytes) => self.object(bytes),
                Received::Frame(bytes) => self.frame(&bytes),
                Received::Missing(digest) if self.left.remove(&digest) => shared.refuse(&digest, FetchError::NotFound { digest }),
                Received::End(reason) if reason.is_empty() || self.left.is_empty() => return Ok(()),
                Received::End(reason) => return Err(OriginError::Busy { message: reason, retry_after: None }),
                // Not part of this answer: the protocol may grow.
                Received::Missing(_) | Received::Image(_) | Received::Model(_) | Received::Plan(_) => {}
            }
        }
        Err(OriginError::Network { url: "the registry".into(), reason: "the answer was cut".into() })
    }

    fn object(&mut self, bytes: Bytes) {
        let shared = &self.answer.shared;
        let digest = Digest::of(&bytes);
        if self.left.remove(&digest) {
            shared.deliver(digest, bytes);
            return;
        }
        shared.counters.bytes_wasted.add(bytes.len() as u64);
        if !self.batch.digests.contains(&digest) {
            shared.counters.damaged_objects.add(1);
            tracing::debug!(%digest, "an object that was not asked for was dropped");
        }
    }

    fn frame(&mut self, encoded: &[u8]) {
        let Ok(frame) = Frame::decode(encoded) else {
            self.answer.shared.counters.damaged_objects.add(1);
            self.answer.shared.counters.bytes_wasted.add(encoded.len() as u64);
            return;
        };
        let ranges: Vec<_> = (0..frame.count()).filter_map(|index| frame.range(index)).collect();
        let bytes = Bytes::from(frame.into_bytes());
        for range in ranges {
            self.object(bytes.slice(range));
        }
    }

    /// The registry refuses for good: no point in asking again.
    fn refused(&self, error: &OriginError) {
        for digest in &self.left {
            let error = match error {
                OriginError::NotFound { .. } => FetchError::NotFound { digest: *digest },
                _ => FetchError::Refused { message: error.to_string() },
            };
            self.answer.shared.refuse(digest, error);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let shared = self.answer.shared.clone();
        // A task that was dropped counts as a broken connection.
        let outcome = self.outcome.take().unwrap_or_else(|| Err(OriginError::Network { url: "the registry".into(), reason: "the request was dropped".into() }));
        if let Err(error) = &outcome
            && !error.is_retryable()
        {
            self.refused(error);
            self.left.clear();
        }
        let now = Instant::now();
        let mut queue = shared.queue.lock();
        match self.batch.demand {
            true => queue.demand_requests -= 1,
            false => queue.prefetch_requests -= 1,
        }
        match &outcome {
            Ok(()) if !self.batch.demand => (queue.prefetch_failures, queue.prefetch_not_before) = (0, None),
            Ok(()) => {}
            Err(error) => {
                let asked = match error {
                    OriginError::Busy { retry_after, .. } => retry_after.unwrap_or_default().min(MAX_RETRY_AFTER),
                    _ => Duration::ZERO,
                };
                queue.last_failure = Some(error.to_string());
                tracing::debug!(%error, left = self.left.len(), demand = self.batch.demand, "a request failed");
                if self.batch.demand {
                    queue.demand_not_before = Some(now + backoff(queue.demand_failures).max(asked));
                    queue.demand_failures += 1;
                    queue.is_busy = !asked.is_zero();
                } else {
                    queue.prefetch_failures += 1;
                    let pause = match queue.prefetch_failures.checked_sub(BREAKER_FAILURES) {
                        Some(more) => BREAKER_PAUSE.start().saturating_mul(1 << more.min(10)).min(*BREAKER_PAUSE.end()),
                        None => *BACKOFF.end(),
                    };
                    queue.prefetch_not_before = Some(now + pause.max(asked));
                }
            }
        }
        let answered = outcome.is_ok();
        let mut again = false;
        for digest in self.batch.digests.iter().filter(|digest| self.left.contains(digest)) {
            again |= queue.missed(digest, self.batch.number, now, |attempts| if answered { backoff(attempts) } else { Duration::ZERO });
        }
        drop(queue);
        if again {
            shared.counters.retries.add(1);
        }
        shared.wake.notify_one();
    }
}
