//! Images of the registry, looked at without their data: what pushes, pulls and dependencies ask for.

use anyhow::Result;
use client_store::origin::OriginError;
use client_store::remote::Registry;
use client_store::remote::retry::RetryPolicy;
use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::reference::{ImageReference, Repository, Revision};

use crate::dependencies::Source;

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

/// The registry alone: what is here does not count.
pub struct RegistrySource {
    registry: Registry,
    runtime: tokio::runtime::Handle,
}

impl RegistrySource {
    /// Asks this registry.
    pub fn new(registry: Registry, runtime: tokio::runtime::Handle) -> Self {
        Self { registry, runtime }
    }
}

impl Source for RegistrySource {
    type Image = (Digest, ImageManifest);

    fn local(&self, _: &Repository) -> Result<Vec<(String, Digest)>> {
        Ok(Vec::new())
    }

    fn remote(&self, repository: &Repository) -> Result<Option<Vec<(String, Digest)>>> {
        releases(&self.runtime, &self.registry, repository).map(Some)
    }

    fn get(&self, reference: &ImageReference, digest: Option<Digest>) -> Result<Self::Image> {
        let by_digest = digest.map(|digest| ImageReference { repository: reference.repository.clone(), revision: Revision::Digest(digest) });
        let asked = by_digest.as_ref().unwrap_or(reference);
        let found = self.runtime.block_on(RetryPolicy::default().run(|| self.registry.get_manifest(asked)))?;
        Ok((found.digest, ImageManifest::decode(&found.bytes)?))
    }

    fn is_absent(&self, error: &anyhow::Error) -> bool {
        is_absent(error)
    }

    fn manifest<'a>(&self, image: &'a Self::Image) -> (Digest, &'a ImageManifest) {
        (image.0, &image.1)
    }
}
