//! Small launches reckoned by hand, and large ones at random.

use std::collections::BTreeMap;

use layer_format::trace::Touch;
use layer_format::{Digest, LayerPath};
use proptest::prelude::*;

use super::*;
use crate::samples::{any_trace, trace, walk};
use crate::{Params, learn};

/// 10 ms there and back, a byte a microsecond.
const LINK: Link = Link { round_trip_us: 10_000, bytes_per_s: 1_000_000 };

fn place(path: &str, touch: Touch) -> Place {
    Place { layer: 0, path: LayerPath::new(path).unwrap(), touch }
}

fn list(paths: &[&str]) -> Vec<Place> {
    paths.iter().map(|path| place(path, Touch::Meta)).collect()
}

/// Each place is one object of a size; files have so many buckets.
fn travel(places: impl IntoIterator<Item = Place>, buckets: u32, size: impl Fn(&Place) -> u32) -> Travel {
    let mut builder = TravelBuilder::new();
    let mut sizes = Vec::new();
    let paths: std::collections::BTreeSet<_> = places.into_iter().map(|place| place.path).collect();
    for path in paths {
        let touches = std::iter::once(Touch::Meta).chain((0..buckets).map(|bucket| Touch::Data { bucket }));
        let places: Vec<_> = touches.map(|touch| Place { layer: 0, path: path.clone(), touch }).collect();
        let digests: Vec<_> = places.iter().map(|place| Digest::of(format!("{place:?}").as_bytes())).collect();
        sizes.extend(places.iter().map(|place| Object { wire_bytes: size(place), plain_bytes: 3 * size(place) }));
        builder.add(0, path, &digests[..1], &digests[1..].iter().map(|digest| vec![*digest]).collect::<Vec<_>>());
    }
    builder.finish(sizes)
}

fn taught(traces: &[Trace]) -> Arc<Model> {
    let mut model = Model::default();
    traces.iter().for_each(|trace| learn(&mut model, trace, &Params::default()));
    Arc::new(model)
}

fn ours(model: &Arc<Model>, successors: usize) -> Policy<'_> {
    Policy::Ours { model, successors, metered: false }
}

/// Every place of a few letters has this size.
fn run(trace: &Trace, size: u32, policy: &Policy<'_>) -> Outcome {
    let known = list(&["a", "b", "c", "d", "e", "f", "g", "x", "y", "z", "p", "q", "r", "s"]);
    let known = known.into_iter().chain(first_touches(trace));
    replay(trace, LINK, &Setup::IDEAL, &travel(known, 0, |_| size), policy)
}

#[test]
fn without_prefetching_each_touch_waits_a_round_trip() {
    // The launch is answered at 10 ms. Touches 1, 2 and 3 ms after that; each waits 10 ms and 2 ms of sending.
    let outcome = run(&walk("app", &["a", "b", "c"]), 2000, &Policy::None);
    let expected = Outcome {
        launch_us: 49_000,
        stall_us: 46_000,
        touches: 3,
        misses: 3,
        worst_miss_us: 12_000,
        mean_miss_us: 12_000,
        sent_bytes: 6000,
        ..Outcome::default()
    };
    assert_eq!(outcome, expected);
}

#[test]
fn the_oracle_waits_for_the_first_answer_and_then_only_for_the_link() {
    // The head is there at 10 ms, the objects at 12, 14 and 16 ms. Touches: 11 → 12, 13 → 14, 15 → 16.
    let outcome = run(&walk("app", &["a", "b", "c"]), 2000, &Policy::Oracle);
    assert_eq!(outcome, Outcome { launch_us: 16_000, stall_us: 13_000, touches: 3, late: 3, sent_bytes: 6000, ..Outcome::default() });
    assert_eq!(outcome.ratio_to(&outcome), 1.0);
}

