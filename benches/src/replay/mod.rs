//! `turbo-bench replay`: what launches would cost over five links under different policies of prefetching, simulated
//! from recorded runs; and with `--validate`, how far the simulation is from real launches over the emulated link.
//!
//! Models learn from some runs of an application and are scored on others. Lists are those of one run, the first of those
//! that models learn from: what other systems record when an image is made. Models are carried to the next version by path
//! alone; the registry also follows files that were renamed and bytes that moved within a file.

mod recorded;
mod table;
mod validate;

pub(crate) use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, ensure};
use predictor::carry::Carried;
use predictor::replay::{LINKS, NamedLink, Outcome, Place, Policy, Setup, first_touches, replay_and_tell, whole_files};
use predictor::{Model, Params, carry_over};
use serde::Serialize;

use crate::app::App;
use crate::report::{write_json, write_readme};
pub(crate) use recorded::Recorded;

/// Successors that a client asks for at a miss.
const SUCCESSORS: usize = 256;
/// What the answer to a launch holds besides the model, about.
const HEAD_BYTES: u64 = 4096;

/// Compare policies of prefetching on recorded runs, over five links.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of recorded runs.
    #[arg(long, value_name = "DIR", default_value = "predictor/traces")]
    pub traces: PathBuf,
    /// Only this application; may be given more than once.
    #[arg(long = "app", value_name = "NAME")]
    pub apps: Vec<String>,
    /// Write every outcome to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/replay.json")]
    pub json: PathBuf,
    /// Put the tables into the repository's README.md.
    #[arg(long)]
    pub write_readme: bool,
    /// Launch for real, too, and compare.
    #[arg(long)]
    pub validate: bool,
    /// With --validate: the application to launch; may be given more than once.
    #[arg(long, value_name = "APP", requires = "validate")]
    pub launch: Vec<App>,
    /// With --validate: launches of each kind, of which the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// With --validate: folder of trees to use instead of Debian packages.
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
    /// With --validate: where root filesystems are kept.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub cache: PathBuf,
    /// With --validate: where homes are while they are measured.
    #[arg(long, value_name = "DIR", default_value = "target/bench/work")]
    pub work: PathBuf,
    /// With --validate: folder of `turbo` and `turbo-registry`, if they are not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    /// One bucket after the other.
    None,
    /// With each bucket the 32 that follow it: half a mebibyte, as others fetch.
    Readahead,
    /// Turbo without a model and without guesses: `turbo run --on-demand`.
    OnDemand,
    /// Whole files in first-touch order: eStargz, nydus.
    Files,
    /// Exactly what was touched, in first-touch order: overlaybd, and nydus' newer traces.
    Buckets,
    /// Turbo with a model of the previous version, where there is one.
    Previous,
    /// Turbo.
    Ours,
    /// The best that is possible.
    Oracle,
}

impl Way {
    pub(crate) const ALL: [Self; 8] = [Self::None, Self::Readahead, Self::OnDemand, Self::Files, Self::Buckets, Self::Previous, Self::Ours, Self::Oracle];
}

/// The outcomes of one application over one link under one policy, added up over the runs that are scored.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cell<'a> {
    pub(crate) app: &'a str,
    pub(crate) link: &'static str,
    pub(crate) way: Way,
    /// Runs.
    pub(crate) launches: u64,
    pub(crate) sum: Outcome,
    /// Touches of what some run for training touched, and those of them that had to be asked for.
    pub(crate) trained_touches: u64,
    pub(crate) trained_misses: u64,
}

/// Simulates and prints.
///
/// # Errors
/// If the recorded runs cannot be read, or with `--validate` a launch fails.
pub fn run(args: &Args) -> Result<()> {
    if args.validate {
        return validate::run(args);
    }
    let mut all = Recorded::load(&args.traces)?;
    let models: Vec<(String, Arc<Model>)> = all.values().map(|recorded| (recorded.name.clone(), recorded.model())).collect();
    all.retain(|name, _| args.apps.is_empty() || args.apps.contains(name));
    ensure!(!all.is_empty(), "there is no recorded run of such an application");
    let mut cells = Vec::new();
    for recorded in all.values() {
        let before = recorded.name.strip_suffix("-2").and_then(|name| models.iter().find(|(other, _)| other == name));
        let model = models.iter().find(|(name, _)| *name == recorded.name).map(|(_, model)| Arc::clone(model)).unwrap_or_default();
        let subject = Subject::new(recorded, model, before.map(|(_, model)| &**model));
        for link in LINKS {
            cells.extend(Way::ALL.into_iter().filter_map(|way| subject.cell(link, way)));
        }
    }
    write_json(&args.json, &cells)?;
    println!("{}", table::whole(&cells));
    let summary = table::summary(&cells);
    print!("{summary}");
    if args.write_readme {
        write_readme("replay", &summary)?;
    }
    Ok(())
}

