//! The compression stream around an answer: one zstd frame, flushed where someone waits, or several where the level
//! changes on the way.

use std::io;

use layer_format::api::STREAM_WINDOW_LOG;
use zstd::stream::raw::{CParameter, Encoder as ZstdEncoder, InBuffer, Operation, OutBuffer};

/// Window of an answer of unknown length where many are sent at a time, since each holds its window in memory: 2 MiB.
const WINDOW_LOG: u32 = 21;
/// The same where few are, with a search for long matches: 1 to 3 % fewer bytes at any level for hardly any time, and 8 MiB.
const LONG_WINDOW_LOG: u32 = 23;
const _: () = assert!(WINDOW_LOG <= LONG_WINDOW_LOG && LONG_WINDOW_LOG <= STREAM_WINDOW_LOG);

/// How much of what was written before a stream can refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// What suits about so many bytes: a small answer gets a small window and small tables.
    For(u64),
    /// That of a long answer, one of many.
    Usual,
    /// That of a long answer where memory is no concern.
    Long,
}

/// Largest block of a zstd frame, in bytes.
const BLOCK_LEN: usize = 128 << 10;

/// Bytes in, one zstd frame out.
pub(crate) enum Encoder {
    /// Compresses.
    Zstd(ZstdEncoder<'static>),
    /// Passes on what is compressed already, as blocks that are stored: no work at all.
    Stored {
        /// What is not yet a block.
        pending: Vec<u8>,
        /// Whether the header was written.
        started: bool,
    },
}

impl Encoder {
    /// Compresses.
    pub(crate) fn zstd(level: i32, window: Window) -> io::Result<Self> {
        let window_log = match window {
            Window::For(len) => (len.max(1).ilog2() + 1).clamp(14, WINDOW_LOG),
            Window::Usual => WINDOW_LOG,
            Window::Long => LONG_WINDOW_LOG,
        };
        let mut encoder = ZstdEncoder::new(level)?;
        encoder.set_parameter(CParameter::WindowLog(window_log))?;
        encoder.set_parameter(CParameter::EnableLongDistanceMatching(window == Window::Long))?;
        encoder.set_parameter(CParameter::ChecksumFlag(false))?;
        encoder.set_parameter(CParameter::ContentSizeFlag(false))?;
        Ok(Self::Zstd(encoder))
    }

    /// Ends the frame, and begins another with this level: what follows finds nothing again of what was before.
    pub(crate) fn restart(&mut self, level: i32, window: Window, out: &mut Vec<u8>) -> io::Result<()> {
        std::mem::replace(self, Self::zstd(level, window)?).finish(out)
    }

    /// Stores an answer.
    pub(crate) fn stored() -> Self {
        Self::Stored { pending: Vec::new(), started: false }
    }

    /// Takes bytes, and appends to `out` what is ready.
    pub(crate) fn write(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => {
                let mut input = InBuffer::around(bytes);
                while input.pos() < bytes.len() {
                    grow(out, bytes.len() - input.pos());
                    let at = out.len();
                    encoder.run(&mut input, &mut OutBuffer::around_pos(out, at))?;
                }
            }
            Self::Stored { pending, started } => {
                pending.extend_from_slice(bytes);
                if pending.len() >= BLOCK_LEN {
                    let whole = pending.len() - pending.len() % BLOCK_LEN;
                    put_blocks(&pending[..whole], started, out);
                    pending.drain(..whole);
                }
            }
        }
        Ok(())
    }

    /// Appends to `out` all that the receiver needs to see what was written.
    pub(crate) fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => loop {
                grow(out, 0);
                let at = out.len();
                if encoder.flush(&mut OutBuffer::around_pos(out, at))? == 0 {
                    return Ok(());
                }
            },
            Self::Stored { pending, started } => {
                put_blocks(pending, started, out);
                pending.clear();
                Ok(())
            }
        }
    }

    /// Ends the frame.
    pub(crate) fn finish(mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.flush(out)?;
        match self {
            Self::Zstd(mut encoder) => loop {
                grow(out, 0);
                let at = out.len();
                if encoder.finish(&mut OutBuffer::around_pos(out, at), true)? == 0 {
                    return Ok(());
                }
            },
            Self::Stored { mut started, .. } => {
                put_header(&mut started, out);
                out.extend_from_slice(&[1, 0, 0]);
                Ok(())
            }
        }
    }
}

/// Room for output that `input` more bytes may give.
fn grow(out: &mut Vec<u8>, input: usize) {
    out.reserve(input / 2 + 16 * 1024);
}

/// The header of a zstd frame (RFC 8878): magic, no flags, a window of 128 KiB.
fn put_header(started: &mut bool, out: &mut Vec<u8>) {
    if !std::mem::replace(started, true) {
        out.extend_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, (17 - 10) << 3]);
    }
}

/// Raw blocks: `u24`, little-endian: last block, type 0, length from bit 3 on.
fn put_blocks(bytes: &[u8], started: &mut bool, out: &mut Vec<u8>) {
    put_header(started, out);
    for block in bytes.chunks(BLOCK_LEN) {
        out.extend_from_slice(&((block.len() as u32) << 3).to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn every_flush_shows_all_that_was_written() {
        let text: Vec<u8> = (0..700_000u32).flat_map(|n| (n / 9).to_le_bytes()).collect();
        for mut encoder in
            [Encoder::zstd(3, Window::Usual).unwrap(), Encoder::zstd(9, Window::Long).unwrap(), Encoder::zstd(3, Window::For(100)).unwrap(), Encoder::stored()]
        {
            let (mut out, mut written) = (Vec::new(), 0);
            for len in [1, 5, 70_000, 0, 300_000, 1_000_000, 3] {
                encoder.write(&text[written..][..len], &mut out).unwrap();
                written += len;
                encoder.flush(&mut out).unwrap();
                let mut seen = vec![0; written];
                zstd::stream::read::Decoder::new(&out[..]).unwrap().read_exact(&mut seen).unwrap();
                assert!(seen == text[..written]);
            }
            encoder.finish(&mut out).unwrap();
            assert!(zstd::stream::decode_all(&out[..]).unwrap() == text[..written]);
        }
        let (mut encoder, mut out) = (Encoder::zstd(3, Window::Usual).unwrap(), Vec::new());
        for (part, level) in text.chunks(1_000_000).zip([1, 12, 6]) {
            encoder.write(part, &mut out).unwrap();
            encoder.restart(level, Window::Long, &mut out).unwrap();
        }
        encoder.finish(&mut out).unwrap();
        assert!(zstd::stream::decode_all(&out[..]).unwrap() == text);
        let mut out = Vec::new();
        Encoder::stored().finish(&mut out).unwrap();
        assert!(zstd::stream::decode_all(&out[..]).unwrap().is_empty());
    }
}
