//! The other way: a manifest, a configuration and layers for an image of ours, so that container tools can pull it.
//!
//! A layer is its tree, written as an uncompressed tar by [`chunker::export_layer`]: an encoder of our own, whose bytes a golden
//! test pins, so that they are written again for each pull and need no place. Digest and length are computed once, when an
//! image is pushed, or when it is asked for before that is done.

use std::io::{self, Write};
use std::sync::Arc;

use chunker::ExportError;
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::oci::{Algorithm, Descriptor, ImageConfig, OciDigest, OciManifest, media};
use layer_format::reference::Repository;
use layer_format::{Digest, FormatError};

use super::Oci;
use super::hash::{Hasher, digest_of};
use super::sink::NamespaceStore;
use crate::db::manifest::manifest_get;
use crate::db::oci_blob::{BlobContent, BlobRow, oci_blob_put};
use crate::db::oci_image::{ImageLink, oci_image_manifests, oci_image_put, oci_tar_get, oci_tar_put};
use crate::db::oci_manifest::{NewOciManifest, oci_manifest_put};
use crate::db::repository::{RepositoryRow, repository_find};
use crate::db::{DbError, commit};
use crate::service::frames::ReadError;
use crate::service::image::{Reference, image_get};
use crate::service::nodes::NodeError;

/// Why an image was not written for container tools.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenderError {
    /// The image or a layer of it is gone.
    #[error("the image is not complete")]
    Gone,
    /// A manifest is damaged.
    #[error("the image's manifest is not valid")]
    Invalid(#[from] FormatError),
    /// A layer could not be written.
    #[error("a layer could not be written as a tar")]
    Tar(#[source] ExportError),
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

/// Writes a tree as the layer of a container image.
pub(super) fn write_tar(root: Digest, store: &NamespaceStore, out: &mut impl Write) -> Result<(), ExportError> {
    chunker::export_layer(root, store, out, &()).map(drop)
}

impl Oci {
    /// Starts to compute the digests of an image that was pushed.
    pub(crate) fn render_later(self: &Arc<Self>, repository: Repository, reference: Reference) {
        let oci = Arc::clone(self);
        self.in_background(async move {
            let rendered = async {
                let image = image_get(&oci.objects.db, &repository, &reference).await?.ok_or(RenderError::Gone)?;
                oci.render(&repository, &image.repository, image.digest).await
            };
            if let Err(error) = rendered.await {
                tracing::warn!(repository = repository.as_str(), error = crate::chain(&error), "an image of {repository} cannot be pulled by container tools");
            }
        });
    }

    /// The manifest of an image of ours. What is done already is not done again.
    pub(super) async fn render(&self, repository: &Repository, row: &RepositoryRow, image: Digest) -> Result<OciDigest, RenderError> {
        let _lock = self.converting.lock(&format!("{} {image}", repository.as_str())).await;
        let (links, bytes) = {
            let mut db = self.objects.db.read().await?;
            (oci_image_manifests(&mut db, row.id, &image).await?, manifest_get(&mut db, row.id, &image).await?)
        };
        if let Some(link) = links.into_iter().next() {
            return Ok(link.manifest);
        }
        let _turn = self.conversions.acquire().await.map_err(|_| RenderError::Cancelled)?;
        let manifest = ImageManifest::decode(&bytes.ok_or(RenderError::Gone)?)?;
        let mut layers: Vec<LayerManifest> = Vec::with_capacity(manifest.layers.len());
        let mut blobs = Vec::new();
        for digest in &manifest.layers {
            let layer = self.nodes.layer(row.namespace, *digest, None).await.map_err(node_error)?;
            let (tar, size_bytes) = self.tar(row, layer.root).await?;
            blobs.push((tar, BlobRow { size_bytes, content: BlobContent::Tar(layer.root) }));
            layers.push((*layer).clone());
        }
        let config = ImageConfig::of(&manifest, &layers, blobs.iter().map(|(digest, _)| digest.clone()).collect());
        let config = canonical(&config)?;
        let digest = |bytes: &[u8]| digest_of(Algorithm::Sha256, bytes).ok_or(RenderError::Cancelled);
        let config_digest = digest(&config)?;
        let rendered = OciManifest {
            schema_version: Some(2),
            media_type: Some(media::MANIFEST.into()),
            config: Some(Descriptor::new(media::CONFIG, config_digest.clone(), config.len() as u64)),
            layers: Some(blobs.iter().map(|(digest, blob)| Descriptor::new(media::LAYER_TAR, digest.clone(), blob.size_bytes)).collect()),
            ..OciManifest::default()
        };
        let bytes = canonical(&rendered)?;
        let manifest_digest = digest(&bytes)?;
        blobs.push((config_digest, BlobRow { size_bytes: config.len() as u64, content: BlobContent::Inline(config) }));
        let mut transaction = self.objects.db.begin().await?;
        let row = repository_find(&mut transaction, repository).await?.ok_or(RenderError::Gone)?;
        // Deleted meanwhile: it stays so.
        if manifest_get(&mut transaction, row.id, &image).await?.is_none() {
            return Err(RenderError::Gone);
        }
        for (digest, blob) in &blobs {
            oci_blob_put(&mut transaction, row.id, digest, blob).await?;
        }
        let new = NewOciManifest {
            digest: &manifest_digest,
            media_type: media::MANIFEST,
            bytes: &bytes,
            artifact_type: Some(media::CONFIG),
            annotations: None,
            subject: None,
        };
        oci_manifest_put(&mut transaction, row.id, new).await?;
        oci_image_put(&mut transaction, row.id, &ImageLink { manifest: manifest_digest.clone(), image, rendered: true }).await?;
        commit(transaction).await?;
        Ok(manifest_digest)
    }

    /// Digest and length of a tree, written as a tar.
    async fn tar(&self, row: &RepositoryRow, root: Digest) -> Result<(OciDigest, u64), RenderError> {
        let known = {
            let mut db = self.objects.db.read().await?;
            oci_tar_get(&mut db, row.namespace, &root).await?
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let store = self.store(row.namespace);
        let counted = tokio::task::spawn_blocking(move || {
            let mut counter = io::BufWriter::with_capacity(64 << 10, Counter { hasher: Hasher::new(Algorithm::Sha256), len: 0 });
            write_tar(root, &store, &mut counter)?;
            counter.into_inner().map_err(|error| ExportError::Write(error.into_error()))
        });
        let counter = counted.await.map_err(|_| RenderError::Cancelled)?.map_err(RenderError::Tar)?;
        let (len, digest) = (counter.len, counter.hasher.finish().ok_or(RenderError::Cancelled)?);
        let mut transaction = self.objects.db.begin().await?;
        oci_tar_put(&mut transaction, row.namespace, &root, &digest, len).await?;
        commit(transaction).await?;
        Ok((digest, len))
    }
}

fn node_error(error: NodeError) -> RenderError {
    match error {
        NodeError::Read(error) => error.into(),
        NodeError::Missing(_) => RenderError::Gone,
        NodeError::Invalid { source, .. } => source.into(),
    }
}

/// JSON with the fields in the order of the types: the same for the same image.
fn canonical(value: &impl serde::Serialize) -> Result<Vec<u8>, FormatError> {
    serde_json::to_vec(value).map_err(|_| FormatError::Invalid { what: "manifest", rule: "it can be written as JSON" })
}

struct Counter {
    hasher: Hasher,
    len: u64,
}

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