#[test]
fn a_list_that_is_wrong_costs_its_bytes_and_a_miss_goes_before_it() {
    // The list: x, y, z of 4 ms each, then b. They leave from 5 ms on. At 11 ms `a` is asked for; at 16 ms the server
    // hears it, while it sends z (13 to 17 ms); a leaves from 17 to 21 ms and is there at 26 ms. b leaves from 21 to 25 ms and
    // is there at 30 ms; it is wanted at 27 ms.
    let places = list(&["x", "y", "z", "b"]);
    let outcome = run(&walk("app", &["a", "b"]), 4000, &Policy::StaticList(&places));
    assert_eq!((outcome.launch_us, outcome.misses, outcome.late, outcome.worst_miss_us), (30_000, 1, 1, 15_000));
    assert_eq!((outcome.sent_bytes, outcome.wasted_bytes, outcome.hit_rate(), outcome.waste()), (20_000, 12_000, 0.5, 1.5));
}

#[test]
fn what_is_planned_for_late_is_promoted_and_sent_once() {
    // b is the last of a long list. At 16 ms the server hears that it is wanted, and sends it next: from 17 to 21 ms.
    let places = list(&["x", "y", "z", "c", "d", "e", "f", "b"]);
    let outcome = run(&walk("app", &["b"]), 4000, &Policy::StaticList(&places));
    assert_eq!((outcome.launch_us, outcome.misses), (26_000, 1));
    // Until the end of the launch c begins at 21 ms and d at 25 ms; b is not sent again.
    assert_eq!((outcome.sent_bytes, outcome.wasted_bytes), (24_000, 20_000));
}

#[test]
fn what_is_planned_for_soon_is_waited_for() {
    // At 11 ms b is wanted; the plan sends it from 17 to 21 ms, as soon as a request could.
    let places = list(&["x", "y", "z", "b"]);
    let outcome = run(&walk("app", &["b"]), 4000, &Policy::StaticList(&places));
    assert_eq!((outcome.launch_us, outcome.misses, outcome.late), (26_000, 0, 1));
}

#[test]
fn a_process_computes_while_another_waits() {
    // Process 1 begins after a, and is not over when process 0 goes on: they wait at the same time.
    let steps = |other| [(0, 0, "a", None), (1000, other, "c", None), (1000, 0, "b", None), (2000, other, "d", None)];
    let outcome = run(&trace("app", &steps(1)), 2000, &Policy::None);
    // a: 10 → 22 ms; c: 23 → 35 ms; b: 23 ms, sent behind c, → 37 ms; d: 36 → 48 ms.
    assert_eq!((outcome.launch_us, outcome.misses), (48_000, 4));
    // a: 10 → 22 ms; c: 23 → 35 ms; b: 35 → 47 ms; d: 48 → 60 ms.
    assert_eq!(run(&trace("app", &steps(0)), 2000, &Policy::None).launch_us, 60_000);
}

#[test]
fn readahead_helps_a_sequential_reader_up_to_the_end_of_the_file() {
    let steps: Vec<_> = (0..4).map(|bucket| (1000 * u64::from(bucket), 0, "file", Some(bucket))).collect();
    let launch = trace("app", &steps);
    let travel = travel(list(&["file"]), 4, |place| if place.touch == Touch::Meta { 0 } else { 500 });
    let outcome = replay(&launch, LINK, &Setup::IDEAL, &travel, &Policy::Readahead { buckets: 8 });
    assert_eq!((outcome.misses, outcome.hits + outcome.late, outcome.sent_bytes, outcome.wasted_bytes), (1, 3, 2000, 0));
    assert_eq!(outcome.stall_us, 20_500);
}

#[test]
fn a_list_of_whole_files_sends_what_the_run_did_not_read() {
    let launch = trace("app", &[(0, 0, "a", Some(2)), (1, 0, "b", None), (2, 0, "a", Some(0))]);
    let travel = travel(list(&["a", "b"]), 3, |_| 100);
    assert_eq!(first_touches(&launch).len(), 3);
    let whole: Vec<_> = whole_files(&launch, &travel);
    let bucket = |bucket| place("a", Touch::Data { bucket });
    assert_eq!(whole, [bucket(0), bucket(1), bucket(2), place("b", Touch::Meta)]);
}

#[test]
fn a_model_of_the_same_launch_does_as_well_as_the_oracle() {
    let launch = walk("app", &["a", "b", "c", "d", "e", "f", "g"]);
    let model = taught(&[launch.clone(), launch.clone()]);
    assert_eq!(run(&launch, 2000, &ours(&model, 8)), run(&launch, 2000, &Policy::Oracle));
}

