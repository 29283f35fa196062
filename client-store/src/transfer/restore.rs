//! Bringing back what was lost here of an image that is known: damaged and forgotten, or evicted.

use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::reference::{ImageReference, Repository, Revision};

use super::pull::{DAMAGE_ROUNDS, Pull};
use super::{Phase, TransferError, TransferOptions, TransferReport};
use crate::remote::Registry;
use crate::store::Store;

/// Fetches from a repository what is missing here of an image that has a name here. It gets no other name, and nothing is
/// believed of the registry but the objects that came.
///
/// # Errors
/// [`TransferError`]. What had arrived stays: the same call goes on from there.
pub async fn restore(
    store: &Store,
    registry: &Registry,
    repository: &Repository,
    image: &Digest,
    options: &TransferOptions,
) -> Result<TransferReport, TransferError> {
    let name = format!("{repository}@{image}");
    let reference = ImageReference { repository: repository.clone(), revision: Revision::Digest(*image) };
    let found = store.image_get(&reference)?.ok_or_else(|| TransferError::NotLocal { image: name.clone() })?;
    let manifest = ImageManifest::decode(&found.bytes).map_err(|source| TransferError::Format { digest: *image, source })?;
    let mut pull = Pull::new(store, registry, repository, name, options);
    pull.report.digest = *image;
    let hold = pull.hold().await?;
    // Each time what was found damaged is forgotten, and so fetched by the next.
    let mut left = DAMAGE_ROUNDS;
    while let Err(error) = pull.layers(&manifest.layers).await {
        match error {
            TransferError::LocalDamage { .. } if left > 0 => left -= 1,
            error => return Err(error),
        }
    }
    options.progress.phase(Phase::Commit, None);
    store.image_is_whole(image)?;
    drop(hold);
    pull.finish().await
}
