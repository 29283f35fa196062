//! The bytes of a timeline: varints, times as differences where they ascend.

use super::{
    Arrival, CLASSES, Class, Estimate, MAX_ESTIMATES, MAX_ITEMS, MAX_MARKS, MAX_NAME_LEN, MAX_PROCESSES, Mark, MarkKind, Process, Request, Timeline, Totals,
    Wait,
};
use crate::codec::{FormatError, Reader, Writer};
use crate::entry::put_path;
use crate::trace::{MAX_EVENTS, Trace, read_paths, read_touch, text};

const WHAT: &str = "timeline";
/// Largest time and number of bytes.
const MAX: u64 = u64::MAX >> 8;
const MARKS: [MarkKind; 4] = [MarkKind::Manifest, MarkKind::Mounted, MarkKind::Started, MarkKind::Exited];

impl Timeline {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for value in [self.total_us, self.trace_start_us, self.totals.received_bytes, self.totals.wasted_bytes, self.totals.local_bytes] {
            out.put_varint(value.min(MAX));
        }
        out.put_varint(self.marks.len() as u64);
        for mark in &self.marks {
            out.put_varint(mark.time_us.min(MAX));
            out.push(MARKS.iter().position(|kind| *kind == mark.kind).unwrap_or_default() as u8);
        }
        out.put_varint(self.processes.len() as u64);
        for process in &self.processes {
            out.put_varint(process.start_us.min(MAX));
            out.put_varint(process.parent.map_or(0, |parent| u64::from(parent) + 1));
            out.push(process.is_thread.into());
            out.put_sized(process.name.as_bytes());
        }
        out.put_varint(self.trace_processes.len() as u64);
        self.trace_processes.iter().for_each(|process| out.put_varint((*process).into()));
        out.put_varint(self.sizes.len() as u64);
        self.sizes.iter().for_each(|size| out.put_varint((*size).into()));
        out.put_varint(self.paths.len() as u64);
        let mut previous: &[u8] = b"";
        for path in &self.paths {
            put_path(out, previous, path.as_bytes());
            previous = path.as_bytes();
        }
        out.put_varint(self.waits.len() as u64);
        for wait in &self.waits {
            out.put_varint(wait.start_us.min(MAX));
            out.put_varint(wait.duration_us.min(MAX));
            out.put_varint(wait.process.map_or(0, |process| u64::from(process) + 1));
            out.put_varint(wait.path.map_or(0, |path| u64::from(path) + 1));
            out.put_varint(wait.touch.to_number());
            out.put_varint(wait.objects.into());
            out.push(wait.is_promoted.into());
        }
        out.put_varint(self.requests.len() as u64);
        for request in &self.requests {
            out.put_varint(request.start_us.min(MAX));
            out.put_varint(request.first_byte_us.map_or(0, |time| time.min(MAX - 1) + 1));
            out.put_varint(request.duration_us.min(MAX));
            put_class(out, request.class);
            out.put_varint(request.bytes.min(MAX));
            out.put_varint(request.objects.into());
        }
        out.put_varint(self.arrivals.len() as u64);
        let mut slot = 0;
        for arrival in &self.arrivals {
            out.put_varint(arrival.slot.saturating_sub(slot).into());
            slot = arrival.slot.max(slot);
            put_class(out, arrival.class);
            out.put_varint(arrival.bytes.min(MAX));
        }
        out.put_varint(self.estimates.len() as u64);
        for estimate in &self.estimates {
            for value in [estimate.time_us, estimate.round_trip_us, estimate.bytes_per_s] {
                out.put_varint(value.min(MAX));
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>, trace: &Trace) -> Result<Self, FormatError> {
        let (total_us, trace_start_us) = (reader.varint(MAX)?, reader.varint(MAX)?);
        let totals = Totals { received_bytes: reader.varint(MAX)?, wasted_bytes: reader.varint(MAX)?, local_bytes: reader.varint(MAX)? };
        let marks = list(reader, MAX_MARKS, 2, read_mark)?;
        let mut processes: Vec<Process> = Vec::new();
        for at in 0..reader.count(MAX_PROCESSES as u64, 4)? {
            let start_us = reader.varint(MAX)?;
            // A parent comes before its children.
            let parent = index(reader, at)?;
            let is_thread = read_bool(reader)?;
            if is_thread && parent.is_none() {
                return Err(FormatError::invalid(WHAT, "a thread belongs to a process"));
            }
            let name = text(WHAT, reader.sized(MAX_NAME_LEN)?)?;
            processes.push(Process { start_us, parent: parent.map(|parent| parent as u16), is_thread, name });
        }
        let trace_processes = list(reader, MAX_PROCESSES, 1, |reader| {
            let last = processes.len().checked_sub(1).ok_or(FormatError::invalid(WHAT, "the trace's processes are known"))?;
            reader.varint(last as u64).map(|process| process as u16)
        })?;
        let sizes = list(reader, MAX_EVENTS, 1, |reader| reader.varint(u32::MAX.into()).map(|size| size as u32))?;
        if sizes.len() > trace.events.len() {
            return Err(FormatError::invalid(WHAT, "a size belongs to an event"));
        }
        let paths = read_paths(reader)?;
        let waits = list(reader, MAX_ITEMS, 7, |reader| {
            let (start_us, duration_us) = (reader.varint(MAX)?, reader.varint(MAX)?);
            let process = index(reader, processes.len())?.map(|process| process as u16);
            let path = index(reader, paths.len())?.map(|path| path as u32);
            let touch = read_touch(reader)?;
            Ok(Wait { start_us, duration_us, process, path, touch, objects: reader.varint(u32::MAX.into())? as u32, is_promoted: read_bool(reader)? })
        })?;
        let requests = list(reader, MAX_ITEMS, 6, read_request)?;
        let mut slot = 0u32;
        let arrivals = list(reader, MAX_ITEMS, 3, |reader| {
            let step = reader.varint(u32::MAX.into())? as u32;
            slot = slot.checked_add(step).ok_or(FormatError::invalid(WHAT, "a slot is a 32-bit number"))?;
            Ok(Arrival { slot, class: read_class(reader)?, bytes: reader.varint(MAX)? })
        })?;
        let estimates = list(reader, MAX_ESTIMATES, 3, |reader| {
            Ok(Estimate { time_us: reader.varint(MAX)?, round_trip_us: reader.varint(MAX)?, bytes_per_s: reader.varint(MAX)? })
        })?;
        Ok(Self { total_us, trace_start_us, totals, marks, processes, trace_processes, sizes, paths, waits, requests, arrivals, estimates })
    }
}

fn list<T>(
    reader: &mut Reader<'_>,
    max: usize,
    min_len: usize,
    mut each: impl FnMut(&mut Reader<'_>) -> Result<T, FormatError>,
) -> Result<Vec<T>, FormatError> {
    let count = reader.count(max as u64, min_len)?;
    (0..count).map(|_| each(reader)).collect()
}

/// 0 for nothing, else 1 + an index below `len`.
fn index(reader: &mut Reader<'_>, len: usize) -> Result<Option<u64>, FormatError> {
    Ok(reader.varint(len as u64)?.checked_sub(1))
}

fn read_bool(reader: &mut Reader<'_>) -> Result<bool, FormatError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(FormatError::invalid(WHAT, "yes or no is 1 or 0")),
    }
}

fn read_mark(reader: &mut Reader<'_>) -> Result<Mark, FormatError> {
    let time_us = reader.varint(MAX)?;
    let kind = MARKS.get(usize::from(reader.u8()?)).ok_or(FormatError::invalid(WHAT, "the mark is unknown"))?;
    Ok(Mark { time_us, kind: *kind })
}

fn read_request(reader: &mut Reader<'_>) -> Result<Request, FormatError> {
    Ok(Request {
        start_us: reader.varint(MAX)?,
        first_byte_us: reader.varint(MAX)?.checked_sub(1),
        duration_us: reader.varint(MAX)?,
        class: read_class(reader)?,
        bytes: reader.varint(MAX)?,
        objects: reader.varint(u32::MAX.into())? as u32,
    })
}

fn put_class(out: &mut Vec<u8>, class: Class) {
    out.push(CLASSES.iter().position(|one| *one == class).unwrap_or_default() as u8);
}

fn read_class(reader: &mut Reader<'_>) -> Result<Class, FormatError> {
    CLASSES.get(usize::from(reader.u8()?)).copied().ok_or(FormatError::invalid(WHAT, "the class is unknown"))
}
