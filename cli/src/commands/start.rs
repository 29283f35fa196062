//! `turbo start`.

use anyhow::Result;

use crate::app::App;
use crate::commands::launch_options::LaunchOptions;
use crate::exit::Exit;
use crate::forks::Forks;
use crate::place::Choice;

/// Start a container again, or a program in one that runs.
#[derive(Debug, clap::Args)]
pub struct Start {
    /// Name, or first digits of the id.
    container: String,
    #[command(flatten)]
    options: LaunchOptions,
}

impl Start {
    /// Runs to the end of the application.
    pub fn run(self, app: &App, forks: Forks) -> Result<Exit> {
        let options = self.options.check()?;
        let choice = Choice::Existing(Box::new(app.containers().get(&self.container)?));
        choice.launch(app, forks, options.detach(), |container| options.launch(container))
    }
}
