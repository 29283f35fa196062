//! `turbo profile reset`.

use anyhow::{Context, Result};
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::exit::Exit;

/// Of which image.
#[derive(Debug, clap::Args)]
pub struct Reset {
    /// The image: what was learned about all images of its repository is forgotten. Pins stay.
    image: ImageReference,
}

impl Reset {
    /// Forgets.
    pub fn run(self, app: &App) -> Result<Exit> {
        let repository = &self.image.repository;
        app.block_on(app.registry()?.delete_model(repository))?.with_context(|| format!("the model of {repository} was not reset"))?;
        app.output.result(&serde_json::json!({"repository": repository}), |out| writeln!(out, "{repository}: forgotten"))?;
        Ok(Exit::Success)
    }
}
