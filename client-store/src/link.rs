//! What is known of the link to the registry: round trip `r` and delivery rate `b`, measured from the answers.
//!
//! Pure: the caller says what time it is, as the duration since any fixed moment. `r` is the smallest time from a
//! request to its first record within the last [`ROUND_TRIP_WINDOW`] (what is above the smallest is queueing and
//! work, not distance). `b` is the largest rate at which bytes arrived within the last [`RATE_WINDOW`], counted over
//! all open answers together: an application that asks for little makes a slow sample, never a slow link. Both count
//! uncompressed bytes, since those are what a chunk's length tells.

use std::time::Duration;

/// How long a round trip is remembered.
pub const ROUND_TRIP_WINDOW: Duration = Duration::from_secs(30);
/// How long a rate is remembered.
pub const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Round trip assumed before the first answer: a continent.
pub const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(50);
/// Rate assumed before the first sample, in bytes a second.
pub const INITIAL_RATE: f64 = 4e6;
/// Bounds of [`Link::window`], in bytes.
pub const WINDOW_BYTES: std::ops::RangeInclusive<u64> = 256 << 10..=32 << 20;
/// The smallest window until this many samples of the rate were taken: the first ones are of answers too short to tell.
const FIRST_WINDOW_BYTES: u64 = 2 << 20;
const SAMPLES: u32 = 8;
/// Bounds of [`Link::read_ahead`], in bytes.
pub const READ_AHEAD_BYTES: std::ops::RangeInclusive<u64> = 32 << 10..=4 << 20;

/// What one connection carries in a round trip, once it has warmed up, in bytes; and most requests for prefetches.
const CONNECTION_BYTES: usize = 512 << 10;
const MAX_REQUESTS: usize = 6;
/// A prefetch of so many bytes that is sure to be used may wait this many round trips longer than one of none: what is
/// likely goes before what is half as likely also if it was thought of some round trips later.
const PIECE_LEN: f64 = 65536.0;
const PATIENCE: f64 = 8.0;

/// A sample is taken over at least this time, so that what lay in a socket's buffer does not look like a fast link.
const SAMPLE: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(100);
/// Fewest bytes of the last sample of an answer.
const LAST_SAMPLE_BYTES: u64 = 32 << 10;

/// The best value of the current and the previous window.
#[derive(Clone, Copy, Debug, Default)]
struct Best {
    started: Duration,
    current: Option<f64>,
    previous: Option<f64>,
}

impl Best {
    fn add(&mut self, value: f64, now: Duration, window: Duration, better: fn(f64, f64) -> f64) {
        if now.saturating_sub(self.started) > window / 2 {
            self.previous = self.current;
            self.current = None;
            self.started = now;
        }
        self.current = Some(self.current.map_or(value, |current| better(current, value)));
    }

    fn get(&self, better: fn(f64, f64) -> f64) -> Option<f64> {
        match (self.current, self.previous) {
            (Some(current), Some(previous)) => Some(better(current, previous)),
            (current, previous) => current.or(previous),
        }
    }
}

/// Estimates of one link.
#[derive(Clone, Debug, Default)]
pub struct Link {
    round_trips: Best,
    rates: Best,
    /// How many samples of the rate were taken.
    samples: u32,
    /// Answers that are arriving.
    open: u32,
    /// Start and bytes of the sample that is being taken.
    sample: Option<(Duration, u64)>,
}

impl Link {
    /// A link of which nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// The first record of an answer arrived, `elapsed` after its request was sent. To be followed by [`Link::closed`].
    pub fn opened(&mut self, elapsed: Duration, now: Duration) {
        self.round_trips.add(elapsed.as_secs_f64().max(1e-5), now, ROUND_TRIP_WINDOW, f64::min);
        self.open += 1;
        self.sample.get_or_insert((now, 0));
    }

    /// More bytes of an open answer arrived. The first record does not count: it may have waited for long.
    pub fn delivered(&mut self, bytes: u64, now: Duration) {
        let span = self.round_trip().clamp(*SAMPLE.start(), *SAMPLE.end());
        let Some((started, sum)) = &mut self.sample else { return };
        *sum += bytes;
        let elapsed = now.saturating_sub(*started);
        if elapsed >= span {
            let rate = *sum as f64 / elapsed.as_secs_f64();
            self.sample = Some((now, 0));
            self.samples = self.samples.saturating_add(1);
            self.rates.add(rate, now, RATE_WINDOW, f64::max);
        }
    }

    /// An answer ended, well or not.
    pub fn closed(&mut self, now: Duration) {
        self.open = self.open.saturating_sub(1);
        if self.open > 0 {
            return;
        }
        let Some((started, sum)) = self.sample.take() else { return };
        let elapsed = now.saturating_sub(started);
        if sum >= LAST_SAMPLE_BYTES && elapsed >= *SAMPLE.start() / 2 {
            self.rates.add(sum as f64 / elapsed.as_secs_f64(), now, RATE_WINDOW, f64::max);
        }
    }

    /// The round trip.
    pub fn round_trip(&self) -> Duration {
        self.round_trips.get(f64::min).map_or(INITIAL_ROUND_TRIP, Duration::from_secs_f64)
    }

    /// The delivery rate, in uncompressed bytes a second; above zero.
    pub fn rate(&self) -> f64 {
        self.rates.get(f64::max).unwrap_or(INITIAL_RATE).max(1.0)
    }

    /// How long `bytes` take to arrive once they flow.
    pub fn transfer(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64((bytes as f64 / self.rate()).min(1e6))
    }

