//! Bodies about objects that others are compressed against.
//!
//! ```text
//! base groups   u32 count | per group: u16 count | count x 32-byte digest
//! wanted        list of digests | u32 count | per group: u32 first | u16 length | u16 base count | bases
//! ```
//! A group of *wanted* is `length` neighbours in the list of digests, from position `first` on, which the sender would
//! like compressed against its bases: objects that it has.

use super::{MAX_DIGESTS, decode_digest_list, encode_digests};
use crate::codec::{FormatError, Reader};
use crate::digest::Digest;
use crate::frame::delta::MAX_BASES;

/// Media type of a list of groups of bases.
pub const BASES_MEDIA_TYPE: &str = "application/vnd.turbo.bases";
/// Media type of a list of wanted objects with bases.
pub const WANTED_MEDIA_TYPE: &str = "application/vnd.turbo.wanted";
/// Longest body of either, in bytes.
pub const MAX_WANTED_LEN: usize = 2 * (Digest::LEN + 8) * MAX_DIGESTS;

/// Objects that are wanted together, and what the receiver has that is like them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedGroup {
    /// Position of the first one in the list of what is wanted.
    pub first: u32,
    /// How many there are, `1..`.
    pub count: u16,
    /// What they are like: at most [`MAX_BASES`].
    pub bases: Vec<Digest>,
}

/// Encodes groups of bases; at most [`MAX_BASES`] each, and [`MAX_DIGESTS`] in all.
pub fn encode_bases(groups: &[Vec<Digest>]) -> Vec<u8> {
    let mut out = (groups.len() as u32).to_le_bytes().to_vec();
    for group in groups {
        put_group(&mut out, group);
    }
    out
}

fn put_group(out: &mut Vec<u8>, group: &[Digest]) {
    out.extend_from_slice(&(group.len() as u16).to_le_bytes());
    for digest in group {
        out.extend_from_slice(digest.as_bytes());
    }
}

/// Parses groups of bases.
///
/// # Errors
/// If there are too many, of one group or in all, or the body does not end where they do.
pub fn decode_bases(bytes: &[u8]) -> Result<Vec<Vec<Digest>>, FormatError> {
    let what = "bases";
    let mut reader = Reader::new(what, bytes);
    let count = bounded(reader.u32()?.into(), what)?;
    let mut total = 0;
    let groups = (0..count).map(|_| read_group(&mut reader, &mut total)).collect::<Result<_, _>>()?;
    reader.finish()?;
    Ok(groups)
}

fn bounded(count: u64, what: &'static str) -> Result<usize, FormatError> {
    match count {
        count if count > MAX_DIGESTS as u64 => Err(FormatError::TooLarge { what, value: count, max: MAX_DIGESTS as u64 }),
        count => Ok(count as usize),
    }
}

fn read_group(reader: &mut Reader<'_>, total: &mut u64) -> Result<Vec<Digest>, FormatError> {
    let what = "bases";
    let count = usize::from(reader.u16()?);
    if count > MAX_BASES {
        return Err(FormatError::TooLarge { what, value: count as u64, max: MAX_BASES as u64 });
    }
    *total += count as u64;
    bounded(*total, what)?;
    (0..count).map(|_| reader.digest()).collect()
}

/// Encodes a list of wanted objects, at most [`MAX_DIGESTS`], and their groups, in order.
pub fn encode_wanted(wanted: &[Digest], groups: &[WantedGroup]) -> Vec<u8> {
    let mut out = encode_digests(wanted);
    out.extend_from_slice(&(groups.len() as u32).to_le_bytes());
    for group in groups {
        out.extend_from_slice(&group.first.to_le_bytes());
        out.extend_from_slice(&group.count.to_le_bytes());
        put_group(&mut out, &group.bases);
    }
    out
}

