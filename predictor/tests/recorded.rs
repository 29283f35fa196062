//! What models are worth on recorded runs of real applications: they learn from some runs, and are scored on others.
//! Everything here is simulated, so every number is the same on every machine.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use layer_format::trace::Trace;
use predictor::replay::{LINKS, Outcome, Place, Policy, Setup, Travel, first_touches, replay, replay_and_tell, whole_files};
use predictor::{Carried, Model, Params, carry_over, learn};

const SUCCESSORS: usize = 256;

#[derive(Default)]
struct Application {
    train: Vec<Trace>,
    score: Vec<Trace>,
    travel: Travel,
}

fn applications() -> BTreeMap<String, Application> {
    let mut all: BTreeMap<String, Application> = BTreeMap::new();
    let mut paths: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("traces")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "zst")) {
        let bytes = zstd::decode_all(&fs::read(path).unwrap()[..]).unwrap();
        let name: Vec<&str> = path.file_name().unwrap().to_str().unwrap().split('.').collect();
        let application = all.entry(name[0].to_owned()).or_default();
        match name[1] {
            "train" => application.train.push(Trace::decode(&bytes).unwrap()),
            "score" => application.score.push(Trace::decode(&bytes).unwrap()),
            "sizes" => application.travel = Travel::decode(&bytes).unwrap(),
            _ => panic!("{} is none of the three kinds", path.display()),
        }
    }
    all
}

/// Without the second versions, whose runs differ little from those of the first: so the tests take half the time.
fn first_versions() -> BTreeMap<String, Application> {
    let mut all = applications();
    all.retain(|name, _| !name.ends_with("-2"));
    all
}

fn taught(traces: &[Trace]) -> Arc<Model> {
    let mut model = Model::default();
    traces.iter().for_each(|trace| learn(&mut model, trace, &Params::default()));
    Arc::new(model)
}

fn setup(model: &Model) -> Setup {
    Setup { head_bytes: 4096 + model.encode().len() as u64, ..Setup::default() }
}

#[test]
fn there_are_runs_of_at_least_eight_applications_and_all_that_they_touch_has_a_size() {
    let all = applications();
    assert!(all.len() >= 8, "{:?}", all.keys());
    for (name, application) in &all {
        assert!(application.train.len() >= 2 && application.score.len() >= 2, "{name}");
        for trace in application.train.iter().chain(&application.score) {
            assert!(first_touches(trace).iter().all(|place| application.travel.needed(place).next().is_some()), "{name}");
            let home = trace.paths.iter().any(|path| path.as_bytes().starts_with(b"work/") || path.as_bytes().starts_with(b"home/"));
            assert!(!home, "{name}: no path of the machine that recorded");
        }
    }
}

#[test]
fn what_earlier_runs_touched_is_there_in_time_and_little_is_sent_in_vain() {
    let applications = first_versions();
    let models: Vec<_> = applications.values().map(|application| taught(&application.train)).collect();
    let known: Vec<HashSet<Place>> = applications.values().map(|application| application.train.iter().flat_map(first_touches).collect()).collect();
    let mut report = String::new();
    for named in LINKS {
        let (mut all_sent, mut all_wasted) = (0, 0);
        for (((name, application), model), known) in applications.iter().zip(&models).zip(&known) {
            let (mut touches, mut missed, mut sent, mut wasted) = (0u64, 0u64, 0, 0);
            for trace in &application.score {
                let policy = Policy::Ours { model, successors: SUCCESSORS, metered: false };
                let outcome = replay_and_tell(trace, named.link, &setup(model), &application.travel, &policy, |touched| {
                    if touched.places.iter().all(|place| known.contains(place)) {
                        touches += 1;
                        missed += u64::from(touched.missed);
                    }
                });
                sent += outcome.sent_bytes;
                wasted += outcome.wasted_bytes;
            }
            let (hit_rate, waste) = (1.0 - missed as f64 / touches as f64, wasted as f64 / (sent - wasted) as f64);
            report += &format!("{name} {}: hit rate {hit_rate:.4} on trained paths, waste {waste:.3}\n", named.name);
            assert!(hit_rate >= 0.97, "{report}");
            // Of a few runs that differ, what one alone touched is worth sending on a long link, and often in vain.
            assert!(waste <= 0.35, "{report}");
            all_sent += sent;
            all_wasted += wasted;
        }
        let waste = all_wasted as f64 / (all_sent - all_wasted) as f64;
        report += &format!("all {}: waste {waste:.3}\n", named.name);
        assert!(waste <= 0.2, "{report}");
    }
    println!("{report}");
}

#[test]
fn a_model_stalls_launches_less_than_the_lists_of_other_systems() {
    let applications = first_versions();
    let models: Vec<_> = applications.values().map(|application| taught(&application.train)).collect();
    let mut report = String::new();
    for named in LINKS {
        let mut totals = [0u64; 4];
        for ((name, application), model) in applications.iter().zip(&models) {
            let lists = [first_touches(&application.train[0]), whole_files(&application.train[0], &application.travel)];
            let total = |setup: Setup, policy: &Policy<'_>| {
                let outcomes = application.score.iter().map(|trace| replay(trace, named.link, &setup, &application.travel, policy));
                outcomes.map(|outcome: Outcome| outcome.stall_us).sum::<u64>()
            };
            let ours = total(setup(model), &Policy::Ours { model, successors: SUCCESSORS, metered: false });
            let [buckets, files] = lists.each_ref().map(|list| total(Setup::default(), &Policy::StaticList(list)));
            let none = total(Setup::default(), &Policy::OnDemand);
            report += &format!("{name} {}: ours {ours} buckets {buckets} files {files} on demand {none}\n", named.name);
            // The model has to arrive before what it predicts, which a list in the image need not: up to 5 % or 10 ms.
            assert!(ours <= buckets + (buckets / 20).max(10_000), "{report}");
            assert!(ours < none, "{report}");
            for (total, of) in totals.iter_mut().zip([ours, buckets, files, none]) {
                *total += of;
            }
        }
        let [ours, buckets, files, none] = totals;
        report += &format!("all {}: ours {ours} buckets {buckets} files {files} on demand {none}\n", named.name);
        assert!(ours <= buckets.min(files), "{report}");
    }
    println!("{report}");
}

#[test]
fn a_model_of_the_version_before_is_worth_much_of_a_new_one() {
    let applications = applications();
    // The update moved what is in Java's one large file of classes, and half of what was learned is of buckets of that file.
    for (before, after, most) in [("scipy", "scipy-2", 1.1), ("java", "java-2", 2.0)] {
        let (old, new) = (&applications[before], &applications[after]);
        let carried = Arc::new(carry_over(&taught(&old.train), new.score[0].image, &Params::default(), |_, _, _| Carried::Same));
        let same = taught(&new.train);
        for named in LINKS {
            let total =
                |setup: Setup, policy: &Policy<'_>| new.score.iter().map(|trace| replay(trace, named.link, &setup, &new.travel, policy).launch_us).sum::<u64>();
            let ours = |model: &Arc<Model>| total(setup(model), &Policy::Ours { model, successors: SUCCESSORS, metered: false });
            let (carried, same, none) = (ours(&carried), ours(&same), total(Setup::default(), &Policy::OnDemand));
            assert!(carried as f64 <= most * same as f64 && carried < none, "{after} {}: {carried}, with its own model {same}, without {none}", named.name);
        }
    }
}
