//! Records candidates, and removes those that are due from the index.
//!
//! Order matters twice. *Recording*: first nothing may be remembered any more that leads to a candidate (`verified`), or a put
//! would rely on an object without ever looking at it; so the epoch is odd from before the first of these rows is removed until the
//! last candidate is recorded, and puts remember nothing meanwhile. *Removing*: what leads there, the object's row, and the
//! candidate's in one transaction, in which the candidate is looked at again: whoever was told meanwhile that the object is present
//! has taken it away. The bytes go last, with their pack.

use std::collections::HashSet;

use layer_format::Digest;

use super::pace::Pace;
use super::runs::Sorted;
use super::{Collector, GcError, GcReport};
use crate::db::commit;
use crate::db::gc::{candidate_delete, candidate_insert, candidate_take, object_delete, verified_delete, verified_delete_bases};
use crate::db::namespace::NamespaceId;
use crate::db::pack::PackId;
use crate::db::pack_life::pack_break;

/// Objects of one transaction: others that write wait for it.
const BATCH: usize = 512;

fn digests(records: Vec<[u8; Digest::LEN]>) -> Vec<Digest> {
    records.into_iter().map(Digest).collect()
}

impl Collector {
    /// Records new candidates, and takes back those that something leads to.
    pub(super) async fn queue(
        &self,
        namespace: NamespaceId,
        pace: &mut Pace<'_>,
        mut fresh: Sorted<{ Digest::LEN }>,
        mut back: Sorted<{ Digest::LEN }>,
        report: &GcReport,
    ) -> Result<(), GcError> {
        let db = &self.objects.db;
        loop {
            let batch = digests(back.take(BATCH).map_err(GcError::Scratch)?);
            if batch.is_empty() {
                break;
            }
            let mut transaction = db.begin().await?;
            pace.check(&mut transaction).await?;
            candidate_delete(&mut transaction, namespace, &batch).await?;
            commit(transaction).await?;
            pace.rest().await?;
        }
        if report.candidates_new == 0 {
            // A collection that was cut while it recorded candidates left the epoch odd.
            return self.epoch(namespace, pace, false).await;
        }
        self.epoch(namespace, pace, true).await?;
        {
            let mut transaction = db.begin().await?;
            pace.check(&mut transaction).await?;
            verified_delete_bases(&mut transaction, namespace).await?;
            commit(transaction).await?;
        }
        // Twice through the same list: all that leads to any of them, then the candidates themselves.
        let mut again = super::runs::Runs::new(&self.folder);
        loop {
            let batch = fresh.take(BATCH).map_err(GcError::Scratch)?;
            if batch.is_empty() {
                break;
            }
            for record in &batch {
                again.push(*record).map_err(GcError::Scratch)?;
            }
            let mut transaction = db.begin().await?;
            pace.check(&mut transaction).await?;
            verified_delete(&mut transaction, namespace, &digests(batch)).await?;
            commit(transaction).await?;
            pace.rest().await?;
        }
        let mut again = again.sorted().map_err(GcError::Scratch)?;
        loop {
            let batch = digests(again.take(BATCH).map_err(GcError::Scratch)?);
            if batch.is_empty() {
                break;
            }
            let mut transaction = db.begin().await?;
            pace.check(&mut transaction).await?;
            candidate_insert(&mut transaction, namespace, &batch, db.now()).await?;
            commit(transaction).await?;
            pace.rest().await?;
        }
        self.epoch(namespace, pace, false).await
    }

    /// Removes candidates whose time is over and that nobody took away.
    pub(super) async fn remove_due(
        &self,
        namespace: NamespaceId,
        pace: &mut Pace<'_>,
        mut due: Sorted<{ Digest::LEN }>,
        since: i64,
        report: &mut GcReport,
    ) -> Result<(), GcError> {
        let mut broken: HashSet<PackId> = HashSet::new();
        loop {
            let batch = digests(due.take(BATCH).map_err(GcError::Scratch)?);
            if batch.is_empty() {
                return Ok(());
            }
            let mut transaction = self.objects.db.begin().await?;
            pace.check(&mut transaction).await?;
            let still = candidate_take(&mut transaction, namespace, &batch, since).await?;
            verified_delete(&mut transaction, namespace, &still).await?;
            let removed = object_delete(&mut transaction, namespace, &still).await?;
            let hit: HashSet<PackId> = removed.iter().map(|(pack, _)| *pack).filter(|pack| !broken.contains(pack)).collect();
            pack_break(&mut transaction, hit.iter().copied()).await?;
            commit(transaction).await?;
            broken.extend(hit);
            report.objects_removed += removed.len() as u64;
            report.object_bytes_removed += removed.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
            pace.rest().await?;
        }
    }
}
