//! `turbo gc`.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use client_store::StoreError;
use client_store::store::{EvictReport, GcOptions, GcReport, RepackOptions, RepackReport};

use crate::app::App;
use crate::exit::Exit;
use crate::output::{bytes, note};
use crate::progress::Bar;

/// Remove data that no image needs. What was streamed is a cache, which `--cache-size` bounds.
///
/// Containers may run meanwhile. Imports, pulls and pushes rely on data that no image names yet: gc waits for them, and says
/// which process it was if they take too long.
#[derive(Debug, clap::Args)]
pub struct Gc {
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for imports, pulls and pushes to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait_for_others: u64,
    /// Write packs anew that are mostly unneeded, or over which an image is spread; what is needed of them then lies in the
    /// order in which it is read.
    #[arg(long)]
    repack: bool,
    /// With --repack: write a pack anew if more than so much of it is not needed.
    #[arg(long, value_name = "PERCENT", default_value_t = 25, requires = "repack", value_parser = clap::value_parser!(u64).range(..=100))]
    dead: u64,
    /// With --repack: most bytes read, and written, a second; 0 for no bound.
    #[arg(long, value_name = "BYTES", default_value_t = 0, requires = "repack")]
    bandwidth: u64,
}

/// What is printed.
#[derive(Debug, serde::Serialize)]
struct Report {
    forgotten_states: u64,
    #[serde(flatten)]
    store: GcReport,
    repack: Option<RepackReport>,
    /// If there is a limit.
    evicted: Option<EvictReport>,
}

impl Gc {
    /// Removes it.
    pub fn run(self, app: &App) -> Result<Exit> {
        let (store, containers) = (app.store()?, app.containers());
        let options = GcOptions { dry_run: self.dry_run, wait: Duration::from_secs(self.wait_for_others) };
        // States that no container lists go first, and then what they alone needed.
        let listed = || -> Result<_, StoreError> {
            let failed = |error: anyhow::Error| StoreError::Index { message: format!("the containers could not be listed: {error:#}") };
            Ok(containers.list().map_err(failed)?.into_iter().flat_map(|container| container.states).map(|state| state.id).collect())
        };
        let forgotten = store.gc_states(&options, listed)?;
        // Who did not end in that time is not waited for again.
        let options = GcOptions { wait: if forgotten.is_some() { options.wait } else { Duration::ZERO }, ..options };
        if !self.dry_run {
            containers.sweep()?;
        }
        let repack = match self.repack {
            false => None,
            true => {
                let bar = Bar::transfer("repacking");
                let repack = RepackOptions {
                    dry_run: self.dry_run,
                    dead_percent: self.dead,
                    bytes_per_s: self.bandwidth,
                    wait: options.wait,
                    ..RepackOptions::default()
                };
                Some(store.repack(&repack, |done, total| {
                    bar.set_total(total);
                    bar.set_done(done);
                })?)
            }
        };
        let removed = match &repack {
            Some(report) if !report.busy => report.gc.clone(),
            _ => store.gc_with(&options)?,
        };
        let limit = app.settings.cache_size;
        let evicted = (limit != 0 && !self.dry_run && !removed.busy).then(|| store.evict(limit)).transpose()?;
        let report = Report { forgotten_states: forgotten.unwrap_or(0), store: removed, repack, evicted };
        app.output.result(&report, |out| self.show(&report, out))?;
        if let Some(problem) = report.evicted.as_ref().and_then(EvictReport::problem) {
            note(problem);
        }
        Ok(if report.store.busy { Exit::Failure } else { Exit::Success })
    }

    fn show(&self, report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
        let Report { forgotten_states, store, repack, evicted } = report;
        if *forgotten_states > 0 {
            writeln!(out, "{} {forgotten_states} states that no container lists", if self.dry_run { "would forget" } else { "forgot" })?;
        }
        if let Some(repack) = repack {
            show_repack(repack, self.dry_run, out)?;
        }
        if store.busy {
            let who: Vec<String> = store.holders.iter().map(u32::to_string).collect();
            let who = if who.is_empty() { String::new() } else { format!(" (process {})", who.join(", ")) };
            return writeln!(
                out,
                "an import, pull or push is going on{who}; nothing was removed. {} packs, {}, could go: run it again when that has ended, or with a longer --wait-for-others",
                store.removed_packs,
                bytes(store.removed_bytes)
            );
        }
        writeln!(
            out,
            "{} {} packs, {}; kept {} packs with {} that no image needs",
            if self.dry_run { "would remove" } else { "removed" },
            store.removed_packs,
            bytes(store.removed_bytes),
            store.kept_packs,
            bytes(store.dead_bytes)
        )?;
        if store.in_use_packs > 0 {
            writeln!(out, "{} packs, {}, are being written to by a running container and stay", store.in_use_packs, bytes(store.in_use_bytes))?;
        }
        if store.dead_bytes > 0 && repack.is_none() {
            writeln!(out, "`turbo gc --repack` gives back what no image needs of the packs that were kept")?;
        }
        if let Some(evicted) = evicted.as_ref().filter(|evicted| evicted.freed_bytes > 0) {
            writeln!(out, "evicted {} to keep to the limit", bytes(evicted.freed_bytes))?;
        }
        Ok(())
    }
}

fn show_repack(repack: &RepackReport, dry_run: bool, out: &mut dyn Write) -> std::io::Result<()> {
    if repack.busy {
        return writeln!(out, "another process is repacking; that was left to it");
    }
    let chosen = repack.dead_packs + repack.fragmented_packs + repack.damaged_packs;
    let why = format!("{} with much that no image needs, {} over which images are spread", repack.dead_packs, repack.fragmented_packs);
    let damaged = if repack.damaged_packs > 0 { format!(", {} damaged", repack.damaged_packs) } else { String::new() };
    match dry_run {
        true => writeln!(out, "would write {chosen} packs anew, {}: {why}{damaged}", bytes(repack.source_bytes))?,
        false => writeln!(
            out,
            "wrote {chosen} packs anew, {}: {why}{damaged}; they became {} packs, {}",
            bytes(repack.source_bytes),
            repack.written_packs,
            bytes(repack.written_bytes)
        )?,
    }
    if repack.postponed_packs > 0 {
        writeln!(out, "{} packs more have to wait, since there is not room for both copies: run it again", repack.postponed_packs)?;
    }
    if repack.damaged_objects > 0 {
        writeln!(out, "{} objects could not be read and stay where they are; `turbo verify --repair` fetches them again", repack.damaged_objects)?;
    }
    Ok(())
}
