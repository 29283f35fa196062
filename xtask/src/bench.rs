//! Benchmarks and the demo. Both live in `benches/`, since they share the link, the root filesystems
//! and the way in which launches are measured; here they get the release build that they run.

use std::ffi::OsString;

use anyhow::{Result, bail};

use crate::steps::Outcome;
use crate::{setup, workspace};

/// Builds the benchmarks in release, and the product unless only a simulation is wanted, then runs `turbo-bench` with the
/// arguments.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let simulates = args.first().is_some_and(|verb| verb == "replay") && !args.iter().any(|arg| arg == "--validate");
    if !simulates {
        workspace::run(workspace::cargo("build").args(["--release", "-p", "cli", "-p", "registry", "-p", "benchmarks", "--bins"]))?;
    }
    if args.first().is_some_and(|verb| verb == "registry")
        && let Outcome::Skipped(reason) = setup::docker_registry()
    {
        bail!("{reason}");
    }
    let mut bench = workspace::cargo("run");
    workspace::run(bench.args(["--release", "-p", "benchmarks", "--bin", "turbo-bench", "--"]).args(args))
}

/// `turbo-bench demo`: launches scipy over a link of 100 Mbit/s and 100 ms, pulled and streamed.
pub(crate) fn demo(args: &[OsString]) -> Result<()> {
    let words: Vec<_> = std::iter::once(OsString::from("demo")).chain(args.iter().cloned()).collect();
    run(&words)
}
