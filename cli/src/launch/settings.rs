//! What a container remembers of how it is started: taken into a launch, and noted for the next one.
//!
//! Variables (`--env`, `--env-file`), the level of isolation (`--isolate`) and the startup file (`--set-startup-file`) last;
//! the command line goes before what lasts. `--startup-file`, `--trigger`, `--working-dir` and `--using` are for one launch.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use layer_format::manifest::{StateImage, StateSettings};

use super::Launch;
use crate::containers::Locked;
use crate::isolation::Level;
use crate::startup;

/// A launch's settings: the command line's, else the container's.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Variables: the container's, and over them the command line's.
    pub environment: BTreeMap<String, String>,
    /// Level of isolation.
    pub level: Level,
    /// What the container remembers of a working directory.
    pub working_dir: Option<PathBuf>,
    /// Program and arguments for this launch alone.
    once: Option<Vec<String>>,
    /// The same, as the container remembers it.
    lasting: Option<Vec<String>>,
    /// What the container remembers from now on.
    settings: StateSettings,
}

impl Settled {
    /// The program in place of the images'. A trigger beats what the container remembers.
    pub fn startup_file(&self, trigger: Option<&str>) -> Option<&[String]> {
        self.once.as_deref().or(self.lasting.as_deref().filter(|_| trigger.is_none()))
    }
}

/// Joins the command line with what the container remembers.
///
/// # Errors
/// If a startup file makes no sense, or the container's settings are damaged.
pub fn settle(launch: &Launch, remembered: &StateSettings) -> Result<Settled> {
    let mut settings = remembered.clone();
    settings.environment.extend(launch.env.iter().cloned());
    if launch.level != Level::default() {
        settings.isolation = Some(launch.level.to_string());
    }
    if let Some(text) = &launch.set_startup_file {
        settings.startup_file = startup::split(text)?;
    }
    let level = settings.isolation.as_deref().map(str::parse).transpose().context("the container remembers an --isolate that makes no sense")?;
    Ok(Settled {
        environment: settings.environment.clone(),
        level: level.unwrap_or_default(),
        working_dir: settings.working_directory.clone().map(PathBuf::from),
        once: launch.startup_file.as_deref().map(startup::split).transpose()?,
        lasting: Some(settings.startup_file.clone()).filter(|command| !command.is_empty()),
        settings,
    })
}

/// Notes settings and the stack in the container, durably if they are other ones than before.
///
/// # Errors
/// If the container cannot be written.
pub fn record(container: &mut Locked, settled: &Settled, stack: Vec<StateImage>) -> Result<()> {
    let noted = &mut container.container;
    if noted.settings == settled.settings && noted.stack == stack {
        return Ok(());
    }
    (noted.settings, noted.stack) = (settled.settings.clone(), stack);
    if noted.temporary { Ok(()) } else { container.save() }
}
