//! A worker: compresses frames, and reads, cuts and hashes batches, whatever there is.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Receiver, Sender, never, select};
use layer_format::Digest;

use super::batch::{Batch, Item, Span};
use super::compress::{Compressor, FrameJob};
use super::packer::{Event, present};
use crate::error::ImportError;
use crate::read::FileReader;
use crate::sink::ObjectSink;

/// Works until there can be no more frames.
pub(super) fn work(batches: Receiver<Batch>, frames: Receiver<FrameJob>, events: Sender<Event>, sink: &dyn ObjectSink, reader: &FileReader, level: i32) {
    let result = catch_unwind(AssertUnwindSafe(|| work_inner(batches, frames, &events, sink, reader, level)));
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
    reader: &FileReader,
    level: i32,
) -> Result<(), ImportError> {
    let mut compressor = Compressor::new(level)?;
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
                    Ok(batch) => Event::Batch(hash(batch, sink, reader)?),
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
fn hash(mut batch: Batch, sink: &dyn ObjectSink, reader: &FileReader) -> Result<Batch, ImportError> {
    if batch.items.iter().any(|item| matches!(item, Item::Read(_) | Item::Segment { .. })) {
        read(&mut batch, reader)?;
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

fn read(batch: &mut Batch, reader: &FileReader) -> Result<(), ImportError> {
    let items = std::mem::take(&mut batch.items);
    for item in items {
        match item {
            Item::Read(file) => reader.read_small(*file, batch)?,
            Item::Segment { file, index } => file.read(index, reader, batch)?,
            other => batch.items.push(other),
        }
    }
    Ok(())
}
