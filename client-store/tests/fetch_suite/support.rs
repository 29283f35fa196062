//! Fakes: a store that is a map, a registry in memory whose link and mood can be set, and images to run.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use client_store::fetch::{Candidate, Fetcher, FetcherOptions, Gauges, Room, Wanted, no_candidates};
use client_store::origin::{ObjectStream, Received};
use client_store::{FetchError, ObjectCache, Origin, OriginError, StoreError};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use layer_format::api::LaunchRequest;
use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::recipe::{Extent, Recipe};
use layer_format::reference::{ImageReference, Repository};
use layer_format::tree::{TreeBuilder, TreeRoot};
use layer_format::{Digest, LayerPath};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Longer than anything takes that works.
pub(crate) const LONG: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct FakeCache {
    objects: Mutex<HashMap<Digest, Bytes>>,
    pub(crate) is_full: AtomicBool,
    pub(crate) flushes: AtomicUsize,
}

impl FakeCache {
    pub(crate) fn holding<'a>(objects: impl IntoIterator<Item = (&'a Digest, &'a Bytes)>) -> Arc<Self> {
        let cache = Self::default();
        cache.objects.lock().extend(objects.into_iter().map(|(digest, bytes)| (*digest, bytes.clone())));
        Arc::new(cache)
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.lock().len()
    }

    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.objects.lock().contains_key(digest)
    }

    pub(crate) fn evict(&self, digest: &Digest) {
        self.objects.lock().remove(digest);
    }
}

impl ObjectCache for FakeCache {
    fn get(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(self.objects.lock().get(digest).cloned())
    }

    fn contains(&self, digests: &[Digest]) -> Result<Vec<bool>, StoreError> {
        let objects = self.objects.lock();
        Ok(digests.iter().map(|digest| objects.contains_key(digest)).collect())
    }

    fn insert(&self, objects: &[(Digest, Bytes)]) -> Result<(), StoreError> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(StoreError::Io { action: "writing", path: "pack".into(), source: std::io::Error::from_raw_os_error(28) });
        }
        for (digest, bytes) in objects {
            assert_eq!(*digest, Digest::of(bytes), "an object that was not verified reached the store");
        }
        self.objects.lock().extend(objects.iter().cloned());
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// How the registry behaves.
#[derive(Clone, Default)]
pub(crate) struct Mood {
    /// From a request to its first record.
    pub(crate) delay: Duration,
    /// Bytes a second of each answer; 0: at once.
    pub(crate) rate: f64,
    pub(crate) is_down: bool,
    /// Answers nothing until this is over.
    pub(crate) is_held: bool,
    /// Errors of the next requests.
    pub(crate) failures: VecDeque<OriginError>,
    /// So many of the next objects arrive damaged.
    pub(crate) damaged: u32,
    /// The next answer breaks after so many objects.
    pub(crate) cut_after: Option<usize>,
    /// The launch stream: what it sends, and whether it ends well, is cut, or hangs.
    pub(crate) launch: Vec<Received>,
    pub(crate) launch_end: LaunchEnd,
    /// The launch stream waits after this record until this is unset.
    pub(crate) launch_hold_after: Option<usize>,
}

#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum LaunchEnd {
    #[default]
    Well,
    Cut,
    Hang,
}

#[derive(Default)]
struct Inner {
    objects: Mutex<HashMap<Digest, Bytes>>,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<(Vec<Digest>, Option<String>)>>,
    launches: Mutex<Vec<LaunchRequest>>,
    taken_out: Mutex<HashSet<Digest>>,
}

/// A registry in memory.
#[derive(Clone, Default)]
pub(crate) struct FakeOrigin(Arc<Inner>);

fn cut() -> OriginError {
    OriginError::Network { url: "fake".into(), reason: "cut".into() }
}

