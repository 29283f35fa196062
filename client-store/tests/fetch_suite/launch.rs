//! The launch stream: what it brings, and that nothing depends on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use client_store::fetch::Gauges;
use client_store::origin::Received;
use client_store::{Policy, Session, SessionError, SessionOptions};
use layer_format::model::{EntryPoint, LaunchItem, Model, State};
use layer_format::trace::{Source, Touch, Trace};
use layer_format::{Digest, LayerPath};

use crate::support::{FakeCache, FakeOrigin, Image, LONG, LaunchEnd, eventually, objects, runtime};

struct Run {
    image: Image,
    cache: Arc<FakeCache>,
    origin: FakeOrigin,
    runtime: tokio::runtime::Runtime,
}

impl Run {
    fn new(image: Image) -> Self {
        let origin = FakeOrigin::holding(&image.objects);
        origin.mood(|mood| mood.launch = image.preamble());
        Self { image, cache: Arc::default(), origin, runtime: runtime() }
    }

    fn options(&self) -> SessionOptions {
        let mut options =
            SessionOptions::new(self.cache.clone(), Some(Arc::new(self.origin.clone())), self.runtime.handle().clone(), self.image.reference.clone());
        options.wait_limit = LONG;
        options
    }

    fn start(&self) -> Session {
        Session::start(self.options()).unwrap()
    }

    /// A launch stream of these objects behind the preamble.
    fn launch(&self, planned: &[Digest], sent: Vec<Bytes>) {
        self.origin.mood(|mood| {
            mood.launch.push(Received::Plan(planned.iter().map(Digest::prefix64).collect()));
            mood.launch.extend(sent.into_iter().map(Received::Object));
        });
    }

    fn bytes(&self, digests: &[Digest]) -> Vec<Bytes> {
        digests.iter().map(|digest| self.image.objects[digest].clone()).collect()
    }

    /// Everything but the manifests, trees first.
    fn everything(&self) -> Vec<Digest> {
        let mut all: Vec<Digest> = self.image.objects.keys().copied().collect();
        all.retain(|digest| ![self.image.digest, self.image.layer.0, self.image.root.digest].contains(digest));
        all.sort_by_key(|digest| !self.image.objects[digest].starts_with(b"TB"));
        all
    }

    /// Reads the whole image, and compares.
    fn read_all(&self, session: &Session) {
        let layer = &session.layers()[0];
        for (path, content) in &self.image.contents {
            let entry = layer.lookup(path, Default::default()).unwrap().unwrap();
            assert_eq!(layer.read(&entry, 0, content.len(), Default::default()).unwrap(), *content);
        }
    }
}

fn assert_quiet(session: &Session) {
    eventually("all gauges back to zero", || session.fetcher().gauges() == Gauges::default());
}

#[test]
fn a_whole_launch_needs_no_other_request() {
    let run = Run::new(Image::random(20, 60, 4));
    let all = run.everything();
    run.launch(&all, run.bytes(&all));
    let session = run.start();
    assert_eq!(session.manifest().layers, [run.image.layer.0]);
    eventually("the stream is through", || session.has_launched());
    run.read_all(&session);
    assert_eq!(run.origin.requests(), 0, "{:?}", session.stats());
    let stats = session.stats();
    assert_eq!((stats.hit_rate, stats.damaged_objects, stats.requests), (1.0, 0, 1));
    let trace = session.finish();
    assert!(trace.events.iter().all(|event| event.source != Source::Missed));
    assert_eq!(trace.image, run.image.digest);
    assert_quiet(&session);
    // All of it is local now, and the next run asks nobody.
    drop(session);
    assert_eq!(run.cache.len(), run.image.objects.len());
    let launches = run.origin.launches().len();
    let session = Session::start(SessionOptions { digest: Some(run.image.digest), is_complete: true, ..run.options() }).unwrap();
    run.read_all(&session);
    let offline = Session::start(SessionOptions { digest: Some(run.image.digest), policy: Policy::Offline, origin: None, ..run.options() }).unwrap();
    run.read_all(&offline);
    assert_eq!((run.origin.requests(), run.origin.launches().len()), (0, launches));
    assert_eq!(session.stats().local_bytes, session.stats().bytes_needed);
}

#[test]
fn offline_without_the_image_says_so() {
    let run = Run::new(Image::random(21, 1, 1));
    let error = Session::start(SessionOptions { policy: Policy::Offline, ..run.options() }).unwrap_err();
    assert!(matches!(error, SessionError::NotLocal { .. }), "{error}");
    assert_eq!(run.origin.launches().len(), 0);
}

