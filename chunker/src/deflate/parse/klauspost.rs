//! `github.com/klauspost/compress/flate`, levels 5 (the default) and 6, as pgzip uses it, too: what podman, buildah, skopeo and
//! umoci write.
//!
//! Source: version 1.15.12, `fast_encoder.go`, `level5.go`, `level6.go`, `deflate.go` (The Go Authors, the Snappy-Go Authors, Klaus
//! Post; BSD-3). Written from what they do. Input is taken in blocks of [`BLOCK_LEN`]; a match never crosses into the next.

use super::match_len::{load32, load64, match_len};
use super::{Encoder, Job, Match};

/// Bytes that are encoded at a time.
const BLOCK_LEN: usize = 65_535;
/// What the encoder keeps of the past, at most.
const KEPT_LEN: usize = 5 * BLOCK_LEN;
/// Matches are nearer than this.
const MAX_OFFSET: usize = 32 * 1024;
/// Bytes at a block's end in which no match begins.
const MARGIN: usize = 11;
/// Blocks that are not full and shorter than this are not searched.
const MIN_LEN: usize = 128;
/// Of each block that is compressed on its own, how much the next one knows.
const TAIL_LEN: usize = 16 * 1024;
const TABLE_BITS: u32 = 15;
const MAX_LEN: usize = 258;
/// No place: farther away than any match.
const NEVER: i64 = -(1 << 40);

/// See the module. Places are indices into the input.
#[derive(Debug, Default)]
pub(super) struct Klauspost {
    short: Vec<i64>,
    /// The last place and the one before.
    long: Vec<[i64; 2]>,
    /// First byte that the encoder still has.
    base: usize,
}

fn short_hash(value: u64) -> usize {
    ((value as u32).wrapping_mul(2_654_435_761) >> (32 - TABLE_BITS)) as usize
}

fn long_hash(value: u64) -> usize {
    ((value << 8).wrapping_mul(58_295_818_150_454_627) >> (64 - TABLE_BITS)) as usize
}

/// A match that was found: where, from where, how long; a length of 0 is to be measured.
struct Found {
    at: usize,
    from: usize,
    len: usize,
}

impl Klauspost {
    /// See [`super::Parser::parse`].
    pub(super) fn parse(&mut self, encoder: Encoder, job: Job<'_>, out: &mut Vec<Match>) {
        if encoder.block_len > 0 {
            // From the start of the block that the first byte is in.
            let into = (job.start as i64 - job.origin) % i64::from(encoder.block_len);
            let from = (job.start as i64 - into).max(job.origin.max(0)) as usize;
            let first = out.len();
            for (start, end, _) in (Job { start: from, ..job }).blocks(encoder.block_len) {
                let own_dictionary = start.saturating_sub(TAIL_LEN).max(job.origin.max(0) as usize);
                self.reset(own_dictionary);
                if own_dictionary < start {
                    let mut ignored = Vec::new();
                    self.block(encoder.level, &job.input[..start], own_dictionary, &mut ignored);
                }
                self.stream(encoder.level, &job.input[..end], start, out);
            }
            drop_before(out, first, job.start);
            return;
        }
        // From two blocks before, at a border of blocks.
        let into = (job.start as i64 - job.origin) % BLOCK_LEN as i64;
        let border = job.start as i64 - into;
        let from = (border - 2 * BLOCK_LEN as i64).max(job.origin);
        let from = if from < 0 { from.rem_euclid(BLOCK_LEN as i64) } else { from } as usize;
        self.reset(from);
        // The encoder moves its window down after each fourth block, after five at first.
        let blocks_before = (from as i64 - job.origin) as usize / BLOCK_LEN;
        self.base = from.saturating_sub(window_before(blocks_before));
        let first = out.len();
        self.stream(encoder.level, job.input, from, out);
        drop_before(out, first, job.start);
    }

    fn reset(&mut self, base: usize) {
        self.short.clear();
        self.short.resize(1 << TABLE_BITS, NEVER);
        self.long.clear();
        self.long.resize(1 << TABLE_BITS, [NEVER; 2]);
        self.base = base;
    }

    fn stream(&mut self, level: u8, input: &[u8], from: usize, out: &mut Vec<Match>) {
        let mut start = from;
        while start < input.len() {
            let end = input.len().min(start + BLOCK_LEN);
            if end - start == BLOCK_LEN || end - start >= MIN_LEN {
                let first = out.len();
                let tokens = self.block(level, &input[..end], start, out);
                let len = end - start;
                // What hardly shrinks is written as literals.
                if tokens > len - (len >> 4) {
                    out.truncate(first);
                }
            }
            start = end;
        }
    }

