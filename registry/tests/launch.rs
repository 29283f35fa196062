//! Launches and learning: what is sent, in which order, and what is not.

mod common;

use std::time::Duration;

use common::{CHUNK_LEN, Got, Remote, Sample, Stream, TestRegistry, code, noise};
use futures::StreamExt;
use layer_format::api::{HaveFilter, LAUNCH_HEADER, encode_digests};
use layer_format::model::Model;
use layer_format::trace::{Event, Source, Touch, Trace};
use layer_format::{Digest, LayerPath};
use reqwest::StatusCode;
use serde_json::json;
use tempfile::tempdir;

fn trace_of(sample: &Sample, touched: &[(&str, Touch)]) -> Trace {
    let mut paths: Vec<LayerPath> = Vec::new();
    let mut events = Vec::new();
    for (time, (path, touch)) in touched.iter().enumerate() {
        let path = LayerPath::new(*path).unwrap();
        let at = paths.iter().position(|known| *known == path).unwrap_or_else(|| {
            paths.push(path);
            paths.len() - 1
        });
        events.push(Event { time_us: 1000 * time as u64, process: 0, layer: 0, path: at as u32, touch: *touch, source: Source::Missed });
    }
    Trace { image: sample.digest(), entry_point: "/bin/app".into(), architecture: "x86_64".into(), duration_us: 1_000_000, paths, events }
}

