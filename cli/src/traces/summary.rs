//! What a recording says, in a few numbers.

use layer_format::recording::{Class, MarkKind, Recording, Request, Timeline, Wait};
use layer_format::trace::{Source, Touch};

use crate::output::bytes;

/// How many of the longest waits are listed.
pub const LONGEST: usize = 10;

/// A launch in numbers. Times count from the start of turbo; of a bare trace, from that of the trace.
#[derive(Debug, serde::Serialize)]
pub struct Summary {
    /// Length of the launch.
    pub total_us: u64,
    /// How much of it at least one process waited for the network; null of a bare trace.
    pub waiting_us: Option<u64>,
    /// First touches.
    pub touches: u64,
    /// Of those, there in time: local before the run, or prefetched.
    pub in_time: u64,
    /// Bytes that arrived; null of a bare trace, as the following.
    pub received_bytes: Option<u64>,
    /// Of those, of no use.
    pub wasted_bytes: Option<u64>,
    /// Requests made.
    pub requests: Option<u64>,
    /// What happened between the marks.
    pub phases: Vec<Phase>,
    /// Processes, each with its threads.
    pub processes: Vec<Lane>,
}

/// A part of a launch.
#[derive(Debug, serde::Serialize)]
pub struct Phase {
    /// What is done in it.
    pub name: &'static str,
    pub start_us: u64,
    pub end_us: u64,
    pub touches: u64,
    pub missed: u64,
    pub waiting_us: u64,
    pub received_bytes: u64,
}

/// A process with its threads.
#[derive(Debug, serde::Serialize)]
pub struct Lane {
    pub name: String,
    pub start_us: u64,
    /// When it was last seen to touch or wait for something.
    pub last_us: u64,
    pub touches: u64,
    pub missed: u64,
    pub waiting_us: u64,
    /// Its place among the timeline's processes, or its number in a bare trace.
    pub number: u16,
}

impl Summary {
    /// The numbers of a recording.
    pub fn new(recording: &Recording) -> Self {
        let trace = &recording.trace;
        let missed = trace.events.iter().filter(|event| event.source == Source::Missed).count() as u64;
        let touches = trace.events.len() as u64;
        let timeline = recording.timeline.as_ref();
        Self {
            total_us: total_us(recording),
            waiting_us: timeline.map(|timeline| covered(&merged(&timeline.waits), 0, timeline.total_us)),
            touches,
            in_time: touches - missed,
            received_bytes: timeline.map(|timeline| timeline.totals.received_bytes),
            wasted_bytes: timeline.map(|timeline| timeline.totals.wasted_bytes),
            requests: timeline.map(|timeline| timeline.requests.len() as u64),
            phases: timeline.map(|timeline| phases(recording, timeline)).unwrap_or_default(),
            processes: lanes(recording),
        }
    }

    /// Share of the touches that were there in time, in percent, rounded down unless it is all of them.
    pub fn in_time_percent(&self) -> u64 {
        (self.in_time * 100).checked_div(self.touches).unwrap_or(100)
    }

    /// What the reader should know first.
    pub fn headline(&self) -> String {
        match self.waiting_us {
            Some(0) => format!("{}, none of it waiting", seconds(self.total_us)),
            Some(waiting) => format!("{}, of which {} waiting", seconds(self.total_us), seconds(waiting)),
            None => seconds(self.total_us),
        }
    }

    /// And then.
    pub fn lead(&self) -> String {
        let touches = match self.touches {
            0 => "nothing new was touched".to_owned(),
            _ => format!("{} % of touches were there in time", self.in_time_percent()),
        };
        match (self.received_bytes, self.wasted_bytes) {
            (Some(0), _) => format!("{touches}; nothing had to be received"),
            (Some(received), Some(wasted)) => format!("{touches}; {} received, {} % of no use", bytes(received), (wasted * 100).div_ceil(received)),
            _ => touches,
        }
    }
}

/// How long a recorded launch took.
pub fn total_us(recording: &Recording) -> u64 {
    recording.timeline.as_ref().map_or(recording.trace.duration_us, |timeline| timeline.total_us)
}

/// When a trace's event was, in the timeline's time.
pub fn event_us(recording: &Recording, time_us: u64) -> u64 {
    recording.timeline.as_ref().map_or(0, |timeline| timeline.trace_start_us).saturating_add(time_us)
}

