//! Removing packs that nothing needs.
//!
//! What is needed is found by walking the trees of all images that have a name or are running, and the sandboxes of all
//! states; what their delta frames are compressed against is needed as well. A pack made here or pulled that holds nothing of that is removed; one that holds some is kept whole, and its
//! other bytes are counted as dead: `repack` gives them back. Streamed packs are a cache, not garbage: the cap bounds them.
//!
//! The walk, which is most of the work, is done before the content is locked; under the lock only what was added since is
//! walked. Containers that run hold no lock. An import, pull or push holds one, since what it relies on has no name yet: a
//! gc waits for it, as long as it is told to, and then says who it was.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use layer_format::Digest;
use serde::Serialize;

use super::index::{PackOrigin, PackRow};
use super::layout::remove_if_free;
use super::walk::Walk;
use super::{Store, WalkError};
use crate::error::StoreError;

/// How to collect.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcOptions {
    /// Only say what would go. Waits for nobody.
    pub dry_run: bool,
    /// How long to wait for imports, pulls and pushes to end.
    pub wait: Duration,
}

/// What a gc did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Whether something else was at work on the store (an import, pull or push) for as long as was waited, so that nothing
    /// was done. Then the numbers of removed packs and forgotten images are those of what could go.
    pub busy: bool,
    /// The processes that were at work, if it was busy and the system tells.
    pub holders: Vec<u32>,
    /// Packs removed.
    pub removed_packs: u64,
    /// Bytes freed.
    pub removed_bytes: u64,
    /// Packs that nothing needs and to which a living process writes.
    pub in_use_packs: u64,
    /// Their bytes.
    pub in_use_bytes: u64,
    /// Packs kept.
    pub kept_packs: u64,
    /// Uncompressed bytes in kept packs that no image needs.
    pub dead_bytes: u64,
    /// Images without a name that were forgotten.
    pub forgotten_images: u64,
}

/// A pack, and the uncompressed bytes of it that are needed.
pub(super) struct Counted {
    pub(super) id: u32,
    pub(super) row: PackRow,
    pub(super) alive: u64,
}

impl Counted {
    /// Uncompressed bytes that nothing needs. What was streamed is not garbage.
    pub(super) fn dead(&self) -> u64 {
        if self.row.origin == PackOrigin::Streamed { 0 } else { self.row.plain.saturating_sub(self.alive) }
    }
}

impl Store {
    /// Removes packs that no image needs, unless an import, pull or push goes on just now; with `dry_run` only says what
    /// would go.
    ///
    /// # Errors
    /// As [`Store::gc_with`].
    pub fn gc(&self, dry_run: bool) -> Result<GcReport, StoreError> {
        self.gc_with(&GcOptions { dry_run, wait: Duration::ZERO })
    }

    /// Removes packs that no image needs. Does nothing but count while an import, pull or push goes on anywhere, since what
    /// it relies on has no name yet.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails; what was removed until then is removed properly.
    pub fn gc_with(&self, options: &GcOptions) -> Result<GcReport, StoreError> {
        let mut walk = Walk::default();
        self.mark(&mut walk)?;
        self.collect(&mut walk, options)
    }

    /// Removes what `walk` has not seen and does not see when it looks again.
    pub(super) fn collect(&self, walk: &mut Walk, options: &GcOptions) -> Result<GcReport, StoreError> {
        let inner = &*self.inner;
        inner.flush()?;
        let content = if options.dry_run { None } else { inner.layout.content_lock_within(options.wait)? };
        let busy = content.is_none() && !options.dry_run;
        let holders = if busy { inner.layout.content_holders() } else { Vec::new() };
        let mut report = GcReport { busy, holders, ..GcReport::default() };
        let unnamed = self.mark(walk)?;
        for counted in self.count_alive(walk)? {
            let (id, row, dead) = (counted.id, &counted.row, counted.dead());
            let garbage = counted.alive == 0 && (row.origin != PackOrigin::Streamed || row.damaged || !inner.layout.pack(&row.file).exists());
            if garbage && (content.is_none() || inner.remove_pack(id, row)?) {
                report.removed_packs += 1;
                report.removed_bytes += row.len;
                continue;
            }
            if garbage {
                report.in_use_packs += 1;
                report.in_use_bytes += row.len;
            }
            report.kept_packs += 1;
            report.dead_bytes += dead;
            if dead != row.dead && content.is_some() {
                inner.index.write(|txn| {
                    let Some(mut row) = inner.index.pack_in(txn, id)? else { return Ok(()) };
                    row.dead = dead;
                    inner.index.put_pack(txn, id, &row)
                })?;
            }
        }
        report.forgotten_images = unnamed.len() as u64;
        if content.is_some() {
            for digest in unnamed {
                self.image_forget(&digest)?;
            }
            self.remove_unnamed_files()?;
        }
        Ok(report)
    }

    /// Lets `walk` see all objects that images and states need. Returns the images that have no name and do not run. May be
    /// called again with the same walk, and then costs only what is new.
    pub(super) fn mark(&self, walk: &mut Walk) -> Result<Vec<Digest>, StoreError> {
        let running = self.running_images()?;
        let named = self.named_images()?;
        let mut unnamed = Vec::new();
        told(walk.again(self, &mut |_| Ok::<_, WalkError>(())), "an image or state")?;
        for (digest, _) in self.image_rows()? {
            if !named.contains(&digest) && !running.contains(&digest) {
                unnamed.push(digest);
                continue;
            }
            let Some(manifest) = self.manifest_of(&digest)? else { continue };
            told(walk.image(self, &manifest, &mut |_| Ok::<_, WalkError>(())), digest)?;
        }
        self.walk_states(walk, |_, _| Ok(()))?;
        walk.add_bases(self)?;
        Ok(unnamed)
    }

    /// All packs, with what `walk` has seen of each.
    pub(super) fn count_alive(&self, walk: &Walk) -> Result<Vec<Counted>, StoreError> {
        let index = &self.inner.index;
        let mut alive: HashMap<u32, u64> = HashMap::new();
        index.for_each_object(|digest, location| {
            if walk.contains(&digest) {
                // An empty object keeps its pack as well.
                *alive.entry(location.pack).or_default() += u64::from(location.len).max(1);
            }
        })?;
        Ok(index.all_packs()?.into_iter().map(|(id, row)| Counted { id, row, alive: alive.get(&id).copied().unwrap_or(0) }).collect())
    }

    /// Files that a crash left between their rename and their row in the index.
    fn remove_unnamed_files(&self) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let Ok(entries) = std::fs::read_dir(inner.layout.packs()) else { return Ok(()) };
        // Listed before the rows are read: a file that is renamed into the folder from now on is not looked at.
        let paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        let named: HashSet<_> = inner.index.all_packs()?.into_iter().map(|(_, row)| inner.layout.pack(&row.file)).collect();
        for path in paths {
            if !named.contains(&path) {
                remove_if_free(&path);
            }
        }
        Ok(())
    }
}

/// What is not valid leads nowhere: a warning. A store that fails is an error.
fn told(walked: Result<(), WalkError>, whose: impl std::fmt::Display) -> Result<(), StoreError> {
    match walked {
        Err(WalkError::Store(error)) => Err(error),
        Err(error @ WalkError::Format { .. }) => {
            tracing::warn!(%error, "{whose} is not valid: what it needs is not known");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