    /// Appends the matches of a block; returns how many tokens it has.
    fn block(&mut self, level: u8, input: &[u8], start: usize, out: &mut Vec<Match>) -> usize {
        if input.len() - self.base > KEPT_LEN {
            self.base = start - MAX_OFFSET.min(start);
        }
        if input.len() - start < MARGIN + 2 {
            return 0;
        }
        let mut block = Block { tables: self, input, limit: input.len() - MARGIN, emitted: start, tokens: 0, out };
        match level {
            5 => block.level5(start),
            _ => block.level6(start),
        }
        match block.tokens {
            0 => 0,
            tokens => tokens + input.len() - block.emitted,
        }
    }

    fn put_short(&mut self, value: u64, at: usize) {
        self.short[short_hash(value)] = at as i64;
    }

    fn put_long(&mut self, value: u64, at: usize) {
        let entry = &mut self.long[long_hash(value)];
        *entry = [at as i64, entry[0]];
    }

    fn put(&mut self, value: u64, at: usize) {
        self.put_short(value, at);
        self.put_long(value, at);
    }
}

/// Bytes of the past that the encoder has before its block of this number.
fn window_before(blocks: usize) -> usize {
    let mut kept = 0;
    for _ in 0..blocks {
        if kept + BLOCK_LEN > KEPT_LEN {
            kept = MAX_OFFSET;
        }
        kept += BLOCK_LEN;
    }
    kept
}

fn drop_before(out: &mut Vec<Match>, first: usize, start: usize) {
    let early = out[first..].partition_point(|found| (found.start as usize) < start);
    out.drain(first..first + early);
}

struct Block<'a> {
    tables: &'a mut Klauspost,
    input: &'a [u8],
    /// From here on no match is looked for.
    limit: usize,
    /// First byte that is in no token yet.
    emitted: usize,
    tokens: usize,
    out: &'a mut Vec<Match>,
}

