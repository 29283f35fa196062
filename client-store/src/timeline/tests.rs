use super::*;

fn path(name: &str) -> LayerPath {
    LayerPath::new(name).unwrap()
}

fn finish(timeline: &Timeline) -> recording::Timeline {
    timeline.finish(timeline.started, Vec::new(), Vec::new(), Totals::default())
}

#[test]
fn a_wait_has_the_name_of_what_its_thread_reads_and_of_nothing_once_that_is_over() {
    let timeline = Timeline::new(Instant::now());
    let told = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&told);
    timeline.set_on_waited(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    {
        let _outer = timeline.asking(&path("usr/lib/a.so"), Touch::Data { bucket: 7 }, std::process::id());
        {
            let _inner = timeline.asking(&path("usr/lib"), Touch::Meta, std::process::id());
            let _wait = timeline.waiting(1, true);
            assert_eq!(timeline.snapshot().waiting.unwrap().path, Some(path("usr/lib")));
        }
        let wait = timeline.waiting(3, false);
        // Another thread reads something else, at the same time.
        std::thread::scope(|scope| scope.spawn(|| drop(timeline.waiting(1, false))).join().unwrap());
        drop(wait);
    }
    drop(timeline.waiting(1, false));
    let recorded = finish(&timeline);
    let named = |wait: &Wait| (wait.path.map(|path| recorded.paths[path as usize].to_string()), wait.objects, wait.is_promoted, wait.process);
    let waits: Vec<_> = recorded.waits.iter().map(named).collect();
    let expected =
        [(Some("/usr/lib".into()), 1, true, Some(0)), (None, 1, false, None), (Some("/usr/lib/a.so".into()), 3, false, Some(0)), (None, 1, false, None)];
    assert_eq!(waits, expected);
    assert_eq!(recorded.waits[2].touch, Touch::Data { bucket: 7 });
    assert_eq!((told.load(Ordering::Relaxed), timeline.snapshot().waiting), (4, None));
}

#[test]
fn arrivals_add_up_whatever_threads_they_come_from() {
    let timeline = Timeline::new(Instant::now());
    std::thread::scope(|scope| {
        for class in CLASSES {
            let timeline = &timeline;
            scope.spawn(move || (0..1000).for_each(|_| timeline.arrived(class, 3, Link::new)));
        }
    });
    let recorded = finish(&timeline);
    for class in CLASSES {
        assert_eq!(recorded.arrivals.iter().filter(|arrival| arrival.class == class).map(|arrival| arrival.bytes).sum::<u64>(), 3000);
        assert_eq!(timeline.snapshot().of(class), 3000);
    }
    assert!(recorded.arrivals.is_sorted_by_key(|arrival| (arrival.slot, arrival.class)));
    assert!(!recorded.estimates.is_empty());
}

#[test]
fn what_is_recorded_stays_within_the_bounds_of_the_format() {
    let timeline = Timeline::new(Instant::now());
    for number in 0..MAX_ITEMS + 10 {
        let _asking = timeline.asking(&path(&format!("file-{number}")), Touch::Meta, 0);
        drop(timeline.waiting(1, false));
        timeline.requested(Ended { class: Class::Demand, started: Instant::now(), first_byte: None, bytes: 1, objects: 1 });
    }
    (0..MAX_MARKS + 5).for_each(|_| timeline.mark_now(MarkKind::Mounted));
    let recorded = finish(&timeline);
    assert_eq!((recorded.waits.len(), recorded.requests.len(), recorded.paths.len(), recorded.marks.len()), (MAX_ITEMS, MAX_ITEMS, MAX_ITEMS, MAX_MARKS));
    let trace = layer_format::trace::Trace {
        image: layer_format::Digest::of(b""),
        entry_point: String::new(),
        architecture: String::new(),
        duration_us: 0,
        paths: Vec::new(),
        events: Vec::new(),
    };
    let recording = recording::Recording { trace, timeline: Some(recorded) };
    assert_eq!(recording::Recording::decode(&recording.encode()), Ok(recording));
}
