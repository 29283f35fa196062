//! Pull: all of an image from a registry.
//!
//! First the tree, level by level, so that all chunks and their order are known; then the chunks that are not here, in
//! tree order, in several requests at a time. If an earlier version is here, the registry is told what of it they are like, and
//! compresses them against that. The image gets its name when all of it is here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use layer_format::Digest;
use layer_format::api::WantedGroup;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::reference::{ImageReference, Repository, Revision};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::like::{Earlier, Standing, Wanted, groups, like_chunks, like_nodes};
use super::sink::{self, Message, Outcome, SinkReport};
use super::{Phase, TransferError, TransferOptions, TransferReport, blocking};
use crate::cache::ObjectCache;
use crate::origin::{ObjectStream, Origin, OriginError, Received};
use crate::remote::Registry;
use crate::store::{ContentHold, ImageOrigin, ObjectKind, Store, Walk, WalkError, references};

/// Digests of one request for inner objects.
const INNER_BATCH: usize = 4096;
/// Bounds of a request for chunks, in uncompressed bytes, and in digests.
const BATCH_BYTES: std::ops::RangeInclusive<u64> = (2 << 20)..=(32 << 20);
const BATCH_DIGESTS: usize = 16_384;
/// No data that people keep is compressed by more: less room than that cannot be enough.
const BEST_RATIO: u64 = 12;
/// How often a pull begins again because an inner object that is here turns out to be damaged.
pub(super) const DAMAGE_ROUNDS: u32 = 8;
/// Digests that an error names.
const EXAMPLES: usize = 10;

/// Brings all of the image `reference` here and gives it that name. What is here already does not travel; an image that
/// is all here costs one small request, and none if asked for by digest.
///
/// # Errors
/// [`TransferError`]. Then nothing has a new name, and what had arrived stays: the same call goes on from there.
pub async fn pull(store: &Store, registry: &Registry, reference: &ImageReference, options: &TransferOptions) -> Result<TransferReport, TransferError> {
    let mut pull = Pull::new(store, registry, &reference.repository, reference.to_string(), options);
    // Each time what was found damaged is forgotten, and so fetched by the next.
    let mut left = DAMAGE_ROUNDS;
    while let Err(error) = pull.image(reference).await {
        match error {
            TransferError::LocalDamage { .. } if left > 0 => left -= 1,
            error => return Err(error),
        }
    }
    pull.finish().await
}

/// Brings here what a repository has and this store lacks.
pub(super) struct Pull {
    pub(super) store: Store,
    pub(super) registry: Registry,
    pub(super) repository: Repository,
    /// How to call in messages what is pulled.
    name: String,
    pub(super) options: TransferOptions,
    pub(super) report: TransferReport,
    /// An earlier version that is here, for the registry to compress against.
    earlier: Option<Earlier>,
}

impl Pull {
    pub(super) fn new(store: &Store, registry: &Registry, repository: &Repository, name: String, options: &TransferOptions) -> Self {
        Self {
            store: store.clone(),
            registry: registry.clone(),
            repository: repository.clone(),
            name,
            options: options.clone(),
            report: TransferReport::new(Digest([0; 32])),
            earlier: None,
        }
    }

    /// Keeps to the cap, and says what was done.
    pub(super) async fn finish(self) -> Result<TransferReport, TransferError> {
        blocking(move || {
            self.store.enforce_cap();
            Ok(self.report)
        })
        .await
    }

    async fn image(&mut self, reference: &ImageReference) -> Result<(), TransferError> {
        let progress = Arc::clone(&self.options.progress);
        progress.phase(Phase::Manifest, None);
        let _hold = self.hold().await?;
        let digest = self.resolve(reference).await?;
        self.report.digest = digest;
        let by_digest = ImageReference { repository: self.repository.clone(), revision: Revision::Digest(digest) };
        let local = self.store.image_get(&by_digest)?;
        if let Some(image) = &local
            && self.store.image_is_complete(&digest)?
        {
            return self.name(reference, &image.bytes);
        }
        let bytes = match local {
            Some(image) => image.bytes,
            None => self.fetch_manifest(&by_digest).await?,
        };
        let manifest = ImageManifest::decode(&bytes).map_err(|source| TransferError::Format { digest, source })?;
        self.earlier = self.find_earlier(digest).await?;
        self.layers(&manifest.layers).await?;
        progress.phase(Phase::Commit, None);
        self.name(reference, &bytes)
    }

    /// The newest image of the same repository that is here, other than this one. That none can be found is no reason to fail.
    async fn find_earlier(&self, image: Digest) -> Result<Option<Earlier>, TransferError> {
        if !self.options.deltas || !self.registry.may_know_deltas() {
            return Ok(None);
        }
        let (store, repository) = (self.store.clone(), self.repository.clone());
        blocking(move || {
            let newest = store.newest_image(&repository)?.filter(|found| found.digest != image);
            let roots = newest.and_then(|found| store.roots_of(&found).ok()).unwrap_or_default();
            Ok(Earlier::new(&store, roots))
        })
        .await
    }

