//! A worker: compresses frames, and reads, cuts and hashes batches, whatever there is.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, never, select};
use layer_format::Digest;

use super::batch::{Batch, Item, Span};
use super::compress::{Compressor, FrameJob};
use super::packer::{Event, present};
use super::sequencer::Settings;
use crate::capture::known::whole;
use crate::error::ImportError;
use crate::sink::ObjectSink;

/// Works until there can be no more frames.
pub(super) fn work(batches: Receiver<Batch>, frames: Receiver<FrameJob>, events: Sender<Event>, sink: &dyn ObjectSink, settings: &Settings<'_>) {
    let result = catch_unwind(AssertUnwindSafe(|| work_inner(batches, frames, &events, sink, settings)));
    let error = match result {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(_) => ImportError::Internal("a worker panicked".to_owned()),
    };
    // If no one listens, the import has failed already.
    let _ = events.send(Event::Failed(error));
}

fn work_inner(
    mut batches: Receiver<Batch>,
    frames: Receiver<FrameJob>,
    events: &Sender<Event>,
    sink: &dyn ObjectSink,
    settings: &Settings<'_>,
) -> Result<(), ImportError> {
    let mut compressor = Compressor::new(settings.level, sink.earlier())?;
    loop {
        // Frames first: they free memory, batches take it.
        let event = match frames.try_recv() {
            Ok(job) => Event::Frame(compressor.encode(job)),
            Err(_) => select! {
                recv(frames) -> job => match job {
                    Ok(job) => Event::Frame(compressor.encode(job)),
                    Err(_) => return Ok(()),
                },
                recv(batches) -> batch => match batch {
                    Ok(batch) => Event::Batch(hash(batch, sink, settings)?),
                    Err(_) => {
                        batches = never();
                        continue;
                    }
                },
            },
        };
        if events.send(event).is_err() {
            return Ok(());
        }
    }
}

/// Reads the files of the batch, names all its chunks, and asks the sink which it has.
fn hash(mut batch: Batch, sink: &dyn ObjectSink, settings: &Settings<'_>) -> Result<Batch, ImportError> {
    if batch.items.iter().any(|item| matches!(item, Item::Read(_) | Item::Known(_) | Item::Segment { .. })) {
        read(&mut batch, sink, settings)?;
    }
    let mut at = 0;
    for span in &batch.spans {
        if let Span::Data(len) = span {
            let end = at + *len as usize;
            batch.digests.push(Digest::of(&batch.bytes[at..end]));
            at = end;
        }
    }
    batch.present = present(sink, &batch.digests)?;
    Ok(batch)
}

fn read(batch: &mut Batch, sink: &dyn ObjectSink, settings: &Settings<'_>) -> Result<(), ImportError> {
    let items = std::mem::take(&mut batch.items);
    let recipes: Vec<_> = items
        .iter()
        .filter_map(|item| match item {
            Item::Known(known) => Some(&known.recipe),
            _ => None,
        })
        .collect();
    let mut whole = whole(&recipes, sink, settings.source)?.into_iter();
    let reader = &settings.reader;
    for item in items {
        match item {
            Item::Read(file) => reader.read_small(*file, batch)?,
            Item::Known(known) if whole.next() == Some(true) => batch.items.push(Item::Ready(known.into_begin())),
            Item::Known(known) => reader.read_small(known.file, batch)?,
            Item::Segment { file, index } => file.read(index, reader, batch)?,
            other => batch.items.push(other),
        }
    }
    Ok(())
}
