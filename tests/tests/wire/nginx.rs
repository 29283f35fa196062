//! Many clients: through a caching proxy, and at once.

use std::sync::Arc;

use client_store::remote::{Registry, RegistryOptions};
use integration_tests::Nginx;
use layer_format::Digest;
use reqwest::StatusCode;
use tempfile::tempdir;

use crate::common::{TestRegistry, code};
use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caching_proxy_serves_the_second_client() {
    let Some(program) = Nginx::program() else {
        eprintln!("skipped: there is no nginx; `cargo xtask test` unpacks Debian's");
        return;
    };
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = publish(&registry, &remote).await;
    let nginx = Nginx::start(&program, &registry.url);
    let by_digest = format!("tools/app@{}", sample.digest());
    let client = || Registry::new(nginx.url(), RegistryOptions { cached_launch: true, ..options() }).unwrap();
    let first = launch(&client(), &by_digest).await;
    assert!(first.is_whole && first.objects.len() > 80);
    let (sent, objects) = (registry.metric("turbo_registry_sent_bytes_total").await, registry.metric("turbo_registry_objects_sent_total").await);
    for reference in [by_digest.as_str(), &by_digest, &by_digest] {
        let next = launch(&client(), reference).await;
        assert!(next.is_whole && next.objects == first.objects && next.image == Some(sample.digest()));
    }
    let answered = registry.metric("turbo_registry_sent_bytes_total").await - sent;
    assert!(answered < 16_000, "{answered} bytes came from the registry");
    assert_eq!(registry.metric("turbo_registry_objects_sent_total").await, objects);
    // Objects are kept as well.
    let object = format!("{}/v1/repositories/tools/app/-/objects/{}", nginx.url(), sample.digests()[5]);
    for cached in ["MISS", "HIT"] {
        let answer = reqwest::get(&object).await.unwrap();
        assert_eq!(answer.headers()["x-cache"], cached);
        assert_eq!(Digest::of(&answer.bytes().await.unwrap()), sample.digests()[5]);
    }
    // What is one client's business is not.
    let plain = Registry::new(nginx.url(), options()).unwrap();
    for _ in 0..2 {
        assert!(launch(&plain, &by_digest).await.is_whole);
    }
    assert!(registry.metric("turbo_registry_objects_sent_total").await >= 3 * objects);
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_kept_and_for_how_long() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = publish(&registry, &remote).await;
    let model = remote.get("model").await.headers()["turbo-digest"].to_str().unwrap().to_owned();
    let digest = sample.digest();
    for (path, expected) in [
        ("launch/1".to_owned(), "public, max-age=5"),
        (format!("launch/{digest}"), "public, max-age=60"),
        (format!("launch/{digest}?model={model}"), "public, max-age=31536000, immutable"),
        (format!("launch/1?model={model}"), "public, max-age=5"),
    ] {
        let answer = remote.get(&path).await;
        assert_eq!(answer.headers()["cache-control"], expected, "{path}");
        let etag = answer.headers()["etag"].clone();
        let whole = crate::common::Stream::read(answer).await;
        assert!(whole.objects.len() > 80, "{path}: it is predicted for the only entry point");
        let again = remote.client.get(format!("{}/{path}", remote.base)).header("if-none-match", etag).send().await.unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    }
    let private = remote.client.get(format!("{}/launch/1", remote.base)).bearer_auth("x").send().await.unwrap();
    assert_eq!(private.headers()["cache-control"], "private, max-age=5");
    assert_eq!(code(remote.get(&format!("launch/{digest}?model={digest}")).await).await, (404, "MODEL_UNKNOWN".into()));
    assert_eq!(code(remote.get("launch/1?budget=x").await).await.0, 400);
    assert_eq!(code(remote.get("launch/2").await).await.0, 404);
    let little = crate::common::Stream::read(remote.get("launch/1?budget=100000").await).await;
    assert!(little.objects.len() < 30, "{}", little.objects.len());
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_clients_read_the_storage_about_once() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    publish(&registry, &remote).await;
    registry.stop().await;
    // A server that has nothing in memory.
    let registry = TestRegistry::start(data.path()).await;
    let touched: u64 = {
        let alone = Registry::new(&registry.url, options()).unwrap();
        assert!(launch(&alone, "tools/app:1").await.is_whole);
        registry.metric("turbo_registry_storage_read_bytes_total").await
    };
    registry.stop().await;
    let registry = TestRegistry::start(data.path()).await;
    let url = Arc::new(registry.url.clone());
    let clients: Vec<_> = (0..20)
        .map(|n| {
            let url = Arc::clone(&url);
            tokio::spawn(async move {
                let client = Registry::new(&url, RegistryOptions { lanes: Some(n % 4), ..options() }).unwrap();
                launch(&client, "tools/app:1").await
            })
        })
        .collect();
    let mut first = None;
    for client in clients {
        let launched = client.await.unwrap();
        assert!(launched.is_whole && launched.error.is_none(), "{:?}", launched.error);
        assert_eq!(first.get_or_insert_with(|| launched.objects.clone()), &launched.objects);
    }
    let read = registry.metric("turbo_registry_storage_read_bytes_total").await;
    assert!(touched > 1_000_000 && read as f64 <= 1.2 * touched as f64, "{read} for 20 clients, {touched} for one");
    registry.stop().await;
}
