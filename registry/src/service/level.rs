//! How hard an answer is compressed: as hard as its link leaves time for, and never so that the link has to wait.
//!
//! Pure: the stream tells what each write took, and is told when to go on with another level. If the client is what
//! the stream waits for, there is time: a level is chosen whose speed, as measured on this very stream, still is well
//! above what the link takes. If the client waits while this side encodes, a faster level is chosen, and none above it
//! again. If neither (the storage is slow, say), all stays. A change costs the window (a new zstd frame begins), so there are few: one early, since a wrong first choice hurts
//! most, then one every few MiB.

use std::time::Duration;

use layer_format::api::LinkHint;

/// The levels, and how fast each is in proportion to level 3, measured on a launch of Python with its libraries: 49 MB
/// that these compress to 19.9, 17.3, 16.1 and 15.7 MB. Level 12 takes more than twice the time of 9 for 0.6 % less.
const LEVELS: [(i32, f64); 4] = [(1, 2.0), (3, 1.0), (6, 0.33), (9, 0.23)];
/// Bytes a second that level 3 takes on one core, hashing included.
const LEVEL_3_SPEED: f64 = 250e6;
/// The level of a link of which nothing is known.
const DEFAULT_LEVEL: i32 = 3;
/// How many uncompressed bytes a compressed one stands for, before that is measured.
const EXPECTED_RATIO: f64 = 3.0;
/// Encoding has to be faster than the link by this factor: it must catch up after each pause.
const HEADROOM: f64 = 1.6;
/// Share of the time that a stream waits for its client at least if its link is what limits it.
const LINK_BOUND: f64 = 0.1;
/// Share of the time that a client waits for the encoder at least if that is what limits it.
const ENCODER_BOUND: f64 = 0.4;
/// Uncompressed bytes before the first decision. A connection begins slowly, which looks like a slow link: this one
/// only goes down.
const FIRST_BYTES: u64 = 512 << 10;
/// And between others.
const NEXT_BYTES: u64 = 4 << 20;

/// What a write took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Uncompressed bytes.
    pub(crate) plain: u64,
    /// Time since the write before.
    pub(crate) elapsed: Duration,
    /// Time spent encoding them.
    pub(crate) encoding: Duration,
    /// The part of it in which nothing was left to be sent.
    pub(crate) starving: Duration,
    /// Time spent waiting until the client took what came before.
    pub(crate) waiting: Duration,
}

/// The level of one stream.
#[derive(Clone, Debug)]
pub(crate) struct LevelControl {
    /// Index into [`LEVELS`]; `None`: the level is fixed.
    at: Option<usize>,
    level: i32,
    /// Highest index that was not too slow.
    highest: usize,
    window: Sample,
    decisions: u32,
}

impl LevelControl {
    /// Always this level.
    pub(crate) fn fixed(level: i32) -> Self {
        Self { at: None, level, highest: 0, window: Sample::default(), decisions: 0 }
    }

    /// Begins with what suits the link as far as it is known, on a server of so many streams for each of its cores.
    pub(crate) fn adaptive(link: Option<LinkHint>, streams_per_core: f64) -> Self {
        let speed = LEVEL_3_SPEED / streams_per_core.max(1.0);
        let at = match link.filter(|link| link.bytes_per_s > 0) {
            Some(link) => highest_of_speed(LEVELS.len() - 1, speed, HEADROOM * EXPECTED_RATIO * link.bytes_per_s as f64),
            None if streams_per_core > 2.0 => 0,
            None => LEVELS.iter().position(|(level, _)| *level == DEFAULT_LEVEL).unwrap_or(0),
        };
        Self { at: Some(at), level: LEVELS[at].0, highest: LEVELS.len() - 1, window: Sample::default(), decisions: 0 }
    }

    /// The level to encode with.
    pub(crate) fn level(&self) -> i32 {
        self.level
    }

    /// Adds a write. Returns the level to go on with if it is another.
    pub(crate) fn observe(&mut self, sample: Sample) -> Option<i32> {
        let at = self.at?;
        self.window.plain += sample.plain;
        self.window.elapsed += sample.elapsed;
        self.window.encoding += sample.encoding;
        self.window.starving += sample.starving;
        self.window.waiting += sample.waiting;
        if self.window.plain < if self.decisions == 0 { FIRST_BYTES } else { NEXT_BYTES } {
            return None;
        }
        let window = std::mem::take(&mut self.window);
        let is_first = self.decisions == 0;
        self.decisions += 1;
        let elapsed = window.elapsed.as_secs_f64().max(1e-6);
        let speed = window.plain as f64 / window.encoding.as_secs_f64().max(1e-6) / LEVELS[at].1;
        let to = if window.starving.as_secs_f64() >= ENCODER_BOUND * elapsed {
            self.highest = at.saturating_sub(1);
            self.highest
        } else if window.waiting.as_secs_f64() >= LINK_BOUND * elapsed {
            let wanted = highest_of_speed(self.highest, speed, HEADROOM * window.plain as f64 / elapsed);
            if is_first { wanted.min(at) } else { wanted }
        } else {
            at
        };
        if to == at {
            return None;
        }
        self.at = Some(to);
        self.level = LEVELS[to].0;
        Some(self.level)
    }
}

