//! Completing an image in the background: it ends whatever happens, and says so only when all is here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client_store::complete::{CompletionOptions, State};
use client_store::{Policy, Session, SessionOptions};
use layer_format::Digest;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::{FakeCache, FakeOrigin, Image, LONG, Mood, eventually, runtime};

struct Run {
    image: Image,
    cache: Arc<FakeCache>,
    origin: FakeOrigin,
    runtime: tokio::runtime::Runtime,
    completed: Arc<AtomicUsize>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let image = Image::random(seed, 120, 12);
        let origin = FakeOrigin::holding(&image.objects);
        origin.mood(|mood| mood.launch = image.preamble());
        Self { image, cache: Arc::default(), origin, runtime: runtime(), completed: Arc::default() }
    }

    fn start(&self, quiet: Duration, change: impl FnOnce(&mut SessionOptions)) -> Session {
        let mut options =
            SessionOptions::new(self.cache.clone(), Some(Arc::new(self.origin.clone())), self.runtime.handle().clone(), self.image.reference.clone());
        let (completed, expected, cache, needed) = (self.completed.clone(), self.image.digest, self.cache.clone(), self.needed());
        let on_complete = Box::new(move |image: &Digest| {
            assert_eq!(*image, expected);
            assert!(needed.iter().all(|digest| cache.holds(digest)), "an image was said to be complete that is not");
            completed.fetch_add(1, Ordering::SeqCst);
        });
        (options.policy, options.wait_limit, options.stall_limit) = (Policy::OnDemand, LONG, Duration::from_secs(1));
        options.completion = Some(CompletionOptions { quiet, room_bytes: None, on_complete });
        change(&mut options);
        Session::start(options).unwrap()
    }

    /// All but the image's own manifest, which the session keeps.
    fn needed(&self) -> Vec<Digest> {
        self.image.objects.keys().filter(|digest| **digest != self.image.digest).copied().collect()
    }
}

#[test]
fn all_comes_once_and_the_image_is_complete() {
    let run = Run::new(60);
    let session = run.start(Duration::from_millis(50), |_| ());
    let completion = session.completion().unwrap();
    eventually("it is complete", || completion.progress().state == State::Done);
    assert_eq!(run.completed.load(Ordering::SeqCst), 1);
    assert!(run.needed().iter().all(|digest| run.origin.times_asked(digest) <= 1));
    let (stats, progress) = (session.stats(), completion.progress());
    // All but what the launch stream brought; and none of it counts as fetched ahead.
    let len = |digest: &Digest| run.image.objects[digest].len() as u64;
    let brought = len(&run.image.layer.0) + len(&run.image.root.digest);
    assert_eq!(stats.bytes_background, run.needed().iter().map(len).sum::<u64>() - brought, "{stats:?}");
    assert!(stats.bytes_prefetched <= brought && stats.bytes_wasted <= brought, "{stats:?}");
    assert!(progress.total_bytes > 0 && progress.local_bytes == progress.total_bytes, "{progress:?}");
    // What was brought is used without any request.
    let requests = run.origin.requests();
    for (path, content) in &run.image.contents {
        let layer = &session.layers()[0];
        let entry = layer.lookup(path, Default::default()).unwrap().unwrap();
        assert_eq!(layer.read(&entry, 0, content.len(), Default::default()).unwrap(), *content);
    }
    assert_eq!(run.origin.requests(), requests);
}

#[test]
fn random_interruptions_end_in_a_complete_image() {
    let run = Run::new(61);
    let mut rng = StdRng::seed_from_u64(61);
    for round in 0.. {
        assert!(round < 200, "it never ends");
        let session = run.start(Duration::from_millis(10), |_| ());
        let completion = session.completion().unwrap();
        run.origin.mood(|mood| match rng.random_range(0..6) {
            0 => mood.cut_after = Some(rng.random_range(0..20)),
            1 => mood.damaged = 3,
            2 => mood.rate = 3e6,
            3 => mood.delay = Duration::from_millis(5),
            4 => run.cache.evict(&run.needed()[rng.random_range(0..run.needed().len())]),
            _ => *mood = Mood { launch: run.image.preamble(), ..Mood::default() },
        });
        std::thread::sleep(Duration::from_millis(rng.random_range(0..500)));
        let done = completion.progress().state == State::Done;
        session.finish();
        drop(session);
        if done {
            break;
        }
    }
    assert!(run.completed.load(Ordering::SeqCst) >= 1);
}

#[test]
fn it_waits_for_quiet_and_stops_where_there_is_no_room() {
    let run = Run::new(62);
    let session = run.start(Duration::from_secs(3600), |_| ());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((session.stats().bytes_background, session.completion().unwrap().progress().state), (0, State::Waiting));
    drop(session);
    let session = run.start(Duration::from_millis(10), |options| {
        if let Some(completion) = &mut options.completion {
            completion.room_bytes = Some(1000);
        }
    });
    let completion = session.completion().unwrap();
    eventually("it stops", || completion.progress().state == State::Stopped);
    assert_eq!(run.completed.load(Ordering::SeqCst), 0);
    // Metered: there is none.
    assert!(run.start(Duration::ZERO, |options| options.metered = true).completion().is_none());
}

#[test]
fn a_demand_does_not_wait_for_the_background() {
    let run = Run::new(63);
    // Slow enough that it is still under way.
    run.origin.mood(|mood| mood.rate = 200e3);
    let session = run.start(Duration::from_millis(10), |_| ());
    eventually("it is under way", || session.stats().bytes_background > 0);
    let (path, content) = run.image.contents.iter().max_by_key(|(_, content)| content.len()).unwrap();
    let layer = &session.layers()[0];
    let entry = layer.lookup(path, Default::default()).unwrap().unwrap();
    layer.read(&entry, 0, 4096.min(content.len()), Default::default()).unwrap();
    let asked = run.origin.requests();
    std::thread::sleep(Duration::from_millis(300));
    // At most the requests that were under way already go on: none is made for a while after a demand.
    assert!(run.origin.requests() <= asked, "{} {asked}", run.origin.requests());
    assert!(run.needed().iter().all(|digest| run.origin.times_asked(digest) <= 1));
}
