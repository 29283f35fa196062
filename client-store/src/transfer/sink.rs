//! Where what arrives goes: verified, and straight into a pack of the store.
//!
//! A sink runs on a thread of its own, since it decompresses, hashes and waits for the disk.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use layer_format::Digest;
use layer_format::frame::{Frame, delta};
use tokio::sync::{mpsc, oneshot};

use super::TransferError;
use super::assemble::{AssembleError, Assembler};
use crate::origin::Received;
use crate::store::{PackOrigin, PackWriter, Store};

/// Level for the few objects that do not arrive in frames: they are compressed on the way in.
const LEVEL: i32 = 1;
/// Records on their way from the network to the disk.
const QUEUE_LEN: usize = 8;

/// What a sink is told.
pub(super) enum Message {
    /// These objects will follow; others are not kept.
    Begin(Vec<Digest>),
    /// A record.
    Record(Received),
    /// The request is over: says what of it did not come.
    End(oneshot::Sender<Outcome>),
}

/// What became of a request.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Objects that did not come and may come if asked for again.
    pub(super) remaining: Vec<Digest>,
    /// Objects that the registry says it lacks.
    pub(super) absent: Vec<Digest>,
    /// Objects that came with other bytes than their digest says.
    pub(super) damaged: u64,
    /// What came, if that was asked for.
    pub(super) kept: HashMap<Digest, Bytes>,
}

/// What a sink did.
#[derive(Debug, Default)]
pub(super) struct SinkReport {
    pub(super) objects: u64,
    pub(super) plain_bytes: u64,
    pub(super) bytes: u64,
    pub(super) packs: u64,
}

/// Starts a sink; with `keep` it also hands back what came. It ends, and its last pack is finished, when the sender is dropped.
pub(super) fn start(
    store: &Store,
    keep: bool,
    advance: impl Fn(u64) + Send + 'static,
) -> (mpsc::Sender<Message>, tokio::task::JoinHandle<Result<SinkReport, TransferError>>) {
    let (sender, receiver) = mpsc::channel(QUEUE_LEN);
    let mut sink =
        Sink { store: store.clone(), keep, pack: None, wanted: HashSet::new(), order: Vec::new(), outcome: Outcome::default(), report: SinkReport::default() };
    let task = tokio::task::spawn_blocking(move || sink.run(receiver, advance).map(|()| sink.report));
    (sender, task)
}

struct Sink {
    store: Store,
    keep: bool,
    pack: Option<Assembler<PackWriter>>,
    wanted: HashSet<Digest>,
    order: Vec<Digest>,
    outcome: Outcome,
    report: SinkReport,
}

impl Sink {
    fn run(&mut self, mut receiver: mpsc::Receiver<Message>, advance: impl Fn(u64)) -> Result<(), TransferError> {
        while let Some(message) = receiver.blocking_recv() {
            match message {
                Message::Begin(digests) => {
                    self.wanted = digests.iter().copied().collect();
                    self.order = digests;
                    self.outcome = Outcome::default();
                }
                Message::Record(record) => {
                    let before = self.report.plain_bytes;
                    self.receive(record)?;
                    advance(self.report.plain_bytes - before);
                }
                Message::End(reply) => {
                    let remaining = std::mem::take(&mut self.order).into_iter().filter(|digest| self.wanted.contains(digest)).collect();
                    let _ = reply.send(Outcome { remaining, ..std::mem::take(&mut self.outcome) });
                }
            }
        }
        self.finish_pack()
    }

    fn receive(&mut self, record: Received) -> Result<(), TransferError> {
        match record {
            Received::Object(bytes) => {
                let digest = Digest::of(&bytes);
                if !self.wanted.remove(&digest) {
                    self.outcome.damaged += 1;
                    return Ok(());
                }
                self.count(&bytes, bytes.len());
                if self.keep {
                    self.outcome.kept.insert(digest, bytes.clone());
                }
                self.assemble(|pack| pack.push_object(digest, &bytes))
            }
            Received::Frame(encoded) => self.receive_frame(&encoded),
            Received::Missing(digest) => {
                if self.wanted.remove(&digest) {
                    self.outcome.absent.push(digest);
                }
                Ok(())
            }
            Received::Image(_) | Received::Model(_) | Received::Plan(_) | Received::End(_) => Ok(()),
        }
    }

    /// Keeps a frame as it is if all of its objects are wanted and whole; else what is good of it.
    fn receive_frame(&mut self, encoded: &Bytes) -> Result<(), TransferError> {
        // A delta frame decodes with what is here, and stays one if it will be read with one read more.
        let bases = delta::bases(encoded).unwrap_or_default();
        let decoded = if bases.is_empty() { Frame::decode(encoded).ok() } else { self.store.decode_received(encoded) };
        let Some(frame) = decoded else {
            self.outcome.damaged += 1;
            return Ok(());
        };
        let stays = bases.is_empty() || self.store.are_bases(&bases)?;
        let names: Vec<_> = frame.objects().map(|object| (Digest::of(object), object.len() as u32)).collect();
        let good = names.iter().all(|(digest, _)| self.wanted.contains(digest));
        self.outcome.damaged += u64::from(!good);
        let whole = good && stays;
        self.report.bytes += if good && !stays { encoded.len() as u64 } else { 0 };
        for (object, (digest, _)) in frame.objects().zip(&names) {
            // In a frame twice, or not wanted: the second `remove` says so.
            if self.wanted.remove(digest) {
                self.count(object, if good { 0 } else { object.len() });
                if self.keep {
                    self.outcome.kept.insert(*digest, Bytes::copy_from_slice(object));
                }
                if !whole {
                    self.assemble(|pack| pack.push_object(*digest, object))?;
                }
            }
        }
        if whole {
            self.report.bytes += encoded.len() as u64;
            self.assemble(|pack| pack.push_frame(encoded, &names))?;
        }
        Ok(())
    }

    fn count(&mut self, object: &[u8], received: usize) {
        self.report.objects += 1;
        self.report.plain_bytes += object.len() as u64;
        self.report.bytes += received as u64;
    }

    fn assemble(&mut self, push: impl FnOnce(&mut Assembler<PackWriter>) -> Result<(), AssembleError>) -> Result<(), TransferError> {
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => Assembler::new(self.store.pack_writer(PackOrigin::Pulled)?, LEVEL, true).map_err(|error| self.failed(error))?,
        };
        push(&mut pack).map_err(|error| self.failed(error))?;
        let full = pack.is_full();
        self.pack = Some(pack);
        if full { self.finish_pack() } else { Ok(()) }
    }

    fn finish_pack(&mut self) -> Result<(), TransferError> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let finished = pack.finish().map_err(|error| self.failed(error))?;
        finished.out.finish(finished.digest, &finished.index)?;
        self.report.packs += 1;
        Ok(())
    }

    fn failed(&self, error: AssembleError) -> TransferError {
        super::push::assemble_failed(&self.store, error)
    }
}