/// How a link is used by a launch whose model has to travel.
pub(crate) fn setup(model: Option<&Model>) -> Setup {
    let model_bytes = model.and_then(|model| zstd::bulk::compress(&model.encode(), 3).ok()).map_or(0, |bytes| bytes.len() as u64);
    Setup { head_bytes: HEAD_BYTES + model_bytes, ..Setup::default() }
}

struct Subject<'a> {
    recorded: &'a Recorded,
    model: Arc<Model>,
    previous: Option<Arc<Model>>,
    buckets: Vec<Place>,
    files: Vec<Place>,
    trained: HashSet<Place>,
}

impl<'a> Subject<'a> {
    fn new(recorded: &'a Recorded, model: Arc<Model>, before: Option<&Model>) -> Self {
        let first = recorded.train.first();
        let image = recorded.score.first().map(|trace| trace.image);
        let previous = before.zip(image).map(|(model, image)| Arc::new(carry_over(model, image, &Params::default(), |_, _, _| Carried::Same)));
        let buckets = first.map(first_touches).unwrap_or_default();
        let files = first.map(|trace| whole_files(trace, &recorded.travel)).unwrap_or_default();
        Self { recorded, model, previous, buckets, files, trained: recorded.train.iter().flat_map(first_touches).collect() }
    }

    fn cell(&self, link: NamedLink, way: Way) -> Option<Cell<'a>> {
        let ours = |model| Policy::Ours { model, successors: SUCCESSORS, metered: false };
        let (policy, setup) = match way {
            Way::None => (Policy::None, setup(None)),
            Way::Readahead => (Policy::Readahead { buckets: 32 }, setup(None)),
            Way::OnDemand => (Policy::OnDemand, setup(None)),
            Way::Files => (Policy::StaticList(&self.files), setup(None)),
            Way::Buckets => (Policy::StaticList(&self.buckets), setup(None)),
            Way::Previous => (ours(self.previous.as_ref()?), setup(self.previous.as_deref())),
            Way::Ours => (ours(&self.model), setup(Some(&self.model))),
            Way::Oracle => (Policy::Oracle, setup(None)),
        };
        let mut cell = Cell { app: &self.recorded.name, link: link.name, way, launches: 0, sum: Outcome::default(), trained_touches: 0, trained_misses: 0 };
        for trace in &self.recorded.score {
            let outcome = replay_and_tell(trace, link.link, &setup, &self.recorded.travel, &policy, |touched| {
                if touched.places.iter().all(|place| self.trained.contains(place)) {
                    cell.trained_touches += 1;
                    cell.trained_misses += u64::from(touched.missed);
                }
            });
            cell.launches += 1;
            add(&mut cell.sum, &outcome);
        }
        Some(cell)
    }
}

/// Adds all that adds up; of the worst miss, the worst, and of the mean, the mean over all misses.
pub(crate) fn add(sum: &mut Outcome, more: &Outcome) {
    let waited = sum.mean_miss_us * sum.misses + more.mean_miss_us * more.misses;
    sum.launch_us += more.launch_us;
    sum.stall_us += more.stall_us;
    sum.touches += more.touches;
    sum.hits += more.hits;
    sum.late += more.late;
    sum.misses += more.misses;
    sum.worst_miss_us = sum.worst_miss_us.max(more.worst_miss_us);
    sum.mean_miss_us = waited.checked_div(sum.misses).unwrap_or(0);
    sum.sent_bytes += more.sent_bytes;
    sum.wasted_bytes += more.wasted_bytes;
}