/// The highest level up to `limit` that is at least so fast; the lowest if none is.
fn highest_of_speed(limit: usize, level_3_speed: f64, wanted: f64) -> usize {
    (0..=limit).rev().find(|at| LEVELS[*at].1 * level_3_speed >= wanted).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream of `mib` MiB over a link that takes `link` plain bytes a second, encoded by a core of which level 3 takes
    /// `core` bytes a second. Returns all levels, and how long it took in proportion to the better of both alone.
    fn stream(mut control: LevelControl, mib: usize, link: f64, core: f64) -> (Vec<i32>, f64) {
        let piece = 64.0 * 1024.0;
        let (mut levels, mut queue, mut time) = (vec![control.level()], 0.0f64, 0.0);
        for _ in 0..mib * 16 {
            let factor = LEVELS.iter().find(|(level, _)| *level == control.level()).map_or(1.0, |(_, factor)| *factor);
            let encoding = piece / (core * factor);
            // The link empties the queue meanwhile; the writer waits until there is room again.
            let starving = if queue <= link * encoding { encoding } else { 0.0 };
            queue = (queue - link * encoding).max(0.0) + piece;
            let waiting = ((queue - 512.0 * 1024.0) / link).max(0.0);
            queue -= waiting * link;
            time += encoding + waiting;
            let seconds = Duration::from_secs_f64;
            let (elapsed, encoding, starving, waiting) = (seconds(encoding + waiting), seconds(encoding), seconds(starving), seconds(waiting));
            let sample = Sample { plain: piece as u64, elapsed, encoding, starving, waiting };
            if let Some(level) = control.observe(sample) {
                levels.push(level);
            }
        }
        let best = mib as f64 * 1048576.0 / link.min(core * LEVELS[0].1);
        (levels, time / best)
    }

    #[test]
    fn a_slow_link_gets_a_high_level_and_no_link_waits() {
        for (link, core, last) in [(9e6, 200e6, 9), (37e6, 200e6, 6), (120e6, 200e6, 1), (3e6, 300e6, 9), (1e9, 200e6, 1), (37e6, 40e6, 1)] {
            let (levels, slowdown) = stream(LevelControl::adaptive(None, 0.1), 64, link, core);
            assert!(*levels.last().unwrap() >= last, "{link} {core}: {levels:?}");
            assert!(slowdown < 1.1, "{link} {core}: {slowdown}, {levels:?}");
            assert!(levels.len() <= 4, "{link} {core}: {levels:?}");
        }
    }

    #[test]
    fn a_link_that_is_known_has_its_level_from_the_first_byte() {
        let known = |bytes_per_s, load| LevelControl::adaptive(Some(LinkHint { round_trip_us: 60_000, bytes_per_s }), load).level();
        assert_eq!([known(125_000_000, 0.1), known(12_500_000, 0.1), known(3_125_000, 0.1), known(100_000, 0.1)], [1, 6, 9, 9]);
        assert!(known(3_125_000, 8.0) < known(3_125_000, 1.0), "a busy server has no time");
        assert_eq!(known(0, 0.1), DEFAULT_LEVEL);
        assert_eq!(LevelControl::adaptive(None, 4.0).level(), 1);
    }

    #[test]
    fn a_core_that_others_use_too_is_not_the_bottleneck_for_long() {
        let hint = Some(LinkHint { round_trip_us: 20_000, bytes_per_s: 3_000_000 });
        let (levels, slowdown) = stream(LevelControl::adaptive(hint, 0.1), 64, 30e6, 60e6);
        assert!(levels[0] == 9 && *levels.last().unwrap() <= 3, "{levels:?}");
        assert!(slowdown < 1.3, "{slowdown} {levels:?}");
    }

    #[test]
    fn a_fixed_level_stays() {
        let (levels, _) = stream(LevelControl::fixed(19), 64, 1e9, 1e9);
        assert_eq!(levels, [19]);
        let mut zero = LevelControl::adaptive(None, 0.0);
        let nothing = Sample { plain: 64 << 20, ..Sample::default() };
        assert!(zero.observe(nothing).is_none_or(|level| level >= 1), "times of zero do no harm");
    }
}
