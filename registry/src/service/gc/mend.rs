//! What becomes of objects that cannot be read any more: found in another pack, or taken out of the index, so that `missing`
//! says the truth and the next push heals.
//!
//! Order: no closure of the namespace is remembered any more (which of them led to the object is not known without looking at
//! all images), then the object's row goes, in one transaction; a put in progress remembers no closure either, by the epoch.

use std::collections::HashSet;

use layer_format::Digest;
use layer_format::pack::PackIndex;
use serde::Serialize;

use super::needs::Needs;
use super::pace::Pace;
use super::{Collector, GcError};
use crate::db::base::base_find;
use crate::db::commit;
use crate::db::gc::{gc_epoch, gc_epoch_next, object_delete_from, verified_clear};
use crate::db::namespace::NamespaceId;
use crate::db::object::{FramePlace, Location, object_insert_pack};
use crate::db::pack::PackId;
use crate::db::pack_life::{PackRow, pack_break, pack_list, pack_namespace};
use crate::service::pack_upload::read_index;

/// What became of damaged objects.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Mended {
    /// Found right in another pack of the namespace.
    pub healed: Vec<String>,
    /// Taken out of the index: a push of an image that needs them heals it.
    pub quarantined: Vec<String>,
    /// What needs those: `repository:tag`, `repository@digest`, a state or a blob.
    pub needed_by: Vec<String>,
}

/// Another copy of an object.
struct Copy {
    pack: PackRow,
    index: PackIndex,
    digests: Vec<Digest>,
}

impl Collector {
    /// Looks for other copies of the objects of a damaged pack. Nothing is changed.
    async fn copies(&self, namespace: NamespaceId, except: PackId, lost: &HashSet<Digest>) -> Result<Vec<Copy>, GcError> {
        let packs = {
            let mut db = self.objects.db.read().await?;
            pack_list(&mut db, namespace).await?
        };
        // What delta frames are compressed against lies in plain frames.
        let all: Vec<Digest> = lost.iter().copied().collect();
        let bases = base_find(&mut self.objects.db.read().await?, namespace, &all).await?;
        let mut wanted = lost.clone();
        let mut copies = Vec::new();
        for pack in packs.into_iter().filter(|pack| pack.id != except && pack.retired_at.is_none()) {
            if wanted.is_empty() {
                break;
            }
            let index = match read_index(&*self.storage, &pack).await {
                Ok(index) => index,
                Err(error) if error.is_loss() => continue,
                Err(error) => return Err(error.into()),
            };
            let mut digests = Vec::new();
            for object in index.objects.iter().filter(|object| wanted.contains(&object.digest)) {
                let Some(frame) = index.frames.get(object.frame as usize) else { continue };
                let frame = FramePlace { pack: pack.id, offset: frame.offset as u32, len: frame.len };
                if bases.contains(&object.digest) && self.objects.frames.is_delta(frame).await? {
                    continue;
                }
                if self.objects.read(&object.digest, &Location { frame, slot: object.slot, len: object.len }).await.is_ok() {
                    digests.push(object.digest);
                }
            }
            wanted.retain(|digest| !digests.contains(digest));
            if !digests.is_empty() {
                copies.push(Copy { pack, index, digests });
            }
        }
        Ok(copies)
    }

    /// What [`Collector::mend`] would do.
    pub(super) async fn mend_dry(&self, namespace: NamespaceId, pack: PackId, lost: &[Digest]) -> Result<Mended, GcError> {
        let lost: HashSet<Digest> = lost.iter().copied().collect();
        let copies = self.copies(namespace, pack, &lost).await?;
        let healed: HashSet<Digest> = copies.iter().flat_map(|copy| copy.digests.iter().copied()).collect();
        self.told(namespace, &lost, &healed).await
    }

    /// Finds other copies of objects that are damaged in `pack`, and takes the others out of the index.
    pub(super) async fn mend(&self, namespace: NamespaceId, pace: &mut Pace<'_>, pack: PackId, lost: &[Digest]) -> Result<Mended, GcError> {
        let lost: HashSet<Digest> = lost.iter().copied().collect();
        let copies = self.copies(namespace, pack, &lost).await?;
        let mut transaction = self.objects.db.begin().await?;
        pace.check(&mut transaction).await?;
        let is_odd = gc_epoch(&mut transaction, namespace).await? % 2 != 0;
        gc_epoch_next(&mut transaction, namespace, is_odd).await?;
        verified_clear(&mut transaction, namespace).await?;
        let all: Vec<Digest> = lost.iter().copied().collect();
        let removed: HashSet<Digest> = object_delete_from(&mut transaction, namespace, &[pack], &all).await?.into_iter().collect();
        pack_break(&mut transaction, [pack]).await?;
        let mut healed = HashSet::new();
        for copy in copies {
            if pack_namespace(&mut transaction, copy.pack.id).await? != Some(namespace) {
                continue;
            }
            let here: HashSet<Digest> = copy.digests.into_iter().filter(|digest| removed.contains(digest)).collect();
            let index = PackIndex { objects: copy.index.objects.into_iter().filter(|object| here.contains(&object.digest)).collect(), ..copy.index };
            object_insert_pack(&mut transaction, namespace, copy.pack.id, &index).await?;
            healed.extend(here);
        }
        commit(transaction).await?;
        self.told(namespace, &removed, &healed).await
    }

    async fn told(&self, namespace: NamespaceId, lost: &HashSet<Digest>, healed: &HashSet<Digest>) -> Result<Mended, GcError> {
        let gone: HashSet<Digest> = lost.difference(healed).copied().collect();
        let needed_by = match gone.is_empty() {
            true => Vec::new(),
            false => Needs::new(&self.objects, namespace, &gone).list().await?,
        };
        Ok(Mended { healed: texts(healed), quarantined: texts(&gone), needed_by })
    }
}

fn texts(digests: &HashSet<Digest>) -> Vec<String> {
    let mut texts: Vec<String> = digests.iter().map(ToString::to_string).collect();
    texts.sort();
    texts
}
