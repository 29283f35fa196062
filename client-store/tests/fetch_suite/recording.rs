//! What a timeline records of a run, and that it stays here.

use std::sync::Arc;
use std::time::Instant;

use client_store::fetch::Gauges;
use client_store::recorder::Recording as Recorded;
use client_store::view::Caller;
use client_store::{Policy, Session, SessionOptions, Timeline};
use layer_format::recording::{Class, MarkKind, Recording, Totals};
use layer_format::trace::{Source, Touch, Trace};

use crate::support::{FakeCache, FakeOrigin, Image, LONG, eventually, runtime};

fn options(image: &Image, origin: &FakeOrigin, runtime: &tokio::runtime::Runtime) -> SessionOptions {
    let cache: Arc<FakeCache> = Arc::default();
    let options = SessionOptions::new(cache, Some(Arc::new(origin.clone())), runtime.handle().clone(), image.reference.clone());
    SessionOptions { wait_limit: LONG, policy: Policy::OnDemand, ..options }
}

fn read_all(image: &Image, session: &Session) {
    let caller = Caller { pid: std::process::id() };
    let layer = &session.layers()[0];
    for (path, content) in &image.contents {
        let entry = layer.lookup(path, caller).unwrap().unwrap();
        assert_eq!(layer.read(&entry, 0, content.len(), caller).unwrap(), *content);
    }
}

#[test]
fn a_timeline_tells_of_every_wait_and_byte_and_is_no_part_of_the_trace() {
    let image = Image::random(30, 40, 4);
    let origin = FakeOrigin::holding(&image.objects);
    origin.mood(|mood| mood.launch = image.preamble());
    let runtime = runtime();
    let timeline = Timeline::new(Instant::now());
    let session = Session::start(SessionOptions { timeline: Some(timeline.clone()), ..options(&image, &origin, &runtime) }).unwrap();
    timeline.mark_now(MarkKind::Manifest);
    read_all(&image, &session);
    eventually("all answers have ended", || session.fetcher().gauges() == Gauges::default());
    let snapshot = timeline.snapshot();
    let stats = session.stats();
    let trace = session.finish();
    timeline.mark_now(MarkKind::Exited);
    let details = session.trace_details();
    let recorded = timeline.finish(details.started, details.processes, details.sizes, Totals { received_bytes: stats.bytes_fetched, ..Totals::default() });

    let missed: Vec<_> = trace.events.iter().filter(|event| event.source == Source::Missed).collect();
    assert!(!missed.is_empty() && snapshot.touches[Source::Missed as usize] == missed.len() as u64);
    // Whatever was missed was waited for, under its name.
    for event in &missed {
        let path = &trace.paths[event.path as usize];
        let is_named = |wait: &layer_format::recording::Wait| wait.path.is_some_and(|number| recorded.paths[number as usize] == *path);
        assert!(recorded.waits.iter().any(is_named), "{path}");
    }
    assert!(recorded.waits.iter().all(|wait| wait.start_us + wait.duration_us <= recorded.total_us));
    let named = recorded.waits.iter().filter(|wait| wait.path.is_some());
    assert!(named.clone().all(|wait| recorded.processes[usize::from(wait.process.unwrap())].start_us <= recorded.total_us));
    assert_eq!(recorded.requests.len() as u64, stats.requests, "every request is there");
    assert_eq!(recorded.requests.iter().filter(|request| request.class == Class::Launch).count(), 1);
    let arrived: u64 = recorded.arrivals.iter().map(|arrival| arrival.bytes).sum();
    assert_eq!(arrived, recorded.requests.iter().map(|request| request.bytes).sum::<u64>(), "arrivals and requests tell of the same bytes");
    assert_eq!(arrived, snapshot.received_bytes());
    // All of a file's buckets together need as many bytes as it has.
    assert_eq!(recorded.sizes.len(), trace.events.len());
    for (path, content) in &image.contents {
        let touched = trace.events.iter().zip(&recorded.sizes).filter(|(event, _)| trace.paths[event.path as usize] == *path);
        let sum: u64 = touched.filter(|(event, _)| event.touch != Touch::Meta).map(|(_, size)| u64::from(*size)).sum();
        assert_eq!(sum, content.len() as u64, "{path}");
    }
    assert_eq!(recorded.trace_processes, [0], "one process touched all of it");
    let name = recorded.processes[0].name.clone();
    assert!(!name.is_empty());

    let sent = trace.encode();
    assert_eq!(Trace::decode(&sent).as_ref(), Ok(&trace), "what may be sent is the trace alone");
    assert!(!sent.windows(name.len()).any(|part| part == name.as_bytes()), "and names no process");
    let recording = Recording { trace, timeline: Some(recorded) };
    let bytes = recording.encode();
    assert_eq!(Recording::decode(&bytes), Ok(recording));
    assert!(Trace::decode(&bytes).is_err(), "a registry that is sent a recording does not take it for a trace");
}

#[test]
fn recording_nothing_records_nothing() {
    let image = Image::random(31, 10, 3);
    let origin = FakeOrigin::holding(&image.objects);
    origin.mood(|mood| mood.launch = image.preamble());
    let runtime = runtime();
    let session = Session::start(SessionOptions { recording: Recorded::Off, ..options(&image, &origin, &runtime) }).unwrap();
    read_all(&image, &session);
    assert!(session.finish().events.is_empty());
}
