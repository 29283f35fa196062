//! Images in the local store: finding them, and looking into them without a network.

use anyhow::{Context, Result};
use client_store::store::{PackOrigin, StoredImage};
use client_store::{ObjectCache, Store};
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::reference::ImageReference;
use layer_format::tree::{Lookup, Node, Step, TreeBuilder};
use layer_format::{Digest, LayerPath, pack};
use std::io::Write;

/// An image of the local store with its parsed manifest.
#[derive(Clone, Debug)]
pub struct LocalImage {
    /// Name, digest and bytes.
    pub stored: StoredImage,
    /// The manifest.
    pub manifest: ImageManifest,
}

/// The image of this name, which must be here.
pub fn find(store: &Store, reference: &ImageReference) -> Result<LocalImage> {
    let stored =
        store.image_get(reference)?.with_context(|| format!("the image {reference} is not here; `turbo images` lists what is, `turbo pull` brings it"))?;
    parse(reference, stored)
}

/// An image of the store with its manifest read.
pub fn parse(reference: &ImageReference, stored: StoredImage) -> Result<LocalImage> {
    let manifest = ImageManifest::decode(&stored.bytes).with_context(|| format!("the manifest of {reference} is damaged"))?;
    Ok(LocalImage { stored, manifest })
}

/// An object that must be here.
pub fn object(store: &Store, digest: &Digest) -> Result<bytes::Bytes> {
    store.get(digest)?.with_context(|| format!("object {digest} is not in the local store (or damaged); `turbo pull` the image"))
}

/// A layer manifest that must be here.
pub fn layer(store: &Store, digest: &Digest) -> Result<LayerManifest> {
    LayerManifest::decode(&object(store, digest)?).with_context(|| format!("layer {digest} is damaged"))
}

/// Stores a layer manifest as an object.
pub fn put_layer(store: &Store, layer: &LayerManifest) -> Result<Digest> {
    let bytes = layer.encode().context("the layer's settings are not valid")?;
    put_object(store, &bytes)
}

/// Stores one object.
fn put_object(store: &Store, bytes: &[u8]) -> Result<Digest> {
    let digest = Digest::of(bytes);
    if !store.contains_all(&[digest])? {
        let (file, index) = pack::build([bytes], Some(3))?;
        let mut writer = store.pack_writer(PackOrigin::Imported)?;
        writer.write_all(&file).context("writing a pack")?;
        writer.finish(Digest::of(&file), &index)?;
    }
    Ok(digest)
}

/// Stores a tree with nothing in it but its root directory. Its root and number of entries.
pub fn put_empty_tree(store: &Store) -> Result<(Digest, u64)> {
    let mut node = Vec::new();
    let mut put = |bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        node = bytes;
        Ok::<_, std::convert::Infallible>(digest)
    };
    let mut tree = TreeBuilder::new();
    let meta = Meta { mode: 0o755, ..Meta::default() };
    tree.push(Entry { path: LayerPath::root(), meta, kind: Kind::Directory { opaque: false } }, &mut put)?;
    let root = tree.finish(&mut put)?;
    put_object(store, &node)?;
    Ok((root.digest, root.entries))
}

/// Whether a tree is a whole root filesystem: it brings a shell and the folders that programs rely on.
pub fn is_root_filesystem(store: &Store, root: Digest) -> Result<bool> {
    let has = |path: &str| -> Result<bool> { Ok(lookup(store, root, path)?.is_some()) };
    let either = |one: &str, other: &str| -> Result<bool> { Ok(has(one)? || has(other)?) };
    Ok(has("etc")? && either("bin/sh", "usr/bin/sh")? && either("lib", "usr/lib")?)
}

/// An entry of a tree that is here.
pub fn lookup(store: &Store, root: Digest, path: &str) -> Result<Option<Entry>> {
    let mut search = Lookup::new(root, LayerPath::new(path)?);
    loop {
        let digest = match search.step() {
            Step::Done(found) => return Ok(found.clone()),
            Step::Need(digest) => *digest,
        };
        search.feed(&Node::decode(&object(store, &digest)?)?)?;
    }
}

/// All entries of a tree that is here, in order.
pub fn entries(store: &Store, root: Digest, mut each: impl FnMut(Entry) -> Result<()>) -> Result<()> {
    let mut scan = layer_format::tree::Scan::all(root);
    loop {
        match scan.step() {
            Step::Need(digest) => scan.feed(&Node::decode(&object(store, &digest)?)?)?,
            Step::Done(Some(entry)) => each(entry)?,
            Step::Done(None) => return Ok(()),
        }
    }
}

/// How a listing shows an entry's kind: one letter, as `ls -l`.
pub fn kind_letter(kind: &Kind) -> char {
    match kind {
        Kind::File(_) => '-',
        Kind::Directory { .. } => 'd',
        Kind::Symlink(_) => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::CharDevice { .. } => 'c',
        Kind::BlockDevice { .. } => 'b',
        Kind::Whiteout => 'w',
    }
}
