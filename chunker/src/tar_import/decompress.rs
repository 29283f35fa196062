//! Finds out how a stream is compressed, and decompresses it.

use std::io::{self, BufReader, Read};

use flate2::read::MultiGzDecoder;

use super::error::TarError;

/// How far back a zstd stream may refer, as a power of two: 32 MiB. `zstd --ultra` and `--long` can ask for more memory
/// than an import may take.
const MAX_ZSTD_WINDOW_LOG: u32 = 25;
/// Bytes read at a time.
const BUFFER_LEN: usize = 128 * 1024;

/// The uncompressed stream.
pub(super) fn open<'a>(mut reader: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>, TarError> {
    let read_error = |source| TarError::Read { offset: 0, source };
    let mut magic = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut magic).map_err(read_error)?;
    let kind = Compression::of(&magic);
    let raw = BufReader::with_capacity(BUFFER_LEN, io::Cursor::new(magic).chain(reader));
    Ok(match kind {
        Compression::None => Box::new(raw),
        Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER_LEN, MultiGzDecoder::new(raw))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(read_error)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG).map_err(read_error)?;
            Box::new(BufReader::with_capacity(BUFFER_LEN, decoder))
        }
    })
}

enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::None,
        }
    }
}
