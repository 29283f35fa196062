//! `turbo-bench vm`: what the VM costs an application whose data is all local.
//!
//! The same work is done natively and inside containers, in turns: one runner process waits in each place and is told
//! what to do next, so that a slow minute of the machine hits all alike, and that the start of a container is not counted
//! where it is not meant. Starts are measured from outside. Medians over the rounds; the first round warms the caches.

mod corpus;
mod report;
mod runner;
mod starts;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::report::Setting;
use crate::turbo::Tools;

pub use runner::{RunnerArgs, serve};

/// Measure starts and warm work in containers against native ones.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measured rounds, of which the median counts.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Only workloads whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Where root filesystems are kept: scipy is taken from there.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub cache: PathBuf,
    /// Where files, sandboxes and stores are while they are measured: a disk.
    #[arg(long, value_name = "DIR", default_value = "target/bench/work")]
    pub work: PathBuf,
    /// Folder of `turbo`, if it is not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Write every single measurement to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/vm.json")]
    pub json: PathBuf,
    /// Put the table into the repository's README.md.
    #[arg(long)]
    pub write_readme: bool,
}

/// Where something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On the host, without Turbo.
    Native,
    /// In a container, files from an image, mode write-copy.
    WriteCopy,
    /// In a container, files from an image, mode merge.
    Merge,
    /// `bwrap --dev-bind / / COMMAND`.
    Bubblewrap,
    /// A container of one image.
    OneLayer,
    /// A container of twenty images.
    TwentyLayers,
}

/// All measurements of one workload: seconds, in the order in which they were taken.
#[derive(Debug, Serialize)]
pub struct Series {
    /// What was done.
    pub name: String,
    /// Where, and how long each time.
    pub seconds: Vec<(Place, f64)>,
}

impl Series {
    /// Median of a place, in seconds; NaN if nothing was measured there.
    pub fn median(&self, place: Place) -> f64 {
        let mut values: Vec<f64> = self.seconds.iter().filter(|(at, _)| *at == place).map(|(_, seconds)| *seconds).collect();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => values[count / 2],
            count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
        }
    }
}

/// Measures and prints.
///
/// # Errors
/// If a workload cannot be prepared or fails anywhere.
pub fn run(args: &Args) -> Result<()> {
    let tools = Tools::find(args.bin_dir.as_deref())?;
    fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let work = tempfile::Builder::new().prefix("vm-").tempdir_in(std::path::absolute(&args.work)?).context("cannot create a folder to work in")?;
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let mut series = starts::measure(&tools, work.path(), args.rounds, &wanted)?;
    series.extend(runner::measure(&tools, work.path(), &args.cache, args.rounds, &wanted)?);
    let setting = Setting::here(work.path(), args.rounds)?;
    let table = report::markdown(&setting, &series);
    crate::report::write_json(&args.json, &(&setting, &series))?;
    print!("{table}");
    if args.write_readme {
        crate::report::write_readme("vm", &table)?;
    }
    Ok(())
}
