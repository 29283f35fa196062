//! A trace: what one run touched first, in order.
//!
//! Keyed by layer path and offset bucket, not by chunk, so that it outlives a rebuild of the image. It holds paths
//! inside the image and nothing else: no host path, no argument, no user, no time of day. Recorded where the
//! filesystem answers, so that what was prefetched is counted as well as what was missed.

use crate::codec::{FormatError, Reader, Writer};
use crate::digest::Digest;
use crate::entry::{put_path, read_path};
use crate::path::LayerPath;

const MAGIC: &[u8; 4] = b"TBTR";
const VERSION: u8 = 1;

/// Length of an offset bucket, in bytes: the average chunk. A coarser one moves bytes that no one reads, a finer one
/// cannot be fetched by itself.
pub const BUCKET_LEN: u64 = 16 * 1024;
/// Most events of a trace; a recorder stops there.
pub const MAX_EVENTS: usize = 1 << 18;
/// Most distinct paths of a trace.
pub const MAX_PATHS: usize = 1 << 17;
/// Most bytes of an encoded trace.
pub const MAX_TRACE_LEN: usize = 16 << 20;
/// Most bytes of an entry point's name.
pub const MAX_ENTRY_POINT_LEN: usize = 1024;

/// What was touched of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Touch {
    /// The tree object that answers for the path: its entry, or that there is none, or a listing that starts here.
    Meta,
    /// Content: the bytes from `bucket * BUCKET_LEN` on.
    Data {
        /// Number of the bucket.
        bucket: u32,
    },
}

impl Touch {
    /// The number that stands for it in formats: 0, or 1 + bucket.
    pub fn to_number(self) -> u64 {
        match self {
            Self::Meta => 0,
            Self::Data { bucket } => u64::from(bucket) + 1,
        }
    }

    /// The reverse of [`Touch::to_number`].
    pub fn from_number(number: u64) -> Option<Self> {
        match number.checked_sub(1) {
            None => Some(Self::Meta),
            Some(bucket) => u32::try_from(bucket).ok().map(|bucket| Self::Data { bucket }),
        }
    }
}

/// Where the bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Local before the run began.
    Local,
    /// Fetched ahead of use in this run.
    Prefetched,
    /// The application waited for it.
    Missed,
}

/// A first touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Microseconds since the run began.
    pub time_us: u64,
    /// Which process of the run, numbered from 0 in order of appearance.
    pub process: u16,
    /// Which layer of the image, 0 the lowest.
    pub layer: u8,
    /// Index into [`Trace::paths`].
    pub path: u32,
    /// What was touched.
    pub touch: Touch,
    /// Where it came from.
    pub source: Source,
}

/// First touches of one run of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The image that ran.
    pub image: Digest,
    /// What was started: the startup file's program, or the trigger's name.
    pub entry_point: String,
    /// Processor architecture, as `uname -m` names it.
    pub architecture: String,
    /// How long the run took, in microseconds.
    pub duration_us: u64,
    /// Distinct paths, in order of appearance.
    pub paths: Vec<LayerPath>,
    /// Events, ascending in time.
    pub events: Vec<Event>,
}

impl Trace {
    /// Its bytes: header, names, paths (each as the length shared with the one before, and the rest), events (time
    /// since the one before, process, layer, path, touch, source).
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + 24 * self.paths.len() + 8 * self.events.len());
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.extend_from_slice(self.image.as_bytes());
        out.put_sized(self.entry_point.as_bytes());
        out.put_sized(self.architecture.as_bytes());
        out.put_varint(self.duration_us);
        out.put_varint(self.paths.len() as u64);
        let mut previous: &[u8] = b"";
        for path in &self.paths {
            put_path(&mut out, previous, path.as_bytes());
            previous = path.as_bytes();
        }
        out.put_varint(self.events.len() as u64);
        let mut time_us = 0;
        for event in &self.events {
            out.put_varint(event.time_us.saturating_sub(time_us));
            time_us = event.time_us.max(time_us);
            out.put_varint(event.process.into());
            out.push(event.layer);
            out.put_varint(event.path.into());
            out.put_varint(event.touch.to_number());
            out.push(match event.source {
                Source::Local => 0,
                Source::Prefetched => 1,
                Source::Missed => 2,
            });
        }
        out
    }

    /// Parses a trace.
    ///
    /// # Errors
    /// If the bytes are not one, or a bound is exceeded.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "trace";
        if bytes.len() > MAX_TRACE_LEN {
            return Err(FormatError::TooLarge { what, value: bytes.len() as u64, max: MAX_TRACE_LEN as u64 });
        }
        let mut reader = Reader::new(what, bytes);
        reader.header(MAGIC, VERSION)?;
        let image = reader.digest()?;
        let entry_point = text(what, reader.sized(MAX_ENTRY_POINT_LEN)?)?;
        let architecture = text(what, reader.sized(64)?)?;
        let duration_us = reader.varint(u64::MAX >> 8)?;
        let paths = read_paths(&mut reader)?;
        let count = reader.count(MAX_EVENTS as u64, 6)?;
        let mut events = Vec::with_capacity(count);
        let mut time_us = 0u64;
        for _ in 0..count {
            time_us = time_us.saturating_add(reader.varint(u64::MAX >> 8)?);
            let process = reader.varint(u16::MAX.into())? as u16;
            let layer = reader.u8()?;
            let path = reader.varint((paths.len() as u64).saturating_sub(1))? as u32;
            let touch = read_touch(&mut reader)?;
            let source = match reader.u8()? {
                0 => Source::Local,
                1 => Source::Prefetched,
                2 => Source::Missed,
                _ => return Err(FormatError::invalid(what, "the source is unknown")),
            };
            if paths.is_empty() {
                return Err(FormatError::invalid(what, "an event names a path"));
            }
            events.push(Event { time_us, process, layer, path, touch, source });
        }
        reader.finish()?;
        Ok(Self { image, entry_point, architecture, duration_us, paths, events })
    }
}

