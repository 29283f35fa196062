//! Object streams: records in, compressed bytes out to a client that may be slow or gone.
//!
//! A stream is flushed whenever nothing waits to be sent, so that a waiting client gets each object as soon as it is
//! written; while the client is behind, only every [`FLUSH_LEN`] bytes, since each flush costs some compression.
//! Objects are hashed just before they are written: bad bytes are never sent, and what is damaged is reported missing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use layer_format::Digest;
use layer_format::api::{RECORD_HEADER_LEN, Record};
use layer_format::frame::{Codec, Frame, FrameBuilder, FrameHeader};

use super::encode::{Encoder, Window};
use super::frames::ReadError;
use super::launches::Launch;
use super::level::{LevelControl, Sample};
use super::objects::{Objects, report, verified};
use super::outlet::Outlet;
use crate::db::namespace::NamespaceId;
use crate::db::object::{FramePlace, Location};
use crate::metrics::Metrics;

/// Uncompressed bytes after which a stream is flushed in any case.
const FLUSH_LEN: usize = 32 << 10;
/// Frames that are read ahead.
const READ_AHEAD: usize = 8;
/// Objects that are looked up at a time: few at first, so that the first bytes leave at once.
const FIRST_LOOKUP: usize = 256;
const LOOKUP: usize = 4096;

/// Something to send.
#[derive(Debug)]
pub(crate) enum Item {
    /// Objects of a frame, to be verified.
    Slots { frame: Arc<Frame>, slots: Vec<(Digest, Location)> },
    /// An encoded frame.
    Frame(Bytes),
    /// Objects that are not there.
    Missing(Vec<Digest>),
    /// The image manifest.
    Image(Vec<u8>),
    /// A verified object.
    Object(Vec<u8>),
    /// A model.
    Model(Vec<u8>),
    /// Prefixes of objects that will follow.
    Plan(Vec<u8>),
}

/// Why a stream ends before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The client is gone, or takes nothing.
    #[error("the client is gone")]
    Gone,
    /// Compressing failed.
    #[error("could not compress")]
    Encode(#[source] std::io::Error),
    /// An object could not be read, for now.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<crate::db::DbError> for StreamError {
    fn from(error: crate::db::DbError) -> Self {
        Self::Read(error.into())
    }
}

/// The writing end of an answer. Dropped before [`StreamWriter::finish`], it cuts the answer.
pub(crate) struct StreamWriter {
    /// Away while it encodes.
    encoder: Option<Encoder>,
    level: LevelControl,
    window: Window,
    /// The level to go on with.
    next_level: Option<i32>,
    outlet: Arc<Outlet>,
    /// Uncompressed bytes since the last flush.
    unflushed: usize,
    /// When something was written last.
    written: Instant,
    stall_timeout: Duration,
    metrics: Arc<Metrics>,
    is_finished: bool,
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if !self.is_finished {
            self.outlet.cut();
        }
    }
}

