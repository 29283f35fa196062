//! Opening a store and reading objects by name, in a process of its own: what it takes in memory is what a user's would.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use client_store::{ObjectCache, Store, StoreOptions};
use serde::{Deserialize, Serialize};

use super::population;

/// Objects that are read.
const LOOKUPS: u32 = 5_000;

/// Open a store and read objects of it.
#[derive(Debug, clap::Args)]
pub struct LookupArgs {
    home: PathBuf,
    chunks: u64,
}

/// What one opening and one object took.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) open_s: f64,
    pub(super) lookup_s: f64,
    pub(super) peak_bytes: u64,
}

/// Opens the store, reads, and prints as JSON what that took.
///
/// # Errors
/// If an object is not there.
pub fn look_up(args: &LookupArgs) -> Result<()> {
    let begun = Instant::now();
    let store = Store::open(&args.home, StoreOptions::default())?;
    let open_s = begun.elapsed().as_secs_f64();
    let mut state = 1;
    let wanted: Vec<_> = (0..LOOKUPS).map(|_| population::digest(population::splitmix64(&mut state) % args.chunks)).collect();
    let begun = Instant::now();
    for digest in &wanted {
        ensure!(store.get(digest)?.is_some(), "{digest} is not in the store");
    }
    let lookup_s = begun.elapsed().as_secs_f64() / f64::from(LOOKUPS);
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let peak_kib: u64 = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok()).context("no VmHWM")?;
    let found = Found { open_s, lookup_s, peak_bytes: peak_kib << 10 };
    println!("{}", serde_json::to_string(&found).context("cannot print")?);
    Ok(())
}

/// The same in a process of its own.
pub(super) fn in_own_process(home: &Path, chunks: u64) -> Result<Found> {
    let own = std::env::current_exe().context("this program has no path")?;
    let output = Command::new(own).arg("growth-lookup").arg(home).arg(chunks.to_string()).stderr(Stdio::inherit()).output().context("cannot start a helper")?;
    ensure!(output.status.success(), "objects could not be read");
    serde_json::from_slice(&output.stdout).context("a helper printed something else")
}