/// Spans in which at least one thread waited, ascending and apart.
pub fn merged<'a>(waits: impl IntoIterator<Item = &'a Wait>) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = waits.into_iter().map(|wait| (wait.start_us, wait.start_us.saturating_add(wait.duration_us))).collect();
    spans.sort_unstable();
    let mut apart: Vec<(u64, u64)> = Vec::new();
    for (start, end) in spans {
        match apart.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => apart.push((start, end)),
        }
    }
    apart
}

/// How much of `from..to` the spans cover.
pub fn covered(spans: &[(u64, u64)], from: u64, to: u64) -> u64 {
    spans.iter().map(|(start, end)| (*end).min(to).saturating_sub((*start).max(from))).sum()
}

fn phases(recording: &Recording, timeline: &Timeline) -> Vec<Phase> {
    let when = |kind| timeline.marks.iter().find(|mark| mark.kind == kind).map(|mark| mark.time_us);
    let stages = [
        ("asking for the image", when(MarkKind::Manifest)),
        ("mounting", when(MarkKind::Mounted)),
        ("starting the program", when(MarkKind::Started)),
        ("running", Some(timeline.total_us)),
    ];
    let waits = merged(&timeline.waits);
    let mut start_us = 0;
    let mut phases = Vec::new();
    for (name, end) in stages {
        let Some(end_us) = end.filter(|end| *end >= start_us) else { continue };
        let is_last = end_us == timeline.total_us;
        let inside = |time: u64| time >= start_us && (time < end_us || is_last);
        let events = || recording.trace.events.iter().filter(|event| inside(event_us(recording, event.time_us)));
        let slots = timeline.arrivals.iter().filter(|arrival| inside(u64::from(arrival.slot) * layer_format::recording::SLOT_US));
        phases.push(Phase {
            name,
            start_us,
            end_us,
            touches: events().count() as u64,
            missed: events().filter(|event| event.source == Source::Missed).count() as u64,
            waiting_us: covered(&waits, start_us, end_us),
            received_bytes: slots.map(|arrival| arrival.bytes).sum(),
        });
        start_us = end_us;
    }
    phases
}

/// For each process or thread the index of the process that it belongs to.
fn owners(timeline: &Timeline) -> Vec<u16> {
    let mut owners: Vec<u16> = Vec::with_capacity(timeline.processes.len());
    for (at, process) in (0..=u16::MAX).zip(&timeline.processes) {
        let of_thread = process.parent.filter(|_| process.is_thread).and_then(|parent| owners.get(usize::from(parent)).copied());
        owners.push(of_thread.unwrap_or(at));
    }
    owners
}

/// The lane of each process of the trace and of each wait.
pub fn lane_of(recording: &Recording) -> (impl Fn(u16) -> u16, impl Fn(&Wait) -> Option<u16>) {
    let owners = recording.timeline.as_ref().map(owners).unwrap_or_default();
    let numbers = recording.timeline.as_ref().map(|timeline| timeline.trace_processes.clone()).unwrap_or_default();
    let own = move |number: u16| owners.get(usize::from(number)).copied().unwrap_or(number);
    let of_wait = own.clone();
    let of_trace = move |number: u16| numbers.get(usize::from(number)).map_or(number, |number| own(*number));
    (of_trace, move |wait: &Wait| wait.process.map(&of_wait))
}

fn lanes(recording: &Recording) -> Vec<Lane> {
    let (of_trace, of_wait) = lane_of(recording);
    let mut lanes: std::collections::BTreeMap<u16, Lane> = std::collections::BTreeMap::new();
    let known = recording.timeline.as_ref().map(|timeline| timeline.processes.as_slice()).unwrap_or_default();
    let new = |number: u16, start_us| {
        let process = known.get(usize::from(number));
        let name = process.map(|process| process.name.clone()).filter(|name| !name.is_empty());
        let start_us = process.map_or(start_us, |process| process.start_us);
        Lane { name: name.unwrap_or_else(|| format!("process {number}")), start_us, last_us: start_us, touches: 0, missed: 0, waiting_us: 0, number }
    };
    for event in &recording.trace.events {
        let time_us = event_us(recording, event.time_us);
        let number = of_trace(event.process);
        let lane = lanes.entry(number).or_insert_with(|| new(number, time_us));
        lane.touches += 1;
        lane.missed += u64::from(event.source == Source::Missed);
        lane.last_us = lane.last_us.max(time_us);
    }
    if let Some(timeline) = &recording.timeline {
        let mut waits: std::collections::BTreeMap<u16, Vec<&Wait>> = std::collections::BTreeMap::new();
        for wait in &timeline.waits {
            if let Some(number) = of_wait(wait) {
                waits.entry(number).or_default().push(wait);
            }
        }
        for (number, waits) in waits {
            let spans = merged(waits);
            let lane = lanes.entry(number).or_insert_with(|| new(number, spans.first().map_or(0, |span| span.0)));
            lane.waiting_us = covered(&spans, 0, timeline.total_us);
            lane.start_us = lane.start_us.min(spans.first().map_or(u64::MAX, |span| span.0));
            lane.last_us = lane.last_us.max(spans.last().map_or(0, |span| span.1));
        }
    }
    let mut lanes: Vec<Lane> = lanes.into_values().collect();
    lanes.sort_by_key(|lane| (lane.start_us, lane.number));
    lanes
}

