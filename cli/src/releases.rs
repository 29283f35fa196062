//! Releases as versions: their order, and ranges such as `>=8 <12`.
//!
//! A release is cut into numbers and words at `.`, `-`, `_` and where digits meet letters. Numbers compare as numbers, so
//! that 8.10 follows 8.9. A word behind a dash (`2.0-rc1`) makes a pre-release, which comes before the release itself.

use std::cmp::Ordering;

use anyhow::{Result, bail};

/// Most comparisons of a range.
const MAX_COMPARISONS: usize = 16;

/// What makes a word that of a pre-release.
const BEFORE: [&str; 9] = ["a", "alpha", "b", "beta", "dev", "pre", "preview", "rc", "snapshot"];

/// A part of a release. `8rc1` < `8` < `8u202` < `8.1`: a word comes before a number, and what is missing lies between
/// the words of pre-releases and others.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part<'a> {
    /// Without leading zeros.
    Number(&'a str),
    Word(&'a str),
}

impl Part<'_> {
    fn is_prerelease(&self) -> bool {
        matches!(self, Part::Word(word) if BEFORE.iter().any(|before| word.eq_ignore_ascii_case(before)))
    }

    /// How a part compares with none at all. `8` and `8.0` are one release.
    fn order(&self) -> Ordering {
        match self {
            Part::Number(digits) => digits.len().cmp(&0),
            Part::Word(_) if self.is_prerelease() => Ordering::Less,
            Part::Word(_) => Ordering::Greater,
        }
    }
}

fn parts(release: &str) -> Vec<Part<'_>> {
    let release = release.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(release);
    let mut parts = Vec::new();
    for piece in release.split(['.', '-', '_']).filter(|piece| !piece.is_empty()) {
        let mut rest = piece;
        while let Some(first) = rest.chars().next() {
            let digits = first.is_ascii_digit();
            let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            parts.push(if digits { Part::Number(part.trim_start_matches('0')) } else { Part::Word(part) });
            rest = after;
        }
    }
    parts
}

