//! A histogram of waiting times: logarithmic, each power of two in eight steps, so that a quantile is right to an eighth.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Steps of a power of two, and the number of steps in all: up to 2^40 microseconds.
const STEPS: u64 = 8;
const COUNT: usize = 40 * STEPS as usize;

/// Counts of waits by their length.
#[derive(Debug)]
pub(crate) struct Latency {
    counts: [AtomicU64; COUNT],
    longest_us: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; COUNT], longest_us: AtomicU64::new(0) }
    }
}

fn step_of(micros: u64) -> usize {
    let micros = micros.max(STEPS);
    let power = micros.ilog2();
    let part = (micros >> (power - STEPS.ilog2())) - STEPS;
    (u64::from(power - STEPS.ilog2()) * STEPS + part) as usize
}

/// The longest time that a step stands for.
fn end_of(step: usize) -> u64 {
    let (power, part) = (step as u64 / STEPS, step as u64 % STEPS);
    ((STEPS + part + 1) << power) - 1
}

impl Latency {
    /// A wait of this length.
    pub(crate) fn add(&self, waited: Duration) {
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.counts[step_of(micros).min(COUNT - 1)].fetch_add(1, Ordering::Relaxed);
        self.longest_us.fetch_max(micros, Ordering::Relaxed);
    }

    /// A time that `share` of the waits did not exceed; zero if there were none.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let wanted = (counts.iter().sum::<u64>() as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
        let longest = self.longest_us.load(Ordering::Relaxed);
        let mut seen = 0;
        for (step, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Duration::from_micros(end_of(step).min(longest));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let latency = Latency::default();
        assert_eq!(latency.quantile(0.99), Duration::ZERO);
        let waits: Vec<u64> = (1..=10_000).map(|n| n * n % 999_983).collect();
        waits.iter().for_each(|micros| latency.add(Duration::from_micros(*micros)));
        let mut sorted = waits;
        sorted.sort_unstable();
        for (share, at) in [(0.5, 4999), (0.99, 9899), (1.0, 9999)] {
            let (found, exact) = (latency.quantile(share).as_micros() as f64, sorted[at] as f64);
            assert!(found >= exact && found <= exact * 1.13, "{share}: {found} {exact}");
        }
        latency.add(Duration::MAX);
        assert_eq!(latency.quantile(1.0).as_micros() as u64, end_of(COUNT - 1));
    }
}
