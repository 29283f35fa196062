//! The model of one direction: which packets get through, and when. Pure arithmetic on a clock that
//! the caller brings, so that it is tested without packets.
//!
//! A packet waits in a drop-tail queue, is serialised at the rate, then arrives after the delay:
//! arrival = max(now, end of the packet before it) + length / rate + delay + jitter.

use super::spec::Direction;

/// Nanoseconds of the caller's clock.
pub(super) type Nanos = u64;

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It arrives at this time, never before the packet in front of it.
    Arrives(Nanos),
    /// The queue is full.
    QueueDrop,
    /// Lost at random.
    LossDrop,
}

/// One direction of a link at work.
#[derive(Debug)]
pub(super) struct Shaper {
    way: Direction,
    queue_bytes: f64,
    /// When the link has serialised all it accepted.
    idle_at: f64,
    last_arrival: Nanos,
    random: SplitMix,
}

impl Shaper {
    pub(super) fn new(way: Direction, seed: u64) -> Self {
        Self { way, queue_bytes: way.queue_bytes() as f64, idle_at: 0.0, last_arrival: 0, random: SplitMix(seed) }
    }

    /// Decides about a packet of `len` bytes that reaches the link now. Call it in the order of the packets.
    pub(super) fn admit(&mut self, now: Nanos, len: usize) -> Verdict {
        if self.way.loss > 0.0 && self.random.next_share() < self.way.loss {
            return Verdict::LossDrop;
        }
        let now = now as f64;
        let mut sent = now;
        if self.way.rate_bps > 0 {
            let bytes_per_ns = self.way.rate_bps as f64 / 8e9;
            let start = self.idle_at.max(now);
            let backlog = (start - now) * bytes_per_ns;
            // A packet larger than the queue still passes an idle link.
            if backlog > 0.0 && backlog + len as f64 > self.queue_bytes {
                return Verdict::QueueDrop;
            }
            // Kept as a fraction: rounding each packet to nanoseconds would change the rate.
            self.idle_at = start + len as f64 / bytes_per_ns;
            sent = self.idle_at;
        }
        let mut arrival = sent as Nanos + self.way.delay.as_nanos() as Nanos;
        if !self.way.jitter.is_zero() {
            arrival += (self.random.next_share() * self.way.jitter.as_nanos() as f64) as Nanos;
        }
        self.last_arrival = self.last_arrival.max(arrival);
        Verdict::Arrives(self.last_arrival)
    }
}

/// SplitMix64: a random source small enough to be read, and the same on every machine.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    /// Even in 0..1.
    fn next_share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::{LinkSpec, Queue};
    use super::*;
    use std::time::Duration;

    const MS: Nanos = 1_000_000;

    fn way(rate_bps: u64, delay_ms: u64) -> Direction {
        LinkSpec::symmetric(rate_bps, Duration::from_millis(delay_ms)).down
    }

    #[test]
    fn a_burst_leaves_at_the_rate() {
        // 1500 bytes at 12 Mbit/s take 1 ms.
        let mut shaper = Shaper::new(way(12_000_000, 10), 1);
        for packet in 1..=20 {
            assert_eq!(shaper.admit(5 * MS, 1500), Verdict::Arrives((5 + packet + 10) * MS));
        }
        assert_eq!(shaper.admit(500 * MS, 1500), Verdict::Arrives(511 * MS), "an idle link starts anew");
    }

    #[test]
    fn a_full_queue_drops_and_recovers() {
        let mut shaper = Shaper::new(Direction { queue: Queue::Bytes(6000), ..way(12_000_000, 0) }, 1);
        let passed = (0..10).filter(|_| matches!(shaper.admit(0, 1500), Verdict::Arrives(_))).count();
        assert_eq!(passed, 4);
        assert_eq!(shaper.admit(0, 1500), Verdict::QueueDrop);
        assert_eq!(shaper.admit(MS, 1500), Verdict::Arrives(5 * MS));
    }

    #[test]
    fn without_a_rate_only_the_delay_counts() {
        let mut shaper = Shaper::new(way(0, 7), 1);
        assert_eq!(shaper.admit(MS, 1500), Verdict::Arrives(8 * MS));
        assert_eq!(shaper.admit(MS, 1500), Verdict::Arrives(8 * MS));
    }

    #[test]
    fn loss_has_its_share_and_jitter_keeps_the_order() {
        let mut shaper = Shaper::new(Direction { loss: 0.1, jitter: Duration::from_millis(3), ..way(0, 1) }, 7);
        let (mut lost, mut last) = (0, 0);
        for packet in 0..20_000u64 {
            match shaper.admit(packet * 1000, 100) {
                Verdict::LossDrop => lost += 1,
                Verdict::Arrives(at) => {
                    assert!(at >= last && at >= packet * 1000 + MS && at <= packet * 1000 + 4 * MS);
                    last = at;
                }
                Verdict::QueueDrop => panic!("no queue without a rate"),
            }
        }
        assert!((1800..2200).contains(&lost), "{lost} of 20000 lost");
    }
}
