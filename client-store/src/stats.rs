//! What a run cost: counters while it runs, and [`RunStats`], the report of them.

mod latency;

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use latency::Latency;
use serde::{Deserialize, Serialize};

/// What a run needed, fetched and waited for. Times in microseconds, sizes in uncompressed bytes unless said otherwise.
/// An *object* is a chunk, a tree or recipe node, or a manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunStats {
    /// Objects that an application thread (or the start of the run) had to wait for.
    pub demand_misses: u64,
    /// Requests made because of them.
    pub demand_requests: u64,
    /// All requests for objects, and launch requests.
    pub requests: u64,
    /// Sum over all threads of the time that they waited for the network.
    pub stall_us: u64,
    /// How long a thread that had to wait did so: the median, the 99th percentile, and the longest, with a precision of an eighth.
    pub demand_p50_us: u64,
    /// See `demand_p50_us`.
    pub demand_p99_us: u64,
    /// See `demand_p50_us`.
    pub demand_max_us: u64,
    /// Bytes of all objects that arrived, whether they were used or not.
    pub bytes_fetched: u64,
    /// Bytes of answers as they came over the wire, compressed; if the registry does not count them, the same as
    /// `bytes_fetched`.
    pub bytes_received: u64,
    /// Bytes of the objects that were used, each counted once.
    pub bytes_needed: u64,
    /// Bytes that arrived ahead of use.
    pub bytes_prefetched: u64,
    /// Those of them that were then used.
    pub bytes_prefetched_used: u64,
    /// Bytes that arrived to complete the image, when nothing else was wanted of the link. Not part of `bytes_prefetched` or
    /// `bytes_wasted`.
    pub bytes_background: u64,
    /// Bytes that arrived and were of no use: prefetched and not used so far, received twice, or damaged.
    pub bytes_wasted: u64,
    /// Bytes of the objects that were used and were local before the run.
    pub local_bytes: u64,
    /// Touched buckets that were there in time (local or prefetched) in proportion to all; 1 if none was touched.
    pub hit_rate: f64,
    /// Objects that did not match any digest asked for, and local ones that no longer matched theirs.
    pub damaged_objects: u64,
    /// Requests that had to be repeated.
    pub retries: u64,
    /// Times that the registry's announced order was left because the application needed something sooner.
    pub promotions: u64,
    /// Why objects could not be kept in the local store, if that happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_error: Option<String>,
    /// Round trip to the registry as last measured.
    pub round_trip_us: u64,
    /// Delivery rate as last measured, in bytes a second.
    pub rate_bytes_per_s: u64,
}

macro_rules! counters {
    ($($name:ident),*) => {
        /// Counters that many threads add to.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }
        impl Counters {
            pub(crate) fn report(&self) -> RunStats {
                RunStats { $($name: self.$name.get(),)* ..RunStats::default() }
            }
        }
    };
}
counters!(
    demand_misses,
    demand_requests,
    requests,
    stall_us,
    bytes_fetched,
    bytes_prefetched,
    damaged_objects,
    retries,
    promotions,
    bytes_wasted,
    bytes_background
);

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
