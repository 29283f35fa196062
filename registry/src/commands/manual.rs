//! `turbo-registry man` and `turbo-registry completions`: for those who make packages.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where to.
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// Folder for `turbo-registry.1`, `turbo-registry-serve.1` and so on.
    folder: PathBuf,
}

/// Which shell.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell.
    shell: clap_complete::Shell,
}

impl Man {
    /// Writes the pages.
    pub(crate) fn run(&self, command: clap::Command) -> Result<()> {
        let folder: &Path = &self.folder;
        std::fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
        clap_mangen::generate_to(command, folder).with_context(|| format!("could not write to {}", folder.display()))
    }
}

impl Completions {
    /// Prints the script.
    pub(crate) fn run(&self, mut command: clap::Command) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "turbo-registry", &mut script);
        std::io::stdout().write_all(&script).context("could not write to the standard output")
    }
}
