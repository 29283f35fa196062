//! What a run does at this moment, for a line of status.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use layer_format::LayerPath;
use layer_format::recording::{CLASSES, Class};
use layer_format::trace::Touch;

use super::Timeline;
use crate::fetch::Gauges;

/// A wait that has not ended.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) start_us: u64,
    pub(super) process: Option<u16>,
    pub(super) path: Option<LayerPath>,
    pub(super) touch: Touch,
    pub(super) objects: u32,
    pub(super) is_promoted: bool,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The path; `None` for a manifest.
    pub path: Option<LayerPath>,
    /// For how long by now.
    pub elapsed: Duration,
}

/// What a run does, and did so far.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Since the start of turbo.
    pub elapsed: Duration,
    /// Bytes that arrived, by class, in the order of [`CLASSES`].
    pub received: [u64; CLASSES.len()],
    /// First touches that were local, prefetched and missed.
    pub touches: [u64; 3],
    /// What has been waited for longest.
    pub waiting: Option<Waiting>,
    /// Objects queued or on the way that no one waits for.
    pub prefetches: usize,
    /// Requests under way.
    pub requests: usize,
}

impl Snapshot {
    /// Bytes that arrived.
    pub fn received_bytes(&self) -> u64 {
        self.received.iter().sum()
    }

    /// Bytes of a class that arrived.
    pub fn of(&self, class: Class) -> u64 {
        self.received[class as usize]
    }

    /// Share of the first touches that were there in time; `None` if there were none.
    pub fn hit_rate(&self) -> Option<f64> {
        let [local, prefetched, missed] = self.touches;
        let all = local + prefetched + missed;
        (all > 0).then(|| (local + prefetched) as f64 / all as f64)
    }
}

impl Timeline {
    /// Whether anyone waits now. Unlike [`Timeline::snapshot`] it takes none of the fetcher's locks.
    pub fn is_waiting(&self) -> bool {
        !self.lists.lock().open.is_empty()
    }

    /// What the run does now. Cheap enough for ten times a second.
    pub fn snapshot(&self) -> Snapshot {
        let fetchers: Vec<_> = self.fetchers.lock().iter().filter_map(Weak::upgrade).collect();
        let gauges: Vec<Gauges> = fetchers.iter().map(|fetcher| fetcher.gauges()).collect();
        let elapsed = self.started.elapsed();
        let waiting = {
            let lists = self.lists.lock();
            let longest = lists.open.values().min_by_key(|open| open.start_us);
            longest.map(|open| Waiting { path: open.path.clone(), elapsed: elapsed.saturating_sub(Duration::from_micros(open.start_us)) })
        };
        Snapshot {
            elapsed,
            received: CLASSES.map(|class| self.received[class as usize].load(Ordering::Relaxed)),
            touches: [0, 1, 2].map(|at: usize| self.touches[at].load(Ordering::Relaxed)),
            waiting,
            prefetches: gauges.iter().map(|gauges| gauges.prefetches).sum(),
            requests: gauges.iter().map(|gauges| gauges.requests).sum(),
        }
    }
}
