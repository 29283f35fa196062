//! Links, and how a client and a server use one.

use serde::{Deserialize, Serialize};

/// On a metered link, what is less likely is not sent ahead.
pub const METERED_PROBABILITY: f32 = 0.5;

/// A link between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Round trip, in microseconds.
    pub round_trip_us: u64,
    /// Bytes a second; 0 counts as 1.
    pub bytes_per_s: u64,
}

/// A link with a name for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedLink {
    /// Its name.
    pub name: &'static str,
    /// What it is like.
    pub link: Link,
}

/// The links that policies are compared over: the same building, the same city, a thin line, another continent, and a fat
/// pipe to the other side of the earth.
pub const LINKS: [NamedLink; 5] =
    [named("lan", 500, 1000), named("metro", 20_000, 100), named("edge", 60_000, 25), named("wan", 100_000, 100), named("far", 250_000, 1000)];

const fn named(name: &'static str, round_trip_us: u64, megabits_per_s: u64) -> NamedLink {
    NamedLink { name, link: Link { round_trip_us, bytes_per_s: megabits_per_s * 125_000 } }
}

impl Link {
    /// How long the link is busy with so many bytes, in microseconds, rounded up.
    pub fn send_us(&self, bytes: u64) -> u64 {
        let us = (u128::from(bytes) * 1_000_000).div_ceil(u128::from(self.bytes_per_s.max(1)));
        u64::try_from(us).unwrap_or(u64::MAX)
    }

    /// Bytes that are on their way when the link is full: the bandwidth-delay product.
    pub fn in_flight_bytes(&self) -> u64 {
        u64::try_from(u128::from(self.bytes_per_s) * u128::from(self.round_trip_us) / 1_000_000).unwrap_or(u64::MAX)
    }

    /// The probability from which on prefetching so many bytes is worth more than it costs on a busy link: it saves a
    /// round trip if right, and delays all others by its sending time if wrong.
    pub fn threshold(&self, bytes: u64) -> f32 {
        let (send, round_trip) = (self.send_us(bytes) as f64, self.round_trip_us as f64);
        if send + round_trip > 0.0 { (send / (round_trip + send)) as f32 } else { 0.0 }
    }
}

/// How the link is used, by every policy alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Round trips before the request to launch can leave: TCP takes one, TLS 1.3 another.
    pub connect_round_trips: u32,
    /// Compressed bytes that go before anything planned: image, layers, the model.
    pub head_bytes: u64,
    /// What may be under way before the first acknowledgement, over all connections together. A connection's is 10
    /// segments (RFC 6928); the sum doubles each round trip until the link is full.
    pub initial_window_bytes: u64,
    /// Plain bytes that are flushed together; what is in a frame can be used when all of it has arrived.
    pub frame_bytes: u64,
    /// Plain bytes that the client decompresses and verifies in a second.
    pub decode_bytes_per_s: u64,
    /// An answer to a request comes behind this much of what is planned: what the server has handed to the network
    /// already, as time on the link.
    pub queue_us: u64,
    /// What the client and the server spend on a request besides.
    pub request_us: u64,
}

impl Default for Setup {
    /// A plain connection that has to be made first.
    fn default() -> Self {
        Self {
            connect_round_trips: 1,
            head_bytes: 4096,
            initial_window_bytes: 14_600,
            frame_bytes: 64 << 10,
            decode_bytes_per_s: 400_000_000,
            queue_us: 20_000,
            request_us: 1000,
        }
    }
}

impl Setup {
    /// Nothing but the link: each object by itself, no time for anything else.
    pub const IDEAL: Self = Self {
        connect_round_trips: 0,
        head_bytes: 0,
        initial_window_bytes: u64::MAX,
        frame_bytes: 0,
        decode_bytes_per_s: u64::MAX,
        queue_us: 0,
        request_us: 0,
    };

    /// How long the client takes for so many plain bytes, in microseconds.
    pub fn decode_us(&self, plain_bytes: u32) -> u64 {
        (u128::from(plain_bytes) * 1_000_000 / u128::from(self.decode_bytes_per_s.max(1))) as u64
    }
}
