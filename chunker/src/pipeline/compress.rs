//! Compresses frames, without spending zstd's time on what is compressed already.

use layer_format::Digest;
use layer_format::frame::FrameBuilder;

use crate::error::ImportError;

/// Of each run of [`SAMPLE_EVERY`] bytes, the first [`SAMPLE_LEN`] are looked at before the frame is compressed.
const SAMPLE_EVERY: usize = 8 * 1024;
const SAMPLE_LEN: usize = 1024;
/// A sample gains if it shrinks by more than one part in this many.
const LEAST_GAIN: usize = 50;

/// Some of a frame's bytes.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    bytes: Vec<u8>,
    /// Bytes until the next piece of the sample starts.
    skip: usize,
}

impl Sample {
    /// Looks at the next object of the frame.
    pub(crate) fn add(&mut self, object: &[u8]) {
        let mut at = self.skip;
        while at < object.len() {
            let end = object.len().min(at + SAMPLE_LEN);
            self.bytes.extend_from_slice(&object[at..end]);
            at += SAMPLE_EVERY;
        }
        self.skip = at - object.len();
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.skip = 0;
    }

    /// Whether the bytes are about as frequent as in noise. Of noise, the sum of squared counts is near the least
    /// possible; anything with structure that zstd's entropy stage can use is far above.
    fn looks_like_noise(&self) -> bool {
        let len = self.bytes.len() as u64;
        let mut counts = [0u32; 256];
        for byte in &self.bytes {
            counts[usize::from(*byte)] += 1;
        }
        let squares: u64 = counts.iter().map(|count| u64::from(*count).pow(2)).sum();
        // For noise of n bytes the expected sum is n * (n + 255) / 256; 1 / 16 above it is a gain of about 0.5 %.
        len >= 4096 && squares * 256 * 16 <= len * (len + 255) * 17
    }
}

/// A frame to compress.
#[derive(Debug, Default)]
pub(crate) struct FrameJob {
    /// Number in the order of the pack, from 0.
    pub(crate) number: u64,
    pub(crate) builder: FrameBuilder,
    pub(crate) objects: Vec<(Digest, u32)>,
    pub(crate) sample: Sample,
}

/// A frame ready to be written.
#[derive(Debug)]
pub(crate) struct EncodedFrame {
    pub(crate) number: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) objects: Vec<(Digest, u32)>,
    /// The emptied job, to be used again.
    pub(crate) spare: FrameJob,
}

/// One worker's compressors.
pub(crate) struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    quick: zstd::bulk::Compressor<'static>,
}

impl Compressor {
    /// With this level, which was checked before.
    pub(crate) fn new(level: i32) -> Result<Self, ImportError> {
        let open = |level| zstd::bulk::Compressor::new(level).map_err(|error| ImportError::Internal(format!("zstd: {error}")));
        Ok(Self { zstd: open(level)?, quick: open(1)? })
    }

    /// Encodes a frame.
    pub(crate) fn encode(&mut self, mut job: FrameJob) -> EncodedFrame {
        let hopeless = job.sample.looks_like_noise() && !self.shrinks(&job.sample.bytes);
        let bytes = job.builder.finish((!hopeless).then_some(&mut self.zstd));
        let objects = std::mem::take(&mut job.objects);
        job.sample.clear();
        EncodedFrame { number: job.number, bytes, objects, spare: job }
    }

    fn shrinks(&mut self, sample: &[u8]) -> bool {
        self.quick.compress(sample).is_ok_and(|packed| packed.len() + sample.len() / LEAST_GAIN < sample.len())
    }
}
