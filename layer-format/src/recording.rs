//! A recording: the trace of one run, and beside it what the run waited for and what arrived when.
//!
//! The trace is learned from and may travel; the [`Timeline`] is for whoever looks at one launch (`turbo trace show`)
//! and never leaves the machine by itself: it names processes and tells of the link. A file that holds a bare trace is
//! a recording without a timeline. All times are microseconds since turbo was started, except those inside the trace,
//! which count from [`Timeline::trace_start_us`].

mod timeline;

use crate::codec::{FormatError, Reader, Writer};
use crate::path::LayerPath;
use crate::trace::{MAX_TRACE_LEN, Touch, Trace};

const MAGIC: &[u8; 4] = b"TBRC";
const VERSION: u8 = 1;

/// Length of the slots in which arrivals are summed, in microseconds.
pub const SLOT_US: u64 = 20_000;
/// Most bytes of an encoded recording.
pub const MAX_RECORDING_LEN: usize = 64 << 20;
/// Most waits of a timeline, and most requests, arrivals, and paths that were waited for; a recorder stops there.
pub const MAX_ITEMS: usize = 1 << 17;
/// Most processes and threads of a timeline.
pub const MAX_PROCESSES: usize = 1 << 12;
/// Most estimates of the link.
pub const MAX_ESTIMATES: usize = 1 << 14;
/// Most marks.
pub const MAX_MARKS: usize = 64;
/// Most bytes of a process's name.
pub const MAX_NAME_LEN: usize = 255;

/// What one run touched, and how it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// First touches, in order.
    pub trace: Trace,
    /// When what was waited for, requested and received; `None` of a bare trace.
    pub timeline: Option<Timeline>,
}

/// How a run went, in time. Lists ascend in time unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// From the start of turbo to the end of the application.
    pub total_us: u64,
    /// When the trace's times begin.
    pub trace_start_us: u64,
    /// What the run cost in bytes.
    pub totals: Totals,
    /// Moments with a name.
    pub marks: Vec<Mark>,
    /// Processes and threads that read from the images, in order of appearance.
    pub processes: Vec<Process>,
    /// For each process number of the trace its index in `processes`.
    pub trace_processes: Vec<u16>,
    /// For each event of the trace about how many uncompressed bytes it needed; 0 if it is not known.
    pub sizes: Vec<u32>,
    /// Distinct paths that were waited for.
    pub paths: Vec<LayerPath>,
    /// Waits for the network, in the order in which they ended.
    pub waits: Vec<Wait>,
    /// Requests, in the order in which they ended.
    pub requests: Vec<Request>,
    /// Bytes that arrived, summed by slot and class.
    pub arrivals: Vec<Arrival>,
    /// What was known of the link, and when.
    pub estimates: Vec<Estimate>,
}

/// What a run cost in bytes, uncompressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Of all objects that arrived.
    pub received_bytes: u64,
    /// Of those that were of no use.
    pub wasted_bytes: u64,
    /// Of objects used that were local before.
    pub local_bytes: u64,
}

/// A moment with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When.
    pub time_us: u64,
    /// What.
    pub kind: MarkKind,
}

/// What happened at a [`Mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MarkKind {
    /// The image's manifests were here.
    Manifest,
    /// The filesystem was mounted.
    Mounted,
    /// The application was started.
    Started,
    /// The application ended.
    Exited,
}

/// A process, or a thread of one, that read from the images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// When it first touched something.
    pub start_us: u64,
    /// Index of the process that started it, or whose thread it is, if that one read from the images, too.
    pub parent: Option<u16>,
    /// Whether it is a thread of `parent`.
    pub is_thread: bool,
    /// Base name of its program.
    pub name: String,
}

/// Why bytes were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The launch request: what the registry predicts.
    Launch,
    /// Someone waited for it.
    Demand,
    /// Ahead of use, as the model or the place of a miss says.
    Prefetch,
    /// To complete the image.
    Background,
}

/// All classes.
pub const CLASSES: [Class; 4] = [Class::Launch, Class::Demand, Class::Prefetch, Class::Background];

/// A thread waited for the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Since when.
    pub start_us: u64,
    /// How long.
    pub duration_us: u64,
    /// Which one, as an index into [`Timeline::processes`]; `None` before there is any.
    pub process: Option<u16>,
    /// Index into [`Timeline::paths`]; `None` for a manifest.
    pub path: Option<u32>,
    /// What of the path.
    pub touch: Touch,
    /// Number of objects.
    pub objects: u32,
    /// All of them had been asked for, or were announced, before.
    pub is_promoted: bool,
}

/// A request for objects, or the launch request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it was made.
    pub start_us: u64,
    /// When the first record of the answer came, after the start; `None` if none did.
    pub first_byte_us: Option<u64>,
    /// When it ended, after the start.
    pub duration_us: u64,
    /// Why it was made.
    pub class: Class,
    /// Bytes of the answer.
    pub bytes: u64,
    /// Number of objects asked for; 0 of the launch request.
    pub objects: u32,
}

/// Bytes that arrived within a slot of [`SLOT_US`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Number of the slot.
    pub slot: u32,
    /// Why they were asked for.
    pub class: Class,
    /// How many.
    pub bytes: u64,
}

