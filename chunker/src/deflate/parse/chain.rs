//! Encoders with chains of places that have the same hash: zlib (and GNU gzip, from which its algorithm comes) and Go's
//! `compress/flate` from level 2 on, which follows zlib.
//!
//! Sources: zlib 1.3 `deflate.c` (`deflate_fast`, `deflate_slow`, `longest_match`; Jean-loup Gailly and Mark Adler, zlib licence)
//! and Go 1.19 `compress/flate/deflate.go` (The Go Authors, BSD-3). Written from what they do.

use super::match_len::{load16, load32, match_len};
use super::{Encoder, Family, Job, Match};
use crate::deflate::tables::{MAX_MATCH, WINDOW_LEN};

/// zlib's farthest match: it keeps a longest match and a little more ahead in its window.
const ZLIB_MAX_DISTANCE: i64 = (WINDOW_LEN - MAX_MATCH - 4) as i64;
/// Matches of the shortest length are not taken from farther away.
const TOO_FAR: usize = 4096;

/// How hard a level tries.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// From this length of the previous match on, only a quarter of the chain is searched.
    good: usize,
    /// From this length of the previous match on, no better one is looked for. Without laziness: up to this length, all
    /// places in a match are remembered.
    lazy: usize,
    /// A match of this length is taken at once.
    nice: usize,
    /// Places that are looked at.
    chain: u32,
    is_lazy: bool,
}

fn effort(encoder: Encoder) -> Effort {
    let (good, lazy, nice, chain, is_lazy) = match (encoder.family, encoder.level) {
        (Family::Go, 2) => (4, 5, 16, 8, false),
        (Family::Go, 3) => (4, 6, 32, 32, false),
        (_, 1) => (4, 4, 8, 4, false),
        (_, 2) => (4, 5, 16, 8, false),
        (_, 3) => (4, 6, 32, 32, false),
        (_, 4) => (4, 4, 16, 16, true),
        (_, 5) => (8, 16, 32, 32, true),
        (_, 6) => (8, 16, 128, 128, true),
        (_, 7) => (8, 32, 128, 256, true),
        (_, 8) => (32, 128, 258, 1024, true),
        _ => (32, 258, 258, 4096, true),
    };
    Effort { good, lazy, nice, chain, is_lazy }
}

/// Most bits of a hash.
const MAX_HASH_BITS: u32 = 17;

/// See the module.
#[derive(Debug)]
pub(super) struct Chain {
    /// By hash, the last place; -1 for none.
    heads: Box<[i32; 1 << MAX_HASH_BITS]>,
    /// By place modulo the window, the place before it with the same hash.
    previous: Box<[i32; WINDOW_LEN]>,
}

impl Default for Chain {
    fn default() -> Self {
        // On the heap from the start.
        let boxed = |len| vec![-1; len].into_boxed_slice();
        match (boxed(1 << MAX_HASH_BITS).try_into(), boxed(WINDOW_LEN).try_into()) {
            (Ok(heads), Ok(previous)) => Self { heads, previous },
            _ => unreachable!("the lengths are those of the types"),
        }
    }
}

/// What differs between the two, known at compile time.
trait Flavor {
    const HASH_BITS: u32;
    /// Bytes that are hashed.
    const HASHED: usize;
    /// A match is at least this long.
    const MIN: usize;
    const IS_GO: bool;
    fn hash(input: &[u8], at: usize) -> usize;
}

#[derive(Debug)]
struct Go;
#[derive(Debug)]
struct Zlib;

impl Flavor for Go {
    const HASH_BITS: u32 = 17;
    const HASHED: usize = 4;
    const MIN: usize = 4;
    const IS_GO: bool = true;

    #[inline]
    fn hash(input: &[u8], at: usize) -> usize {
        (load32(input, at).swap_bytes().wrapping_mul(0x1e35_a7bd) >> (32 - Self::HASH_BITS)) as usize
    }
}

impl Flavor for Zlib {
    const HASH_BITS: u32 = 15;
    const HASHED: usize = 3;
    const MIN: usize = 3;
    const IS_GO: bool = false;

    #[inline]
    fn hash(input: &[u8], at: usize) -> usize {
        let Some([a, b, c]) = input.get(at..at + 3).and_then(|bytes| bytes.first_chunk()) else { return 0 };
        (usize::from(*a) << 10 ^ usize::from(*b) << 5 ^ usize::from(*c)) & ((1 << Self::HASH_BITS) - 1)
    }
}

impl Chain {
    /// See [`super::Parser::parse`].
    pub(super) fn parse(&mut self, encoder: Encoder, job: Job<'_>, out: &mut Vec<Match>) {
        match encoder.family {
            Family::Go => self.run::<Go>(encoder, job, out),
            _ => self.run::<Zlib>(encoder, job, out),
        }
    }

    fn run<F: Flavor>(&mut self, encoder: Encoder, job: Job<'_>, out: &mut Vec<Match>) {
        self.heads[..1 << F::HASH_BITS].fill(-1);
        let effort = effort(encoder);
        let known = job.start.saturating_sub(WINDOW_LEN).max(job.origin.max(0) as usize);
        // The state of an encoder that is not lazy depends on its matches: it is parsed from a little before.
        let warm_from = if effort.is_lazy { job.start } else { job.start.saturating_sub(WINDOW_LEN / 2).max(known) };
        let mut inserted = known;
        let first = out.len();
        let warm = Job { start: warm_from, ..job };
        for (start, end, _) in warm.blocks(encoder.block_len) {
            let Some(input) = job.input.get(..end) else { return };
            // What the block before could not hash, since it ended there.
            for at in inserted..start.min((end + 1).saturating_sub(F::HASHED)) {
                self.insert::<F>(input, at);
            }
            let mut search = Search::<F> { tables: self, input, effort, origin: job.origin, flavor: std::marker::PhantomData };
            match effort.is_lazy {
                true => search.lazy(start, out),
                false => search.greedy(start, out),
            }
            inserted = (end + 1).saturating_sub(F::HASHED).max(start);
        }
        if warm_from < job.start {
            let late = out[first..].partition_point(|found| (found.start as usize) < job.start);
            out.drain(first..first + late);
        }
    }

