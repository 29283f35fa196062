//! What threads wait for: single flight, verification, retries, limits.

use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use client_store::{FetchError, OriginError};
use layer_format::Digest;

use crate::support::{Bench, LONG, candidate, eventually, objects};

#[test]
fn ten_readers_of_one_object_make_one_download() {
    let all = objects(1, [20_000]);
    let bench = Bench::new(&all, |_| ());
    bench.origin.mood(|mood| mood.delay = Duration::from_millis(50));
    let start = Barrier::new(10);
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                start.wait();
                assert_eq!(bench.get(&all[0].0).unwrap(), all[0].1);
            });
        }
    });
    assert_eq!((bench.origin.requests(), bench.origin.times_asked(&all[0].0)), (1, 1));
    let stats = bench.fetcher.stats();
    assert_eq!((stats.bytes_fetched, stats.bytes_needed, stats.bytes_wasted, stats.bytes_prefetched), (20_000, 20_000, 0, 0));
    assert!(stats.stall_us >= 45_000);
    bench.assert_quiet();
    bench.fetcher.flush();
    assert!(bench.cache.holds(&all[0].0) && bench.cache.flushes.load(Ordering::SeqCst) == 1);
    bench.get(&all[0].0).unwrap();
    assert_eq!(bench.origin.requests(), 1);
}

#[test]
fn objects_of_one_read_and_their_candidates_share_a_request() {
    let all = objects(2, [5000; 12]);
    let bench = Bench::new(&all, |_| ());
    let candidates = all[3..9].iter().map(|object| candidate(object, 0.9)).chain([candidate(&all[9], 0.0)]).collect();
    bench.get_with(&all[0], candidates).unwrap();
    assert_eq!(bench.origin.requests(), 1);
    eventually("all have arrived", || bench.fetcher.stats().bytes_prefetched == 30_000);
    for object in &all[3..9] {
        assert_eq!(bench.get(&object.0).unwrap(), object.1);
    }
    assert_eq!(bench.origin.requests(), 1);
    // Certainly useless: not even asked for.
    assert_eq!(bench.origin.times_asked(&all[9].0), 0);
    let stats = bench.fetcher.stats();
    assert_eq!((stats.bytes_prefetched, stats.bytes_prefetched_used, stats.bytes_wasted), (30_000, 30_000, 0));
}

#[test]
fn a_demand_promotes_a_queued_prefetch_and_is_not_fetched_twice() {
    let all = objects(3, [60_000; 40]);
    let bench = Bench::new(&all, |_| ());
    bench.origin.mood(|mood| mood.is_held = true);
    bench.fetcher.prefetch(all.iter().map(|object| candidate(object, 1.0)).collect(), false);
    eventually("prefetching has begun", || bench.origin.requests() > 0);
    let first = bench.origin.asked()[0].0.clone();
    // The window is full: the last one waits in the queue, the first is on its way.
    assert!(first.len() < 40 && bench.origin.times_asked(&all[39].0) == 0);
    std::thread::scope(|scope| {
        let (last, flying) = (scope.spawn(|| bench.get(&all[39].0)), scope.spawn(|| bench.get(&first[0])));
        eventually("the demand went out", || bench.origin.times_asked(&all[39].0) == 1);
        bench.origin.mood(|mood| mood.is_held = false);
        assert_eq!(last.join().unwrap().unwrap(), all[39].1);
        flying.join().unwrap().unwrap();
    });
    // Read what is prefetched, so that the rest may follow.
    for object in &all {
        bench.get(&object.0).unwrap();
    }
    bench.assert_quiet();
    assert!(all.iter().all(|object| bench.origin.times_asked(&object.0) == 1));
    assert_eq!(bench.fetcher.stats().bytes_wasted, 0);
}

#[test]
fn a_damaged_object_is_asked_for_again_and_never_seen() {
    let all = objects(4, [3000; 5]);
    let bench = Bench::new(&all, |_| ());
    bench.origin.mood(|mood| mood.damaged = 3);
    for object in &all {
        assert_eq!(bench.get(&object.0).unwrap(), object.1);
    }
    let stats = bench.fetcher.stats();
    assert_eq!((stats.damaged_objects, stats.bytes_wasted), (3, 9000));
    assert_eq!(stats.bytes_needed, 15_000);
    bench.assert_quiet();
}

