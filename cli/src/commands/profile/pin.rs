//! `turbo profile pin`.

use anyhow::{Context, Result};
use layer_format::Digest;
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::exit::Exit;

/// Which model stays.
#[derive(Debug, clap::Args)]
pub struct Pin {
    /// The image: a release keeps the pin when it names a newer image, a digest is this image alone.
    image: ImageReference,
    /// The model [default: the one that launches get now].
    #[arg(long, value_name = "DIGEST", conflicts_with = "unpin")]
    model: Option<Digest>,
    /// Take the pin away: launches get what is learned.
    #[arg(long)]
    unpin: bool,
}

impl Pin {
    /// Pins or unpins.
    pub fn run(self, app: &App) -> Result<Exit> {
        let Self { image, model, unpin } = self;
        let registry = app.registry()?;
        if unpin {
            app.block_on(registry.unpin_model(&image))?.with_context(|| format!("{image} was not unpinned"))?;
            app.output.result(&serde_json::json!({"image": image.to_string(), "model": null}), |out| writeln!(out, "{image}: launches get what is learned"))?;
            return Ok(Exit::Success);
        }
        let pinned = app.block_on(registry.pin_model(&image, model))?.with_context(|| format!("no model was pinned to {image}"))?;
        app.output.result(&serde_json::json!({"image": image.to_string(), "model": pinned}), |out| {
            writeln!(out, "{image}: launches get {pinned}, whatever is learned")
        })?;
        Ok(Exit::Success)
    }
}
