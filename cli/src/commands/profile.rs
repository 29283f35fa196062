//! `turbo profile`.

mod export;
mod import;
mod learned;
mod pin;
mod reset;
mod show;

use anyhow::Result;

use crate::app::App;
use crate::exit::Exit;

/// What was learned about an image's launches.
#[derive(Debug, clap::Subcommand)]
pub enum Profile {
    /// Say in words and numbers what the registry learned.
    Show(show::Show),
    /// Write the registry's model to a file.
    Export(export::Export),
    /// Give the registry a model from a file.
    Import(import::Import),
    /// Keep a model, whatever is learned; or --unpin.
    Pin(pin::Pin),
    /// Make the registry forget what it learned.
    Reset(reset::Reset),
}

impl Profile {
    /// Does it.
    pub fn run(self, app: &App) -> Result<Exit> {
        match self {
            Self::Show(show) => show.run(app),
            Self::Export(export) => export.run(app),
            Self::Import(import) => import.run(app),
            Self::Pin(pin) => pin.run(app),
            Self::Reset(reset) => reset.run(app),
        }
    }
}
