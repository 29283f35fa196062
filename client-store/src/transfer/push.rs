//! Push: all of an image to a registry.
//!
//! What the registry lacks is packed in tree order. A stored frame all of whose objects are lacking goes as it is; what
//! is left of others is compressed anew. A delta frame goes as it is where the registry has what it needs. Packs are built one ahead of the network, in files below the store's `tmp/`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt, stream};
use layer_format::Digest;
use layer_format::api::MAX_DIGESTS;
use layer_format::reference::{ImageReference, Repository, Revision};
use tokio::sync::mpsc;

use super::assemble::{AssembleError, Assembler};
use super::{Phase, TransferError, TransferOptions, TransferReport, blocking};
use crate::cache::ObjectCache;
use crate::error::StoreError;
use crate::origin::OriginError;
use crate::remote::Registry;
use crate::store::{Store, StoredImage, Walk, WalkError};

/// Level for objects that are packed anew.
const LEVEL: i32 = 3;
/// Questions for what is missing, at a time.
const PARALLEL_QUESTIONS: usize = 3;
/// What the registry says of a pack with delta frames whose bases it does not have as it should.
const BASES_CODE: &str = "BASES_MISSING";
/// How often a push starts over because the registry lost something meanwhile.
pub(super) const ROUNDS: usize = 3;

/// Sends all of the local image `image` to the registry, as `target`. What is there already does not travel; an image
/// that `target` names already costs one small request.
///
/// # Errors
/// [`TransferError`]. Packs that arrived stay there for a while: the same call goes on from there.
pub async fn push(
    store: &Store,
    registry: &Registry,
    image: &ImageReference,
    target: &ImageReference,
    options: &TransferOptions,
) -> Result<TransferReport, TransferError> {
    let progress = &options.progress;
    let (hold, found) = {
        let (store, image) = (store.clone(), image.clone());
        blocking(move || Ok((store.hold()?, store.image_get(&image)?))).await?
    };
    let image = found.ok_or_else(|| TransferError::NotLocal { image: image.to_string() })?;
    let mut push = Push::new(store, registry, &target.repository, target.to_string(), image.digest, options);
    progress.phase(Phase::Manifest, None);
    if !push.has(target).await? {
        push.send_image(&image, target).await?;
    }
    let (store, digest) = (store.clone(), image.digest);
    blocking(move || Ok(store.release_pushed_packs(&digest)?)).await?;
    drop(hold);
    Ok(push.report)
}

/// Sends what a repository lacks and this store has.
pub(super) struct Push {
    pub(super) store: Store,
    pub(super) registry: Registry,
    pub(super) repository: Repository,
    /// How to call in messages what is pushed.
    name: String,
    pub(super) options: TransferOptions,
    pub(super) report: TransferReport,
}

impl Push {
    pub(super) fn new(store: &Store, registry: &Registry, repository: &Repository, name: String, digest: Digest, options: &TransferOptions) -> Self {
        Self {
            store: store.clone(),
            registry: registry.clone(),
            repository: repository.clone(),
            name,
            options: options.clone(),
            report: TransferReport::new(digest),
        }
    }

