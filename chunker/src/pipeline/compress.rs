//! Compresses frames, without spending zstd's time on what is compressed already.

use layer_format::Digest;
use layer_format::delta::BaseSet;
use layer_format::frame::FrameBuilder;
use layer_format::frame::delta::MAX_BASE_LEN;

use crate::earlier::Earlier;
use crate::error::ImportError;

/// Of each run of [`SAMPLE_EVERY`] bytes, the first [`SAMPLE_LEN`] are looked at before the frame is compressed.
const SAMPLE_EVERY: usize = 8 * 1024;
const SAMPLE_LEN: usize = 1024;
/// A delta frame is worth the read that it costs if it has at most this many percent of the bytes of a plain one. Those of a plain
/// one are guessed from the sample first: what is far below is not compressed twice.
const DELTA_PERCENT: usize = 85;
const SURE_DELTA_PERCENT: usize = 60;
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
    /// What it is compressed against, if anything.
    pub(crate) bases: BaseSet,
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
pub(crate) struct Compressor<'a> {
    level: i32,
    earlier: Option<&'a dyn Earlier>,
    zstd: zstd::bulk::Compressor<'static>,
    quick: zstd::bulk::Compressor<'static>,
}

impl<'a> Compressor<'a> {
    /// With this level, which was checked before. Bases are read from `earlier`.
    pub(crate) fn new(level: i32, earlier: Option<&'a dyn Earlier>) -> Result<Self, ImportError> {
        let open = |level| zstd::bulk::Compressor::new(level).map_err(|error| ImportError::Internal(format!("zstd: {error}")));
        Ok(Self { level, earlier, zstd: open(level)?, quick: open(1)? })
    }

    /// Encodes a frame.
    pub(crate) fn encode(&mut self, mut job: FrameJob) -> EncodedFrame {
        let hopeless = job.sample.looks_like_noise() && !self.shrinks(&job.sample.bytes);
        let bases = job.bases.take();
        let delta = if bases.is_empty() { None } else { self.delta(&job, &bases) };
        let bytes = match delta {
            Some((delta, true)) => {
                job.builder.clear();
                delta
            }
            Some((delta, false)) => {
                let plain = job.builder.finish((!hopeless).then_some(&mut self.zstd));
                if delta.len() * 100 <= plain.len() * DELTA_PERCENT { delta } else { plain }
            }
            None => job.builder.finish((!hopeless).then_some(&mut self.zstd)),
        };
        let objects = std::mem::take(&mut job.objects);
        job.sample.clear();
        EncodedFrame { number: job.number, bytes, objects, spare: job }
    }

    /// The frame compressed against its bases, and whether it is sure that this is worth it.
    fn delta(&mut self, job: &FrameJob, bases: &[Digest]) -> Option<(Vec<u8>, bool)> {
        let mut prefix = Vec::with_capacity(MAX_BASE_LEN);
        let mut read = 0;
        let result = self.earlier?.each_object(bases, &mut |_, bytes| {
            prefix.extend_from_slice(bytes);
            read += 1;
            true
        });
        if result.is_err() || read != bases.len() {
            return None;
        }
        let delta = job.builder.encode_delta(self.level, bases, &prefix)?;
        let sample = &job.sample.bytes;
        let packed = self.quick.compress(sample).map_or(sample.len(), |packed| packed.len().min(sample.len()));
        let guess = job.builder.len() as u64 * packed as u64 / sample.len().max(1) as u64;
        let sure = delta.len() as u64 * 100 <= guess * SURE_DELTA_PERCENT as u64;
        Some((delta, sure))
    }

    fn shrinks(&mut self, sample: &[u8]) -> bool {
        self.quick.compress(sample).is_ok_and(|packed| packed.len() + sample.len() / LEAST_GAIN < sample.len())
    }
}
