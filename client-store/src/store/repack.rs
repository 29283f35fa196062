//! Writing packs anew: without what nothing needs, and in the order in which images are read.
//!
//! After many versions the objects of an image lie in many packs, among others that only older versions need, or nobody.
//! A repack chooses packs ([`plan`]), copies what is needed of them into new ones ([`copy`]), newest image first, its
//! inner objects and then its chunks in tree order, and removes them. Frames go as they are, unless they must be cut.
//!
//! It needs no state of its own, and can be stopped anywhere: a new pack is synced, and then takes the rows of its objects
//! over in one transaction; an old one of which nothing is needed any more is garbage like any other, and goes with this
//! gc or the next. Who repeats a repack goes on where it was. Readers do not notice; nothing is removed while an import,
//! pull or push goes on. Streamed packs are left alone: their objects lie by themselves, and go by the cap.

mod copy;
mod plan;

use std::time::Duration;

use serde::Serialize;

use super::Store;
use super::gc::{GcOptions, GcReport};
use super::walk::Walk;
use crate::error::StoreError;

/// How to repack.
#[derive(Clone, Copy, Debug)]
pub struct RepackOptions {
    /// Only say what would be written anew.
    pub dry_run: bool,
    /// A pack of which more than so many percent are dead is written anew; and any with something dead in it if that holds
    /// of the store.
    pub dead_percent: u64,
    /// The packs of an image are written anew if reading it decodes more than so many times the frames that it would need.
    pub fragmentation: f64,
    /// Most bytes read, and written, a second; 0 for no bound.
    pub bytes_per_s: u64,
    /// How long to wait for imports, pulls and pushes to end before old packs are removed.
    pub wait: Duration,
}

impl Default for RepackOptions {
    fn default() -> Self {
        Self { dry_run: false, dead_percent: 25, fragmentation: 1.5, bytes_per_s: 0, wait: Duration::ZERO }
    }
}

/// What a repack did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RepackReport {
    /// Whether another process is repacking, so that nothing was done.
    pub busy: bool,
    /// Packs chosen because too much of them is dead.
    pub dead_packs: u64,
    /// Packs chosen because images are spread over them.
    pub fragmented_packs: u64,
    /// Packs chosen because a verification found them damaged.
    pub damaged_packs: u64,
    /// Packs that would have been chosen, and for which there is no room on the disk now: those of the next repack.
    pub postponed_packs: u64,
    /// Bytes of all of these.
    pub source_bytes: u64,
    /// Packs written.
    pub written_packs: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Objects that lie elsewhere now.
    pub moved_objects: u64,
    /// Frames that were copied as they are.
    pub copied_frames: u64,
    /// Objects that were compressed anew, since their frame was cut or joined.
    pub cut_objects: u64,
    /// Objects that could not be read: they, and their packs, are as they were. `turbo verify` says more.
    pub damaged_objects: u64,
    /// What was removed in the end.
    pub gc: GcReport,
}

impl Store {
    /// Writes packs anew that are mostly dead, or over which an image is spread, and removes what nothing needs. `progress` is
    /// told the bytes done and in total. Memory: about 100 bytes for each object that any image needs, and some MiB.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails (a full one, too): what was written until then is used.
    pub fn repack(&self, options: &RepackOptions, progress: impl FnMut(u64, u64)) -> Result<RepackReport, StoreError> {
        let inner = &*self.inner;
        inner.flush()?;
        let mut report = RepackReport::default();
        let Some(_lock) = inner.layout.repack_lock()? else { return Ok(RepackReport { busy: true, ..report }) };
        let mut walk = Walk::default();
        {
            // Keeps others from removing what is being copied. They may add to it.
            let _hold = self.hold()?;
            self.mark(&mut walk)?;
            let plan = plan::make(self, &walk, options, &mut report)?;
            if !options.dry_run && !plan.sources.is_empty() {
                copy::run(self, &mut walk, &plan, options, &mut report, progress)?;
            }
        }
        report.gc = self.collect(&mut walk, &GcOptions { dry_run: options.dry_run, wait: options.wait })?;
        Ok(report)
    }
}