#[test]
fn the_launch_is_repeated_until_the_image_is_here() {
    let run = Run::new(Image::random(22, 10, 2));
    run.origin.mood(|mood| mood.is_down = true);
    std::thread::scope(|scope| {
        let start = scope.spawn(|| run.start());
        eventually("it is tried again", || run.origin.launches().len() >= 2);
        run.origin.mood(|mood| mood.is_down = false);
        run.read_all(&start.join().unwrap());
    });
    run.origin.mood(|mood| mood.is_down = true);
    let options = SessionOptions { wait_limit: Duration::from_millis(200), cache: Arc::new(FakeCache::default()), ..run.options() };
    let error = Session::start(options).unwrap_err();
    assert!(error.to_string().contains("tools/app could not be asked for"), "{error}");
}

#[test]
fn a_stream_that_breaks_is_done_without() {
    for end in [LaunchEnd::Cut, LaunchEnd::Hang] {
        let run = Run::new(Image::random(23, 60, 4));
        let all = run.everything();
        run.launch(&all, run.bytes(&all[..all.len() / 2]));
        run.origin.mood(|mood| mood.launch_end = end);
        let session = run.start();
        let started = Instant::now();
        if end == LaunchEnd::Cut {
            eventually("it breaks", || session.has_launched());
        }
        run.read_all(&session);
        assert!(started.elapsed() < LONG);
        // What came in the stream was not asked for again.
        let asked: usize = all[..4].iter().map(|digest| run.origin.times_asked(digest)).sum();
        assert!(asked == 0 || end == LaunchEnd::Hang, "{asked}");
        let stats = session.stats();
        assert_eq!(stats.damaged_objects, 0);
        session.finish();
        assert_quiet(&session);
    }
}

#[test]
fn a_demand_takes_what_is_far_out_of_the_stream() {
    let run = Run::new(Image::random(24, 200, 6));
    let all = run.everything();
    run.launch(&all, run.bytes(&all));
    run.origin.mood(|mood| (mood.launch_hold_after, mood.rate) = (Some(20), 2e6));
    let session = run.start();
    let last = *all.last().unwrap();
    eventually("the plan is known", || session.stats().bytes_prefetched > 0);
    let found = session.fetcher().get(&last, &client_store::fetch::no_candidates).unwrap();
    assert_eq!(found, run.image.objects[&last]);
    let asked = run.origin.asked();
    let (digests, launch) = asked.iter().find(|(digests, _)| digests.contains(&last)).unwrap();
    assert!(launch.is_some() && digests.len() < 10);
    assert!(session.stats().promotions > 0);
    session.finish();
    assert_quiet(&session);
}

#[test]
fn a_plan_that_lies_is_harmless() {
    let run = Run::new(Image::random(25, 60, 4));
    let all = run.everything();
    let mut planned: Vec<Digest> = objects(1, [10; 300]).into_iter().map(|(digest, _)| digest).collect();
    planned.extend(&all);
    let garbage = objects(2, [5000; 100]);
    run.launch(&planned, garbage.iter().map(|(_, bytes)| bytes.clone()).collect());
    run.origin.mood(|mood| mood.launch_end = LaunchEnd::Hang);
    let session = run.start();
    run.read_all(&session);
    session.finish();
    drop(session);
    assert!(garbage.iter().all(|(digest, _)| !run.cache.holds(digest)));
}

#[test]
fn garbage_in_the_stream_is_counted_and_left_after_the_budget() {
    let run = Run::new(Image::random(26, 10, 4));
    let garbage = objects(3, [50_000; 400]);
    run.launch(&[], garbage.iter().map(|(_, bytes)| bytes.clone()).collect());
    let session = Session::start(SessionOptions { waste_budget_bytes: 1_000_000, ..run.options() }).unwrap();
    run.read_all(&session);
    eventually("the stream is left alone", || session.stats().damaged_objects >= 15);
    std::thread::sleep(Duration::from_millis(200));
    assert!(session.stats().damaged_objects <= 30, "{:?}", session.stats());
    session.finish();
}

#[test]
fn another_image_than_asked_for_is_refused() {
    let run = Run::new(Image::random(27, 3, 2));
    let options = SessionOptions { digest: Some(Digest::of(b"another")), wait_limit: Duration::from_millis(300), ..run.options() };
    let error = Session::start(options).unwrap_err();
    assert!(error.to_string().contains("another image"), "{error}");
}

