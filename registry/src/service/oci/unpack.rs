//! Makes an image of ours of one that a container tool pushed: each layer is decompressed and taken apart in a bounded stream,
//! so that its files are chunks like those of any image, and what the configuration states becomes what the image states.
//!
//! Started right after a manifest was put, so that it is done when someone wants to run the image; whoever wants it
//! earlier waits for the same work. A layer that was taken apart once in the namespace is not taken apart again.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use chunker::{ImportOptions, Imported};
use layer_format::manifest::{MAX_LAYERS, Manifest};
use layer_format::oci::{Descriptor, ImageConfig, ManifestKind, OciDigest, OciManifest, media, oci_architecture};
use layer_format::reference::Repository;
use layer_format::{Digest, FormatError, pack};

use super::Oci;
use super::blob::{Blob, BlobStream};
use super::resolve::{Named, resolve, restore_head};
use super::sink::NamespaceStore;
use crate::db::manifest::manifest_layer_count;
use crate::db::oci_blob::oci_blob_get;
use crate::db::oci_image::{ImageLink, UnpackedLayer, oci_image_of, oci_image_put, oci_layer_get, oci_layer_put};
use crate::db::oci_manifest::{OciManifestRow, oci_manifest_get};
use crate::db::repository::{RepositoryRow, repository_find, repository_lock};
use crate::db::tag::tag_move;
use crate::db::trash::Deletion;
use crate::db::{DbError, commit};
use crate::service::frames::ReadError;
use crate::service::image::{PutError, Reference, image_put};
use crate::service::lease::LongWork;
use crate::service::trash::delete_image;

/// A layer may become this much longer by decompression,
pub(super) const MAX_RATIO: u64 = 200;
/// or this long: layers of zeros are legitimate as long as they are not large.
pub(super) const FREE_LEN: u64 = 512 << 20;
/// Level of zstd for the files.
const ZSTD_LEVEL: i32 = 3;

