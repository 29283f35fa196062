//! Images looked at without their data, here and on the registry: what pushes, pulls and `turbo inspect` ask for.

use anyhow::{Context, Result};
use client_store::Store;
use client_store::origin::OriginError;
use client_store::remote::Registry;
use client_store::remote::retry::RetryPolicy;
use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::reference::{ImageReference, Repository, Revision};

use crate::dependencies::Source;
use crate::images::{self, LocalImage};

/// Releases that the registry has of a repository; none if it does not know it.
///
/// # Errors
/// If it cannot be asked.
pub fn releases(runtime: &tokio::runtime::Handle, registry: &Registry, repository: &Repository) -> Result<Vec<(String, Digest)>> {
    match runtime.block_on(RetryPolicy::default().run(|| registry.tags(repository))) {
        Ok(tags) => Ok(tags.tags.into_iter().collect()),
        Err(OriginError::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Whether an error says that the registry has no such image.
pub fn is_absent(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<OriginError>(), Some(OriginError::NotFound { .. }))
}

/// An image that is looked for here is not here.
#[derive(Debug, thiserror::Error)]
#[error("it is not here; `turbo images` lists what is, `turbo pull` brings it")]
struct NotHere;

/// What is here alone.
#[derive(Debug)]
pub struct LocalSource<'a>(pub &'a Store);

impl Source for LocalSource<'_> {
    type Image = LocalImage;

    fn local(&self, repository: &Repository) -> Result<Vec<(String, Digest)>> {
        Ok(self.0.releases(repository)?)
    }

    fn remote(&self, _: &Repository) -> Result<Option<Vec<(String, Digest)>>> {
        Ok(None)
    }

    fn get(&self, reference: &ImageReference, digest: Option<Digest>) -> Result<LocalImage> {
        let stored = self.0.image_get(&exact(reference, digest))?;
        let stored =
            stored.ok_or(NotHere).with_context(|| format!("the image {reference} is not here; `turbo images` lists what is, `turbo pull` brings it"))?;
        images::parse(reference, stored)
    }

    fn is_absent(&self, error: &anyhow::Error) -> bool {
        error.is::<NotHere>()
    }

    fn manifest<'a>(&self, image: &'a LocalImage) -> (Digest, &'a ImageManifest) {
        (image.stored.digest, &image.manifest)
    }
}

/// By digest, if that is known.
fn exact(reference: &ImageReference, digest: Option<Digest>) -> ImageReference {
    let revision = digest.map_or_else(|| reference.revision.clone(), Revision::Digest);
    ImageReference { repository: reference.repository.clone(), revision }
}

/// The registry for dependencies, and what is here for the images that were named.
pub struct RegistrySource<'a> {
    store: &'a Store,
    /// Images that are here, and need not be on the registry.
    named: &'a [ImageReference],
    /// Whether a dependency that is here will do.
    local_will_do: bool,
    registry: Registry,
    runtime: tokio::runtime::Handle,
}

/// A manifest, and where it was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its digest.
    pub digest: Digest,
    /// The manifest.
    pub manifest: ImageManifest,
    /// Whether the registry has it.
    pub on_registry: bool,
}

impl<'a> RegistrySource<'a> {
    /// Dependencies of `named`, which are here.
    pub fn new(store: &'a Store, named: &'a [ImageReference], local_will_do: bool, registry: Registry, runtime: tokio::runtime::Handle) -> Self {
        Self { store, named, local_will_do, registry, runtime }
    }

    fn local_image(&self, reference: &ImageReference, digest: Option<Digest>) -> Result<Option<Found>> {
        let Some(stored) = self.store.image_get(&exact(reference, digest))? else { return Ok(None) };
        let image = images::parse(reference, stored)?;
        Ok(Some(Found { digest: image.stored.digest, manifest: image.manifest, on_registry: false }))
    }
}

impl Source for RegistrySource<'_> {
    type Image = Found;

    fn local(&self, repository: &Repository) -> Result<Vec<(String, Digest)>> {
        let is_named = self.named.iter().any(|named| named.repository == *repository);
        if self.local_will_do || is_named { Ok(self.store.releases(repository)?) } else { Ok(Vec::new()) }
    }

    fn remote(&self, repository: &Repository) -> Result<Option<Vec<(String, Digest)>>> {
        releases(&self.runtime, &self.registry, repository).map(Some)
    }

    fn get(&self, reference: &ImageReference, digest: Option<Digest>) -> Result<Found> {
        if self.named.contains(reference)
            && let Some(found) = self.local_image(reference, None)?
        {
            return Ok(found);
        }
        let asked = exact(reference, digest);
        match self.runtime.block_on(RetryPolicy::default().run(|| self.registry.get_manifest(&asked))) {
            Ok(found) => Ok(Found { digest: found.digest, manifest: ImageManifest::decode(&found.bytes)?, on_registry: true }),
            // Only by digest: whether another release will do is not decided here.
            Err(error) if self.local_will_do && digest.is_some() => self.local_image(reference, digest)?.ok_or_else(|| error.into()),
            Err(error) => Err(error.into()),
        }
    }

    fn is_absent(&self, error: &anyhow::Error) -> bool {
        is_absent(error)
    }

    fn manifest<'b>(&self, image: &'b Found) -> (Digest, &'b ImageManifest) {
        (image.digest, &image.manifest)
    }
}
