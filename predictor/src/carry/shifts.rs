//! Where the bytes of a file went when its content changed.
//!
//! Files are cut by content, so a chunk of the old version that is still there has the same digest at another offset: an
//! *anchor*. Between anchors the bytes are taken to have moved as the anchor before them did; in front of the first one,
//! and without any, to have stayed.

use std::collections::HashMap;

use layer_format::Digest;
use layer_format::recipe::Extent;
use layer_format::trace::BUCKET_LEN;

/// A bucket of the new version counts as touched if it has at least this share of a touched one: so a shift by a few
/// bytes does not double what is fetched. Whole chunks are fetched anyway, which reach over the bucket's ends.
const MIN_SHARE: u64 = 4;

/// From buckets of the old version to those of the new one.
#[derive(Clone, Debug)]
pub struct Shifts {
    /// First byte in the old version, and how far it moved; ascending. Holds up to the next one.
    moves: Vec<(u64, i64)>,
    old_len: u64,
    new_len: u64,
}

impl Shifts {
    /// From all extents of both versions, in order.
    pub fn new<'a>(old: impl IntoIterator<Item = &'a Extent>, new: impl IntoIterator<Item = &'a Extent>) -> Self {
        let mut offsets: HashMap<Digest, Vec<u64>> = HashMap::new();
        let mut new_len = 0;
        for extent in new {
            if let Extent::Data(chunk) = extent {
                offsets.entry(chunk.digest).or_default().push(new_len);
            }
            new_len += extent.len();
        }
        let mut moves: Vec<(u64, i64)> = vec![(0, 0)];
        let (mut at, mut shift) = (0u64, 0i64);
        for extent in old {
            if let Extent::Data(chunk) = extent
                && let Some(offsets) = offsets.get(&chunk.digest)
            {
                // Of several places the one nearest to where the bytes before it went.
                let expected = at.saturating_add_signed(shift);
                let next = offsets.partition_point(|offset| *offset < expected);
                let near = offsets[next.saturating_sub(1)..offsets.len().min(next + 1)].iter().min_by_key(|offset| offset.abs_diff(expected));
                if let Some(offset) = near {
                    shift = offset.wrapping_sub(at).cast_signed();
                    moves.push((at, shift));
                }
            }
            at += extent.len();
        }
        Self { moves, old_len: at, new_len }
    }

    /// The buckets that have what was in `bucket`, ascending: mostly one or two; none if it lies behind the end.
    pub fn buckets(&self, bucket: u32) -> Vec<u32> {
        let start = u64::from(bucket) * BUCKET_LEN;
        let end = (start + BUCKET_LEN).min(self.old_len);
        let mut shares: Vec<(u32, u64)> = Vec::new();
        let mut at = start;
        while at < end {
            let next = self.moves.partition_point(|(from, _)| *from <= at);
            let until = self.moves.get(next).map_or(end, |(from, _)| end.min(*from));
            let shift = self.moves.get(next.wrapping_sub(1)).map_or(0, |(_, shift)| *shift);
            let moved = |at: u64| at.saturating_add_signed(shift).min(self.new_len);
            let (mut from, to) = (moved(at), moved(until));
            while from < to {
                let number = from / BUCKET_LEN;
                let stop = to.min((number + 1) * BUCKET_LEN);
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                match shares.iter_mut().find(|(known, _)| *known == number) {
                    Some((_, len)) => *len += stop - from,
                    None => shares.push((number, stop - from)),
                }
                from = stop;
            }
            at = until;
        }
        let most = shares.iter().map(|(_, len)| *len).max().unwrap_or(0);
        let least = (end.saturating_sub(start) / MIN_SHARE).min(most);
        let mut buckets: Vec<u32> = shares.into_iter().filter(|(_, len)| *len >= least).map(|(number, _)| number).collect();
        buckets.sort_unstable();
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::chunk::ChunkRef;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn data(name: usize, len: u64) -> Extent {
        Extent::Data(ChunkRef { digest: Digest::of(&name.to_le_bytes()), len: len as u32 })
    }

    fn file(chunks: &[(usize, u64)]) -> Vec<Extent> {
        chunks.iter().map(|(name, len)| data(*name, *len)).collect()
    }

    #[test]
    fn what_is_behind_inserted_bytes_moves_and_the_rest_stays() {
        let old = file(&(0..40).map(|n| (n, BUCKET_LEN)).collect::<Vec<_>>());
        let mut new = old.clone();
        new.insert(10, data(1000, 3 * BUCKET_LEN));
        new.remove(30);
        let shifts = Shifts::new(&old, &new);
        assert_eq!(shifts.buckets(9), [9]);
        assert_eq!(shifts.buckets(10), [13]);
        assert_eq!(shifts.buckets(30), [32]);
        assert_eq!(shifts.buckets(39), [41]);
        assert_eq!(shifts.buckets(40), [0u32; 0]);
        let nothing_shared = Shifts::new(&old, &file(&[(5000, 5 * BUCKET_LEN)]));
        assert_eq!((nothing_shared.buckets(3), nothing_shared.buckets(5)), (vec![3], vec![]));
        assert_eq!(Shifts::new(&[], &new).buckets(0), [0u32; 0]);
    }

    #[test]
    fn a_shift_by_part_of_a_bucket_gives_those_that_have_much_of_it() {
        let old = file(&(0..40).map(|n| (n, BUCKET_LEN)).collect::<Vec<_>>());
        for (inserted, expected) in [(100, vec![7]), (BUCKET_LEN / 2, vec![7, 8]), (BUCKET_LEN - 100, vec![8])] {
            let new: Vec<Extent> = std::iter::once(data(999, inserted)).chain(old.iter().copied()).collect();
            assert_eq!(Shifts::new(&old, &new).buckets(7), expected, "{inserted}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// A naive model that moves byte by byte: of each bucket that it says has much of the old one, we say so, too.
        #[test]
        fn as_a_search_byte_by_byte_finds(
            lens in proptest::collection::vec(1u64..3 * BUCKET_LEN, 1..30), edits in proptest::collection::vec((0usize..30, 0u8..3, 1u64..2 * BUCKET_LEN), 0..6),
        ) {
            let old: Vec<(usize, u64)> = lens.iter().copied().enumerate().collect();
            let mut new = old.clone();
            for (number, (at, kind, len)) in edits.into_iter().enumerate() {
                let at = at % new.len().max(1);
                match kind {
                    0 => new.insert(at, (1000 + number, len)),
                    1 if new.len() > 1 => drop(new.remove(at)),
                    _ if !new.is_empty() => new[at] = (2000 + number, len),
                    _ => {}
                }
            }
            let shifts = Shifts::new(&file(&old), &file(&new));
            let starts = |chunks: &[(usize, u64)]| chunks.iter().scan(0, |at, (name, len)| { *at += len; Some((*name, *at - len)) }).collect::<HashMap<_, _>>();
            let (new_starts, new_len) = (starts(&new), new.iter().map(|(_, len)| len).sum::<u64>());
            let old_len: u64 = lens.iter().sum();
            // Every 64th byte stands for its neighbours: of each old bucket, how many are in each new one.
            let mut found: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
            let (mut at, mut shift) = (0u64, 0i64);
            for (name, len) in &old {
                if let Some(start) = new_starts.get(name) {
                    shift = start.wrapping_sub(at).cast_signed();
                }
                for byte in (at.next_multiple_of(64)..at + len).step_by(64) {
                    let moved = byte.saturating_add_signed(shift);
                    let place = if moved < new_len { moved / BUCKET_LEN } else { u64::MAX };
                    *found.entry(byte / BUCKET_LEN).or_default().entry(place).or_default() += 1;
                }
                at += len;
            }
            prop_assert_eq!(at, old_len);
            for (bucket, places) in found {
                let ours = shifts.buckets(bucket as u32);
                prop_assert!(ours.is_sorted_by(|a, b| a < b));
                let samples: u64 = places.values().sum();
                for (number, count) in places {
                    if number != u64::MAX && count * 3 > samples + 6 {
                        prop_assert!(ours.contains(&(number as u32)), "bucket {}: {} has {} of {}, we say {:?}", bucket, number, count, samples, ours);
                    }
                }
            }
        }
    }
}