/// The order of releases, oldest first.
pub fn compare(one: &str, other: &str) -> Ordering {
    let (one, other) = (parts(one), parts(other));
    for at in 0..one.len().max(other.len()) {
        let order = match (one.get(at), other.get(at)) {
            (Some(Part::Number(a)), Some(Part::Number(b))) => a.len().cmp(&b.len()).then(a.cmp(b)),
            (Some(one @ Part::Word(a)), Some(other @ Part::Word(b))) => other.is_prerelease().cmp(&one.is_prerelease()).then(a.cmp(b)),
            (Some(Part::Number(_)), Some(Part::Word(_))) => Ordering::Greater,
            (Some(Part::Word(_)), Some(Part::Number(_))) => Ordering::Less,
            (Some(part), None) => part.order(),
            (None, Some(part)) => part.order().reverse(),
            (None, None) => Ordering::Equal,
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Whether a release is one that comes before the real one, such as `2.0-rc1`.
pub fn is_prerelease(release: &str) -> bool {
    parts(release).iter().any(Part::is_prerelease)
}

/// Whether a release can be compared: it has a number.
pub fn is_version(release: &str) -> bool {
    matches!(parts(release).first(), Some(Part::Number(_)))
}

/// Whether `release` is `wanted`, or one of its releases: `8` has `8`, `8.1` and `8.1.2`, and not `80`.
pub fn is_within(release: &str, wanted: &str) -> bool {
    release.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    AtLeast,
    Greater,
    NotEqual,
    Equal,
    /// No sign: the release itself, or one within it.
    Within,
}

/// Comparisons that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range(Vec<(Comparison, String)>);

impl Range {
    /// Parses comparisons separated by spaces or commas: `>=8 <12`, `=1.2.3`, `!=9`, `8`. A space behind a sign is allowed.
    ///
    /// # Errors
    /// Says what is expected, if this is not it.
    pub fn parse(text: &str) -> Result<Self> {
        const SIGNS: [(&str, Comparison); 7] = [
            (">=", Comparison::AtLeast),
            ("<=", Comparison::AtMost),
            ("!=", Comparison::NotEqual),
            ("==", Comparison::Equal),
            (">", Comparison::Greater),
            ("<", Comparison::Less),
            ("=", Comparison::Equal),
        ];
        let mut comparisons = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let found = SIGNS.iter().find_map(|(sign, comparison)| Some((*comparison, rest.strip_prefix(sign)?.trim_start())));
            let (comparison, after) = found.unwrap_or((Comparison::Within, rest));
            let end = after.find(|c: char| c.is_whitespace() || matches!(c, ',' | '<' | '>' | '=' | '!')).unwrap_or(after.len());
            let (version, after) = after.split_at(end);
            if !is_version(version) || !version.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+')) {
                bail!("`{text}` is no range of releases: expected comparisons such as `>=8 <12`");
            }
            comparisons.push((comparison, version.to_owned()));
            rest = after.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        }
        if comparisons.is_empty() || comparisons.len() > MAX_COMPARISONS {
            bail!("`{text}` is no range of releases: expected 1 to {MAX_COMPARISONS} comparisons such as `>=8 <12`");
        }
        Ok(Self(comparisons))
    }

    /// Whether a release lies in the range. A pre-release does only where a comparison names one, so that `<12` is not
    /// met by `12-rc1`.
    pub fn admits(&self, release: &str) -> bool {
        if !is_version(release) || (is_prerelease(release) && !self.0.iter().any(|(_, bound)| is_prerelease(bound))) {
            return false;
        }
        self.0.iter().all(|(comparison, bound)| {
            let order = compare(release, bound);
            match comparison {
                Comparison::Less => order == Ordering::Less,
                Comparison::AtMost => order != Ordering::Greater,
                Comparison::AtLeast => order != Ordering::Less,
                Comparison::Greater => order == Ordering::Greater,
                Comparison::NotEqual => order != Ordering::Equal,
                Comparison::Equal => order == Ordering::Equal,
                Comparison::Within => order == Ordering::Equal || is_within(release, bound),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_as_people_count() {
        let ordered = ["0.9", "1.0-rc1", "1.0-rc2", "1.0", "1.0.1", "1.2", "1.9", "1.10", "2", "8-rc1", "8", "8u202", "8u252", "8.1", "11.0.2", "2024.1"];
        for (at, one) in ordered.iter().enumerate() {
            for (other_at, other) in ordered.iter().enumerate() {
                assert_eq!(compare(one, other), at.cmp(&other_at), "{one} {other}");
            }
        }
        for (one, other) in [("1", "1.0"), ("v1.2", "1.2"), ("1.02", "1.2"), ("1.0.0", "1")] {
            assert_eq!(compare(one, other), Ordering::Equal, "{one} {other}");
        }
        // Longer than any number type.
        assert_eq!(compare("1.99999999999999999999999999999999999999999", "1.100000000000000000000000000000000000000000"), Ordering::Less);
    }

    #[test]
    fn ranges_admit_what_they_say() {
        for (range, inside, outside) in [
            (">=8 <12", &["8", "8.0.1", "11.9", "11"][..], &["7.9", "12", "12-rc1", "12.0", "head", "stable"][..]),
            (">= 8, < 12", &["8", "8u202", "11"], &["12", "8-beta"]),
            (">=8<12", &["8", "11"], &["12"]),
            ("8", &["8", "8.1", "8.0"], &["80", "9", "7"]),
            ("=8", &["8", "8.0"], &["8.1"]),
            ("!=9 >8", &["8.1", "10"], &["9", "9.0", "8"]),
            ("<=1.5", &["1.5", "1.4"], &["1.5.1"]),
            (">=2.0-rc1", &["2.0-rc2", "2.0", "3-beta"], &["2.0-alpha", "1.9"]),
        ] {
            let parsed = Range::parse(range).unwrap();
            assert!(inside.iter().all(|release| parsed.admits(release)), "{range}: {inside:?}");
            assert!(!outside.iter().any(|release| parsed.admits(release)), "{range}: {outside:?}");
        }
        for bad in ["", "  ", ">=", "latest", ">=8 <", "~8", "^8", "8 || 9", "> = 8", &">1 ".repeat(17)] {
            assert!(Range::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_release_has_its_own_releases() {
        assert!(is_within("8.1.2", "8") && is_within("8", "8") && !is_within("80", "8") && !is_within("8", "8.1"));
    }
}
