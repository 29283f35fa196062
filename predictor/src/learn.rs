//! One trace, or another model, into a model.
//!
//! Learning is merging: a trace becomes a model of one launch, in which everything has the count 1, and that is merged
//! into the model of all launches before it. Their counts decay by one launch first. So learning traces one by one,
//! and merging models learned from parts of them in the same order, give the same counts; and one more trace costs
//! time in proportion to it and to the bounded model, however many came before.
//!
//! # What is learned of a trace
//! * Every first touch, whether it was local, prefetched or missed: a model that forgot what it prefetched would
//!   unlearn what it knows best.
//! * Transitions between neighbouring touches *of one process*; so how processes happened to interleave leaves no mark.
//!   Where a process begins, its first touch follows whatever was touched last before it, by whom ever: most likely
//!   its parent.
//!
//! # What a hostile trace can do
//! Each of its touches and transitions counts once, whatever it repeats; it brings at most as many states as a model
//! may have; and what it alone has seen takes a bounded share of a full model ([`Params::max_trace_share`]). Typical
//! times move by a bounded step.

use std::collections::{HashMap, HashSet};

use layer_format::model::Model;
use layer_format::trace::Trace;

use crate::draft::{Draft, DraftVariant, Keeps, Launches, Seen};
use crate::params::Params;
use crate::prune::prune;

/// Adds one launch to what `model` knows.
pub fn learn(model: &mut Model, trace: &Trace, params: &Params) {
    let params = params.bounded();
    *model = combine(model, &of_one(trace, &params), &params, params.max_trace_share);
}

/// Adds all that `other` learned, as if its launches came after those of `into`. Unlike a trace, `other` is trusted:
/// its counts are taken as they are.
pub fn merge(into: &mut Model, other: &Model, params: &Params) {
    *into = combine(into, other, &params.bounded(), 1.0);
}

fn combine(older: &Model, newer: &Model, params: &Params, new_share: f32) -> Model {
    let mut draft = Draft::new(older);
    draft.decay(params.decay(newer.traces));
    draft.add(newer, true);
    prune(&mut draft, params, new_share)
}

/// The last touches of a process.
#[derive(Clone, Copy)]
struct Last {
    before: Option<u32>,
    state: u32,
    time_us: u64,
}

/// The model of one launch; not pruned, but of at most [`Params::max_states`] states: the first ones.
fn of_one(trace: &Trace, params: &Params) -> Model {
    let mut draft = Draft::default();
    (draft.image, draft.traces) = (Some(trace.image), 1);
    let mut touched: Vec<(u32, u64)> = Vec::new();
    let mut seen_states: HashSet<u32> = HashSet::new();
    let mut processes: HashMap<u16, Last> = HashMap::new();
    let mut latest: Option<Last> = None;
    for event in &trace.events {
        let Some(path) = trace.paths.get(event.path as usize) else { continue };
        let state = draft.state(event.layer, path, event.touch);
        if !seen_states.insert(state) {
            continue;
        }
        touched.push((state, event.time_us));
        let own = processes.get(&event.process).copied();
        if let Some(last) = own.or(latest) {
            let time_us = u32::try_from(event.time_us.saturating_sub(last.time_us)).unwrap_or(u32::MAX);
            let seen = Seen { count: 1.0, time_us, is_new: true };
            draft.order1.insert([last.state, state], seen);
            if let Some(before) = last.before {
                draft.order2.insert([before, last.state, state], seen);
            }
        }
        let last = Last { before: own.map(|last| last.state), state, time_us: event.time_us };
        processes.insert(event.process, last);
        latest = Some(last);
        if touched.len() >= params.max_states {
            break;
        }
    }
    let items = ascending(&touched).map(|(state, time_us)| (state, Seen { count: 1.0, time_us, is_new: true })).collect();
    draft
        .entry_points
        .insert((trace.entry_point.clone(), trace.architecture.clone()), Launches { launches: 1, variants: vec![DraftVariant { weight: 1.0, items }] });
    let keeps = Keeps {
        states: vec![true; draft.states.len()],
        entry_points: draft.entry_points.keys().cloned().collect(),
        order1: draft.order1.keys().copied().collect(),
        order2: draft.order2.keys().copied().collect(),
    };
    draft.model(&keeps)
}

