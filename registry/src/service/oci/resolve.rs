//! Which image a tag names. Both sides can move it, `docker push` and `turbo push`: the later push wins, and what is not yet
//! there in the form that is asked for is made. A release that was made from a manifest does not count as a push.

use layer_format::Digest;
use layer_format::oci::OciDigest;
use layer_format::reference::{HEAD, Repository};

use super::Oci;
use super::manifest::OciReference;
use super::render::RenderError;
use super::unpack::UnpackError;
use crate::db::manifest::manifest_newest;
use crate::db::oci_image::{oci_image_manifests, release_moved};
use crate::db::oci_manifest::{OciManifestRow, oci_manifest_get, oci_tag_get, oci_tag_newest};
use crate::db::repository::{RepositoryId, RepositoryRow, repository_find};
use crate::db::tag::{tag_get, tag_move};
use crate::db::{Connection, DbError};
use crate::service::image::Reference;

/// What a tag names.
pub(super) enum Named {
    Nothing,
    /// Pushed by a container tool.
    Manifest {
        tag: String,
        digest: OciDigest,
        image_is_current: bool,
    },
    /// Pushed by turbo.
    Image(Digest),
}

/// Decides about a tag.
pub(super) async fn resolve(db: &mut Connection, row: &RepositoryRow, name: &str) -> Result<Named, DbError> {
    let release = release_moved(db, row.id, name).await?;
    let mut manifest = oci_tag_get(db, row.id, name).await?.map(|(digest, moved)| (name.to_owned(), digest, moved));
    if name == HEAD && manifest.is_none() {
        manifest = oci_tag_newest(db, row.id).await?;
    }
    let links = match &release {
        Some((image, _)) => oci_image_manifests(db, row.id, image).await?,
        None => Vec::new(),
    };
    let made_here = links.iter().any(|link| !link.rendered);
    Ok(match (release, manifest) {
        (None, None) => Named::Nothing,
        (Some((image, _)), None) => Named::Image(image),
        (Some((image, released)), Some((_, _, moved))) if released > moved && !made_here => Named::Image(image),
        (_, Some((tag, digest, _))) => {
            let image_is_current = links.iter().any(|link| link.manifest == digest);
            Named::Manifest { tag, digest, image_is_current }
        }
    })
}

impl Oci {
    /// The manifest, if the repository has it, or has an image of ours that it can be made of.
    pub(crate) async fn manifest_get(&self, repository: &Repository, reference: &OciReference) -> Result<Option<OciManifestRow>, RenderError> {
        let name = match reference {
            OciReference::Digest(digest) => return Ok(self.manifest_by_digest(repository, digest).await?),
            OciReference::Tag(name) => name,
        };
        let (row, named) = {
            let mut db = self.objects.db.read().await?;
            let Some(row) = repository_find(&mut db, repository).await? else { return Ok(None) };
            (row, resolve(&mut db, &row, name).await?)
        };
        let digest = match named {
            Named::Nothing => return Ok(None),
            Named::Manifest { digest, .. } => digest,
            Named::Image(image) => self.render(repository, &row, image).await?,
        };
        let mut db = self.objects.db.read().await?;
        Ok(oci_manifest_get(&mut db, row.id, &digest).await?)
    }

    /// Before our own side reads an image: if a container tool pushed it later than turbo did, it is taken apart first.
    pub(crate) async fn image_ensure(&self, repository: &Repository, reference: &Reference) -> Result<(), UnpackError> {
        let Reference::Release(name) = reference else { return Ok(()) };
        let named = {
            let mut db = self.objects.db.read().await?;
            match repository_find(&mut db, repository).await? {
                Some(row) => resolve(&mut db, &row, name).await?,
                None => Named::Nothing,
            }
        };
        match named {
            Named::Manifest { image_is_current: false, tag, digest } => self.unpack(repository, &tag, &digest).await,
            _ => Ok(()),
        }
    }
}

/// Makes `head` name the newest image that is left, after something was deleted.
pub(crate) async fn restore_head(db: &mut Connection, repository: RepositoryId) -> Result<(), DbError> {
    if tag_get(db, repository, HEAD).await?.is_none()
        && let Some(newest) = manifest_newest(db, repository).await?
    {
        tag_move(db, repository, HEAD, &newest).await?;
    }
    Ok(())
}
