//! Compares the index of a namespace with what the roots lead to, both in order of digests, page by page.

use std::collections::HashMap;

use layer_format::Digest;

use super::pace::Pace;
use super::roots::roots;
use super::runs::{Runs, Sorted};
use super::{Collector, GcError, GcOptions, GcReport, ObjectReason, mark::mark};
use crate::db::gc::{candidate_range, object_page};
use crate::db::lease::lease_push_oldest;
use crate::db::namespace::NamespaceId;
use crate::db::pack::PackId;
use crate::db::pack_life::{PackRow, pack_list};
use crate::service::lease::{LEASE, ms};

/// Rows that are read at a time.
const PAGE: u32 = 4096;
/// Objects that a report lists.
const MAX_LISTED: usize = 100_000;

/// A pack, and what of it is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackUse {
    pub(super) row: PackRow,
    /// Objects whose rows name it.
    pub(super) found: u64,
    /// Of these, those that stay.
    pub(super) live: u64,
}

/// What a sweep found.
#[derive(Debug)]
pub(super) struct Swept {
    /// Objects that nothing leads to, and that are no candidates yet.
    pub(super) fresh: Sorted<{ Digest::LEN }>,
    /// Candidates that something leads to, or that are gone.
    pub(super) back: Sorted<{ Digest::LEN }>,
    /// Candidates whose time is over.
    pub(super) due: Sorted<{ Digest::LEN }>,
    /// Only those that are candidates since then or longer are.
    pub(super) due_since: i64,
    pub(super) packs: HashMap<PackId, PackUse>,
}

impl Collector {
    /// Marks and sweeps. Changes nothing.
    pub(super) async fn sweep(&self, namespace: NamespaceId, pace: &mut Pace<'_>, options: GcOptions, report: &mut GcReport) -> Result<Swept, GcError> {
        let db = &self.objects.db;
        // Before the snapshot: only what was a candidate long enough then is due.
        let now = db.now();
        let (roots, packs, oldest) = {
            let mut snapshot = db.snapshot().await?;
            let oldest = lease_push_oldest(&mut snapshot, namespace, now).await?;
            let packs = pack_list(&mut snapshot, namespace).await?;
            let (roots, counts) = roots(&mut snapshot, namespace, &self.folder).await?;
            report.roots = counts;
            (roots, packs, oldest)
        };
        // A push that began before an object became a candidate may have been told that it is there.
        let wait_over = now - ms(self.settings.safe_delay());
        let due_since = oldest.map_or(wait_over, |oldest| wait_over.min(oldest - 1));
        let mut packs: HashMap<PackId, PackUse> = packs.into_iter().map(|row| (row.id, PackUse { row, found: 0, live: 0 })).collect();
        let mut marked = mark(&self.objects, namespace, roots, &self.folder, pace).await?;
        report.nodes_read = marked.nodes_read;
        if let Some(first) = marked.lost.first() {
            let count = marked.lost.len();
            return Err(GcError::Unreadable {
                what: format!("object {first} and others that images need ({count} or more; `turbo-registry scrub` names the images)"),
            });
        }
        let new = || Runs::<{ Digest::LEN }>::new(&self.folder);
        let (mut fresh, mut back, mut due) = (new(), new(), new());
        let mut list = |digest: &Digest, reason, since, bytes| {
            if options.list_objects && report.reasons.len() < MAX_LISTED {
                report.reasons.push(ObjectReason { digest: digest.to_string(), reason, since, bytes });
            }
        };
        let mut next_reached = marked.reached.next().map_err(GcError::Scratch)?;
        let mut after: Option<Digest> = None;
        loop {
            let (page, candidates) = {
                let mut db = db.read().await?;
                let page = object_page(&mut db, namespace, after.as_ref(), PAGE).await?;
                let last = page.last().map(|row| row.digest).filter(|_| page.len() as u32 == PAGE);
                let mut candidates = Vec::new();
                loop {
                    let from = candidates.last().map(|(digest, _)| *digest).or(after);
                    let some = candidate_range(&mut db, namespace, from.as_ref(), last.as_ref(), PAGE).await?;
                    let is_last = (some.len() as u32) < PAGE;
                    candidates.extend(some);
                    if is_last {
                        break;
                    }
                }
                (page, candidates)
            };
            let mut waiting = candidates.into_iter().peekable();
            for row in &page {
                while let Some((gone, _)) = waiting.next_if(|(digest, _)| *digest < row.digest) {
                    back.push(*gone.as_bytes()).map_err(GcError::Scratch)?;
                }
                let candidate = waiting.next_if(|(digest, _)| *digest == row.digest).map(|(_, since)| since);
                while next_reached.is_some_and(|reached| reached < *row.digest.as_bytes()) {
                    next_reached = marked.reached.next().map_err(GcError::Scratch)?;
                }
                let is_reached = next_reached == Some(*row.digest.as_bytes());
                report.objects += 1;
                let usage = packs.get_mut(&row.pack);
                // Of a pack that came after the snapshot nothing is known, and of a young one it need not be.
                let is_recent = usage.as_ref().is_none_or(|usage| usage.row.stored_at > now - ms(LEASE));
                let mut stays = true;
                match candidate {
                    _ if is_reached => {
                        report.reached += 1;
                        if candidate.is_some() {
                            report.candidates_back += 1;
                            back.push(*row.digest.as_bytes()).map_err(GcError::Scratch)?;
                        }
                    }
                    None if is_recent => report.recent += 1,
                    None => {
                        report.candidates_new += 1;
                        list(&row.digest, "new", None, row.len);
                        fresh.push(*row.digest.as_bytes()).map_err(GcError::Scratch)?;
                    }
                    Some(since) if since <= due_since => {
                        stays = false;
                        list(&row.digest, "due", Some(since), row.len);
                        if options.dry_run {
                            report.objects_removed += 1;
                            report.object_bytes_removed += u64::from(row.len);
                        }
                        due.push(*row.digest.as_bytes()).map_err(GcError::Scratch)?;
                    }
                    Some(since) => {
                        report.candidates_waiting += 1;
                        list(&row.digest, if since <= wait_over { "push" } else { "waiting" }, Some(since), row.len);
                    }
                }
                if let Some(usage) = usage {
                    usage.found += 1;
                    usage.live += u64::from(stays);
                }
            }
            for (gone, _) in waiting {
                back.push(*gone.as_bytes()).map_err(GcError::Scratch)?;
            }
            match page.last() {
                Some(last) if page.len() as u32 == PAGE => after = Some(last.digest),
                _ => break,
            }
            pace.rest().await?;
        }
        let sorted = |runs: Runs<{ Digest::LEN }>| runs.sorted().map_err(GcError::Scratch);
        Ok(Swept { fresh: sorted(fresh)?, back: sorted(back)?, due: sorted(due)?, due_since, packs })
    }
}
