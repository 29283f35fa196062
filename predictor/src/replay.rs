//! What a launch would have cost over a link: a trace replayed against a policy of prefetching.
//!
//! # The simulated world
//! One client, one server, one link of a round trip and a rate. At time 0 the client asks to launch; half a round trip
//! later the server begins to send what the policy plans, one object after the other. An object takes its size divided
//! by the rate to send, and half a round trip to arrive. The application touches what the trace says, in that order,
//! with the trace's time between touches as the time it computes (so record traces where everything was local). A
//! touch of what has arrived costs nothing. Otherwise the application waits: for the arrival if the object is on its
//! way, else a request goes out, which the server answers before anything that is planned, but after the object that it
//! is sending. What is sent is never cancelled, nothing is sent twice, everything is remote at first.
//!
//! The oracle sends what will be touched, in the order of touches. When the application has touched so many objects,
//! at least those were sent, one after the other, so no policy can stall less.
//!
//! # What it leaves out
//! Processes that compute while another waits, slow start, loss, and the time to decompress and verify.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use layer_format::LayerPath;
use layer_format::model::Model;
use layer_format::trace::{Touch, Trace};
use serde::{Deserialize, Serialize};

use crate::launch::{Predicted, launch_list};
use crate::predict::Predictor;

/// A link between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Round trip, in microseconds.
    pub round_trip_us: u64,
    /// Bytes a second; 0 counts as 1.
    pub bytes_per_s: u64,
}

impl Link {
    /// How long the link is busy with so many bytes, in microseconds, rounded up.
    pub fn send_us(&self, bytes: u64) -> u64 {
        let us = (u128::from(bytes) * 1_000_000).div_ceil(u128::from(self.bytes_per_s.max(1)));
        u64::try_from(us).unwrap_or(u64::MAX)
    }

    /// The probability from which on prefetching so many bytes is worth more than it costs on a busy link: it saves a
    /// round trip if right, and delays all others by its sending time if wrong.
    pub fn threshold(&self, bytes: u64) -> f32 {
        let (send, round_trip) = (self.send_us(bytes) as f64, self.round_trip_us as f64);
        if send + round_trip > 0.0 { (send / (round_trip + send)) as f32 } else { 0.0 }
    }
}

/// Something that can be touched and sent: an object of the simulation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Which layer of the image.
    pub layer: u8,
    /// Path in the layer.
    pub path: LayerPath,
    /// What of it.
    pub touch: Touch,
}

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
    /// This list, in order, from the start.
    StaticList(&'a [Place]),
    /// The model's launch list from the start, and with each object that is asked for its likely successors; both only
    /// where the probability is above [`Link::threshold`].
    Ours {
        /// The model.
        model: &'a Arc<Model>,
        /// Most successors sent with an object that was asked for.
        successors: usize,
    },
    /// What will be touched, in the order of touches.
    Oracle,
}

/// What a replay cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// From the request to launch until the last touch was answered and the trace's time after it is over.
    pub launch_us: u64,
    /// How much of it the application waited.
    pub stall_us: u64,
    /// First touches of the trace.
    pub touches: u64,
    /// Touches of what had arrived.
    pub hits: u64,
    /// Touches of what was on its way.
    pub late: u64,
    /// Touches that had to ask.
    pub misses: u64,
    /// Bytes sent until the end.
    pub sent_bytes: u64,
    /// Of those, bytes that were never touched.
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

