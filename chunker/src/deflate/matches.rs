//! The matches of a stream, relative to those that are predicted.

use super::RebuildError;
use super::parse::Match;
use super::range_coder::{Bit, Coder, Numbers, Symbols};
use super::tables::{DISTANCE_CODES, MAX_MATCH, MIN_MATCH, WINDOW_LEN, distance_code};

/// A stream, or its part in a section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    /// Plain bytes up to the segment's end.
    pub(super) input: &'a [u8],
    /// Where the segment begins.
    pub(super) start: usize,
    /// Where the stream begins, possibly before the input.
    pub(super) origin: i64,
    pub(super) predicted: &'a [Match],
}

/// Codes matches.
#[derive(Debug)]
pub(super) struct MatchModel {
    /// Whether the next match is not the predicted one, by whether the last four were.
    wrong: [Bit; 16],
    history: usize,
    /// Whether it begins elsewhere.
    elsewhere: [Bit; 16],
    /// Literals before it, then.
    literals: Numbers,
    /// Whether the same distance is used; the one used last; 0 for none of both.
    same_distance: Bit,
    last_distance: Bit,
    distance_codes: Symbols<5>,
    /// Whether it is as long as it could be.
    shorter: Bit,
    lens: Symbols<8>,
    distance: u16,
}

impl Default for MatchModel {
    fn default() -> Self {
        Self {
            wrong: Default::default(),
            history: 0,
            elsewhere: Default::default(),
            literals: Numbers::default(),
            same_distance: Bit::default(),
            last_distance: Bit::default(),
            distance_codes: Symbols::default(),
            shorter: Bit::default(),
            lens: Symbols::default(),
            distance: 1,
        }
    }
}

impl MatchModel {
    /// Codes the matches of a segment: those of `known` from the end of `out` on, up to the segment's end. Appends them to `out`.
    pub(super) fn code<C: Coder>(&mut self, coder: &mut C, segment: Segment<'_>, known: &[Match], out: &mut Vec<Match>) -> Result<(), RebuildError> {
        let end = segment.input.len();
        let mut at = segment.start;
        let mut predicted = segment.predicted.iter().peekable();
        // A match of no length says that none follows.
        let none = Match { start: end as u32, len: 0, distance: 0 };
        while at < end {
            while predicted.next_if(|one| (one.start as usize) < at).is_some() {}
            let expected = predicted.peek().map_or(none, |one| **one);
            let actual = known.get(out.len()).copied().filter(|one| (one.start as usize) < end).unwrap_or(none);
            let wrong = coder.bit(&mut self.wrong[self.history], actual != expected);
            let found = if wrong { self.correct(coder, &segment, at, expected, actual)? } else { expected };
            self.history = (self.history << 1 | usize::from(wrong)) & 15;
            if found.len == 0 {
                return Ok(());
            }
            self.distance = found.distance;
            at = found.start as usize + usize::from(found.len);
            out.push(found);
        }
        Ok(())
    }

    #[cold]
    fn correct<C: Coder>(&mut self, coder: &mut C, segment: &Segment<'_>, at: usize, expected: Match, actual: Match) -> Result<Match, RebuildError> {
        let end = segment.input.len();
        let elsewhere = coder.bit(&mut self.elsewhere[self.history], actual.start != expected.start);
        let start = match elsewhere {
            false => expected.start as usize,
            true => at.saturating_add(self.literals.code(coder, actual.start.saturating_sub(at as u32)) as usize),
        };
        if start == end {
            return Ok(Match { start: end as u32, len: 0, distance: 0 });
        }
        if start > end - MIN_MATCH.min(end) {
            return Err(RebuildError("a match begins too late"));
        }
        let may_be_same = !elsewhere && expected.distance > 0;
        let distance = if may_be_same && !coder.bit(&mut self.same_distance, actual.distance != expected.distance) {
            expected.distance
        } else if !coder.bit(&mut self.last_distance, actual.distance != self.distance) {
            self.distance
        } else {
            let code = self.distance_codes.code(coder, distance_code(actual.distance) as u32) as usize;
            let (base, extra) = *DISTANCE_CODES.get(code).ok_or(RebuildError("a match has a distance that is none"))?;
            let more = coder.direct(u32::from(actual.distance.saturating_sub(base)), extra.into());
            base + more as u16
        };
        let reach = (start as i64 - segment.origin).min(start as i64).min(WINDOW_LEN as i64);
        if distance == 0 || i64::from(distance) > reach {
            return Err(RebuildError("a match begins before its stream"));
        }
        let from = start - usize::from(distance);
        let longest = MAX_MATCH.min(end - start);
        let longest = segment.input[from..].iter().zip(&segment.input[start..start + longest]).take_while(|(one, other)| one == other).count();
        let len = match coder.bit(&mut self.shorter, usize::from(actual.len) != longest) {
            false => longest,
            true => MIN_MATCH + self.lens.code(coder, u32::from(actual.len.saturating_sub(MIN_MATCH as u16))) as usize,
        };
        // What is read may be anything; what is written was decoded from the stream.
        if len < MIN_MATCH || len > longest {
            return Err(RebuildError("a match is not one"));
        }
        Ok(Match { start: start as u32, len: len as u16, distance })
    }
}
