//! What travelled: bytes of answers as they came over the wire, and what they tell of the link.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use layer_format::api::LinkHint;
use parking_lot::Mutex;

/// A rate is measured over this time.
const SAMPLE: Duration = Duration::from_millis(150);
/// A sample that took longer waited for something else than the link.
const LONGEST_SAMPLE: Duration = Duration::from_millis(600);
/// Bytes below which a sample says nothing.
const SAMPLE_BYTES: u64 = 32 << 10;
/// Links that are remembered.
const MAX_LINKS: usize = 64;
/// Where they are, in the folder of the store.
const FILE: &str = "links.json";

#[derive(Debug)]
struct Rate {
    started: Instant,
    bytes: u64,
    /// Of the sample before.
    previous: f64,
    best: f64,
}

/// Measures the link of one registry.
#[derive(Debug)]
pub(super) struct LinkMeter {
    /// 0: not known.
    round_trip_us: AtomicU64,
    rate: Mutex<Rate>,
}

impl Default for LinkMeter {
    fn default() -> Self {
        Self { round_trip_us: AtomicU64::new(0), rate: Mutex::new(Rate { started: Instant::now(), bytes: 0, previous: 0.0, best: 0.0 }) }
    }
}

impl LinkMeter {
    /// The head of an answer came, so long after its request. The smallest counts: the others had a handshake before, or
    /// work.
    pub(super) fn answered(&self, elapsed: Duration) {
        let us = (elapsed.as_micros() as u64).max(1);
        let _ = self.round_trip_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| (old == 0 || us < old).then_some(us));
    }

    /// Bytes of any answer came.
    pub(super) fn delivered(&self, bytes: u64, now: Instant) {
        let mut rate = self.rate.lock();
        rate.bytes += bytes;
        let elapsed = now.saturating_duration_since(rate.started);
        if elapsed < SAMPLE {
            return;
        }
        let sample = match elapsed <= LONGEST_SAMPLE && rate.bytes >= SAMPLE_BYTES {
            true => rate.bytes as f64 / elapsed.as_secs_f64(),
            false => 0.0,
        };
        // Two in a row: one alone may be what a socket had collected.
        rate.best = rate.best.max(sample.min(rate.previous));
        (rate.previous, rate.bytes, rate.started) = (sample, 0, now);
    }

    /// What was measured; `None` as long as one of the two is not known.
    pub(super) fn hint(&self) -> Option<LinkHint> {
        let (round_trip_us, best) = (self.round_trip_us.load(Ordering::Relaxed), self.rate.lock().best);
        (round_trip_us > 0 && best >= 1.0).then_some(LinkHint { round_trip_us, bytes_per_s: best as u64 })
    }
}

/// The link to a registry as earlier runs measured it, if they did. What cannot be read is not known.
pub fn recall_link(store: &Path, hub: &str) -> Option<LinkHint> {
    read(store).remove(hub)
}

/// Remembers a link for the next run.
///
/// # Errors
/// If the file cannot be written.
pub fn remember_link(store: &Path, hub: &str, link: LinkHint) -> std::io::Result<()> {
    let mut links = read(store);
    links.insert(hub.to_owned(), link);
    while links.len() > MAX_LINKS {
        let other = links.keys().find(|known| *known != hub).cloned();
        other.map(|other| links.remove(&other));
    }
    let temporary = store.join(format!("{FILE}.{}", std::process::id()));
    std::fs::write(&temporary, serde_json::to_vec_pretty(&links)?)?;
    std::fs::rename(&temporary, store.join(FILE))
}

fn read(store: &Path) -> BTreeMap<String, LinkHint> {
    std::fs::read(store.join(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_link_is_measured_and_a_burst_is_not() {
        let meter = LinkMeter::default();
        let mut now = Instant::now();
        meter.delivered(50 << 20, now + SAMPLE);
        now += SAMPLE;
        assert_eq!(meter.hint(), None, "one sample alone, and no round trip");
        for _ in 0..100 {
            now += Duration::from_millis(10);
            meter.delivered(100_000, now);
        }
        meter.answered(Duration::from_millis(120));
        meter.answered(Duration::from_millis(60));
        meter.answered(Duration::from_millis(90));
        let hint = meter.hint().unwrap();
        assert_eq!(hint.round_trip_us, 60_000);
        assert!((hint.bytes_per_s as f64 / 10e6 - 1.0).abs() < 0.1, "{hint:?}");
        // An application that asks for little does not make it slow.
        meter.delivered(10, now + Duration::from_secs(5));
        assert_eq!(meter.hint(), Some(hint));
    }

    #[test]
    fn links_are_remembered_by_registry_and_damage_does_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(recall_link(folder.path(), "http://a"), None);
        for n in 0..2 * MAX_LINKS as u64 {
            remember_link(folder.path(), &format!("http://{n}"), LinkHint { round_trip_us: n, bytes_per_s: 1 }).unwrap();
            assert_eq!(recall_link(folder.path(), &format!("http://{n}")).map(|link| link.round_trip_us), Some(n));
        }
        assert_eq!(read(folder.path()).len(), MAX_LINKS);
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(recall_link(folder.path(), "http://1"), None);
        remember_link(folder.path(), "http://1", LinkHint::default()).unwrap();
        assert!(recall_link(folder.path(), "http://1").is_some());
    }
}
