//! Decides what is new, fills frames with it, and sees them through to the packs in order.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender};
use layer_format::chunk::ChunkRef;
use layer_format::delta::{BasePlace, Search};
use layer_format::frame::TARGET_FRAME_LEN;
use layer_format::recipe::Extent;
use layer_format::{Digest, LayerPath};

use super::batch::Batch;
use super::compress::{EncodedFrame, FrameJob};
use super::pack_writer::PackWriter;
use crate::earlier::Old;
use crate::error::ImportError;
use crate::progress::Progress;
use crate::sink::ObjectSink;

/// What comes back from the producer and the workers.
pub(crate) enum Event {
    /// A batch, hashed.
    Batch(Batch),
    /// A frame, compressed.
    Frame(EncodedFrame),
    /// The producer is done; this many batches were handed on.
    Produced(u64),
    /// Something failed.
    Failed(ImportError),
}

/// New objects and their bytes before compression.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NewObjects {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

/// Everything between "here is an object" and the packs. Runs in the sequencer's thread.
pub(crate) struct Packer<'a> {
    sink: &'a dyn ObjectSink,
    events: Receiver<Event>,
    frames: Sender<FrameJob>,
    issued: Arc<AtomicU64>,
    writer: PackWriter<'a>,
    max_frames: usize,

    /// Objects of this import that a `present` answer may not know of yet: those of the open pack and what is on its
    /// way there, and those of finished packs until no earlier answer is in use.
    seen: HashSet<Digest>,
    /// Objects of finished packs, each with the number of the first batch whose answer knows them.
    retiring: VecDeque<(u64, Vec<Digest>)>,

    data: FrameJob,
    /// What can be compressed against an earlier version: it has frames of its own, so that nothing else has to wait for its
    /// bases when it is read.
    changed: FrameJob,
    deltas: Option<Search<Old<'a>>>,
    /// Tree and recipe nodes: they have frames of their own, so that a reader of the tree does not read file content.
    nodes: Vec<(Digest, Vec<u8>)>,
    nodes_len: usize,

    next_frame: u64,
    frames_under_way: usize,
    next_to_write: u64,
    encoded: BTreeMap<u64, EncodedFrame>,
    spare: Vec<FrameJob>,

    batches: BTreeMap<u64, Batch>,
    batch_count: Option<u64>,
    new: NewObjects,
}

impl<'a> Packer<'a> {
    pub(super) fn new(
        sink: &'a dyn ObjectSink,
        progress: &'a dyn Progress,
        events: Receiver<Event>,
        frames: Sender<FrameJob>,
        issued: Arc<AtomicU64>,
        max_frames: usize,
    ) -> Self {
        Self {
            sink,
            events,
            frames,
            issued,
            writer: PackWriter::new(sink, progress),
            max_frames,
            seen: HashSet::new(),
            retiring: VecDeque::new(),
            data: FrameJob::default(),
            changed: FrameJob::default(),
            deltas: sink.earlier().map(|earlier| Search::new(Old(earlier))),
            nodes: Vec::new(),
            nodes_len: 0,
            next_frame: 0,
            frames_under_way: 0,
            next_to_write: 0,
            encoded: BTreeMap::new(),
            spare: Vec::new(),
            batches: BTreeMap::new(),
            batch_count: None,
            new: NewObjects::default(),
        }
    }

    /// The batch with this number; `None` if there is none, the producer being done.
    pub(super) fn batch(&mut self, number: u64) -> Result<Option<Batch>, ImportError> {
        loop {
            if let Some(batch) = self.batches.remove(&number) {
                self.retire(number);
                return Ok(Some(batch));
            }
            if self.batch_count.is_some_and(|count| number >= count) {
                return Ok(None);
            }
            self.wait()?;
        }
    }

    /// The content of the file at this path follows.
    pub(super) fn begin_file(&mut self, path: &LayerPath) {
        if let Some(deltas) = &mut self.deltas {
            deltas.begin(path);
        }
    }

    /// A hole of the file.
    pub(super) fn hole(&mut self, len: u64) {
        if let Some(deltas) = &mut self.deltas {
            deltas.pass(Extent::Hole(len));
        }
    }

    /// A chunk of the file.
    pub(super) fn chunk(&mut self, chunk: ChunkRef, bytes: &[u8], present: bool) -> Result<(), ImportError> {
        if present || !self.seen.insert(chunk.digest) {
            if let Some(deltas) = &mut self.deltas {
                deltas.pass(Extent::Data(chunk));
            }
            return Ok(());
        }
        let like = self.deltas.as_mut().map(|deltas| deltas.like(chunk.len)).unwrap_or_default();
        if !like.is_empty() {
            let job = std::mem::take(&mut self.changed);
            self.changed = self.push_changed(job, chunk.digest, bytes, &like)?;
            return Ok(());
        }
        push(&mut self.data, &mut self.new, chunk.digest, bytes)?;
        if self.data.builder.is_full() {
            let job = std::mem::take(&mut self.data);
            self.data = self.submit(job)?;
        }
        Ok(())
    }

    /// Adds an object to a frame that is compressed against others, and hands the frame on if it is full, or if the bases of this
    /// object are too far from those of the others. Returns the frame to go on with.
    fn push_changed(&mut self, mut job: FrameJob, digest: Digest, bytes: &[u8], like: &[(Digest, BasePlace)]) -> Result<FrameJob, ImportError> {
        if !job.bases.add(like) {
            if !job.builder.is_empty() {
                job = self.submit(job)?;
            }
            job.bases.add_some(like);
        }
        push(&mut job, &mut self.new, digest, bytes)?;
        if job.builder.is_full() { self.submit(job) } else { Ok(job) }
    }

