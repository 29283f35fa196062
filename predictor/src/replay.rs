//! What a launch would have cost over a link: a trace replayed against a policy of prefetching.
//!
//! # The simulated world
//! One client, one server, one [`Link`] and one way of using it, a [`Setup`]. At time 0 the client begins to connect,
//! and then asks to launch. The server answers with the head (image, model), and then with what the policy plans, frame
//! by frame. A byte takes its time on the link, TCP's slow start adds a round trip for each doubling of what may be under
//! way, and an object is of use when its frame has arrived and it is decompressed and verified.
//!
//! The application starts when the head is there, and touches what the trace says ([`schedule`]): a process goes from
//! touch to touch in the trace's time, waiting for what is not there; others go on meanwhile. So record traces where
//! everything was local. A touch needs the [`Travel`]'s objects for its place. If some are not there, nor on their way,
//! nor planned so soon that asking would not bring them sooner, a request goes out, which the server answers before
//! anything that is planned, but behind what it has handed to the network already. What is sent is never cancelled,
//! nothing is sent twice, everything is remote at first.
//!
//! # The bound
//! Where each touch waits only for its objects and its predecessors, the end of the launch is the longest path, that is
//! the greatest, over objects, of the time at which the object is there plus the *tail*: what the application has to do
//! from its first touch on. For a link that sends one object after the other, sending them by falling tail is optimal (Jackson,
//! 1955: one machine, delivery times). That is what the oracle does, always busy from the first moment, so no policy
//! launches sooner: a property test looks for one.
//!
//! # What it leaves out
//! Loss, competing traffic, memory, and how long the server takes to find what it sends.

mod follow;
mod link;
mod lists;
mod pipe;
pub mod schedule;
mod server;
#[cfg(test)]
mod tests;
mod travel;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use layer_format::model::Model;
use layer_format::trace::Trace;
use serde::{Deserialize, Serialize};

use crate::launch::launch_list;
use follow::Follower;
pub use link::{LINKS, Link, METERED_PROBABILITY, NamedLink, Setup};
pub use lists::{first_touches, whole_files};
use schedule::Schedule;
use server::{Answer, Server};
pub use travel::{Object, Place, Travel, TravelBuilder};

/// What is sent before it is asked for.
#[derive(Clone, Debug)]
pub enum Policy<'a> {
    /// Nothing.
    None,
    /// With each bucket that is asked for, this many that follow it in the file.
    Readahead {
        /// How many.
        buckets: u32,
    },
    /// This list, in order, from the start; see [`first_touches`] and [`whole_files`].
    StaticList(&'a [Place]),
    /// What Turbo does without any model or guess: with what is asked for, more of the file that it is in, as far as the
    /// link makes that worth while.
    OnDemand,
    /// The model's launch list from the start, planned anew whenever the launch turns out to be of another kind, and with
    /// what is asked for its likely successors; both only where the probability is above [`Link::threshold`]. Where the
    /// model does not know a place, as [`Policy::OnDemand`].
    Ours {
        /// The model.
        model: &'a Arc<Model>,
        /// Most successors sent with an object that was asked for.
        successors: usize,
        /// Whether bytes cost money: then only what is at least as likely as not is sent ahead.
        metered: bool,
    },
    /// What will be touched, in the best order.
    Oracle,
}

/// What a replay cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// From the first packet to the end of the trace.
    pub launch_us: u64,
    /// How much longer that is than the trace: what the application waited, its start included.
    pub stall_us: u64,
    /// First touches of the trace; a read of several places is one.
    pub touches: u64,
    /// Touches of what was there.
    pub hits: u64,
    /// Touches of what was on its way, or planned for so soon that asking for it would not have helped.
    pub late: u64,
    /// Touches that had to ask.
    pub misses: u64,
    /// The longest and the mean time that a touch which had to ask waited.
    pub worst_miss_us: u64,
    /// See `worst_miss_us`.
    pub mean_miss_us: u64,
    /// Bytes sent until the end, without the head.
    pub sent_bytes: u64,
    /// Of those, bytes of objects that no touch needed.
    pub wasted_bytes: u64,
}

impl Outcome {
    /// Share of touches that needed no request; 1 if there were none.
    pub fn hit_rate(&self) -> f64 {
        ratio(self.hits + self.late, self.touches)
    }

    /// Wasted bytes as a share of useful ones.
    pub fn waste(&self) -> f64 {
        self.wasted_bytes as f64 / (self.sent_bytes - self.wasted_bytes).max(1) as f64
    }

    /// Length of the launch compared with the oracle's.
    pub fn ratio_to(&self, oracle: &Self) -> f64 {
        ratio(self.launch_us, oracle.launch_us)
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// How a touch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched<'a> {
    /// What was touched.
    pub places: &'a [Place],
    /// When, since the first packet.
    pub at_us: u64,
    /// When all it needs was there.
    pub ready_us: u64,
    /// Whether it had to be asked for.
    pub missed: bool,
}

/// Replays `trace` over `link`, used as `setup` says. `travel` tells what each place needs; a place that it does not know
/// costs nothing.
pub fn replay(trace: &Trace, link: Link, setup: &Setup, travel: &Travel, policy: &Policy<'_>) -> Outcome {
    replay_and_tell(trace, link, setup, travel, policy, |_| ())
}

/// As [`replay`], and tells how each touch went, by the time at which it happened.
pub fn replay_and_tell(trace: &Trace, link: Link, setup: &Setup, travel: &Travel, policy: &Policy<'_>, mut tell: impl FnMut(Touched<'_>)) -> Outcome {
    let schedule = Schedule::of(trace);
    let mut server = Server::new(link, setup, travel);
    match policy {
        Policy::None | Policy::Readahead { .. } | Policy::OnDemand => {}
        Policy::StaticList(places) => server.plan(places.iter()),
        Policy::Oracle => server.plan_best(&schedule),
        Policy::Ours { model, metered, .. } => {
            let list = launch_list(model, Some(&trace.entry_point), &trace.architecture);
            server.plan(follow::admitted(list, link, *metered, travel).iter());
        }
    }
    let mut follower = Follower::new(policy, trace, link, travel);
    let mut outcome = Outcome { touches: schedule.touches.len() as u64, ..Outcome::default() };
    let started = server.started_us();
    let mut clock = schedule.clock(started);
    let mut waited = 0u64;
    while let Some((at, now)) = clock.next() {
        let touch = &schedule.touches[at];
        let anew = follower.observe(touch);
        let (ready, answer) = server.demand(&touch.places, now);
        tell(Touched { places: &touch.places, at_us: now, ready_us: ready, missed: answer == Answer::Asked });
        match answer {
            Answer::There => outcome.hits += 1,
            Answer::Coming => outcome.late += 1,
            Answer::Asked => {
                outcome.misses += 1;
                outcome.worst_miss_us = outcome.worst_miss_us.max(ready - now);
                waited = waited.saturating_add(ready - now);
                server.plan_next(&follower.more(touch), now);
            }
        }
        follower.read(touch);
        if let Some(places) = anew {
            server.plan_anew(&places, now);
        }
        clock.done(at, ready);
    }
    outcome.mean_miss_us = waited.checked_div(outcome.misses).unwrap_or(0);
    outcome.launch_us = clock.end();
    outcome.stall_us = outcome.launch_us - schedule.duration_us.min(outcome.launch_us);
    server.run_until(outcome.launch_us);
    (outcome.sent_bytes, outcome.wasted_bytes) = server.bytes();
    outcome
}

/// A heap of what happens next.
type Next = BinaryHeap<Reverse<(u64, usize)>>;
