//! `turbo rm`.

use anyhow::{Context, Result, bail};

use crate::app::App;
use crate::exit::{Exit, UsageError};

/// Delete containers, with what they wrote. Running ones must end first.
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Names, or first digits of ids.
    containers: Vec<String>,
    /// Delete all that do not run.
    #[arg(short, long, conflicts_with = "containers")]
    all: bool,
}

impl Rm {
    /// Deletes them; all names are checked before anything is deleted.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        if self.containers.is_empty() && !self.all {
            bail!(UsageError("name a container, or say --all; `turbo sessions` lists them".into()));
        }
        let mut found = Vec::new();
        for name in &self.containers {
            found.push(containers.find(name)?.with_context(|| format!("there is no container `{name}`; `turbo sessions` lists them"))?);
        }
        if self.all {
            found = containers.list()?;
        }
        let mut removed = Vec::new();
        for container in found {
            match containers.lock(&container)? {
                Some(locked) => {
                    locked.remove()?;
                    removed.push(container);
                }
                None if self.all => {}
                None => bail!("{} is running; end it first", container.shown()),
            }
        }
        app.output.result(&removed, |out| removed.iter().try_for_each(|container| writeln!(out, "{}", container.shown())))?;
        Ok(Exit::Success)
    }
}
