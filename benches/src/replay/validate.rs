//! How far the simulation is from real launches: the launches of [`crate::launch`] over the emulated link, beside what the
//! simulator says that they take.
//!
//! The simulator gets a recorded run with everything local, what travels for it, and the model; none of the times
//! measured over the link. What a launch spends besides (starting and ending `turbo`, mounts) is what the launch where all
//! is local takes beyond its trace.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use predictor::replay::{Link, Policy, replay};
use predictor::{Model, Params, learn};

use super::{Args, SUCCESSORS, setup};
use crate::app::App;
use crate::launch::{self, Prepared, Series, Way};
use crate::place::LinkKind;
use crate::traces;
use crate::turbo::Tools;

/// How far a prediction may be off.
const TOLERANCE: f64 = 0.15;
/// Runs that models learn from.
const LESSONS: u32 = 3;
/// Ways that are compared.
const WAYS: [Way; 3] = [Way::Model, Way::Plain, Way::Wrong];

pub(super) fn run(args: &Args) -> Result<()> {
    let tools = Tools::find(args.bin_dir.as_deref())?;
    let apps = if args.launch.is_empty() { App::ALL.to_vec() } else { args.launch.clone() };
    fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let work = tempfile::Builder::new().prefix("validate-").tempdir_in(&args.work).context("cannot create a folder for homes")?;
    let launch_args = launch::Args {
        dataset: args.dataset.clone(),
        apps: Vec::new(),
        rtts_ms: Vec::new(),
        ways: WAYS.to_vec(),
        rounds: args.rounds,
        slow_rounds: 1,
        lessons: LESSONS,
        cache: args.cache.clone(),
        work: args.work.clone(),
        bin_dir: args.bin_dir.clone(),
        json: PathBuf::new(),
        write_readme: false,
    };
    println!("| application | link | launch | measured s | predicted s | error |\n|---|---|---|---|---|---|");
    let (mut count, mut within) = (0, 0);
    for app in apps {
        let prepared = Prepared::new(app, &tools, &launch_args, work.path()).with_context(|| format!("preparing {}", app.name()))?;
        let simulation = Simulation::new(&prepared)?;
        for link in LinkKind::ALL {
            let series = prepared.measure(&tools, link, &launch_args, work.path())?;
            for way in WAYS {
                let (measured, predicted) = (series.seconds(way), simulation.seconds(link, way, &series));
                let error = predicted / measured - 1.0;
                count += 1;
                within += u32::from(error.abs() <= TOLERANCE);
                println!("| {} | {} | {way:?} | {measured:.2} | {predicted:.2} | {:+.0} % |", app.name(), link.label(), 100.0 * error);
            }
        }
    }
    println!("\n{within} of {count} predictions are within {:.0} %", 100.0 * TOLERANCE);
    Ok(())
}

struct Simulation<'a> {
    prepared: &'a Prepared,
    travel: predictor::replay::Travel,
    model: Arc<Model>,
    wrong: Arc<Model>,
}

impl<'a> Simulation<'a> {
    fn new(prepared: &'a Prepared) -> Result<Self> {
        let trace = &prepared.versions[0].trace;
        let wrong = launch::wrong::model(prepared.root(), trace)?;
        let mut model = Model::default();
        (0..LESSONS).for_each(|_| learn(&mut model, trace, &Params::default()));
        // What the wrong model names has to have a size too.
        let named = launch::wrong::trace(prepared.root(), trace)?;
        let travel = traces::sizes::of(prepared.root(), &[trace.clone(), named])?;
        Ok(Self { prepared, travel, model: Arc::new(model), wrong: Arc::new(wrong) })
    }

    fn seconds(&self, link: LinkKind, way: Way, series: &Series) -> f64 {
        let trace = &self.prepared.versions[0].trace;
        let ours = |model| Policy::Ours { model, successors: SUCCESSORS, metered: false };
        let (policy, model) = match way {
            Way::Model => (ours(&self.model), Some(&*self.model)),
            Way::Wrong => (ours(&self.wrong), Some(&*self.wrong)),
            _ => (Policy::OnDemand, None),
        };
        let simulated = Link { round_trip_us: link.rtt.as_micros() as u64, bytes_per_s: link.rate_bps / 8 };
        // Headers of IP and TCP take their part of the rate.
        let simulated = Link { bytes_per_s: simulated.bytes_per_s * 1448 / 1500, ..simulated };
        let outcome = replay(trace, simulated, &setup(model), &self.travel, &policy);
        let besides = series.seconds(Way::Warm) - trace.duration_us as f64 / 1e6;
        outcome.launch_us as f64 / 1e6 + besides.max(0.0)
    }
}
