//! Finds the encoder whose choices are most like those of a stream.

use super::parse::{Encoder, Job, MIN_BLOCK_LEN, Match, Parser};
use super::section::{Plain, ends};

/// Plain bytes that each encoder is tried on.
const SAMPLE_LEN: usize = 160 * 1024;
/// An encoder that is wrong for fewer than one in so many matches is the right one.
const SURE: usize = 400;

/// The best encoder for a section, judged by the start of its longest stream, and for how many of a thousand matches it is
/// wrong.
pub(super) fn detect(parser: &mut Parser, plain: Plain<'_>, segments: &[u32], block_len: u32, matches: &[Match]) -> Option<(Encoder, usize)> {
    let mut longest = (plain.start, plain.start, plain.origin);
    let (mut start, mut origin) = (plain.start, plain.origin);
    for end in ends(plain, segments) {
        if end - start > longest.1 - longest.0 {
            longest = (start, end, origin);
        }
        (start, origin) = (end, end as i64);
    }
    let (start, end, origin) = longest;
    let end = end.min(start + SAMPLE_LEN);
    let input = plain.bytes.get(..end)?;
    let first = matches.partition_point(|found| (found.start as usize) < start);
    let after = matches.partition_point(|found| (found.start as usize) < end);
    let actual = matches.get(first..after)?;
    let mut best = None;
    let mut predicted = Vec::new();
    let block_lens = if block_len >= MIN_BLOCK_LEN { vec![block_len, 0] } else { vec![0] };
    for encoder in block_lens.into_iter().flat_map(Encoder::all) {
        predicted.clear();
        parser.parse(encoder, Job { input, start, origin }, &mut predicted);
        let wrong = differences(&predicted, actual);
        if best.is_none_or(|(_, least)| wrong < least) {
            best = Some((encoder, wrong));
        }
        if wrong * SURE <= actual.len() {
            break;
        }
    }
    best.map(|(encoder, wrong)| (encoder, wrong * 1000 / actual.len().max(1)))
}

/// How many of the matches are not among the predicted ones, and the other way round.
fn differences(predicted: &[Match], actual: &[Match]) -> usize {
    let (mut wrong, mut rest) = (0, predicted);
    for found in actual {
        let passed = rest.partition_point(|one| one.start < found.start);
        wrong += passed;
        rest = &rest[passed..];
        match rest.split_first() {
            Some((first, after)) if first == found => rest = after,
            _ => wrong += 1,
        }
    }
    wrong + rest.len()
}
