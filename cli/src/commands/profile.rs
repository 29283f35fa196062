//! `turbo profile`.

mod export;
mod import;
mod pin;
mod reset;

use anyhow::{Context, Result};
use layer_format::model::Model;
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::exit::Exit;
use crate::output::bytes;

/// What was learned about an image's launches.
#[derive(Debug, clap::Subcommand)]
pub enum Profile {
    /// Say in words and numbers what the registry learned.
    Show(Named),
    /// Write the registry's model to a file.
    Export(export::Export),
    /// Give the registry a model from a file.
    Import(import::Import),
    /// Keep a model, whatever is learned; or --unpin.
    Pin(pin::Pin),
    /// Make the registry forget what it learned.
    Reset(reset::Reset),
}

/// Of which image.
#[derive(Debug, clap::Args)]
pub struct Named {
    /// The image.
    image: ImageReference,
}

impl Profile {
    /// Does it.
    pub fn run(self, app: &App) -> Result<Exit> {
        let registry = app.registry()?;
        let get = |image: &ImageReference| -> Result<(Vec<u8>, Model)> {
            let asked = app
                .block_on(registry.get_model(&image.repository, None))?
                .with_context(|| format!("what was learned about {} cannot be asked", image.repository))?;
            let (_, found) = asked.with_context(|| format!("nothing was learned about {}; run it first", image.repository))?;
            let model = Model::decode(&found).with_context(|| format!("the model of {} is not valid", image.repository))?;
            Ok((found.to_vec(), model))
        };
        match self {
            Self::Show(named) => {
                let (encoded, model) = get(&named.image)?;
                let entry_points: Vec<_> = model
                    .entry_points
                    .iter()
                    .map(|entry| serde_json::json!({"name": entry.name, "architecture": entry.architecture, "launches": entry.weight, "touches": entry.launch.len(), "sure": entry.launch.iter().filter(|item| item.count >= 0.9 * entry.weight).count()}))
                    .collect();
                let value = serde_json::json!({"repository": named.image.repository, "image": model.image, "traces": model.traces, "bytes": encoded.len(), "paths": model.paths.len(), "states": model.states.len(),
                    "transitions": model.order1.len() + model.order2.len(), "entry_points": entry_points});
                app.output.result(&value, |out| {
                    writeln!(out, "{}: learned from {} runs, {} of model", named.image.repository, model.traces, bytes(encoded.len() as u64))?;
                    writeln!(out, "{} touches of {} paths; {} transitions", model.states.len(), model.paths.len(), model.order1.len() + model.order2.len())?;
                    for entry in &model.entry_points {
                        let sure = entry.launch.iter().filter(|item| item.count >= 0.9 * entry.weight).count();
                        let name = if entry.name.is_empty() { "the startup file" } else { &entry.name };
                        writeln!(out, "{name} on {}: a launch touches {} things, {sure} of them nearly always", entry.architecture, entry.launch.len())?;
                    }
                    Ok(())
                })?;
            }
            Self::Export(export) => return export.run(app),
            Self::Import(import) => return import.run(app),
            Self::Pin(pin) => return pin.run(app),
            Self::Reset(reset) => return reset.run(app),
        }
        Ok(Exit::Success)
    }
}