/// Replays `trace` over `link`. `size` is how many bytes travel for a place; 0 if there is no such place, which is then
/// never read ahead.
pub fn replay(trace: &Trace, link: Link, size: impl Fn(&Place) -> u64, policy: &Policy<'_>) -> Outcome {
    let touches = first_touches(trace);
    let mut server = Server::new(link);
    match policy {
        Policy::None | Policy::Readahead { .. } => {}
        Policy::StaticList(places) => server.plan(places.iter().map(|place| (place.clone(), size(place)))),
        Policy::Oracle => server.plan(touches.iter().map(|(place, _)| (place.clone(), size(place)))),
        Policy::Ours { model, .. } => {
            server.plan(admitted(launch_list(model, Some(&trace.entry_point), &trace.architecture), link, &size).into_iter());
        }
    }
    let mut predictor = match policy {
        Policy::Ours { model, .. } => Some(Predictor::for_launch(Arc::clone(model), Some(&trace.entry_point), &trace.architecture)),
        _ => None,
    };
    let mut outcome = Outcome { touches: touches.len() as u64, ..Outcome::default() };
    let (mut now, mut before) = (0u64, 0u64);
    for (place, time_us) in &touches {
        now = now.saturating_add(time_us - before);
        before = *time_us;
        if let Some(predictor) = &mut predictor {
            predictor.observe(place.layer, &place.path, place.touch);
        }
        let (arrival, was_sent) = server.demand(place, size(place), now);
        match (was_sent, arrival <= now) {
            (true, true) => outcome.hits += 1,
            (true, false) => outcome.late += 1,
            (false, _) => {
                outcome.misses += 1;
                let more = follow_up(policy, predictor.as_ref(), place, link, &size);
                server.plan_next(more, now);
            }
        }
        outcome.stall_us = outcome.stall_us.saturating_add(arrival.saturating_sub(now));
        now = now.max(arrival);
    }
    outcome.launch_us = now.saturating_add(trace.duration_us.saturating_sub(before));
    server.run_until(outcome.launch_us);
    outcome.sent_bytes = server.sent_bytes;
    outcome.wasted_bytes = server.sent.values().filter(|sent| !sent.is_touched).fold(0, |sum, sent| sum.saturating_add(sent.size));
    outcome
}

/// What goes with an object that was asked for.
fn follow_up(policy: &Policy<'_>, predictor: Option<&Predictor>, place: &Place, link: Link, size: &impl Fn(&Place) -> u64) -> Vec<(Place, u64)> {
    match (policy, place.touch) {
        (Policy::Readahead { buckets }, Touch::Data { bucket }) => {
            let following = (1..=*buckets).filter_map(|ahead| bucket.checked_add(ahead)).map(|bucket| Place { touch: Touch::Data { bucket }, ..place.clone() });
            following.map(|place| (size(&place), place)).take_while(|(size, _)| *size > 0).map(|(size, place)| (place, size)).collect()
        }
        (Policy::Ours { successors, .. }, _) => {
            let next = predictor.map(|predictor| predictor.successors(*successors)).unwrap_or_default();
            admitted(next, link, size)
        }
        _ => Vec::new(),
    }
}

/// Predictions that are worth sending, with their sizes.
fn admitted(predictions: Vec<Predicted>, link: Link, size: &impl Fn(&Place) -> u64) -> Vec<(Place, u64)> {
    let with_size = predictions.into_iter().map(|item| {
        let place = Place { layer: item.layer, path: item.path, touch: item.touch };
        (item.probability, size(&place), place)
    });
    with_size.filter(|(probability, size, _)| *size > 0 && *probability > link.threshold(*size)).map(|(_, size, place)| (place, size)).collect()
}

/// The first touch of each place, with its time; times ascend.
fn first_touches(trace: &Trace) -> Vec<(Place, u64)> {
    let mut seen = std::collections::HashSet::new();
    let mut latest = 0;
    let mut touches = Vec::new();
    for event in &trace.events {
        latest = event.time_us.max(latest);
        if let Some(path) = trace.paths.get(event.path as usize) {
            let place = Place { layer: event.layer, path: path.clone(), touch: event.touch };
            if seen.insert(place.clone()) {
                touches.push((place, latest));
            }
        }
    }
    touches
}

struct Sent {
    arrival: u64,
    size: u64,
    is_touched: bool,
}

