//! Stores what is in a blob: contents of files, all other plain bytes, and what the compressor decided.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use chunker::blob::{BlobState, BlobWriter, join};
use chunker::deflate::{self, AnalyzeError, Analyzer};
use chunker::tar_split::{Piece, TarSplitter, is_tar};
use chunker::{ImportError, ObjectSink, PackSink, SinkError};
use layer_format::Digest;
use layer_format::pack::PackIndex;
use layer_format::rebuild::{Container, Plan, Rebuild, Section, encode_pieces};
use layer_format::recipe::Recipe;

use super::super::sink::NamespaceStore;
use super::super::unpack::{FREE_LEN, MAX_RATIO};

/// Level of zstd.
const ZSTD_LEVEL: i32 = 3;
/// Most bytes of corrections, in hundredths of the blob: with more, the encoder is not known.
const MAX_CORRECTIONS: u64 = 15;
/// Corrections that are always allowed, in bytes: models have to learn first.
const FREE_CORRECTIONS: u64 = 16 << 10;
/// Bytes at the start by which a blob's kind is known: a block of a tar.
const HEAD_LEN: u64 = 512;

/// Why a blob was not taken apart.
#[derive(Debug)]
pub(super) enum IngestError {
    /// It is better kept as it is.
    Keep(String),
    /// The blob could not be read.
    Read(io::Error),
    /// What is in it could not be stored.
    Store(ImportError),
}

impl From<ImportError> for IngestError {
    fn from(error: ImportError) -> Self {
        Self::Store(error)
    }
}

/// What a blob is made again of.
#[derive(Debug)]
pub(super) struct Ingested {
    pub(super) recipe: Recipe,
    pub(super) head: Rebuild,
    pub(super) plain_bytes: u64,
    /// Bytes of packs that were written for it.
    pub(super) stored_bytes: u64,
    pub(super) encoder: String,
}

/// Reads a blob of `len` bytes, and stores what is in it.
pub(super) fn ingest(mut blob: impl Read, len: u64, store: &NamespaceStore) -> Result<Ingested, IngestError> {
    let mut start = Vec::with_capacity(HEAD_LEN as usize);
    blob.by_ref().take(HEAD_LEN).read_to_end(&mut start).map_err(IngestError::Read)?;
    let is_plain_tar = is_tar(&start);
    let keep = |reason: &str| Err(IngestError::Keep(reason.to_owned()));
    match &start[..] {
        [0x1f, 0x8b, ..] => {}
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => return keep("it is compressed by zstd"),
        _ if is_plain_tar => {}
        _ => return keep("it is neither a tar nor compressed by gzip"),
    }
    let whole = io::Cursor::new(start).chain(blob);
    let sink = Counted { store, bytes: AtomicU64::new(0) };
    let mut writers = Writers::new(&sink, len)?;
    let (container, encoder) = match is_plain_tar {
        true => writers.plain(whole)?,
        false => writers.gzip(whole)?,
    };
    writers.finish(container, encoder)
}

struct Writers<'a> {
    sink: &'a Counted<'a>,
    splitter: TarSplitter,
    content: BlobWriter<'a>,
    framing: BlobWriter<'a>,
    side: BlobWriter<'a>,
    plan: Plan,
    packed_len: u64,
    plain_bytes: u64,
    corrections: u64,
}

impl<'a> Writers<'a> {
    fn new(sink: &'a Counted<'a>, packed_len: u64) -> Result<Self, ImportError> {
        let writer = || BlobWriter::resume(sink, ZSTD_LEVEL, BlobState::default());
        Ok(Self {
            sink,
            splitter: TarSplitter::default(),
            content: writer()?,
            framing: writer()?,
            side: writer()?,
            plan: Plan::default(),
            packed_len,
            plain_bytes: 0,
            corrections: 0,
        })
    }

    fn gzip(&mut self, blob: impl Read) -> Result<(Container, String), IngestError> {
        let mut analyzer = Analyzer::new(blob);
        let mut encoder = None;
        loop {
            let section = match analyzer.next_section() {
                Ok(Some(section)) => section,
                Ok(None) => break,
                Err(AnalyzeError::Read(error)) => return Err(IngestError::Read(error)),
                Err(error) => return Err(IngestError::Keep(error.to_string())),
            };
            let place = section.place;
            self.section(
                section.plain,
                &section.corrections,
                Section {
                    packed_bits: section.packed_end_bits - place.packed_bits,
                    partial: place.partial,
                    member_offset: place.member_offset,
                    ..Section::default()
                },
            )?;
            encoder = Some(section.encoder);
            let packed = section.packed_end_bits / 8;
            if self.corrections > FREE_CORRECTIONS + packed * MAX_CORRECTIONS / 100 {
                let percent = self.corrections * 100 / packed.max(1);
                return Err(IngestError::Keep(format!("its encoder is not known: corrections would take {percent} % of it")));
            }
        }
        let encoder = encoder.map_or_else(|| "none".to_owned(), |encoder| format!("gzip by {encoder}"));
        Ok((Container::Gzip { version: deflate::VERSION }, encoder))
    }

