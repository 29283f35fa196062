//! Storage against database, both ways: packs that no row names, which a crash between the two leaves, and rows whose pack is
//! gone. By default it only tells.

use std::collections::HashSet;

use futures::TryStreamExt;
use layer_format::Digest;
use serde::Serialize;

use super::mend::Mended;
use super::{Collector, GcError};
use crate::blob_storage::{BlobStat, pack_key, undo_key};
use crate::db::commit;
use crate::db::namespace::namespace_find;
use crate::db::pack::PackId;
use crate::db::pack_life::{pack_list, pack_name_used, pack_names, pack_namespace, pack_objects_all, pack_retire};
use crate::db::root::namespace_list;
use crate::service::lease::{LEASE, ms};
use crate::service::pack_upload::{NewPack, Owner, Recorded, pack_record, read_bases};
use crate::service::pack_verifier::PackVerifier;

/// Bytes that are read at a time.
const PIECE_LEN: u64 = 4 << 20;

/// How to reconcile.
#[derive(Clone, Debug, Default)]
pub struct ReconcileOptions {
    /// Change something; else only tell.
    pub repair: bool,
    /// Packs that no row names become packs of this namespace, instead of being put into the folder `undo/`.
    pub adopt: Option<String>,
}

/// What does not agree.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ReconcileReport {
    /// Packs that database and storage agree about.
    pub packs: u64,
    /// Packs in the storage that no row names.
    pub orphans: Vec<Orphan>,
    /// Such packs that are so young that a push may be about to record them.
    pub young: u64,
    /// Rows whose pack is gone or cut short.
    pub lost: Vec<LostPack>,
}

/// A pack that no row names.
#[derive(Clone, Debug, Serialize)]
pub struct Orphan {
    /// Its name in the storage.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// `found`, `moved to undo/`, `adopted`, or why it is no pack.
    pub fate: String,
}

/// A row whose pack is gone or cut short.
#[derive(Clone, Debug, Serialize)]
pub struct LostPack {
    /// Whose it was.
    pub namespace: String,
    /// Its name in the storage.
    pub name: String,
    /// Its length, by the row.
    pub bytes: u64,
    /// Its objects.
    #[serde(flatten)]
    pub objects: Mended,
    /// Whether the index says the truth again.
    pub is_mended: bool,
}

impl Collector {
    /// Compares, and repairs if told to.
    pub(crate) async fn reconcile(&self, options: &ReconcileOptions) -> Result<ReconcileReport, GcError> {
        let mut report = ReconcileReport::default();
        self.orphans(options, &mut report).await?;
        self.lost_packs(options, &mut report).await?;
        Ok(report)
    }

    async fn orphans(&self, options: &ReconcileOptions, report: &mut ReconcileReport) -> Result<(), GcError> {
        let known: HashSet<Digest> = {
            let mut db = self.objects.db.read().await?;
            pack_names(&mut db).await?.into_iter().collect()
        };
        let young = self.objects.db.now() - ms(LEASE);
        let mut unknown: Vec<(Digest, BlobStat)> = Vec::new();
        let mut listed = self.storage.list_packs();
        while let Some((name, stat)) = listed.try_next().await? {
            match known.contains(&name) {
                true => {}
                false if stat.written_at > young => report.young += 1,
                false => unknown.push((name, stat)),
            }
        }
        drop(listed);
        for (name, stat) in unknown {
            {
                // It may have been recorded since the names were read.
                let mut db = self.objects.db.read().await?;
                if pack_name_used(&mut db, &name, PackId::NONE).await? {
                    continue;
                }
            }
            let fate = match (&options.adopt, options.repair) {
                (_, false) => "found".to_owned(),
                (Some(namespace), true) => self.adopt(namespace, &name, stat.len).await?,
                (None, true) => {
                    self.storage.rename(&pack_key(&name), &undo_key(&name)).await?;
                    "moved to undo/".to_owned()
                }
            };
            report.orphans.push(Orphan { name: name.to_hex(), bytes: stat.len, fate });
        }
        Ok(())
    }

