//! Removing packs that nothing needs.
//!
//! What is needed is found by walking the trees of all images that have a name or are running, and the sandboxes of all
//! states. A pack made here or
//! pulled that holds nothing of that is removed; one that holds some is kept whole, and its other bytes are counted as
//! dead. Streamed packs are a cache, not garbage: the cap bounds them.

use std::collections::HashMap;

use serde::Serialize;

use super::index::PackOrigin;
use super::layout::remove_if_free;
use super::walk::Walk;
use super::{Store, WalkError};
use crate::error::StoreError;

/// What a gc did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Whether something else was at work on the store (an import, pull or push), so that nothing was done.
    pub busy: bool,
    /// Packs removed.
    pub removed_packs: u64,
    /// Bytes freed.
    pub removed_bytes: u64,
    /// Packs kept.
    pub kept_packs: u64,
    /// Uncompressed bytes in kept packs that no image needs.
    pub dead_bytes: u64,
    /// Images without a name that were forgotten.
    pub forgotten_images: u64,
}

impl Store {
    /// Removes packs that no image needs; with `dry_run` only says what would go. Does nothing while an import, pull or
    /// push goes on anywhere, since what it relies on has no name yet.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails; what was removed until then is removed properly.
    pub fn gc(&self, dry_run: bool) -> Result<GcReport, StoreError> {
        let inner = &*self.inner;
        inner.flush()?;
        let mut report = GcReport::default();
        let Some(_content) = inner.layout.content_lock(true, false)? else { return Ok(GcReport { busy: true, ..report }) };
        let (live, unnamed) = self.live_objects()?;
        // Live uncompressed bytes and objects of each pack.
        let mut live_bytes: HashMap<u32, u64> = HashMap::new();
        inner.index.for_each_object(|digest, location| {
            if live.contains(&digest) {
                *live_bytes.entry(location.pack).or_default() += u64::from(location.len).max(1);
            }
        })?;
        for (id, row) in inner.index.all_packs()? {
            let alive = live_bytes.get(&id).copied().unwrap_or(0);
            let garbage = alive == 0 && (row.origin != PackOrigin::Streamed || !inner.layout.pack(&row.file).exists());
            if garbage && (dry_run || inner.remove_pack(id, &row)?) {
                report.removed_packs += 1;
                report.removed_bytes += row.len;
                continue;
            }
            let dead = if row.origin == PackOrigin::Streamed { 0 } else { row.plain.saturating_sub(alive) };
            report.kept_packs += 1;
            report.dead_bytes += dead;
            if dead != row.dead && !dry_run {
                inner.index.write(|txn| {
                    let Some(mut row) = inner.index.pack_in(txn, id)? else { return Ok(()) };
                    row.dead = dead;
                    inner.index.put_pack(txn, id, &row)
                })?;
            }
        }
        report.forgotten_images = unnamed.len() as u64;
        if !dry_run {
            for digest in unnamed {
                self.image_forget(&digest)?;
            }
            self.remove_unnamed_files()?;
        }
        Ok(report)
    }

    /// Objects that images and states need, and images that have no name and do not run.
    fn live_objects(&self) -> Result<(Walk, Vec<layer_format::Digest>), StoreError> {
        let running = self.running_images()?;
        let named = self.named_images()?;
        let (mut walk, mut unnamed) = (Walk::default(), Vec::new());
        for (digest, _) in self.image_rows()? {
            if !named.contains(&digest) && !running.contains(&digest) {
                unnamed.push(digest);
                continue;
            }
            let Some(manifest) = self.manifest_of(&digest)? else { continue };
            match walk.image(self, &manifest, &mut |_| Ok::<_, WalkError>(())) {
                Err(WalkError::Store(error)) => return Err(error),
                Err(error @ WalkError::Format { .. }) => tracing::warn!(%error, image = %digest, "an image is not valid: what it needs is not known"),
                Ok(()) => {}
            }
        }
        self.walk_states(&mut walk, |_, _| Ok(()))?;
        Ok((walk, unnamed))
    }

    /// Files that a crash left between their rename and their row in the index.
    fn remove_unnamed_files(&self) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let Ok(entries) = std::fs::read_dir(inner.layout.packs()) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if inner.index.read(|txn| inner.pack_of_file(txn, &name))?.is_none() {
                remove_if_free(&entry.path());
            }
        }
        Ok(())
    }
}
