//! `turbo stats`.

use anyhow::Result;

use crate::app::App;
use crate::exit::Exit;
use crate::output::bytes;

/// Show what the store holds.
#[derive(Debug, clap::Args)]
pub struct Stats {}

impl Stats {
    /// Prints the numbers.
    pub fn run(self, app: &App) -> Result<Exit> {
        let stats = app.store()?.stats()?;
        app.output.result(&stats, |out| {
            writeln!(out, "images    {}", stats.images)?;
            writeln!(out, "objects   {} in {} packs", stats.objects, stats.packs)?;
            writeln!(out, "stored    {} ({} uncompressed)", bytes(stats.stored_bytes), bytes(stats.plain_bytes))?;
            writeln!(out, "  made here {}, pulled {}, streamed {}", bytes(stats.imported_bytes), bytes(stats.pulled_bytes), bytes(stats.streamed_bytes))?;
            writeln!(out, "index     {}", bytes(stats.index_bytes))?;
            writeln!(out, "unneeded  {} (uncompressed, at the last `turbo gc`)", bytes(stats.dead_bytes))?;
            let limit = app.settings.cache_size;
            writeln!(out, "limit     {}", if limit == 0 { "none".into() } else { bytes(limit) })
        })?;
        Ok(Exit::Success)
    }
}
