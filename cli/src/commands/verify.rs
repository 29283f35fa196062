//! `turbo verify`.

use anyhow::Result;
use layer_format::Digest;
use serde::Serialize;

use client_store::store::Repair;

use crate::app::App;
use crate::exit::Exit;
use crate::output::{bytes, note};
use crate::progress::Bar;

/// Check every stored byte against its digest. Ends with 125 if something is damaged.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Forget what is damaged, so that a run or pull fetches it again.
    #[arg(long)]
    repair: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    packs: u64,
    objects: u64,
    bytes: u64,
    damaged: Vec<Damaged>,
    missing_packs: Vec<String>,
    incomplete_states: Vec<Digest>,
    repaired: bool,
}

#[derive(Debug, Serialize)]
struct Damaged {
    digest: Digest,
    pack: String,
    reason: String,
    images: Vec<String>,
    states: Vec<Digest>,
}

impl Verify {
    /// Hashes everything.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        let bar = Bar::transfer("verifying");
        let found = store.verify(if self.repair { Repair::Forget } else { Repair::No }, |done, total| {
            bar.set_total(total);
            bar.set_done(done);
        })?;
        drop(bar);
        let infos = store.images()?;
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
            missing_packs: found.missing_packs,
            incomplete_states: found.incomplete_states,
            repaired: found.repaired,
        };
        app.output.result(&report, |out| {
            for damaged in &report.damaged {
                let images = if damaged.images.is_empty() { "no image".into() } else { damaged.images.join(", ") };
                writeln!(out, "damaged: {} ({}), needed by {images}", damaged.digest, damaged.reason)?;
            }
            for state in &report.incomplete_states {
                writeln!(out, "incomplete: state {}; `turbo continue` fetches what is missing if it was saved", state.short())?;
            }
            for pack in &report.missing_packs {
                writeln!(out, "missing: pack {pack}")?;
            }
            writeln!(out, "{} objects, {} checked; {} damaged", report.objects, bytes(report.bytes), report.damaged.len())
        })?;
        if report.damaged.is_empty() && report.missing_packs.is_empty() {
            return Ok(Exit::Success);
        }
        if !report.repaired {
            note("`turbo verify --repair` forgets what is damaged; then `turbo pull` fetches it again. A run does both by itself.");
        }
        Ok(if report.repaired { Exit::Success } else { Exit::Failure })
    }
}
