//! All metrics: names with units, what they mean, and the Prometheus text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Counters of one process, from zero at its start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Requests, by route and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Bytes of request bodies.
    pub(crate) received_bytes: AtomicU64,
    /// Bytes of answers' bodies.
    pub(crate) sent_bytes: AtomicU64,
    /// Bytes read from the storage.
    pub(crate) storage_read_bytes: AtomicU64,
    /// Frames wanted, decompressed.
    pub(crate) frame_reads: AtomicU64,
    /// Frames that were read and decompressed for that.
    pub(crate) frame_cache_misses: AtomicU64,
    /// Objects sent in streams.
    pub(crate) objects_sent: AtomicU64,
    /// Stored objects that did not match their digest.
    pub(crate) objects_damaged: AtomicU64,
    /// Packs stored.
    pub(crate) packs_stored: AtomicU64,
    /// Traces refused, by reason.
    traces_refused: Mutex<BTreeMap<&'static str, u64>>,
    /// Traces accepted to be learned from.
    pub(crate) traces_accepted: AtomicU64,
    /// Traces merged into models.
    pub(crate) traces_merged: AtomicU64,
    /// Traces held out, to judge models by.
    pub(crate) traces_held: AtomicU64,
    /// Merges after which the model was served.
    pub(crate) gates_passed: AtomicU64,
    /// Merges after which it was not.
    pub(crate) gates_lost: AtomicU64,
    /// Models that lost too often and were dropped.
    pub(crate) candidates_dropped: AtomicU64,
    /// Blobs that are stored by what is in them.
    pub(crate) blobs_rebuilt: AtomicU64,
    /// Their bytes, as they were pushed.
    pub(crate) rebuilt_pushed_bytes: AtomicU64,
    /// What was stored for them.
    pub(crate) rebuilt_stored_bytes: AtomicU64,
    /// Blobs that were looked at and are kept as they were pushed.
    pub(crate) blobs_kept: AtomicU64,
    /// Models carried over to a new image.
    pub(crate) models_carried: AtomicU64,
    /// Objects that collections of this process removed from the index.
    pub(crate) gc_objects_removed: AtomicU64,
    /// Bytes of packs that they removed.
    pub(crate) gc_freed_bytes: AtomicU64,
    /// Collections that did not end, or that held removals back.
    pub(crate) gc_held_back: AtomicU64,
}

/// What is measured when metrics are asked for.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) packs: u64,
    pub(crate) pack_bytes: u64,
    pub(crate) objects: u64,
    pub(crate) active_launches: u64,
    pub(crate) active_requests: u64,
    pub(crate) waiting_traces: u64,
    pub(crate) frame_cache_bytes: u64,
    pub(crate) node_cache_bytes: u64,
    pub(crate) storage_copies_bytes: u64,
    /// A counter that is kept elsewhere.
    pub(crate) password_hashes: u64,
    pub(crate) database_connections: u64,
    pub(crate) idle_database_connections: u64,
}

impl Metrics {
    /// Counts a request.
    pub(crate) fn request(&self, route: &'static str, status: u16) {
        *self.requests.lock().entry((route, status)).or_default() += 1;
    }

    /// Counts a trace that is not learned.
    pub(crate) fn trace_refused(&self, reason: &'static str) {
        *self.traces_refused.lock().entry(reason).or_default() += 1;
    }