#[test]
fn a_miss_brings_its_successors_so_episodes_cost_not_misses() {
    // The model knows `serve` well and `repair` hardly: its touches are not on the list that is sent at first.
    let names: Vec<String> = (0..20).map(|n| format!("repair/{n}")).collect();
    let repair = walk("app", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut traces = vec![repair.clone()];
    traces.extend(vec![walk("app", &["bin/app", "etc/serve"]); 9]);
    let model = taught(&traces);
    let (without, with) = (run(&repair, 2000, &Policy::None), run(&repair, 2000, &ours(&model, 32)));
    assert_eq!((without.misses, with.misses), (20, 1));
    assert!(with.stall_us < without.stall_us / 3);
}

#[test]
fn a_launch_that_turns_out_to_be_of_another_kind_is_planned_anew() {
    let names = |kind: &str| (0..30).map(|n| format!("{kind}/{n}")).collect::<Vec<_>>();
    let launch =
        |kind: &str| walk("app", &std::iter::once("bin/app".to_owned()).chain(names(kind)).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>());
    let mut history = vec![launch("serve"); 6];
    history.extend(vec![launch("repair"); 3]);
    // No successors come along with a miss: what helps is the new plan alone.
    let outcome = run(&launch("repair"), 2000, &ours(&taught(&history), 0));
    assert!(outcome.misses <= 2, "{outcome:?}");
}

#[test]
fn a_wrong_model_costs_little() {
    let launch = walk("app", &["a", "b", "c", "d"]);
    let model = taught(&vec![walk("app", &["p", "q", "r", "s"]); 5]);
    let (none, wrong) = (run(&launch, 2000, &Policy::None), run(&launch, 2000, &ours(&model, 8)));
    assert!(wrong.stall_us <= none.stall_us + 4 * 2000);
}

#[test]
fn on_a_metered_link_what_is_unlikely_is_not_sent() {
    let model = taught(&[walk("app", &["a", "b"]), walk("app", &["a", "c"]), walk("app", &["a", "d"])]);
    let launch = walk("app", &["a", "b"]);
    let with = |metered| run(&launch, 2000, &Policy::Ours { model: &model, successors: 8, metered });
    assert!(with(false).wasted_bytes > 0);
    assert_eq!((with(true).wasted_bytes, with(true).misses), (0, 1));
}

#[test]
fn connecting_slow_start_frames_and_decompression_each_take_their_time() {
    let launch = walk("app", &["a", "b"]);
    let travel = travel(list(&["a", "b"]), 0, |_| 20_000);
    let end = |setup: Setup| replay(&launch, Link { round_trip_us: 100_000, ..LINK }, &setup, &travel, &Policy::Oracle).launch_us;
    let ideal = end(Setup::IDEAL);
    assert_eq!(ideal, 140_000);
    assert_eq!(end(Setup { connect_round_trips: 2, ..Setup::IDEAL }), ideal + 200_000);
    assert_eq!(end(Setup { head_bytes: 5000, ..Setup::IDEAL }), ideal + 5000);
    // The second object begins a round trip after the first did.
    assert_eq!(end(Setup { initial_window_bytes: 20_000, ..Setup::IDEAL }), ideal + 80_000);
    // 60 000 plain bytes of the last object.
    assert_eq!(end(Setup { decode_bytes_per_s: 10_000_000, ..Setup::IDEAL }), ideal + 6000);
    let listed = |frame_bytes| {
        let list = list(&["a", "b"]);
        replay(&walk("app", &["a"]), LINK, &Setup { frame_bytes, ..Setup::IDEAL }, &travel, &Policy::StaticList(&list)).launch_us
    };
    assert_eq!((listed(60_000), listed(60_001)), (30_000, 50_000));
}

#[test]
fn the_threshold_is_high_on_a_thin_link_and_low_on_a_long_one() {
    for (named, expected) in LINKS.iter().zip([0.51, 0.21, 0.26, 0.05, 0.002]) {
        assert!((named.link.threshold(65_536) - expected).abs() < 0.01, "{named:?}");
    }
    assert_eq!(Link { round_trip_us: 0, bytes_per_s: 0 }.threshold(0), 0.0);
}

#[test]
fn absurd_numbers_do_not_overflow() {
    let launch = trace("app", &[(u64::MAX, 0, "a", None), (u64::MAX, 0, "b", None)]);
    let link = Link { round_trip_us: u64::MAX, bytes_per_s: 0 };
    let travel = travel(list(&["a", "b"]), 0, |_| u32::MAX / 3);
    let setup =
        Setup { connect_round_trips: u32::MAX, head_bytes: u64::MAX, queue_us: u64::MAX, request_us: u64::MAX, decode_bytes_per_s: 0, ..Setup::default() };
    for setup in [setup, Setup::IDEAL] {
        for policy in [Policy::None, Policy::Oracle, Policy::StaticList(&list(&["b", "a"]))] {
            replay(&launch, link, &setup, &travel, &policy);
        }
    }
}

fn any_setup() -> impl Strategy<Value = Setup> {
    (0u32..4, 0u64..50_000, 1u64..200_000, 0u64..100_000, 1u64..100_000_000, 0u64..200_000, 0u64..5000).prop_map(
        |(connect_round_trips, head_bytes, initial_window_bytes, frame_bytes, decode_bytes_per_s, queue_us, request_us)| Setup {
            connect_round_trips,
            head_bytes,
            initial_window_bytes,
            frame_bytes,
            decode_bytes_per_s,
            queue_us,
            request_us,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_policy_launches_sooner_than_the_oracle(
        launch in any_trace(), history in proptest::collection::vec(any_trace(), 0..4), listed in proptest::collection::vec(0u32..200, 0..60),
        round_trip_us in 0u64..200_000, bytes_per_s in 1u64..20_000_000, size in 1u32..60_000, buckets in 0u32..4, successors in 0usize..20, setup in any_setup(),
    ) {
        let link = Link { round_trip_us, bytes_per_s };
        let all = (0..40).map(|n| place(&format!("d{}/f{n}", n % 5), Touch::Meta));
        let travel = travel(all, 2, |place| size * (place.path.as_bytes().len() as u32 % 3 + 1));
        let listed: Vec<Place> = listed.iter().map(|n| place(&format!("d{}/f{}", n % 5, n % 40), crate::samples::touch(n.checked_sub(100).map(|n| n % 3)))).collect();
        let model = taught(&history);
        let oracle = replay(&launch, link, &setup, &travel, &Policy::Oracle);
        prop_assert_eq!((oracle.misses, oracle.wasted_bytes), (0, 0));
        let policies = [Policy::None, Policy::OnDemand, Policy::Readahead { buckets }, Policy::StaticList(&listed), ours(&model, successors), Policy::Ours { model: &model, successors, metered: true }];
        for policy in policies {
            let outcome = replay(&launch, link, &setup, &travel, &policy);
            prop_assert!(oracle.launch_us <= outcome.launch_us, "{:?}: {:?} against {:?}", policy, outcome, oracle);
            prop_assert_eq!(outcome.hits + outcome.late + outcome.misses, outcome.touches);
            prop_assert_eq!(outcome.sent_bytes - outcome.wasted_bytes, oracle.sent_bytes, "everything touched is sent, once");
            prop_assert_eq!(outcome.launch_us - outcome.stall_us, oracle.launch_us - oracle.stall_us);
        }
    }

    #[test]
    fn an_order_of_the_same_objects_is_no_better_than_the_oracles(launch in any_trace(), keys in proptest::collection::vec(0u32..1000, 60), size in 1u32..60_000, setup in any_setup()) {
        let all = (0..40).map(|n| place(&format!("d{}/f{n}", n % 5), Touch::Meta));
        let travel = travel(all, 3, |place| size * (place.path.as_bytes().len() as u32 % 3 + 1));
        let mut order: BTreeMap<(u32, usize), Place> = BTreeMap::new();
        for (at, place) in first_touches(&launch).into_iter().enumerate() {
            order.insert((keys[at], at), place);
        }
        let order: Vec<Place> = order.into_values().collect();
        let oracle = replay(&launch, LINK, &setup, &travel, &Policy::Oracle);
        let other = replay(&launch, LINK, &setup, &travel, &Policy::StaticList(&order));
        prop_assert!(oracle.launch_us <= other.launch_us);
        prop_assert_eq!(other.wasted_bytes, 0);
    }
}