    fn plain(&mut self, mut blob: impl Read) -> Result<(Container, String), IngestError> {
        let mut bytes = Vec::with_capacity(deflate::SECTION_LEN);
        loop {
            bytes.clear();
            blob.by_ref().take(deflate::SECTION_LEN as u64).read_to_end(&mut bytes).map_err(IngestError::Read)?;
            if bytes.is_empty() {
                return Ok((Container::Plain, "none".to_owned()));
            }
            self.section(&bytes, &[], Section { packed_bits: 8 * bytes.len() as u64, ..Section::default() })?;
        }
    }

    fn section(&mut self, plain: &[u8], corrections: &[u8], mut section: Section) -> Result<(), IngestError> {
        self.plain_bytes += plain.len() as u64;
        if self.plain_bytes > self.packed_len.saturating_mul(MAX_RATIO).max(FREE_LEN) {
            return Err(IngestError::Keep("it becomes too long by decompression".to_owned()));
        }
        let (content, framing) = (&mut self.content, &mut self.framing);
        let mut pieces = vec![(0u32, 0u32)];
        let mut written = Ok(());
        self.splitter.split(plain, |piece| {
            let step = match piece {
                Piece::Framing(bytes) => {
                    match pieces.last_mut() {
                        Some((framing, 0)) => *framing += bytes.len() as u32,
                        _ => pieces.push((bytes.len() as u32, 0)),
                    }
                    section.framing_len += bytes.len() as u32;
                    framing.push(bytes)
                }
                Piece::Content(bytes) => {
                    if let Some((_, content)) = pieces.last_mut() {
                        *content += bytes.len() as u32;
                    }
                    content.push(bytes)
                }
                Piece::Border => {
                    content.border();
                    Ok(())
                }
            };
            if written.is_ok() {
                written = step;
            }
        });
        written?;
        let mut side = Vec::with_capacity(4 * pieces.len() + corrections.len());
        encode_pieces(&pieces, &mut side);
        section.pieces_len = side.len() as u32;
        section.corrections_len = corrections.len() as u32;
        section.plain_len = plain.len() as u32;
        side.extend_from_slice(corrections);
        self.corrections += corrections.len() as u64;
        self.side.push(&side)?;
        self.plan.sections.push(section);
        Ok(())
    }

    fn finish(mut self, container: Container, encoder: String) -> Result<Ingested, IngestError> {
        if self.plan.packed_len() != self.packed_len {
            return Err(IngestError::Keep("it is not as long as what is in it says".to_owned()));
        }
        let plan = self.plan.encode();
        if plan.len() as u64 > layer_format::rebuild::MAX_PLAN_LEN {
            return Err(IngestError::Keep("it has too many sections".to_owned()));
        }
        let head =
            Rebuild { container, content_len: self.content.len(), framing_len: self.framing.len(), side_len: self.side.len(), plan_len: plan.len() as u64 };
        self.side.push(&plan)?;
        let parts = [self.content.finish()?, self.framing.finish()?, self.side.finish()?];
        let recipe = join(self.sink, &parts)?;
        Ok(Ingested { recipe, head, plain_bytes: self.plain_bytes, stored_bytes: self.sink.bytes.load(Ordering::Relaxed), encoder })
    }
}

/// Counts the bytes of packs.
struct Counted<'a> {
    store: &'a NamespaceStore,
    bytes: AtomicU64,
}

impl ObjectSink for Counted<'_> {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        self.store.present(digests)
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        Ok(Box::new(CountedPack { pack: self.store.create_pack()?, bytes: &self.bytes }))
    }
}

struct CountedPack<'a> {
    pack: Box<dyn PackSink + 'a>,
    bytes: &'a AtomicU64,
}

impl io::Write for CountedPack<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.pack.write(bytes)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pack.flush()
    }
}

impl PackSink for CountedPack<'_> {
    fn finish(self: Box<Self>, digest: Digest, index: PackIndex) -> Result<(), SinkError> {
        self.pack.finish(digest, index)
    }
}
