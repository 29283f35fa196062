//! Records first touches: which tree objects and which buckets of which files a run used, when, and whether they were
//! there in time.
//!
//! Called on every read, so the common case, a bucket that was touched before, is one look into one of a few small
//! tables. Only a first touch takes the lock of the list. The list is bounded by what a trace may hold; then the
//! recorder goes on counting, and records no more.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use layer_format::trace::{BUCKET_LEN, Event, MAX_EVENTS, MAX_PATHS, MAX_TRACE_LEN, Source, Touch, Trace};
use layer_format::{Digest, LayerPath};
use parking_lot::Mutex;

use crate::timeline::Timeline;

/// Number of tables, so that threads rarely meet.
const SHARDS: usize = 16;
/// Buckets of one word of a table.
const WORD: u64 = 64;
/// Most bytes of all paths and events together, as they are estimated to be encoded.
const MAX_ENCODED: usize = MAX_TRACE_LEN / 2;

/// What was touched so far, of the files whose hash leads here.
#[derive(Debug, Default)]
struct Shard {
    /// 64 buckets of a file a word.
    buckets: HashMap<(u64, u32), u64>,
    /// Tree objects, each of one layer.
    nodes: HashSet<(u8, u64)>,
}

#[derive(Debug, Default)]
struct List {
    events: Vec<Event>,
    paths: Vec<LayerPath>,
    numbers: HashMap<LayerPath, u32>,
    processes: HashMap<u32, u16>,
    encoded: usize,
    details: Option<TraceDetails>,
}

/// What is recorded of first touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recording {
    /// Nothing, and nothing is predicted while the run lasts: to measure what recording costs.
    Off,
    /// All of them.
    #[default]
    Touches,
}

/// What a timeline says of a trace.
#[derive(Clone, Debug)]
pub struct TraceDetails {
    /// When the trace's times begin.
    pub started: Instant,
    /// For each process number of the trace the one of the timeline.
    pub processes: Vec<u16>,
    /// For each event about how many bytes it needed.
    pub sizes: Vec<u32>,
}

/// First touches of one run of one image.
#[derive(Debug)]
pub struct Recorder {
    started: Instant,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    list: Mutex<List>,
    full: AtomicBool,
    counts: [AtomicU64; 3],
    is_off: bool,
    timeline: Option<Arc<Timeline>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// Starts recording now.
    pub fn new() -> Self {
        Self::with(Recording::default(), None)
    }

    /// Starts recording now. With a timeline, sizes and the timeline's numbers of processes are kept as well.
    pub fn with(recording: Recording, timeline: Option<Arc<Timeline>>) -> Self {
        let started = Instant::now();
        let details = timeline.is_some().then(|| TraceDetails { started, processes: Vec::new(), sizes: Vec::new() });
        Self {
            started,
            hasher: RandomState::new(),
            shards: Default::default(),
            list: Mutex::new(List { details, ..List::default() }),
            full: AtomicBool::new(false),
            counts: Default::default(),
            is_off: recording == Recording::Off,
            timeline,
        }
    }

    /// A tree leaf, whose length is asked for if it matters, answered for `path`. Says whether it is the first time that
    /// this leaf answers for anything.
    pub fn meta(&self, layer: u8, leaf: &Digest, path: &LayerPath, pid: u32, source: Source, len: impl FnOnce() -> usize) -> bool {
        if self.is_off {
            return false;
        }
        let node = leaf.prefix64();
        if !self.shards[node as usize % SHARDS].lock().nodes.insert((layer, node)) {
            return false;
        }
        self.count(source, 1);
        let len = self.timeline.as_ref().map_or(0, |_| len() as u64);
        self.record(layer, path, pid, [(Touch::Meta, source)], len);
        true
    }

