//! A registry without its sockets, whose clock, storage and database obey the test.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::oci::{Algorithm, OciDigest};
use layer_format::recipe::{Extent, Recipe};
use layer_format::reference::Repository;
use layer_format::tree::TreeBuilder;
use layer_format::{Digest, LayerPath, pack};
use sha2::Digest as _;

use crate::blob_storage::{BlobStat, BlobStorage, BlobWriter, RemoteStorage, StorageError};
use crate::db::namespace::namespace_find;
use crate::db::{Clock, Db};
use crate::service::frames::Frames;
use crate::service::gc::{Collector, GcError, GcOptions, GcReport, GcSettings};
use crate::service::image::{PutError, Reference, image_get, image_put};
use crate::service::nodes::Nodes;
use crate::service::objects::Objects;
use crate::service::oci::Oci;
use crate::service::oci::manifest::OciReference;
use crate::service::pack_upload::{Pieces, pack_store};

pub(super) const HOUR: i64 = 60 * 60 * 1000;

/// Settings whose windows are short in comparison with the steps of a history.
pub(super) fn settings() -> GcSettings {
    GcSettings {
        interval: Duration::ZERO,
        delay: Duration::from_secs(2 * 60 * 60),
        undo_window: Duration::from_secs(5 * 60 * 60),
        reader_grace: Duration::from_secs(60 * 60),
        dead_fraction: 0.3,
        small_pack_bytes: 100_000,
        small_pack_count: 4,
        rest: 0.0,
    }
}

/// A storage that dies with the database.
#[derive(Debug)]
struct Mortal {
    inner: Arc<dyn BlobStorage>,
    clock: Clock,
}

impl Mortal {
    fn step(&self, key: &str) -> Result<(), StorageError> {
        match self.clock.try_step() {
            true => Ok(()),
            false => Err(StorageError::Io { doing: "reach", path: key.into(), source: std::io::Error::other("the process died") }),
        }
    }
}

impl BlobStorage for Mortal {
    fn create(&self, key: &str) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, StorageError>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.step(&key)?;
            let inner = self.inner.create(&key).await?;
            Ok(Box::new(MortalWriter { inner, clock: self.clock.clone() }) as Box<dyn BlobWriter>)
        })
    }

    fn read(&self, key: &str, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, StorageError>> {
        self.inner.read(key, range)
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StorageError>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.step(&key)?;
            self.inner.delete(&key).await
        })
    }

    fn rename(&self, from: &str, to: &str) -> BoxFuture<'_, Result<(), StorageError>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Box::pin(async move {
            self.step(&from)?;
            self.inner.rename(&from, &to).await
        })
    }

    fn stat(&self, key: &str) -> BoxFuture<'_, Result<Option<BlobStat>, StorageError>> {
        self.inner.stat(key)
    }

    fn list_packs(&self) -> BoxStream<'_, Result<(Digest, BlobStat), StorageError>> {
        self.inner.list_packs()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        self.inner.check()
    }
}

struct MortalWriter {
    inner: Box<dyn BlobWriter>,
    clock: Clock,
}

impl BlobWriter for MortalWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), StorageError>> {
        self.inner.write(bytes)
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), StorageError>> {
        Box::pin(async move {
            match self.clock.try_step() {
                true => self.inner.finish().await,
                false => {
                    self.inner.abort().await;
                    Err(StorageError::NotFound { key: "the process died".into() })
                }
            }
        })
    }

    fn abort(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.abort()
    }
}

/// A new database of the PostgreSQL server that `TURBO_GC_POSTGRES` names (`postgres://USER@/NAME?host=FOLDER`); else an SQLite file.
async fn database() -> Option<String> {
    use sqlx::Connection;
    let server = std::env::var("TURBO_GC_POSTGRES").ok()?;
    let name = format!("gc_{:016x}", rand::random::<u64>());
    let mut db = sqlx::PgConnection::connect(&server).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut db).await.unwrap();
    let (before, after) = server.rsplit_once("/postgres").unwrap();
    Some(format!("{before}/{name}{after}"))
}