impl FakeOrigin {
    pub(crate) fn holding<'a>(objects: impl IntoIterator<Item = (&'a Digest, &'a Bytes)>) -> Self {
        let origin = Self::default();
        origin.0.objects.lock().extend(objects.into_iter().map(|(digest, bytes)| (*digest, bytes.clone())));
        origin
    }

    pub(crate) fn mood(&self, change: impl FnOnce(&mut Mood)) {
        change(&mut self.0.mood.lock());
    }

    /// Requests for objects so far.
    pub(crate) fn requests(&self) -> usize {
        self.0.asked.lock().len()
    }

    /// The digests of each request for objects, and the launch it named.
    pub(crate) fn asked(&self) -> Vec<(Vec<Digest>, Option<String>)> {
        self.0.asked.lock().clone()
    }

    /// How often an object was asked for.
    pub(crate) fn times_asked(&self, digest: &Digest) -> usize {
        self.0.asked.lock().iter().flat_map(|(digests, _)| digests).filter(|asked| *asked == digest).count()
    }

    pub(crate) fn launches(&self) -> Vec<LaunchRequest> {
        self.0.launches.lock().clone()
    }

    async fn wait_while_held(&self) {
        while self.0.mood.lock().is_held {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the link lets the request through.
    async fn admit(&self) -> Result<(), OriginError> {
        self.wait_while_held().await;
        let (delay, down, failure) = {
            let mut mood = self.0.mood.lock();
            (mood.delay, mood.is_down, mood.failures.pop_front())
        };
        tokio::time::sleep(delay).await;
        match failure {
            Some(failure) => Err(failure),
            None if down || self.0.mood.lock().is_down => Err(cut()),
            None => Ok(()),
        }
    }

    async fn transfer(&self, bytes: usize) {
        let rate = self.0.mood.lock().rate;
        if rate > 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate)).await;
        }
    }

    async fn send(&self, digest: Digest) -> Received {
        let Some(bytes) = self.0.objects.lock().get(&digest).cloned() else { return Received::Missing(digest) };
        self.transfer(bytes.len()).await;
        let mut mood = self.0.mood.lock();
        if mood.damaged > 0 {
            mood.damaged -= 1;
            let mut bytes = bytes.to_vec();
            bytes[0] ^= 1;
            return Received::Object(bytes.into());
        }
        Received::Object(bytes)
    }
}

impl Origin for FakeOrigin {
    fn objects(&self, _: &Repository, digests: Vec<Digest>, launch: Option<&str>, _: bool) -> BoxFuture<'static, Result<ObjectStream, OriginError>> {
        self.0.asked.lock().push((digests.clone(), launch.map(str::to_owned)));
        if launch.is_some() {
            self.0.taken_out.lock().extend(&digests);
        }
        let origin = self.clone();
        async move {
            origin.admit().await?;
            let cut_after = origin.0.mood.lock().cut_after.take();
            let stream = futures::stream::unfold((origin, digests.into_iter(), 0), move |(origin, mut digests, sent)| async move {
                if cut_after == Some(sent) || origin.0.mood.lock().is_down {
                    return (sent != usize::MAX).then(|| (Err(cut()), (origin, Vec::new().into_iter(), usize::MAX)));
                }
                match digests.next() {
                    Some(digest) => Some((Ok(origin.send(digest).await), (origin, digests, sent + 1))),
                    None if sent != usize::MAX => Some((Ok(Received::End(String::new())), (origin, digests, usize::MAX))),
                    None => None,
                }
            });
            Ok(stream.boxed())
        }
        .boxed()
    }

    fn launch(&self, _: &ImageReference, _: &str, request: LaunchRequest) -> BoxFuture<'static, Result<ObjectStream, OriginError>> {
        self.0.launches.lock().push(request);
        let origin = self.clone();
        async move {
            origin.admit().await?;
            let (records, end) = {
                let mood = origin.0.mood.lock();
                (mood.launch.clone(), mood.launch_end)
            };
            let stream = futures::stream::unfold((origin, records.into_iter(), 0), move |(origin, mut records, at)| async move {
                while origin.0.mood.lock().launch_hold_after.is_some_and(|after| at >= after) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                loop {
                    match records.next() {
                        Some(Received::Object(bytes)) if origin.0.taken_out.lock().contains(&Digest::of(&bytes)) => {}
                        Some(record) => {
                            if let Received::Object(bytes) = &record {
                                origin.transfer(bytes.len()).await;
                            }
                            return Some((Ok(record), (origin, records, at + 1)));
                        }
                        None if at == usize::MAX => return None,
                        None => match end {
                            LaunchEnd::Well => return Some((Ok(Received::End(String::new())), (origin, records, usize::MAX))),
                            LaunchEnd::Cut => return Some((Err(cut()), (origin, records, usize::MAX))),
                            LaunchEnd::Hang => std::future::pending().await,
                        },
                    }
                }
            });
            Ok(stream.boxed())
        }
        .boxed()
    }

    fn warm_up(&self, _: usize) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }

    fn put_trace(&self, _: &Repository, trace: Vec<u8>) -> BoxFuture<'static, Result<(), OriginError>> {
        let _ = trace;
        async { Ok(()) }.boxed()
    }
}

