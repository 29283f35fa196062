//! Blobs: found in a repository, and their bytes streamed, each chunk verified before it leaves.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use layer_format::oci::OciDigest;
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::reference::Repository;
use layer_format::{Digest, FormatError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Oci;
use super::sink::NamespaceStore;
use crate::db::namespace::NamespaceId;
use crate::db::object::{FramePlace, Location};
use crate::db::oci_blob::{BlobContent, BlobRow, oci_blob_get};
use crate::db::oci_unused::{oci_blob_is_unused, oci_blob_used};
use crate::db::repository::{RepositoryRow, repository_find};
use crate::db::trash::Deletion;
use crate::db::{DbError, commit};
use crate::service::frames::ReadError;
use crate::service::nodes::NodeError;
use crate::service::objects::{Objects, report, verified};
use crate::service::stream::detached;
use crate::service::trash;

/// How long a client may take nothing of a blob before its answer ends.
pub(super) const STALL: Duration = Duration::from_secs(120);
/// Chunks that are looked up at a time: few at first, so that the first bytes leave at once.
const FIRST_LOOKUP: usize = 16;
const LOOKUP: usize = 512;
/// Frames that are read ahead of what is being sent.
const READ_AHEAD: usize = 3;
/// Pieces that wait to be sent.
const QUEUE: usize = 1;
/// Bytes of a tar that are sent together.
const TAR_PIECE_LEN: usize = 128 << 10;

/// A blob of a repository.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) repository: RepositoryRow,
    pub(crate) row: BlobRow,
}

/// The bytes of a blob, as they come.
pub(crate) type BlobStream = mpsc::Receiver<Result<Bytes, ReadError>>;

impl Oci {
    /// The blob, if the repository has it. Whoever is told so can rely on it: the time that an unused blob stays begins anew.
    pub(crate) async fn blob_find(&self, repository: &Repository, digest: &OciDigest) -> Result<Option<Blob>, DbError> {
        let mut db = self.objects.db.read().await?;
        let Some(repository) = repository_find(&mut db, repository).await? else { return Ok(None) };
        if oci_blob_is_unused(&mut db, repository.id, digest.as_str()).await? {
            drop(db);
            let mut transaction = self.objects.db.begin().await?;
            oci_blob_used(&mut transaction, repository.id, &[digest.as_str()]).await?;
            commit(transaction).await?;
            db = self.objects.db.read().await?;
        }
        Ok(oci_blob_get(&mut db, repository.id, digest).await?.map(|row| Blob { repository, row }))
    }

    /// Deletes the blob; it can be brought back for a while. Says whether it was there.
    pub(crate) async fn blob_delete(&self, repository: &Repository, digest: &OciDigest, by: &str) -> Result<bool, DbError> {
        let deletion = Deletion { at: self.objects.db.now(), by };
        let mut transaction = self.objects.db.begin().await?;
        let Some(row) = repository_find(&mut transaction, repository).await? else { return Ok(false) };
        let deleted = trash::delete_blob(&mut transaction, row.id, digest, deletion).await?;
        commit(transaction).await?;
        Ok(deleted)
    }

    /// A part of the blob, which must lie in it.
    pub(crate) fn blob_stream(&self, blob: Blob, range: Range<u64>) -> BlobStream {
        let namespace = blob.repository.namespace;
        let (sender, receiver) = mpsc::channel(QUEUE);
        match blob.row.content {
            BlobContent::Inline(bytes) => {
                let part = bytes.get(range.start as usize..range.end as usize).unwrap_or_default();
                // There is room for one.
                let _ = sender.try_send(Ok(Bytes::copy_from_slice(part)));
            }
            BlobContent::Recipe(recipe) => {
                let reader = self.reader(namespace);
                tokio::spawn(async move {
                    if let Err(error) = reader.send(&recipe, range, &sender).await {
                        let _ = sender.send(Err(error)).await;
                    }
                });
            }
            BlobContent::Rebuilt(recipe, head) => self.rebuilt_stream(namespace, recipe, head, range, sender),
            BlobContent::Tar(root) => {
                let store = self.store(namespace);
                tokio::task::spawn_blocking(move || send_tar(&store, root, range, &sender));
            }
        }
        receiver
    }

