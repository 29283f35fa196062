//! In what order touches must happen, and how long after each other.
//!
//! A trace tells which process touched what when. From that:
//! * a process makes its touches one after the other, with the time between them as what it computed;
//! * a process begins after the touch just before its first one, by whatever process: that one started it, or started
//!   the one that did;
//! * a process that went on after another, which it started, had ended, waited for that end;
//! * the run ends when all have ended, and the trace's time after each is over.
//!
//! Each touch follows those before it by exactly the trace's time, so a launch that waits for nothing takes as long as the
//! trace, and a touch's *tail*, what is to be done from it on, is the rest of the trace.

use std::collections::{HashMap, HashSet};

use std::cmp::Reverse;

use layer_format::trace::{Touch, Trace};

use super::{Next, Place};

/// What a process touches at once: a read of several buckets is one touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledTouch {
    /// What is touched for the first time.
    pub places: Vec<Place>,
    /// When, in the trace.
    pub time_us: u64,
    /// Touches that come before, by number.
    pub after: Vec<usize>,
}

impl ScheduledTouch {
    /// Whether `place`, touched at `time_us`, is part of the same read.
    fn continues(&self, place: &Place, time_us: u64) -> bool {
        let data = |place: &Place| place.touch != Touch::Meta;
        self.time_us == time_us && data(place) && self.places.last().is_some_and(|last| data(last) && (last.layer, &last.path) == (place.layer, &place.path))
    }
}

/// The touches of a trace, each place once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// In the trace's order; times ascend.
    pub touches: Vec<ScheduledTouch>,
    /// How long the trace took.
    pub duration_us: u64,
}

#[derive(Default)]
struct Process {
    parent: Option<u16>,
    last: Option<usize>,
    /// Last touches of those that ended since its own last touch.
    ended: Vec<usize>,
    touches_left: usize,
}

impl Schedule {
    /// That of a trace. Events that name no path are left out, and times that fall back count as the latest before.
    pub fn of(trace: &Trace) -> Self {
        let mut seen = HashSet::new();
        let mut firsts: Vec<(u16, ScheduledTouch)> = Vec::new();
        let mut latest = 0;
        for event in &trace.events {
            latest = event.time_us.max(latest);
            if let Some(path) = trace.paths.get(event.path as usize) {
                let place = Place { layer: event.layer, path: path.clone(), touch: event.touch };
                if !seen.insert(place.clone()) {
                    continue;
                }
                match firsts.last_mut().filter(|(process, touch)| *process == event.process && touch.continues(&place, latest)) {
                    Some((_, touch)) => touch.places.push(place),
                    None => firsts.push((event.process, ScheduledTouch { places: vec![place], time_us: latest, after: Vec::new() })),
                }
            }
        }
        let mut processes: HashMap<u16, Process> = HashMap::new();
        for (process, _) in &firsts {
            processes.entry(*process).or_default().touches_left += 1;
        }
        let mut touches: Vec<ScheduledTouch> = Vec::with_capacity(firsts.len());
        let mut before = None;
        for (at, (name, mut touch)) in firsts.into_iter().enumerate() {
            let process = processes.entry(name).or_default();
            match process.last {
                Some(last) => {
                    touch.after.push(last);
                    touch.after.append(&mut process.ended);
                }
                None => {
                    process.parent = before;
                    touch.after.extend(at.checked_sub(1));
                }
            }
            process.last = Some(at);
            process.touches_left -= 1;
            if process.touches_left == 0 {
                end(&mut processes, name, at);
            }
            before = Some(name);
            touches.push(touch);
        }
        Self { touches, duration_us: trace.duration_us.max(latest) }
    }

    /// Replays it, from `start_us` on.
    pub(super) fn clock(&self, start_us: u64) -> Clock<'_> {
        let mut followers = vec![Vec::new(); self.touches.len()];
        let mut waiting = vec![0u32; self.touches.len()];
        let mut next = Next::new();
        for (at, touch) in self.touches.iter().enumerate() {
            waiting[at] = touch.after.len() as u32;
            touch.after.iter().for_each(|before| followers[*before].push(at));
            if touch.after.is_empty() {
                next.push(Reverse((start_us.saturating_add(touch.time_us), at)));
            }
        }
        let ready = vec![0; self.touches.len()];
        Clock { schedule: self, followers, waiting, ready, next, end_us: start_us.saturating_add(self.duration_us) }
    }
}

/// Tells the nearest ancestor that is still to touch something that a process has ended.
fn end(processes: &mut HashMap<u16, Process>, name: u16, at: usize) {
    let mut above = processes.get(&name).and_then(|process| process.parent);
    // Each step goes to a process that began earlier.
    while let Some(process) = above.and_then(|parent| processes.get_mut(&parent)) {
        if process.touches_left > 0 {
            return process.ended.push(at);
        }
        above = process.parent;
    }
}