    /// The bytes `range` of the file at `path`, which has `len`, were read; `source` tells, for a bucket, where its bytes
    /// came from. Calls `first` with each bucket that was not read before.
    #[expect(clippy::too_many_arguments, reason = "what a read is: where, what, by whom, and who wants to know")]
    pub fn data(
        &self,
        layer: u8,
        path: &LayerPath,
        len: u64,
        range: std::ops::Range<u64>,
        pid: u32,
        source: impl Fn(u32) -> Source,
        mut first: impl FnMut(u32),
    ) {
        if range.is_empty() || self.is_off {
            return;
        }
        let file = self.hasher.hash_one((layer, path.as_bytes()));
        let (from, to) = (range.start / BUCKET_LEN, (range.end - 1) / BUCKET_LEN);
        let to = to.min(u32::MAX.into());
        let mut new = Vec::new();
        {
            let mut shard = self.shards[file as usize % SHARDS].lock();
            let mut at = from;
            while at <= to {
                let word = at / WORD;
                let end = to.min(word * WORD + WORD - 1);
                let mask = (u64::MAX << (at % WORD)) & (u64::MAX >> (WORD - 1 - end % WORD));
                let bits = shard.buckets.entry((file, word as u32)).or_default();
                let fresh = mask & !*bits;
                *bits |= mask;
                new.extend((0..WORD).filter(|bit| fresh >> bit & 1 == 1).map(|bit| (word * WORD + bit) as u32));
                at = end + 1;
            }
        }
        if new.is_empty() {
            return;
        }
        let touches: Vec<(Touch, Source)> = new.iter().map(|bucket| (Touch::Data { bucket: *bucket }, source(*bucket))).collect();
        for (_, source) in &touches {
            self.count(*source, 1);
        }
        self.record(layer, path, pid, touches, len);
        new.into_iter().for_each(&mut first);
    }

    fn count(&self, source: Source, more: u64) {
        self.counts[source as usize].fetch_add(more, Ordering::Relaxed);
        if let Some(timeline) = &self.timeline {
            timeline.touched(source, more);
        }
    }

    /// `len` is that of the leaf or the file.
    fn record(&self, layer: u8, path: &LayerPath, pid: u32, touches: impl IntoIterator<Item = (Touch, Source)>, len: u64) {
        if self.full.load(Ordering::Relaxed) {
            return;
        }
        // Outside the lock: it may read a process's name.
        let lane = self.timeline.as_ref().map(|timeline| timeline.process(pid).unwrap_or_default());
        let mut list = self.list.lock();
        let list = &mut *list;
        // Under the lock, so that events ascend in time.
        let time_us = self.started.elapsed().as_micros() as u64;
        let number = match list.numbers.get(path) {
            Some(number) => *number,
            None if list.paths.len() >= MAX_PATHS => return self.full.store(true, Ordering::Relaxed),
            None => {
                let number = list.paths.len() as u32;
                list.encoded += path.as_bytes().len() + 4;
                list.paths.push(path.clone());
                list.numbers.insert(path.clone(), number);
                number
            }
        };
        let next = list.processes.len().min(u16::MAX.into()) as u16;
        let process = match list.processes.len() < usize::from(u16::MAX) {
            true => *list.processes.entry(pid).or_insert(next),
            false => list.processes.get(&pid).copied().unwrap_or(u16::MAX),
        };
        if let (Some(details), Some(lane)) = (&mut list.details, lane)
            && usize::from(process) == details.processes.len()
        {
            details.processes.push(lane);
        }
        for (touch, source) in touches {
            if list.events.len() >= MAX_EVENTS || list.encoded >= MAX_ENCODED {
                return self.full.store(true, Ordering::Relaxed);
            }
            list.encoded += 12;
            list.events.push(Event { time_us, process, layer, path: number, touch, source });
            if let Some(details) = &mut list.details {
                details.sizes.push(size(touch, len));
            }
        }
    }

    /// Number of first touches that were local, prefetched and missed.
    pub fn counts(&self) -> [u64; 3] {
        [0, 1, 2].map(|at| self.counts[at].load(Ordering::Relaxed))
    }

