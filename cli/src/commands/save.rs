//! `turbo save`.

use anyhow::{Context, Result};
use layer_format::Digest;

use crate::app::App;
use crate::commands::stop::hint;
use crate::control::Op;
use crate::control::client::{Reached, reach};
use crate::exit::Exit;
use crate::states::{self, sharing};

/// Take a container's state now, and save it to the registry: `turbo continue` goes on from it on any machine.
///
/// Of a container that runs, all processes stand still while files are captured. Mounts, --using images and no-sync paths are
/// not part of a state; images are not either, and must be on the registry. Prints the state's id.
#[derive(Debug, clap::Args)]
pub struct Save {
    /// Name, or first digits of the id.
    container: String,
    /// Let everyone who may use the registry go on from it, not only whoever has the same token.
    #[arg(long)]
    public: bool,
}

impl Save {
    /// Saves it. Repeating a save that was cut goes on where it was.
    pub fn run(self, app: &App) -> Result<Exit> {
        let (store, containers) = (app.store()?, app.containers());
        let container = containers.get(&self.container)?;
        let mut reached = reach(&containers, &container)?;
        let id: Digest = match &mut reached {
            Reached::Stopped(locked) => states::current(&store, locked)?,
            Reached::Running(client) => {
                let id: String = client.ask(Op::Capture).with_context(|| format!("the state of {} could not be captured", container.shown()))?;
                id.parse().context("the turbo that runs the container is another version")?
            }
        };
        let visibility = if self.public { sharing::Visibility::Public } else { sharing::Visibility::Private };
        let pushed = sharing::push(app, &store, &id, &container.name, visibility, sharing::Patience::Asked)?;
        if let Reached::Stopped(locked) = &mut reached {
            states::note_saved(locked, &id);
        }
        let value = serde_json::json!({
            "state": id, "container": container.id, "name": container.name, "visibility": visibility.shown(),
            "objects": pushed.moved_objects, "bytes": pushed.moved_bytes, "requests": pushed.requests,
        });
        app.output.result(&value, |out| writeln!(out, "{id}"))?;
        hint(&id.to_string());
        Ok(Exit::Success)
    }
}
