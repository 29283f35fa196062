//! Learning in production: what becomes of traces, whose they are, and what launches get.

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::{CHUNK_LEN, Remote, Sample, TestRegistry, code, noise};
use layer_format::api::{ModelPin, ModelPut};
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::model::Model;
use layer_format::trace::{Event, Source, Touch, Trace};
use layer_format::{Digest, LayerPath};
use registry::{Config, TraceLimits};
use reqwest::StatusCode;
use serde_json::json;
use tempfile::{TempDir, tempdir};

const DATA: fn(u32) -> Touch = |bucket| Touch::Data { bucket };
const META: Touch = Touch::Meta;

/// A run that touches these, a millisecond apart.
fn trace(image: Digest, touched: &[(String, Touch)]) -> Trace {
    let mut paths: Vec<LayerPath> = Vec::new();
    let mut numbers = std::collections::HashMap::new();
    let mut events = Vec::new();
    for (time, (path, touch)) in touched.iter().enumerate() {
        let number = *numbers.entry(path.clone()).or_insert_with(|| {
            paths.push(LayerPath::new(path.as_str()).unwrap());
            paths.len() - 1
        });
        events.push(Event { time_us: 1000 * time as u64, process: 0, layer: 0, path: number as u32, touch: *touch, source: Source::Missed });
    }
    Trace { image, entry_point: "/bin/app".into(), architecture: "x86_64".into(), duration_us: 1_000_000, paths, events }
}

fn files(names: impl IntoIterator<Item = u32>) -> Vec<(String, Touch)> {
    std::iter::once(("bin/app".to_owned(), DATA(0))).chain(names.into_iter().map(|n| (format!("lib/f{n}"), DATA(0)))).collect()
}

/// `bin/app` and `lib/f0` to `lib/f(count - 1)`, one chunk each.
fn sample(count: u32) -> Sample {
    let mut all = vec![("bin/app".to_owned(), noise(1, CHUNK_LEN))];
    all.extend((0..count).map(|n| (format!("lib/f{n}"), noise(1000 + u64::from(n), CHUNK_LEN))));
    Sample::new(&all.iter().map(|(path, content)| (path.as_str(), content.clone())).collect::<Vec<_>>())
}

struct Place {
    registry: TestRegistry,
    remote: Remote,
    _data: TempDir,
}

impl Place {
    async fn start() -> Self {
        Self::with_burst(100_000).await
    }

    async fn with_burst(burst: u32) -> Self {
        let data = tempdir().unwrap();
        let mut config = Config::new(data.path());
        config.limits.traces = TraceLimits { burst, interval: Duration::from_secs(3600) };
        let registry = TestRegistry::with_config(config).await;
        let remote = registry.repository("tools/app");
        Self { registry, remote, _data: data }
    }

    async fn post(&self, from: &str, trace: &Trace) -> reqwest::Response {
        self.remote.client.post(format!("{}/traces", self.remote.base)).header("x-forwarded-for", from).body(trace.encode()).send().await.unwrap()
    }

    /// Sends a trace and waits until it is learned or held. Says whether it was taken.
    async fn learn(&self, from: &str, trace: &Trace) -> bool {
        let taken = self.post(from, trace).await.status() == StatusCode::ACCEPTED;
        self.settle().await;
        taken
    }

