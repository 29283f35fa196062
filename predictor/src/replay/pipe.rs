//! The sender's side of the link: when bytes leave it.

use super::link::{Link, Setup};

/// One direction of a link under TCP's slow start: rounds of a window each, twice as large each time, the next not
/// before a round trip after the one before began; once a window fills the link, byte after byte.
#[derive(Debug)]
pub(super) struct Pipe {
    link: Link,
    /// When the link has sent all it was given.
    free_at: u64,
    /// Bytes that the current round may still send.
    left: u64,
    window: u64,
    /// When the current round began.
    round_began: u64,
    full: u64,
}

impl Pipe {
    pub(super) fn new(link: Link, setup: &Setup) -> Self {
        let window = setup.initial_window_bytes.max(1);
        Self { link, free_at: 0, left: window, window, round_began: 0, full: link.in_flight_bytes() }
    }

    /// When the next byte can leave, at the earliest at `from`.
    pub(super) fn free_at(&self, from: u64) -> u64 {
        let start = self.free_at.max(from);
        match self.is_full() || self.left > 0 {
            true => start,
            false => start.max(self.round_began.saturating_add(self.link.round_trip_us)),
        }
    }

    /// Sends so many bytes, at the earliest at `from`; when the last of them has left.
    pub(super) fn send(&mut self, bytes: u64, from: u64) -> u64 {
        let mut rest = bytes;
        loop {
            let start = self.free_at(from);
            if self.is_full() {
                self.free_at = start.saturating_add(self.link.send_us(rest));
                return self.free_at;
            }
            if self.left == 0 {
                self.window = self.window.saturating_mul(2);
                self.left = self.window;
                (self.round_began, self.free_at) = (start, start);
                continue;
            }
            if self.left == self.window && self.window_is_first() {
                self.round_began = start;
            }
            let now = rest.min(self.left);
            self.free_at = start.saturating_add(self.link.send_us(now));
            self.left -= now;
            rest -= now;
            if rest == 0 {
                return self.free_at;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.window >= self.full
    }

    /// Whether nothing was ever sent.
    fn window_is_first(&self) -> bool {
        self.free_at == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_double_each_round_trip_until_the_link_is_full() {
        // 100 ms there and back, a byte a microsecond: 100 000 bytes fill the link.
        let link = Link { round_trip_us: 100_000, bytes_per_s: 1_000_000 };
        let setup = Setup { initial_window_bytes: 20_000, ..Setup::IDEAL };
        let mut pipe = Pipe::new(link, &setup);
        assert_eq!(pipe.send(15_000, 50_000), 65_000);
        assert_eq!(pipe.send(5000, 0), 70_000);
        // 40 000 from 150 ms on, 80 000 from 250 ms on, then all from 350 ms on.
        assert_eq!(pipe.free_at(0), 150_000);
        assert_eq!(pipe.send(50_000, 0), 260_000);
        assert_eq!(pipe.send(70_000, 0), 330_000);
        assert_eq!(pipe.send(500_000, 0), 850_000);
        // Who pauses has not lost what the acknowledgements gave.
        let mut pipe = Pipe::new(link, &setup);
        pipe.send(20_000, 0);
        assert_eq!(pipe.send(40_000, 500_000), 540_000);
        assert_eq!(pipe.send(1, 0), 600_001);
    }

    #[test]
    fn without_slow_start_bytes_follow_each_other() {
        let mut pipe = Pipe::new(Link { round_trip_us: 100_000, bytes_per_s: 1_000_000 }, &Setup::IDEAL);
        assert_eq!((pipe.send(1_000_000, 0), pipe.send(5, 0), pipe.send(5, 3_000_000)), (1_000_000, 1_000_005, 3_000_005));
    }
}