    /// The Prometheus text.
    pub(crate) fn render(&self, gauges: &Gauges) -> String {
        let mut out = String::with_capacity(4096);
        head(&mut out, "turbo_registry_requests_total", "counter", "Requests answered, by route and status.");
        for ((route, status), count) in &*self.requests.lock() {
            let _ = writeln!(out, "turbo_registry_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}");
        }
        head(&mut out, "turbo_registry_traces_refused_total", "counter", "Traces not learned, by reason.");
        for (reason, count) in &*self.traces_refused.lock() {
            let _ = writeln!(out, "turbo_registry_traces_refused_total{{reason=\"{reason}\"}} {count}");
        }
        let counters = [
            ("turbo_registry_received_bytes_total", "Bytes of request bodies.", &self.received_bytes),
            ("turbo_registry_sent_bytes_total", "Bytes of answers' bodies.", &self.sent_bytes),
            ("turbo_registry_storage_read_bytes_total", "Bytes read from the storage.", &self.storage_read_bytes),
            ("turbo_registry_frame_reads_total", "Decompressed frames wanted.", &self.frame_reads),
            ("turbo_registry_frame_cache_misses_total", "Frames read and decompressed since they were not cached.", &self.frame_cache_misses),
            ("turbo_registry_objects_sent_total", "Objects sent in streams.", &self.objects_sent),
            (
                "turbo_registry_objects_damaged_total",
                "Stored objects that did not match their digest. Anything but 0 needs someone to look.",
                &self.objects_damaged,
            ),
            ("turbo_registry_packs_stored_total", "Packs taken since the start.", &self.packs_stored),
            ("turbo_registry_traces_accepted_total", "Traces accepted: queued to be learned.", &self.traces_accepted),
            ("turbo_registry_traces_merged_total", "Traces merged into models.", &self.traces_merged),
            ("turbo_registry_traces_held_total", "Traces held out, to judge models by.", &self.traces_held),
            ("turbo_registry_gates_passed_total", "Merges whose model is served, since it does not worse on held traces.", &self.gates_passed),
            ("turbo_registry_gates_lost_total", "Merges whose model does worse on held traces and is not served.", &self.gates_lost),
            ("turbo_registry_candidates_dropped_total", "Models that did worse too often and were dropped.", &self.candidates_dropped),
            ("turbo_registry_blobs_rebuilt_total", "Blobs that are stored by what is in them.", &self.blobs_rebuilt),
            ("turbo_registry_rebuilt_pushed_bytes_total", "Bytes of those blobs, as they were pushed.", &self.rebuilt_pushed_bytes),
            ("turbo_registry_rebuilt_stored_bytes_total", "Bytes that were stored for those blobs.", &self.rebuilt_stored_bytes),
            ("turbo_registry_blobs_kept_total", "Blobs that were looked at and are kept as they were pushed.", &self.blobs_kept),
            ("turbo_registry_gc_objects_removed_total", "Objects that garbage collections removed from the index.", &self.gc_objects_removed),
            ("turbo_registry_gc_freed_bytes_total", "Bytes of packs that garbage collections removed.", &self.gc_freed_bytes),
            (
                "turbo_registry_gc_held_back_total",
                "Garbage collections that did not end or removed nothing since something cannot be read. If it grows, someone needs to look.",
                &self.gc_held_back,
            ),
            ("turbo_registry_models_carried_total", "Models carried over to a new image.", &self.models_carried),
        ];
        for (name, help, value) in counters {
            one(&mut out, name, "counter", help, value.load(Ordering::Relaxed));
        }
        one(&mut out, "turbo_registry_password_hashes_total", "counter", "Passwords hashed, to check or keep them.", gauges.password_hashes);
        let gauges = [
            ("turbo_registry_packs", "Packs stored.", gauges.packs),
            ("turbo_registry_pack_bytes", "Bytes of packs stored.", gauges.pack_bytes),
            ("turbo_registry_objects", "Objects in packs, counted once a pack.", gauges.objects),
            ("turbo_registry_active_launches", "Launches being answered.", gauges.active_launches),
            ("turbo_registry_active_requests", "Requests being answered.", gauges.active_requests),
            ("turbo_registry_waiting_traces", "Traces not yet merged.", gauges.waiting_traces),
            ("turbo_registry_frame_cache_bytes", "Bytes of decompressed frames kept.", gauges.frame_cache_bytes),
            ("turbo_registry_node_cache_bytes", "Bytes of parsed tree objects kept, estimated.", gauges.node_cache_bytes),
            ("turbo_registry_storage_copies_bytes", "Bytes of copies in the data folder of what was read from an object store.", gauges.storage_copies_bytes),
            ("turbo_registry_database_connections", "Connections to the database.", gauges.database_connections),
            ("turbo_registry_idle_database_connections", "Connections to the database that do nothing.", gauges.idle_database_connections),
        ];
        for (name, help, value) in gauges {
            one(&mut out, name, "gauge", help, value);
        }
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn one(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}