/// The server and the link, at the time up to which they were simulated.
struct Server {
    link: Link,
    /// When the link can take the next object.
    free_at: u64,
    /// Planned objects, with the time from which on they may be sent.
    planned: VecDeque<(Place, u64, u64)>,
    sent: HashMap<Place, Sent>,
    sent_bytes: u64,
}

impl Server {
    fn new(link: Link) -> Self {
        Self { link, free_at: 0, planned: VecDeque::new(), sent: HashMap::new(), sent_bytes: 0 }
    }

    /// Half a round trip, from the client to the server. The way back takes the rest.
    fn there_us(&self) -> u64 {
        self.link.round_trip_us / 2
    }

    /// Plans objects with the request to launch.
    fn plan(&mut self, objects: impl Iterator<Item = (Place, u64)>) {
        let from = self.there_us();
        self.planned.extend(objects.map(|(place, size)| (place, size, from)));
    }

    /// Plans objects with a request sent at `now`, before all others.
    fn plan_next(&mut self, objects: Vec<(Place, u64)>, now: u64) {
        let from = now.saturating_add(self.there_us());
        for (place, size) in objects.into_iter().rev() {
            self.planned.push_front((place, size, from));
        }
    }

    fn send(&mut self, place: Place, size: u64, from: u64) -> u64 {
        self.free_at = self.free_at.max(from).saturating_add(self.link.send_us(size));
        let arrival = self.free_at.saturating_add(self.link.round_trip_us - self.there_us());
        self.sent_bytes = self.sent_bytes.saturating_add(size);
        self.sent.insert(place, Sent { arrival, size, is_touched: false });
        arrival
    }

    /// Begins to send what can begin before `time`.
    fn run_until(&mut self, time: u64) {
        while let Some((place, size, from)) = self.planned.front() {
            if self.sent.contains_key(place) {
                self.planned.pop_front();
                continue;
            }
            let (size, from) = (*size, *from);
            if self.free_at.max(from) >= time {
                break;
            }
            if let Some((place, ..)) = self.planned.pop_front() {
                self.send(place, size, from);
            }
        }
    }

