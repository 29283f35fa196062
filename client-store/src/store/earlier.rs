//! Which image is an earlier version of another, so that the new one can be compressed against it.

use layer_format::Digest;
use layer_format::manifest::{LayerManifest, Manifest};
use layer_format::reference::{ImageReference, Repository, Revision};

use super::Store;
use super::images::StoredImage;
use crate::cache::ObjectCache;
use crate::error::StoreError;

impl Store {
    /// The newest image of a repository that is known here: its head, or else the one that was named last.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn newest_image(&self, repository: &Repository) -> Result<Option<StoredImage>, StoreError> {
        let head = ImageReference { repository: repository.clone(), revision: Revision::Head };
        if let Some(image) = self.image_get(&head)? {
            return Ok(Some(image));
        }
        let Some((.., row)) = self.refs_of(Some(repository))?.into_iter().max_by_key(|(_, release, row)| (row.set_s, release.clone())) else {
            return Ok(None);
        };
        self.image_get(&ImageReference { repository: repository.clone(), revision: Revision::Digest(row.digest) })
    }

    /// The roots of the trees of an image's layers, lowest first, as far as they are known here.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails, or the manifest is not valid.
    pub fn roots_of(&self, image: &StoredImage) -> Result<Vec<Digest>, StoreError> {
        let mut roots = Vec::new();
        for layer in image.manifest()?.layers {
            let manifest = self.get(&layer)?.and_then(|bytes| LayerManifest::decode(&bytes).ok());
            roots.extend(manifest.map(|manifest| manifest.root));
        }
        Ok(roots)
    }
}
