//! `turbo profile export`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::exit::Exit;
use crate::output::bytes;

/// Where to.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// The image.
    image: ImageReference,
    /// The file.
    file: PathBuf,
}

impl Export {
    /// Writes the model that launches of the image get.
    pub fn run(self, app: &App) -> Result<Exit> {
        let Self { image, file } = self;
        let asked = app.block_on(app.registry()?.get_model_of(&image))?.with_context(|| format!("what was learned about {image} cannot be asked"))?;
        let (digest, model) = asked.with_context(|| format!("nothing was learned about {image}; run it first"))?;
        std::fs::write(&file, &model).with_context(|| format!("writing {}", file.display()))?;
        app.output.result(&serde_json::json!({"file": file, "bytes": model.len(), "model": digest}), |out| {
            writeln!(out, "{}: {}, {digest}", file.display(), bytes(model.len() as u64))
        })?;
        Ok(Exit::Success)
    }
}
