//! `turbo-bench registry`: this registry against Debian's docker-registry, on one machine in one run.
//!
//! Both get empty folders and ports of their own, and take turns at every measurement, so that a slow minute hits both; what counts
//! is the median of the ratios. Clients are the real ones (docker's daemon, skopeo, podman) where images are pushed and pulled, and
//! a generator of our own where single requests are counted. `zb` repeats the tests that zot's benchmark of that name defines.

mod builds;
mod clients;
mod load;
mod memory;
mod oci;
mod requests;
mod server;
mod table;
mod zb;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::app::{App, Version};
use crate::report::Setting;
use server::{Kind, Server};

/// Measure the registry against Debian's docker-registry.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measured rounds, of which the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,
    /// A folder that images are made of, in place of Python's packages below the root filesystem of scipy.
    #[arg(long, value_name = "DIR")]
    pub tree: Option<PathBuf>,
    /// Consecutive builds whose stored bytes are compared.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub builds: u32,
    /// Where root filesystems are kept.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub cache: PathBuf,
    /// Where registries and clients keep their data meanwhile.
    #[arg(long, value_name = "DIR", default_value = "target/bench/work")]
    pub work: PathBuf,
    /// Folder of `turbo-registry`, if it is not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Write every single measurement to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/registry.json")]
    pub json: PathBuf,
    /// Put the table into the repository's README.md.
    #[arg(long)]
    pub write_readme: bool,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Push and pull of a real image with docker and skopeo.
    Images,
    /// Single blobs and manifests, and many pulls at once.
    Requests,
    /// What consecutive builds take, by encoder.
    Stored,
    /// Memory, idle and under uploads.
    Memory,
    /// The tests of zot's `zb`.
    Zb,
}

/// One figure of one registry.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) what: String,
    pub(crate) kind: Kind,
    pub(crate) round: u32,
    /// Seconds, requests or bytes a second, or bytes: `what` says which.
    pub(crate) value: f64,
}

/// All figures.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Measured {
    pub(crate) figures: Vec<Figure>,
    pub(crate) zb: Vec<zb::Row>,
}

impl Measured {
    fn add(&mut self, what: impl Into<String>, kind: Kind, round: u32, value: f64) {
        let what = what.into();
        eprintln!("  {what}, {}: {value:.3}", kind.name());
        self.figures.push(Figure { what, kind, round, value });
    }
}

/// Where everything is.
pub(crate) struct Bench {
    pub(crate) work: tempfile::TempDir,
    pub(crate) turbo: PathBuf,
    pub(crate) peer: PathBuf,
    pub(crate) tree: PathBuf,
    pub(crate) builds: u32,
}

impl Bench {
    /// A server with an empty folder.
    pub(crate) fn start(&self, kind: Kind) -> Result<Server> {
        let program = match kind {
            Kind::Turbo => &self.turbo,
            Kind::DockerRegistry => &self.peer,
        };
        Server::start(kind, program, self.work.path())
    }
}

/// Measures and prints.
///
/// # Errors
/// If a registry does not start, or does anything wrong.
pub fn run(args: &Args) -> Result<()> {
    let tree = match &args.tree {
        Some(tree) => tree.clone(),
        None => App::Scipy.root(Version::First, None, &args.cache)?.join("usr/lib/python3/dist-packages"),
    };
    fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let work = tempfile::Builder::new().prefix("registry-").tempdir_in(std::path::absolute(&args.work)?).context("cannot create a folder to work in")?;
    let turbo = server::turbo(args.bin_dir.as_deref())?;
    let bench = Bench { work, turbo, peer: server::docker_registry()?, tree, builds: args.builds };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    let mut measured = Measured::default();
    for round in 0..args.rounds {
        eprintln!("round {}", round + 1);
        if wants(Part::Requests) {
            runtime.block_on(requests::measure(&bench, round, &mut measured))?;
        }
        if wants(Part::Images) {
            clients::measure(&bench, round, &mut measured)?;
        }
        if wants(Part::Memory) {
            runtime.block_on(memory::measure(&bench, round, &mut measured))?;
        }
    }
    // Sizes do not vary, and zb's tests take minutes: once.
    if wants(Part::Stored) {
        clients::stored(&bench, &mut measured)?;
    }
    if wants(Part::Zb) {
        runtime.block_on(zb::measure(&bench, &mut measured))?;
    }
    let setting = Setting::here(bench.work.path(), args.rounds)?;
    let table = table::markdown(&setting, &measured);
    crate::report::write_json(&args.json, &(&setting, &measured))?;
    print!("{table}");
    if args.write_readme {
        crate::report::write_readme("registry", &table)?;
    }
    Ok(())
}