/// Parses a list of wanted objects and their groups.
///
/// # Errors
/// If there are too many of anything, groups overlap or are not in order, or the body does not end where they do.
pub fn decode_wanted(bytes: &[u8]) -> Result<(Vec<Digest>, Vec<WantedGroup>), FormatError> {
    let what = "wanted objects";
    let mut reader = Reader::new(what, bytes);
    let wanted = decode_digest_list(&mut reader)?;
    let count = bounded(reader.u32()?.into(), what)?;
    let (mut groups, mut total, mut end) = (Vec::new(), 0, 0u64);
    for _ in 0..count {
        let (first, count) = (reader.u32()?, reader.u16()?);
        let bases = read_group(&mut reader, &mut total)?;
        if u64::from(first) < end || count == 0 {
            return Err(FormatError::invalid(what, "groups are in order and not empty"));
        }
        end = u64::from(first) + u64::from(count);
        if end > wanted.len() as u64 {
            return Err(FormatError::invalid(what, "a group goes beyond the list"));
        }
        groups.push(WantedGroup { first, count, bases });
    }
    reader.finish()?;
    Ok((wanted, groups))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digests(count: usize, seed: usize) -> Vec<Digest> {
        (0..count).map(|n| Digest::of(&(n * 31 + seed).to_le_bytes())).collect()
    }

    proptest! {
        #[test]
        fn both_come_back(counts in proptest::collection::vec((1u16..20, 0usize..30, any::<bool>()), 0..20)) {
            let (mut groups, mut at) = (Vec::new(), 0);
            for (count, bases, gap) in counts {
                groups.push(WantedGroup { first: at + u32::from(gap), count, bases: digests(bases, at as usize) });
                at += u32::from(gap) + u32::from(count);
            }
            let wanted = digests(at as usize, 5);
            prop_assert_eq!(decode_wanted(&encode_wanted(&wanted, &groups)), Ok((wanted, groups.clone())));
            let bases: Vec<_> = groups.into_iter().map(|group| group.bases).collect();
            prop_assert_eq!(decode_bases(&encode_bases(&bases)), Ok(bases));
        }

        #[test]
        fn noise_is_refused_or_means_itself(bytes in proptest::collection::vec(0u8..4, 0..300)) {
            if let Ok((wanted, groups)) = decode_wanted(&bytes) {
                prop_assert_eq!(encode_wanted(&wanted, &groups), &bytes[..]);
            }
            if let Ok(groups) = decode_bases(&bytes) {
                prop_assert_eq!(encode_bases(&groups), bytes);
            }
        }
    }

    #[test]
    fn hostile_lists_are_refused() {
        let wanted = digests(10, 0);
        let group = |first, count, bases| WantedGroup { first, count, bases: digests(bases, 9) };
        for groups in [
            vec![group(8, 3, 1)],
            vec![group(3, 2, 1), group(4, 1, 1)],
            vec![group(5, 1, 1), group(0, 1, 1)],
            vec![group(0, 0, 1)],
            vec![group(0, 1, MAX_BASES + 1)],
        ] {
            assert!(decode_wanted(&encode_wanted(&wanted, &groups)).is_err(), "{groups:?}");
        }
        assert!(decode_bases(&u32::MAX.to_le_bytes()).is_err());
        assert!(decode_bases(&encode_bases(&[digests(MAX_BASES + 1, 0)])).is_err());
        let many = vec![digests(MAX_BASES, 0); MAX_DIGESTS / MAX_BASES + 1];
        assert!(decode_bases(&encode_bases(&many)).is_err());
    }

    #[test]
    fn golden_bodies() {
        let [one, two] = [Digest([1; 32]), Digest([2; 32])];
        assert_eq!(encode_bases(&[vec![one]]), [&[1, 0, 0, 0, 1, 0][..], &[1; 32]].concat());
        let groups = [WantedGroup { first: 0, count: 1, bases: vec![two] }];
        assert_eq!(encode_wanted(&[one], &groups), [&[1, 0, 0, 0][..], &[1; 32], &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0], &[2; 32]].concat());
    }
}