/// Objects of random bytes, of these lengths.
pub(crate) fn objects(seed: u64, lens: impl IntoIterator<Item = usize>) -> Vec<(Digest, Bytes)> {
    let mut rng = StdRng::seed_from_u64(seed);
    lens.into_iter()
        .map(|len| {
            let mut bytes = vec![0; len];
            rng.fill(&mut bytes[..]);
            (Digest::of(&bytes), Bytes::from(bytes))
        })
        .collect()
}

pub(crate) fn refs(objects: &[(Digest, Bytes)]) -> impl Iterator<Item = (&Digest, &Bytes)> {
    objects.iter().map(|(digest, bytes)| (digest, bytes))
}

pub(crate) fn candidate((digest, bytes): &(Digest, Bytes), probability: f32) -> Candidate {
    Candidate { digest: *digest, len: bytes.len() as u32, probability, within_us: 0 }
}

/// A fetcher over fakes, with its runtime.
pub(crate) struct Bench {
    _runtime: tokio::runtime::Runtime,
    pub(crate) cache: Arc<FakeCache>,
    pub(crate) origin: FakeOrigin,
    pub(crate) fetcher: Arc<Fetcher>,
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) fn repository() -> Repository {
    "tools/app".parse().unwrap()
}

impl Bench {
    pub(crate) fn new(objects: &[(Digest, Bytes)], change: impl FnOnce(&mut FetcherOptions)) -> Self {
        let (runtime, cache, origin) = (runtime(), Arc::new(FakeCache::default()), FakeOrigin::holding(refs(objects)));
        let mut options = FetcherOptions::new(cache.clone(), Some(Arc::new(origin.clone())), repository(), runtime.handle().clone());
        options.wait_limit = LONG;
        change(&mut options);
        let fetcher = Arc::new(Fetcher::new(options));
        Self { _runtime: runtime, cache, origin, fetcher }
    }

    pub(crate) fn get(&self, digest: &Digest) -> Result<Bytes, FetchError> {
        self.fetcher.get(digest, &no_candidates)
    }

    pub(crate) fn get_with(&self, (digest, bytes): &(Digest, Bytes), candidates: Vec<Candidate>) -> Result<Bytes, FetchError> {
        let choose = move |_: Room| candidates.clone();
        let found = self.fetcher.get_many(&[Wanted { digest: *digest, len: bytes.len() as u32 }], &choose)?;
        Ok(found[0].bytes.clone())
    }

    pub(crate) fn assert_quiet(&self) {
        eventually("all gauges back to zero", || self.fetcher.gauges() == Gauges::default());
    }
}

/// Waits for something that happens by itself.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(started.elapsed() < LONG, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An image with one layer, and what its files hold.
pub(crate) struct Image {
    pub(crate) reference: ImageReference,
    pub(crate) digest: Digest,
    pub(crate) manifest: Bytes,
    pub(crate) layer: (Digest, Bytes),
    pub(crate) root: TreeRoot,
    pub(crate) objects: HashMap<Digest, Bytes>,
    pub(crate) entries: BTreeMap<LayerPath, Entry>,
    pub(crate) contents: BTreeMap<LayerPath, Vec<u8>>,
}

