//! How one run goes, in time: what is waited for, requested and received, by which processes.
//!
//! Kept only when somebody asks for it (`turbo run --trace`, `--verbose`, `turbo trace record`), in memory, bounded; it
//! becomes a [`recording::Timeline`] at the end. The images of a run share one. Whoever reads a layer says for
//! which path and process ([`Timeline::asking`]); the fetcher, which knows digests alone, then notes waits under that
//! name. Process names come from `/proc`, and are read again as a process touches more: a program's first touches are
//! made before it has replaced the one that started it.

mod live;
mod processes;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use layer_format::LayerPath;
use layer_format::recording::{self, Arrival, CLASSES, Class, Estimate, MAX_ESTIMATES, MAX_ITEMS, MAX_MARKS, Mark, MarkKind, Request, SLOT_US, Totals, Wait};
use layer_format::trace::{Source, Touch};
use parking_lot::Mutex;

pub use live::{Snapshot, Waiting};
use processes::Processes;

use crate::fetch::Fetcher;
use crate::link::{INITIAL_RATE, Link};

/// How often the link's estimates are noted, at most.
const ESTIMATE_EVERY_US: u64 = 100_000;

/// What a thread reads, while it does.
#[derive(Clone, Debug)]
struct Asked {
    path: LayerPath,
    touch: Touch,
    pid: u32,
}

thread_local! {
    static ASKED: RefCell<Option<Asked>> = const { RefCell::new(None) };
}

#[derive(Debug, Default)]
struct Lists {
    marks: Vec<Mark>,
    paths: Vec<LayerPath>,
    numbers: HashMap<LayerPath, u32>,
    waits: Vec<Wait>,
    requests: Vec<Request>,
    arrivals: BTreeMap<(u32, Class), u64>,
    estimates: Vec<Estimate>,
    /// Waits that have not ended, by number.
    open: BTreeMap<u64, live::Open>,
    next_wait: u64,
}

/// Called when a wait ends, before what was waited for is handed over.
type OnWaited = Box<dyn Fn() + Send + Sync>;

/// Records how a run goes. Share it in an [`Arc`].
pub struct Timeline {
    started: Instant,
    lists: Mutex<Lists>,
    processes: Processes,
    touches: [AtomicU64; 3],
    received: [AtomicU64; CLASSES.len()],
    fetchers: Mutex<Vec<Weak<Fetcher>>>,
    on_waited: Mutex<Option<OnWaited>>,
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline").field("started", &self.started).finish_non_exhaustive()
    }
}

impl Timeline {
    /// A timeline whose times count from `started`.
    pub fn new(started: Instant) -> Arc<Self> {
        Arc::new(Self {
            started,
            lists: Mutex::default(),
            processes: Processes::default(),
            touches: Default::default(),
            received: Default::default(),
            fetchers: Mutex::default(),
            on_waited: Mutex::default(),
        })
    }

    /// Microseconds from its start to a moment.
    pub fn at(&self, moment: Instant) -> u64 {
        micros(moment.saturating_duration_since(self.started))
    }

    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// Something happened at `time_us`.
    pub fn mark(&self, kind: MarkKind, time_us: u64) {
        let mut lists = self.lists.lock();
        if lists.marks.len() < MAX_MARKS {
            lists.marks.push(Mark { time_us, kind });
        }
    }

    /// Something happens now.
    pub fn mark_now(&self, kind: MarkKind) {
        self.mark(kind, self.now());
    }

    /// A fetcher works for this run.
    pub(crate) fn attach(&self, fetcher: &Arc<Fetcher>) {
        self.fetchers.lock().push(Arc::downgrade(fetcher));
    }

    /// `on_waited` is called whenever a wait ends, before what was waited for is handed over: whoever shows on a terminal
    /// that something is waited for takes it away before the application goes on.
    pub fn set_on_waited(&self, on_waited: impl Fn() + Send + Sync + 'static) {
        *self.on_waited.lock() = Some(Box::new(on_waited));
    }

    /// This thread reads `touch` of `path` for the process `pid` until the result is dropped.
    pub(crate) fn asking(&self, path: &LayerPath, touch: Touch, pid: u32) -> Asking {
        Asking(ASKED.replace(Some(Asked { path: path.clone(), touch, pid })))
    }

