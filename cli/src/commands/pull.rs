//! `turbo pull`.

use anyhow::{Context, Result};
use client_store::transfer::pull;

use crate::app::App;
use crate::commands::launch_options::{Images, parse_images};
use crate::exit::Exit;
use crate::output::bytes;
use crate::progress::options;

/// Bring whole images here; only what is not here travels.
#[derive(Debug, clap::Args)]
pub struct Pull {
    /// Images, separated by commas.
    #[arg(value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    images: Images,
}

impl Pull {
    /// Pulls. Repeating a pull that was cut goes on where it was.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        let registry = app.registry()?;
        let mut results = Vec::new();
        for image in &self.images.0 {
            let pulled = app.block_on(pull(&store, &registry, image, &options("pulling")))?;
            results.push((image, pulled.with_context(|| format!("{image} was not pulled from {}", app.settings.hub))?));
        }
        let value: Vec<_> = results
            .iter()
            .map(|(image, pulled)| serde_json::json!({"image": image, "digest": pulled.digest, "objects": pulled.moved_objects, "bytes": pulled.moved_bytes, "requests": pulled.requests}))
            .collect();
        app.output.result(&value, |out| {
            results.iter().try_for_each(|(image, pulled)| match pulled.moved_objects {
                0 => writeln!(out, "{image} {}: all of it is here", pulled.digest.short()),
                count => writeln!(out, "{image} {}: {count} objects, {}", pulled.digest.short(), bytes(pulled.moved_bytes)),
            })
        })?;
        Ok(Exit::Success)
    }
}
