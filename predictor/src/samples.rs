//! Traces for tests, and what must be true of every model.

use std::collections::{BTreeMap, HashMap};

use layer_format::model::{MAX_VARIANTS, Model};
use layer_format::trace::{Event, Source, Touch, Trace};
use layer_format::{Digest, LayerPath};
use proptest::prelude::*;

use crate::Params;

/// A first touch: time, process, path, bucket (`None`: metadata).
pub(crate) type Step<'a> = (u64, u16, &'a str, Option<u32>);

pub(crate) fn touch(bucket: Option<u32>) -> Touch {
    bucket.map_or(Touch::Meta, |bucket| Touch::Data { bucket })
}

pub(crate) fn trace(entry_point: &str, steps: &[Step<'_>]) -> Trace {
    let mut paths: Vec<LayerPath> = Vec::new();
    let mut numbers: HashMap<LayerPath, usize> = HashMap::new();
    let mut events = Vec::new();
    for (time_us, process, path, bucket) in steps {
        let path = LayerPath::new(*path).unwrap();
        let at = *numbers.entry(path).or_insert_with_key(|path| {
            paths.push(path.clone());
            paths.len() - 1
        });
        let source = [Source::Local, Source::Prefetched, Source::Missed][events.len() % 3];
        events.push(Event { time_us: *time_us, process: *process, layer: 0, path: at as u32, touch: touch(*bucket), source });
    }
    let duration_us = events.last().map_or(0, |event| event.time_us);
    Trace { image: Digest::of(entry_point.as_bytes()), entry_point: entry_point.into(), architecture: "x86_64".into(), duration_us, paths, events }
}

/// Metadata of each path by one process, a millisecond apart.
pub(crate) fn walk(entry_point: &str, paths: &[&str]) -> Trace {
    let steps: Vec<Step<'_>> = (1u64..).zip(paths).map(|(at, path)| (1000 * at, 0, *path, None)).collect();
    trace(entry_point, &steps)
}

/// Any trace with honest times: few names, so that traces overlap.
pub(crate) fn any_trace() -> impl Strategy<Value = Trace> {
    let step = (0u64..50_000, 0u16..4, 0usize..40, proptest::option::of(0u32..3));
    (0usize..3, proptest::collection::vec(step, 0..60)).prop_map(|(entry, steps)| {
        let names: Vec<String> = (0..40).map(|n| format!("d{}/f{n}", n % 5)).collect();
        let mut time_us = 0;
        let steps: Vec<Step<'_>> = steps
            .iter()
            .map(|(gap, process, name, bucket)| {
                time_us += gap;
                (time_us, *process, names[*name].as_str(), *bucket)
            })
            .collect();
        trace(["serve", "migrate", "sh"][entry], &steps)
    })
}

/// A model in terms that do not depend on its numbering.
pub(crate) type Counts = BTreeMap<String, f32>;

pub(crate) fn name(model: &Model, state: u32) -> String {
    let state = model.states[state as usize];
    format!("{}{}#{}", state.layer, model.paths[state.path as usize], state.touch.to_number())
}

/// All counts of a model by what they count; of an entry point those of all its variants together.
pub(crate) fn counts(model: &Model) -> Counts {
    let mut counts = Counts::new();
    for entry in &model.entry_points {
        counts.insert(format!("{}/{}", entry.name, entry.architecture), entry.weight());
        for item in entry.items() {
            *counts.entry(format!("{}/{}: {}", entry.name, entry.architecture, name(model, item.state))).or_default() += item.count;
        }
    }
    counts.extend(transitions(model));
    counts
}

/// All counts of transitions.
pub(crate) fn transitions(model: &Model) -> Counts {
    let order1 = model.order1.iter().map(|step| (format!("{} > {}", name(model, step.from), name(model, step.to)), step.count));
    let order2 = model.order2.iter().map(|step| (format!("{} > {} > {}", name(model, step.before), name(model, step.from), name(model, step.to)), step.count));
    order1.chain(order2).collect()
}

/// What is true of every model that comes out of this crate.
pub(crate) fn check(model: &Model, params: &Params) {
    let bytes = model.encode();
    assert_eq!(Model::decode(&bytes).as_ref(), Ok(model));
    assert!(bytes.len() <= params.max_model_bytes, "{} bytes", bytes.len());
    assert!(model.states.len() <= params.max_states && model.entry_points.len() <= params.max_entry_points);
    assert!(model.order1.len() <= params.max_transitions && model.order2.len() <= params.max_transitions);
    assert!(model.paths.is_sorted_by(|a, b| a < b) && model.states.is_sorted_by(|a, b| a < b));
    assert!(model.entry_points.is_sorted_by(|a, b| (&a.name, &a.architecture) < (&b.name, &b.architecture)));
    assert!(model.order1.is_sorted_by(|a, b| (a.from, a.to) < (b.from, b.to)) && model.order1.iter().all(|step| step.before == step.from));
    assert!(model.order2.is_sorted_by(|a, b| (a.before, a.from, a.to) < (b.before, b.from, b.to)));
    let mut used: Vec<u32> = model.states.iter().map(|state| state.path).collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), model.paths.len(), "every path is some state's");
    for entry in &model.entry_points {
        assert!((1..=MAX_VARIANTS).contains(&entry.variants.len()) && entry.variants.is_sorted_by(|a, b| a.weight >= b.weight));
        for variant in &entry.variants {
            assert!(variant.launch.is_sorted_by(|a, b| (a.time_us, a.state) < (b.time_us, b.state)));
            assert!(variant.launch.iter().all(|item| item.count > 0.0 && item.count <= variant.weight));
        }
    }
    assert!(model.order1.iter().chain(&model.order2).all(|step| step.count > 0.0));
}

/// The model of these launches, with the usual bounds.
pub(crate) fn taught(traces: &[Trace]) -> Model {
    let mut model = Model::default();
    traces.iter().for_each(|trace| crate::learn(&mut model, trace, &Params::default()));
    model
}
