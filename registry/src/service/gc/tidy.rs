//! What ends by time: undo windows, uploads, leases of the dead, and blobs of container tools to which no manifest refers.
//!
//! A push of a container image puts blobs first and the manifest that refers to them last, so a blob without one is kept for
//! the undo window from when that was noticed; whoever asks for it begins the time anew.

use std::collections::HashSet;

use layer_format::oci::OciManifest;

use super::pace::Pace;
use super::{Collector, GcError, GcOptions, GcReport};
use crate::db::commit;
use crate::db::lease::lease_push_expire;
use crate::db::namespace::NamespaceId;
use crate::db::oci_unused::{oci_blob_delete_unused, oci_blob_set_unused, oci_blob_unused, oci_blob_used, oci_layer_expire, oci_manifests_of, repositories_of};
use crate::db::oci_upload::oci_upload_expire;
use crate::db::repository::{RepositoryId, repository_lock};
use crate::db::trash::{trash_count, trash_purge};
use crate::service::lease::{LEASE, ms};
use crate::service::oci::upload::MAX_AGE;

impl Collector {
    /// Ends what is over.
    pub(super) async fn tidy(&self, namespace: NamespaceId, pace: &mut Pace<'_>, options: GcOptions, report: &mut GcReport) -> Result<(), GcError> {
        let db = &self.objects.db;
        let now = db.now();
        let purge_before = now - ms(self.settings.undo_window);
        if options.dry_run {
            let mut db = db.read().await?;
            report.purged = trash_count(&mut db, namespace, purge_before).await?;
            return Ok(());
        }
        let mut transaction = db.begin().await?;
        pace.check(&mut transaction).await?;
        report.purged = trash_purge(&mut transaction, namespace, purge_before).await?;
        oci_upload_expire(&mut transaction, now - ms(MAX_AGE)).await?;
        lease_push_expire(&mut transaction, namespace, now - ms(LEASE)).await?;
        commit(transaction).await?;
        let repositories = {
            let mut db = db.read().await?;
            repositories_of(&mut db, namespace).await?
        };
        for repository in repositories {
            self.unused_blobs(repository, pace, report).await?;
            pace.rest().await?;
        }
        let mut transaction = db.begin().await?;
        pace.check(&mut transaction).await?;
        oci_layer_expire(&mut transaction, namespace).await?;
        commit(transaction).await?;
        Ok(())
    }

    /// Blobs of one repository. A manifest that is put meanwhile takes its blobs out of the unused ones in its transaction; what
    /// was removed before that it does not find.
    async fn unused_blobs(&self, repository: RepositoryId, pace: &mut Pace<'_>, report: &mut GcReport) -> Result<(), GcError> {
        let db = &self.objects.db;
        let now = db.now();
        let mut needed: HashSet<String> = HashSet::new();
        let mut is_readable = true;
        let blobs = {
            let mut snapshot = db.snapshot().await?;
            let blobs = oci_blob_unused(&mut snapshot, repository).await?;
            if !blobs.is_empty() {
                oci_manifests_of(&mut snapshot, repository, |media_type, bytes| match OciManifest::decode(bytes, media_type) {
                    Ok((manifest, ..)) => {
                        let children = manifest.manifests().iter().map(|child| child.digest.to_string());
                        needed.extend(manifest.needed_blobs().map(|blob| blob.digest.to_string()).chain(children));
                        // Layers that are kept elsewhere may be here, too.
                        needed.extend(manifest.layers().iter().map(|layer| layer.digest.to_string()));
                    }
                    Err(_) => is_readable = false,
                })
                .await?;
            }
            blobs
        };
        if blobs.is_empty() || !is_readable {
            return Ok(());
        }
        // Not during the push that brought them, either.
        let before = now - ms(self.settings.undo_window.max(self.settings.safe_delay()));
        let (mut fresh, mut back, mut due) = (Vec::new(), Vec::new(), Vec::new());
        for (digest, since) in blobs {
            match (needed.contains(&digest), since) {
                (true, Some(_)) => back.push(digest),
                (true, None) => {}
                (false, None) => fresh.push(digest),
                (false, Some(since)) if since <= before => due.push(digest),
                (false, Some(_)) => {}
            }
        }
        if fresh.is_empty() && back.is_empty() && due.is_empty() {
            return Ok(());
        }
        let mut transaction = db.begin().await?;
        pace.check(&mut transaction).await?;
        repository_lock(&mut transaction, repository).await?;
        oci_blob_set_unused(&mut transaction, repository, &fresh, now).await?;
        oci_blob_used(&mut transaction, repository, &back.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        report.blobs_removed += oci_blob_delete_unused(&mut transaction, repository, &due, before).await?;
        commit(transaction).await?;
        Ok(())
    }
}