    /// How many bytes of prefetch may be on the way: twice the bandwidth-delay product, within [`WINDOW_BYTES`]. Twice,
    /// so that a rate that was underestimated can be seen to be higher.
    pub fn window(&self) -> u64 {
        let least = if self.samples >= SAMPLES { *WINDOW_BYTES.start() } else { FIRST_WINDOW_BYTES };
        ((2.0 * self.product()) as u64).clamp(least, *WINDOW_BYTES.end())
    }

    /// How many bytes may ride along with a miss without a prediction: what arrives in one round trip. So a miss at
    /// most doubles, and the whole is within twice the best that is possible (competitive prefetching).
    pub fn read_ahead(&self) -> u64 {
        (self.product() as u64).clamp(*READ_AHEAD_BYTES.start(), *READ_AHEAD_BYTES.end())
    }

    /// P\*: the probability of use above which fetching `len` bytes ahead costs less than the round trip that it may
    /// save. Small chunks on long links: almost always worth it.
    pub fn threshold(&self, len: u64) -> f64 {
        let transfer = len as f64 / self.rate();
        transfer / (self.round_trip().as_secs_f64() + transfer)
    }

    /// In which order to fetch ahead of use: the smaller goes first. What is needed `within` this time goes before what is
    /// needed a round trip later; of what is needed at the same time, that which saves more waiting for each second of the
    /// link, P·r / (s/b), goes first.
    pub fn urgency(&self, len: u64, probability: f32, within: Duration) -> Duration {
        let pieces = len as f64 / PIECE_LEN / f64::from(probability.clamp(0.01, 1.0));
        within + self.round_trip().mul_f64((PATIENCE * pieces).clamp(0.0, 1e4))
    }

    /// How many requests for prefetches may be under way: enough that connections together carry the window.
    pub fn requests(&self) -> usize {
        (self.window() as usize).div_ceil(CONNECTION_BYTES).clamp(3, MAX_REQUESTS)
    }

    fn product(&self) -> f64 {
        self.round_trip().as_secs_f64() * self.rate()
    }

    /// How many answers are open: a gauge for tests.
    pub fn open_answers(&self) -> u32 {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    /// An answer over a link of `rate` bytes a second, `bytes` in pieces of 16 KiB.
    fn answer(link: &mut Link, mut now: Duration, round_trip: Duration, rate: f64, bytes: u64) -> Duration {
        now += round_trip;
        link.opened(round_trip, now);
        for _ in 0..bytes / 16384 {
            now += Duration::from_secs_f64(16384.0 / rate);
            link.delivered(16384, now);
        }
        link.closed(now);
        now
    }

    #[test]
    fn finds_rate_and_round_trip() {
        for (round_trip, rate) in [(ms(20), 12.5e6), (ms(60), 3.1e6), (ms(100), 12.5e6), (ms(250), 125e6), (ms(1), 125e6)] {
            let mut link = Link::new();
            let now = answer(&mut link, ms(0), round_trip, rate, 8 << 20);
            answer(&mut link, now, round_trip + ms(30), rate, 64 << 10);
            assert!((link.rate() / rate - 1.0).abs() < 0.05, "{} of {rate}", link.rate());
            assert_eq!(link.round_trip(), round_trip);
            assert_eq!(link.open_answers(), 0);
            let product = round_trip.as_secs_f64() * rate;
            assert!(link.window() as f64 >= (1.9 * product).min(32e6) && link.window() >= *WINDOW_BYTES.start());
        }
    }

    #[test]
    fn an_idle_application_does_not_make_the_link_slow() {
        let mut link = Link::new();
        let mut now = answer(&mut link, ms(0), ms(20), 10e6, 1 << 20);
        for _ in 0..20 {
            now = answer(&mut link, now, ms(20), 10e6, 16 << 10) + ms(100);
        }
        assert!(link.rate() > 9e6, "{}", link.rate());
    }

    #[test]
    fn follows_a_link_that_changes() {
        let mut link = Link::new();
        let mut now = answer(&mut link, ms(0), ms(5), 50e6, 4 << 20);
        for _ in 0..30 {
            now = answer(&mut link, now, ms(80), 1e6, 1 << 20) + ms(1000);
        }
        assert!(link.rate() < 1.2e6 && link.round_trip() == ms(80), "{link:?}");
    }

    #[test]
    fn threshold_is_strict_on_short_links_and_generous_on_long_ones() {
        let at = |round_trip, rate| {
            let mut link = Link::new();
            answer(&mut link, ms(0), round_trip, rate, 16 << 20);
            link.threshold(64 << 10)
        };
        // The figures of the derivation for 64 KiB.
        for (found, expected) in [(at(ms(20), 12.5e6), 0.21), (at(ms(60), 3.125e6), 0.26), (at(ms(100), 12.5e6), 0.05)] {
            assert!((found - expected).abs() < 0.02, "{found} {expected}");
        }
        assert!(Link::new().threshold(0) == 0.0 && Link::new().threshold(u64::MAX) <= 1.0);
    }

    #[test]
    fn hostile_times_do_no_harm() {
        let mut link = Link::new();
        link.opened(Duration::ZERO, ms(10));
        link.delivered(u64::MAX / 4, ms(5));
        link.closed(ms(0));
        link.closed(ms(0));
        assert!(link.rate() >= 1.0 && WINDOW_BYTES.contains(&link.window()) && link.transfer(u64::MAX) < Duration::MAX);
    }
}
