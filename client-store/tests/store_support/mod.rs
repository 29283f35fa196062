//! Stores and images for tests.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod fake_registry;

use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use client_store::store::{ImageOrigin, PackOrigin};
use client_store::{Store, StoreOptions};
use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::recipe::{Extent, Recipe};
use layer_format::reference::ImageReference;
use layer_format::tree::TreeBuilder;
use layer_format::{Digest, LayerPath};

pub fn open(home: &Path) -> Store {
    Store::open(home, StoreOptions { touch_interval_s: 0, ..StoreOptions::default() }).unwrap()
}

pub fn open_capped(home: &Path, cap_bytes: u64) -> Store {
    Store::open(home, StoreOptions { touch_interval_s: 0, cap_bytes, ..StoreOptions::default() }).unwrap()
}

pub fn reference(text: &str) -> ImageReference {
    text.parse().unwrap()
}

/// Bytes that do not compress and are the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

pub fn object(seed: u64, len: usize) -> (Digest, Bytes) {
    let bytes = Bytes::from(noise(seed, len));
    (Digest::of(&bytes), bytes)
}

/// An image and all of its objects, in tree order.
pub struct TestImage {
    pub manifest: Vec<u8>,
    pub digest: Digest,
    pub objects: Vec<Vec<u8>>,
}

/// One layer with these files.
pub fn build_image(files: &[(String, Vec<u8>)]) -> TestImage {
    let mut chunks = Vec::new();
    let mut inner: Vec<Vec<u8>> = Vec::new();
    let mut put = |bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        inner.push(bytes);
        Ok::<_, std::convert::Infallible>(digest)
    };
    let mut sorted: Vec<_> = files.iter().map(|(path, content)| (LayerPath::new(path.as_bytes()).unwrap(), content)).collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut tree = TreeBuilder::new();
    tree.push(Entry { path: LayerPath::root(), meta: Meta::default(), kind: Kind::Directory { opaque: false } }, &mut put).unwrap();
    let mut bytes = 0;
    for (path, content) in sorted {
        let mut extents = Vec::new();
        for piece in content.chunks(16 << 10) {
            extents.push(Extent::Data(ChunkRef { digest: Digest::of(piece), len: piece.len() as u32 }));
            chunks.push(piece.to_vec());
        }
        bytes += content.len() as u64;
        let recipe = Recipe::build(extents, &mut put).unwrap();
        tree.push(Entry { path, meta: Meta { mode: 0o644, ..Meta::default() }, kind: Kind::File(recipe) }, &mut put).unwrap();
    }
    let root = tree.finish(&mut put).unwrap();
    let layer = LayerManifest::new(root.digest, root.entries, bytes).encode().unwrap();
    let manifest = ImageManifest::new("any", vec![Digest::of(&layer)]).encode().unwrap();
    let mut objects = vec![layer];
    objects.append(&mut inner);
    objects.append(&mut chunks);
    let mut seen = std::collections::HashSet::new();
    objects.retain(|object| seen.insert(Digest::of(object)));
    TestImage { digest: Digest::of(&manifest), manifest, objects }
}

pub fn image(seed: u64, files: usize, len: usize) -> TestImage {
    let files: Vec<_> = (0..files).map(|n| (format!("usr/f{n:04}"), noise(seed * 10_000 + n as u64, len))).collect();
    build_image(&files)
}

pub fn add_pack(store: &Store, objects: &[Vec<u8>], origin: PackOrigin) {
    let (bytes, index) = layer_format::pack::build(objects, Some(1)).unwrap();
    let mut writer = store.pack_writer(origin).unwrap();
    writer.write_all(&bytes).unwrap();
    writer.finish(Digest::of(&bytes), &index).unwrap();
}

pub fn import(store: &Store, name: &str, image: &TestImage) {
    add_pack(store, &image.objects, PackOrigin::Imported);
    store.image_put(&reference(name), &image.manifest, ImageOrigin::Imported).unwrap();
}

pub fn digests(image: &TestImage) -> Vec<Digest> {
    image.objects.iter().map(|object| Digest::of(object)).collect()
}