    /// A tree or recipe node. Returns its digest.
    pub(crate) fn node(&mut self, bytes: Vec<u8>) -> Result<Digest, ImportError> {
        let digest = Digest::of(&bytes);
        if self.seen.insert(digest) {
            self.nodes_len += bytes.len();
            self.nodes.push((digest, bytes));
        }
        if self.nodes_len >= TARGET_FRAME_LEN {
            self.flush_nodes()?;
        }
        Ok(digest)
    }

    /// Packs the nodes collected that the sink lacks.
    fn flush_nodes(&mut self) -> Result<(), ImportError> {
        let nodes = std::mem::take(&mut self.nodes);
        self.nodes_len = 0;
        let digests: Vec<Digest> = nodes.iter().map(|(digest, _)| *digest).collect();
        let present = present(self.sink, &digests)?;
        let (mut job, mut changed) = (self.spare.pop().unwrap_or_default(), self.spare.pop().unwrap_or_default());
        for ((digest, bytes), present) in nodes.iter().zip(present) {
            if present {
                self.seen.remove(digest);
                continue;
            }
            let like = self.deltas.as_mut().map(|deltas| deltas.like_node(bytes)).unwrap_or_default();
            if !like.is_empty() {
                changed = self.push_changed(changed, *digest, bytes, &like)?;
                continue;
            }
            push(&mut job, &mut self.new, *digest, bytes)?;
            if job.builder.is_full() {
                job = self.submit(job)?;
            }
        }
        for job in [changed, job] {
            let spare = if job.builder.is_empty() { job } else { self.submit(job)? };
            self.spare.push(spare);
        }
        Ok(())
    }

    /// Sends what is left through the workers and finishes the last pack.
    pub(super) fn finish(mut self) -> Result<(NewObjects, u64), ImportError> {
        for job in [std::mem::take(&mut self.changed), std::mem::take(&mut self.data)] {
            if !job.builder.is_empty() {
                self.submit(job)?;
            }
        }
        self.flush_nodes()?;
        while self.frames_under_way > 0 {
            self.wait()?;
        }
        self.writer.finish()?;
        Ok((self.new, self.writer.stored_bytes()))
    }

    /// Hands a frame to the workers, and returns an empty one. Waits while too many are under way.
    fn submit(&mut self, mut job: FrameJob) -> Result<FrameJob, ImportError> {
        job.number = self.next_frame;
        self.next_frame += 1;
        if self.frames.send(job).is_err() {
            // All workers ended, each with a failure that is on its way.
            loop {
                self.wait()?;
            }
        }
        self.frames_under_way += 1;
        while self.frames_under_way > self.max_frames {
            self.wait()?;
        }
        Ok(self.spare.pop().unwrap_or_default())
    }

    /// Takes the next event, and writes the frames that are next in order.
    fn wait(&mut self) -> Result<(), ImportError> {
        match self.events.recv().map_err(|_| ImportError::Internal("all workers ended".to_owned()))? {
            Event::Batch(batch) => {
                self.batches.insert(batch.number, batch);
            }
            Event::Frame(frame) => {
                self.encoded.insert(frame.number, frame);
                while let Some(frame) = self.encoded.remove(&self.next_to_write) {
                    self.write(frame)?;
                }
            }
            Event::Produced(count) => self.batch_count = Some(count),
            // Whoever stopped for another's failure says nothing about it: that failure is on its way.
            Event::Failed(ImportError::Stopped) => {}
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self, frame: EncodedFrame) -> Result<(), ImportError> {
        self.next_to_write += 1;
        self.frames_under_way -= 1;
        if let Some(finished) = self.writer.write(&frame)? {
            // Batches handed on from now on ask the sink after the pack became visible.
            self.retiring.push_back((self.issued.load(Ordering::SeqCst), finished));
        }
        self.spare.push(frame.spare);
        Ok(())
    }

    /// Forgets objects that every answer from batch `number` on knows.
    fn retire(&mut self, number: u64) {
        while let Some((_, objects)) = self.retiring.pop_front_if(|(from, _)| *from <= number) {
            for digest in objects {
                self.seen.remove(&digest);
            }
        }
    }
}

fn push(job: &mut FrameJob, new: &mut NewObjects, digest: Digest, bytes: &[u8]) -> Result<(), ImportError> {
    job.builder.push(bytes).map_err(|error| ImportError::Internal(error.to_string()))?;
    job.sample.add(bytes);
    job.objects.push((digest, bytes.len() as u32));
    new.count += 1;
    new.bytes += bytes.len() as u64;
    Ok(())
}

/// Asks the sink, and checks that it answers for each digest.
pub(crate) fn present(sink: &dyn ObjectSink, digests: &[Digest]) -> Result<Vec<bool>, ImportError> {
    if digests.is_empty() {
        return Ok(Vec::new());
    }
    let present = sink.present(digests).map_err(ImportError::Sink)?;
    if present.len() != digests.len() {
        return Err(ImportError::Internal(format!("the sink was asked about {} objects and answered for {}", digests.len(), present.len())));
    }
    Ok(present)
}