    /// Whether the registry has the image under this name.
    async fn has(&mut self, name: &ImageReference) -> Result<bool, TransferError> {
        let (requests, registry) = (&mut self.report.requests, &self.registry);
        let head = self.options.retry.run(|| {
            *requests += 1;
            registry.head(name)
        });
        match head.await {
            Ok(digest) => Ok(digest == self.report.digest),
            Err(OriginError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn send_image(&mut self, image: &StoredImage, target: &ImageReference) -> Result<(), TransferError> {
        let by_digest = ImageReference { repository: self.repository.clone(), revision: Revision::Digest(image.digest) };
        let complete = target.release().is_some() && self.has(&by_digest).await?;
        let layers = image.manifest()?.layers;
        for round in 1.. {
            if !complete || round > 1 {
                self.send_layers(&layers).await?;
            }
            self.options.progress.phase(Phase::Commit, None);
            let (requests, registry) = (&mut self.report.requests, &self.registry);
            let put = self.options.retry.run(|| {
                *requests += 1;
                registry.put_manifest(target, image.bytes.clone())
            });
            match put.await {
                // Its garbage collection was faster.
                Err(OriginError::Refused { code, .. }) if code == "OBJECTS_MISSING" && round < ROUNDS => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        Ok(())
    }

    /// Sends what the registry lacks of all that these layers need.
    pub(super) async fn send_layers(&mut self, layers: &[Digest]) -> Result<(), TransferError> {
        self.options.progress.phase(Phase::Compare, None);
        let objects = self.closure(layers).await?;
        self.report.objects = objects.len() as u64;
        let missing = self.missing(objects).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let (store, name, lacking) = (self.store.clone(), self.name.clone(), missing.clone());
        let units = blocking(move || plan(&store, lacking, &name)).await?;
        let (units, deltas) = self.without_refused_deltas(units).await?;
        match self.send_units(units, deltas).await {
            // What the registry had a moment ago it has no more, or elsewhere: all of it plain.
            Err(TransferError::Origin(OriginError::Refused { code, .. })) if deltas && code == BASES_CODE => {
                let (store, name) = (self.store.clone(), self.name.clone());
                let units = blocking(move || plan(&store, missing, &name)).await?;
                self.send_units(units.into_iter().flat_map(Unit::into_plain).collect(), false).await
            }
            result => result,
        }
    }

    async fn send_units(&mut self, units: Vec<Unit>, deltas: bool) -> Result<(), TransferError> {
        self.options.progress.phase(Phase::Data, Some(units.iter().map(Unit::stored_len).sum()));
        self.send_packs(units, deltas).await
    }

    /// Leaves those delta frames as they are whose bases the registry has; the objects of others go one by one. Says whether any
    /// delta frame is left.
    async fn without_refused_deltas(&mut self, units: Vec<Unit>) -> Result<(Vec<Unit>, bool), TransferError> {
        let groups: Vec<Vec<Digest>> = units.iter().map(Unit::bases).filter(|bases| !bases.is_empty()).map(<[_]>::to_vec).collect();
        let mut taken = Vec::with_capacity(groups.len());
        let mut rest = &groups[..];
        while !rest.is_empty() && self.registry.may_know_deltas() {
            // As many as one question may hold.
            let mut digests = 0;
            let fits = rest.iter().take_while(|group| {
                digests += group.len();
                digests <= MAX_DIGESTS
            });
            let (asked, later) = rest.split_at(fits.count().max(1));
            let (requests, registry, repository) = (&mut self.report.requests, &self.registry, &self.repository);
            let answer = self.options.retry.run(|| {
                *requests += 1;
                registry.takes_bases(repository, asked)
            });
            let Some(answer) = answer.await? else { break };
            taken.extend(answer);
            rest = later;
        }
        let any = taken.contains(&true);
        let mut taken = taken.into_iter();
        let keep = |unit: Unit| match unit.bases().is_empty() || taken.next() == Some(true) {
            true => vec![unit],
            false => unit.into_plain(),
        };
        Ok((units.into_iter().flat_map(keep).collect(), any))
    }

    /// All that the layers need, in tree order. What is not here of their inner objects cannot be walked.
    async fn closure(&self, layers: &[Digest]) -> Result<Vec<Digest>, TransferError> {
        let (store, layers, name) = (self.store.clone(), layers.to_vec(), self.name.clone());
        blocking(move || {
            let (mut objects, mut lacking) = (Vec::new(), Vec::new());
            Walk::default().layers(&store, &layers, &mut |visit| {
                objects.push(visit.digest);
                if visit.is_unknown() {
                    lacking.push(visit.digest);
                }
                Ok::<_, WalkError>(())
            })?;
            match lacking.first() {
                Some(example) => Err(TransferError::Incomplete { image: name, count: lacking.len() as u64, example: *example }),
                None => Ok(objects),
            }
        })
        .await
    }

    /// Which of these the registry lacks, in order.
    async fn missing(&mut self, objects: Vec<Digest>) -> Result<Vec<Digest>, TransferError> {
        let asked = AtomicU64::new(0);
        let this = &*self;
        let batches: Vec<Vec<Digest>> = objects.chunks(MAX_DIGESTS).map(<[_]>::to_vec).collect();
        drop(objects);
        let answers: Vec<Vec<Digest>> = stream::iter(batches)
            .map(|batch| {
                let asked = &asked;
                async move {
                    let answer = this.options.retry.run(|| {
                        asked.fetch_add(1, Ordering::Relaxed);
                        this.registry.missing(&this.repository, &batch)
                    });
                    let lacking = answer.await?;
                    Ok::<_, OriginError>(batch.iter().zip(lacking).filter(|(_, lacking)| *lacking).map(|(digest, _)| *digest).collect())
                }
            })
            .buffered(PARALLEL_QUESTIONS)
            .try_collect()
            .await?;
        self.report.requests += asked.into_inner();
        Ok(answers.concat())
    }

    async fn send_packs(&mut self, units: Vec<Unit>, deltas: bool) -> Result<(), TransferError> {
        let (sender, receiver) = mpsc::channel(1);
        let (store, name) = (self.store.clone(), self.name.clone());
        let building = tokio::task::spawn_blocking(move || build_packs(&store, units, deltas, &name, &sender));
        let requests = Arc::new(AtomicU64::new(0));
        let this = &*self;
        let packs = stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|pack| (pack, receiver)) });
        let sent: Result<Vec<BuiltPack>, TransferError> = packs
            .map(|pack| {
                let requests = Arc::clone(&requests);
                async move { this.send_pack(pack, &requests).await }
            })
            .buffer_unordered(self.options.parallel.max(1))
            .try_collect()
            .await;
        let built = building.await.map_err(|error| TransferError::Worker(error.to_string()))?;
        self.report.requests += requests.load(Ordering::Relaxed);
        for pack in sent? {
            self.report.packs += 1;
            self.report.moved_bytes += pack.len;
            self.report.moved_objects += pack.objects;
            self.report.moved_plain_bytes += pack.plain_bytes;
        }
        built
    }

    async fn send_pack(&self, pack: BuiltPack, requests: &AtomicU64) -> Result<BuiltPack, TransferError> {
        // What was sent in vain is not progress twice.
        let reported = Arc::new(AtomicU64::new(0));
        let sent = self.options.retry.run(|| {
            requests.fetch_add(1, Ordering::Relaxed);
            let (progress, reported, so_far) = (Arc::clone(&self.options.progress), Arc::clone(&reported), AtomicU64::new(0));
            self.registry.put_pack(&self.repository, &pack.digest, &pack.file.path, move |bytes| {
                let now = so_far.fetch_add(bytes, Ordering::Relaxed) + bytes;
                let before = reported.fetch_max(now, Ordering::Relaxed);
                progress.advance(now.saturating_sub(before));
            })
        });
        sent.await?;
        Ok(pack)
    }
}

/// What goes into packs, in order.
enum Unit {
    /// A stored frame as it is, with its objects in order, each with its length, and what it is compressed against.
    Frame { pack: u32, offset: u64, len: u32, objects: Vec<(Digest, u32)>, bases: Vec<Digest> },
    /// One object, compressed anew with its neighbours.
    Object { digest: Digest, len: u32 },
}

impl Unit {
    /// About what it adds to a pack.
    fn stored_len(&self) -> u64 {
        match self {
            Self::Frame { len, .. } | Self::Object { len, .. } => (*len).into(),
        }
    }

    /// What a delta frame is compressed against.
    fn bases(&self) -> &[Digest] {
        match self {
            Self::Frame { bases, .. } => bases,
            Self::Object { .. } => &[],
        }
    }

    /// Its objects one by one, if it is a delta frame.
    fn into_plain(self) -> Vec<Self> {
        match self {
            Self::Frame { objects, bases, .. } if !bases.is_empty() => objects.into_iter().map(|(digest, len)| Self::Object { digest, len }).collect(),
            unit => vec![unit],
        }
    }
}

/// An object of a frame that goes: its slot, and its name and length.
type Going = (u16, Digest, u32);

/// Decides what goes as a frame and what one by one.
fn plan(store: &Store, missing: Vec<Digest>, image: &str) -> Result<Vec<Unit>, TransferError> {
    let places = store.places(&missing)?;
    let lacking: Vec<Digest> = missing.iter().zip(&places).filter(|(_, place)| place.is_none()).map(|(digest, _)| *digest).collect();
    if let Some(example) = lacking.first() {
        return Err(TransferError::Incomplete { image: image.to_owned(), count: lacking.len() as u64, example: *example });
    }
    // Objects of each frame that go, by slot.
    let mut frames: HashMap<(u32, u64), Vec<Going>> = HashMap::new();
    for (digest, place) in missing.iter().zip(places.iter().flatten()) {
        if let Some((slot, _)) = place.frame {
            frames.entry((place.pack, place.offset)).or_default().push((slot, *digest, place.len));
        }
    }
    let mut units = Vec::new();
    let mut decided: HashSet<(u32, u64)> = HashSet::new();
    let mut whole: HashSet<(u32, u64)> = HashSet::new();
    for (digest, place) in missing.iter().zip(places.iter().flatten()) {
        let key = (place.pack, place.offset);
        if let Some((_, frame_len)) = place.frame {
            if decided.insert(key)
                && let Some(going) = frames.get_mut(&key)
            {
                going.sort_unstable();
                let in_order = going.iter().enumerate().all(|(at, (slot, ..))| at == usize::from(*slot));
                let head = store.frame_head(place.pack, place.offset);
                if let Some((count, bases)) = head
                    && in_order
                    && count == going.len()
                {
                    whole.insert(key);
                    units.push(Unit::Frame {
                        pack: place.pack,
                        offset: place.offset,
                        len: frame_len,
                        objects: going.iter().map(|(_, digest, len)| (*digest, *len)).collect(),
                        bases,
                    });
                }
            }
            if whole.contains(&key) {
                continue;
            }
        }
        units.push(Unit::Object { digest: *digest, len: place.len });
    }
    Ok(units)
}

/// A pack ready to be sent; its file goes away with it.
struct BuiltPack {
    file: TempFile,
    digest: Digest,
    len: u64,
    objects: u64,
    plain_bytes: u64,
}

struct TempFile {
    path: PathBuf,
    /// Locked, so that no other process takes it for a leftover.
    _file: File,
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

type OpenPack = (Assembler<std::io::BufWriter<File>>, TempFile);

fn build_packs(store: &Store, units: Vec<Unit>, deltas: bool, image: &str, out: &mpsc::Sender<BuiltPack>) -> Result<(), TransferError> {
    let mut open: Option<OpenPack> = None;
    let last = units.len().saturating_sub(1);
    for (at, unit) in units.into_iter().enumerate() {
        let (mut pack, file) = match open.take() {
            Some(open) => open,
            None => {
                let (path, file) = store.temporary("push")?;
                let writer = file.try_clone().map_err(|source| StoreError::Io { action: "opening", path: path.clone(), source })?;
                let pack =
                    Assembler::new(std::io::BufWriter::with_capacity(256 << 10, writer), LEVEL, deltas).map_err(|error| assemble_failed(store, error))?;
                (pack, TempFile { path, _file: file })
            }
        };
        add(store, &mut pack, unit, image)?;
        if !pack.is_full() && at != last {
            open = Some((pack, file));
            continue;
        }
        let finished = pack.finish().map_err(|error| assemble_failed(store, error))?;
        let objects = finished.index.objects.len() as u64;
        let plain_bytes = finished.index.objects.iter().map(|object| u64::from(object.len)).sum();
        let built = BuiltPack { file, digest: finished.digest, len: finished.len, objects, plain_bytes };
        if out.blocking_send(built).is_err() {
            // The sending side failed and says why.
            return Ok(());
        }
    }
    Ok(())
}

fn add(store: &Store, pack: &mut Assembler<std::io::BufWriter<File>>, unit: Unit, image: &str) -> Result<(), TransferError> {
    let single = match unit {
        Unit::Object { digest, .. } => vec![digest],
        Unit::Frame { pack: id, offset, len, objects, .. } => {
            let objects: Vec<Digest> = objects.into_iter().map(|(digest, _)| digest).collect();
            match store.verified_frame(id, offset, len, &objects) {
                Some((encoded, names)) => return pack.push_frame(&encoded, &names).map_err(|error| assemble_failed(store, error)),
                // Damaged or gone: perhaps not every object of it.
                None => objects,
            }
        }
    };
    for digest in single {
        let bytes = store.get(&digest)?.ok_or_else(|| TransferError::Incomplete { image: image.to_owned(), count: 1, example: digest })?;
        pack.push_object(digest, &bytes).map_err(|error| assemble_failed(store, error))?;
    }
    Ok(())
}

pub(super) fn assemble_failed(store: &Store, error: AssembleError) -> TransferError {
    match error {
        AssembleError::Io(source) => StoreError::Io { action: "writing a pack below", path: store.home().to_owned(), source }.into(),
        AssembleError::Format(source) => TransferError::Format { digest: Digest([0; 32]), source },
    }
}
