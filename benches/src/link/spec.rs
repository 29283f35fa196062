//! What a link is like: rate, delay, queue, loss and jitter of each direction.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A queue is never smaller than this, whatever the rate: some 43 full packets.
pub const MIN_QUEUE_BYTES: u64 = 64 * 1024;
/// How long the default queue takes to drain at the link's rate. A tenth of a second is what access
/// links have: enough for one flow to fill the link, little enough not to hide congestion.
pub const DEFAULT_QUEUE: Duration = Duration::from_millis(100);

/// Both directions of a link, and the addresses at its ends.
#[derive(Debug, Clone)]
pub struct LinkSpec {
    /// From the server to the client.
    pub down: Direction,
    /// From the client to the server.
    pub up: Direction,
    /// Address of the server's end.
    pub server: Ipv4Addr,
    /// Address of the client's end, in the same /24 as the server's.
    pub client: Ipv4Addr,
    /// Largest IP packet in bytes.
    pub mtu_bytes: u16,
    /// Seed of loss and jitter: the same seed drops the same packets by number.
    pub seed: u64,
}

/// One direction. All of it counts IP packets, without any framing below them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Direction {
    /// Bits per second; 0 is unlimited.
    pub rate_bps: u64,
    /// From the end of a packet's serialisation to its arrival: half of the round trip.
    pub delay: Duration,
    /// How much may wait for serialisation; what comes on top is dropped. Ignored without a rate.
    pub queue: Queue,
    /// Share of packets dropped at random, 0 to 1.
    pub loss: f64,
    /// Upper bound of an even random addition to the delay. Packets are never reordered.
    pub jitter: Duration,
}

/// The size of the drop-tail queue before the bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// As many bytes.
    Bytes(u64),
    /// As many bytes as drain in this time, at least [`MIN_QUEUE_BYTES`].
    Time(Duration),
}

impl LinkSpec {
    /// A link alike in both directions: `rate_bps` bits per second (0: unlimited), and a round trip of twice `delay`.
    pub fn symmetric(rate_bps: u64, delay: Duration) -> Self {
        let way = Direction { rate_bps, delay, queue: Queue::Time(DEFAULT_QUEUE), loss: 0.0, jitter: Duration::ZERO };
        Self { down: way, up: way, server: Ipv4Addr::new(10, 77, 0, 1), client: Ipv4Addr::new(10, 77, 0, 2), mtu_bytes: 1500, seed: 1 }
    }
}

impl Direction {
    /// Bytes that may wait for serialisation.
    pub fn queue_bytes(&self) -> u64 {
        match self.queue {
            Queue::Bytes(bytes) => bytes,
            Queue::Time(time) => MIN_QUEUE_BYTES.max((self.rate_bps as f64 / 8.0 * time.as_secs_f64()) as u64),
        }
    }
}

/// Reads a rate in bits per second, with k, M or G for powers of a thousand.
///
/// # Errors
/// If the text is not a number that is 0 or more, with such a suffix.
pub fn parse_rate(text: &str) -> Result<u64> {
    scaled(text).with_context(|| format!("rate {text:?}: expected bits per second such as 100M, 1.5G, or 0 for no limit"))
}

/// Reads a queue size: bytes with k, M or G, or a time in milliseconds such as `50ms`.
///
/// # Errors
/// If the text is neither.
pub fn parse_queue(text: &str) -> Result<Queue> {
    if let Some(time) = text.strip_suffix("ms") {
        return Ok(Queue::Time(parse_ms(time)?));
    }
    scaled(text).map(Queue::Bytes).with_context(|| format!("queue {text:?}: expected bytes such as 256k, or a time such as 50ms"))
}

/// Reads a time in milliseconds, decimals allowed.
///
/// # Errors
/// If the text is not a number from 0 to an hour.
pub fn parse_ms(text: &str) -> Result<Duration> {
    let ms: f64 = text.parse().with_context(|| format!("{text:?} is not a number of milliseconds"))?;
    if !(0.0..=3_600_000.0).contains(&ms) {
        bail!("{text} ms is not between 0 and an hour");
    }
    Ok(Duration::from_secs_f64(ms / 1e3))
}

/// Reads a share given in percent.
///
/// # Errors
/// If the text is not a number from 0 to 100.
pub fn parse_percent(text: &str) -> Result<f64> {
    let percent: f64 = text.parse().with_context(|| format!("{text:?} is not a percentage"))?;
    if !(0.0..=100.0).contains(&percent) {
        bail!("{text} is not between 0 and 100");
    }
    Ok(percent / 100.0)
}

fn scaled(text: &str) -> Result<u64> {
    let (digits, factor) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 1e3),
        Some('m' | 'M') => (&text[..text.len() - 1], 1e6),
        Some('g' | 'G') => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    let value = digits.parse::<f64>()? * factor;
    if !(0.0..=1e12).contains(&value) {
        bail!("out of range");
    }
    Ok(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_suffixes_and_bounds() {
        for (text, rate) in [("100M", 100_000_000), ("1.5G", 1_500_000_000), ("64k", 64_000), ("0", 0), ("9600", 9600)] {
            assert_eq!(parse_rate(text).unwrap(), rate, "{text}");
        }
        for text in ["", "M", "-1M", "nan", "1T", "1e40", "inf"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn queues_are_bytes_or_a_time() {
        assert_eq!(parse_queue("256k").unwrap(), Queue::Bytes(256_000));
        assert_eq!(parse_queue("50ms").unwrap(), Queue::Time(Duration::from_millis(50)));
        assert!(parse_queue("ms").is_err());
        let mut way = LinkSpec::symmetric(100_000_000, Duration::ZERO).down;
        assert_eq!(way.queue_bytes(), 1_250_000);
        way.rate_bps = 1000;
        assert_eq!(way.queue_bytes(), MIN_QUEUE_BYTES);
    }

    #[test]
    fn times_and_shares_are_bounded() {
        assert_eq!(parse_ms("2.5").unwrap(), Duration::from_micros(2500));
        assert_eq!(parse_percent("50").unwrap(), 0.5);
        assert!(parse_ms("-1").is_err() && parse_ms("nan").is_err() && parse_percent("101").is_err());
    }
}
