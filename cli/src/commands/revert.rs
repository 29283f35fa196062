//! `turbo revert`.

use anyhow::{Context, Result, bail};

use crate::app::App;
use crate::commands::selection::Selection;
use crate::exit::Exit;

/// Drop all that a container's programs changed in files.
///
/// Settings, mounts and states stay: an earlier state can still be continued.
#[derive(Debug, clap::Args)]
pub struct Revert {
    #[command(flatten)]
    selection: Selection,
}

impl Revert {
    /// Reverts them; running ones are refused before anything is changed.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let found = self.selection.find(&containers, |container| !containers.is_running(container))?;
        let mut locked = Vec::new();
        for container in &found {
            let Some(one) = containers.lock(container)? else {
                bail!("{} is running; `turbo stop {}` first", container.shown(), container.name);
            };
            locked.push(one);
        }
        for one in &mut locked {
            one.revert().with_context(|| format!("reverting {}", one.container.shown()))?;
        }
        app.output.result(&found, |out| found.iter().try_for_each(|container| writeln!(out, "{}", container.shown())))?;
        Ok(Exit::Success)
    }
}
