//! `turbo gc`.

use anyhow::Result;
use client_store::StoreError;
use client_store::store::GcReport;

use crate::app::App;
use crate::exit::Exit;
use crate::output::bytes;

/// Remove data that no image needs. What was streamed is a cache, which `--cache-size` bounds.
#[derive(Debug, clap::Args)]
pub struct Gc {
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
}

/// What is printed.
#[derive(Debug, serde::Serialize)]
struct Report {
    forgotten_states: u64,
    #[serde(flatten)]
    store: GcReport,
}

impl Gc {
    /// Removes it.
    pub fn run(self, app: &App) -> Result<Exit> {
        let (store, containers) = (app.store()?, app.containers());
        // States that no container lists go first, and then what they alone needed.
        let listed = || -> Result<_, StoreError> {
            let failed = |error: anyhow::Error| StoreError::Index { message: format!("the containers could not be listed: {error:#}") };
            Ok(containers.list().map_err(failed)?.into_iter().flat_map(|container| container.states).map(|state| state.id).collect())
        };
        let forgotten = store.gc_states(self.dry_run, listed)?.unwrap_or(0);
        if !self.dry_run {
            containers.sweep()?;
        }
        let report = Report { forgotten_states: forgotten, store: store.gc(self.dry_run)? };
        app.output.result(&report, |out| {
            let Report { forgotten_states, store: report } = &report;
            if *forgotten_states > 0 {
                writeln!(out, "{} {forgotten_states} states that no container lists", if self.dry_run { "would forget" } else { "forgot" })?;
            }
            if report.busy {
                return writeln!(out, "an import, pull or push is going on; nothing was done");
            }
            let verb = if self.dry_run { "would remove" } else { "removed" };
            writeln!(
                out,
                "{verb} {} packs, {}; kept {} packs with {} that no image needs",
                report.removed_packs,
                bytes(report.removed_bytes),
                report.kept_packs,
                bytes(report.dead_bytes)
            )
        })?;
        Ok(Exit::Success)
    }
}