#[test]
fn the_registry_goes_away_and_comes_back() {
    let all = objects(5, [3000; 20]);
    let bench = Bench::new(&all, |_| ());
    bench.get(&all[0].0).unwrap();
    bench.origin.mood(|mood| mood.is_down = true);
    std::thread::scope(|scope| {
        let reads: Vec<_> = all[1..].iter().map(|object| scope.spawn(|| bench.get(&object.0).map(|bytes| bytes == object.1))).collect();
        std::thread::sleep(Duration::from_secs(3));
        bench.origin.mood(|mood| mood.is_down = false);
        for read in reads {
            assert!(read.join().unwrap().unwrap());
        }
    });
    let stats = bench.fetcher.stats();
    assert!(stats.retries > 0 && stats.stall_us > 3_000_000);
    // Not a storm: the wait doubles.
    assert!(bench.origin.requests() < 120, "{}", bench.origin.requests());
    bench.assert_quiet();
}

#[test]
fn gone_for_too_long_is_an_error_and_later_reads_work() {
    let all = objects(6, [3000; 2]);
    let bench = Bench::new(&all, |options| options.wait_limit = Duration::from_millis(300));
    bench.origin.mood(|mood| mood.is_down = true);
    let started = Instant::now();
    let error = bench.get(&all[0].0).unwrap_err();
    assert!(matches!(&error, FetchError::Unreachable { digest, reason, .. } if *digest == all[0].0 && reason.contains("cut")), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(300) && started.elapsed() < LONG);
    bench.assert_quiet();
    bench.origin.mood(|mood| mood.is_down = false);
    eventually("reads work again", || bench.get(&all[0].0).is_ok());
    assert_eq!(bench.get(&all[1].0).unwrap(), all[1].1);
}

#[test]
fn a_silent_registry_is_asked_again() {
    let all = objects(7, [3000]);
    let bench = Bench::new(&all, |options| options.stall_limit = Duration::from_millis(100));
    bench.origin.mood(|mood| mood.is_held = true);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| bench.get(&all[0].0));
        eventually("it is asked again", || bench.origin.requests() >= 2);
        bench.origin.mood(|mood| mood.is_held = false);
        assert!(read.join().unwrap().is_ok());
    });
    bench.assert_quiet();
}

#[test]
fn busy_is_honoured_and_refused_is_final() {
    let all = objects(8, [3000; 3]);
    let bench = Bench::new(&all, |_| ());
    bench.origin.mood(|mood| mood.failures.push_back(OriginError::Busy { message: "BUSY".into(), retry_after: Some(Duration::from_millis(400)) }));
    let started = Instant::now();
    assert_eq!(bench.get(&all[0].0).unwrap(), all[0].1);
    assert!(started.elapsed() >= Duration::from_millis(400) && bench.origin.requests() == 2);
    let refused = OriginError::Refused { status: 403, code: "DENIED".into(), message: "not yours".into() };
    bench.origin.mood(|mood| mood.failures.push_back(refused));
    assert!(matches!(bench.get(&all[1].0), Err(FetchError::Refused { message }) if message.contains("not yours")));
    assert_eq!(bench.origin.requests(), 3);
    assert!(matches!(bench.get(&Digest::of(b"no such object")), Err(FetchError::NotFound { .. })));
    bench.assert_quiet();
}

#[test]
fn an_answer_cut_in_the_middle_is_continued() {
    let all = objects(9, [3000; 10]);
    let bench = Bench::new(&all, |_| ());
    bench.origin.mood(|mood| mood.cut_after = Some(4));
    let candidates: Vec<_> = all[1..].iter().map(|object| candidate(object, 1.0)).collect();
    bench.get_with(&all[0], candidates).unwrap();
    for object in &all {
        assert_eq!(bench.get(&object.0).unwrap(), object.1);
    }
    assert!(all[..4].iter().all(|object| bench.origin.times_asked(&object.0) == 1));
    assert_eq!(bench.fetcher.stats().bytes_fetched, 30_000);
    bench.assert_quiet();
}