/// Hands out touches by the time at which they happen.
#[derive(Debug)]
pub(super) struct Clock<'a> {
    schedule: &'a Schedule,
    followers: Vec<Vec<usize>>,
    /// Predecessors that have not happened.
    waiting: Vec<u32>,
    /// From predecessors: when it can happen.
    ready: Vec<u64>,
    next: Next,
    end_us: u64,
}

impl Clock<'_> {
    /// The next touch, and when it happens; never before one handed out earlier.
    pub(super) fn next(&mut self) -> Option<(usize, u64)> {
        self.next.pop().map(|Reverse((time, at))| (at, time))
    }

    /// What the touch needed is there at `time`.
    pub(super) fn done(&mut self, at: usize, time: u64) {
        let touches = &self.schedule.touches;
        self.end_us = self.end_us.max(time.saturating_add(self.schedule.duration_us - touches[at].time_us));
        for follower in &self.followers[at] {
            let ready = time.saturating_add(touches[*follower].time_us - touches[at].time_us);
            self.ready[*follower] = self.ready[*follower].max(ready);
            self.waiting[*follower] -= 1;
            if self.waiting[*follower] == 0 {
                self.next.push(Reverse((self.ready[*follower], *follower)));
            }
        }
    }

    /// When the launch is over, after all touches.
    pub(super) fn end(&self) -> u64 {
        self.end_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{any_trace, trace};
    use proptest::prelude::*;

    fn after(steps: &[(u64, u16, &str, Option<u32>)]) -> Vec<Vec<usize>> {
        Schedule::of(&trace("app", steps)).touches.into_iter().map(|touch| touch.after).collect()
    }

    #[test]
    fn a_process_follows_itself_and_begins_after_what_was_touched_before_it() {
        let steps = [(1, 0, "a", None), (2, 1, "b", None), (3, 0, "c", None), (4, 1, "d", None), (5, 0, "a", None)];
        assert_eq!(after(&steps), [vec![], vec![0], vec![0], vec![1]], "the second touch of a is no first one");
    }

    #[test]
    fn buckets_of_a_file_at_the_same_moment_are_one_read() {
        let steps = [(1, 0, "a", None), (1, 0, "a", Some(0)), (1, 0, "a", Some(1)), (1, 0, "b", Some(0)), (1, 1, "b", Some(1)), (2, 1, "b", Some(2))];
        let schedule = Schedule::of(&trace("app", &steps));
        assert_eq!(schedule.touches.iter().map(|touch| touch.places.len()).collect::<Vec<_>>(), [1, 2, 1, 1, 1]);
    }

    #[test]
    fn who_goes_on_after_its_child_has_ended_waited_for_it() {
        // 0 starts 1, which starts 2; both end before 0 goes on, though 0 did not start 2 itself.
        let steps = [(1, 0, "a", None), (2, 1, "b", None), (3, 2, "c", None), (4, 0, "d", None), (5, 0, "e", None)];
        assert_eq!(after(&steps), [vec![], vec![0], vec![1], vec![0, 1, 2], vec![3]]);
    }

    proptest! {
        #[test]
        fn without_waiting_each_touch_happens_when_the_trace_says(trace in any_trace(), start in 0u64..1000) {
            let schedule = Schedule::of(&trace);
            let mut clock = schedule.clock(start);
            let mut happened = vec![None; schedule.touches.len()];
            while let Some((at, now)) = clock.next() {
                happened[at] = Some(now);
                clock.done(at, now);
            }
            let expected: Vec<_> = schedule.touches.iter().map(|touch| Some(start + touch.time_us)).collect();
            prop_assert_eq!(happened, expected);
            prop_assert_eq!(clock.end(), start + schedule.duration_us);
        }

        #[test]
        fn waiting_makes_no_touch_come_sooner_and_each_comes_once(trace in any_trace(), waits in proptest::collection::vec(0u64..20_000, 60)) {
            let schedule = Schedule::of(&trace);
            let mut clock = schedule.clock(0);
            let (mut count, mut latest) = (0, 0);
            while let Some((at, now)) = clock.next() {
                prop_assert!(now >= latest && now >= schedule.touches[at].time_us);
                (count, latest) = (count + 1, now);
                clock.done(at, now + waits[at]);
            }
            prop_assert_eq!(count, schedule.touches.len());
            prop_assert!(clock.end() <= schedule.duration_us + waits.iter().sum::<u64>());
        }
    }
}
