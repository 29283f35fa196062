//! `turbo-bench growth`: what a chunk costs in a store and a registry of 10^4, 10^5, 10^6 chunks, and more if asked.
//!
//! One image of N files of a hundred random bytes each, so N chunks and as many tree entries: the worst case for everything that is paid
//! per object, since there is next to nothing that is paid per byte. It is made as a tar and never touches the disk as files. Each size
//! has a store, a second store and a registry of its own.
//!
//! | step | what is timed |
//! |---|---|
//! | import | `turbo import tar` of the pipe, processor time (the maker of the tar is another process) |
//! | push | `turbo push` to a registry that is empty |
//! | pull | `turbo pull` from it into an empty store |
//! | open | opening the store in a fresh process |
//! | lookup | one object by name, at random, in a fresh process: index, pack, frame, verification |
//! | stats, gc | `turbo stats`, and `turbo gc` that finds nothing to remove |
//!
//! A cost per chunk that grows by more than half over the range is told as not reached.

mod lookup;
mod population;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::place::Place;
use crate::report::{Setting, write_json, write_readme};
use crate::sys;
use crate::turbo::{Registry, Tools};
pub use lookup::{LookupArgs, look_up};
pub use population::{PopulationArgs, write_tar};

/// Measure what a chunk costs as stores and registries grow.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The sizes, in chunks.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    pub sizes: Vec<u64>,
    /// How often each size is measured, of which the median counts; all sizes in turn.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Where stores are while they are measured: about a kilobyte for each chunk.
    #[arg(long, value_name = "DIR", default_value = "target/bench/work")]
    pub work: PathBuf,
    /// Folder of `turbo` and `turbo-registry`, if they are not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Write every single measurement to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/growth.json")]
    pub json: PathBuf,
    /// Put the table into the repository's README.md.
    #[arg(long)]
    pub write_readme: bool,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The image is imported.
    Import,
    /// It is pushed.
    Push,
    /// It is pulled into another store.
    Pull,
    /// The store is opened.
    Open,
    /// Objects are read by name.
    Lookup,
    /// The store is asked for its numbers.
    Stats,
    /// What no image needs is looked for.
    Gc,
}

/// What one step cost, once.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Chunks in the store.
    pub chunks: u64,
    /// What was done.
    pub step: Step,
    /// Seconds: processor time of an import, else from start to end. Of `open` and `lookup`, for one.
    pub seconds: f64,
    /// Memory of the process that did it, in bytes.
    pub peak_bytes: u64,
}

/// Measures and prints.
///
/// # Errors
/// If a step fails, with what it said.
pub fn run(args: &Args) -> Result<()> {
    let tools = Tools::find(args.bin_dir.as_deref())?;
    fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let work = std::path::absolute(&args.work)?;
    let mut measured = Vec::new();
    for round in 0..args.rounds {
        for chunks in &args.sizes {
            ensure!(*chunks > 0, "a store without chunks cannot be measured");
            measure_size(&tools, *chunks, &work, &mut measured)?;
            eprintln!("{chunks} chunks, round {} done", round + 1);
        }
    }
    let table = table::markdown(&Setting::here(&work, args.rounds)?, &args.sizes, &measured);
    write_json(&args.json, &measured)?;
    print!("{table}");
    if args.write_readme {
        write_readme("growth", &table)?;
    }
    Ok(())
}

fn measure_size(tools: &Tools, chunks: u64, work: &Path, measured: &mut Vec<Measured>) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("growth-").tempdir_in(work).context("cannot create a folder to work in")?;
    let home = |name: &str| folder.path().join(name);
    let log = home("log");
    let registry = Registry::start(tools, &Place::Loopback, &home("registry"), &home("registry.log"))?;
    let turbo = |home: &Path, words: &[&str]| {
        let mut command = tools.turbo_in(home);
        command.env("TURBO_HUB", registry.url()).args(words);
        command
    };
    let (first, second) = (home("first"), home("second"));
    let mut note = |step: Step, seconds: f64, peak_bytes: u64| measured.push(Measured { chunks, step, seconds, peak_bytes });

    let mut maker = population::maker(chunks)?;
    let tar = maker.stdout.take().context("the maker of the tar has no output")?;
    let mut import = turbo(&first, &["import", "tar", "-", "--name", IMAGE]);
    let (_, usage) = timed(import.stdin(tar), &log)?;
    ensure!(maker.wait().context("cannot wait for the maker of the tar")?.success(), "the tar could not be made");
    note(Step::Import, usage.cpu_s, usage.peak_bytes);
    for (step, home, words) in [(Step::Push, &first, &["push", IMAGE][..]), (Step::Pull, &second, &["pull", IMAGE])] {
        let (seconds, usage) = timed(&mut turbo(home, words), &log)?;
        note(step, seconds, usage.peak_bytes);
    }
    let found = lookup::in_own_process(&second, chunks)?;
    note(Step::Open, found.open_s, found.peak_bytes);
    note(Step::Lookup, found.lookup_s, found.peak_bytes);
    for (step, words) in [(Step::Stats, &["stats"][..]), (Step::Gc, &["gc"])] {
        let (seconds, usage) = timed(&mut turbo(&second, words), &log)?;
        note(step, seconds, usage.peak_bytes);
    }
    Ok(())
}

/// The image under measurement.
const IMAGE: &str = "bench/growth:1";

/// Runs a command to its end.
fn timed(command: &mut Command, log: &Path) -> Result<(f64, sys::Usage)> {
    rustix::fs::sync();
    let file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(Stdio::null()).stderr(file);
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let (succeeded, usage) = sys::wait_usage(&child).context("cannot wait for a process")?;
    let seconds = start.elapsed().as_secs_f64();
    if !succeeded {
        let said = fs::read_to_string(log).unwrap_or_default();
        bail!("{command:?} failed: {}", said.lines().rev().take(3).collect::<Vec<_>>().join(" | "));
    }
    Ok((seconds, usage))
}
