//! What models are worth on recorded runs of real applications: they learn from some runs, and are scored on others.
//! Everything here is simulated, so every number is the same on every machine.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use layer_format::trace::Trace;
use predictor::replay::{LINKS, Outcome, Place, Policy, Setup, Travel, first_touches, replay, replay_and_tell, whole_files};
use predictor::{Model, Params, learn};

const SUCCESSORS: usize = 64;

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
    let (mut trained, mut missed) = (0u64, 0u64);
    let mut report = String::new();
    for (name, application) in &applications() {
        let model = taught(&application.train);
        let setup = setup(&model);
        let known: HashSet<Place> = application.train.iter().flat_map(first_touches).collect();
        for named in LINKS {
            let (mut of, mut missed_here, mut sent, mut wasted) = (0u64, 0u64, 0, 0);
            for trace in &application.score {
                let policy = Policy::Ours { model: &model, successors: SUCCESSORS, metered: false };
                let outcome = replay_and_tell(trace, named.link, &setup, &application.travel, &policy, |touched| {
                    if known.contains(touched.place) {
                        of += 1;
                        missed_here += u64::from(touched.missed);
                    }
                });
                sent += outcome.sent_bytes;
                wasted += outcome.wasted_bytes;
            }
            let (hit_rate, waste) = (1.0 - missed_here as f64 / of as f64, wasted as f64 / (sent - wasted) as f64);
            report += &format!("{name} {}: hit rate {hit_rate:.4} on trained paths, waste {waste:.3}\n", named.name);
            trained += of;
            missed += missed_here;
        }
    }
    println!("{report}");
    assert!(trained > 0 && missed * 100 <= trained * 3, "{missed} of {trained} trained touches missed\n{report}");
}

#[test]
fn a_model_stalls_a_launch_no_longer_than_the_lists_of_other_systems() {
    let mut report = String::new();
    let mut worse = Vec::new();
    for (name, application) in &applications() {
        let model = taught(&application.train);
        let lists = [first_touches(&application.train[0]), whole_files(&application.train[0], &application.travel)];
        for named in LINKS {
            let total = |setup: Setup, policy: &Policy<'_>| {
                let outcomes = application.score.iter().map(|trace| replay(trace, named.link, &setup, &application.travel, policy));
                outcomes.map(|outcome: Outcome| outcome.stall_us).sum::<u64>()
            };
            let ours = total(setup(&model), &Policy::Ours { model: &model, successors: SUCCESSORS, metered: false });
            let listed = lists.each_ref().map(|list| total(Setup::default(), &Policy::StaticList(list)));
            let none = total(Setup::default(), &Policy::None);
            let oracle = total(Setup::default(), &Policy::Oracle);
            report += &format!("{name} {}: oracle {oracle} ours {ours} buckets {} files {} none {none}\n", named.name, listed[0], listed[1]);
            if ours > listed[0].min(listed[1]) {
                worse.push(format!("{name} {}", named.name));
            }
        }
    }
    println!("{report}");
    assert!(worse.is_empty(), "{worse:?}\n{report}");
}
