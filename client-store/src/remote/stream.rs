//! Decoding an object stream as it arrives.
//!
//! Each record's payload is decompressed straight into the buffer that is handed on, so a byte is written once. Memory
//! is bounded by zstd's window (8 MiB) and one record; a length is checked before anything is allocated for it.

use std::collections::VecDeque;

use bytes::Bytes;
use layer_format::FormatError;
use layer_format::api::{RECORD_HEADER_LEN, Record, STREAM_WINDOW_LOG, plan_prefixes};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::DParameter;

use crate::origin::Received;

/// An incremental decoder of an object stream.
pub struct StreamDecoder {
    zstd: Decoder<'static>,
    header: [u8; RECORD_HEADER_LEN],
    header_len: usize,
    /// The record being received: kind, payload, and how much of it is there.
    record: Option<(u8, Vec<u8>, usize)>,
    ready: VecDeque<Received>,
    ended: bool,
}

impl std::fmt::Debug for StreamDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamDecoder").field("ready", &self.ready.len()).field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// Why a stream cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// It does not decompress.
    #[error("the object stream does not decompress: {0}")]
    Zstd(std::io::Error),
    /// A record is not one.
    #[error("the object stream holds something else")]
    Record(#[from] FormatError),
}

impl StreamDecoder {
    /// A decoder at the start of a stream.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub fn new() -> Result<Self, StreamError> {
        let mut zstd = Decoder::new().map_err(StreamError::Zstd)?;
        zstd.set_parameter(DParameter::WindowLogMax(STREAM_WINDOW_LOG)).map_err(StreamError::Zstd)?;
        Ok(Self { zstd, header: [0; RECORD_HEADER_LEN], header_len: 0, record: None, ready: VecDeque::new(), ended: false })
    }

    /// Takes the next compressed bytes; then [`StreamDecoder::next`] gives the records that they complete.
    ///
    /// # Errors
    /// If the bytes are not a stream's.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let mut input = InBuffer::around(bytes);
        while !self.ended {
            let (room, filled) = match &mut self.record {
                None => {
                    let mut output = OutBuffer::around_pos(&mut self.header[..], self.header_len);
                    self.zstd.run(&mut input, &mut output).map_err(StreamError::Zstd)?;
                    self.header_len = output.pos();
                    (RECORD_HEADER_LEN, self.header_len)
                }
                Some((_, payload, filled)) => {
                    let mut output = OutBuffer::around_pos(&mut payload[..], *filled);
                    self.zstd.run(&mut input, &mut output).map_err(StreamError::Zstd)?;
                    *filled = output.pos();
                    (payload.len(), *filled)
                }
            };
            if filled >= room {
                self.advance()?;
            } else if input.pos() == bytes.len() {
                // There was room left: zstd holds nothing back.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Goes on after a complete header or payload.
    fn advance(&mut self) -> Result<(), StreamError> {
        let (kind, payload) = match self.record.take() {
            None => {
                let (kind, len) = Record::decode_header(self.header)?;
                self.header_len = 0;
                if len > 0 {
                    self.record = Some((kind, vec![0; len], 0));
                    return Ok(());
                }
                (kind, Vec::new())
            }
            Some((kind, payload, _)) => (kind, payload),
        };
        let payload = Bytes::from(payload);
        let received = match Record::decode(kind, &payload)? {
            Record::Object(_) => Received::Object(payload),
            Record::Frame(_) => Received::Frame(payload),
            Record::Missing(digest) => Received::Missing(digest),
            Record::Image(_) => Received::Image(payload),
            Record::Model(_) => Received::Model(payload),
            Record::Plan(plan) => Received::Plan(plan_prefixes(plan).collect()),
            Record::End(text) => {
                self.ended = true;
                Received::End(String::from_utf8_lossy(text).into_owned())
            }
        };
        self.ready.push_back(received);
        Ok(())
    }

    /// The next complete record.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Received> {
        self.ready.pop_front()
    }

    /// Whether the end of the answer was received.
    pub fn ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::Digest;
    use proptest::prelude::*;
    use std::io::Write;

    /// With `frame_len` a zstd frame ends and another begins every so many bytes.
    fn encode_frames(records: &[Record<'_>], frame_len: usize) -> Vec<u8> {
        let mut plain = Vec::new();
        records.iter().for_each(|record| record.encode(&mut plain));
        plain.chunks(frame_len).zip([3, 12, 1].into_iter().cycle()).flat_map(|(part, level)| zstd::encode_all(part, level).unwrap()).collect()
    }

    fn encode(records: &[Record<'_>], flush_each: bool) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        for record in records {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            encoder.write_all(&bytes).unwrap();
            if flush_each {
                encoder.flush().unwrap();
            }
        }
        encoder.finish().unwrap()
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Received>, StreamError> {
        let mut decoder = StreamDecoder::new()?;
        let mut all = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.feed(piece)?;
            all.extend(std::iter::from_fn(|| decoder.next()));
        }
        Ok(all)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn records_come_back_however_the_bytes_are_cut(objects in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..20), piece in 1usize..5000, frame_len in 1usize..9000, flush: bool) {
            let mut records: Vec<_> = objects.iter().map(|object| Record::Object(object)).collect();
            records.push(Record::Missing(Digest::of(b"x")));
            records.push(Record::End(b""));
            let mut expected: Vec<_> = objects.iter().map(|object| Received::Object(Bytes::copy_from_slice(object))).collect();
            expected.push(Received::Missing(Digest::of(b"x")));
            expected.push(Received::End(String::new()));
            prop_assert_eq!(decode(&encode(&records, flush), piece).unwrap(), expected.clone());
            prop_assert_eq!(decode(&encode_frames(&records, frame_len), piece).unwrap(), expected);
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = decode(&bytes, 100);
            let mut framed = zstd::Encoder::new(Vec::new(), 1).unwrap();
            framed.write_all(&bytes).unwrap();
            let _ = decode(&framed.finish().unwrap(), 100);
        }
    }

    #[test]
    fn a_flushed_record_is_there_before_the_next_arrives() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        let mut decoder = StreamDecoder::new().unwrap();
        let mut sent = 0;
        for n in 0..50u8 {
            let mut bytes = Vec::new();
            Record::Object(&[n; 500]).encode(&mut bytes);
            encoder.write_all(&bytes).unwrap();
            encoder.flush().unwrap();
            decoder.feed(&encoder.get_ref()[sent..]).unwrap();
            sent = encoder.get_ref().len();
            assert_eq!(decoder.next(), Some(Received::Object(Bytes::from(vec![n; 500]))));
        }
    }

    #[test]
    fn a_window_beyond_the_bound_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(STREAM_WINDOW_LOG + 2).unwrap();
        encoder.write_all(&[0; 100]).unwrap();
        let bytes = encoder.finish().unwrap();
        assert!(decode(&bytes, 10).is_err());
    }
}
