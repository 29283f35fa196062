//! What of a launch list is worth sending: what is touched with a probability above P\*, at which the time that sending
//! takes from what follows equals the round trip that it may save.

use layer_format::api::LinkHint;
use layer_format::trace::{BUCKET_LEN, Touch};

/// A link of which nothing is known.
const UNKNOWN: LinkHint = LinkHint { round_trip_us: 50_000, bytes_per_s: 4_000_000 };
/// Bytes on the wire of a byte of file content.
const CONTENT_RATIO: f64 = 0.4;
/// Bytes on the wire of what a lookup touches: little, since neighbours share it.
const LOOKUP_LEN: f64 = 1024.0;
/// What every byte must be worth to a client that pays for each.
const METERED: f64 = 0.9;

/// The rule for one launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admission {
    round_trip_s: f64,
    bytes_per_s: f64,
    least: f64,
}

impl Admission {
    /// For a link; all that the client says about it is taken within reason.
    pub(crate) fn new(link: Option<LinkHint>, metered: bool) -> Self {
        let link = link.filter(|link| link.bytes_per_s > 0 && link.round_trip_us > 0).unwrap_or(UNKNOWN);
        Self {
            round_trip_s: (link.round_trip_us as f64 / 1e6).min(10.0),
            bytes_per_s: (link.bytes_per_s as f64).max(1e3),
            least: if metered { METERED } else { 0.0 },
        }
    }

    /// P\* of so many bytes on the wire.
    fn threshold(&self, len: f64) -> f64 {
        let transfer = len / self.bytes_per_s;
        (transfer / (self.round_trip_s + transfer)).max(self.least)
    }

    /// Whether to send what is touched with this probability.
    pub(crate) fn admits(&self, touch: Touch, probability: f32) -> bool {
        let len = match touch {
            Touch::Data { .. } => CONTENT_RATIO * BUCKET_LEN as f64,
            Touch::Meta => LOOKUP_LEN,
        };
        f64::from(probability) >= self.threshold(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(round_trip_us: u64, bytes_per_s: u64) -> Option<LinkHint> {
        Some(LinkHint { round_trip_us, bytes_per_s })
    }

    #[test]
    fn strict_on_thin_lines_generous_on_long_ones() {
        let least = |link, metered| Admission::new(link, metered).threshold(65536.0);
        for (link, expected) in
            [(link(20_000, 12_500_000), 0.21), (link(60_000, 3_125_000), 0.26), (link(100_000, 12_500_000), 0.05), (link(500, 125_000_000), 0.51)]
        {
            assert!((least(link, false) - expected).abs() < 0.01, "{link:?}");
        }
        assert_eq!(least(link(100_000, 12_500_000), true), METERED);
        assert!(least(link(1, 1000), true) > METERED);
        for hostile in [link(0, 0), link(u64::MAX, 1), link(1, u64::MAX)] {
            assert!((0.0..=1.0).contains(&least(hostile, false)), "{hostile:?}");
        }
    }

    #[test]
    fn sure_things_always_go() {
        for metered in [false, true] {
            let admission = Admission::new(link(5_000, 1_000_000), metered);
            assert!(admission.admits(Touch::Data { bucket: 0 }, 1.0) && !admission.admits(Touch::Data { bucket: 0 }, 0.5));
            assert_eq!(admission.admits(Touch::Meta, 0.5), !metered);
        }
    }
}