/// A body that is there.
pub(super) struct Whole(pub(super) Option<Bytes>);

impl Pieces for Whole {
    type Error = std::convert::Infallible;

    async fn next(&mut self) -> Option<Result<Bytes, Self::Error>> {
        self.0.take().map(Ok)
    }
}

/// An image of one layer, with all its objects.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) image: Vec<u8>,
    pub(super) objects: BTreeMap<Digest, Vec<u8>>,
    pub(super) layer: Digest,
}

impl Sample {
    /// Files by number; the same number has the same content in every sample.
    pub(super) fn new(files: &BTreeSet<u64>) -> Self {
        let mut objects = BTreeMap::new();
        let mut put = |bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            objects.insert(digest, bytes);
            Ok::<_, std::convert::Infallible>(digest)
        };
        let mut builder = TreeBuilder::new();
        let directory = Entry { path: LayerPath::root(), meta: Meta::default(), kind: Kind::Directory { opaque: false } };
        builder.push(directory, &mut put).unwrap();
        for number in files {
            // Some files have so many chunks that their recipe has nodes.
            let chunks = if number % 5 == 0 { 12 } else { 1 + number % 3 };
            let mut extents = Vec::new();
            for chunk in 0..chunks {
                let bytes = noise(number * 100 + chunk, 700);
                let digest = put(bytes).unwrap();
                extents.push(Extent::Data(ChunkRef { digest, len: 700 }));
            }
            let recipe = Recipe::build(extents, &mut put).unwrap();
            let path = LayerPath::new(format!("file{number:04}")).unwrap();
            builder.push(Entry { path, meta: Meta { mode: 0o644, ..Meta::default() }, kind: Kind::File(recipe) }, &mut put).unwrap();
        }
        let root = builder.finish(&mut put).unwrap();
        let layer = put(LayerManifest::new(root.digest, root.entries, 0).encode().unwrap()).unwrap();
        let image = ImageManifest::new("x86_64", vec![layer]).encode().unwrap();
        Self { image, objects, layer }
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.image)
    }

    pub(super) fn pack(&self, only: impl Fn(&Digest) -> bool) -> Vec<u8> {
        pack::build(self.objects.iter().filter(|(digest, _)| only(digest)).map(|(_, bytes)| bytes), Some(1)).unwrap().0
    }
}

/// Bytes that are the same for the same seed.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn sha256(bytes: &[u8]) -> OciDigest {
    OciDigest::new(Algorithm::Sha256, &sha2::Sha256::digest(bytes)).unwrap()
}

/// An artifact of one blob, and the empty configuration.
#[derive(Clone, Debug)]
pub(super) struct Artifact {
    pub(super) blob: Vec<u8>,
    pub(super) manifest: Vec<u8>,
}

impl Artifact {
    pub(super) fn new(blob: Vec<u8>) -> Self {
        let config = sha256(b"{}");
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "application/x.test",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.as_str(), "size": 2},
            "layers": [{"mediaType": "application/octet-stream", "digest": sha256(&blob).as_str(), "size": blob.len()}],
        });
        Self { blob, manifest: manifest.to_string().into_bytes() }
    }

    pub(super) fn digest(&self) -> OciDigest {
        sha256(&self.manifest)
    }
}

/// The registry.
pub(super) struct World {
    pub(super) db: Db,
    pub(super) storage: Arc<dyn BlobStorage>,
    pub(super) objects: Objects,
    pub(super) nodes: Arc<Nodes>,
    pub(super) oci: Arc<Oci>,
    pub(super) collector: Collector,
    backing: Arc<dyn BlobStorage>,
    ahead: i64,
    url: Option<String>,
    _dir: Arc<tempfile::TempDir>,
}

