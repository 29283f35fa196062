//! How well the objects of an image lie together: the frames that one reads who reads it from its first file to its last,
//! in relation to those that it would have been if they had been packed in that order.

use std::num::NonZeroUsize;

use layer_format::frame::TARGET_FRAME_LEN;
use lru::LruCache;

use super::index::Location;

/// Frames that the reader is assumed to remember: what the store's own cache of 32 MiB holds.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(128).expect("not zero");

/// Counts frames of one sequential read.
#[derive(Debug)]
pub(super) struct Fragmentation {
    remembered: LruCache<(u32, u32), ()>,
    /// Frames read and decoded.
    pub(super) frames: u64,
    /// Uncompressed bytes of the objects in them that were wanted.
    pub(super) bytes: u64,
    /// Full frames that the same objects would have made, and the bytes of the one that is not full.
    full: u64,
    rest: u64,
}

impl Default for Fragmentation {
    fn default() -> Self {
        Self { remembered: LruCache::new(REMEMBERED), frames: 0, bytes: 0, full: 0, rest: 0 }
    }
}

impl Fragmentation {
    /// The next object is read. One that lies by itself costs just its own bytes, and is not counted.
    pub(super) fn read(&mut self, location: &Location) {
        if location.slot == Location::DIRECT {
            return;
        }
        self.bytes += u64::from(location.len);
        self.frames += u64::from(self.remembered.put((location.pack, location.offset), ()).is_none());
        self.rest += u64::from(location.len);
        if self.rest >= TARGET_FRAME_LEN as u64 {
            (self.full, self.rest) = (self.full + 1, 0);
        }
    }

    /// Frames that would have been read if the objects had been packed in this order.
    pub(super) fn ideal_frames(&self) -> u64 {
        self.full + u64::from(self.rest > 0)
    }

    /// 1.0 if not fragmented at all; 2.0 if twice as many frames are read as need be.
    pub(super) fn ratio(&self) -> f64 {
        if self.frames == 0 { 1.0 } else { self.frames as f64 / self.ideal_frames().max(1) as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(frame: u32, slot: u16) -> Location {
        Location { pack: 1, offset: frame, frame_len: 100, slot, len: TARGET_FRAME_LEN as u32 / 8 }
    }

    #[test]
    fn order_is_ideal_and_every_eighth_object_is_eight_times_as_much() {
        let mut in_order = Fragmentation::default();
        (0..800).for_each(|n| in_order.read(&location(n / 8, (n % 8) as u16)));
        assert_eq!((in_order.frames, in_order.ideal_frames()), (100, 100));
        let mut spread = Fragmentation::default();
        (0..800).for_each(|n| spread.read(&location(n, 0)));
        assert_eq!((spread.frames, spread.ideal_frames(), spread.ratio()), (800, 100, 8.0));
        // Two frames in turn are read once each while both are remembered.
        let mut turns = Fragmentation::default();
        (0..16).for_each(|n| turns.read(&location(n % 2, (n / 2) as u16)));
        assert_eq!((turns.frames, turns.ratio()), (2, 1.0));
        // What was streamed lies by itself.
        let mut streamed = Fragmentation::default();
        streamed.read(&Location { slot: Location::DIRECT, ..location(0, 0) });
        assert_eq!((streamed.frames, streamed.ratio()), (0, 1.0));
    }
}