    /// The application wants this at `now`: when it is there, and whether it was sent unasked.
    fn demand(&mut self, place: &Place, size: u64, now: u64) -> (u64, bool) {
        let asked_at = now.saturating_add(self.there_us());
        self.run_until(asked_at);
        if let Some(sent) = self.sent.get_mut(place) {
            sent.is_touched = true;
            return (sent.arrival, true);
        }
        // The oracle's next object begins just when the request for it comes: that is no miss.
        let is_next = self.planned.front().is_some_and(|(next, _, from)| next == place && *from <= asked_at);
        let arrival = self.send(place.clone(), size, asked_at);
        if let Some(sent) = self.sent.get_mut(place) {
            sent.is_touched = true;
        }
        (arrival, is_next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{any_trace, trace, walk};
    use crate::{Params, learn};
    use proptest::prelude::*;

    /// 10 ms there and back, a byte a microsecond.
    const LINK: Link = Link { round_trip_us: 10_000, bytes_per_s: 1_000_000 };

    fn place(path: &str) -> Place {
        Place { layer: 0, path: LayerPath::new(path).unwrap(), touch: Touch::Meta }
    }

    fn taught(traces: &[Trace]) -> Arc<Model> {
        let mut model = Model::default();
        traces.iter().for_each(|trace| learn(&mut model, trace, &Params::default()));
        Arc::new(model)
    }

    fn run(trace: &Trace, size: u64, policy: &Policy<'_>) -> Outcome {
        replay(trace, LINK, |_| size, policy)
    }

    #[test]
    fn without_prefetching_each_touch_waits_a_round_trip() {
        // Touches at 1, 2 and 3 ms; each waits 10 ms and 2 ms of sending.
        let outcome = run(&walk("app", &["a", "b", "c"]), 2000, &Policy::None);
        let expected = Outcome { launch_us: 39_000, stall_us: 36_000, touches: 3, hits: 0, late: 0, misses: 3, sent_bytes: 6000, wasted_bytes: 0 };
        assert_eq!(outcome, expected);
    }

    #[test]
    fn the_oracle_waits_for_the_first_object_and_then_only_for_the_link() {
        // Arrivals at 12, 14 and 16 ms; touches at 1 ms, then 1 ms after each answer: 12, 13 → 14, 15 → 16.
        let outcome = run(&walk("app", &["a", "b", "c"]), 2000, &Policy::Oracle);
        let expected = Outcome { launch_us: 16_000, stall_us: 13_000, touches: 3, hits: 0, late: 3, misses: 0, sent_bytes: 6000, wasted_bytes: 0 };
        assert_eq!(outcome, expected);
        assert_eq!(outcome.ratio_to(&outcome), 1.0);
    }

    #[test]
    fn a_list_that_is_wrong_costs_its_bytes_and_a_miss_goes_before_it() {
        // The list: x and y of 4 ms, then b. At 1 ms `a` is asked for; at 6 ms the server hears it, while it sends x
        // (5 to 9 ms); a is sent from 9 to 13 ms and is there at 18 ms. At 19 ms b is wanted: the server sent y from 13
        // to 17 ms and b from 17 to 21 ms, so b is on its way and is there at 26 ms.
        let list = ["x", "y", "b"].map(place);
        let outcome = run(&walk("app", &["a", "b"]), 4000, &Policy::StaticList(&list));
        let expected = Outcome { launch_us: 26_000, stall_us: 24_000, touches: 2, hits: 0, late: 1, misses: 1, sent_bytes: 16_000, wasted_bytes: 8000 };
        assert_eq!(outcome, expected);
        assert_eq!((outcome.hit_rate(), outcome.waste()), (0.5, 1.0));
    }

    #[test]
    fn what_is_planned_and_wanted_at_once_is_promoted_and_sent_once() {
        // b is the last of a long list. At 6 ms the server hears that it is wanted now, while it sends x: next is b.
        let list = ["x", "y", "z", "b"].map(place);
        let outcome = run(&walk("app", &["b"]), 4000, &Policy::StaticList(&list));
        assert_eq!((outcome.launch_us, outcome.misses), (18_000, 1));
        // Until the end of the launch y begins at 13 ms and z at 17 ms; b is not sent again.
        assert_eq!((outcome.sent_bytes, outcome.wasted_bytes), (16_000, 12_000));
    }

    #[test]
    fn readahead_helps_a_sequential_reader_up_to_the_end_of_the_file() {
        let steps: Vec<_> = (0..4).map(|bucket| (1000 * u64::from(bucket), 0, "file", Some(bucket))).collect();
        let size = |place: &Place| if matches!(place.touch, Touch::Data { bucket: 0..4 }) { 500 } else { 0 };
        let outcome = replay(&trace("app", &steps), LINK, size, &Policy::Readahead { buckets: 8 });
        assert_eq!((outcome.misses, outcome.hits + outcome.late, outcome.sent_bytes, outcome.wasted_bytes), (1, 3, 2000, 0));
        assert_eq!(outcome.stall_us, 10_500);
    }

    #[test]
    fn a_model_of_the_same_launch_does_as_well_as_the_oracle() {
        let launch = walk("app", &["a", "b", "c", "d", "e", "f", "g"]);
        let model = taught(&[launch.clone(), launch.clone()]);
        let ours = run(&launch, 2000, &Policy::Ours { model: &model, successors: 8 });
        assert_eq!(ours, run(&launch, 2000, &Policy::Oracle));
    }

    #[test]
    fn a_miss_brings_its_successors_so_episodes_cost_not_misses() {
        // The model knows `serve` well and `repair` hardly: its touches are not on the list that is sent at first.
        let names: Vec<String> = (0..20).map(|n| format!("repair/{n}")).collect();
        let repair = walk("app", &names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut traces = vec![repair.clone()];
        traces.extend(vec![walk("app", &["bin/app", "etc/serve"]); 9]);
        let model = taught(&traces);
        let without = run(&repair, 2000, &Policy::Ours { model: &model, successors: 0 });
        let with = run(&repair, 2000, &Policy::Ours { model: &model, successors: 32 });
        assert_eq!((without.misses, with.misses), (20, 1));
        assert!(with.stall_us < without.stall_us / 4);
    }

    #[test]
    fn a_wrong_model_costs_little() {
        let launch = walk("app", &["a", "b", "c", "d"]);
        let model = taught(&vec![walk("app", &["p", "q", "r", "s"]); 5]);
        let none = run(&launch, 2000, &Policy::None);
        let wrong = run(&launch, 2000, &Policy::Ours { model: &model, successors: 8 });
        assert!(wrong.stall_us <= none.stall_us + 4 * 2000);
    }

    #[test]
    fn the_threshold_is_high_on_a_thin_link_and_low_on_a_long_one() {
        let link = |ms: u64, mbit: u64| Link { round_trip_us: 1000 * ms, bytes_per_s: mbit * 125_000 };
        for (link, expected) in [(link(20, 100), 0.21), (link(60, 25), 0.26), (link(100, 100), 0.05)] {
            assert!((link.threshold(65_536) - expected).abs() < 0.01, "{link:?}");
        }
        assert_eq!(Link { round_trip_us: 0, bytes_per_s: 0 }.threshold(0), 0.0);
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let launch = trace("app", &[(u64::MAX, 0, "a", None), (u64::MAX, 0, "b", None)]);
        let link = Link { round_trip_us: u64::MAX, bytes_per_s: 0 };
        for policy in [Policy::None, Policy::Oracle] {
            replay(&launch, link, |_| u64::MAX, &policy);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn no_policy_stalls_less_than_the_oracle(
            launch in any_trace(), history in proptest::collection::vec(any_trace(), 0..4), list in proptest::collection::vec(0u32..200, 0..60),
            round_trip_us in 0u64..200_000, bytes_per_s in 1u64..20_000_000, sizes in 1u64..60_000, buckets in 0u32..4, successors in 0usize..20,
        ) {
            let link = Link { round_trip_us, bytes_per_s };
            let size = |place: &Place| if matches!(place.touch, Touch::Data { bucket: 3.. }) { 0 } else { sizes * (place.path.as_bytes().len() as u64 % 3 + 1) };
            let list: Vec<Place> = list.iter().map(|n| Place { layer: 0, path: LayerPath::new(format!("d{}/f{}", n % 5, n % 40)).unwrap(), touch: crate::samples::touch(n.checked_sub(100).map(|n| n % 3)) }).collect();
            let mut model = Model::default();
            history.iter().for_each(|trace| learn(&mut model, trace, &Params::default()));
            let model = Arc::new(model);
            let oracle = replay(&launch, link, size, &Policy::Oracle);
            prop_assert_eq!((oracle.misses, oracle.wasted_bytes), (0, 0));
            for policy in [Policy::None, Policy::Readahead { buckets }, Policy::StaticList(&list), Policy::Ours { model: &model, successors }] {
                let outcome = replay(&launch, link, size, &policy);
                prop_assert!(oracle.stall_us <= outcome.stall_us && oracle.launch_us <= outcome.launch_us, "{:?}: {:?} against {:?}", policy, outcome, oracle);
                prop_assert_eq!(outcome.hits + outcome.late + outcome.misses, outcome.touches);
                prop_assert_eq!(outcome.sent_bytes - outcome.wasted_bytes, oracle.sent_bytes, "everything touched is sent, once");
                prop_assert_eq!(outcome.launch_us - outcome.stall_us, oracle.launch_us - oracle.stall_us);
            }
        }
    }
}