    /// Remembers a place; returns the one before it with the same hash.
    #[inline]
    fn insert<F: Flavor>(&mut self, input: &[u8], at: usize) -> i32 {
        let head = &mut self.heads[F::hash(input, at) & ((1 << F::HASH_BITS) - 1)];
        let before = *head;
        self.previous[at & (WINDOW_LEN - 1)] = before;
        *head = at as i32;
        before
    }
}

struct Search<'a, F> {
    tables: &'a mut Chain,
    input: &'a [u8],
    effort: Effort,
    origin: i64,
    flavor: std::marker::PhantomData<F>,
}

impl<F: Flavor> Search<'_, F> {
    /// Remembers a place if enough bytes follow it.
    #[inline]
    fn insert(&mut self, at: usize) -> i32 {
        if at + F::HASHED <= self.input.len() { self.tables.insert::<F>(self.input, at) } else { -1 }
    }

    /// A match at `at` that is longer than `best`: length and distance.
    fn longest(&self, at: usize, head: i32, mut best: usize) -> Option<(usize, usize)> {
        let input = self.input;
        let max = MAX_MATCH.min(input.len() - at);
        let nice = self.effort.nice.min(max);
        let mut tries = self.effort.chain;
        if !F::IS_GO && best >= self.effort.good {
            tries >>= 2;
        }
        let mut found = None;
        let lowest = if F::IS_GO { at as i64 - WINDOW_LEN as i64 } else { (at as i64 - ZLIB_MAX_DISTANCE).max(self.origin) };
        let mut candidate = head as usize;
        // The end of a match that is longer by one: compared before all else.
        let tail = |place: usize, best: usize| if F::IS_GO { load32(input, place + best - 3) } else { load16(input, place + best - 1).into() };
        let mut wanted = tail(at, best);
        loop {
            if tail(candidate, best) == wanted {
                let len = match_len(input, candidate, at, max);
                if len > best && (!F::IS_GO || len > F::MIN || at - candidate <= TOO_FAR) {
                    best = len;
                    found = Some((len, at - candidate));
                    if len >= nice {
                        break;
                    }
                    wanted = tail(at, best);
                }
            }
            tries -= 1;
            if tries == 0 || (F::IS_GO && candidate as i64 == lowest) {
                break;
            }
            let before = self.tables.previous[candidate & (WINDOW_LEN - 1)];
            if before < 0 || (if F::IS_GO { i64::from(before) < lowest } else { i64::from(before) <= lowest }) {
                break;
            }
            // An entry of an earlier turn of the window: nothing that follows is a place before this one.
            if before as usize >= candidate {
                break;
            }
            candidate = before as usize;
        }
        found
    }

    /// Whether the newest place with the same hash can be matched at all.
    #[inline]
    fn reaches(&self, at: usize, head: i32) -> bool {
        let distance = at as i64 - i64::from(head);
        head >= 0 && (if F::IS_GO { distance <= WINDOW_LEN as i64 } else { distance <= ZLIB_MAX_DISTANCE && i64::from(head) != self.origin })
    }

    /// Takes a match only if there is no longer one a byte later.
    fn lazy(&mut self, start: usize, out: &mut Vec<Match>) {
        let end = self.input.len();
        let (mut len, mut distance) = (F::MIN - 1, 0);
        let mut at = start;
        while at < end {
            let head = self.insert(at);
            let (before_len, before_distance) = (len, distance);
            (len, distance) = (F::MIN - 1, 0);
            if before_len < self.effort.lazy && end - at > before_len && self.reaches(at, head) {
                let least = if F::IS_GO { F::MIN - 1 } else { before_len };
                match self.longest(at, head, least) {
                    // Such a match costs more than its literals.
                    Some((found, far)) if !F::IS_GO && found == F::MIN && far > TOO_FAR => {}
                    Some(found) => (len, distance) = found,
                    None => {}
                }
            }
            if before_len >= F::MIN && len <= before_len {
                out.push(Match { start: at as u32 - 1, len: before_len as u16, distance: before_distance as u16 });
                let next = at - 1 + before_len;
                for inside in at + 1..next {
                    self.insert(inside);
                }
                at = next;
                (len, distance) = (F::MIN - 1, 0);
            } else {
                at += 1;
            }
        }
        if len >= F::MIN {
            out.push(Match { start: at as u32 - 1, len: len as u16, distance: distance as u16 });
        }
    }

    /// Takes each match that it finds.
    fn greedy(&mut self, start: usize, out: &mut Vec<Match>) {
        let end = self.input.len();
        let mut at = start;
        while at < end {
            let head = self.insert(at);
            let found = if end - at >= F::MIN && self.reaches(at, head) { self.longest(at, head, F::MIN - 1) } else { None };
            let Some((len, distance)) = found else {
                at += 1;
                continue;
            };
            out.push(Match { start: at as u32, len: len as u16, distance: distance as u16 });
            if len <= self.effort.lazy {
                for inside in at + 1..at + len {
                    self.insert(inside);
                }
            }
            at += len;
        }
    }
}