    /// Makes a pack one of the namespace, if it is one: every byte is verified.
    async fn adopt(&self, namespace: &str, name: &Digest, len: u64) -> Result<String, GcError> {
        let key = pack_key(name);
        // Its digest is computed first, since a pack is verified against it.
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < len {
            let piece = self.storage.read(&key, at..(at + PIECE_LEN).min(len)).await?;
            at += piece.len() as u64;
            hasher.update(&piece);
        }
        let digest = Digest(*hasher.finalize().as_bytes());
        let known = namespace_find(&mut self.objects.db.read().await?, namespace).await?;
        let mut verifier = PackVerifier::new(digest, read_bases(&self.objects, known));
        let mut at = 0;
        while at < len {
            let piece = self.storage.read(&key, at..(at + PIECE_LEN).min(len)).await?;
            at += piece.len() as u64;
            // It waits for what delta frames need.
            let pushed = tokio::task::spawn_blocking(move || verifier.push(&piece).map(|()| verifier));
            verifier = match pushed.await.map_err(|_| GcError::Cancelled)? {
                Ok(verifier) => verifier,
                Err(error) => return Ok(format!("left where it is: {error}")),
            };
        }
        let verified = match verifier.finish() {
            Ok(verified) => verified,
            Err(error) => return Ok(format!("left where it is: {error}")),
        };
        let bases: Vec<Digest> = verified.bases.iter().copied().collect();
        let new = NewPack { digest, name: *name, size_bytes: len, frames: &verified.frames, index: &verified.index, bases: &bases };
        Ok(match pack_record(&self.objects.db, &self.storage, Owner::Name(namespace), new).await? {
            Recorded::New => "adopted".into(),
            Recorded::Known => "removed: the namespace has the same pack".into(),
            Recorded::BasesGone => "removed: it is compressed against what the namespace does not have".into(),
        })
    }

    async fn lost_packs(&self, options: &ReconcileOptions, report: &mut ReconcileReport) -> Result<(), GcError> {
        let namespaces = {
            let mut db = self.objects.db.read().await?;
            namespace_list(&mut db).await?
        };
        for (namespace, name) in namespaces {
            let packs = {
                let mut db = self.objects.db.read().await?;
                pack_list(&mut db, namespace).await?
            };
            for pack in packs.into_iter().filter(|pack| pack.retired_at.is_none()) {
                if self.storage.stat(&pack_key(&pack.name)).await?.is_some_and(|stat| stat.len == pack.size_bytes) {
                    report.packs += 1;
                    continue;
                }
                let objects: Vec<Digest> = {
                    let mut db = self.objects.db.read().await?;
                    if pack_namespace(&mut db, pack.id).await?.is_none() {
                        continue;
                    }
                    pack_objects_all(&mut db, namespace, pack.id).await?.into_iter().map(|(digest, ..)| digest).collect()
                };
                let pace = if options.repair { self.wait_for(namespace).await? } else { None };
                let (mended, is_mended) = match pace {
                    Some(mut pace) => {
                        let mended = self.mend(namespace, &mut pace, pack.id, &objects).await?;
                        let mut transaction = self.objects.db.begin().await?;
                        pace.check(&mut transaction).await?;
                        if pack_objects_all(&mut transaction, namespace, pack.id).await?.is_empty() {
                            pack_retire(&mut transaction, pack.id, self.objects.db.now()).await?;
                        }
                        commit(transaction).await?;
                        pace.end().await?;
                        (mended, true)
                    }
                    None => (self.mend_dry(namespace, pack.id, &objects).await?, false),
                };
                report.lost.push(LostPack { namespace: name.clone(), name: pack.name.to_hex(), bytes: pack.size_bytes, objects: mended, is_mended });
            }
        }
        Ok(())
    }
}
