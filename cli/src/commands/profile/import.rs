//! `turbo profile import`.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use layer_format::Digest;
use layer_format::model::{MAX_MODEL_LEN, Model};
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::exit::Exit;
use crate::output::note;

/// From where.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The image.
    image: ImageReference,
    /// A file that `turbo profile export` wrote, here or elsewhere.
    file: PathBuf,
    /// Pin it: launches get it as it is, whatever is learned later.
    #[arg(long)]
    pin: bool,
}

impl Import {
    /// Gives the model to the registry.
    pub fn run(self, app: &App) -> Result<Exit> {
        let Self { image, file, pin } = self;
        let mut model = Vec::new();
        let opened = std::fs::File::open(&file).with_context(|| format!("opening {}", file.display()))?;
        opened.take(MAX_MODEL_LEN as u64 + 1).read_to_end(&mut model).with_context(|| format!("reading {}", file.display()))?;
        if let Err(error) = Model::decode(&model) {
            bail!("{} is not a model that `turbo profile export` wrote: {error}", file.display());
        }
        let sent = Digest::of(&model);
        let registry = app.registry()?;
        let put = app.block_on(registry.put_model(&image, model.into()))?.with_context(|| format!("{} was not taken for {image}", file.display()))?;
        if pin {
            app.block_on(registry.pin_model(&image, Some(put.digest)))?.with_context(|| format!("{} was not pinned to {image}", put.digest))?;
        }
        if put.digest != sent {
            note(format!("what the model names that is not in {image} was left out"));
        }
        app.output.result(&serde_json::json!({"image": put.image, "model": put.digest, "pinned": pin}), |out| {
            writeln!(out, "{image}: launches get {}{}", put.digest, if pin { ", pinned" } else { "" })
        })?;
        Ok(Exit::Success)
    }
}