#[test]
fn offline_asks_nobody() {
    let all = objects(10, [3000; 2]);
    let bench = Bench::new(&all, |options| options.offline = true);
    let started = Instant::now();
    assert!(matches!(bench.get(&all[0].0), Err(FetchError::Offline { digest }) if digest == all[0].0));
    bench.fetcher.prefetch(vec![candidate(&all[1], 1.0)], false);
    assert!(started.elapsed() < LONG);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((bench.origin.requests(), bench.fetcher.stats().requests), (0, 0));
    bench.assert_quiet();
}

#[test]
fn a_full_disk_is_reported_and_the_run_goes_on() {
    let all = objects(11, [3000; 10]);
    let bench = Bench::new(&all, |_| ());
    bench.cache.is_full.store(true, Ordering::SeqCst);
    for object in &all {
        assert_eq!(bench.get(&object.0).unwrap(), object.1);
    }
    bench.fetcher.flush();
    eventually("the failure is reported", || bench.fetcher.stats().store_error.is_some_and(|error| error.contains("os error 28")));
    assert_eq!(bench.cache.len(), 0);
    for object in &all {
        assert_eq!(bench.get(&object.0).unwrap(), object.1);
    }
    assert_eq!(bench.fetcher.stats().bytes_fetched, 30_000);
}

#[test]
fn memory_is_bounded_and_evicted_objects_come_again() {
    let all = objects(12, [10_000; 50]);
    let bench = Bench::new(&all, |options| options.memory_bytes = 100_000);
    bench.cache.is_full.store(true, Ordering::SeqCst);
    // Until the store has failed, what it is to write stays in memory.
    bench.get(&all[0].0).unwrap();
    bench.fetcher.flush();
    for _ in 0..2 {
        for object in &all {
            assert_eq!(bench.get(&object.0).unwrap(), object.1);
        }
    }
    let stats = bench.fetcher.stats();
    assert_eq!(stats.bytes_needed, 500_000);
    assert!(stats.bytes_fetched > 500_000);
    bench.assert_quiet();
}

#[test]
fn an_object_that_others_evict_is_fetched_again() {
    let all = objects(13, [10_000; 3]);
    let bench = Bench::new(&all, |options| options.memory_bytes = 10_000);
    for object in &all {
        bench.get(&object.0).unwrap();
    }
    bench.fetcher.flush();
    bench.cache.evict(&all[0].0);
    assert_eq!(bench.get(&all[0].0).unwrap(), all[0].1);
    assert_eq!(bench.origin.times_asked(&all[0].0), 2);
}

#[test]
fn prefetch_stops_at_the_waste_budget_and_fails_without_harm() {
    let all = objects(14, [50_000; 200]);
    let bench = Bench::new(&all, |options| options.waste_budget_bytes = 1_000_000);
    bench.fetcher.prefetch(all[1..].iter().map(|object| candidate(object, 1.0)).collect(), false);
    eventually("some arrive", || bench.fetcher.stats().bytes_prefetched > 500_000);
    assert_eq!(bench.get(&all[0].0).unwrap(), all[0].1);
    std::thread::sleep(Duration::from_millis(300));
    assert!(bench.fetcher.stats().bytes_prefetched <= 1_000_000, "{:?}", bench.fetcher.stats());
    // Use makes room for more.
    let before = bench.fetcher.stats().bytes_prefetched;
    for object in &all[1..11] {
        bench.get(&object.0).unwrap();
    }
    eventually("more arrive", || bench.fetcher.stats().bytes_prefetched > before);
    bench.fetcher.stop_prefetch();
    bench.assert_quiet();
}

#[test]
fn closing_ends_every_wait() {
    let all = objects(15, [3000; 4]);
    let bench = Bench::new(&all, |_| ());
    bench.origin.mood(|mood| mood.is_held = true);
    std::thread::scope(|scope| {
        let reads: Vec<_> = all.iter().map(|object| scope.spawn(|| bench.get(&object.0))).collect();
        eventually("it waits", || bench.fetcher.gauges().demanded == 4);
        bench.fetcher.close();
        for read in reads {
            assert!(matches!(read.join().unwrap(), Err(FetchError::Unreachable { .. })));
        }
    });
    assert!(bench.get(&all[0].0).is_err());
    bench.assert_quiet();
}