    /// Share of the first touches that were there in time; 1 if there were none.
    pub fn hit_rate(&self) -> f64 {
        let [local, prefetched, missed] = self.counts();
        match local + prefetched + missed {
            0 => 1.0,
            all => (local + prefetched) as f64 / all as f64,
        }
    }

    /// What a timeline says of the trace; empty without one.
    pub fn details(&self) -> TraceDetails {
        let none = || TraceDetails { started: self.started, processes: Vec::new(), sizes: Vec::new() };
        self.list.lock().details.clone().unwrap_or_else(none)
    }

    /// What was recorded until now. `entry_point` and `architecture` are cut to what a trace can hold.
    pub fn trace(&self, image: Digest, entry_point: &str, architecture: &str) -> Trace {
        let list = self.list.lock();
        Trace {
            image,
            entry_point: cut(entry_point, layer_format::trace::MAX_ENTRY_POINT_LEN),
            architecture: cut(architecture, 64),
            duration_us: self.started.elapsed().as_micros() as u64,
            paths: list.paths.clone(),
            events: list.events.clone(),
        }
    }
}

/// How many bytes a touch needs of a leaf or a file of `len` bytes.
fn size(touch: Touch, len: u64) -> u32 {
    let needed = match touch {
        Touch::Meta => len,
        Touch::Data { bucket } => len.saturating_sub(u64::from(bucket) * BUCKET_LEN).min(BUCKET_LEN),
    };
    u32::try_from(needed).unwrap_or(u32::MAX)
}

fn cut(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> LayerPath {
        LayerPath::new(name).unwrap()
    }

    #[test]
    fn each_bucket_once_in_order() {
        let recorder = Recorder::default();
        let mut seen = Vec::new();
        for (from, to) in [(0, 1), (0, 16384), (16000, 17000), (100 * 16384, 230 * 16384), (0, 240 * 16384), (5, 5)] {
            recorder.data(1, &path("a"), 1 << 40, from..to, 7, |_| Source::Missed, |bucket| seen.push(bucket));
        }
        let mut expected: Vec<u32> = [0, 1].into_iter().chain(100..230).chain(2..100).chain(230..240).collect();
        assert_eq!(seen, expected);
        recorder.data(0, &path("a"), 1 << 40, 0..1, 8, |_| Source::Local, |bucket| expected.push(bucket));
        assert_eq!(expected.len(), 241);
        let trace = recorder.trace(Digest::of(b"i"), "é".repeat(600).as_str(), "x86_64");
        assert_eq!((trace.events.len(), trace.paths.len()), (241, 1));
        assert!(trace.events.is_sorted_by_key(|event| event.time_us));
        assert_eq!((trace.events[0].process, trace.events[240].process), (0, 1));
        assert_eq!(Trace::decode(&trace.encode()), Ok(trace));
        assert_eq!(recorder.counts(), [1, 0, 240]);
    }

    #[test]
    fn a_leaf_counts_once_in_each_layer() {
        let recorder = Recorder::default();
        let leaf = Digest::of(b"leaf");
        assert!(recorder.meta(0, &leaf, &path("x"), 1, Source::Prefetched, || 0));
        assert!(!recorder.meta(0, &leaf, &path("y"), 1, Source::Local, || 0));
        assert!(recorder.meta(1, &leaf, &path("y"), 1, Source::Local, || 0));
        assert!(recorder.hit_rate() == 1.0 && recorder.trace(leaf, "", "").events.len() == 2);
    }

    #[test]
    fn stops_at_the_bound_and_the_last_bucket() {
        let recorder = Recorder::default();
        recorder.data(0, &path("huge"), 1 << 40, 0..BUCKET_LEN * (MAX_EVENTS as u64 + 1000), 1, |_| Source::Local, |_| ());
        recorder.data(0, &path("huge"), 1 << 40, u64::MAX - 1..u64::MAX, 1, |_| Source::Local, |_| ());
        let trace = recorder.trace(Digest::of(b""), "", "");
        assert_eq!(trace.events.len(), MAX_EVENTS);
        assert!(Trace::decode(&trace.encode()).is_ok());
    }
}