/// Why an image was not taken apart.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// It is a signature, a chart or the like.
    #[error("it is not a container image: nothing in it can be run")]
    NotAnImage,
    /// A blob that it needs was deleted, or was never there.
    #[error("blob {0}, which the image needs, is not in the repository")]
    Missing(OciDigest),
    /// More layers than an image of ours can have.
    #[error("the image has {0} layers, more than the allowed {MAX_LAYERS}")]
    TooManyLayers(usize),
    /// The manifest or configuration is damaged.
    #[error("the image's manifest or configuration is not valid")]
    Invalid(#[from] FormatError),
    /// A layer is damaged or hostile.
    #[error("layer {digest} of the image could not be taken apart")]
    Layer {
        /// The layer.
        digest: OciDigest,
        /// Why.
        source: chunker::ImportError,
    },
    /// The layers could not be stored.
    #[error("could not store the image")]
    Store(#[source] chunker::SinkError),
    /// The image was not accepted.
    #[error("could not keep the image")]
    Put(#[source] PutError),
    /// Something could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The server is stopping.
    #[error("a background task was cancelled")]
    Cancelled,
}

impl Oci {
    /// Starts to take an image apart, for whoever may want to run it.
    pub(crate) fn unpack_later(self: &Arc<Self>, repository: Repository, tag: String, digest: OciDigest) {
        let oci = Arc::clone(self);
        self.in_background(async move {
            match oci.unpack(&repository, &tag, &digest).await {
                Ok(()) => tracing::info!(repository = repository.as_str(), tag, manifest.digest = %digest, "{repository}:{tag} can be run"),
                Err(UnpackError::NotAnImage) => {}
                Err(error) => {
                    tracing::warn!(repository = repository.as_str(), tag, manifest.digest = %digest, error = crate::chain(&error), "{repository}:{tag} cannot be run");
                }
            }
        });
    }

    /// Takes an image apart and names it by the same tag. What is done already is not done again.
    pub(crate) async fn unpack(&self, repository: &Repository, tag: &str, digest: &OciDigest) -> Result<(), UnpackError> {
        let _lock = self.converting.lock(&format!("{} {digest}", repository.as_str())).await;
        let (row, pushed, known) = {
            let mut db = self.objects.db.read().await?;
            let row = repository_find(&mut db, repository).await?.ok_or_else(|| UnpackError::Missing(digest.clone()))?;
            let pushed = oci_manifest_get(&mut db, row.id, digest).await?.ok_or_else(|| UnpackError::Missing(digest.clone()))?;
            let known = match oci_image_of(&mut db, row.id, digest).await? {
                Some(link) => manifest_layer_count(&mut db, row.id, &link.image).await?.map(|_| link.image),
                None => None,
            };
            (row, pushed, known)
        };
        let image = match known {
            Some(image) => image,
            None => {
                let _turn = self.conversions.acquire().await.map_err(|_| UnpackError::Cancelled)?;
                self.make(repository, &row, &pushed, tag).await?
            }
        };
        let mut transaction = self.objects.db.begin().await?;
        repository_lock(&mut transaction, row.id).await?;
        // Deleted meanwhile: what was made of it goes the same way.
        if oci_manifest_get(&mut transaction, row.id, digest).await?.is_none() {
            let deletion = Deletion { at: self.objects.db.now(), by: "whoever deleted its manifest" };
            delete_image(&mut transaction, row.id, &image, deletion).await?;
            restore_head(&mut transaction, row.id).await?;
            commit(transaction).await?;
            return Err(UnpackError::Missing(digest.clone()));
        }
        oci_image_put(&mut transaction, row.id, &ImageLink { manifest: digest.clone(), image, rendered: false }).await?;
        // Meanwhile another image may have been pushed under the tag.
        if let Named::Manifest { digest: named, .. } = resolve(&mut transaction, &row, tag).await?
            && named == *digest
        {
            for name in [tag, layer_format::reference::HEAD] {
                tag_move(&mut transaction, row.id, name, &image).await?;
            }
        }
        commit(transaction).await?;
        Ok(())
    }

    /// Makes the image, and the manifests of its layers.
    async fn make(&self, repository: &Repository, row: &RepositoryRow, pushed: &OciManifestRow, tag: &str) -> Result<Digest, UnpackError> {
        let _lease = LongWork::begin(self.objects.db.clone(), row.namespace);
        let manifest = self.platform_manifest(row, pushed).await?;
        let Some(described) = manifest.config.as_ref().filter(|_| manifest.is_container_image()) else { return Err(UnpackError::NotAnImage) };
        if manifest.layers().len() > MAX_LAYERS {
            return Err(UnpackError::TooManyLayers(manifest.layers().len()));
        }
        let config = self.blob(row, &described.digest).await?;
        let config = self.blob_read(config, ImageConfig::MAX_LEN).await?;
        let config = ImageConfig::decode(&config.ok_or(FormatError::Invalid { what: "image configuration", rule: "it is at most 4 MiB long" })?)?;
        let mut trees = Vec::with_capacity(manifest.layers().len());
        for layer in manifest.layers() {
            let tree = self.layer(row, layer).await?;
            trees.push((tree.root, tree.entries, tree.bytes));
        }
        let (mut image, layers) = config.stated(&trees, pushed.digest.as_str());
        let encoded: Vec<Vec<u8>> = layers.iter().map(Manifest::encode).collect::<Result<_, _>>()?;
        image.layers = encoded.iter().map(|bytes| Digest::of(bytes)).collect();
        let store = self.store(row.namespace);
        let stored = tokio::task::spawn_blocking(move || put_objects(&store, &encoded)).await.map_err(|_| UnpackError::Cancelled)?;
        stored.map_err(UnpackError::Store)?;
        let bytes = image.encode()?;
        let put = image_put(&self.objects, &self.nodes, repository, &Reference::Digest(Digest::of(&bytes)), &bytes).await.map_err(UnpackError::Put)?;
        tracing::debug!(repository = repository.as_str(), tag, image.digest = %put.digest, "made image {} of {}", put.digest, pushed.digest);
        Ok(put.digest)
    }

    /// The manifest itself, or the one of a list for this server's processor.
    async fn platform_manifest(&self, row: &RepositoryRow, pushed: &OciManifestRow) -> Result<OciManifest, UnpackError> {
        let (manifest, _, kind) = OciManifest::decode(&pushed.bytes, Some(&pushed.media_type))?;
        if kind != ManifestKind::Index {
            return Ok(manifest);
        }
        let child = manifest.choose(oci_architecture(std::env::consts::ARCH)).ok_or(UnpackError::NotAnImage)?;
        let mut db = self.objects.db.read().await?;
        let child = oci_manifest_get(&mut db, row.id, &child.digest).await?.ok_or_else(|| UnpackError::Missing(child.digest.clone()))?;
        match OciManifest::decode(&child.bytes, Some(&child.media_type))? {
            (manifest, _, ManifestKind::Image) => Ok(manifest),
            _ => Err(UnpackError::NotAnImage),
        }
    }

    async fn blob(&self, row: &RepositoryRow, digest: &OciDigest) -> Result<Blob, UnpackError> {
        let mut db = self.objects.db.read().await?;
        let found = oci_blob_get(&mut db, row.id, digest).await?;
        found.map(|blob| Blob { repository: *row, row: blob }).ok_or_else(|| UnpackError::Missing(digest.clone()))
    }

    /// A layer's tree.
    async fn layer(&self, row: &RepositoryRow, layer: &Descriptor) -> Result<UnpackedLayer, UnpackError> {
        if media::is_foreign(&layer.media_type) {
            return Err(UnpackError::Missing(layer.digest.clone()));
        }
        let known = {
            let mut db = self.objects.db.read().await?;
            oci_layer_get(&mut db, row.namespace, &layer.digest).await?
        };
        // Only a repository that has the blob may use what was made of it.
        let blob = self.blob(row, &layer.digest).await?;
        if let Some(known) = known {
            return Ok(known);
        }
        let len = blob.row.size_bytes;
        let stream = self.blob_stream(blob, 0..len);
        let store = self.store(row.namespace);
        let imported = tokio::task::spawn_blocking(move || import(stream, len, &store)).await.map_err(|_| UnpackError::Cancelled)?;
        let imported = imported.map_err(|source| UnpackError::Layer { digest: layer.digest.clone(), source })?;
        let unpacked = UnpackedLayer { root: imported.root, entries: imported.entries, bytes: imported.bytes };
        let mut transaction = self.objects.db.begin().await?;
        oci_layer_put(&mut transaction, row.namespace, &layer.digest, &unpacked).await?;
        commit(transaction).await?;
        Ok(unpacked)
    }
}

fn import(stream: BlobStream, len: u64, store: &NamespaceStore) -> Result<Imported, chunker::ImportError> {
    let options =
        ImportOptions { oci_whiteouts: true, zstd_level: ZSTD_LEVEL, max_tar_bytes: len.saturating_mul(MAX_RATIO).max(FREE_LEN), ..ImportOptions::default() };
    let imported = chunker::import_tar(StreamReader { stream, bytes: Bytes::new() }, &options, store, &())?;
    for skipped in &imported.skipped {
        tracing::info!("of a layer was left out: {}: {}", skipped.path, skipped.reason);
    }
    Ok(imported)
}

/// Stores some objects.
pub(super) fn put_objects(store: &NamespaceStore, objects: &[Vec<u8>]) -> Result<(), chunker::SinkError> {
    use chunker::ObjectSink;
    let digests: Vec<Digest> = objects.iter().map(|bytes| Digest::of(bytes)).collect();
    let present = store.present(&digests)?;
    let mut new: Vec<&Vec<u8>> = objects.iter().zip(present).filter(|(_, present)| !present).map(|(bytes, _)| bytes).collect();
    new.sort();
    new.dedup();
    if new.is_empty() {
        return Ok(());
    }
    let (bytes, index) = pack::build(&new, Some(ZSTD_LEVEL)).map_err(|error| chunker::SinkError::new("manifests of layers do not fit a pack", error))?;
    let mut sink = store.create_pack()?;
    let mut at = 0;
    let ends = index.frames.iter().flat_map(|frame| [frame.offset as usize, frame.offset as usize + frame.len as usize]).chain([bytes.len()]);
    for end in ends {
        let piece = bytes.get(at..end).unwrap_or_default();
        if !piece.is_empty() {
            sink.write_all(piece).map_err(|error| chunker::SinkError::new("a pack could not be written", error))?;
        }
        at = end;
    }
    sink.finish(Digest::of(&bytes), index)
}

/// A stream, for whoever reads and waits.
pub(super) struct StreamReader {
    stream: BlobStream,
    bytes: Bytes,
}

impl StreamReader {
    pub(super) fn new(stream: BlobStream) -> Self {
        Self { stream, bytes: Bytes::new() }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.bytes.is_empty() {
            match self.stream.blocking_recv() {
                Some(Ok(bytes)) => self.bytes = bytes,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let len = buffer.len().min(self.bytes.len());
        buffer[..len].copy_from_slice(&self.bytes.split_to(len));
        Ok(len)
    }
}