    /// Keeps gc away, which would remove what has no name yet.
    pub(super) async fn hold(&self) -> Result<ContentHold, TransferError> {
        let store = self.store.clone();
        blocking(move || Ok(store.hold()?)).await
    }

    /// Fetches all that these layers need.
    pub(super) async fn layers(&mut self, layers: &[Digest]) -> Result<(), TransferError> {
        let progress = Arc::clone(&self.options.progress);
        progress.phase(Phase::Trees, None);
        self.fetch_inner(layers).await?;
        let chunks = self.missing_chunks(layers).await?;
        let total = chunks.iter().map(|wanted| u64::from(wanted.len)).sum();
        self.check_room(total)?;
        progress.phase(Phase::Data, Some(total));
        self.fetch_chunks(chunks, total).await
    }

    async fn resolve(&mut self, reference: &ImageReference) -> Result<Digest, TransferError> {
        if let Revision::Digest(digest) = reference.revision {
            return Ok(digest);
        }
        let requests = &mut self.report.requests;
        let registry = &self.registry;
        Ok(self
            .options
            .retry
            .run(|| {
                *requests += 1;
                registry.head(reference)
            })
            .await?)
    }

    async fn fetch_manifest(&mut self, image: &ImageReference) -> Result<Bytes, TransferError> {
        let requests = &mut self.report.requests;
        let registry = &self.registry;
        let image = self.options.retry.run(|| {
            *requests += 1;
            registry.get_manifest(image)
        });
        Ok(image.await?.bytes)
    }

    fn name(&self, reference: &ImageReference, manifest: &[u8]) -> Result<(), TransferError> {
        let named = self.store.image_get(reference)?.is_some_and(|image| image.digest == self.report.digest);
        if !named || !self.store.image_is_complete(&self.report.digest)? {
            self.store.image_put(reference, manifest, ImageOrigin::Pulled)?;
        }
        Ok(())
    }

    /// Fetches layer manifests, tree nodes and recipe nodes, level by level.
    async fn fetch_inner(&mut self, layers: &[Digest]) -> Result<(), TransferError> {
        let mut seen = HashSet::new();
        let mut frontier: Vec<Inner> = layers.iter().map(|digest| (*digest, ObjectKind::Layer, Standing::Unknown)).collect();
        frontier.retain(|(digest, ..)| seen.insert(*digest));
        let (sender, task) = sink::start(&self.store, true, |_| {});
        let fetched = self.fetch_levels(&sender, frontier, seen).await;
        drop(sender);
        // What arrived is kept, also if the rest did not.
        let report = ended(task).await?;
        self.add(&report);
        self.report.requests += fetched?;
        Ok(())
    }

    /// Returns the number of requests.
    async fn fetch_levels(&self, sink: &mpsc::Sender<Message>, mut frontier: Vec<Inner>, mut seen: HashSet<Digest>) -> Result<u64, TransferError> {
        let mut requests = 0;
        while !frontier.is_empty() {
            let nodes: Vec<_> = frontier.iter().map(|(digest, _, standing)| (*digest, standing.clone())).collect();
            let wanted = absent(&self.store, self.earlier.clone(), nodes).await?;
            // In memory for the next step: they cannot be read from their pack before it is finished.
            let mut kept = HashMap::new();
            for batch in wanted.chunks(INNER_BATCH) {
                let (count, objects) = self.fetch(sink, batch.to_vec()).await?;
                requests += count;
                kept.extend(objects);
            }
            let store = self.store.clone();
            let current = std::mem::take(&mut frontier);
            (seen, frontier) = blocking(move || next_level(&store, current, &kept, seen)).await?;
        }
        Ok(requests)
    }

    /// The chunks that are not here, in tree order.
    async fn missing_chunks(&mut self, layers: &[Digest]) -> Result<Vec<Wanted>, TransferError> {
        let (store, layers, earlier) = (self.store.clone(), layers.to_vec(), self.earlier.clone());
        let (chunks, objects) = blocking(move || {
            let (mut walk, mut chunks) = (Walk::default(), Vec::new());
            walk.layers(&store, &layers, &mut |visit| {
                if let ObjectKind::Chunk { len } = visit.kind {
                    chunks.push((visit.digest, len));
                }
                Ok::<_, WalkError>(())
            })?;
            let digests: Vec<Digest> = chunks.iter().map(|(digest, _)| *digest).collect();
            let here = store.contains(&digests)?;
            let mut here = here.into_iter();
            chunks.retain(|_| here.next() == Some(false));
            let wanted = match earlier {
                Some(earlier) => like_chunks(&earlier, &roots(&store, &layers)?, chunks)?,
                None => chunks.into_iter().map(|(digest, len)| Wanted::plain(digest, len)).collect(),
            };
            Ok((wanted, walk.len() as u64))
        })
        .await?;
        self.report.objects = objects;
        Ok(chunks)
    }