async fn learn(registry: &TestRegistry, remote: &Remote, trace: &Trace) {
    let before = registry.metric("turbo_registry_traces_merged_total").await;
    let answer = remote.client.post(format!("{}/traces", remote.base)).body(trace.encode()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    for _ in 0..1000 {
        if registry.metric("turbo_registry_traces_merged_total").await > before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the trace was not merged");
}

fn app() -> Sample {
    let mut files = vec![("bin/app".to_owned(), noise(1, 3 * CHUNK_LEN)), ("lib/big.so".to_owned(), noise(2, 30 * CHUNK_LEN))];
    files.extend((0..2000).map(|n| (format!("share/d{}/f{n}", n % 30), noise(100 + n, 200))));
    Sample::new(&files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect::<Vec<_>>())
}

const DATA: fn(u32) -> Touch = |bucket| Touch::Data { bucket };

#[tokio::test]
async fn a_first_launch_brings_what_leads_to_the_program() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = app();
    remote.push("1", &sample).await;
    let stream = remote.launch("1", json!({"architecture": "x86_64", "predict": true, "budget_bytes": 1 << 30})).await;
    assert_eq!(stream.records[0], Got::Image(sample.digest()));
    assert_eq!(stream.records[1..3], [Got::Object(sample.layer), Got::Object(sample.root)]);
    let Got::Plan(plan) = &stream.records[3] else { panic!("{:?}", stream.records[3]) };
    let rest: Vec<u64> = stream.sent()[2..].iter().map(Digest::prefix64).collect();
    assert_eq!(&rest, plan);
    assert!((1..=4).contains(&rest.len()), "{} tree objects", rest.len());
    assert!(sample.chunks("bin/app").iter().all(|chunk| !stream.objects.contains_key(chunk)), "no content was predicted");
    assert_eq!(code(remote.client.post(format!("{}/launch/nope", remote.base)).body("{}").send().await.unwrap()).await, (404, "MANIFEST_UNKNOWN".into()));
    registry.stop().await;
}

#[tokio::test]
async fn what_was_touched_before_is_sent_in_that_order() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = app();
    remote.push("1", &sample).await;
    assert_eq!(code(remote.get("model").await).await, (404, "MODEL_UNKNOWN".into()));
    // bin/app is touched first, then the middle of the library (behind a recipe node), then a file that was made up.
    let trace = trace_of(
        &sample,
        &[
            ("bin/app", Touch::Meta),
            ("bin/app", DATA(0)),
            ("bin/app", DATA(1)),
            ("lib/big.so", DATA(20)),
            ("lib/none.so", Touch::Meta),
            ("lib/none.so", DATA(0)),
            ("lib/big.so", DATA(999)),
        ],
    );
    learn(&registry, &remote, &trace).await;

    let answer = remote.get("model").await;
    let etag = answer.headers()["etag"].clone();
    let model = Model::decode(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(model.traces, 1);
    assert_eq!(model.states.len(), 5, "what cannot have happened is not learned: {:?}", model.states);
    let again = remote.client.get(format!("{}/model", remote.base)).header("if-none-match", etag.clone()).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let digest = etag.to_str().unwrap().trim_matches('"').to_owned();
    assert_eq!(remote.get(&format!("model?digest={digest}")).await.status(), StatusCode::OK);
    assert_eq!(code(remote.get(&format!("model?digest={}", Digest::of(b"x"))).await).await, (404, "MODEL_UNKNOWN".into()));

    let request = |more: serde_json::Value| {
        let mut request = json!({"architecture": "x86_64", "predict": true, "budget_bytes": 1 << 30});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let stream = remote.launch("head", request(json!({}))).await;
    // Image, layer and root go first, and are not held up by the model.
    assert!(matches!(&stream.records[..4], [Got::Image(_), Got::Object(_), Got::Object(_), Got::Plan(_)]));
    assert!(stream.records.iter().any(|record| matches!(record, Got::Model(bytes) if Digest::of(bytes).to_string() == digest)));
    let (program, library) = (sample.chunks("bin/app"), sample.chunks("lib/big.so"));
    let order: Vec<Digest> = stream.sent().into_iter().filter(|digest| program.contains(digest) || library.contains(digest)).collect();
    assert_eq!(order, [program[0], program[1], library[20]]);
    // Everything after the root was announced before it came, and nothing else.
    let mut planned: Vec<u64> = Vec::new();
    for got in stream.records[3..].iter().filter(|got| !matches!(got, Got::Model(_))) {
        match got {
            Got::Plan(plan) => planned.extend(plan),
            Got::Object(digest) => assert!(planned.contains(&digest.prefix64())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(planned.len(), stream.sent().len() - 2);
    // Parents before children: a tree can be walked with what came before.
    let mut have = HaveFilter::for_count(100);
    stream.objects.keys().for_each(|digest| have.insert(digest));
    let stream = remote.launch("head", request(json!({"have": have.to_hex(), "model": digest}))).await;
    assert_eq!(stream.records, [Got::Image(sample.digest())], "a client that has all of it gets the image alone");
    let stream = remote.launch("head", request(json!({"budget_bytes": 0}))).await;
    assert!(!stream.records.iter().any(|got| matches!(got, Got::Plan(_))), "no budget, no prediction");

    assert_eq!(remote.client.delete(format!("{}/model", remote.base)).send().await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(code(remote.get("model").await).await, (404, "MODEL_UNKNOWN".into()));
    registry.stop().await;
}

#[tokio::test]
async fn what_is_asked_for_meanwhile_is_not_sent_again() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    // More than the buffers of a connection hold, of noise that does not compress.
    let content: Vec<u8> = (0..24 << 20)
        .scan(7u64, |state, _| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            Some((*state >> 56) as u8)
        })
        .collect();
    let sample = Sample::new(&[("bin/app", content)]);
    remote.push("1", &sample).await;
    let chunks = sample.chunks("bin/app");
    let touched: Vec<(&str, Touch)> = (0..chunks.len()).map(|n| ("bin/app", DATA(n as u32))).collect();
    learn(&registry, &remote, &trace_of(&sample, &touched)).await;

    let request = json!({"architecture": "x86_64", "predict": true, "budget_bytes": 1 << 30});
    let launch = remote.client.post(format!("{}/launch/1", remote.base)).header(LAUNCH_HEADER, "abc123").body(request.to_string()).send().await.unwrap();
    let mut wire = launch.bytes_stream();
    let mut received = wire.next().await.unwrap().unwrap().to_vec();
    assert_eq!(registry.metric("turbo_registry_active_launches").await, 1);
    let promoted = &chunks[chunks.len() - 100..];
    let other = registry.repository("tools/other").client.post(format!("{}/v1/repositories/tools/other/-/objects", registry.url));
    other.header(LAUNCH_HEADER, "abc123").body(encode_digests(chunks)).send().await.unwrap().bytes().await.unwrap();
    let asked = remote.client.post(format!("{}/objects", remote.base)).header(LAUNCH_HEADER, "abc123").body(encode_digests(promoted)).send().await.unwrap();
    assert_eq!(Stream::read(asked).await.sent(), promoted);
    while let Some(bytes) = wire.next().await {
        received.extend_from_slice(&bytes.unwrap());
    }
    let launch = Stream::decode(&received);
    let sent = promoted.iter().filter(|digest| launch.objects.contains_key(digest)).count();
    assert_eq!(sent, 0, "{sent} of {} were sent twice", promoted.len());
    assert!(chunks[..chunks.len() - 100].iter().all(|digest| launch.objects.contains_key(digest)), "another repository takes nothing out");
    assert_eq!(registry.metric("turbo_registry_active_launches").await, 0);
    registry.stop().await;
}

#[tokio::test]
async fn traces_are_bounded_and_can_be_turned_off() {
    let data = tempdir().unwrap();
    let mut config = registry::Config::new(data.path());
    config.traces = false;
    let registry = TestRegistry::with_config(config).await;
    let remote = registry.repository("tools/app");
    let sample = app();
    remote.push("1", &sample).await;
    let trace = trace_of(&sample, &[("bin/app", Touch::Meta)]).encode();
    let post = |remote: &Remote, body: Vec<u8>| remote.client.post(format!("{}/traces", remote.base)).body(body).send();
    assert_eq!(code(post(&remote, trace.clone()).await.unwrap()).await, (403, "TRACES_DISABLED".into()));
    registry.stop().await;

    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    assert_eq!(code(post(&remote, b"nonsense".to_vec()).await.unwrap()).await, (400, "BODY_INVALID".into()));
    let mut unknown = trace_of(&sample, &[("bin/app", Touch::Meta)]);
    unknown.image = Digest::of(b"other");
    assert_eq!(code(post(&remote, unknown.encode()).await.unwrap()).await, (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(code(post(&registry.repository("other/app"), trace.clone()).await.unwrap()).await, (404, "MANIFEST_UNKNOWN".into()));
    let answers = futures::future::join_all((0..40).map(|_| post(&remote, trace.clone()))).await;
    for answer in answers {
        let answer = answer.unwrap();
        if answer.status() != StatusCode::ACCEPTED {
            assert!(answer.headers().contains_key("retry-after"));
            assert_eq!(code(answer).await, (429, "TOO_MANY_TRACES".into()));
        }
    }
    // What was accepted is merged before the server is gone.
    registry.stop().await;
    let registry = TestRegistry::start(data.path()).await;
    let model = registry.repository("tools/app").get("model").await.bytes().await.unwrap();
    assert!(Model::decode(&model).unwrap().traces >= 1);
    registry.stop().await;
}