/// The longest waits, longest first.
pub fn longest(timeline: &Timeline) -> Vec<&Wait> {
    let mut waits: Vec<&Wait> = timeline.waits.iter().collect();
    waits.sort_by_key(|wait| (std::cmp::Reverse(wait.duration_us), wait.start_us));
    waits.truncate(LONGEST);
    waits
}

/// What was waited for.
pub fn target(timeline: &Timeline, wait: &Wait) -> String {
    let path = wait.path.and_then(|path| timeline.paths.get(path as usize));
    match (path, wait.touch) {
        (None, _) => "the image's manifest".into(),
        (Some(path), Touch::Meta) => format!("{path} (its entry)"),
        (Some(path), Touch::Data { bucket: 0 }) => path.to_string(),
        (Some(path), Touch::Data { bucket }) => format!("{path} (from {} KiB)", u64::from(bucket) * layer_format::trace::BUCKET_LEN / 1024),
    }
}

/// By whom.
pub fn waiter(timeline: &Timeline, wait: &Wait) -> String {
    match wait.process.and_then(|process| timeline.processes.get(usize::from(process))) {
        Some(process) if !process.name.is_empty() => process.name.clone(),
        _ => "turbo".into(),
    }
}

/// What a class of bytes is called.
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::Launch => "launch stream",
        Class::Demand => "demand",
        Class::Prefetch => "prefetch",
        Class::Background => "background",
    }
}

/// What a request brought, in words.
pub fn request_text(request: &Request) -> String {
    let first = request.first_byte_us.map_or_else(|| "no answer".to_owned(), |time| format!("first byte after {}", seconds(time)));
    let objects = if request.objects == 0 { String::new() } else { format!("{} objects, ", request.objects) };
    format!(
        "{} at {}: {objects}{}, {first}, {} in all",
        class_name(request.class),
        seconds(request.start_us),
        bytes(request.bytes),
        seconds(request.duration_us)
    )
}

/// A time for people: `310 ms`, `2.10 s`, `1:05 min`.
pub fn seconds(us: u64) -> String {
    match us {
        0 => "0 s".into(),
        1..1000 => format!("{us} µs"),
        1000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..999_500 => format!("{:.0} ms", us as f64 / 1e3),
        999_500..99_950_000 => format!("{:.2} s", us as f64 / 1e6),
        _ => format!("{}:{:02} min", us / 60_000_000, us / 1_000_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_the_time_in_which_anyone_waits() {
        let wait = |start_us, duration_us| Wait { start_us, duration_us, process: None, path: None, touch: Touch::Meta, objects: 1, is_promoted: false };
        let spans = merged(&[wait(50, 10), wait(0, 10), wait(5, 10), wait(6, 2), wait(15, 5), wait(90, 30)]);
        assert_eq!(spans, [(0, 20), (50, 60), (90, 120)]);
        assert_eq!((covered(&spans, 0, 100), covered(&spans, 10, 55), covered(&spans, 60, 90)), (40, 15, 0));
        assert!(merged(&[wait(u64::MAX, u64::MAX)]) == [(u64::MAX, u64::MAX)]);
    }

    #[test]
    fn times_for_people() {
        for (us, text) in
            [(0, "0 s"), (999, "999 µs"), (1500, "1.5 ms"), (310_000, "310 ms"), (999_600, "1.00 s"), (2_104_000, "2.10 s"), (125_000_000, "2:05 min")]
        {
            assert_eq!(seconds(us), text);
        }
    }
}