    async fn settle(&self) {
        for _ in 0..2000 {
            if self.registry.metric("turbo_registry_waiting_traces").await == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("traces wait for ever");
    }

    async fn model(&self, query: &str) -> Option<(Digest, Model)> {
        let answer = self.remote.get(&format!("model{query}")).await;
        (answer.status() == StatusCode::OK).then_some(())?;
        let bytes = answer.bytes().await.unwrap();
        Some((Digest::of(&bytes), Model::decode(&bytes).unwrap()))
    }

    /// Chunks that a launch was sent.
    async fn launch(&self, reference: &str) -> HashSet<Digest> {
        let stream =
            self.remote.launch(reference, json!({"architecture": "x86_64", "entry_point": "/bin/app", "predict": true, "budget_bytes": 1u64 << 40})).await;
        stream.objects.iter().filter(|(_, bytes)| bytes.len() == CHUNK_LEN).map(|(digest, _)| *digest).collect()
    }

    async fn counts(&self) -> [u64; 4] {
        let mut counts = [0; 4];
        for (count, name) in counts.iter_mut().zip(["traces_merged", "traces_held", "gates_passed", "gates_lost"]) {
            *count = self.registry.metric(&format!("turbo_registry_{name}_total")).await;
        }
        counts
    }
}

/// Of what a run touches, what was sent; and of what was sent, how many chunks it does not touch.
fn compare(sample: &Sample, sent: &HashSet<Digest>, touched: &[(String, Touch)]) -> (usize, usize, usize) {
    let needed: HashSet<Digest> = touched.iter().map(|(path, _)| sample.chunks(path)[0]).collect();
    (needed.len(), needed.intersection(sent).count(), sent.difference(&needed).count())
}

#[tokio::test]
async fn every_fourth_trace_judges_and_what_does_worse_is_not_served() {
    let place = Place::start().await;
    let sample = sample(400);
    place.remote.push("1", &sample).await;
    let honest = trace(sample.digest(), &files(0..50));
    for _ in 0..2 {
        assert!(place.learn("10.0.0.1", &honest).await);
    }
    assert_eq!(place.counts().await, [1, 1, 1, 0], "the second is held out");
    // A model that knows the launch but is unsure of it: one odd trace outweighs all that it knows.
    let (_, mut unsure) = place.model("").await.unwrap();
    for variant in &mut unsure.entry_points[0].variants {
        variant.weight *= 0.01;
        variant.launch.iter_mut().for_each(|item| item.count *= 0.01);
    }
    let brought = place.remote.client.put(format!("{}/model", place.remote.base)).body(unsure.encode()).send().await.unwrap();
    assert_eq!(brought.status(), StatusCode::CREATED);
    let before = place.model("").await.unwrap().0;
    place.learn("10.0.0.1", &trace(sample.digest(), &files(50..400))).await;
    assert_eq!(place.counts().await, [2, 1, 1, 1]);
    assert_eq!(place.model("").await.unwrap().0, before, "it is not served");
    // The candidate learns on, and is served when it does no worse any more.
    let mut rounds = 0;
    while place.model("").await.unwrap().0 == before {
        place.learn("10.0.0.1", &honest).await;
        rounds += 1;
        assert!(rounds < 20, "{:?}", place.counts().await);
    }
    for _ in 0..4 {
        place.learn("10.0.0.1", &honest).await;
    }
    let sent = place.launch("1").await;
    let (needed, hits, wasted) = compare(&sample, &sent, &files(0..50));
    assert_eq!((needed, hits), (51, 51));
    assert!(wasted <= 256, "{wasted}");
    place.registry.stop().await;
}

#[tokio::test]
async fn a_candidate_that_only_loses_is_dropped_in_the_end() {
    let place = Place::start().await;
    let sample = sample(300);
    place.remote.push("1", &sample).await;
    let honest = trace(sample.digest(), &files(0..20));
    for _ in 0..3 {
        place.learn("10.0.0.1", &honest).await;
    }
    let (served, _) = place.model("").await.unwrap();
    let mut round = 0;
    while place.registry.metric("turbo_registry_candidates_dropped_total").await == 0 {
        // Each time something else, under the same name. Those that are held make the judges doubtful, not wrong.
        round += 1;
        place.learn("10.0.0.1", &trace(sample.digest(), &files(20 + 10 * (round % 25)..30 + 10 * (round % 25)))).await;
        assert!(round < 60, "{:?}", place.counts().await);
        if place.model("").await.unwrap().0 != served {
            // The judges changed their mind: launches really are different now.
            break;
        }
    }
    place.registry.stop().await;
}

#[tokio::test]
async fn names_that_are_not_in_the_image_are_neither_learned_nor_kept() {
    let data = tempdir().unwrap();
    let place = Place::start().await;
    let sample = Sample::new(&[("bin/app", noise(1, CHUNK_LEN)), ("home/readme", noise(2, 100)), ("zone/last", noise(3, 100))]);
    place.remote.push("1", &sample).await;
    let mut secret = trace(
        sample.digest(),
        &[
            ("bin/app".into(), META),
            ("bin/app".into(), DATA(0)),
            ("home/ann-secret".into(), META),
            ("home/ann-secret/diary".into(), META),
            ("home/ann-secret".into(), DATA(0)),
            ("home/readme".into(), DATA(7)),
            ("zzz-secret".into(), META),
        ],
    );
    secret.entry_point = "/home/ann-secret/tool".into();
    // Learned, held, learned.
    for _ in 0..3 {
        assert!(place.learn("10.0.0.1", &secret).await);
    }
    assert_eq!(place.counts().await[..2], [2, 1]);
    let (_, model) = place.model("").await.unwrap();
    let known: Vec<String> = model.paths.iter().map(ToString::to_string).collect();
    let real = ["/", "/bin", "/home", "/zone", "/bin/app", "/home/readme", "/zone/last"];
    assert!(known.iter().all(|path| real.contains(&path.as_str())), "{known:?}");
    assert!(known.contains(&"/bin/app".to_owned()) && known.len() > 1, "what answered is learned: {known:?}");
    assert!(model.entry_points.iter().all(|entry| entry.name.starts_with("other-")));
    // A launch of that program finds what was learned, by its own name.
    let sent =
        place.remote.launch("1", json!({"architecture": "x86_64", "entry_point": "/home/ann-secret/tool", "predict": true, "budget_bytes": 1 << 30})).await;
    assert!(sent.objects.contains_key(&sample.chunks("bin/app")[0]));
    // Nor in the database, of which the held trace is a part.
    let folder = place._data.path().to_owned();
    let Place { registry, _data, .. } = place;
    registry.stop().await;
    for file in std::fs::read_dir(&folder).unwrap().flatten().filter(|file| file.path().is_file()) {
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(!bytes.windows(7).any(|window| window == b"-secret"), "{}", file.path().display());
    }
    drop((data, _data));
}

#[tokio::test]
async fn an_image_may_say_that_it_is_not_learned_from() {
    let place = Place::start().await;
    let mut sample = sample(3);
    let mut image = ImageManifest::decode(&sample.image).unwrap();
    image.no_profiling = true;
    sample.image = image.encode().unwrap();
    place.remote.push("1", &sample).await;
    let answer = place.post("10.0.0.1", &trace(sample.digest(), &files(0..2))).await;
    assert_eq!(code(answer).await, (403, "PROFILING_DISABLED".into()));
    let metrics = place.remote.client.get(format!("{}/metrics", place.registry.url)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("turbo_registry_traces_refused_total{reason=\"image\"} 1"));
    assert_eq!(place.model("").await, None);
    place.registry.stop().await;
}

#[tokio::test]
async fn a_client_that_sends_too_much_is_told_so() {
    let place = Place::with_burst(3).await;
    let sample = sample(3);
    place.remote.push("1", &sample).await;
    let run = trace(sample.digest(), &files(0..2));
    for _ in 0..3 {
        assert!(place.learn("10.0.0.1", &run).await);
    }
    let answer = place.post("10.0.0.1", &run).await;
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(code(answer).await, (429, "TOO_MANY_TRACES".into()));
    assert!(place.learn("10.0.0.2", &run).await, "others are not meant");
    // Who forwards is told apart by the last address alone: the first may be made up.
    assert_eq!(place.post("1.2.3.4, 10.0.0.1", &run).await.status(), StatusCode::TOO_MANY_REQUESTS);
    place.registry.stop().await;
}

/// The attacker sends whatever should hurt most, as often as it is taken, before, between and after honest runs.
async fn attack(first: bool, poison: impl Fn(u32) -> Vec<(String, Touch)>) {
    let place = Place::start().await;
    let sample = sample(1600);
    place.remote.push("1", &sample).await;
    let honest = |n: u32| files((0..400).filter(move |file| file % 20 != n % 20));
    let mut evil = 0;
    if first {
        for _ in 0..30 {
            evil += 1;
            place.learn("6.6.6.6", &trace(sample.digest(), &poison(evil))).await;
        }
    }
    for round in 0..24u32 {
        assert!(place.learn(&format!("10.0.0.{}", round % 6), &trace(sample.digest(), &honest(round))).await, "an honest client is heard");
        for _ in 0..4 {
            evil += 1;
            place.learn("6.6.6.6", &trace(sample.digest(), &poison(evil))).await;
        }
    }
    let touched = honest(7);
    let (needed, hits, wasted) = compare(&sample, &place.launch("1").await, &touched);
    // The waste budget, and what counts as nothing: 1 MiB is 64 chunks.
    assert!(wasted <= (needed / 5).max(64), "{wasted} chunks in vain, {needed} needed; {:?}", place.counts().await);
    assert!(hits * 100 >= needed * 90, "{hits} of {needed} predicted; {:?}", place.counts().await);
    place.registry.stop().await;
}

#[tokio::test]
async fn who_claims_to_touch_all_of_the_image_costs_others_little() {
    attack(false, |_| files(0..1600)).await;
}

#[tokio::test]
async fn not_even_when_it_comes_first() {
    attack(true, |_| files((0..1600).rev())).await;
}

#[tokio::test]
async fn nor_does_one_who_touches_ever_new_things_at_once() {
    attack(false, |round| files((0..600).map(|n| 400 + (n + 37 * round) % 1200))).await;
}

#[tokio::test]
async fn pins_stay_and_models_can_be_brought() {
    let place = Place::start().await;
    let sample = sample(40);
    place.remote.push("1", &sample).await;
    let client = &place.remote.client;
    let pin = |reference: String, body: &'static str| client.put(format!("{}/pins/{reference}", place.remote.base)).body(body).send();
    assert_eq!(code(pin("1".into(), "").await.unwrap()).await, (404, "MODEL_UNKNOWN".into()));
    place.learn("10.0.0.1", &trace(sample.digest(), &files(0..10))).await;
    let (first, model) = place.model("").await.unwrap();
    let answer: ModelPin = pin("1".into(), "").await.unwrap().json().await.unwrap();
    assert_eq!(answer.model, Some(first));
    for n in 0..12 {
        place.learn("10.0.0.1", &trace(sample.digest(), &files(0..10 + n))).await;
    }
    let (learned, _) = place.model("").await.unwrap();
    assert_ne!(learned, first);
    assert_eq!(place.model("?image=1").await.unwrap().0, first, "pinned");
    assert_eq!(place.model("?image=head").await.unwrap().0, first, "head is the same image");
    let answer = place.remote.get(&format!("model?digest={first}")).await;
    assert_eq!(answer.headers()["cache-control"], "public, max-age=31536000, immutable", "older than the last eight, and there");
    let unpin = |reference: &'static str| client.delete(format!("{}/pins/{reference}", place.remote.base)).send();
    assert_eq!(code(unpin("head").await.unwrap()).await, (404, "PIN_UNKNOWN".into()));
    assert_eq!(unpin("1").await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(place.model("?image=1").await.unwrap().0, learned);
    assert_eq!(code(pin("2".into(), "").await.unwrap()).await, (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(code(pin("1".into(), "{\"model\": 7}").await.unwrap()).await, (400, "BODY_INVALID".into()));

    // A model from elsewhere, of which a part is not in the image.
    let put = |body: Vec<u8>, query: &'static str| client.put(format!("{}/model{query}", place.remote.base)).body(body).send();
    let brought: ModelPut = put(model.encode(), "?image=1").await.unwrap().json().await.unwrap();
    assert_eq!((brought.digest, brought.image), (first, sample.digest()), "all of it is in the image");
    assert_eq!(place.model("?image=1").await.unwrap().0, first);
    let mut foreign = model.clone();
    let last = foreign.paths.len() - 1;
    foreign.paths[last] = LayerPath::new("zzz/ann").unwrap();
    let brought: ModelPut = put(foreign.encode(), "").await.unwrap().json().await.unwrap();
    let (digest, kept) = place.model("?image=1").await.unwrap();
    assert_eq!(digest, brought.digest);
    assert!(kept.states.len() == model.states.len() - 1 && kept.paths.iter().all(|path| !path.to_string().contains("ann")));
    foreign.paths.iter_mut().enumerate().for_each(|(n, path)| *path = LayerPath::new(format!("zzz/{n:05}")).unwrap());
    assert_eq!(code(put(foreign.encode(), "").await.unwrap()).await, (422, "MODEL_UNSUITABLE".into()));
    assert_eq!(code(put(b"nonsense".to_vec(), "").await.unwrap()).await, (400, "BODY_INVALID".into()));

    // What is pinned survives a reset.
    pin("1".into(), "").await.unwrap();
    assert_eq!(client.delete(format!("{}/model", place.remote.base)).send().await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!((place.model("").await, place.model("?image=1").await.map(|found| found.0)), (None, Some(digest)));
    place.registry.stop().await;
}

#[tokio::test]
async fn the_next_version_is_predicted_before_its_first_launch() {
    let place = Place::start().await;
    let big = |first: u64| -> Vec<u8> { (first..first + 60).flat_map(|n| noise(7000 + n, CHUNK_LEN)).collect() };
    let mut all: Vec<(String, Vec<u8>)> = vec![("bin/app".into(), noise(1, CHUNK_LEN))];
    all.extend((0..600).map(|n| (format!("share/unused/f{n}"), noise(100 + n, 300))));
    all.extend((0..40).map(|n| (format!("lib/mod-1.2.3.dist-info/m{n}"), noise(3000 + n, CHUNK_LEN))));
    all.extend((0..40).map(|n| (format!("opt/data/d{n}"), noise(4000 + n, CHUNK_LEN))));
    all.push(("lib/libx-6cdc3b4a.so".into(), big(0)));
    all.push(("etc/old.conf".into(), noise(5, CHUNK_LEN)));
    let mut next: Vec<(String, Vec<u8>)> = Vec::new();
    for (path, content) in &all {
        match path.as_str() {
            "etc/old.conf" => {}
            // Renamed, and three chunks more near its start.
            "lib/libx-6cdc3b4a.so" => {
                let mut content = content.clone();
                content.splice(2 * CHUNK_LEN..2 * CHUNK_LEN, (0..3).flat_map(|n| noise(9000 + n, CHUNK_LEN)));
                next.push(("lib/libx-a1b2c3d4.so".into(), content));
            }
            // Every second file has other content; the folder has another version.
            path if path.starts_with("lib/mod") => {
                let n: u64 = path.rsplit('m').next().unwrap().parse().unwrap();
                let content = if n.is_multiple_of(2) { noise(8000 + n, CHUNK_LEN) } else { content.clone() };
                next.push((path.replace("1.2.3", "1.3.0rc1"), content));
            }
            // Moved to quite another place.
            path if path.starts_with("opt/data") => next.push((path.replace("opt/data", "var/lib/app"), content.clone())),
            path => next.push((path.to_owned(), content.clone())),
        }
    }
    next.push(("bin/new".into(), noise(6, 300)));
    let make = |files: &[(String, Vec<u8>)]| Sample::new(&files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect::<Vec<_>>());
    let (one, two) = (make(&all), make(&next));
    place.remote.push("1", &one).await;
    let touched = |info: &str, data: &str, library: &str, shift: u32| -> Vec<(String, u32)> {
        let mut touched = vec![("bin/app".to_owned(), 0)];
        touched.extend((0..40).map(|n| (format!("lib/{info}/m{n}"), 0)));
        touched.extend((0..40).map(|n| (format!("{data}/d{n}"), 0)));
        touched.extend([0, 1].map(|bucket| (format!("lib/{library}"), bucket)));
        touched.extend((10..40).map(|bucket| (format!("lib/{library}"), bucket + shift)));
        touched
    };
    let first = touched("mod-1.2.3.dist-info", "opt/data", "libx-6cdc3b4a.so", 0);
    let mut run: Vec<(String, Touch)> = first.iter().map(|(path, bucket)| (path.clone(), DATA(*bucket))).collect();
    run.push(("etc/old.conf".into(), DATA(0)));
    for _ in 0..3 {
        place.learn("10.0.0.1", &trace(one.digest(), &run)).await;
    }
    let (served, _) = place.model("?image=1").await.unwrap();
    place.remote.push("2", &two).await;
    place.settle().await;
    assert_eq!(place.registry.metric("turbo_registry_models_carried_total").await, 1);
    assert_eq!(place.model("?image=1").await.unwrap().0, served, "the old image keeps its model");
    let (carried, model) = place.model("?image=2").await.unwrap();
    assert_eq!((model.image, place.model("").await.unwrap().0), (Some(two.digest()), carried), "the newest image's is the repository's");
    assert!(model.paths.iter().all(|path| two.files.contains_key(path)), "what is gone is forgotten");

    let share = |sample: &Sample, sent: &HashSet<Digest>, touched: &[(String, u32)]| {
        let needed: HashSet<Digest> = touched.iter().map(|(path, bucket)| sample.chunks(path)[*bucket as usize]).collect();
        (needed.intersection(sent).count() as f64 / needed.len() as f64, sent.difference(&needed).count())
    };
    let (before, _) = share(&one, &place.launch("1").await, &first);
    let second = touched("mod-1.3.0rc1.dist-info", "var/lib/app", "libx-a1b2c3d4.so", 3);
    let second: Vec<(String, u32)> =
        second.into_iter().map(|(path, bucket)| if bucket == 3 || bucket == 4 { (path, bucket - 3) } else { (path, bucket) }).collect();
    let (after, wasted) = share(&two, &place.launch("2").await, &second);
    assert!(before == 1.0 && after >= 0.99 * before && wasted <= 2, "{before} before, {after} after, {wasted} in vain");

    // What is learned of the second image goes into the carried model, and the first one's stays.
    let run: Vec<(String, Touch)> = second.iter().map(|(path, bucket)| (path.clone(), DATA(*bucket))).chain([("bin/new".to_owned(), DATA(0))]).collect();
    for _ in 0..3 {
        place.learn("10.0.0.1", &trace(two.digest(), &run)).await;
    }
    let (_, model) = place.model("?image=2").await.unwrap();
    assert!(model.traces > 3 && model.paths.contains(&LayerPath::new("bin/new").unwrap()));
    assert_eq!(place.model("?image=1").await.unwrap().0, served);
    // An image that is put again is the newest again.
    place.remote.push("1", &one).await;
    place.settle().await;
    assert_eq!(place.model("").await.unwrap().0, served);
    place.registry.stop().await;
}
