//! Many threads, random operations, a registry that fails in every way: everything ends, and ends right.

use std::sync::atomic::Ordering;
use std::time::Duration;

use client_store::OriginError;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{Bench, Mood, candidate, objects};

#[test]
fn random_operations_end_and_leave_nothing_behind() {
    let mut rng = StdRng::seed_from_u64(50);
    let all = objects(50, (0..300).map(|_| rng.random_range(1..30_000)));
    let bench = Bench::new(&all, |options| {
        options.memory_bytes = 500_000;
        options.stall_limit = Duration::from_secs(1);
    });
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8u64)
            .map(|seed| {
                let (all, bench) = (&all, &bench);
                scope.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(seed);
                    for _ in 0..300 {
                        let at = rng.random_range(0..all.len());
                        let some: Vec<_> = (0..rng.random_range(0..10)).map(|_| candidate(&all[rng.random_range(0..all.len())], rng.random())).collect();
                        match rng.random_range(0..10) {
                            0 => bench.fetcher.prefetch(some, rng.random()),
                            1 => bench.fetcher.stop_prefetch(),
                            2 => bench.cache.evict(&all[at].0),
                            _ => assert_eq!(bench.get_with(&all[at], some).unwrap(), all[at].1),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut rng = StdRng::seed_from_u64(51);
            // It ends: a registry that fails whenever it is asked never answers.
            for _ in 0..200 {
                bench.origin.mood(|mood| match rng.random_range(0..8) {
                    0 => mood.is_down = true,
                    1 => mood.damaged = 3,
                    2 => mood.cut_after = Some(rng.random_range(0..5)),
                    3 => mood.is_held = true,
                    4 => mood.failures.push_back(OriginError::Busy { message: "busy".into(), retry_after: None }),
                    5 => mood.delay = Duration::from_millis(rng.random_range(0..20)),
                    6 => bench.cache.is_full.store(rng.random(), Ordering::SeqCst),
                    _ => (mood.is_down, mood.is_held) = (false, false),
                });
                std::thread::sleep(Duration::from_millis(10));
                bench.origin.mood(|mood| (mood.is_down, mood.is_held) = (false, false));
            }
            bench.origin.mood(|mood| *mood = Mood::default());
        });
        for reader in readers {
            reader.join().unwrap();
        }
    });
    bench.cache.is_full.store(false, Ordering::SeqCst);
    bench.fetcher.stop_prefetch();
    bench.assert_quiet();
    bench.fetcher.flush();
    for object in &all {
        assert_eq!(bench.get(&object.0).unwrap(), object.1);
    }
}