    /// The whole blob, if it is no longer than `max_len`.
    pub(crate) async fn blob_read(&self, blob: Blob, max_len: usize) -> Result<Option<Vec<u8>>, ReadError> {
        let len = blob.row.size_bytes;
        if len > max_len as u64 {
            return Ok(None);
        }
        let mut stream = self.blob_stream(blob, 0..len);
        let mut whole = Vec::with_capacity(len as usize);
        while let Some(bytes) = stream.recv().await {
            whole.extend_from_slice(&bytes?);
        }
        Ok(Some(whole))
    }

    /// Reads what is in chunks of a namespace.
    pub(super) fn reader(&self, namespace: NamespaceId) -> Reader {
        Reader { objects: self.objects.clone(), nodes: Arc::clone(&self.nodes), namespace }
    }

    /// The namespace, for threads that wait.
    pub(super) fn store(&self, namespace: NamespaceId) -> NamespaceStore {
        NamespaceStore { runtime: Handle::current(), objects: self.objects.clone(), storage: Arc::clone(&self.storage), namespace, expected: Arc::default() }
    }
}

/// Reads what is in chunks of a namespace.
pub(super) struct Reader {
    objects: Objects,
    nodes: Arc<crate::service::nodes::Nodes>,
    namespace: NamespaceId,
}

/// A chunk, and which of its bytes are wanted.
type Wanted = (Digest, Range<usize>);

/// Chunks that follow each other and lie in one frame.
struct Run {
    frame: FramePlace,
    chunks: Vec<(Digest, Location, Range<usize>)>,
}

impl Reader {
    /// A part of what the recipe describes, which must lie in it, at once.
    pub(super) async fn collect(&self, recipe: &Recipe, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
        let mut whole = Vec::with_capacity((range.end - range.start) as usize);
        if range.is_empty() {
            return Ok(whole);
        }
        let expected = whole.capacity();
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let sending = async move { self.send(recipe, range, &sender).await };
        let receiving = async {
            while let Some(bytes) = receiver.recv().await {
                whole.extend_from_slice(&bytes?);
            }
            Ok(())
        };
        futures::try_join!(sending, receiving)?;
        match whole.len() >= expected {
            true => Ok(whole),
            false => Err(ReadError::Damaged(FormatError::Truncated { what: "blob" })),
        }
    }

