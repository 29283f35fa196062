//! The wire of a launch: how many round trips it takes, over TLS and without, over one connection and several, and what
//! caches between may keep.

#[path = "../../../registry/tests/common/mod.rs"]
mod common;
mod nginx;
mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use client_store::remote::{Registry, RegistryOptions};
use common::TestRegistry;
use futures::StreamExt;
use layer_format::Digest;
use registry::{Config, TlsFiles};
use support::*;
use tempfile::tempdir;

fn address(registry: &TestRegistry) -> String {
    registry.url.rsplit_once('/').unwrap().1.to_owned()
}

async fn with_tls(data: &std::path::Path, certificate: &Certificate) -> TestRegistry {
    let tls = Some(TlsFiles { cert: certificate.cert.clone(), key: certificate.key.clone() });
    let mut registry = TestRegistry::with_config(Config { tls, ..Config::new(data) }).await;
    let ca = reqwest::Certificate::from_pem(&std::fs::read(&certificate.ca).unwrap()).unwrap();
    registry.client = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    registry.url = registry.url.replace("http:", "https:");
    registry
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_takes_one_round_trip_and_two_with_tls() {
    let folder = tempdir().unwrap();
    let certificate = Certificate::create(folder.path(), "a");
    for (name, tls) in [("plain", false), ("tls", true)] {
        let data = folder.path().join(name);
        let registry = if tls { with_tls(&data, &certificate).await } else { TestRegistry::start(&data).await };
        let remote = registry.repository("tools/app");
        let sample = publish(&registry, &remote).await;
        for lanes in [0, 3] {
            let relay = Relay::to(&address(&registry), Duration::from_millis(60));
            let url = format!("{}://{}", if tls { "https" } else { "http" }, relay.address);
            let ca_file = tls.then(|| certificate.ca.clone());
            let client =
                Registry::new(&url, RegistryOptions { token: Some("secret".into()), lanes: Some(lanes), ca_file, ..RegistryOptions::default() }).unwrap();
            use client_store::Origin;
            let mut stream = client.launch(&"tools/app:1".parse().unwrap(), &"ab".repeat(16), request()).await.unwrap();
            assert!(stream.next().await.unwrap().is_ok());
            let turns: Vec<u64> = relay.connections.lock().unwrap().iter().map(|turns| turns.count.load(Ordering::SeqCst)).collect();
            let most = if tls { 2 } else { 1 };
            assert!(turns.iter().all(|turns| *turns <= most), "{name}, {lanes} lanes: {turns:?}");
            assert_eq!(turns.len(), 1 + usize::from(lanes), "connections that are opened at once");
            if !tls {
                // The token rides along in the first request already.
                for turns in relay.connections.lock().unwrap().iter() {
                    let sent = String::from_utf8_lossy(&turns.sent.lock().unwrap()).to_lowercase();
                    assert!(sent.contains("authorization: bearer secret"), "{sent}");
                }
            }
            drop(stream);
            // On a warm connection it is one more, with TLS or without.
            if lanes == 0 {
                client.head(&"tools/app:1".parse().unwrap()).await.unwrap();
                // The connection is free again a moment after its answer.
                tokio::time::sleep(Duration::from_millis(300)).await;
                let before: u64 = relay.connections.lock().unwrap().iter().map(|turns| turns.count.load(Ordering::SeqCst)).sum();
                let count = relay.connections.lock().unwrap().len();
                let launched = launch(&client, "tools/app:1").await;
                assert!(launched.is_whole && launched.image == Some(sample.digest()));
                let after: u64 = relay.connections.lock().unwrap().iter().map(|turns| turns.count.load(Ordering::SeqCst)).sum();
                assert_eq!((after - before, relay.connections.lock().unwrap().len()), (1, count), "{name}");
            }
        }
        registry.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_bring_the_same_as_one_connection() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = publish(&registry, &remote).await;
    let one = launch(&Registry::new(&registry.url, options()).unwrap(), "tools/app:1").await;
    assert!(one.is_whole && one.objects.len() > 80, "{one:?}");
    for lanes in [1, 3, 7, 200] {
        let relay = Relay::to(&address(&registry), Duration::from_millis(2));
        let client = Registry::new(&format!("http://{}", relay.address), RegistryOptions { lanes: Some(lanes), ..options() }).unwrap();
        let several = launch(&client, "tools/app:1").await;
        assert!(several.is_whole && several.error.is_none(), "{:?}", several.error);
        assert_eq!(several.objects, one.objects);
        assert_eq!(several.image, Some(sample.digest()));
        let carried = relay.connections.lock().unwrap().iter().filter(|turns| turns.down_bytes.load(Ordering::SeqCst) > 50_000).count();
        assert!(carried > 1, "more than one connection carries a part");
    }
    assert_eq!(registry.metric("turbo_registry_active_launches").await, 0);
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_breaks_cuts_the_launch_and_nothing_waits_for_ever() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = publish(&registry, &remote).await;
    for broken in 0..4 {
        let relay = Relay::to(&address(&registry), Duration::from_millis(5));
        let client = Registry::new(&format!("http://{}", relay.address), RegistryOptions { lanes: Some(3), ..options() }).unwrap();
        let connections = std::sync::Arc::clone(&relay.connections);
        let cutter = std::thread::spawn(move || {
            for _ in 0..4000 {
                let found = connections.lock().unwrap().get(broken).filter(|turns| turns.down_bytes.load(Ordering::SeqCst) > 40_000).cloned();
                if let Some(turns) = found {
                    return turns.cut();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let launched = tokio::time::timeout(Duration::from_secs(20), launch(&client, "tools/app:1")).await.expect("it ends");
        assert!(!launched.is_whole && launched.error.as_ref().is_some_and(|error| error.is_retryable()), "{broken}: {launched:?}");
        let known: std::collections::BTreeSet<Digest> = sample.digests().into_iter().collect();
        assert!(launched.objects.is_subset(&known), "nothing wrong is read");
        cutter.join().unwrap();
    }
    registry.stop().await;
}

#[tokio::test]
async fn lanes_are_for_whoever_launched() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    publish(&registry, &remote).await;
    let post = |id: &str, lanes: u8, token: &str| {
        let body = serde_json::to_vec(&layer_format::api::LaunchRequest { lanes, ..request() }).unwrap();
        remote.client.post(format!("{}/launch/1", remote.base)).header("turbo-launch", id).bearer_auth(token).body(body).send()
    };
    let lane = |base: &str, id: &str, token: &str| {
        let request = remote.client.get(format!("{base}/lanes/{id}")).bearer_auth(token).timeout(Duration::from_millis(400)).send();
        async move { request.await.map(|answer| answer.status().as_u16()).unwrap_or(0) }
    };
    // Too short an id could be guessed.
    assert_eq!(common::code(post("ab", 2, "mine").await.unwrap()).await.0, 400);
    let elsewhere = registry.repository("other/app").base;
    // This launch is short: it may be over before its lane comes, which then waits in vain. Not every time.
    let mut found = 0;
    for attempt in 0..40 {
        let id = format!("{attempt:032x}");
        let answer = post(&id, 1, "mine").await.unwrap();
        assert_eq!(answer.headers()["content-type"], layer_format::api::LANES_MEDIA_TYPE);
        assert_ne!(lane(&remote.base, &id, "other").await, 200, "another caller");
        if lane(&remote.base, &id, "mine").await == 200 {
            found += 1;
            assert_ne!(lane(&remote.base, &id, "mine").await, 200, "no more than were announced");
            assert_eq!(lane(&elsewhere, &id, "mine").await, 0, "waits for a launch that there is not");
        }
        drop(answer);
        if found == 2 {
            break;
        }
    }
    assert_eq!(found, 2);
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_checked_and_read_again_when_it_changes() {
    let folder = tempdir().unwrap();
    let (first, second) = (Certificate::create(folder.path(), "first"), Certificate::create(folder.path(), "second"));
    let registry = with_tls(&folder.path().join("data"), &first).await;
    let remote = registry.repository("tools/app");
    let sample = publish(&registry, &remote).await;
    let trusting = |certificate: &Certificate| Registry::new(&registry.url, RegistryOptions { ca_file: Some(certificate.ca.clone()), ..options() }).unwrap();
    assert_eq!(launch(&trusting(&first), "tools/app:1").await.image, Some(sample.digest()));
    for stranger in [trusting(&second), Registry::new(&registry.url, options()).unwrap()] {
        let error = launch(&stranger, "tools/app:1").await.error.unwrap().to_string();
        assert!(error.contains("certificate"), "{error}");
    }
    let answer = registry.client.get(format!("{}/healthz", registry.url)).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    // Half of a renewal is no renewal.
    std::fs::copy(&second.cert, &first.cert).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(launch(&trusting(&first), "tools/app:1").await.is_whole);
    std::fs::copy(&second.key, &first.key).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(launch(&trusting(&second), "tools/app:1").await.is_whole);
    assert!(launch(&trusting(&first), "tools/app:1").await.error.is_some());
    // Who speaks no TLS gets no answer, and disturbs nobody.
    assert!(reqwest::get(registry.url.replace("https:", "http:")).await.is_err());
    for path in [&second.key, &folder.path().join("none")] {
        let wrong = Registry::new(&registry.url, RegistryOptions { ca_file: Some(path.clone()), ..options() }).unwrap_err();
        assert!(wrong.to_string().contains(path.to_str().unwrap()), "{wrong}");
    }
    let broken = TlsFiles { cert: first.cert.clone(), key: folder.path().join("none") };
    let error = registry::App::open(Config { tls: Some(broken), ..Config::new(folder.path().join("other")) }).await.unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn received_bytes_are_those_on_the_wire() {
    use client_store::Origin;
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    publish(&registry, &remote).await;
    for lanes in [0, 3] {
        let relay = Relay::to(&address(&registry), Duration::ZERO);
        let client = Registry::new(&format!("http://{}", relay.address), RegistryOptions { lanes: Some(lanes), ..options() }).unwrap();
        let counted = client.counted();
        let launched = launch(&counted, "tools/app:1").await;
        assert!(launched.is_whole);
        let passed: u64 = relay.connections.lock().unwrap().iter().map(|turns| turns.down_bytes.load(Ordering::SeqCst)).sum();
        let received = counted.received_bytes().unwrap();
        // Heads and the framing of HTTP come on top.
        assert!(received <= passed && received as f64 > passed as f64 * 0.97, "{received} of {passed}");
        assert_eq!(client.received_bytes(), Some(0), "each handle counts for itself");
    }
    registry.stop().await;
}