    fn check_room(&self, needed: u64) -> Result<(), TransferError> {
        let path = self.store.home();
        let Ok(stat) = rustix::fs::statvfs(path) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        match needed / BEST_RATIO > free {
            true => Err(TransferError::DiskFull { image: self.name.clone(), path: path.to_owned(), needed, free }),
            false => Ok(()),
        }
    }

    async fn fetch_chunks(&mut self, chunks: Vec<Wanted>, total: u64) -> Result<(), TransferError> {
        if chunks.is_empty() {
            return Ok(());
        }
        let parallel = self.options.parallel.max(1);
        let batch_bytes = (total / (2 * parallel as u64)).clamp(*BATCH_BYTES.start(), *BATCH_BYTES.end());
        let queue = Arc::new(Mutex::new(batches(chunks, batch_bytes)));
        let workers = parallel.min(queue.lock().len());
        let this = &*self;
        let workers = (0..workers).map(|_| {
            let queue = Arc::clone(&queue);
            async move {
                let progress = Arc::clone(&this.options.progress);
                let (sender, task) = sink::start(&this.store, false, move |bytes| progress.advance(bytes));
                let mut requests = 0;
                let mut failed = None;
                loop {
                    let Some(batch) = queue.lock().pop_front() else { break };
                    match this.fetch(&sender, batch).await {
                        Ok((count, _)) => requests += count,
                        Err(error) => {
                            // The others finish what they are at; what has arrived is kept.
                            queue.lock().clear();
                            failed = Some(error);
                            break;
                        }
                    }
                }
                drop(sender);
                let report = ended(task).await?;
                Ok::<_, TransferError>((report, requests, failed))
            }
        });
        let mut first = None;
        for result in futures::future::join_all(workers).await {
            match result {
                Ok((report, requests, failed)) => {
                    self.add(&report);
                    self.report.requests += requests;
                    first = first.or(failed);
                }
                Err(error) => first = Some(error),
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Fetches these objects into a sink, asking again for what did not come as long as something does. Returns the
    /// number of requests, and the objects if the sink keeps them.
    async fn fetch(&self, sink: &mpsc::Sender<Message>, wanted: Vec<Wanted>) -> Result<(u64, HashMap<Digest, Bytes>), TransferError> {
        let retry = &self.options.retry;
        let (mut requests, mut attempt, mut kept) = (0, 0, HashMap::new());
        // What did not come is asked for as it is: what it was to be compressed against may be what is damaged.
        let mut groups = groups(&wanted);
        let mut wanted: Vec<Digest> = wanted.into_iter().map(|object| object.digest).collect();
        loop {
            let asked = wanted.len();
            if wanted.is_empty() {
                return Ok((requests, kept));
            }
            requests += 1;
            let (outcome, error) = self.request(sink, wanted, std::mem::take(&mut groups)).await?;
            kept.extend(outcome.kept);
            if !outcome.absent.is_empty() {
                let (image, count) = (self.name.clone(), outcome.absent.len() as u64);
                let mut examples = outcome.absent;
                examples.truncate(EXAMPLES);
                return Err(TransferError::MissingOnRegistry { image, count, examples });
            }
            wanted = outcome.remaining;
            let Some(example) = wanted.first().copied() else { return Ok((requests, kept)) };
            attempt = if wanted.len() < asked { 1 } else { attempt + 1 };
            let error = match error {
                Some(error) if !error.is_retryable() => return Err(error.into()),
                Some(error) => error,
                None => OriginError::Protocol { url: self.registry.url().to_owned(), reason: format!("{} objects did not arrive", wanted.len()) },
            };
            if attempt >= retry.attempts {
                return Err(match outcome.damaged {
                    0 => error.into(),
                    _ => TransferError::Damaged { image: self.name.clone(), count: wanted.len() as u64, example },
                });
            }
            tracing::debug!(%error, attempt, remaining = wanted.len(), "asking again for what did not arrive");
            tokio::time::sleep(retry.pause(attempt, &error)).await;
        }
    }

    /// One request. Says what of it did not come, and why if the request failed.
    async fn request(
        &self,
        sink: &mpsc::Sender<Message>,
        wanted: Vec<Digest>,
        groups: Vec<WantedGroup>,
    ) -> Result<(Outcome, Option<OriginError>), TransferError> {
        let gone = || TransferError::Worker("the writer has stopped".into());
        sink.send(Message::Begin(wanted.clone())).await.map_err(|_| gone())?;
        let mut failed = None;
        match self.ask(wanted, &groups).await {
            Err(error) => failed = Some(error),
            Ok(mut stream) => {
                while let Some(item) = stream.next().await {
                    match item {
                        Ok(Received::End(text)) if !text.is_empty() => tracing::debug!(reason = text, "the registry ended its answer early"),
                        Ok(record) => sink.send(Message::Record(record)).await.map_err(|_| gone())?,
                        Err(error) => failed = Some(error),
                    }
                }
            }
        }
        let (reply, outcome) = oneshot::channel();
        sink.send(Message::End(reply)).await.map_err(|_| gone())?;
        Ok((outcome.await.map_err(|_| gone())?, failed))
    }

    async fn ask(&self, wanted: Vec<Digest>, groups: &[WantedGroup]) -> Result<ObjectStream, OriginError> {
        if !groups.is_empty()
            && self.registry.may_know_deltas()
            && let Some(stream) = self.registry.objects_like(&self.repository, &wanted, groups).await?
        {
            return Ok(stream);
        }
        self.registry.objects(&self.repository, wanted, None, true).await
    }

    fn add(&mut self, sink: &SinkReport) {
        self.report.moved_objects += sink.objects;
        self.report.moved_plain_bytes += sink.plain_bytes;
        self.report.moved_bytes += sink.bytes;
        self.report.packs += sink.packs;
    }
}

/// The sink's own error says more than that it has stopped.
async fn ended(task: tokio::task::JoinHandle<Result<SinkReport, TransferError>>) -> Result<SinkReport, TransferError> {
    task.await.map_err(|error| TransferError::Worker(error.to_string()))?
}

/// An inner object, what it is, and where it stands.
type Inner = (Digest, ObjectKind, Standing);

/// Those of the objects that are not here, with what they are like.
async fn absent(store: &Store, earlier: Option<Earlier>, nodes: Vec<(Digest, Standing)>) -> Result<Vec<Wanted>, TransferError> {
    let store = store.clone();
    blocking(move || {
        let digests: Vec<Digest> = nodes.iter().map(|(digest, _)| *digest).collect();
        let mut here = store.contains(&digests)?.into_iter();
        let mut nodes = nodes;
        nodes.retain(|_| here.next() == Some(false));
        Ok(match earlier {
            Some(earlier) => like_nodes(&earlier, &nodes),
            None => nodes.into_iter().map(|(digest, _)| Wanted::plain(digest, 0)).collect(),
        })
    })
    .await
}

/// The roots of these layers, which are here.
fn roots(store: &Store, layers: &[Digest]) -> Result<Vec<Digest>, TransferError> {
    let mut roots = Vec::new();
    for layer in layers {
        let bytes = store.get(layer)?.ok_or(TransferError::LocalDamage { digest: *layer })?;
        roots.extend(references(layer, ObjectKind::Layer, &bytes)?.into_iter().map(|(digest, _)| digest));
    }
    Ok(roots)
}

type Level = (HashSet<Digest>, Vec<Inner>);

/// Inner objects that those of `current` lead to and that were not seen yet.
fn next_level(store: &Store, current: Vec<Inner>, kept: &HashMap<Digest, Bytes>, mut seen: HashSet<Digest>) -> Result<Level, TransferError> {
    let mut next = Vec::new();
    for (number, (digest, kind, _)) in current.into_iter().enumerate() {
        let bytes = match kept.get(&digest) {
            Some(bytes) => Some(bytes.clone()),
            None => store.get(&digest)?,
        };
        let bytes = bytes.ok_or(TransferError::LocalDamage { digest })?;
        let mut standings = if kind == ObjectKind::Tree { Standing::of_children(&bytes) } else { HashMap::new() };
        for (child, child_kind) in references(&digest, kind, &bytes)? {
            if !matches!(child_kind, ObjectKind::Chunk { .. }) && seen.insert(child) {
                let standing = match kind {
                    // Layers are the first level, in their order.
                    ObjectKind::Layer => Standing::Root(number),
                    _ => standings.remove(&child).unwrap_or(Standing::Unknown),
                };
                next.push((child, child_kind, standing));
            }
        }
    }
    Ok((seen, next))
}

/// Cuts chunks into requests of about `bytes` uncompressed bytes.
fn batches(chunks: Vec<Wanted>, bytes: u64) -> VecDeque<Vec<Wanted>> {
    let mut out = VecDeque::new();
    let (mut batch, mut len) = (Vec::new(), 0);
    for chunk in chunks {
        len += u64::from(chunk.len);
        batch.push(chunk);
        if len >= bytes || batch.len() >= BATCH_DIGESTS {
            out.push_back(std::mem::take(&mut batch));
            len = 0;
        }
    }
    if !batch.is_empty() {
        out.push_back(batch);
    }
    out
}