/// A model whose launch list is these touches.
fn model(touches: &[(LayerPath, Touch)]) -> Model {
    let mut paths: Vec<LayerPath> = touches.iter().map(|(path, _)| path.clone()).collect();
    paths.sort();
    paths.dedup();
    let number = |path: &LayerPath| paths.binary_search(path).unwrap() as u32;
    let mut states: Vec<State> = touches.iter().map(|(path, touch)| State { layer: 0, path: number(path), touch: *touch }).collect();
    states.sort();
    states.dedup();
    let launch = touches.iter().enumerate().map(|(at, (path, touch))| {
        let state = states.binary_search(&State { layer: 0, path: number(path), touch: *touch }).unwrap() as u32;
        LaunchItem { state, count: 1.0, time_us: at as u32 * 10 }
    });
    let entry = EntryPoint::of_one_kind("app".into(), "x86_64".into(), 1.0, launch.collect());
    Model { traces: 1, paths: paths.clone(), states: states.clone(), entry_points: vec![entry], ..Model::default() }
}

fn touches(image: &Image) -> Vec<(LayerPath, Touch)> {
    image
        .contents
        .iter()
        .flat_map(|(path, content)| (0..content.len().div_ceil(16384)).map(|bucket| (path.clone(), Touch::Data { bucket: bucket as u32 })))
        .collect()
}

#[test]
fn the_model_takes_over_when_the_stream_breaks() {
    let run = Run::new(Image::random(28, 60, 4));
    let model = model(&touches(&run.image));
    run.origin.mood(|mood| {
        mood.launch.push(Received::Model(model.encode().into()));
        mood.launch_end = LaunchEnd::Cut;
    });
    let session = run.start();
    eventually("everything was prefetched", || session.stats().bytes_prefetched as usize > run.image.contents.values().map(Vec::len).sum::<usize>() / 2);
    eventually("no more is on its way", || session.fetcher().gauges() == Gauges::default());
    run.read_all(&session);
    assert!(session.stats().hit_rate > 0.9, "{:?}", session.stats());
    assert_eq!(session.model(), Some(Digest::of(&model.encode())));
    session.finish();
}

#[test]
fn a_hostile_model_costs_at_most_the_budget() {
    let run = Run::new(Image::random(29, 400, 8));
    // It predicts everything but the one file that is read, and files that do not exist.
    let read = run.image.contents.keys().next_back().unwrap().clone();
    let mut all = touches(&run.image);
    all.retain(|(path, _)| *path != read);
    all.extend((0..1000).map(|n| (LayerPath::new(format!("none/{n}")).unwrap(), Touch::Data { bucket: u32::MAX })));
    let model = model(&all);
    run.origin.mood(|mood| {
        mood.launch.push(Received::Model(model.encode().into()));
        mood.launch_end = LaunchEnd::Cut;
    });
    let budget = 2_000_000;
    let session = Session::start(SessionOptions { waste_budget_bytes: budget, ..run.options() }).unwrap();
    let layer = &session.layers()[0];
    let entry = layer.lookup(&read, Default::default()).unwrap().unwrap();
    assert_eq!(layer.read(&entry, 0, 1 << 20, Default::default()).unwrap(), run.image.contents[&read]);
    std::thread::sleep(Duration::from_millis(500));
    let stats = session.stats();
    // The model's, and once it proved wrong as much again for guesses. Lengths of tree nodes are not known before they are here.
    assert!(stats.bytes_wasted <= 2 * budget + 300_000, "{stats:?}");
    session.finish();
}

#[test]
fn on_demand_asks_for_no_model_and_still_reads_ahead() {
    let run = Run::new(Image::random(30, 30, 12));
    let session = Session::start(SessionOptions { policy: Policy::OnDemand, ..run.options() }).unwrap();
    run.read_all(&session);
    let request = &run.origin.launches()[0];
    assert!(!request.predict && request.budget_bytes == 0);
    session.finish();
}

#[test]
fn reads_after_the_end_serve_what_is_local() {
    let run = Run::new(Image::random(31, 5, 3));
    let session = run.start();
    run.read_all(&session);
    let trace = session.finish();
    assert_eq!(Trace::decode(&trace.encode()), Ok(trace));
    let layers = session.layers();
    let path = run.image.contents.keys().next().unwrap();
    drop(session);
    let entry = layers[0].lookup(path, Default::default()).unwrap().unwrap();
    assert_eq!(layers[0].read(&entry, 0, 1 << 20, Default::default()).unwrap(), run.image.contents[path]);
}
