//! What can go wrong.

use super::*;
use crate::launch_list;
use crate::samples::{Step, any_trace, check, counts, name, trace, transitions, walk};
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
        &[(10, 0, "bin/app", None), (10, 0, "bin/app", Some(0)), (900, 1, "lib/a.so", Some(3)), (950, 0, "etc/serve", None), (2000, 1, "lib/b.so", Some(0))],
    );
    let migrate = trace("migrate", &[(20, 0, "bin/app", None), (30, 0, "bin/app", Some(0)), (700, 0, "etc/migrate", None)]);
    let model = taught(&[serve.clone(), migrate, serve], &params);
    check(&model, &params);
    assert_eq!(model.entry_points.iter().map(|entry| (entry.name.as_str(), entry.weight())).collect::<Vec<_>>(), [("migrate", 0.5), ("serve", 1.25)]);
    assert_eq!(Digest::of(&model.encode()).to_hex(), "e71bb76ec15c02f5e7c502d16c578d0a1e3b18c4b69eaa945739fb513ede0fdd");
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
        let launch = trace("app", &steps);
        let in_turn = trace("app", &steps.iter().filter(|step| step.1 == 0).chain(steps.iter().filter(|step| step.1 == 1)).copied().collect::<Vec<_>>());
        let twice = taught(&[in_turn, launch.clone()], &Params::default());
        prop_assert_eq!(twice.entry_points[0].variants.len(), 1, "the same touches in another order are the same kind");
        let mixed = transitions(&taught(&[launch], &Params::default()));
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

#[test]
fn many_odd_launches_neither_take_the_place_of_honest_kinds_nor_all_of_the_room() {
    let params = Params { max_model_bytes: 60_000, ..Params::default() };
    let common: Vec<String> = (0..200).map(|n| format!("usr/lib/common{n}.so")).collect();
    let kind = |name: &str| -> Vec<String> { common.iter().cloned().chain((0..60).map(|n| format!("srv/{name}/{n}"))).collect() };
    let walked = |paths: &[String]| walk("app", &paths.iter().map(String::as_str).collect::<Vec<_>>());
    let (serve, migrate) = (walked(&kind("serve")), walked(&kind("migrate")));
    let odd = |n: u64| walked(&(0..400).map(|at| format!("odd/{:016x}/{at}", (n * 977 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect::<Vec<_>>());
    let mut model =
        taught(&[serve.clone(), migrate.clone(), serve.clone(), migrate.clone(), serve.clone(), migrate.clone(), serve.clone(), migrate.clone()], &params);
    let known = |model: &Model| {
        let variants = &model.entry_points[0].variants;
        let has = |variant: &layer_format::model::Variant, part: &str| {
            let sure = variant.launch.iter().filter(|item| item.count > 0.8 * variant.weight && name(model, item.state).contains(part));
            sure.count()
        };
        ["serve", "migrate"].map(|part| variants.iter().map(|variant| (has(variant, part), has(variant, "common"))).max().unwrap())
    };
    assert_eq!(known(&model), [(60, 200); 2]);
    // Forty in a row, each like no other; and then one in two.
    for n in 0..40 {
        learn(&mut model, &odd(n), &params);
    }
    check(&model, &params);
    assert_eq!(known(&model), [(60, 200); 2], "both kinds are there, apart and whole");
    for n in 40..60 {
        learn(&mut model, &odd(n), &params);
        learn(&mut model, if n % 2 == 0 { &serve } else { &migrate }, &params);
    }
    check(&model, &params);
    assert_eq!(known(&model), [(60, 200); 2]);
    // One odd kind again and again, of more than fits: it gets no more than is left.
    let large = walked(&(0..6000).map(|n| format!("odd/{:016x}", (n as u64 + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect::<Vec<_>>());
    for _ in 0..30 {
        learn(&mut model, &large, &params);
    }
    check(&model, &params);
    assert_eq!(known(&model), [(60, 200); 2]);
}

#[test]
fn what_is_learned_does_not_depend_on_how_much_was_learned_before() {
    // The bounds of a model bound the work of a lesson: nothing in a model that has learned more is larger.
    let params = Params { max_states: 400, ..Params::default() };
    let launch = |n: u64| {
        let names: Vec<String> = (0..150).map(|at| format!("lib/{}", (n * 31 + at * (1 + n % 5)) % 1000)).collect();
        walk("app", &names.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let size = |model: &Model| {
        let items: usize = model.entry_points.iter().flat_map(|entry| &entry.variants).map(|variant| variant.launch.len()).sum();
        items + model.states.len() + model.order1.len() + model.order2.len()
    };
    let mut model = Model::default();
    let mut largest = [0; 3];
    for n in 0..240 {
        learn(&mut model, &launch(n), &params);
        largest[n as usize / 80] = size(&model).max(largest[n as usize / 80]);
    }
    assert!(largest[2] <= largest[0].max(largest[1]) * 11 / 10, "{largest:?}");
}

#[test]
fn a_launch_of_more_than_a_model_holds_leaves_one_below_a_megabyte_with_what_is_surest() {
    let params = Params::default();
    let names: Vec<String> = (0..100_000).map(|n| format!("usr/lib/python3/dist-packages/package{}/module{}/file{n}.py", n / 2000, n / 40)).collect();
    let launch = |step: usize| walk("app", &names.iter().step_by(step).map(String::as_str).collect::<Vec<_>>());
    let mut model = taught(&[launch(1), launch(1)], &params);
    check(&model, &params);
    assert_eq!(model.entry_points[0].variants.len(), 1, "what was forgotten for want of room makes no other kind");
    // The next launches touch every tenth of them: these are what must be there.
    for _ in 0..3 {
        learn(&mut model, &launch(10), &params);
    }
    check(&model, &params);
    assert!(model.encode().len() <= 1_000_000 && model.states.len() > 20_000, "{} states", model.states.len());
    let surest = &model.entry_points[0].variants[0];
    assert_eq!(surest.launch.iter().filter(|item| item.count == surest.weight).count(), 10_000);
    assert_eq!(launch_list(&model, Some("app"), "x86_64").iter().filter(|item| item.probability > 0.6).count(), 10_000);
}