/// The link, as it was measured at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// When.
    pub time_us: u64,
    /// Round trip, in microseconds.
    pub round_trip_us: u64,
    /// Delivery rate in bytes a second; 0 as long as it was not measured.
    pub bytes_per_s: u64,
}

impl Recording {
    /// Its bytes: those of the bare trace if there is no timeline.
    pub fn encode(&self) -> Vec<u8> {
        let trace = self.trace.encode();
        let Some(timeline) = &self.timeline else { return trace };
        let mut out = Vec::with_capacity(trace.len() + 4096);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.put_sized(&trace);
        timeline.encode(&mut out);
        out
    }

    /// Parses a recording, or a bare trace.
    ///
    /// # Errors
    /// If the bytes are neither, or a bound is exceeded.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "recording";
        if bytes.len() > MAX_RECORDING_LEN {
            return Err(FormatError::TooLarge { what, value: bytes.len() as u64, max: MAX_RECORDING_LEN as u64 });
        }
        if !bytes.starts_with(MAGIC) {
            return Trace::decode(bytes).map(|trace| Self { trace, timeline: None });
        }
        let mut reader = Reader::new(what, bytes);
        reader.header(MAGIC, VERSION)?;
        let trace = Trace::decode(reader.sized(MAX_TRACE_LEN)?)?;
        let timeline = Timeline::decode(&mut reader, &trace)?;
        reader.finish()?;
        Ok(Self { trace, timeline: Some(timeline) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::trace::{Event, Source};

    fn sample() -> Recording {
        let path = |text: &str| LayerPath::new(text).unwrap();
        let event = |time_us, touch, source| Event { time_us, process: 0, layer: 0, path: 0, touch, source };
        let events = vec![event(5, Touch::Meta, Source::Missed), event(9, Touch::Data { bucket: 300 }, Source::Prefetched)];
        let trace = Trace {
            image: Digest::of(b"sample"),
            entry_point: "app".into(),
            architecture: "x86_64".into(),
            duration_us: 70,
            paths: vec![path("bin/app")],
            events,
        };
        let process = |start_us, parent, is_thread, name: &str| Process { start_us, parent, is_thread, name: name.into() };
        let timeline = Timeline {
            total_us: 1_000_000,
            trace_start_us: 200_000,
            totals: Totals { received_bytes: 5000, wasted_bytes: 100, local_bytes: 7 },
            marks: vec![Mark { time_us: 200_000, kind: MarkKind::Manifest }, Mark { time_us: 250_000, kind: MarkKind::Mounted }],
            processes: vec![process(210_000, None, false, "sh"), process(300_000, Some(0), false, "é"), process(310_000, Some(1), true, "")],
            trace_processes: vec![1],
            sizes: vec![4096, 0],
            paths: vec![path("bin/app")],
            waits: vec![
                Wait { start_us: 1000, duration_us: 199_000, process: None, path: None, touch: Touch::Meta, objects: 1, is_promoted: false },
                Wait { start_us: 900, duration_us: 210_000, process: Some(2), path: Some(0), touch: Touch::Data { bucket: 3 }, objects: 2, is_promoted: true },
            ],
            requests: vec![Request { start_us: 900, first_byte_us: Some(100_000), duration_us: 200_000, class: Class::Launch, bytes: 5000, objects: 0 }],
            arrivals: vec![Arrival { slot: 5, class: Class::Launch, bytes: 4000 }, Arrival { slot: 5, class: Class::Demand, bytes: 1000 }],
            estimates: vec![Estimate { time_us: 100_900, round_trip_us: 100_000, bytes_per_s: 0 }],
        };
        Recording { trace, timeline: Some(timeline) }
    }

    #[test]
    fn golden_recording() {
        let recording = sample();
        let bytes = recording.encode();
        assert_eq!(Recording::decode(&bytes), Ok(recording));
        assert_eq!(Digest::of(&bytes).to_hex(), "690dd3ad81f4a2bfb51bd3baedef8548c720645d1a46383f2743a19eabce1ace");
    }

    #[test]
    fn a_bare_trace_is_a_recording_and_gives_the_same_bytes() {
        let bytes = sample().trace.encode();
        let recording = Recording::decode(&bytes).unwrap();
        assert_eq!((recording.timeline.is_none(), recording.encode()), (true, bytes));
    }

    #[test]
    fn no_prefix_of_a_recording_is_a_recording() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(Recording::decode(&bytes[..len]).is_err(), "{len}");
        }
        assert!(Recording::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn an_index_without_a_thing_is_refused() {
        let broken: [fn(&mut Timeline); 6] = [
            |timeline| timeline.processes[1].parent = Some(1),
            |timeline| timeline.processes[0].is_thread = true,
            |timeline| timeline.trace_processes[0] = 3,
            |timeline| timeline.waits[1].process = Some(3),
            |timeline| timeline.waits[1].path = Some(1),
            |timeline| timeline.sizes.push(1),
        ];
        for (at, damage) in broken.iter().enumerate() {
            let mut recording = sample();
            damage(recording.timeline.as_mut().unwrap());
            assert!(Recording::decode(&recording.encode()).is_err(), "{at}");
        }
    }
}
