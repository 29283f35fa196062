//! What can go wrong.

use super::*;
use crate::samples::{self, any_trace, trace, walk};
use crate::{Params, launch_list};
use layer_format::trace::Trace;
use proptest::prelude::*;

fn taught(traces: &[Trace]) -> Arc<Model> {
    Arc::new(samples::taught(traces))
}

fn observe(predictor: &mut Predictor, paths: &[&str]) {
    paths.iter().for_each(|path| predictor.observe(0, &LayerPath::new(*path).unwrap(), Touch::Meta));
}

fn names(predictions: &[Predicted]) -> Vec<String> {
    predictions.iter().map(|item| item.path.to_string()).collect()
}

const SERVE: [&str; 6] = ["bin/app", "lib/common", "etc/serve", "lib/config", "lib/serve", "lib/http"];
const MIGRATE: [&str; 6] = ["bin/app", "lib/common", "etc/migrate", "lib/config", "lib/migrate", "lib/sql"];

#[test]
fn two_ways_to_start_a_program_have_different_successors_at_order_2() {
    let model = taught(&[walk("app", &SERVE), walk("app", &MIGRATE), walk("app", &SERVE), walk("app", &MIGRATE)]);
    for (path, other, last) in [(SERVE, MIGRATE, "/lib/serve"), (MIGRATE, SERVE, "/lib/migrate")] {
        let mut predictor = Predictor::new(Arc::clone(&model));
        observe(&mut predictor, &path[..2]);
        let both = names(&predictor.successors(8));
        assert!(both.contains(&"/etc/serve".into()) && both.contains(&"/etc/migrate".into()), "the branch is open: {both:?}");
        // Both ways touch lib/config; what follows it depends on what came before it.
        observe(&mut predictor, &path[2..4]);
        let next = predictor.successors(4);
        assert_eq!(names(&next)[0], last);
        assert_eq!(names(&next)[1].trim_start_matches('/'), path[5]);
        assert!(next[0].probability > 0.8, "{next:?}");
        let wrong = next.iter().find(|item| item.path.to_string().trim_start_matches('/') == other[4]);
        assert!(wrong.is_none_or(|wrong| wrong.probability < 0.6), "{next:?}");
    }
}

#[test]
fn without_a_known_touch_before_order_1_answers() {
    let model = taught(&[walk("app", &SERVE), walk("app", &MIGRATE)]);
    let mut predictor = Predictor::new(model);
    observe(&mut predictor, &["lib/config"]);
    let next = predictor.successors(4);
    assert!(names(&next).contains(&"/lib/serve".into()) && names(&next).contains(&"/lib/migrate".into()), "{next:?}");
    assert!(next.iter().all(|item| (0.4..0.6).contains(&item.probability)));
}

#[test]
fn successors_go_on_down_the_chain_with_their_gaps_and_skip_what_was_touched() {
    let model = taught(&[walk("app", &SERVE)]);
    let mut predictor = Predictor::new(model);
    observe(&mut predictor, &["lib/config", "bin/app"]);
    let next = predictor.successors(9);
    assert_eq!(names(&next), ["/lib/common", "/etc/serve", "/lib/serve", "/lib/http"]);
    assert_eq!(next.iter().map(|item| item.time_us).collect::<Vec<_>>(), [1000, 2000, 4000, 5000]);
    assert_eq!(names(&predictor.successors(1)), ["/lib/common"]);
    assert_eq!(names(&predictor.successors(0)), [""; 0]);
}

#[test]
fn after_a_touch_that_no_launch_made_the_rest_of_the_list_follows() {
    let model = taught(&[walk("app", &SERVE)]);
    let mut predictor = Predictor::new(model);
    observe(&mut predictor, &["bin/app", "lib/common", "home/new"]);
    assert_eq!(names(&predictor.successors(2)), ["/etc/serve", "/lib/config"]);
    assert_eq!(predictor.successors(2)[0].time_us, 1000);
}

