//! One 512-byte header block.

use super::error::TarError;

/// Length of a block in bytes.
pub(crate) const BLOCK_LEN: usize = 512;

/// A header block whose checksum is right.
#[derive(Clone, Copy)]
pub(crate) struct Header<'a> {
    block: &'a [u8; BLOCK_LEN],
}

impl<'a> Header<'a> {
    /// Checks the checksum; `None` if it is wrong.
    pub(crate) fn new(block: &'a [u8; BLOCK_LEN]) -> Option<Self> {
        let header = Self { block };
        let stated = octal(&block[148..156])?;
        let bytes = || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        let unsigned: u64 = bytes().map(u64::from).sum();
        // Some old tars summed signed bytes.
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        (stated == unsigned || i64::try_from(stated).is_ok_and(|stated| stated == signed)).then_some(header)
    }

    fn field(&self, start: usize, len: usize) -> &'a [u8] {
        let field = &self.block[start..start + len];
        &field[..field.iter().position(|byte| *byte == 0).unwrap_or(len)]
    }

    /// The name; for ustar with its prefix.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.field(0, 100);
        match self.field(345, 155) {
            prefix if self.is_ustar() && !prefix.is_empty() => [prefix, b"/", name].concat(),
            _ => name.to_vec(),
        }
    }

    /// The name without a prefix, for messages.
    pub(super) fn short_name(&self) -> &'a [u8] {
        self.field(0, 100)
    }

    fn is_ustar(&self) -> bool {
        &self.block[257..263] == b"ustar\0"
    }

    pub(crate) fn kind(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        self.field(157, 100).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u64, TarError> {
        self.number(100, 8, "its mode is not a number")
    }

    pub(super) fn uid(&self) -> Result<u64, TarError> {
        self.number(108, 8, "its owner is not a number")
    }

    pub(super) fn gid(&self) -> Result<u64, TarError> {
        self.number(116, 8, "its group is not a number")
    }

    pub(crate) fn size(&self) -> Result<u64, TarError> {
        self.number(124, 12, "its size is not a number")
    }

    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        signed(&self.block[136..148]).ok_or_else(|| TarError::invalid(self.short_name(), "its time is not a number"))
    }

    pub(super) fn device(&self) -> Result<(u64, u64), TarError> {
        let rule = "its device number is not a number";
        Ok((self.number(329, 8, rule)?, self.number(337, 8, rule)?))
    }

    /// Of an old GNU sparse header: its places for map entries, and whether more follow.
    pub(super) fn sparse(&self) -> Result<(Vec<(u64, u64)>, bool), TarError> {
        Ok((sparse_entries(&self.block[386..482], self.short_name())?, self.block[482] != 0))
    }

    /// Of an old GNU sparse header: the length of the file with its holes.
    pub(super) fn real_size(&self) -> Result<u64, TarError> {
        self.number(483, 12, "its real size is not a number")
    }

    fn number(&self, start: usize, len: usize, rule: &'static str) -> Result<u64, TarError> {
        number(&self.block[start..start + len]).ok_or_else(|| TarError::invalid(self.short_name(), rule))
    }
}

/// Pairs of offset and length, 12 bytes each number, up to the first empty one.
pub(super) fn sparse_entries(places: &[u8], name: &[u8]) -> Result<Vec<(u64, u64)>, TarError> {
    let mut map = Vec::new();
    for place in places.chunks_exact(24).take_while(|place| place[0] != 0) {
        let (offset, len) = place.split_at(12);
        let entry = number(offset).zip(number(len)).ok_or_else(|| TarError::invalid(name, "its sparse map is not made of numbers"))?;
        map.push(entry);
    }
    Ok(map)
}

/// A number that is not negative.
fn number(field: &[u8]) -> Option<u64> {
    signed(field).and_then(|value| u64::try_from(value).ok())
}

/// An octal number, or a GNU base-256 one, which may be negative.
fn signed(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field).and_then(|value| i64::try_from(value).ok());
    }
    // Big-endian two's complement; the top bit of the first byte is the mark, the next one the sign.
    let negative = first & 0x40 != 0;
    let top = if negative { i64::from(first | 0x80) - 256 } else { i64::from(first & 0x3f) };
    rest.iter().try_fold(top, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

/// Octal digits with spaces around them, ended by a space or NUL. Nothing at all is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let text = field.trim_ascii_start();
    let end = text.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if rest.iter().any(|byte| !matches!(byte, 0 | b' ')) && !digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000648\0", None),
            (b"\x80\0\0\0\0\0\0\x07", Some(7)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(signed(field), value, "{field:?}");
        }
    }
}
