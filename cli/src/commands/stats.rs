//! `turbo stats`.

use anyhow::Result;
use client_store::store::StoreStats;
use serde::Serialize;

use crate::app::App;
use crate::control::Completing;
use crate::control::client::Client;
use crate::exit::Exit;
use crate::output::bytes;

/// Show what the store holds.
#[derive(Debug, clap::Args)]
pub struct Stats {}

/// What is shown.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    store: StoreStats,
    /// Images of containers that run, of which the rest is being brought here.
    completions: Vec<Completing>,
}

impl Stats {
    /// Prints the numbers.
    pub fn run(self, app: &App) -> Result<Exit> {
        let shown = Shown { store: app.store()?.stats()?, completions: completions(app)? };
        app.output.result(&shown, |out| {
            let stats = &shown.store;
            writeln!(out, "images    {}", stats.images)?;
            writeln!(out, "objects   {} in {} packs", stats.objects, stats.packs)?;
            writeln!(out, "stored    {} ({} uncompressed)", bytes(stats.stored_bytes), bytes(stats.plain_bytes))?;
            writeln!(out, "  made here {}, pulled {}, streamed {}", bytes(stats.imported_bytes), bytes(stats.pulled_bytes), bytes(stats.streamed_bytes))?;
            writeln!(out, "index     {}", bytes(stats.index_bytes))?;
            writeln!(out, "unneeded  {} (uncompressed, at the last `turbo gc`)", bytes(stats.dead_bytes))?;
            let limit = app.settings.cache_size;
            writeln!(out, "limit     {}", if limit == 0 { "none".into() } else { bytes(limit) })?;
            shown.completions.iter().filter_map(|one| Some((one, one.words()?))).try_for_each(|(one, words)| writeln!(out, "streaming {}: {words}", one.image))
        })?;
        Ok(Exit::Success)
    }
}

/// What the containers that run say of their images.
fn completions(app: &App) -> Result<Vec<Completing>> {
    let containers = app.containers();
    let mut found = Vec::new();
    for container in containers.list()?.into_iter().filter(|container| containers.is_running(container)) {
        // One that only starts, or has just ended, does not answer.
        let Some(mut client) = Client::connect(&containers.folder(&container))? else { continue };
        found.extend(client.status().map(|status| status.completions).unwrap_or_default());
    }
    Ok(found)
}