impl StreamWriter {
    /// A stream into this outlet.
    pub(crate) fn new(encoder: Encoder, window: Window, level: LevelControl, outlet: Arc<Outlet>, stall_timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            encoder: Some(encoder),
            level,
            window,
            next_level: None,
            outlet,
            unflushed: 0,
            written: Instant::now(),
            stall_timeout,
            metrics,
            is_finished: false,
        }
    }

    /// Writes items. If nothing waits to be sent, or `flush` is set, the client sees all of them at once.
    pub(crate) async fn write(&mut self, items: Vec<Item>, flush: bool) -> Result<(), StreamError> {
        let flush = flush || self.outlet.is_empty();
        let mut encoder = self.encoder.take().ok_or(StreamError::Gone)?;
        let mut unflushed = self.unflushed;
        let (next_level, window) = (self.next_level.take(), self.window);
        let work = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let mut out = Vec::new();
            let mut counts = Counts::default();
            if let Some(level) = next_level {
                encoder.restart(level, window, &mut out)?;
                unflushed = 0;
            }
            for item in items {
                put(item, &mut encoder, &mut out, &mut unflushed, &mut counts)?;
            }
            if flush && unflushed > 0 {
                encoder.flush(&mut out)?;
                unflushed = 0;
            }
            Ok((encoder, out, unflushed, counts, begun.elapsed()))
        });
        let (encoder, out, unflushed, counts, encoding) = work.await.map_err(|_| StreamError::Gone)?.map_err(StreamError::Encode)?;
        self.encoder = Some(encoder);
        self.unflushed = unflushed;
        self.metrics.objects_sent.fetch_add(counts.sent, Ordering::Relaxed);
        self.metrics.objects_damaged.fetch_add(counts.damaged, Ordering::Relaxed);
        let starving = if self.outlet.is_empty() { encoding } else { Duration::ZERO };
        let waiting = self.send(out).await?;
        let elapsed = std::mem::replace(&mut self.written, Instant::now()).elapsed();
        if let Some(level) = self.level.observe(Sample { plain: counts.plain, elapsed, encoding, starving, waiting }) {
            tracing::debug!(level, "an answer goes on with compression level {level}");
            self.next_level = Some(level);
        }
        Ok(())
    }

    /// Ends the stream; `text` says why it ends early, or is empty.
    pub(crate) async fn finish(mut self, text: &str) -> Result<(), StreamError> {
        let mut encoder = self.encoder.take().ok_or(StreamError::Gone)?;
        let (mut record, mut out) = (Vec::new(), Vec::new());
        Record::End(text.as_bytes()).encode(&mut record);
        let encoded = encoder.write(&record, &mut out).and_then(|()| encoder.finish(&mut out));
        encoded.map_err(StreamError::Encode)?;
        self.send(out).await?;
        self.is_finished = true;
        self.outlet.finish();
        Ok(())
    }

    /// Returns how long it had to wait.
    async fn send(&mut self, out: Vec<u8>) -> Result<Duration, StreamError> {
        if out.is_empty() {
            return Ok(Duration::ZERO);
        }
        match tokio::time::timeout(self.stall_timeout, self.outlet.push(out.into())).await {
            Ok(Ok(waited)) => Ok(waited),
            _ => Err(StreamError::Gone),
        }
    }
}

#[derive(Default)]
struct Counts {
    /// Uncompressed bytes.
    plain: u64,
    sent: u64,
    damaged: u64,
}

fn put(item: Item, encoder: &mut Encoder, out: &mut Vec<u8>, unflushed: &mut usize, counts: &mut Counts) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(RECORD_HEADER_LEN + Digest::LEN);
    let mut plain = 0;
    let mut record = |record: Record<'_>| -> std::io::Result<()> {
        head.clear();
        let payload = match record {
            Record::Object(bytes) | Record::Frame(bytes) | Record::Image(bytes) | Record::Model(bytes) | Record::Plan(bytes) => bytes,
            Record::Missing(_) | Record::End(_) => &[],
        };
        match payload.len() {
            0 => record.encode(&mut head),
            len => {
                // The header alone, so that a payload is not copied once more.
                empty_of_kind(&record).encode(&mut head);
                head[1..].copy_from_slice(&(len as u32).to_le_bytes());
            }
        }
        encoder.write(&head, out)?;
        encoder.write(payload, out)?;
        *unflushed += head.len() + payload.len();
        plain += (head.len() + payload.len()) as u64;
        if *unflushed >= FLUSH_LEN {
            encoder.flush(out)?;
            *unflushed = 0;
        }
        Ok(())
    };
    match item {
        Item::Slots { frame, slots } => {
            for (digest, location) in slots {
                match verified(&frame, location.slot, &digest) {
                    Some(bytes) => {
                        counts.sent += 1;
                        record(Record::Object(bytes))?;
                    }
                    None => {
                        counts.damaged += 1;
                        report(&digest, &location, &ReadError::Damaged(layer_format::FormatError::DigestMismatch { what: "object" }));
                        record(Record::Missing(digest))?;
                    }
                }
            }
        }
        Item::Missing(digests) => digests.into_iter().try_for_each(|digest| record(Record::Missing(digest)))?,
        Item::Frame(bytes) => {
            counts.sent += FrameHeader::decode(&bytes).map_or(0, |head| head.count as u64);
            record(Record::Frame(&bytes))?;
        }
        Item::Object(bytes) => {
            counts.sent += 1;
            record(Record::Object(&bytes))?;
        }
        Item::Image(bytes) => record(Record::Image(&bytes))?,
        Item::Model(bytes) => record(Record::Model(&bytes))?,
        Item::Plan(bytes) => record(Record::Plan(&bytes))?,
    }
    counts.plain += plain;
    Ok(())
}

fn empty_of_kind<'a>(record: &Record<'_>) -> Record<'a> {
    match record {
        Record::Object(_) => Record::Object(&[]),
        Record::Frame(_) => Record::Frame(&[]),
        Record::Missing(digest) => Record::Missing(*digest),
        Record::Image(_) => Record::Image(&[]),
        Record::Model(_) => Record::Model(&[]),
        Record::Plan(_) => Record::Plan(&[]),
        Record::End(_) => Record::End(&[]),
    }
}

