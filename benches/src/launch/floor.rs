//! The least that a launch can take which moves what it reads in blocks of 64 KiB: two round trips, and the blocks at the
//! rate of the link, 4 % of it headers; but never less than where all is local.
//!
//! The blocks are those that a recorded run touches, in the order of their first touch, in one zstd stream of level 3. What
//! is read of directories and metadata counts as nothing, and nothing is transferred while the application computes
//! for longer than it is transferred.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use layer_format::recording::Recording;
use layer_format::trace::{BUCKET_LEN, Touch, Trace};
use serde::Serialize;

use crate::place::LinkKind;

/// Length of a block.
const BLOCK_LEN: u64 = 64 << 10;
const LEVEL: i32 = 3;
/// IP and TCP headers, and those of HTTP, on what travels.
const OVERHEAD: f64 = 1.04;
const ROUND_TRIPS: f64 = 2.0;

/// What a launch has to move at least, and how long that takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Floor {
    /// Blocks touched.
    pub blocks: u64,
    /// Their bytes.
    pub plain_bytes: u64,
    /// What they compress to.
    pub wire_bytes: u64,
    /// Over the link in question; 0 before that is known.
    pub seconds: f64,
}

impl Floor {
    /// Counts the blocks that a recorded run of an image of one layer, made of `root`, touches.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn of(root: &Path, trace: &Trace) -> Result<Self> {
        let mut seen = HashSet::new();
        let mut floor = Self::default();
        let mut stream = zstd::Encoder::new(Counter(0), LEVEL).context("cannot start zstd")?;
        let mut block = vec![0; BLOCK_LEN as usize];
        for event in &trace.events {
            let Touch::Data { bucket } = event.touch else { continue };
            let number = u64::from(bucket) * BUCKET_LEN / BLOCK_LEN;
            let path = trace.paths.get(event.path as usize).filter(|_| seen.insert((event.path, number)));
            let Some(path) = path else { continue };
            let full = root.join(std::ffi::OsStr::new(std::str::from_utf8(path.as_bytes()).context("a path is not UTF-8")?));
            let file = File::open(&full).with_context(|| format!("cannot open {}", full.display()))?;
            let len = read_at(&file, &mut block, number * BLOCK_LEN).with_context(|| format!("cannot read {}", full.display()))?;
            stream.write_all(&block[..len]).context("cannot compress")?;
            floor.blocks += 1;
            floor.plain_bytes += len as u64;
        }
        floor.wire_bytes = stream.finish().context("cannot compress")?.0;
        Ok(floor)
    }

    /// With the time over a link, where the launch takes `warm_s` if all is local.
    pub(crate) fn over(self, link: LinkKind, warm_s: f64) -> Self {
        let transfer = ROUND_TRIPS * link.rtt.as_secs_f64() + OVERHEAD * self.wire_bytes as f64 * 8.0 / link.rate_bps as f64;
        // A launch that was not measured where all is local has no such bound.
        Self { seconds: transfer.max(if warm_s.is_nan() { 0.0 } else { warm_s }), ..self }
    }
}

fn read_at(file: &File, block: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut len = 0;
    while len < block.len() {
        match file.read_at(&mut block[len..], offset + len as u64)? {
            0 => break,
            count => len += count,
        }
    }
    Ok(len)
}

struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads a trace that `turbo run --trace` wrote.
///
/// # Errors
/// If there is none, or it is damaged.
pub(crate) fn read_trace(path: &Path) -> Result<Trace> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).with_context(|| format!("turbo run wrote no {}", path.display()))?;
    Recording::decode(&bytes).map(|recording| recording.trace).with_context(|| format!("{} is not a trace", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::trace::{Event, Source};
    use layer_format::{Digest, LayerPath};

    #[test]
    fn each_block_counts_once_and_a_slow_application_bounds_it() {
        let root = tempfile::tempdir().unwrap();
        // Noise does not compress: an xorshift.
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(100_000)
        .collect();
        std::fs::write(root.path().join("a"), &noise).unwrap();
        let event = |bucket| Event { time_us: 0, process: 0, layer: 0, path: 0, touch: Touch::Data { bucket }, source: Source::Local };
        let mut events = vec![event(0), event(3), event(4), event(6)];
        events.push(Event { touch: Touch::Meta, ..events[0] });
        let trace = Trace {
            image: Digest::of(b""),
            entry_point: String::new(),
            architecture: String::new(),
            duration_us: 0,
            paths: vec![LayerPath::new("a").unwrap()],
            events,
        };
        let floor = Floor::of(root.path(), &trace).unwrap();
        assert_eq!((floor.blocks, floor.plain_bytes), (2, 100_000));
        assert!((100_000..101_000).contains(&floor.wire_bytes), "{floor:?}");
        let link = LinkKind::FAR;
        let expected = 0.2 + 1.04 * floor.wire_bytes as f64 / 12_500_000.0;
        assert!((floor.over(link, 0.1).seconds - expected).abs() < 1e-9);
        assert_eq!(floor.over(link, 3.0).seconds, 3.0);
    }
}