/// The times of touches in 32 bits, each at least a microsecond after the one before it: so the order of touches, also
/// of simultaneous ones, survives in the times.
fn ascending(touched: &[(u32, u64)]) -> impl Iterator<Item = (u32, u32)> {
    let mut earliest = 0u32;
    let last = u32::MAX - touched.len() as u32;
    (0u32..).zip(touched).map(move |(at, (state, time_us))| {
        let time_us = u32::try_from(*time_us).unwrap_or(u32::MAX).clamp(earliest, last.saturating_add(at));
        earliest = time_us + 1;
        (*state, time_us)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch_list;
    use crate::samples::{Step, any_trace, check, counts, trace, transitions, walk};
    use layer_format::Digest;
    use layer_format::LayerPath;
    use layer_format::trace::{Event, MAX_EVENTS, MAX_PATHS, Source, Touch};
    use proptest::prelude::*;

    fn taught(traces: &[Trace], params: &Params) -> Model {
        traces.iter().fold(Model::default(), |mut model, trace| {
            learn(&mut model, trace, params);
            model
        })
    }

    fn assert_close(one: &Model, other: &Model) {
        let (one, other) = (counts(one), counts(other));
        assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
        for (key, count) in &one {
            assert!((count - other[key]).abs() <= 1e-4 * count, "{key}: {count} and {}", other[key]);
        }
    }

    #[test]
    fn golden_learning() {
        // With this half-life all counts are exact on every machine.
        let params = Params { half_life: 1.0, ..Params::default() };
        let serve = trace(
            "serve",
            &[
                (10, 0, "bin/app", None),
                (10, 0, "bin/app", Some(0)),
                (900, 1, "lib/a.so", Some(3)),
                (950, 0, "etc/serve", None),
                (2000, 1, "lib/b.so", Some(0)),
            ],
        );
        let migrate = trace("migrate", &[(20, 0, "bin/app", None), (30, 0, "bin/app", Some(0)), (700, 0, "etc/migrate", None)]);
        let model = taught(&[serve.clone(), migrate, serve], &params);
        check(&model, &params);
        assert_eq!(model.entry_points.iter().map(|entry| (entry.name.as_str(), entry.weight())).collect::<Vec<_>>(), [("migrate", 0.5), ("serve", 1.25)]);
        assert_eq!(Digest::of(&model.encode()).to_hex(), "657d037dc3e079d0bc53624fc8f2b728f9576f8fed803e4fe2cf1527c0606496");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_launch_learned_once_is_listed_in_the_order_of_its_touches(trace in any_trace()) {
            let model = taught(std::slice::from_ref(&trace), &Params::default());
            let mut expected: Vec<(LayerPath, Touch)> = Vec::new();
            for event in &trace.events {
                let place = (trace.paths[event.path as usize].clone(), event.touch);
                if !expected.contains(&place) {
                    expected.push(place);
                }
            }
            let list = launch_list(&model, Some(&trace.entry_point), &trace.architecture);
            prop_assert!(list.iter().all(|item| item.probability == 1.0));
            prop_assert_eq!(list.into_iter().map(|item| (item.path, item.touch)).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn what_comes_out_keeps_every_bound(traces in proptest::collection::vec(any_trace(), 0..6), max_states in 0usize..60, max_transitions in 0usize..80, max_entry_points in 0usize..3, max_model_bytes in 60usize..3000) {
            let params = Params { half_life: 2.0, max_states, max_transitions, max_entry_points, max_model_bytes, ..Params::default() };
            let mut model = Model::default();
            for trace in &traces {
                learn(&mut model, trace, &params);
                check(&model, &params);
            }
            prop_assert_eq!(model.traces, traces.len() as u64);
            let mut other = taught(&traces, &Params::default());
            check(&other, &Params::default());
            merge(&mut other, &model, &params);
            check(&other, &params);
        }

        #[test]
        fn learning_at_once_and_in_parts_gives_the_same_counts(traces in proptest::collection::vec(any_trace(), 1..8), cut: proptest::sample::Index) {
            let params = Params { min_probability: 0.0, ..Params::default() };
            let (first, second) = traces.split_at(cut.index(traces.len()));
            let mut parts = taught(first, &params);
            merge(&mut parts, &taught(second, &params), &params);
            let whole = taught(&traces, &params);
            prop_assert_eq!((parts.traces, parts.image), (whole.traces, whole.image));
            assert_close(&parts, &whole);
        }

        #[test]
        fn interleaving_leaves_no_mark_within_processes(order in proptest::collection::vec(0usize..2, 0..40)) {
            let names: Vec<Vec<String>> = ["a", "b"].iter().map(|process| (0..20).map(|n| format!("{process}/{n}")).collect()).collect();
            let mut next = [0, 0];
            let mut steps: Vec<Step<'_>> = Vec::new();
            for process in order.into_iter().chain([0; 20]).chain([1; 20]) {
                if let Some(name) = names[process].get(next[process]) {
                    steps.push((100 * steps.len() as u64, process as u16, name, None));
                    next[process] += 1;
                }
            }
            let mixed = transitions(&taught(&[trace("app", &steps)], &Params::default()));
            let apart: Vec<_> = names.iter().map(|names| walk("app", &names.iter().map(String::as_str).collect::<Vec<_>>())).collect();
            let apart: Vec<_> = apart.iter().flat_map(|trace| transitions(&taught(std::slice::from_ref(trace), &Params::default()))).collect();
            prop_assert!(apart.iter().all(|(key, count)| mixed.get(key) == Some(count)));
            // Nothing else, but that the second process follows a touch of the first, after one or two of its touches.
            let begins: Vec<_> = mixed.keys().filter(|key| !apart.iter().any(|(known, _)| known == *key)).collect();
            prop_assert!(begins.len() <= 2 && begins.iter().all(|key| key.ends_with("> 0/b/0#0") || key.ends_with("> 0/a/0#0")), "{:?}", begins);
        }
    }

    #[test]
    fn what_is_no_longer_touched_halves_with_the_half_life_and_is_forgotten_in_the_end() {
        let params = Params::default();
        let mut model = taught(&[walk("app", &["bin/app", "old"])], &params);
        let new = walk("app", &["bin/app", "new"]);
        for _ in 0..20 {
            learn(&mut model, &new, &params);
        }
        assert!((counts(&model)["app/x86_64: 0/old#0"] - 0.5).abs() < 1e-4);
        assert!((counts(&model)["0/bin/app#0 > 0/old#0"] - 0.5).abs() < 1e-4);
        let list = launch_list(&model, Some("app"), "x86_64");
        assert_eq!(list.iter().map(|item| item.path.to_string()).collect::<Vec<_>>(), ["/bin/app", "/new", "/old"]);
        assert!(list[2].probability < 0.05);
        for _ in 0..200 {
            learn(&mut model, &new, &params);
        }
        assert!(!counts(&model).keys().any(|key| key.contains("old")));
    }

    #[test]
    fn launches_of_one_entry_point_do_not_make_another_less_sure() {
        let params = Params::default();
        let mut model = taught(&[walk("migrate", &["bin/app", "etc/migrate"])], &params);
        for _ in 0..100 {
            learn(&mut model, &walk("serve", &["bin/app", "etc/serve"]), &params);
        }
        let list = launch_list(&model, Some("migrate"), "x86_64");
        assert!(list.len() == 2 && list.iter().all(|item| item.probability == 1.0));
        for (asked, architecture) in [(None, "x86_64"), (Some("other"), "x86_64"), (Some("serve"), "riscv64")] {
            assert_eq!(launch_list(&model, asked, architecture)[1].path.to_string(), "/etc/serve", "the heaviest");
        }
    }

    #[test]
    fn a_model_that_has_learned_enough_does_not_grow() {
        let params = Params::default();
        let names: Vec<String> = (0..500).map(|n| format!("usr/lib/{n}.so")).collect();
        let launch = walk("app", &names.iter().map(String::as_str).collect::<Vec<_>>());
        let lens: Vec<usize> = [1, 10, 60].map(|times| taught(&vec![launch.clone(); times], &params).encode().len()).to_vec();
        assert!(lens.iter().all(|len| len.abs_diff(lens[0]) <= 4), "{lens:?}");
    }

    /// As many events and paths as a trace may have, at absurd times, in as many processes as there can be.
    fn hostile(entry_point: &str, seed: u64) -> Trace {
        let noise = |n: u64| format!("{:032x}", u128::from(n + seed).wrapping_mul(0x2d99_787a_f1e5_7c15_9e37_79b9_7f4a_7c15));
        let paths = (0..MAX_PATHS as u64).map(|n| LayerPath::new(format!("{}/{n}", &noise(n)[..(n % 32 + 1) as usize])).unwrap()).collect();
        let event = |n: usize| Event {
            time_us: if n == 0 { 0 } else { u64::MAX >> 8 },
            process: (n * 7) as u16,
            layer: n as u8,
            path: (n % MAX_PATHS) as u32,
            touch: Touch::Data { bucket: n as u32 * 12345 },
            source: Source::Missed,
        };
        let events = (0..MAX_EVENTS).map(event).collect();
        Trace { image: Digest::of(b"hostile"), entry_point: entry_point.into(), architecture: "x86_64".into(), duration_us: u64::MAX >> 8, paths, events }
    }

    #[test]
    fn a_hostile_trace_neither_bursts_a_model_nor_replaces_what_honest_ones_taught() {
        // A quarter of the usual bounds, so that the test is quick.
        let params = Params { max_states: 1 << 14, max_model_bytes: 250_000, ..Params::default() };
        let names: Vec<String> = (0..2250).map(|n| format!("usr/lib/python3/dist-packages/module{}/file{n}.py", n / 20)).collect();
        let honest = walk("app", &names.iter().map(String::as_str).collect::<Vec<_>>());
        let mut model = taught(&vec![honest.clone(); 3], &params);
        let before = launch_list(&model, Some("app"), "x86_64");
        learn(&mut model, &hostile("app", 1), &params);
        check(&model, &params);
        let after = launch_list(&model, Some("app"), "x86_64");
        let sure: Vec<_> = after.iter().filter(|item| item.probability > 0.5).collect();
        assert_eq!(sure.len(), before.len(), "all that honest traces taught is there, and is what is sure");
        assert!(sure.iter().zip(&before).all(|(now, before)| now.path == before.path && now.time_us.abs_diff(before.time_us) <= 1));
        // What a single honest launch taught is the least valuable thing after two hostile ones, which fill all the room
        // there is: the second takes its share of it, and no more.
        let mut model = taught(&[honest.clone(), hostile("app", 2)], &params);
        check(&model, &params);
        learn(&mut model, &hostile("app", 3), &params);
        let kept = launch_list(&model, Some("app"), "x86_64").iter().filter(|item| item.path.to_string().starts_with("/usr")).count();
        assert!(kept >= 1100, "{kept} of 2250");
        // And the next honest launch is learned.
        learn(&mut model, &honest, &params);
        let kept = launch_list(&model, Some("app"), "x86_64").iter().filter(|item| item.path.to_string().starts_with("/usr")).count();
        assert_eq!(kept, 2250);
        check(&model, &params);
    }

    #[test]
    fn an_absurd_time_moves_a_touch_little() {
        let params = Params::default();
        let mut model = taught(&vec![walk("app", &["a", "b", "c"]); 20], &params);
        learn(&mut model, &trace("app", &[(u64::MAX >> 9, 0, "a", None), (u64::MAX >> 8, 0, "b", None), (u64::MAX >> 8, 0, "c", None)]), &params);
        let times: Vec<u32> = launch_list(&model, Some("app"), "x86_64").iter().map(|item| item.time_us).collect();
        assert!(times.iter().all(|time_us| *time_us < 20_000), "{times:?}");
    }

    #[test]
    fn a_trace_that_names_nothing_teaches_nothing() {
        let mut wrong = walk(&"é".repeat(2000), &["a", "b"]);
        wrong.events.iter_mut().for_each(|event| event.path = 7);
        let model = taught(&[wrong], &Params::default());
        check(&model, &Params::default());
        assert!(model.states.is_empty());
    }
}