/// What is read together.
#[derive(Debug)]
pub(super) enum Unit {
    Missing(Vec<Digest>),
    Slots(FramePlace, Vec<(Digest, Location)>),
}

/// Groups neighbours in the order asked that lie in one frame.
fn units(wanted: impl IntoIterator<Item = (Digest, Option<Location>)>) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for (digest, location) in wanted {
        match (units.last_mut(), location) {
            (Some(Unit::Missing(missing)), None) => missing.push(digest),
            (_, None) => units.push(Unit::Missing(vec![digest])),
            (Some(Unit::Slots(place, slots)), Some(location)) if *place == location.frame => slots.push((digest, location)),
            (_, Some(location)) => units.push(Unit::Slots(location.frame, vec![(digest, location)])),
        }
    }
    units
}

/// The slots of a frame that cannot be read are missing; if the storage fails, the stream ends.
fn lost(slots: &[(Digest, Location)], error: ReadError) -> Result<Item, ReadError> {
    if !error.is_loss() {
        return Err(error);
    }
    for (digest, location) in slots {
        report(digest, location, &error);
    }
    Ok(Item::Missing(slots.iter().map(|(digest, _)| *digest).collect()))
}

async fn load(objects: &Objects, unit: Unit) -> Result<Item, ReadError> {
    match unit {
        Unit::Missing(digests) => Ok(Item::Missing(digests)),
        Unit::Slots(place, slots) => match objects.frames.frame(place).await {
            Ok(frame) => Ok(Item::Slots { frame, slots }),
            Err(error) => lost(&slots, error),
        },
    }
}

/// Reads ahead in a task of its own. While a stream waits for its client nobody polls what it reads ahead: half done, it
/// would hold what others wait for, such as a frame that is being loaded or a database connection.
pub(super) async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T, ReadError>> + Send + 'static) -> Result<T, ReadError> {
    tokio::spawn(work).await.unwrap_or(Err(ReadError::Cancelled))
}

/// Looks up a part of what is asked for.
async fn lookup(objects: Objects, namespace: Option<NamespaceId>, part: Vec<Digest>) -> Result<Vec<Unit>, ReadError> {
    let found = match namespace {
        Some(namespace) => objects.locate(namespace, &part).await?,
        None => HashMap::new(),
    };
    Ok(units(part.into_iter().map(|digest| (digest, found.get(&digest).copied()))))
}

/// Sends objects in the order asked.
pub(crate) async fn send_objects(writer: &mut StreamWriter, objects: &Objects, namespace: Option<NamespaceId>, digests: &[Digest]) -> Result<(), StreamError> {
    let (first, rest) = digests.split_at(digests.len().min(FIRST_LOOKUP));
    let parts: Vec<Vec<Digest>> = std::iter::once(first).chain(rest.chunks(LOOKUP)).map(<[Digest]>::to_vec).collect();
    let for_lookup = objects.clone();
    let units = stream::iter(parts).map(move |part| detached(lookup(for_lookup.clone(), namespace, part))).buffered(2);
    let units = units.map_ok(|units| stream::iter(units.into_iter().map(Ok::<_, ReadError>))).try_flatten();
    let for_load = objects.clone();
    let mut items = units.map(move |unit| detached(load_result(for_load.clone(), unit))).buffered(READ_AHEAD);
    while let Some(item) = items.next().await {
        writer.write(vec![item?], false).await?;
    }
    Ok(())
}

async fn load_result(objects: Objects, unit: Result<Unit, ReadError>) -> Result<Item, ReadError> {
    load(&objects, unit?).await
}

/// Sends located objects of a launch, leaving out what the client has asked for otherwise meanwhile.
pub(crate) async fn send_launch(
    writer: &mut StreamWriter,
    objects: &Objects,
    launch: &Arc<Launch>,
    wanted: Vec<(Digest, Location)>,
) -> Result<(), StreamError> {
    let units = units(wanted.into_iter().map(|(digest, location)| (digest, Some(location))));
    let (for_load, of_launch) = (objects.clone(), Arc::clone(launch));
    let mut items = stream::iter(units).map(move |unit| detached(load_wanted(for_load.clone(), Arc::clone(&of_launch), unit))).buffered(READ_AHEAD);
    while let Some(item) = items.next().await {
        let item = match item? {
            Some(Item::Slots { frame, slots }) => Item::Slots { frame, slots: launch.still_wanted(slots) },
            Some(item) => item,
            None => continue,
        };
        writer.write(vec![item], false).await?;
    }
    Ok(())
}

