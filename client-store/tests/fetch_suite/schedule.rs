//! The scheduler: what is wanted soon goes first, guesses and predictions keep to the budget, and a launch that takes
//! another way is planned anew.

use std::sync::Arc;
use std::time::Duration;

use client_store::origin::Received;
use client_store::{Policy, Session, SessionOptions};
use layer_format::model::{EntryPoint, LaunchItem, Model, State};
use layer_format::trace::Touch;
use layer_format::{Digest, LayerPath};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Bench, FakeCache, FakeOrigin, Image, LONG, candidate, eventually, objects, runtime};

#[test]
fn what_is_needed_soon_and_surely_goes_first() {
    let all = objects(70, [20_000; 4]);
    let bench = Bench::new(&all, |_| ());
    bench.origin.mood(|mood| mood.is_held = true);
    // Something under way, so that the others wait together.
    let mut candidates: Vec<_> = all.iter().map(|object| candidate(object, 0.9)).collect();
    candidates[1].within_us = 5_000_000;
    candidates[2].probability = 0.3;
    candidates.rotate_left(1);
    bench.fetcher.prefetch(candidates, false);
    bench.origin.mood(|mood| mood.is_held = false);
    eventually("all came", || all.iter().all(|object| bench.cache.holds(&object.0) || bench.origin.times_asked(&object.0) > 0));
    let order: Vec<Digest> = bench.origin.asked().into_iter().flat_map(|(digests, _)| digests).collect();
    // Equal ones in the order in which they were named.
    assert_eq!(order, [all[3].0, all[0].0, all[2].0, all[1].0]);
}

#[test]
fn random_schedules_fetch_each_object_once_and_keep_to_the_budget() {
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let all = objects(seed, (0..250).map(|_| rng.random_range(100..40_000)));
        let budget = 600_000;
        let bench = Bench::new(&all, |options| options.waste_budget_bytes = budget);
        bench.origin.mood(|mood| mood.rate = 40e6);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (all, bench) = (&all, &bench);
                scope.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(100 * seed + thread);
                    for _ in 0..40 {
                        // A fifth is ever used: most of what is predicted is wrong.
                        let at = rng.random_range(0..all.len() / 5);
                        let some: Vec<_> = (0..20).map(|_| candidate(&all[rng.random_range(0..all.len())], rng.random_range(0.0..0.59))).collect();
                        match rng.random_range(0..4) {
                            0 => bench.fetcher.prefetch(some, rng.random()),
                            1 => assert_eq!(bench.get_with(&all[at], some).unwrap(), all[at].1),
                            _ => assert_eq!(bench.get(&all[at].0).unwrap(), all[at].1),
                        }
                    }
                });
            }
        });
        bench.fetcher.stop_prefetch();
        bench.assert_quiet();
        let stats = bench.fetcher.stats();
        assert!(stats.bytes_wasted <= budget + stats.bytes_needed / 5 + 40_000, "{stats:?}");
        for (digest, _) in &all {
            assert!(bench.origin.times_asked(digest) <= 1, "seed {seed}: an object was fetched twice");
        }
        // Demanded objects stand before all that rides along with them.
        for (digests, _) in bench.origin.asked() {
            assert!(!digests.is_empty());
        }
    }
}

fn touched(image: &Image, paths: &[LayerPath]) -> Vec<(LayerPath, Touch)> {
    let buckets = |path: &LayerPath| (0..image.contents[path].len().div_ceil(16384) as u32).map(|bucket| Touch::Data { bucket }).collect::<Vec<_>>();
    paths.iter().flat_map(|path| buckets(path).into_iter().map(move |touch| (path.clone(), touch))).collect()
}

fn model(touches: &[(LayerPath, Touch)]) -> Model {
    let mut paths: Vec<LayerPath> = touches.iter().map(|(path, _)| path.clone()).collect();
    paths.sort();
    paths.dedup();
    let state = |(path, touch): &(LayerPath, Touch)| State { layer: 0, path: paths.binary_search(path).unwrap() as u32, touch: *touch };
    let mut states: Vec<State> = touches.iter().map(state).collect();
    states.sort();
    states.dedup();
    let item = |(at, touch): (usize, &(LayerPath, Touch))| LaunchItem {
        state: states.binary_search(&state(touch)).unwrap() as u32,
        count: 1.0,
        time_us: at as u32 * 10,
    };
    let launch = touches.iter().enumerate().map(item).collect();
    let entry = EntryPoint::of_one_kind("app".into(), "x86_64".into(), 1.0, launch);
    Model { traces: 1, paths: paths.clone(), states: states.clone(), entry_points: vec![entry], ..Model::default() }
}

#[test]
fn a_stream_of_another_launch_is_left() {
    let image = Image::random(71, 300, 6);
    let runtime = runtime();
    let (cache, origin) = (Arc::<FakeCache>::default(), FakeOrigin::holding(&image.objects));
    let paths: Vec<LayerPath> = image.contents.keys().filter(|path| !image.contents[*path].is_empty()).cloned().collect();
    let (predicted, other) = paths.split_at(paths.len() / 2);
    let model = model(&touched(&image, predicted));
    let planned: Vec<Digest> = predicted.iter().flat_map(|path| image.chunks(path)).collect();
    origin.mood(|mood| {
        mood.rate = 2e6;
        mood.launch = image.preamble();
        mood.launch.push(Received::Model(model.encode().into()));
        mood.launch.push(Received::Plan(planned.iter().map(Digest::prefix64).collect()));
        mood.launch.extend(planned.iter().map(|digest| Received::Object(image.objects[digest].clone())));
    });
    let options = SessionOptions {
        policy: Policy::Predicted,
        wait_limit: LONG,
        ..SessionOptions::new(cache, Some(Arc::new(origin.clone())), runtime.handle().clone(), image.reference.clone())
    };
    let session = Session::start(options).unwrap();
    let layer = &session.layers()[0];
    for path in other {
        let entry = layer.lookup(path, Default::default()).unwrap().unwrap();
        assert_eq!(layer.read(&entry, 0, image.contents[path].len(), Default::default()).unwrap(), image.contents[path]);
    }
    eventually("the stream is left", || session.has_launched());
    std::thread::sleep(Duration::from_millis(50));
    let streamed: u64 = planned.iter().map(|digest| image.objects[digest].len() as u64).sum();
    let stats = session.stats();
    assert!(stats.bytes_wasted < streamed / 2, "of {streamed}: {stats:?}");
    session.finish();
}
