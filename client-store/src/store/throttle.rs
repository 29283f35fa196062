//! A bound on how many bytes a second work in the background reads and writes.

use std::time::{Duration, Instant};

/// Time that was not used is not saved for more than this.
const CREDIT: Duration = Duration::from_millis(500);

/// Keeps its user to a rate, over times of about half a second.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_s: u64,
    /// When all bytes so far are paid for.
    paid: Instant,
}

impl Throttle {
    /// At most `bytes_per_s` bytes a second; 0 for no bound.
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, paid: Instant::now() }
    }

    /// Accounts for so many bytes, and sleeps for as long as they were too fast.
    pub(super) fn pause(&mut self, bytes: u64) {
        let owed = self.owed(bytes, Instant::now());
        if !owed.is_zero() {
            std::thread::sleep(owed);
        }
    }

    fn owed(&mut self, bytes: u64, now: Instant) -> Duration {
        if self.bytes_per_s == 0 {
            return Duration::ZERO;
        }
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        self.paid = self.paid.max(earliest) + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        self.paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_rest_is_not_saved_up() {
        let mut throttle = Throttle::new(1000);
        let mut now = throttle.paid;
        assert_eq!(throttle.owed(0, now), Duration::ZERO);
        // 10 seconds of work at once, then more while it is not paid for.
        assert_eq!(throttle.owed(10_000, now).as_millis(), 10_000);
        now += Duration::from_secs(4);
        assert_eq!(throttle.owed(1000, now).as_millis(), 7000);
        // After an hour without work no more than the credit is free.
        now += Duration::from_secs(3600);
        assert_eq!(throttle.owed(500, now), Duration::ZERO);
        assert_eq!(throttle.owed(1000, now).as_millis(), 1000);
        assert_eq!(Throttle::new(0).owed(u64::MAX, now), Duration::ZERO);
    }
}
