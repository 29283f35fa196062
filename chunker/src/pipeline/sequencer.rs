//! Starts the threads, and takes hashed batches in order: the one place where order matters.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use crossbeam_channel::unbounded;
use layer_format::chunk::ChunkRef;
use layer_format::entry::Kind;
use layer_format::recipe::Extent;
use layer_format::tree::TreeRoot;

use super::batch::{Batch, Begin, Item, Span};
use super::feed::Feed;
use super::packer::{Event, Packer};
use super::{BATCH_LEN, worker};
use crate::error::ImportError;
use crate::import::{Imported, Skipped};
use crate::progress::Progress;
use crate::read::FileReader;
use crate::recipe_builder::RecipeBuilder;
use crate::sink::ObjectSink;
use crate::source::ObjectSource;

/// Turns finished entries, in the producer's order, into a tree.
pub(crate) trait Collect {
    /// The next entry, complete but for hard links.
    fn entry(&mut self, begin: Begin, packer: &mut Packer<'_>) -> Result<(), ImportError>;

    /// The tree.
    fn finish(self, packer: &mut Packer<'_>) -> Result<TreeRoot, ImportError>;
}

/// How to run.
pub(crate) struct Settings<'a> {
    /// Workers, `1..`.
    pub(crate) threads: usize,
    /// Level of zstd, checked.
    pub(crate) level: i32,
    pub(crate) reader: FileReader,
    /// Where recipe nodes of known files are read from, if there are known files.
    pub(crate) source: Option<&'a dyn ObjectSource>,
}

/// Runs an import: `produce` describes the tree, `collector` builds it.
pub(crate) fn run<C: Collect>(
    settings: &Settings<'_>,
    sink: &dyn ObjectSink,
    progress: &dyn Progress,
    collector: C,
    produce: impl FnOnce(&mut Feed) -> Result<(), ImportError> + Send,
) -> Result<Imported, ImportError> {
    let under_way = settings.threads + 14;
    let (event_sender, events) = unbounded();
    let (frame_sender, frames) = unbounded();
    let (batch_sender, batches) = unbounded();
    let (buffer_sender, buffers) = unbounded();
    let issued = Arc::new(AtomicU64::new(0));
    for _ in 0..under_way {
        let _ = buffer_sender.send(Vec::new());
    }
    let packer = Packer::new(sink, progress, events, frame_sender, Arc::clone(&issued), under_way);
    let sequencer = Sequencer { packer, collector, progress, open: None, recipe: RecipeBuilder::default(), imported: Imported::default() };
    thread::scope(|scope| {
        for number in 0..settings.threads {
            let (batches, frames, events) = (batches.clone(), frames.clone(), event_sender.clone());
            let work = move || worker::work(batches, frames, events, sink, settings);
            thread::Builder::new().name(format!("import-{number}")).spawn_scoped(scope, work).map_err(ImportError::Thread)?;
        }
        drop((batches, frames));
        let feed = Feed::new(batch_sender, buffers, issued, under_way);
        let produce = move || {
            let event = match catch_unwind(AssertUnwindSafe(|| feed_all(feed, produce))) {
                Ok(Ok(count)) => Event::Produced(count),
                Ok(Err(error)) => Event::Failed(error),
                Err(_) => Event::Failed(ImportError::Internal("the reader of the source panicked".to_owned())),
            };
            let _ = event_sender.send(event);
        };
        thread::Builder::new().name("import-read".to_owned()).spawn_scoped(scope, produce).map_err(ImportError::Thread)?;
        // On an error the sequencer and its ends of all channels are dropped here, and that ends the threads.
        sequencer.run(move |mut buffer: Vec<u8>| {
            buffer.clear();
            let _ = buffer_sender.send(buffer);
        })
    })
}

fn feed_all(mut feed: Feed, produce: impl FnOnce(&mut Feed) -> Result<(), ImportError>) -> Result<u64, ImportError> {
    produce(&mut feed)?;
    feed.finish()
}

struct Sequencer<'a, C> {
    packer: Packer<'a>,
    collector: C,
    progress: &'a dyn Progress,
    /// The file whose content is coming.
    open: Option<Begin>,
    recipe: RecipeBuilder,
    imported: Imported,
}

impl<C: Collect> Sequencer<'_, C> {
    fn run(mut self, recycle: impl Fn(Vec<u8>)) -> Result<Imported, ImportError> {
        let mut number = 0;
        while let Some(mut batch) = self.packer.batch(number)? {
            let before = self.imported.entries;
            self.take(&mut batch)?;
            self.progress.advance(self.imported.entries - before, batch.bytes.len() as u64);
            batch.bytes.shrink_to(BATCH_LEN + BATCH_LEN / 2);
            recycle(batch.bytes);
            number += 1;
        }
        let root = self.collector.finish(&mut self.packer)?;
        let (new, stored_bytes) = self.packer.finish()?;
        Ok(Imported { root: root.digest, entries: root.entries, new_objects: new.count, new_bytes: new.bytes, stored_bytes, ..self.imported })
    }

    fn take(&mut self, batch: &mut Batch) -> Result<(), ImportError> {
        let mut spans = batch.spans.iter();
        let mut chunks = batch.digests.iter().zip(&batch.present);
        let mut bytes = &batch.bytes[..];
        for item in batch.items.drain(..) {
            match item {
                Item::Begin(begin) => self.begin(*begin)?,
                Item::End => self.end()?,
                Item::Skipped(skipped) => self.skipped(skipped),
                Item::Content { count } => {
                    for span in spans.by_ref().take(count) {
                        let extent = match span {
                            Span::Hole(len) => {
                                self.packer.hole(*len);
                                Extent::Hole(*len)
                            }
                            Span::Data(len) => {
                                let (chunk, rest) = bytes.split_at(*len as usize);
                                bytes = rest;
                                let Some((digest, present)) = chunks.next() else { continue };
                                let reference = ChunkRef { digest: *digest, len: *len };
                                self.packer.chunk(reference, chunk, *present)?;
                                Extent::Data(reference)
                            }
                        };
                        self.recipe.push(extent, &mut |node| self.packer.node(node))?;
                    }
                }
                Item::Ready(begin) => self.ready(*begin)?,
                Item::Read(_) | Item::Known(_) | Item::Segment { .. } => return Err(ImportError::Internal("a worker did not read a file".to_owned())),
            }
        }
        Ok(())
    }

    fn begin(&mut self, begin: Begin) -> Result<(), ImportError> {
        self.imported.entries += 1;
        match &begin.entry.kind {
            Kind::File(_) => {
                self.packer.begin_file(&begin.entry.path);
                self.open = Some(begin);
                Ok(())
            }
            _ => self.collector.entry(begin, &mut self.packer),
        }
    }

    /// A file that was not read.
    fn ready(&mut self, begin: Begin) -> Result<(), ImportError> {
        self.imported.entries += 1;
        self.imported.files += 1;
        self.imported.bytes += begin.entry.len();
        self.collector.entry(begin, &mut self.packer)
    }

    fn end(&mut self) -> Result<(), ImportError> {
        let Some(mut begin) = self.open.take() else { return Ok(()) };
        self.imported.files += 1;
        self.imported.bytes += self.recipe.len();
        begin.entry.kind = Kind::File(self.recipe.finish(&mut |node| self.packer.node(node))?);
        self.collector.entry(begin, &mut self.packer)
    }

    fn skipped(&mut self, skipped: Skipped) {
        self.imported.skipped.push(skipped);
    }
}
