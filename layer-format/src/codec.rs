//! Bounded reading and writing of the primitive values that all binary formats are made of.
//!
//! Integers are little-endian where fixed, LEB128 where variable; a variable integer in more bytes than needed is
//! refused, so that each value has one encoding and a digest of it means something.

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes end inside a value.
    #[error("{what}: ends too early")]
    Truncated {
        /// The format or field being read.
        what: &'static str,
    },
    /// A value or length is beyond its bound.
    #[error("{what}: {value} is more than the allowed {max}")]
    TooLarge {
        /// The format or field being read.
        what: &'static str,
        /// What was found.
        value: u64,
        /// The bound.
        max: u64,
    },
    /// The magic number is another one.
    #[error("{what}: this is not one (wrong magic number)")]
    WrongMagic {
        /// The format expected.
        what: &'static str,
    },
    /// Made by a newer version of Turbo.
    #[error("{what}: version {version} is not known here; a newer turbo is needed")]
    UnknownVersion {
        /// The format.
        what: &'static str,
        /// The version found.
        version: u16,
    },
    /// Bytes are left after the last value.
    #[error("{what}: {count} bytes after the end")]
    TrailingBytes {
        /// The format.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// A rule of the format is broken.
    #[error("{what}: {rule}")]
    Invalid {
        /// The format or field.
        what: &'static str,
        /// The rule that does not hold.
        rule: &'static str,
    },
    /// The content does not match the digest that names it.
    #[error("{what}: the content does not match its digest")]
    DigestMismatch {
        /// The format.
        what: &'static str,
    },
    /// Not the JSON that a manifest is.
    #[error("{what}: {message}")]
    Json {
        /// The manifest.
        what: &'static str,
        /// What the JSON parser said.
        message: String,
    },
}

impl FormatError {
    pub(crate) fn invalid(what: &'static str, rule: &'static str) -> Self {
        Self::Invalid { what, rule }
    }
}

/// Reads primitive values from the front of a byte slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; `what` names the format in errors.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] if there are fewer.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(FormatError::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] if there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes, little-endian.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end.
    pub fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Three bytes, little-endian.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end.
    pub fn u24(&mut self) -> Result<u32, FormatError> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_le_bytes([a, b, c, 0]))
    }

    /// Four bytes, little-endian.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A 32-bit IEEE number that is finite and not negative.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] if it is negative, infinite or not a number.
    pub fn f32_count(&mut self) -> Result<f32, FormatError> {
        let value = f32::from_bits(self.u32()?);
        if value.is_finite() && value.is_sign_positive() { Ok(value) } else { Err(FormatError::invalid(self.what, "a count is negative or not finite")) }
    }

    /// A digest.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] at the end.
    pub fn digest(&mut self) -> Result<crate::Digest, FormatError> {
        Ok(crate::Digest(self.array()?))
    }

    /// A variable-length integer of at most `max`.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] above `max`, [`FormatError::Invalid`] if it is padded.
    pub fn varint(&mut self, max: u64) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(FormatError::invalid(self.what, "an integer does not fit 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift != 0 {
                    return Err(FormatError::invalid(self.what, "an integer is padded"));
                }
                return if value <= max { Ok(value) } else { Err(FormatError::TooLarge { what: self.what, value, max }) };
            }
        }
        Err(FormatError::invalid(self.what, "an integer does not fit 64 bits"))
    }

    /// A variable-length count of items that each take at least `min_item_len` bytes: a count that the remaining
    /// bytes cannot hold is refused before anything is allocated.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] above `max`, [`FormatError::Truncated`] if the bytes cannot hold as many.
    pub fn count(&mut self, max: u64, min_item_len: usize) -> Result<usize, FormatError> {
        let count = self.varint(max)?;
        let count = usize::try_from(count).map_err(|_| FormatError::TooLarge { what: self.what, value: count, max })?;
        match count.checked_mul(min_item_len) {
            Some(len) if len <= self.remaining() => Ok(count),
            _ => Err(FormatError::Truncated { what: self.what }),
        }
    }

    /// A signed integer in zigzag encoding.
    ///
    /// # Errors
    /// As [`Reader::varint`].
    pub fn signed(&mut self) -> Result<i64, FormatError> {
        let raw = self.varint(u64::MAX)?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// Bytes with their length (a variable integer of at most `max`) in front.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] above `max`, [`FormatError::Truncated`] if there are fewer.
    pub fn sized(&mut self, max: usize) -> Result<&'a [u8], FormatError> {
        let len = self.count(max as u64, 1)?;
        self.bytes(len)
    }

    /// The magic number and the version of a format, which must be `1..=newest`. Returns the version.
    ///
    /// # Errors
    /// [`FormatError::WrongMagic`], [`FormatError::UnknownVersion`].
    pub fn header<const N: usize>(&mut self, magic: &[u8; N], newest: u8) -> Result<u8, FormatError> {
        if self.rest.get(..N) != Some(&magic[..]) {
            return Err(FormatError::WrongMagic { what: self.what });
        }
        self.bytes(N)?;
        match self.u8()? {
            version if (1..=newest).contains(&version) => Ok(version),
            version => Err(FormatError::UnknownVersion { what: self.what, version: version.into() }),
        }
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`FormatError::TrailingBytes`] if anything is left.
    pub fn finish(self) -> Result<(), FormatError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(FormatError::TrailingBytes { what: self.what, count }),
        }
    }
}

/// Appends primitive values to a byte vector; the mirror of [`Reader`].
pub trait Writer {
    /// A variable-length integer.
    fn put_varint(&mut self, value: u64);
    /// A signed integer in zigzag encoding.
    fn put_signed(&mut self, value: i64);
    /// Bytes with their length in front.
    fn put_sized(&mut self, bytes: &[u8]);
    /// A length of three bytes; `value` is below 2^24.
    fn put_u24(&mut self, value: u32);
}

impl Writer for Vec<u8> {
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn put_signed(&mut self, value: i64) {
        self.put_varint((value << 1 ^ value >> 63).cast_unsigned());
    }

    fn put_sized(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.extend_from_slice(bytes);
    }

    fn put_u24(&mut self, value: u32) {
        debug_assert!(value < 1 << 24, "a u24 field holds less than 2^24");
        self.extend_from_slice(&value.to_le_bytes()[..3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_come_back(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            bytes.put_varint(value);
            bytes.put_signed(signed);
            let mut reader = Reader::new("test", &bytes);
            prop_assert_eq!(reader.varint(u64::MAX), Ok(value));
            prop_assert_eq!(reader.signed(), Ok(signed));
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }

    #[test]
    fn a_padded_or_oversized_integer_is_refused() {
        for bytes in [&[0x80, 0x00][..], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], &[0x80]] {
            assert!(Reader::new("test", bytes).varint(u64::MAX).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_count_beyond_the_input_is_refused_before_allocating() {
        let mut bytes = Vec::new();
        bytes.put_varint(1 << 40);
        assert!(Reader::new("test", &bytes).count(u64::MAX, 1).is_err());
    }
}
