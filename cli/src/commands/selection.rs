//! Which containers a command is about.

use anyhow::{Result, bail};

use crate::containers::{Container, Containers};
use crate::exit::UsageError;

/// Containers by name, or all.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Names, or first digits of ids.
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
    /// All of them.
    #[arg(short, long, conflicts_with = "containers")]
    pub all: bool,
}

impl Selection {
    /// Finds them, each once; all names are looked up before anything is done. With `--all`, those for which `applies`.
    pub fn find(&self, containers: &Containers, applies: impl Fn(&Container) -> bool) -> Result<Vec<Container>> {
        if self.all {
            return Ok(containers.list()?.into_iter().filter(applies).collect());
        }
        if self.containers.is_empty() {
            bail!(UsageError("name a container, or say --all; `turbo sessions` lists them".into()));
        }
        let mut found: Vec<Container> = Vec::new();
        for name in &self.containers {
            let container = containers.get(name)?;
            if !found.iter().any(|known| known.id == container.id) {
                found.push(container);
            }
        }
        Ok(found)
    }
}
