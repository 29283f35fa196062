//! Read-ahead within one file: a window that grows while what it brings is used, and shrinks when not.

use std::ops::Range;

use layer_format::LayerPath;
use lru::LruCache;

/// Smallest window, in bytes.
pub(crate) const MIN_WINDOW: u64 = 64 << 10;
/// The first window, in bytes, and after how many misses it is judged by what was used.
const FIRST_WINDOW: u64 = 256 << 10;
const JUDGED_AFTER: u32 = 2;
/// Windows are too large if less than this share of what they brought was used, and too small from the other on. Libraries
/// of which a launch reads two thirds are at a fifth at first, since it jumps; those of which it reads a twentieth never.
const USED_SHARE: Range<f64> = 0.1..0.2;
/// How many files are watched.
const WATCHED_FILES: usize = 512;

#[derive(Clone, Copy, Debug, Default)]
struct File {
    window: u64,
    /// Bytes brought by windows, and first touches of the file since, in bytes.
    brought: u64,
    touched: u64,
    misses: u32,
    end: u64,
}

/// The windows of the files that are being read.
#[derive(Debug)]
pub(crate) struct Windows {
    files: LruCache<(u8, LayerPath), File>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { files: LruCache::new(std::num::NonZeroUsize::new(WATCHED_FILES).unwrap_or(std::num::NonZeroUsize::MIN)) }
    }
}

impl Windows {
    /// The application touched a bucket of the file for the first time.
    pub(crate) fn touched(&mut self, layer: u8, path: &LayerPath, bucket_len: u64) {
        if let Some(file) = self.files.get_mut(&(layer, path.clone())) {
            file.touched += bucket_len;
        }
    }

    /// What to bring along with a miss at `missed` of a file of `len` bytes: behind it if it continues the miss before,
    /// else the aligned block around it. `round_trip` is what arrives in a round trip, and the most that comes along. And whether the
    /// file has shown that it is read densely.
    pub(crate) fn at_miss(&mut self, layer: u8, path: &LayerPath, missed: &Range<u64>, len: u64, round_trip: u64) -> (Range<u64>, bool) {
        let most = round_trip.max(MIN_WINDOW);
        let file = self.files.get_or_insert_mut((layer, path.clone()), File::default);
        let used = file.touched as f64 / file.brought.max(1) as f64;
        file.window = match file.window {
            0 => FIRST_WINDOW,
            window if used >= USED_SHARE.end || file.misses < JUDGED_AFTER => window * 2,
            window if used < USED_SHARE.start => window / 2,
            window => window,
        };
        file.window = file.window.clamp(MIN_WINDOW, most.next_power_of_two());
        let follows = missed.start == 0 || (missed.start >= file.end && missed.start - file.end <= file.window);
        let start = if follows { missed.start } else { missed.start / file.window * file.window };
        let end = start.saturating_add(file.window).max(missed.end).min(len);
        // What was long ago counts for less.
        (file.brought, file.touched) = (file.brought / 8 * 7 + end.saturating_sub(start), file.touched / 8 * 7);
        file.misses += 1;
        file.end = end;
        (start..end, file.misses > JUDGED_AFTER && used >= USED_SHARE.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 100 << 20;

    fn path() -> LayerPath {
        LayerPath::new("lib/large").unwrap()
    }

    #[test]
    fn a_window_that_is_used_doubles_up_to_a_round_trip_and_one_that_is_not_halves() {
        let mut windows = Windows::default();
        let mut at = 0;
        let mut lens = Vec::new();
        for _ in 0..8 {
            let (range, _) = windows.at_miss(0, &path(), &(at..at + 4096), FILE, 2 << 20);
            assert_eq!(range.start, at);
            lens.push(range.end - range.start);
            windows.touched(0, &path(), range.end - range.start);
            at = range.end;
        }
        assert_eq!(lens[..4], [256 << 10, 512 << 10, 1 << 20, 2 << 20]);
        for step in 1..90u64 {
            let missed = step << 20..(step << 20) + 4096;
            let (range, is_dense) = windows.at_miss(0, &path(), &missed, FILE, 2 << 20);
            assert!(step < 60 || !is_dense);
            assert!(range.start <= missed.start && range.end >= missed.end);
            windows.touched(0, &path(), 4096);
            lens.push(range.end - range.start);
        }
        assert_eq!(lens.last(), Some(&MIN_WINDOW));
    }

    #[test]
    fn ends_with_the_file() {
        let mut windows = Windows::default();
        assert_eq!(windows.at_miss(0, &path(), &(90..100), 100, 1 << 20), (90..100, false));
    }
}
