//! `turbo push`.

use anyhow::{Context, Result};
use client_store::transfer::push;
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::exit::Exit;
use crate::images;
use crate::output::bytes;
use crate::progress::options;

/// Send an image to the registry; only what it lacks travels.
#[derive(Debug, clap::Args)]
pub struct Push {
    /// The image here.
    image: ImageReference,
    /// Its name there [default: the same].
    remote: Option<ImageReference>,
}

impl Push {
    /// Pushes. Repeating a push that was cut goes on where it was.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        images::find(&store, &self.image)?;
        let remote = self.remote.unwrap_or_else(|| self.image.clone());
        let registry = app.registry()?;
        let pushed = app.block_on(push(&store, &registry, &self.image, &remote, &options("pushing")))?;
        let pushed = pushed.with_context(|| format!("{} was not pushed to {}", self.image, app.settings.hub))?;
        let value = serde_json::json!({"image": remote, "digest": pushed.digest, "objects": pushed.moved_objects, "bytes": pushed.moved_bytes, "packs": pushed.packs, "requests": pushed.requests});
        app.output.result(&value, |out| match pushed.moved_objects {
            0 => writeln!(out, "{remote} {}: the registry has all of it", pushed.digest.short()),
            count => writeln!(out, "{remote} {}: {count} objects, {} sent", pushed.digest.short(), bytes(pushed.moved_bytes)),
        })?;
        Ok(Exit::Success)
    }
}