impl Image {
    /// `count` files of random sizes and holes in some directories.
    pub(crate) fn random(seed: u64, count: usize, max_chunks: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let objects = std::cell::RefCell::new(HashMap::new());
        let mut put = |bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            objects.borrow_mut().insert(digest, Bytes::from(bytes));
            Ok::<_, Infallible>(digest)
        };
        let mut entries = BTreeMap::new();
        let mut contents = BTreeMap::new();
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let add_directory = |path: LayerPath, entries: &mut BTreeMap<LayerPath, Entry>| {
            entries.entry(path.clone()).or_insert(Entry { path, meta: meta.clone(), kind: Kind::Directory { opaque: false } });
        };
        add_directory(LayerPath::root(), &mut entries);
        for number in 0..count {
            let directory = LayerPath::new(format!("d{}", rng.random_range(0..count.div_ceil(20)))).unwrap();
            add_directory(directory.clone(), &mut entries);
            let path = directory.join(format!("file{number}").as_bytes()).unwrap();
            let mut content = Vec::new();
            let mut extents = Vec::new();
            for _ in 0..rng.random_range(0..=max_chunks) {
                if rng.random_ratio(1, 8) {
                    let len = rng.random_range(1..100_000);
                    content.resize(content.len() + len, 0);
                    extents.push(Extent::Hole(len as u64));
                } else {
                    let mut chunk = vec![0; rng.random_range(1..30_000)];
                    rng.fill(&mut chunk[..]);
                    let Ok(digest) = put(chunk.clone());
                    extents.push(Extent::Data(ChunkRef { digest, len: chunk.len() as u32 }));
                    content.extend(chunk);
                }
            }
            let Ok(recipe) = Recipe::build(extents, &mut put);
            entries.insert(path.clone(), Entry { path: path.clone(), meta: Meta { mode: 0o644, ..Meta::default() }, kind: Kind::File(recipe) });
            contents.insert(path, content);
        }
        let mut builder = TreeBuilder::new();
        for entry in entries.values() {
            builder.push(entry.clone(), &mut put).unwrap();
        }
        let root = builder.finish(&mut put).unwrap();
        let layer = LayerManifest::new(root.digest, root.entries, contents.values().map(|content| content.len() as u64).sum()).encode().unwrap();
        let Ok(layer_digest) = put(layer.clone());
        let manifest = ImageManifest::new("x86_64", vec![layer_digest]).encode().unwrap();
        let Ok(digest) = put(manifest.clone());
        let objects = objects.into_inner();
        Self {
            reference: "tools/app".parse().unwrap(),
            digest,
            manifest: manifest.into(),
            layer: (layer_digest, layer.into()),
            root,
            objects,
            entries,
            contents,
        }
    }

    /// The part of the launch stream before the plan.
    pub(crate) fn preamble(&self) -> Vec<Received> {
        vec![Received::Image(self.manifest.clone()), Received::Object(self.layer.1.clone()), Received::Object(self.objects[&self.root.digest].clone())]
    }

    /// The chunks of a file, in order.
    pub(crate) fn chunks(&self, path: &LayerPath) -> Vec<Digest> {
        let Kind::File(recipe) = &self.entries[path].kind else { return Vec::new() };
        let mut walk = layer_format::recipe::RangeWalk::new(recipe, 0..recipe.len());
        let mut chunks = Vec::new();
        loop {
            match walk.step() {
                layer_format::recipe::RangeStep::Need(digest) => walk.feed(Recipe::decode_node(&self.objects[&digest]).unwrap()).unwrap(),
                layer_format::recipe::RangeStep::Extent { extent: Extent::Data(chunk), .. } => chunks.push(chunk.digest),
                layer_format::recipe::RangeStep::Extent { .. } => {}
                layer_format::recipe::RangeStep::Done => return chunks,
            }
        }
    }
}