    async fn send(&self, recipe: &Recipe, range: Range<u64>, sender: &mpsc::Sender<Result<Bytes, ReadError>>) -> Result<(), ReadError> {
        let mut walk = RangeWalk::new(recipe, range.clone());
        let mut lookup = FIRST_LOOKUP;
        loop {
            let wanted = self.next(&mut walk, &range, lookup).await?;
            if wanted.is_empty() {
                return Ok(());
            }
            lookup = LOOKUP;
            let runs = self.locate(wanted).await?;
            let objects = self.objects.clone();
            let mut pieces = stream::iter(runs).map(move |run| detached(read(objects.clone(), run)).boxed()).buffered(READ_AHEAD);
            while let Some(bytes) = pieces.next().await {
                // Reads go on without this one: others wait for the same frames.
                if sender.send_timeout(Ok(bytes?), STALL).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// The next chunks, at most `count`.
    async fn next(&self, walk: &mut RangeWalk, range: &Range<u64>, count: usize) -> Result<Vec<Wanted>, ReadError> {
        let mut wanted = Vec::with_capacity(count);
        while wanted.len() < count {
            match walk.step() {
                RangeStep::Done => break,
                RangeStep::Need(digest) => {
                    let node = match self.nodes.recipe(self.namespace, digest, None).await {
                        Ok(node) => node,
                        Err(NodeError::Read(error)) => return Err(error),
                        Err(NodeError::Missing(_)) => return Err(ReadError::Gone(None)),
                        Err(NodeError::Invalid { source, .. }) => return Err(ReadError::Damaged(source)),
                    };
                    walk.feed((*node).clone()).map_err(ReadError::Damaged)?;
                }
                RangeStep::Extent { offset, extent: Extent::Data(chunk) } => {
                    let end = offset + u64::from(chunk.len);
                    let part = range.start.saturating_sub(offset)..end.min(range.end) - offset;
                    wanted.push((chunk.digest, part.start as usize..part.end as usize));
                }
                RangeStep::Extent { .. } => return Err(ReadError::Damaged(FormatError::Invalid { what: "recipe of a blob", rule: "a blob has no holes" })),
            }
        }
        Ok(wanted)
    }

    async fn locate(&self, wanted: Vec<Wanted>) -> Result<Vec<Run>, ReadError> {
        let digests: Vec<Digest> = wanted.iter().map(|(digest, _)| *digest).collect();
        let places = self.objects.locate(self.namespace, &digests).await?;
        let mut runs: Vec<Run> = Vec::new();
        for (digest, range) in wanted {
            let Some(place) = places.get(&digest) else {
                tracing::error!(object.digest = %digest, "object {digest}, which a blob needs, is not there");
                return Err(ReadError::Gone(None));
            };
            match runs.last_mut().filter(|run| run.frame == place.frame) {
                Some(run) => run.chunks.push((digest, *place, range)),
                None => runs.push(Run { frame: place.frame, chunks: vec![(digest, *place, range)] }),
            }
        }
        Ok(runs)
    }
}

async fn read(objects: Objects, run: Run) -> Result<Bytes, ReadError> {
    let frame = objects.frames.frame(run.frame).await?;
    let work = tokio::task::spawn_blocking(move || {
        let mut out = Vec::with_capacity(run.chunks.iter().map(|(.., range)| range.len()).sum());
        for (digest, place, range) in &run.chunks {
            let part = verified(&frame, place.slot, digest).and_then(|bytes| bytes.get(range.clone()));
            let Some(part) = part else {
                let error = ReadError::Damaged(FormatError::DigestMismatch { what: "object" });
                report(digest, place, &error);
                return Err(error);
            };
            out.extend_from_slice(part);
        }
        Ok(Bytes::from(out))
    });
    work.await.map_err(|_| ReadError::Cancelled)?
}

fn send_tar(store: &NamespaceStore, root: Digest, range: Range<u64>, sender: &mpsc::Sender<Result<Bytes, ReadError>>) {
    let mut part = Part { skip: range.start, left: range.end - range.start, buffer: Vec::new(), sender, runtime: Handle::current() };
    let written = super::render::write_tar(root, store, &mut part);
    if part.left == 0 || sender.is_closed() {
        return;
    }
    let error = match written {
        Ok(()) => FormatError::Truncated { what: "tar" },
        Err(error) => {
            tracing::error!(error = crate::chain(&error), "a layer cannot be written as a tar");
            FormatError::Invalid { what: "layer", rule: "all of it is there" }
        }
    };
    let _ = sender.blocking_send(Err(ReadError::Damaged(error)));
}

/// Passes on a part of what is written to it.
struct Part<'a> {
    skip: u64,
    left: u64,
    buffer: Vec<u8>,
    sender: &'a mpsc::Sender<Result<Bytes, ReadError>>,
    runtime: Handle,
}

impl Part<'_> {
    fn pass_on(&mut self) -> io::Result<()> {
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        match bytes.is_empty() {
            true => Ok(()),
            false => self.runtime.block_on(self.sender.send_timeout(Ok(bytes), STALL)).map_err(|_| io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Write for Part<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        let rest = &bytes[skipped as usize..];
        let taken = self.left.min(rest.len() as u64);
        self.buffer.extend_from_slice(&rest[..taken as usize]);
        self.left -= taken;
        if self.buffer.len() >= TAR_PIECE_LEN || self.left == 0 {
            self.pass_on()?;
        }
        // What follows is of no use to anyone.
        if self.left == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on()
    }
}