async fn load_wanted(objects: Objects, launch: Arc<Launch>, unit: Unit) -> Result<Option<Item>, ReadError> {
    let unit = match unit {
        Unit::Slots(place, slots) => Unit::Slots(place, launch.still_wanted(slots)),
        unit => unit,
    };
    match &unit {
        Unit::Slots(_, slots) if slots.is_empty() => Ok(None),
        _ => load(&objects, unit).await.map(Some),
    }
}

/// Sends objects as frames, each frame where its first object is due. A frame of which all objects are asked for goes
/// out as it is stored; of another one, those that are asked for, packed again.
pub(crate) async fn send_frames(
    writer: &mut StreamWriter,
    objects: &Objects,
    namespace: Option<NamespaceId>,
    digests: &[Digest],
    level: i32,
) -> Result<(), StreamError> {
    let found = match namespace {
        Some(namespace) => objects.locate(namespace, digests).await?,
        None => HashMap::new(),
    };
    let order = by_frame(found, digests);
    let for_load = objects.clone();
    let mut items = stream::iter(order).map(move |unit| detached(load_frame(for_load.clone(), unit, level))).buffered(READ_AHEAD);
    while let Some(item) = items.next().await {
        writer.write(item?, false).await?;
    }
    Ok(())
}

/// What is read together, in the order asked: each frame where its first object is due, with all that is asked for of it.
pub(super) fn by_frame(found: HashMap<Digest, Location>, digests: &[Digest]) -> Vec<Unit> {
    let mut slots_of = HashMap::<FramePlace, Vec<(Digest, Location)>>::new();
    let mut order: Vec<Unit> = Vec::new();
    let mut seen = HashSet::new();
    for digest in digests.iter().filter(|digest| seen.insert(**digest)) {
        match found.get(digest) {
            None => order.push(Unit::Missing(vec![*digest])),
            Some(location) => {
                let slots = slots_of.entry(location.frame).or_default();
                if slots.is_empty() {
                    order.push(Unit::Slots(location.frame, Vec::new()));
                }
                slots.push((*digest, *location));
            }
        }
    }
    for unit in &mut order {
        if let Unit::Slots(place, slots) = unit {
            *slots = slots_of.remove(place).unwrap_or_default();
        }
    }
    order
}

pub(super) async fn load_frame(objects: Objects, unit: Unit, level: i32) -> Result<Vec<Item>, ReadError> {
    let (place, slots) = match unit {
        Unit::Missing(digests) => return Ok(vec![Item::Missing(digests)]),
        Unit::Slots(place, slots) => (place, slots),
    };
    let encoded = match objects.frames.encoded(place).await {
        Ok(encoded) => encoded,
        Err(error) => return lost(&slots, error).map(|item| vec![item]),
    };
    match encoded {
        Some(encoded) if FrameHeader::decode(&encoded).is_ok_and(|head| head.count == slots.len() && head.codec != Codec::Delta) => {
            Ok(vec![Item::Frame(encoded)])
        }
        // Not all of it, damaged, or against something that the client may not have: what of it is sound.
        _ => match objects.frames.frame(place).await {
            Ok(frame) => tokio::task::spawn_blocking(move || repack(&frame, &slots, level)).await.map_err(|_| ReadError::Cancelled),
            Err(error) => lost(&slots, error).map(|item| vec![item]),
        },
    }
}

/// A frame of the objects in these slots, without those that are damaged.
pub(super) fn repack(frame: &Frame, slots: &[(Digest, Location)], level: i32) -> Vec<Item> {
    let mut builder = FrameBuilder::new();
    let mut missing = Vec::new();
    for (digest, location) in slots {
        match verified(frame, location.slot, digest) {
            Some(bytes) if builder.push(bytes).is_ok() => {}
            _ => {
                report(digest, location, &ReadError::Damaged(layer_format::FormatError::DigestMismatch { what: "object" }));
                missing.push(*digest);
            }
        }
    }
    let mut items = Vec::new();
    if !builder.is_empty() {
        items.push(Item::Frame(builder.finish(zstd::bulk::Compressor::new(level).ok().as_mut()).into()));
    }
    if !missing.is_empty() {
        items.push(Item::Missing(missing));
    }
    items
}
