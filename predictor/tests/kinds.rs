//! What telling kinds of launches apart is worth, on recorded runs of real applications: each application's runs come back several times, so
//! each is a kind of its own, and is then launched once more. Everything is simulated, so every number is the same on every machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use layer_format::model::{LaunchItem, Variant};
use layer_format::trace::Trace;
use predictor::replay::{LINKS, Policy, Setup, Travel, replay};
use predictor::{Model, Params, learn};

/// The runs of an application and how its content travels.
fn recorded(name: &str) -> (Vec<Trace>, Travel) {
    let (mut traces, mut travel) = (Vec::new(), Travel::default());
    let mut paths: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("traces")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "zst")) {
        let parts: Vec<&str> = path.file_name().unwrap().to_str().unwrap().split('.').collect();
        if parts[0] == name {
            let bytes = zstd::decode_all(&std::fs::read(path).unwrap()[..]).unwrap();
            match parts[1] {
                "sizes" => travel = Travel::decode(&bytes).unwrap(),
                _ => traces.push(Trace::decode(&bytes).unwrap()),
            }
        }
    }
    assert!(traces.len() >= 4, "{name}");
    (traces, travel)
}

/// The same model with all launches of an entry point as one kind.
fn of_one_kind(model: &Model) -> Model {
    let mut model = model.clone();
    for entry in &mut model.entry_points {
        let mut all: BTreeMap<u32, (f32, f64)> = BTreeMap::new();
        for item in entry.items() {
            let (count, time) = all.entry(item.state).or_default();
            *count += item.count;
            *time += f64::from(item.count) * f64::from(item.time_us);
        }
        let mut launch: Vec<LaunchItem> =
            all.into_iter().map(|(state, (count, time))| LaunchItem { state, count, time_us: (time / f64::from(count)) as u32 }).collect();
        launch.sort_by_key(|item| (item.time_us, item.state));
        entry.variants = vec![Variant { weight: entry.weight(), launches: entry.launches, launch }];
    }
    model
}

#[test]
fn a_kind_of_launch_that_came_back_is_sent_without_what_the_others_touch() {
    let mut report = String::new();
    let mut totals = BTreeMap::new();
    for name in ["batch", "gcc", "node", "scipy", "shell"] {
        let (traces, travel) = recorded(name);
        let mut model = Model::default();
        for trace in traces.iter().cycle().take(3 * traces.len()) {
            learn(&mut model, trace, &Params::default());
        }
        let models = [of_one_kind(&model), model].map(Arc::new);
        for named in LINKS {
            let sums = models.each_ref().map(|model| {
                let policy = Policy::Ours { model, successors: 256, metered: false };
                let outcomes = traces.iter().map(|trace| replay(trace, named.link, &Setup::default(), &travel, &policy));
                outcomes.fold((0, 0, 0), |sum, outcome| (sum.0 + outcome.stall_us, sum.1 + outcome.wasted_bytes, sum.2 + outcome.sent_bytes))
            });
            report += &format!(
                "{name} {}: stall {} instead of {} µs, waste {} instead of {} of {} bytes\n",
                named.name, sums[1].0, sums[0].0, sums[1].1, sums[0].1, sums[0].2
            );
            let total: &mut [(u64, u64); 2] = totals.entry(named.name).or_default();
            for (total, sum) in total.iter_mut().zip(sums) {
                *total = (total.0 + sum.0, total.1 + sum.1);
            }
        }
    }
    println!("{report}{totals:?}");
    for (link, [one, several]) in totals {
        // On the longest link all is on its way before the first touch tells anything.
        assert!(several.0 <= one.0 && several.1 <= one.1, "{link}: {several:?} with kinds, {one:?} without\n{report}");
        let is_slow_enough_to_tell = link == "metro" || link == "edge";
        assert!(!is_slow_enough_to_tell || several.1 * 2 < one.1, "{link}: {several:?} with kinds, {one:?} without\n{report}");
    }
}
