//! PAX extended headers: `LENGTH KEY=VALUE\n` records that overrule the header that follows.

use std::collections::BTreeMap;

use super::error::TarError;
use crate::xattr;

/// What the records say about the next entry.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    /// Those that belong to an image.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Whether there is an access list in text form, which is not kept.
    pub(super) has_text_acl: bool,
    pub(super) sparse: PaxSparse,
}

/// The records of GNU sparse files.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Version 1.0: the map stands before the data.
    pub(super) map_in_data: bool,
    /// Versions 0.0 and 0.1: offsets and lengths.
    pub(super) map: Vec<(u64, u64)>,
    /// Version 0.0: an offset whose length comes next.
    offset: Option<u64>,
}

impl PaxSparse {
    /// Whether the entry is sparse at all.
    pub(super) fn is_sparse(&self) -> bool {
        self.map_in_data || self.real_size.is_some()
    }
}

impl Pax {
    /// Parses an extended header. `name` is the next entry's as far as it is known, for messages.
    pub(super) fn parse(mut bytes: &[u8], name: &[u8]) -> Result<Self, TarError> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or_else(|| TarError::invalid(name, "a record of its PAX header is malformed"))?;
            pax.take(key, value, name)?;
            bytes = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8], name: &[u8]) -> Result<(), TarError> {
        let number = |rule| decimal(value).ok_or_else(|| TarError::invalid(name, rule));
        let text = || Some(value.to_vec()).filter(|value| !value.is_empty());
        let size_rule = "a size in its PAX header is not a number";
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link_path = text(),
            b"size" => self.size = Some(number(size_rule)?),
            b"uid" => self.uid = Some(number("the owner in its PAX header is not a number")?),
            b"gid" => self.gid = Some(number("the group in its PAX header is not a number")?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(|| TarError::invalid(name, "the time in its PAX header is not a number"))?),
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(number(size_rule)?),
            b"GNU.sparse.major" => self.sparse.map_in_data = value == b"1",
            b"GNU.sparse.offset" => self.sparse.offset = Some(number(size_rule)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or_else(|| TarError::invalid(name, "its sparse map has a length without an offset"))?;
                self.sparse.map.push((offset, number(size_rule)?));
            }
            b"GNU.sparse.map" => self.sparse.map = map(value).ok_or_else(|| TarError::invalid(name, "its sparse map is not made of pairs of numbers"))?,
            b"SCHILY.acl.access" | b"SCHILY.acl.default" => self.has_text_acl |= !value.is_empty(),
            _ => self.take_xattr(key, value, name)?,
        }
        Ok(())
    }

    fn take_xattr(&mut self, key: &[u8], value: &[u8], name: &[u8]) -> Result<(), TarError> {
        if let Some(encoded) = key.strip_prefix(b"SCHILY.xattr.") {
            // GNU tar writes `=` and `%` of a name so.
            let attribute = percent_decode(encoded);
            if xattr::is_kept(&attribute) {
                self.xattrs.insert(attribute, value.to_vec());
            }
        } else if let Some(encoded) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let attribute = percent_decode(encoded);
            if xattr::is_kept(&attribute) && !self.xattrs.contains_key(&attribute) {
                let value = base64(value).ok_or_else(|| TarError::invalid(name, "an attribute in its PAX header is not base64"))?;
                self.xattrs.insert(attribute, value);
            }
        }
        Ok(())
    }
}

/// Key, value, and what follows the first record.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

/// A decimal number without a sign.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Seconds since 1970 with a sign and a fraction. Digits beyond nanoseconds are dropped.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

/// Numbers joined by commas, as pairs.
fn map(text: &[u8]) -> Option<Vec<(u64, u64)>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let numbers: Vec<u64> = text.split(|byte| *byte == b',').map(decimal).collect::<Option<_>>()?;
    let pairs = numbers.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| (pair[0], pair[1])).collect())
}

fn percent_decode(text: &[u8]) -> Vec<u8> {
    let hex = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let escaped = match (byte, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        out.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    out
}

/// Base64 with or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |at| at + 1);
    let mut out = Vec::with_capacity(end * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in &text[..end] {
        bits = bits << 6 | u32::from(digit(*byte)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (bits == 0 && count < 6).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_parsed() {
        let pax = Pax::parse(b"12 path=a/b\n20 mtime=-1.2500001\n27 SCHILY.xattr.user.a=b=c\n31 LIBARCHIVE.xattr.user.z=aGk\n", b"x").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.mtime, Some((-2, 749_999_900)));
        assert_eq!(pax.xattrs.get(&b"user.a"[..]).map(Vec::as_slice), Some(&b"b=c"[..]));
        assert_eq!(pax.xattrs.get(&b"user.z"[..]).map(Vec::as_slice), Some(&b"hi"[..]));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"5 a=b",
            b"99 path=a\n",
            b"0 a=b\n",
            b"3 a=b\n",
            b" a=b\n",
            b"18446744073709551615 a=b\n",
            b"11 path=ab\n\n",
            b"11 size=-1\n",
            b"8 size=\n",
        ] {
            assert!(Pax::parse(bytes, b"x").is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn times() {
        for (text, value) in [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("-1", Some((-1, 0))),
            ("-0.5", Some((-1, 500_000_000))),
            ("1.x", None),
            ("", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(time(text.as_bytes()), value, "{text}");
        }
    }

    #[test]
    fn base64_with_and_without_padding() {
        for (text, value) in
            [("", Some(&b""[..])), ("YQ==", Some(b"a")), ("YQ", Some(b"a")), ("YWI=", Some(b"ab")), ("YWJj", Some(b"abc")), ("Y", None), ("Y!", None)]
        {
            assert_eq!(base64(text.as_bytes()).as_deref(), value, "{text}");
        }
    }
}