impl Block<'_> {
    /// Whether the four bytes at `at` are those at the candidate.
    fn is_match(&self, at: usize, candidate: i64, value: u64) -> bool {
        at as i64 - candidate < MAX_OFFSET as i64 && load32(self.input, candidate as usize) == value as u32
    }

    /// How far a match of four bytes goes, up to the longest of one token.
    fn measured(&self, at: usize, from: usize) -> usize {
        self.same(at + 4, from + 4, MAX_LEN - 4) + 4
    }

    fn same(&self, at: usize, from: usize, max: usize) -> usize {
        let max = max.min(self.input.len().saturating_sub(at));
        match_len(self.input, from, at, max)
    }

    /// Where the next match is; `None` if there is none in this block. `skip` is how soon the search gets faster. Also returns
    /// where it was looked for last.
    fn find(&mut self, mut at: usize, skip: u32, repeat: Option<usize>) -> Option<(Found, usize)> {
        let mut value = load64(self.input, at);
        let mut next = at;
        loop {
            at = next;
            next = at + 1 + ((at - self.emitted) >> skip);
            if next > self.limit {
                return None;
            }
            let short = self.tables.short[short_hash(value)];
            let long = self.tables.long[long_hash(value)];
            let next_value = load64(self.input, next);
            self.tables.put(value, at);
            if self.is_match(at, long[0], value) {
                self.tables.put(next_value, next);
                if self.is_match(at, long[1], value) {
                    let (one, other) = (self.measured(at, long[0] as usize), self.measured(at, long[1] as usize));
                    let (from, len) = if other > one { (long[1], other) } else { (long[0], one) };
                    return Some((Found { at, from: from as usize, len }, next));
                }
                return Some((Found { at, from: long[0] as usize, len: 0 }, next));
            }
            // The one before is asked for only if the last one is in reach.
            if at as i64 - long[0] < MAX_OFFSET as i64 && self.is_match(at, long[1], value) {
                self.tables.put(next_value, next);
                return Some((Found { at, from: long[1] as usize, len: 0 }, next));
            }
            if self.is_match(at, short, value) {
                let found = Found { at, from: short as usize, len: self.measured(at, short as usize) };
                let long = self.tables.long[long_hash(next_value)];
                self.tables.put(next_value, next);
                return Some((self.better_next(found, next, next_value, value, long, repeat), next));
            }
            value = next_value;
        }
    }

    /// After a short match was found: whether one that starts a little later is longer.
    fn better_next(&self, mut found: Found, next: usize, next_value: u64, value: u64, long: [i64; 2], repeat: Option<usize>) -> Found {
        let at = found.at;
        if let Some(repeat) = repeat {
            let from = at + 1 - repeat.min(at + 1);
            if load32(self.input, from) == (value >> 8) as u32 {
                let len = self.measured(at + 1, from);
                if len > found.len {
                    return Found { at: at + 1, from, len };
                }
            }
        }
        if next as i64 - long[0] < MAX_OFFSET as i64 {
            if self.is_match(next, long[0], next_value) {
                let len = self.measured(next, long[0] as usize);
                if len > found.len {
                    found = Found { at: next, from: long[0] as usize, len };
                    if repeat.is_none() {
                        return found;
                    }
                }
            }
            if self.is_match(next, long[1], next_value) {
                let len = self.measured(next, long[1] as usize);
                if len > found.len {
                    found = Found { at: next, from: long[1] as usize, len };
                }
            }
        }
        found
    }

    fn measure(&self, found: &mut Found) {
        if found.len == 0 {
            found.len = self.same(found.at + 4, found.from + 4, usize::MAX) + 4;
        } else if found.len == MAX_LEN {
            found.len += self.same(found.at + found.len, found.from + found.len, usize::MAX);
        }
    }

    /// Takes a match that reaches the same end from another place, if it is longer. `first_at` is where the match was found
    /// first. Says whether the place is not too far.
    fn try_at_end(&self, found: &mut Found, place: i64, first_at: usize) -> bool {
        let at = first_at + 2;
        let from = place - found.len as i64 + 2;
        let offset = at as i64 - from;
        if from >= self.tables.base as i64 && offset > 0 && offset < MAX_OFFSET as i64 {
            let len = self.same(at, from as usize, usize::MAX);
            if len > found.len {
                *found = Found { at, from: from as usize, len };
            }
        }
        offset < MAX_OFFSET as i64
    }

    /// Extends the match to the front, and emits it with the literals before it.
    fn emit(&mut self, found: &mut Found) {
        while found.from > self.tables.base && found.at > self.emitted && self.input[found.from - 1] == self.input[found.at - 1] {
            found.from -= 1;
            found.at -= 1;
            found.len += 1;
        }
        self.tokens += found.at - self.emitted;
        let distance = (found.at - found.from) as u16;
        let (mut start, mut left) = (found.at, found.len);
        while left > 0 {
            // Three must be left for the next.
            let len = match left {
                0..=258 => left,
                259..=261 => 255,
                _ => 258,
            };
            self.out.push(Match { start: start as u32, len: len as u16, distance });
            self.tokens += 1;
            start += len;
            left -= len;
        }
        self.emitted = start;
    }

    fn level5(&mut self, mut at: usize) {
        while let Some((mut found, next)) = self.find(at, 6, None) {
            self.measure(&mut found);
            let end = found.at + found.len;
            if found.len < 30 && end < self.limit {
                let place = self.tables.long[long_hash(load64(self.input, end))][0];
                let at = found.at;
                self.try_at_end(&mut found, place, at);
            }
            self.emit(&mut found);
            at = self.emitted;
            if next >= at {
                at = next + 1;
            }
            if at >= self.limit {
                return;
            }
            let mut inside = at - found.len + 1;
            if inside + 1 < at {
                let value = load64(self.input, inside);
                self.tables.put(value, inside);
                self.tables.put_long(value >> 8, inside + 1);
                self.tables.put_short(value >> 16, inside + 2);
                inside += 4;
                while inside + 1 < at {
                    let value = load64(self.input, inside);
                    self.tables.put_long(value, inside);
                    self.tables.put_short(value >> 8, inside + 1);
                    inside += 3;
                }
            }
            self.tables.put(load64(self.input, at - 1), at - 1);
        }
    }

    fn level6(&mut self, mut at: usize) {
        let mut repeat = 1;
        while let Some((mut found, next)) = self.find(at, 7, Some(repeat)) {
            self.measure(&mut found);
            let end = found.at + found.len;
            if end < self.limit {
                let [last, before] = self.tables.long[long_hash(load64(self.input, end))];
                let at = found.at;
                if self.try_at_end(&mut found, last, at) {
                    self.try_at_end(&mut found, before, at);
                }
            }
            self.emit(&mut found);
            repeat = found.at.saturating_sub(found.from).max(1);
            at = self.emitted;
            if next >= at {
                at = next + 1;
            }
            if at >= self.limit {
                for inside in (next + 1..self.input.len().saturating_sub(8)).step_by(2) {
                    self.tables.put(load64(self.input, inside), inside);
                }
                return;
            }
            for inside in (next + 1..at.saturating_sub(1)).step_by(2) {
                let value = load64(self.input, inside);
                self.tables.put(value, inside);
                self.tables.put_long(value >> 8, inside + 1);
            }
        }
    }
}
