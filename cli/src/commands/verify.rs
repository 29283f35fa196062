//! `turbo verify`.

use std::io::Write;

use anyhow::{Context, Result};
use client_store::Store;
use client_store::store::{DamagedPack, ImageInfo, RepackOptions, Repair, VerifyOptions};
use client_store::transfer::restore;
use layer_format::Digest;
use layer_format::reference::ImageReference;
use serde::Serialize;

use crate::app::App;
use crate::exit::Exit;
use crate::output::{bytes, note};
use crate::progress::{Bar, options};

/// Check every stored byte against its digest. Ends with 125 if something is damaged, and could not be put right.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Put right what is damaged: fetch it from the registry again.
    #[arg(long)]
    repair: bool,
    /// Most bytes read a second; 0 for no bound.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    bandwidth: u64,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    packs: u64,
    objects: u64,
    bytes: u64,
    damaged: Vec<Damaged>,
    damaged_packs: Vec<DamagedPack>,
    missing_packs: Vec<String>,
    unnamed_objects: u64,
    incomplete_states: Vec<Digest>,
    repaired: bool,
    /// Images of which something was fetched again, or could not be.
    fetched: Vec<Fetched>,
}

#[derive(Debug, Serialize)]
struct Damaged {
    digest: Digest,
    pack: String,
    reason: String,
    images: Vec<String>,
    states: Vec<Digest>,
}

#[derive(Debug, Serialize)]
struct Fetched {
    image: String,
    objects: u64,
    bytes: u64,
    /// Why it could not be made whole.
    error: Option<String>,
}

impl Verify {
    /// Hashes everything.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        let bar = Bar::transfer("verifying");
        let repair = if self.repair { Repair::Forget } else { Repair::No };
        let found = store.verify_with(&VerifyOptions { repair, bytes_per_s: self.bandwidth }, |done, total| {
            bar.set_total(total);
            bar.set_done(done);
        })?;
        drop(bar);
        let is_clean = found.is_clean();
        let infos = store.images()?;
        let mut hurt: Vec<Digest> = found.damaged.iter().flat_map(|damaged| damaged.images.iter().copied()).collect();
        hurt.sort_unstable();
        hurt.dedup();
        let fetched = if self.repair { fetch(app, &store, &infos, &hurt) } else { Vec::new() };
        if self.repair && !found.damaged_packs.is_empty() {
            // What is whole of them moves into packs that are.
            store.repack(
                &RepackOptions { dead_percent: 100, fragmentation: f64::INFINITY, bytes_per_s: self.bandwidth, ..RepackOptions::default() },
                |_, _| {},
            )?;
        }
        let names = |digest: &Digest| -> Vec<String> { infos.iter().filter(|info| info.digest == *digest).flat_map(|info| info.names.clone()).collect() };
        let damaged = found.damaged.into_iter().map(|damaged| Damaged {
            images: damaged.images.iter().flat_map(names).collect(),
            states: damaged.states,
            digest: damaged.digest,
            pack: damaged.pack,
            reason: damaged.reason,
        });
        let report = Report {
            packs: found.packs,
            objects: found.objects,
            bytes: found.bytes,
            damaged: damaged.collect(),
            damaged_packs: found.damaged_packs,
            missing_packs: found.missing_packs,
            unnamed_objects: found.unnamed_objects,
            incomplete_states: found.incomplete_states,
            repaired: found.repaired,
            fetched,
        };
        app.output.result(&report, |out| report.show(out))?;
        if is_clean {
            return Ok(Exit::Success);
        }
        if !self.repair && !report.damaged.is_empty() {
            note("`turbo verify --repair` fetches what is damaged from the registry again. A run that meets it does so by itself.");
        }
        let whole =
            self.repair && report.fetched.iter().all(|fetched| fetched.error.is_none()) && report.damaged.iter().all(|damaged| damaged.states.is_empty());
        Ok(if whole { Exit::Success } else { Exit::Failure })
    }
}

/// Brings back what is missing of these images, each from the first of its repositories that has it.
fn fetch(app: &App, store: &Store, infos: &[ImageInfo], hurt: &[Digest]) -> Vec<Fetched> {
    let mut fetched = Vec::new();
    for info in infos.iter().filter(|info| hurt.contains(&info.digest)) {
        let mut one = Fetched { image: info.names.first().cloned().unwrap_or_else(|| info.digest.to_string()), objects: 0, bytes: 0, error: None };
        for name in &info.names {
            match fetch_as(app, store, name, &info.digest) {
                Ok((objects, bytes)) => {
                    (one.objects, one.bytes, one.error) = (objects, bytes, None);
                    break;
                }
                Err(error) => one.error = Some(format!("{error:#}")),
            }
        }
        fetched.push(one);
    }
    fetched
}

fn fetch_as(app: &App, store: &Store, name: &str, digest: &Digest) -> Result<(u64, u64)> {
    let reference: ImageReference = name.parse().context("its name is not valid")?;
    let done = app.block_on(restore(store, &app.registry()?, &reference.repository, digest, &options("fetching again")))?;
    let done = done.with_context(|| format!("{name} could not be made whole from {}", app.settings.hub))?;
    Ok((done.moved_objects, done.moved_bytes))
}

impl Report {
    fn show(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for damaged in &self.damaged {
            let images = if damaged.images.is_empty() { "no image".into() } else { damaged.images.join(", ") };
            writeln!(out, "damaged: {} ({}), needed by {images}", damaged.digest, damaged.reason)?;
        }
        for state in &self.incomplete_states {
            writeln!(out, "incomplete: state {}; `turbo continue` fetches what is missing if it was saved", state.short())?;
        }
        for pack in &self.missing_packs {
            writeln!(out, "missing: pack {pack}")?;
        }
        for DamagedPack { pack, reason } in &self.damaged_packs {
            writeln!(out, "damaged: pack {pack} ({reason})")?;
        }
        if self.unnamed_objects > 0 {
            let what = if self.repaired { "now it does" } else { "`turbo verify --repair` lets it" };
            writeln!(out, "{} objects are here and the index did not name them; {what}", self.unnamed_objects)?;
        }
        for Fetched { image, objects, bytes: len, error } in &self.fetched {
            match error {
                None => writeln!(out, "{image}: whole again; {objects} objects, {} fetched", bytes(*len))?,
                Some(error) => writeln!(out, "{image}: not whole: {error}")?,
            }
        }
        writeln!(out, "{} objects, {} checked; {} damaged", self.objects, bytes(self.bytes), self.damaged.len())
    }
}
