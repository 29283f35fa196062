//! `turbo stats`.

use anyhow::Result;
use client_store::store::{ImageUsage, StoreStats};
use serde::Serialize;

use crate::app::App;
use crate::control::Completing;
use crate::control::client::Client;
use crate::exit::Exit;
use crate::output::{bytes, table};

/// Show what the store holds.
#[derive(Debug, clap::Args)]
pub struct Stats {
    /// Show what each image takes, shares with others, and would free if it were removed, and how well it lies together.
    /// Walks all images.
    #[arg(long)]
    images: bool,
}

/// An image, and what it takes.
#[derive(Debug, Serialize)]
struct Usage {
    names: Vec<String>,
    #[serde(flatten)]
    usage: ImageUsage,
}

/// What is shown.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    store: StoreStats,
    /// Images of containers that run, of which the rest is being brought here.
    completions: Vec<Completing>,
    /// With `--images`: each image.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Vec<Usage>>,
}

impl Stats {
    /// Prints the numbers.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        let usage = self.images.then(|| usage(&store)).transpose()?;
        let shown = Shown { store: store.stats()?, completions: completions(app)?, usage };
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
            shown
                .completions
                .iter()
                .filter_map(|one| Some((one, one.words()?)))
                .try_for_each(|(one, words)| writeln!(out, "streaming {}: {words}", one.image))?;
            shown.usage.as_ref().map_or(Ok(()), |usage| show_usage(usage, out))
        })?;
        Ok(Exit::Success)
    }
}

fn usage(store: &client_store::Store) -> Result<Vec<Usage>> {
    let infos = store.images()?;
    let names = |digest| infos.iter().filter(|info| info.digest == digest).flat_map(|info| info.names.clone()).collect();
    let mut all: Vec<Usage> = store.image_usage()?.into_iter().map(|usage| Usage { names: names(usage.digest), usage }).collect();
    all.sort_by(|a, b| a.names.cmp(&b.names));
    Ok(all)
}

fn show_usage(all: &[Usage], out: &mut dyn std::io::Write) -> std::io::Result<()> {
    let cells: Vec<Vec<String>> = all
        .iter()
        .map(|Usage { names, usage }| {
            let name = names.first().cloned().unwrap_or_else(|| usage.digest.short());
            let shared = usage.plain_bytes.saturating_sub(usage.unique_plain_bytes);
            let frees = bytes(usage.removal_frees_bytes);
            vec![name, bytes(usage.plain_bytes), bytes(usage.unique_plain_bytes), bytes(shared), frees, format!("{:.2}", usage.fragmentation)]
        })
        .collect();
    writeln!(out)?;
    table(out, &["IMAGE", "UNPACKED", "ALONE", "SHARED", "REMOVAL FREES", "FRAGMENTED"], &cells)
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
