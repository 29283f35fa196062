//! Bits in the order of RFC 1951: the lowest bit of each byte first.

use std::io::Read;

use super::AnalyzeError;

/// Bytes read at a time.
const READ_LEN: usize = 64 * 1024;

/// Reads bits of a stream, and knows where it is.
#[derive(Debug)]
pub(super) struct BitReader<R> {
    source: R,
    buffer: Vec<u8>,
    /// First byte of the buffer that is not in `bits`.
    at: usize,
    /// Place of the buffer's first byte in the stream.
    offset: u64,
    bits: u64,
    count: u32,
    ended: bool,
}

impl<R: Read> BitReader<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: Vec::with_capacity(2 * READ_LEN), at: 0, offset: 0, bits: 0, count: 0, ended: false }
    }

    /// Bits before the next one.
    pub(super) fn position(&self) -> u64 {
        (self.offset + self.at as u64) * 8 - u64::from(self.count)
    }

    /// Of the byte that the next bit is in, those bits that were read.
    pub(super) fn partial(&self) -> u8 {
        let read = (8 - self.count % 8) % 8;
        let byte = self.at.checked_sub(1 + self.count as usize / 8).and_then(|at| self.buffer.get(at));
        if read == 0 { 0 } else { byte.copied().unwrap_or_default() & ((1 << read) - 1) }
    }

    fn read_more(&mut self) -> Result<(), AnalyzeError> {
        // One byte stays, for `partial`, besides those that are in `bits`.
        let kept = self.at.min(16);
        self.buffer.drain(..self.at - kept);
        self.offset += (self.at - kept) as u64;
        self.at = kept;
        let filled = self.buffer.len();
        self.buffer.resize(filled + READ_LEN, 0);
        let count = loop {
            match self.source.read(&mut self.buffer[filled..]) {
                Ok(count) => break count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.buffer.truncate(filled);
                    return Err(AnalyzeError::Read(error));
                }
            }
        };
        self.buffer.truncate(filled + count);
        self.ended = count == 0;
        Ok(())
    }

    /// Makes at least 56 bits ready, or all that are left.
    pub(super) fn refill(&mut self) -> Result<(), AnalyzeError> {
        loop {
            if let Some(next) = self.buffer.get(self.at..self.at + 8).and_then(|next| next.first_chunk::<8>()) {
                self.bits |= u64::from_le_bytes(*next) << self.count;
                self.at += (63 - self.count as usize) >> 3;
                self.count |= 56;
                return Ok(());
            }
            if self.ended {
                while self.count < 56 && self.at < self.buffer.len() {
                    self.bits |= u64::from(self.buffer[self.at]) << self.count;
                    self.at += 1;
                    self.count += 8;
                }
                return Ok(());
            }
            self.read_more()?;
        }
    }

    /// The next bits, without taking them: at least 15 after [`Self::need`], zeros behind the end.
    pub(super) fn peek(&self) -> u64 {
        self.bits
    }

    /// Makes `count <= 48` bits ready if there are so many.
    pub(super) fn need(&mut self, count: u32) -> Result<(), AnalyzeError> {
        if self.count < count { self.refill() } else { Ok(()) }
    }

    /// Takes bits.
    pub(super) fn take(&mut self, count: u32) -> Result<(), AnalyzeError> {
        if count > self.count {
            return Err(AnalyzeError::Truncated);
        }
        self.bits >>= count;
        self.count -= count;
        Ok(())
    }

    /// The next `count <= 32` bits.
    pub(super) fn bits(&mut self, count: u32) -> Result<u32, AnalyzeError> {
        self.need(count)?;
        let value = self.bits & ((1 << count) - 1);
        self.take(count)?;
        Ok(value as u32)
    }

    /// Goes on to the next whole byte; returns what was passed over, and how many bits that were.
    pub(super) fn align(&mut self) -> Result<(u32, u32), AnalyzeError> {
        let count = self.count % 8;
        Ok((self.bits(count)?, count))
    }

    /// The next bytes, which start at a whole byte: appended to `to`.
    pub(super) fn bytes(&mut self, mut len: usize, to: &mut Vec<u8>) -> Result<(), AnalyzeError> {
        while len > 0 && self.count >= 8 {
            to.push(self.bits(8)? as u8);
            len -= 1;
        }
        if len == 0 {
            return Ok(());
        }
        // Bits above the count are a look ahead.
        self.bits = 0;
        while len > 0 {
            if self.at == self.buffer.len() {
                if self.ended {
                    return Err(AnalyzeError::Truncated);
                }
                self.read_more()?;
                continue;
            }
            let now = len.min(self.buffer.len() - self.at);
            to.extend_from_slice(&self.buffer[self.at..self.at + now]);
            self.at += now;
            len -= now;
        }
        Ok(())
    }

    /// Whether there is nothing more.
    pub(super) fn is_at_end(&mut self) -> Result<bool, AnalyzeError> {
        self.need(1)?;
        Ok(self.count == 0)
    }
}

/// Writes bits.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    pub(super) bytes: Vec<u8>,
    bits: u64,
    count: u32,
}

impl BitWriter {
    /// Goes on in a byte of which some bits are written.
    pub(super) fn resume(partial: u8, count: u32) -> Self {
        Self { bytes: Vec::new(), bits: u64::from(partial) & ((1 << count) - 1), count }
    }

    /// Writes `count <= 32` bits, of which `value` has no more.
    pub(super) fn put(&mut self, value: u32, count: u32) {
        self.bits |= u64::from(value) << self.count;
        self.count += count;
        if self.count >= 32 {
            self.bytes.extend_from_slice(&(self.bits as u32).to_le_bytes());
            self.bits >>= 32;
            self.count -= 32;
        }
    }

    /// Writes whole bytes to `bytes`; returns the bits that make no whole byte, and their number.
    pub(super) fn flush(&mut self) -> (u8, u32) {
        while self.count >= 8 {
            self.bytes.push(self.bits as u8);
            self.bits >>= 8;
            self.count -= 8;
        }
        (self.bits as u8, self.count)
    }

    /// How many bits are missing to a whole byte.
    pub(super) fn missing(&self) -> u32 {
        (8 - self.count % 8) % 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_back_and_places_are_known() {
        let mut writer = BitWriter::resume(0b101, 3);
        let mut expected = Vec::new();
        let mut state = 7u64;
        for _ in 0..300_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let count = (state >> 59) as u32;
            let value = (state >> 20) as u32 & ((1u64 << count) - 1) as u32;
            writer.put(value, count);
            expected.push((value, count));
        }
        let (last, count) = writer.flush();
        let mut bytes = writer.bytes;
        if count > 0 {
            bytes.push(last);
        }
        let mut reader = BitReader::new(&bytes[..]);
        assert_eq!(reader.bits(3).unwrap(), 0b101);
        let mut position = 3;
        for (value, count) in expected {
            assert_eq!(reader.position(), position);
            let partial = bytes.get(position as usize / 8).map_or(0, |byte| byte & ((1 << (position % 8)) - 1));
            assert_eq!(reader.partial(), partial);
            assert_eq!(reader.bits(count).unwrap(), value);
            position += u64::from(count);
        }
        assert_eq!(reader.position(), position);
        reader.align().unwrap();
        assert!(reader.is_at_end().unwrap() && matches!(reader.bits(1), Err(AnalyzeError::Truncated)));
    }
}
