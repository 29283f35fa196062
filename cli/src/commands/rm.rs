//! `turbo rm`.

use anyhow::{Result, bail};

use crate::app::App;
use crate::commands::selection::Selection;
use crate::commands::stop::end_all;
use crate::control::Op;
use crate::exit::Exit;

/// Delete containers, with what they wrote. Running ones must end first.
#[derive(Debug, clap::Args)]
pub struct Rm {
    #[command(flatten)]
    selection: Selection,
    /// Kill those that run.
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    /// Deletes them; all are checked before anything is deleted. With `--all`, those that run stay unless forced.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let found = self.selection.find(&containers, |container| self.force || !containers.is_running(container))?;
        let running: Vec<_> = found.iter().filter(|container| containers.is_running(container)).cloned().collect();
        if let Some(container) = running.first().filter(|_| !self.force) {
            bail!("{} is running; `turbo stop {}` first, or say --force", container.shown(), container.name);
        }
        end_all(&containers, running, &Op::Stop { signal: libc::SIGKILL, time_s: 0 })?;
        let mut removed = Vec::new();
        for container in found {
            // A temporary one is gone by now.
            if containers.reload(&container)?.is_some() {
                match containers.lock(&container)? {
                    Some(locked) => locked.remove()?,
                    None if self.selection.all => continue,
                    None => bail!("{} was started meanwhile", container.shown()),
                }
            }
            removed.push(container);
        }
        containers.sweep()?;
        app.output.result(&removed, |out| removed.iter().try_for_each(|container| writeln!(out, "{}", container.shown())))?;
        Ok(Exit::Success)
    }
}