impl World {
    pub(super) async fn new() -> Self {
        // In memory where there is such a folder: what a disk does at power loss is not looked at here.
        let base = Some(Path::new("/dev/shm")).filter(|path| path.is_dir()).map_or_else(std::env::temp_dir, Path::to_path_buf);
        let dir = Arc::new(tempfile::tempdir_in(base).unwrap());
        let backing: Arc<dyn BlobStorage> = Arc::new(RemoteStorage::new(Arc::new(object_store::memory::InMemory::new()), Default::default()));
        Self::open(dir, backing, 0, database().await).await
    }

    async fn open(dir: Arc<tempfile::TempDir>, backing: Arc<dyn BlobStorage>, ahead: i64, url: Option<String>) -> Self {
        let folder = dir.path().to_path_buf();
        let db = Db::open(url.as_deref(), &folder.join("registry.db"), 8).await.unwrap();
        db.clock().advance(ahead);
        let storage: Arc<dyn BlobStorage> = Arc::new(Mortal { inner: Arc::clone(&backing), clock: db.clock().clone() });
        let frames = Arc::new(Frames::new(db.clone(), Arc::clone(&storage), Arc::default(), 1 << 20));
        let objects = Objects { db: db.clone(), frames, only: None };
        let nodes = Arc::new(Nodes::new(objects.clone(), 1 << 20));
        let oci = Oci::new(objects.clone(), Arc::clone(&nodes), Arc::clone(&storage), Arc::default(), crate::config::Config::new("/nowhere").limits.oci);
        let collector = Collector::new(db.clone(), Arc::clone(&storage), folder.clone(), settings());
        Self { db, storage, objects, nodes, oci, collector, backing, ahead, url, _dir: dir }
    }

    /// The process dies and another one starts.
    pub(super) async fn restart(self) -> Self {
        self.oci.close().await;
        self.db.close().await;
        Self::open(self._dir, self.backing, self.ahead, self.url).await
    }

    pub(super) fn advance(&mut self, ms: i64) {
        self.ahead += ms;
        self.db.clock().advance(ms);
    }

    pub(super) fn repository(name: &str) -> Repository {
        name.parse().unwrap()
    }

    /// What a client asks first.
    pub(super) async fn missing(&self, repository: &Repository, sample: &Sample) -> BTreeSet<Digest> {
        let digests: Vec<Digest> = sample.objects.keys().copied().collect();
        let namespace = namespace_find(&mut self.db.read().await.unwrap(), repository.namespace()).await.unwrap();
        let Some(namespace) = namespace else { return digests.into_iter().collect() };
        let found = self.objects.promise(namespace, &digests).await.unwrap();
        digests.into_iter().filter(|digest| !found.contains_key(digest)).collect()
    }

    /// Puts a pack. Says whether it worked.
    pub(super) async fn put_pack(&self, repository: &Repository, bytes: Vec<u8>) -> bool {
        let digest = Digest::of(&bytes);
        pack_store(&self.objects, &self.storage, repository.namespace(), digest, &mut Whole(Some(bytes.into()))).await.is_ok()
    }

    pub(super) async fn put_image(&self, repository: &Repository, release: &str, sample: &Sample) -> Result<(), PutError> {
        image_put(&self.objects, &self.nodes, repository, &Reference::Release(release.into()), &sample.image).await.map(drop)
    }

    /// A whole push.
    pub(super) async fn push(&self, name: &str, release: &str, sample: &Sample) {
        let repository = Self::repository(name);
        let missing = self.missing(&repository, sample).await;
        if !missing.is_empty() {
            assert!(self.put_pack(&repository, sample.pack(|digest| missing.contains(digest))).await);
        }
        self.put_image(&repository, release, sample).await.unwrap();
    }

    pub(super) async fn is_visible(&self, repository: &Repository, digest: &Digest) -> bool {
        image_get(&self.db, repository, &Reference::Digest(*digest)).await.unwrap().is_some()
    }