/// What stands in traces and models for an entry point that the image itself does not have: `other-` and 16 hex digits of
/// its BLAKE3. So launches of the same program are learned together, and no name of another image, or of a host, becomes
/// known. What has this form already stays.
pub fn foreign_entry_point(name: &str) -> String {
    const PREFIX: &str = "other-";
    let is_one = name.strip_prefix(PREFIX).is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if is_one {
        return name.to_owned();
    }
    let digest = Digest::of(&[b"turbo entry point ", name.as_bytes()].concat()).to_hex();
    format!("{PREFIX}{}", digest.get(..16).unwrap_or_default())
}

pub(crate) fn text(what: &'static str, bytes: &[u8]) -> Result<String, FormatError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| FormatError::invalid(what, "a name is not UTF-8"))
}

pub(crate) fn read_paths(reader: &mut Reader<'_>) -> Result<Vec<LayerPath>, FormatError> {
    let count = reader.count(MAX_PATHS as u64, 2)?;
    let mut paths: Vec<LayerPath> = Vec::with_capacity(count);
    let mut total = 0;
    for _ in 0..count {
        let path = read_path(reader, paths.last().map_or(b"", LayerPath::as_bytes))?;
        // Shared prefixes make a path cheap to write and dear to hold: bound what they unfold to.
        total += path.as_bytes().len();
        if total > 4 * MAX_TRACE_LEN {
            return Err(FormatError::TooLarge { what: "paths", value: total as u64, max: 4 * MAX_TRACE_LEN as u64 });
        }
        paths.push(path);
    }
    Ok(paths)
}

pub(crate) fn read_touch(reader: &mut Reader<'_>) -> Result<Touch, FormatError> {
    let number = reader.varint(u64::from(u32::MAX) + 1)?;
    Touch::from_number(number).ok_or(FormatError::invalid("touch", "a bucket is a 32-bit number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> Trace {
        let paths = ["usr/bin/python3", "usr/lib/libc.so.6"].map(|p| LayerPath::new(p).unwrap()).to_vec();
        let event = |time_us, path, touch, source| Event { time_us, process: 0, layer: 1, path, touch, source };
        let events = vec![
            event(10, 0, Touch::Meta, Source::Missed),
            event(10, 0, Touch::Data { bucket: 0 }, Source::Local),
            event(500, 1, Touch::Data { bucket: 70_000 }, Source::Prefetched),
        ];
        Trace { image: Digest::of(b"image"), entry_point: "python3".into(), architecture: "x86_64".into(), duration_us: 900, paths, events }
    }

    #[test]
    fn golden_trace() {
        let trace = sample();
        let bytes = trace.encode();
        assert_eq!(Trace::decode(&bytes), Ok(trace));
        assert_eq!(Digest::of(&bytes).to_hex(), "905c326b69466ac327cf2e411f967c902f020336fc6de362041f32e3a34171c5");
    }

    #[test]
    fn a_foreign_entry_point_is_known_by_its_hash_alone() {
        let foreign = foreign_entry_point("/home/ann/tool");
        assert!(foreign.starts_with("other-") && foreign.len() == 22 && !foreign.contains("ann"), "{foreign}");
        assert_eq!(foreign_entry_point(&foreign), foreign);
        assert_ne!(foreign_entry_point("other-x"), "other-x");
    }

    #[test]
    fn no_prefix_of_a_trace_is_a_trace() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(Trace::decode(&bytes[..len]).is_err());
        }
    }
}
