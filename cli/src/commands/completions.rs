//! `turbo completions` and `turbo man`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::Turbo;
use crate::exit::Exit;
use crate::output::write_to_stdout;

/// Which shell.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

impl Completions {
    /// Prints the script.
    pub fn run(self) -> Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Turbo::command(), "turbo", &mut script);
        write_to_stdout(&script)?;
        Ok(Exit::Success)
    }
}

/// Where to.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// Folder for `turbo.1`, `turbo-run.1` and so on.
    folder: PathBuf,
}

impl Man {
    /// Writes the pages.
    pub fn run(self) -> Result<Exit> {
        std::fs::create_dir_all(&self.folder).with_context(|| format!("creating {}", self.folder.display()))?;
        clap_mangen::generate_to(Turbo::command(), &self.folder).with_context(|| format!("writing to {}", self.folder.display()))?;
        Ok(Exit::Success)
    }
}