#[test]
fn interleaved_processes_are_followed_apart() {
    let two = |steps: [(u16, &'static str); 8]| trace("app", &steps.map(|(process, path)| (0, process, path, None)));
    let model = taught(&[two([(0, "a1"), (0, "a2"), (0, "a3"), (0, "a4"), (1, "b1"), (1, "b2"), (1, "b3"), (1, "b4")])]);
    let mut predictor = Predictor::new(model);
    observe(&mut predictor, &["a1", "b1", "a2", "b2"]);
    assert_eq!(names(&predictor.successors(1)), ["/b3"]);
    observe(&mut predictor, &["a3"]);
    assert_eq!(names(&predictor.successors(1)), ["/a4"]);
}

#[test]
fn an_empty_model_predicts_nothing() {
    let mut predictor = Predictor::new(Arc::default());
    observe(&mut predictor, &["a"]);
    assert!(predictor.successors(5).is_empty());
    assert!(crate::launch_list(&Model::default(), None, "x86_64").is_empty());
}

#[test]
fn a_model_that_breaks_its_rules_does_no_harm() {
    let mut model = Model::clone(&taught(&[walk("app", &SERVE), walk("app", &MIGRATE)]));
    model.order1.reverse();
    model.order2.iter_mut().for_each(|step| step.to = 99);
    model.entry_points[0].variants[0].launch.extend_from_within(..);
    model.entry_points[0].variants[0].launch[0].state = 99;
    model.states[1].path = 99;
    let mut predictor = Predictor::new(Arc::new(model.clone()));
    observe(&mut predictor, &SERVE);
    predictor.successors(99);
    crate::launch_list(&model, None, "");
    predictor.remaining();
    let mut other = Model::default();
    crate::merge(&mut other, &model, &Params::default());
    crate::samples::check(&other, &Params::default());
}

/// A start that all launches share, and what each kind goes on with: paths in order, a millisecond apart.
fn kinds() -> [Vec<String>; 3] {
    let common: Vec<String> = (0..60).map(|n| format!("lib/common{n}")).collect();
    ["serve", "migrate", "check"].map(|kind| common.iter().cloned().chain((0..40).map(|n| format!("lib/{kind}{n}"))).collect())
}

fn walked(paths: &[String]) -> Trace {
    walk("app", &paths.iter().map(String::as_str).collect::<Vec<_>>())
}

fn share(list: &[Predicted], part: &str) -> f32 {
    let of: Vec<f32> = list.iter().filter(|item| item.path.to_string().contains(part)).map(|item| item.probability).collect();
    if of.is_empty() { 0.0 } else { of.iter().sum::<f32>() / of.len() as f32 }
}

#[test]
fn before_the_branch_what_all_share_goes_first_and_after_it_the_branch_that_is_taken() {
    let [serve, migrate, _] = kinds();
    let model = taught(&[walked(&serve), walked(&migrate), walked(&serve), walked(&migrate), walked(&serve)]);
    assert_eq!(model.entry_points[0].variants.len(), 2);
    let list = launch_list(&model, Some("app"), "x86_64");
    assert_eq!(list.len(), 140);
    assert!(list[..60].iter().all(|item| item.path.to_string().contains("common") && item.probability > 0.99), "what both touch goes first");
    assert!((0.5..0.7).contains(&share(&list, "serve")) && (0.3..0.5).contains(&share(&list, "migrate")), "both are open");
    for (taken, own, other) in [(&serve, "serve", "migrate"), (&migrate, "migrate", "serve")] {
        let mut predictor = Predictor::for_launch(Arc::clone(&model), Some("app"), "x86_64");
        let start: Vec<&str> = taken.iter().map(String::as_str).collect();
        observe(&mut predictor, &start[..60]);
        assert_eq!(predictor.generation(), 0, "nothing unexpected yet");
        assert!((0.3..0.7).contains(&share(&predictor.remaining(), own)), "still open");
        observe(&mut predictor, &start[60..63]);
        assert!(predictor.generation() > 0, "it turned out which");
        let rest = predictor.remaining();
        assert!(share(&rest, own) > 0.9 && share(&rest, other) < 0.1, "{own}: {} {}", share(&rest, own), share(&rest, other));
        assert_eq!(names(&rest[..37]), taken[63..].iter().map(|path| format!("/{path}")).collect::<Vec<_>>(), "the branch in its order");
        assert_eq!(rest[0].time_us, 1000, "from now");
        assert!(predictor.generation() < 5, "and it was planned anew seldom");
        let next = predictor.successors(100);
        assert!(next[..37].iter().all(|item| item.path.to_string().contains(own)));
    }
}

#[test]
fn a_step_to_what_only_an_unlikely_variant_touches_is_unlikely() {
    // Both kinds touch `x` late, and go on differently from there; order 2 does not know, both come to it from `w`.
    let way = |kind: &str| -> Vec<String> {
        (0..10).map(|n| format!("{kind}{n}")).chain(["w".into(), "x".into()]).chain((10..14).map(|n| format!("{kind}{n}"))).collect()
    };
    let (a, b) = (way("a"), way("b"));
    let model = taught(&[walked(&a), walked(&b), walked(&a), walked(&b)]);
    let mut predictor = Predictor::new(model);
    observe(&mut predictor, &a[..12].iter().map(String::as_str).collect::<Vec<_>>());
    let next = predictor.successors(5);
    assert_eq!(names(&next)[0], "/a10");
    assert!(next[0].probability > 0.9 && share(&next, "b1") < 0.1, "{next:?}");
}

#[test]
fn a_launch_that_ends_before_the_branch_is_a_kind_of_its_own_until_it_goes_on() {
    let [serve, ..] = kinds();
    let mut traces = vec![walked(&serve[..50]); 6];
    traces.extend(vec![walked(&serve); 2]);
    let model = taught(&traces);
    let list = launch_list(&model, Some("app"), "x86_64");
    assert!(share(&list, "serve") < 0.4 && share(&list, "common1") > 0.9);
    let mut predictor = Predictor::for_launch(model, Some("app"), "x86_64");
    observe(&mut predictor, &serve[..64].iter().map(String::as_str).collect::<Vec<_>>());
    assert!(predictor.generation() > 0 && share(&predictor.remaining(), "serve") > 0.9, "it went on");
}

#[test]
fn a_launch_like_none_before_makes_the_list_unlikely_and_one_that_returns_is_followed_again() {
    let [serve, ..] = kinds();
    let model = taught(&vec![walked(&serve); 5]);
    let mut predictor = Predictor::for_launch(model, Some("app"), "x86_64");
    assert!(share(&predictor.remaining(), "lib") > 0.95);
    let strange: Vec<String> = (0..40).map(|n| format!("opt/other{n}")).collect();
    observe(&mut predictor, &strange.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(predictor.generation() > 0 && share(&predictor.remaining(), "lib") < 0.4, "{}", share(&predictor.remaining(), "lib"));
    // The same again says nothing more, known or not.
    let before = predictor.beliefs().to_vec();
    observe(&mut predictor, &strange.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(predictor.beliefs(), before);
    observe(&mut predictor, &serve[..30].iter().map(String::as_str).collect::<Vec<_>>());
    assert!(share(&predictor.remaining(), "lib") > 0.9);
}

#[test]
fn some_touches_that_no_launch_made_do_not_shake_a_launch_that_is_known() {
    let [serve, migrate, _] = kinds();
    let model = taught(&[walked(&serve), walked(&migrate), walked(&serve), walked(&migrate)]);
    let mut predictor = Predictor::for_launch(model, Some("app"), "x86_64");
    for (n, path) in serve.iter().enumerate().take(90) {
        observe(&mut predictor, &[path]);
        if n % 8 == 7 {
            observe(&mut predictor, &[&format!("tmp/{n}")]);
        }
    }
    assert!(share(&predictor.remaining(), "serve") > 0.9 && predictor.generation() < 4);
}

#[test]
fn an_unknown_entry_point_is_less_sure_of_the_list_it_borrows() {
    let [serve, ..] = kinds();
    let model = taught(&vec![walked(&serve); 5]);
    let of = |name| share(&Predictor::for_launch(Arc::clone(&model), name, "x86_64").remaining(), "lib");
    assert!(of(Some("other")) < 0.85 && of(Some("app")) > 0.95 && of(None) > 0.95);
}

#[test]
fn what_a_variant_would_have_touched_long_ago_counts_against_it_and_comes_rarely() {
    // Ten seconds, a touch every 100 ms; `quiet` leaves out every touch of `extra`.
    let steps = |with: bool| -> Vec<(u64, u16, String, Option<u32>)> {
        let all = (1..=100u64).map(|n| (100_000 * n, 0, format!("{}{n}", if n % 4 == 0 { "extra" } else { "core" }), None));
        all.filter(|(.., path, _)| with || path.starts_with("core")).collect()
    };
    let made = |steps: &[(u64, u16, String, Option<u32>)]| {
        trace("app", &steps.iter().map(|(at, process, path, bucket)| (*at, *process, path.as_str(), *bucket)).collect::<Vec<_>>())
    };
    let (full, quiet) = (steps(true), steps(false));
    let model = taught(&[made(&full), made(&quiet), made(&full), made(&quiet)]);
    assert_eq!(model.entry_points[0].variants.len(), 2);
    let mut predictor = Predictor::for_launch(model, Some("app"), "x86_64");
    let before = share(&predictor.remaining(), "extra");
    observe(&mut predictor, &quiet[..60].iter().map(|(.., path, _)| path.as_str()).collect::<Vec<_>>());
    let after = predictor.remaining();
    let future: Vec<_> = after.iter().filter(|item| item.time_us > 0).cloned().collect();
    assert!((0.4..0.6).contains(&before) && share(&future, "extra") < 0.2, "{before} {}", share(&future, "extra"));
    let overdue: Vec<_> = after.iter().filter(|item| item.path.to_string().trim_start_matches("/extra").parse().is_ok_and(|n: u32| n <= 40)).cloned().collect();
    assert!(!overdue.is_empty() && overdue.iter().all(|item| item.time_us == 0 && item.probability < 0.1), "{overdue:?}");
}

#[test]
fn a_fan_out_of_processes_takes_nothing_from_the_steps_within_each() {
    // A parent begins children that run at once, interleaved otherwise in each launch, as make does.
    let launch = |seed: u64| {
        let mut next = [0usize; 4];
        let mut steps: Vec<(u64, u16, String, Option<u32>)> = (0..5).map(|n| (n, 9, format!("make{n}"), None)).collect();
        let mut noise = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        while next.iter().any(|done| *done < 20) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            let child = (noise % 4) as usize;
            if next[child] < 20 {
                steps.push((steps.len() as u64 * 100, child as u16, format!("cc{child}/{}", next[child]), None));
                next[child] += 1;
            }
        }
        trace("make", &steps.iter().map(|(at, process, path, bucket)| (*at, *process, path.as_str(), *bucket)).collect::<Vec<_>>())
    };
    let model = taught(&(1..12).map(launch).collect::<Vec<_>>());
    assert_eq!(model.entry_points[0].variants.len(), 1, "how children interleave is no kind of launch");
    for child in 0..4 {
        let mut predictor = Predictor::for_launch(Arc::clone(&model), Some("make"), "x86_64");
        observe(&mut predictor, &["make0", "make4"]);
        for n in 0..19 {
            observe(&mut predictor, &[&format!("cc{child}/{n}")]);
            let next = predictor.successors(8);
            let own = next.iter().position(|item| item.path.to_string() == format!("/cc{child}/{}", n + 1));
            assert!(own.is_some_and(|at| next[at].probability > 0.95 && at < 4), "after {n} of {child}: {next:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_rest_is_all_of_the_list_that_was_not_touched_whatever_is_touched(history in proptest::collection::vec(any_trace(), 0..12), launch in any_trace()) {
        let model = taught(&history);
        let place = |item: &Predicted| (item.layer, item.path.clone(), item.touch);
        let mut expected: Vec<_> = launch_list(&model, Some(&launch.entry_point), "x86_64").iter().map(place).collect();
        let mut predictor = Predictor::for_launch(Arc::clone(&model), Some(&launch.entry_point), "x86_64");
        let mut generation = 0;
        for event in &launch.events {
            let path = &launch.paths[event.path as usize];
            predictor.observe(event.layer, path, event.touch);
            expected.retain(|known| *known != (event.layer, path.clone(), event.touch));
            let rest = predictor.remaining();
            let mut found: Vec<_> = rest.iter().map(place).collect();
            found.sort();
            expected.sort();
            prop_assert_eq!(&found, &expected);
            prop_assert!(rest.iter().all(|item| item.probability > 0.0 && item.probability <= 1.0));
            prop_assert!(predictor.generation() >= generation && predictor.generation() - generation <= 1);
            generation = predictor.generation();
            let beliefs = predictor.beliefs();
            prop_assert!(beliefs.iter().all(|belief| (0.0..=1.0).contains(belief)) && beliefs.iter().sum::<f64>() <= 1.0 + 1e-9);
            // The first few are a prefix of the whole, and nothing is given twice.
            let next = predictor.successors(6);
            let mut places: Vec<_> = next.iter().map(place).collect();
            places.sort();
            places.dedup();
            prop_assert_eq!(places.len(), next.len());
            prop_assert!(next.len() == 6 || next.len() >= rest.len());
        }
    }
}