    /// Reads everything of an image, past all caches.
    pub(super) async fn check_image(&self, name: &str, sample: &Sample) {
        let repository = Self::repository(name);
        let image = image_get(&self.db, &repository, &Reference::Digest(sample.digest())).await.unwrap().expect("the image is visible");
        assert_eq!(image.bytes, sample.image);
        let digests: Vec<Digest> = sample.objects.keys().copied().collect();
        let places = self.objects.locate(image.repository.namespace, &digests).await.unwrap();
        for (digest, bytes) in &sample.objects {
            let place = places.get(digest).unwrap_or_else(|| panic!("object {digest} of a visible image of {name} is not in the index"));
            let read = self.objects.read(digest, place).await.unwrap_or_else(|error| panic!("object {digest} of {name}: {error:?}"));
            assert_eq!(&read, bytes);
        }
    }

    pub(super) async fn push_blob(&self, repository: &Repository, bytes: &[u8]) -> Option<()> {
        let id = self.oci.upload_start::<std::convert::Infallible>(repository, Algorithm::Sha256).await.ok()?;
        self.oci.upload_finish(repository, &id, None, &mut Whole(Some(Bytes::copy_from_slice(bytes))), &sha256(bytes)).await.ok()
    }

    pub(super) async fn put_manifest(&self, repository: &Repository, tag: &str, artifact: &Artifact) -> bool {
        self.oci.manifest_put(repository, &OciReference::Tag(tag.into()), None, &artifact.manifest, &[]).await.is_ok()
    }

    pub(super) async fn push_artifact(&self, repository: &Repository, tag: &str, artifact: &Artifact) -> Option<()> {
        for blob in [&b"{}"[..], &artifact.blob] {
            // As container tools do.
            if self.oci.blob_find(repository, &sha256(blob)).await.ok()?.is_none() {
                self.push_blob(repository, blob).await?;
            }
        }
        self.put_manifest(repository, tag, artifact).await.then_some(())
    }

    pub(super) async fn has_manifest(&self, repository: &Repository, digest: &OciDigest) -> bool {
        self.oci.manifest_by_digest(repository, digest).await.unwrap().is_some()
    }

    pub(super) async fn check_artifact(&self, name: &str, artifact: &Artifact) {
        let repository = Self::repository(name);
        let found = self.oci.manifest_by_digest(&repository, &artifact.digest()).await.unwrap().expect("the manifest is visible");
        assert_eq!(found.bytes, artifact.manifest);
        let blob = self.oci.blob_find(&repository, &sha256(&artifact.blob)).await.unwrap().expect("its blob is there");
        let read = self.oci.blob_read(blob, 1 << 20).await.unwrap_or_else(|error| panic!("a blob of {name}: {error:?}"));
        assert_eq!(read.as_deref(), Some(&artifact.blob[..]));
    }

    pub(super) async fn gc(&self) -> Result<Vec<GcReport>, GcError> {
        self.collector.run(None, GcOptions::default()).await
    }

    /// Collections with a day between them until nothing is done any more.
    pub(super) async fn quiesce(&mut self) {
        for _ in 0..30 {
            self.advance(7 * HOUR);
            let reports = self.gc().await.unwrap();
            for report in &reports {
                assert_eq!(report.held_back, None, "{report:?}");
            }
            let waiting: u64 = reports.iter().map(|report| report.candidates_waiting).sum();
            if waiting == 0 && reports.iter().all(GcReport::is_quiet) {
                return;
            }
        }
        panic!("collections never come to rest");
    }

    /// All objects in the index, by namespace.
    pub(super) async fn index(&self) -> BTreeMap<String, BTreeSet<Digest>> {
        let mut db = self.db.read().await.unwrap();
        let mut found = BTreeMap::new();
        for (namespace, name) in crate::db::root::namespace_list(&mut db).await.unwrap() {
            let rows = crate::db::gc::object_page(&mut db, namespace, None, 1_000_000).await.unwrap();
            found.insert(name, rows.into_iter().map(|row| row.digest).collect());
        }
        found
    }

    /// Packs in the storage.
    pub(super) async fn stored_packs(&self) -> usize {
        self.backing.list_packs().count().await
    }

    pub(super) fn backing(&self) -> &Arc<dyn BlobStorage> {
        &self.backing
    }
}
