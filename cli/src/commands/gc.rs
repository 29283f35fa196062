//! `turbo gc`.

use anyhow::Result;

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

impl Gc {
    /// Removes it.
    pub fn run(self, app: &App) -> Result<Exit> {
        let report = app.store()?.gc(self.dry_run)?;
        app.output.result(&report, |out| {
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