    /// This thread waits for `objects` until the result is dropped. `is_promoted`: they were on their way.
    pub(crate) fn waiting(&self, objects: usize, is_promoted: bool) -> OpenWait<'_> {
        let asked = ASKED.with_borrow(Clone::clone);
        let process = asked.as_ref().and_then(|asked| self.process(asked.pid));
        let mut lists = self.lists.lock();
        let number = lists.next_wait;
        lists.next_wait += 1;
        let touch = asked.as_ref().map_or(Touch::Meta, |asked| asked.touch);
        let objects = u32::try_from(objects).unwrap_or(u32::MAX);
        let path = asked.map(|asked| asked.path);
        lists.open.insert(number, live::Open { start_us: self.now(), process, path, touch, objects, is_promoted });
        OpenWait { timeline: self, number }
    }

    fn waited(&self, number: u64) {
        {
            let mut lists = self.lists.lock();
            let Some(open) = lists.open.remove(&number) else { return };
            let end = self.now();
            if lists.waits.len() < MAX_ITEMS {
                let path = open.path.and_then(|path| lists.number(path));
                let live::Open { start_us, process, touch, objects, is_promoted, .. } = open;
                lists.waits.push(Wait { start_us, duration_us: end.saturating_sub(start_us), process, path, touch, objects, is_promoted });
            }
        }
        if let Some(on_waited) = &*self.on_waited.lock() {
            on_waited();
        }
    }

    /// Number of a process, by the id of one of its threads; `None` for nobody in particular and when there are too many.
    pub(crate) fn process(&self, pid: u32) -> Option<u16> {
        self.processes.number(pid, || self.now())
    }

    /// First touches were answered from here.
    pub(crate) fn touched(&self, source: Source, more: u64) {
        self.touches[source as usize].fetch_add(more, Ordering::Relaxed);
    }

    /// Bytes of a class arrived, over this link.
    pub(crate) fn arrived(&self, class: Class, bytes: u64, link: impl FnOnce() -> Link) {
        let now = self.now();
        self.received[class as usize].fetch_add(bytes, Ordering::Relaxed);
        let slot = u32::try_from(now / SLOT_US).unwrap_or(u32::MAX);
        let mut lists = self.lists.lock();
        if lists.arrivals.len() < MAX_ITEMS {
            *lists.arrivals.entry((slot, class)).or_default() += bytes;
        }
        let is_due = lists.estimates.last().is_none_or(|last| now >= last.time_us + ESTIMATE_EVERY_US);
        if is_due && lists.estimates.len() < MAX_ESTIMATES {
            drop(lists);
            let link = link();
            let estimate = Estimate { time_us: now, round_trip_us: micros(link.round_trip()), bytes_per_s: measured(link.rate()) };
            self.lists.lock().estimates.push(estimate);
        }
    }

    /// A request ended.
    pub(crate) fn requested(&self, request: Ended) {
        let Ended { class, started, first_byte, bytes, objects } = request;
        let mut lists = self.lists.lock();
        if lists.requests.len() < MAX_ITEMS {
            lists.requests.push(Request {
                start_us: self.at(started),
                first_byte_us: first_byte.map(micros),
                duration_us: micros(started.elapsed()),
                class,
                bytes,
                objects: u32::try_from(objects).unwrap_or(u32::MAX),
            });
        }
    }

    /// What was recorded until now, for the trace that began at `trace_started`. `trace_processes` and `sizes` are the
    /// recorder's.
    pub fn finish(&self, trace_started: Instant, trace_processes: Vec<u16>, sizes: Vec<u32>, totals: Totals) -> recording::Timeline {
        let lists = self.lists.lock();
        let mut marks = lists.marks.clone();
        marks.sort_by_key(|mark| mark.time_us);
        let mut estimates = lists.estimates.clone();
        estimates.sort_by_key(|estimate| estimate.time_us);
        let exit = marks.iter().rev().find(|mark| mark.kind == MarkKind::Exited);
        recording::Timeline {
            total_us: exit.map_or_else(|| self.now(), |mark| mark.time_us),
            trace_start_us: self.at(trace_started),
            totals,
            marks,
            processes: self.processes.list(),
            trace_processes,
            sizes,
            paths: lists.paths.clone(),
            waits: lists.waits.clone(),
            requests: lists.requests.clone(),
            arrivals: lists.arrivals.iter().map(|((slot, class), bytes)| Arrival { slot: *slot, class: *class, bytes: *bytes }).collect(),
            estimates,
        }
    }
}

/// A request that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) class: Class,
    pub(crate) started: Instant,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) bytes: u64,
    pub(crate) objects: usize,
}

impl Lists {
    fn number(&mut self, path: LayerPath) -> Option<u32> {
        if let Some(number) = self.numbers.get(&path) {
            return Some(*number);
        }
        let number = u32::try_from(self.paths.len()).ok().filter(|number| (*number as usize) < MAX_ITEMS)?;
        self.paths.push(path.clone());
        self.numbers.insert(path, number);
        Some(number)
    }
}

/// See [`Timeline::asking`].
#[derive(Debug)]
pub(crate) struct Asking(Option<Asked>);

impl Drop for Asking {
    fn drop(&mut self) {
        ASKED.set(self.0.take());
    }
}

/// See [`Timeline::waiting`].
#[derive(Debug)]
pub(crate) struct OpenWait<'a> {
    timeline: &'a Timeline,
    number: u64,
}

impl Drop for OpenWait<'_> {
    fn drop(&mut self) {
        self.timeline.waited(self.number);
    }
}

/// 0 as long as nothing was measured.
fn measured(rate: f64) -> u64 {
    if rate.to_bits() == INITIAL_RATE.to_bits() { 0 } else { rate as u64 }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
