//! `turbo trace record`.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::app::App;
use crate::commands::pull;
use crate::commands::run::Run;
use crate::exit::{Exit, UsageError};
use crate::forks::Forks;
use crate::output::note;
use crate::place::default_name;

/// What to run, and where the recording goes.
#[derive(Debug, clap::Args)]
pub struct Record {
    #[command(flatten)]
    run: Run,
    /// The file to write [default: the image's name with .trace].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Pull the images first, so that times are those of a run from local data: what `turbo trace replay` wants.
    #[arg(long)]
    warm: bool,
}

impl Record {
    /// Runs to the end of the application.
    pub fn run(mut self, app: &App, forks: Forks) -> Result<Exit> {
        if self.run.options.detach {
            bail!(UsageError("a recording is written at the end of the run: leave out --detach".into()));
        }
        let images = self.run.images().to_vec();
        let file = self.output.or(self.run.options.trace.take()).unwrap_or_else(|| PathBuf::from(format!("{}.trace", default_name(&images))));
        let file = std::path::absolute(file)?;
        if self.warm {
            pull::bring(app, &images)?;
        }
        self.run.options.trace = Some(file.clone());
        let exit = self.run.run(app, forks)?;
        if file.metadata().is_ok_and(|found| found.len() > 0) {
            note(format!("recorded: `turbo trace show {0}` tells of it, `turbo trace show {0} --html` draws it", vm::printable(&file.display().to_string())));
        }
        Ok(exit)
    }
}
