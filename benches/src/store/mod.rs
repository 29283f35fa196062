//! `turbo-bench store`: the chunk store against the tools that people would use instead.
//!
//! Real trees in two versions each (`dataset.sh` makes them from the package registries). Every tool stores version 1 in an empty
//! repository, version 2 after it, restores version 2 into an empty directory, and where version 1 is. Tools take turns inside each
//! round, so that a slow minute of the machine hits all alike; the page cache is warm, and no peer is asked to write back to the
//! disk. What is restored is compared with the original. Medians over the rounds. Peers that are not installed are left out, and said
//! to be.

mod peers;
mod report;
mod steps;
mod trees;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::report::Setting;
use crate::turbo::Tools;
use trees::Tree;

/// Measure import, stored bytes and checkout against other tools.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measured rounds, of which the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Only these trees: scipy, jaxlib, img-pg, jsapp, ansible.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only these peers. Turbo is always measured.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub peers: Option<Vec<String>>,
    /// Where the trees are, or are made: about 2.7 GB.
    #[arg(long, value_name = "DIR", default_value = "target/bench/store")]
    pub data: PathBuf,
    /// Where repositories and what is restored are while they are measured. A tmpfs on a busy machine.
    #[arg(long, value_name = "DIR", default_value = "target/bench/work")]
    pub work: PathBuf,
    /// Folder of `turbo`, if it is not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Write every single measurement to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/store.json")]
    pub json: PathBuf,
    /// Put the table into the repository's README.md.
    #[arg(long)]
    pub write_readme: bool,
}

/// Work that takes memory, for a process of its own: what a measured process is said to take is never less than what the one that
/// started it once had.
#[derive(Debug, clap::Args)]
pub struct HelperArgs {
    what: Helper,
    one: PathBuf,
    other: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Helper {
    /// Succeeds if two trees have the same content.
    Compare,
    /// And the same modes and times.
    CompareStrictly,
    /// Makes the first tree what the second is.
    Change,
}

impl Helper {
    const fn word(self) -> &'static str {
        match self {
            Self::Compare => "compare",
            Self::CompareStrictly => "compare-strictly",
            Self::Change => "change",
        }
    }
}

/// Does the work of a helper.
///
/// # Errors
/// If trees differ, or cannot be read or changed.
pub fn help(args: &HelperArgs) -> Result<()> {
    match args.what {
        Helper::Change => trees::change_to(&args.one, &args.other),
        what if trees::are_same(&args.one, &args.other, what == Helper::CompareStrictly)? => Ok(()),
        _ => bail!("{} and {} differ", args.one.display(), args.other.display()),
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Store version 1 in an empty repository.
    First,
    /// Store version 2 after it.
    Second,
    /// Store version 2 where the directory of version 1 was changed to it.
    SecondInPlace,
    /// Store a directory that has not changed.
    Unchanged,
    /// Restore version 2 into an empty directory.
    Restore,
    /// Restore version 2 where version 1 is.
    Update,
}

/// What one step took and left, once.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Tree, tool and step.
    pub tree: String,
    /// `turbo`, or a peer.
    pub tool: String,
    /// What was done.
    pub step: Step,
    /// From start to end.
    pub wall_s: f64,
    /// Of all processes, in user and kernel.
    pub cpu_s: f64,
    /// Memory of the largest process.
    pub peak_bytes: u64,
    /// Bytes by which the files of the repository grew; caches are not counted, of any tool.
    pub stored_bytes: i64,
    /// Whether what was restored is the original; `None` if it was not compared.
    pub is_right: Option<bool>,
}

/// Measures and prints.
///
/// # Errors
/// If the trees cannot be made, or Turbo fails at anything.
pub fn run(args: &Args) -> Result<()> {
    let tools = Tools::find(args.bin_dir.as_deref())?;
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let trees: Vec<Tree> = trees::ALL.iter().copied().filter(|tree| wanted(tree.name)).collect();
    if trees.is_empty() {
        bail!("there is no such tree: choose among {}", trees::ALL.map(|tree| tree.name).join(", "));
    }
    trees::build(&args.data, &trees)?;
    fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let work = tempfile::Builder::new().prefix("store-").tempdir_in(std::path::absolute(&args.work)?).context("cannot create a folder to work in")?;
    let (peers, missing) = peers::installed(args.peers.as_deref());
    for peer in &missing {
        eprintln!("not measured: {} ({})", peer.name, peer.install);
    }
    let data = std::path::absolute(&args.data)?;
    let mut measured = Vec::new();
    for tree in &trees {
        for round in 0..args.rounds {
            steps::turbo(&tools, &data, tree, work.path(), round == 0, &mut measured)?;
            for peer in &peers {
                steps::peer(peer, &data, tree, work.path(), round == 0, &mut measured)?;
            }
            eprintln!("{}, round {} done", tree.name, round + 1);
        }
    }
    let setting = Setting::here(work.path(), args.rounds)?;
    let missing: Vec<&str> = missing.iter().map(|peer| peer.name).collect();
    let table = report::markdown(&setting, &trees, &measured, &missing);
    crate::report::write_json(&args.json, &(&setting, &measured))?;
    print!("{table}");
    if args.write_readme {
        crate::report::write_readme("store", &table)?;
    }
    Ok(())
}
