//! A registry in process, on a real socket with a real database, and images to push to it.
#![allow(dead_code, missing_docs, unreachable_pub, missing_debug_implementations, reason = "each suite uses a part of it")]

pub mod backend;
pub mod schema;
pub mod servers;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use layer_format::api::{ErrorBody, RECORD_HEADER_LEN, Record, decode_bitmap, encode_digests};
use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::frame::Frame;
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest, StartupFile};
use layer_format::recipe::{Extent, Recipe};
use layer_format::tree::TreeBuilder;
use layer_format::{Digest, LayerPath, pack};
use registry::{App, Config};
use reqwest::{Client, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A running registry. Stops when told to, or is cut off when dropped.
pub struct TestRegistry {
    pub url: String,
    pub app: App,
    pub client: Client,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl TestRegistry {
    pub async fn start(data: &Path) -> Self {
        Self::with_config(Config::new(data)).await
    }

    pub async fn with_config(mut config: Config) -> Self {
        backend::apply(&mut config).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = App::open(config).await.unwrap();
        app.listens_on(listener.local_addr().unwrap()).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(registry::serve_app(app.clone(), listener, async {
            let _ = stopped.await;
        }));
        Self { url, app, client: Client::new(), stop: Some(stop), task: Some(task) }
    }

    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap();
    }

    pub fn repository(&self, name: &str) -> Remote {
        Remote { base: format!("{}/v1/repositories/{name}/-", self.url), client: self.client.clone() }
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.client.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

/// A repository, as a client sees it.
#[derive(Clone)]
pub struct Remote {
    pub base: String,
    pub client: Client,
}

impl Remote {
    pub async fn put_pack(&self, bytes: &[u8]) -> Response {
        self.put_pack_as(Digest::of(bytes), bytes.to_vec()).await
    }

    pub async fn put_pack_as(&self, digest: Digest, bytes: Vec<u8>) -> Response {
        self.client.put(format!("{}/packs/{digest}", self.base)).body(bytes).send().await.unwrap()
    }

    pub async fn put_image(&self, reference: &str, bytes: &[u8]) -> Response {
        self.client.put(format!("{}/manifests/{reference}", self.base)).body(bytes.to_vec()).send().await.unwrap()
    }

    pub async fn missing(&self, digests: &[Digest]) -> Vec<bool> {
        let answer = self.client.post(format!("{}/missing", self.base)).body(encode_digests(digests)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        decode_bitmap(&answer.bytes().await.unwrap(), digests.len()).unwrap()
    }

    pub async fn objects(&self, digests: &[Digest], query: &str) -> Stream {
        let answer = self.client.post(format!("{}/objects{query}", self.base)).body(encode_digests(digests)).send().await.unwrap();
        Stream::read(answer).await
    }

    pub async fn launch(&self, reference: &str, request: serde_json::Value) -> Stream {
        let answer = self.client.post(format!("{}/launch/{reference}", self.base)).body(request.to_string()).send().await.unwrap();
        Stream::read(answer).await
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}/{path}", self.base)).send().await.unwrap()
    }

    /// Pushes all objects as one pack, and the image as `release`.
    pub async fn push(&self, release: &str, sample: &Sample) {
        let status = self.put_pack(&sample.pack()).await.status();
        assert!(status.is_success(), "{status}");
        let answer = self.put_image(release, &sample.image).await;
        let status = answer.status();
        assert_eq!(status, StatusCode::CREATED, "{}", answer.text().await.unwrap());
    }
}

/// The code of an error answer.
pub async fn code(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    let body: ErrorBody = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} without a JSON error ({error}): {text}"));
    (status, body.errors[0].code.clone())
}

/// A record, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    Object(Digest),
    Frame(Vec<Digest>),
    Missing(Digest),
    Image(Digest),
    Model(Vec<u8>),
    Plan(Vec<u64>),
}

/// A whole object stream.
#[derive(Debug, Default)]
pub struct Stream {
    pub records: Vec<Got>,
    pub objects: HashMap<Digest, Vec<u8>>,
    pub end: String,
    pub wire_bytes: usize,
}

impl Stream {
    pub async fn read(answer: Response) -> Self {
        assert_eq!(answer.status(), StatusCode::OK);
        Self::decode(&answer.bytes().await.unwrap())
    }

    pub fn decode(wire: &[u8]) -> Self {
        let plain = zstd::stream::decode_all(wire).unwrap();
        let mut stream = Self { wire_bytes: wire.len(), ..Self::default() };
        let mut rest = &plain[..];
        loop {
            let (head, after) = rest.split_first_chunk::<RECORD_HEADER_LEN>().expect("a record before the end");
            let (kind, len) = Record::decode_header(*head).unwrap();
            let (payload, after) = after.split_at(len);
            rest = after;
            let mut keep = |bytes: &[u8]| {
                let digest = Digest::of(bytes);
                stream.objects.insert(digest, bytes.to_vec());
                digest
            };
            let got = match Record::decode(kind, payload).unwrap() {
                Record::Object(bytes) => Got::Object(keep(bytes)),
                Record::Frame(bytes) => Got::Frame(Frame::decode(bytes).unwrap().objects().map(keep).collect()),
                Record::Missing(digest) => Got::Missing(digest),
                Record::Image(bytes) => Got::Image(Digest::of(bytes)),
                Record::Model(bytes) => Got::Model(bytes.to_vec()),
                Record::Plan(payload) => Got::Plan(layer_format::api::plan_prefixes(payload).collect()),
                Record::End(text) => {
                    assert!(rest.is_empty(), "something follows the end");
                    stream.end = String::from_utf8(text.to_vec()).unwrap();
                    return stream;
                }
            };
            stream.records.push(got);
        }
    }

    /// Digests of single objects, in order.
    pub fn sent(&self) -> Vec<Digest> {
        self.records.iter().filter_map(|got| if let Got::Object(digest) = got { Some(*digest) } else { None }).collect()
    }

    pub fn missing(&self) -> Vec<Digest> {
        self.records.iter().filter_map(|got| if let Got::Missing(digest) = got { Some(*digest) } else { None }).collect()
    }
}

/// An image of one layer, and all its objects in the order of a pack: layer manifest, tree, then each file's chunks.
#[derive(Clone, Debug)]
pub struct Sample {
    pub objects: Vec<Vec<u8>>,
    pub image: Vec<u8>,
    pub layer: Digest,
    pub root: Digest,
    /// Chunks of each file.
    pub files: BTreeMap<LayerPath, Vec<Digest>>,
}

pub const CHUNK_LEN: usize = 16 * 1024;

impl Sample {
    /// Files by path; content is cut every [`CHUNK_LEN`] bytes.
    pub fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let mut entries: BTreeMap<LayerPath, Kind> = BTreeMap::from([(LayerPath::root(), Kind::Directory { opaque: false })]);
        let (mut nodes, mut chunks, mut chunks_of) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (path, content) in files {
            let path = LayerPath::new(*path).unwrap();
            let mut parent = path.parent();
            while let Some(dir) = parent {
                parent = dir.parent();
                entries.entry(dir).or_insert(Kind::Directory { opaque: false });
            }
            let pieces: Vec<&[u8]> = content.chunks(CHUNK_LEN).collect();
            chunks_of.insert(path.clone(), pieces.iter().map(|piece| Digest::of(piece)).collect());
            chunks.extend(pieces.iter().map(|piece| piece.to_vec()));
            let extents = pieces.iter().map(|piece| Extent::Data(ChunkRef { digest: Digest::of(piece), len: piece.len() as u32 })).collect();
            let recipe = Recipe::build(extents, &mut |bytes: Vec<u8>| put(&mut nodes, bytes)).unwrap();
            entries.insert(path, Kind::File(recipe));
        }
        let mut builder = TreeBuilder::new();
        for (path, kind) in entries {
            builder.push(Entry { path, meta: Meta { mode: 0o755, ..Meta::default() }, kind }, &mut |bytes| put(&mut nodes, bytes)).unwrap();
        }
        let root = builder.finish(&mut |bytes| put(&mut nodes, bytes)).unwrap();
        let layer = LayerManifest::new(root.digest, root.entries, 0).encode().unwrap();
        let layer_digest = Digest::of(&layer);
        let mut image = ImageManifest::new("x86_64", vec![layer_digest]);
        if let Some((path, _)) = files.first() {
            image.startup_files.push(StartupFile { command: vec![format!("/{path}")], trigger: None });
        }
        let mut seen = std::collections::HashSet::new();
        let objects = std::iter::once(layer).chain(nodes).chain(chunks).filter(|bytes| seen.insert(Digest::of(bytes))).collect();
        Self { objects, image: image.encode().unwrap(), layer: layer_digest, root: root.digest, files: chunks_of }
    }

    /// `count` files of `len` bytes each.
    pub fn generated(seed: u64, count: usize, len: usize) -> Self {
        let files: Vec<(String, Vec<u8>)> =
            (0..count).map(|n| (format!("opt/app/d{}/file{n}", n % 13), noise(seed.wrapping_mul(1000) + n as u64, len))).collect();
        let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect();
        Self::new(&files)
    }

    pub fn digests(&self) -> Vec<Digest> {
        self.objects.iter().map(|bytes| Digest::of(bytes)).collect()
    }

    pub fn pack(&self) -> Vec<u8> {
        pack::build(&self.objects, Some(1)).unwrap().0
    }

    pub fn chunks(&self, path: &str) -> &[Digest] {
        &self.files[&LayerPath::new(path).unwrap()]
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.image)
    }
}

fn put(nodes: &mut Vec<Vec<u8>>, bytes: Vec<u8>) -> Result<Digest, std::convert::Infallible> {
    let digest = Digest::of(&bytes);
    nodes.push(bytes);
    Ok(digest)
}

/// Bytes that compress a little and are the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    };
    (0..len).map(|_| b'a' + (next(&mut state) % 23) as u8).collect()
}

/// The pack files of a registry's data folder.
pub fn pack_files(data: &Path) -> Vec<std::path::PathBuf> {
    assert!(backend::is_local(), "only a folder has files");
    let mut found = Vec::new();
    for folder in std::fs::read_dir(data.join("storage/packs")).unwrap().flatten() {
        found.extend(std::fs::read_dir(folder.path()).unwrap().flatten().map(|file| file.path()));
    }
    found
}

/// That so many packs are stored, if they are files.
pub fn assert_pack_files(data: &Path, count: usize) {
    if backend::is_local() {
        assert_eq!(pack_files(data).len(), count);
    }
}

/// What is being written to the data folder: nothing if data is kept elsewhere.
pub fn temp_files(data: &Path) -> usize {
    if !backend::is_local() {
        return 0;
    }
    std::fs::read_dir(data.join("storage/tmp")).unwrap().count()
}
