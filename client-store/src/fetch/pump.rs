//! The task that makes requests of what is queued.
//!
//! It never reads an answer itself: each request is a task of its own, so that demand overtakes prefetch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::queue::Batch;
use super::{Shared, request};
use crate::link::WINDOW_BYTES;

/// Most requests under way for objects that someone waits for. More wait, and then share a request.
const MAX_DEMAND_REQUESTS: usize = 8;
/// Round trip from which on it is worth waiting a moment for other threads' demands.
const GATHER_FROM: Duration = Duration::from_millis(50);
/// Requests that complete the image: one is arriving while another is asked for. Small ones, since a demand may find one
/// on the way.
const BACKGROUND_REQUESTS: usize = 2;
const BACKGROUND_BYTES: u64 = 1 << 20;
/// How long they pause after a thread had to wait.
const RESUME_AFTER: Duration = Duration::from_millis(500);
/// How often prefetches that have no room are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes waiting to be written at which prefetching waits for the disk.
pub(crate) const MAX_BACKLOG_BYTES: usize = 64 << 20;

/// Runs until the fetcher is closed, and ends all requests then.
pub(crate) async fn run(shared: Arc<Shared>) {
    let Some(origin) = shared.options.origin.clone() else { return };
    let mut requests = JoinSet::new();
    loop {
        let far = shared.link.lock().round_trip() >= GATHER_FROM;
        match far {
            true => tokio::time::sleep(Duration::from_millis(1)).await,
            false => tokio::task::yield_now().await,
        }
        let Some((batches, next)) = shared.next_batches() else { return };
        for batch in batches {
            requests.spawn(request::run(shared.clone(), origin.clone(), batch));
        }
        let next = next.map(|next| next.max(Instant::now() + Duration::from_millis(1)));
        tokio::select! {
            () = shared.wake.notified() => {}
            Some(_) = requests.join_next(), if !requests.is_empty() => {}
            () = sleep_until(next) => {}
        }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    /// The requests to make now, and when to look again if nothing happens; `None` when the fetcher is closed.
    fn next_batches(&self) -> Option<(Vec<Batch>, Option<Instant>)> {
        let now = Instant::now();
        let mut batches = Vec::new();
        let mut plan = self.plan.lock();
        let mut queue = self.queue.lock();
        if queue.closing {
            return None;
        }
        let promoted = queue.give_up_plan(now, !plan.open, |digest| plan.has_passed(digest));
        for digest in &promoted {
            if !plan.has_passed(digest) {
                plan.stall();
            }
            plan.taken_out(digest);
        }
        self.counters.promotions.add(promoted.len() as u64);
        drop(plan);
        while queue.demand_requests < MAX_DEMAND_REQUESTS {
            let Some(batch) = queue.take_demand(now) else { break };
            batches.push(batch);
        }
        let mut next = queue.next_moment(now).filter(|_| queue.demand_requests < MAX_DEMAND_REQUESTS);
        let link = self.link.lock().clone();
        if !queue.has_prefetch() {
            // Completing the image: only what is left of the link, and nothing for a while after someone had to wait.
            let resume = queue.last_demand.map(|last| last + RESUME_AFTER).filter(|moment| *moment > now);
            let is_free = queue.demand_requests == 0 && !queue.has_demand() && !self.plan.try_lock().is_some_and(|plan| plan.open);
            if queue.has_background() {
                while is_free && resume.is_none() && queue.prefetch_requests < BACKGROUND_REQUESTS && self.saver.backlog() < MAX_BACKLOG_BYTES {
                    let Some(batch) = queue.take_background(now, (link.window() / 4).min(BACKGROUND_BYTES)) else { break };
                    batches.push(batch);
                }
                let again = resume.unwrap_or(now + LOOK_AGAIN);
                next = Some(next.map_or(again, |next| next.min(again)));
            }
            return Some((batches, next));
        }
        let busy = queue.demand_requests > 0;
        // With some of it left to the demands; still more than the link holds, so that a rate that was underestimated grows.
        let window = if busy { link.window() / 4 * 3 } else { link.window() };
        let admits = self.admission();
        let backlog = self.saver.backlog() > MAX_BACKLOG_BYTES;
        while !queue.has_demand() && queue.prefetch_requests < link.requests() && !backlog {
            let room = window.saturating_sub(queue.ahead_flying).min(self.waste_room(queue.ahead_flying));
            // Pieces large enough to be worth a request, and small enough that the window holds a few.
            if room < *WINDOW_BYTES.start() / 4 {
                break;
            }
            let Some(batch) = queue.take_prefetch(now, room.min(window / 3), &admits) else {
                break;
            };
            batches.push(batch);
        }
        if queue.has_prefetch() {
            next = Some(next.map_or(now + LOOK_AGAIN, |next| next.min(now + LOOK_AGAIN)));
        }
        Some((batches, next))
    }
}
