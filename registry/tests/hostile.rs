//! Clients that are broken, slow or hostile: each gets a JSON error, and the server goes on.

mod common;

use std::time::{Duration, Instant};

use common::{Sample, TestRegistry, code, noise, temp_files};
use layer_format::Digest;
use registry::Config;
use tempfile::tempdir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn every_refusal_is_json() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let sample = Sample::generated(1, 3, 100);
    registry.repository("tools/app").push("1", &sample).await;
    let hex = Digest::of(b"x");
    for (method, path, status, expected) in [
        ("GET", "/".to_owned(), 404, "ROUTE_UNKNOWN"),
        ("GET", "/v1/nothing".into(), 404, "ROUTE_UNKNOWN"),
        ("POST", "/healthz".into(), 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/repositories?limit=x".into(), 400, "BAD_REQUEST"),
        ("GET", "/v1/repositories/tools/app/-/missing".into(), 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/repositories/tools/app/-/nothing".into(), 404, "ROUTE_UNKNOWN"),
        ("GET", "/v1/repositories/Tools/app/-/tags".into(), 400, "NAME_INVALID"),
        ("GET", "/v1/repositories/%2e%2e/%2e%2e/-/tags".into(), 404, "ROUTE_UNKNOWN"),
        ("GET", "/v1/repositories/tools%2Fapp/-/tags".into(), 400, "NAME_INVALID"),
        ("GET", "/v1/repositories/other/app/-/tags".into(), 404, "REPOSITORY_UNKNOWN"),
        ("GET", "/v1/repositories/tools/app/-/objects/b3:1".into(), 400, "DIGEST_INVALID"),
        ("GET", format!("/v1/repositories/tools/app/-/objects/{hex}"), 404, "OBJECT_UNKNOWN"),
        ("GET", "/v1/repositories/tools/app/-/manifests/-x".into(), 400, "RELEASE_INVALID"),
    ] {
        let request = registry.client.request(method.parse().unwrap(), format!("{}{path}", registry.url));
        let answer = request.send().await.unwrap();
        assert_eq!(code(answer).await, (status, expected.to_owned()), "{method} {path}");
    }
    registry.stop().await;
}

#[tokio::test]
async fn nonsense_to_every_route_is_refused() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let sample = Sample::generated(2, 3, 100);
    registry.repository("tools/app").push("1", &sample).await;
    for seed in 0..120u64 {
        let mut body = noise(seed, (seed as usize * 37) % 3000);
        if seed % 3 == 0 {
            // Something that begins as it should.
            let start = [&b"TURBPACK\x01"[..], b"TBTR\x01", b"{\"format\":\"turbo-image/1\"", b"\x02\0\0\0"][seed as usize / 3 % 4];
            body.splice(0..0, start.iter().copied());
        }
        let digest = Digest::of(&body);
        for (method, action) in [
            ("POST", "missing".to_owned()),
            ("PUT", format!("packs/{digest}")),
            ("PUT", "manifests/x".into()),
            ("POST", "objects".into()),
            ("POST", "objects?frames=1".into()),
            ("POST", "launch/1".into()),
            ("POST", "traces".into()),
        ] {
            let request = registry.client.request(method.parse().unwrap(), format!("{}/v1/repositories/tools/app/-/{action}", registry.url));
            let (status, _) = code(request.body(body.clone()).send().await.unwrap()).await;
            assert!((400..500).contains(&status), "{method} {action} with seed {seed} gave {status}");
        }
    }
    let answer = registry.client.get(format!("{}/healthz", registry.url)).send().await.unwrap();
    assert!(answer.status().is_success());
    assert_eq!(temp_files(data.path()), 0);
    registry.stop().await;
}

#[tokio::test]
async fn bodies_are_bounded() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let base = registry.repository("tools/app").base;
    let long = vec![b'a'; 5 << 20];
    for (method, action) in [("POST", "missing"), ("PUT", "manifests/x"), ("POST", "objects"), ("POST", "launch/1")] {
        let answer = registry.client.request(method.parse().unwrap(), format!("{base}/{action}")).body(long.clone()).send().await;
        // A client that is still sending may see the connection closed instead.
        if let Ok(answer) = answer {
            assert_eq!(code(answer).await, (413, "BODY_TOO_LARGE".into()), "{method} {action}");
        }
    }
    // The same without a length that could be looked at first.
    let pieces = futures::stream::iter((0..80).map(|_| Ok::<_, std::io::Error>(vec![b'a'; 1 << 16])));
    let answer = registry.client.put(format!("{base}/manifests/x")).body(reqwest::Body::wrap_stream(pieces)).send().await;
    if let Ok(answer) = answer {
        assert_eq!(code(answer).await, (413, "BODY_TOO_LARGE".into()));
    }
    registry.stop().await;
}

fn impatient(data: &std::path::Path) -> Config {
    let mut config = Config::new(data);
    config.limits.header_timeout = Duration::from_millis(300);
    config.limits.body_idle_timeout = Duration::from_millis(300);
    config.limits.body_grace = Duration::from_millis(500);
    config.limits.min_body_rate = 10_000;
    config
}

/// Sends `head`, then `drip` every 50 ms until the server answers or hangs up; returns what it said.
async fn drip(url: &str, head: &str, drip: &[u8]) -> String {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(20), "the server waits for ever");
        let mut buffer = [0; 4096];
        match tokio::time::timeout(Duration::from_millis(50), stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(len)) => answer.extend_from_slice(&buffer[..len]),
            Err(_) => drop(stream.write_all(drip).await),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn slow_clients_are_cut() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::with_config(impatient(data.path())).await;
    let pack = format!("PUT /v1/repositories/a/b/-/packs/{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100000\r\n\r\n", Digest::of(b"x"));
    assert!(drip(&registry.url, &pack, b"T").await.contains("BODY_TOO_SLOW"), "a body below the rate");
    assert!(drip(&registry.url, &pack, b"").await.contains("BODY_TOO_SLOW"), "a body that pauses");
    drip(&registry.url, "GET /healthz HTTP/1.1\r\n", b"a").await;
    drip(&registry.url, "", b"").await;
    drip(&registry.url, "PRI", b"").await;
    assert_eq!(temp_files(data.path()), 0);
    assert_eq!(registry.metric("turbo_registry_active_requests").await, 1, "only the one that asks");
    registry.stop().await;
}

#[tokio::test]
async fn a_client_that_is_gone_leaves_nothing() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let pack = Sample::generated(3, 20, 20_000).pack();
    let head = format!("PUT /v1/repositories/a/b/-/packs/{} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", Digest::of(&pack), pack.len());
    let mut stream = TcpStream::connect(registry.url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&pack[..pack.len() / 2]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(temp_files(data.path()), 1);
    drop(stream);
    let began = Instant::now();
    while temp_files(data.path()) != 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "the temporary file stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let remote = registry.repository("a/b");
    assert!(remote.put_pack(&pack).await.status().is_success());
    registry.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_and_others_are_told_to_come_again() {
    let data = tempdir().unwrap();
    let mut config = Config::new(data.path());
    config.limits.max_streams = 1;
    config.limits.write_stall_timeout = Duration::from_millis(500);
    let registry = TestRegistry::with_config(config).await;
    let remote = registry.repository("tools/app");
    let sample = Sample::generated(4, 1500, common::CHUNK_LEN);
    assert!(remote.put_pack(&sample.pack()).await.status().is_success());
    // Asks for 23 MiB and reads none of it.
    let list = layer_format::api::encode_digests(&sample.digests());
    let mut lazy = TcpStream::connect(registry.url.strip_prefix("http://").unwrap()).await.unwrap();
    lazy.write_all(format!("POST /v1/repositories/tools/app/-/objects?frames=1 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", list.len()).as_bytes())
        .await
        .unwrap();
    lazy.write_all(&list).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ask = || remote.client.post(format!("{}/objects", remote.base)).body(list.clone()).send();
    let answer = ask().await.unwrap();
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(code(answer).await, (503, "BUSY".into()));
    let began = Instant::now();
    while !ask().await.unwrap().status().is_success() {
        assert!(began.elapsed() < Duration::from_secs(20), "the place is never free again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let began = Instant::now();
    registry.stop().await;
    assert!(began.elapsed() < Duration::from_secs(15), "the connection was not cut");
}

#[tokio::test]
async fn a_client_that_takes_nothing_holds_up_no_one() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = Sample::generated(4, 1500, common::CHUNK_LEN);
    assert!(remote.put_pack(&sample.pack()).await.status().is_success());
    let list = layer_format::api::encode_digests(&sample.digests());
    let mut lazy = Vec::new();
    for _ in 0..12 {
        let mut client = TcpStream::connect(registry.url.strip_prefix("http://").unwrap()).await.unwrap();
        client
            .write_all(format!("POST /v1/repositories/tools/app/-/objects HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", list.len()).as_bytes())
            .await
            .unwrap();
        client.write_all(&list).await.unwrap();
        lazy.push(client);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let digests = sample.digests();
    let stream = tokio::time::timeout(Duration::from_secs(30), remote.objects(&digests, "")).await.expect("others are served");
    assert_eq!(stream.objects.len(), digests.len());
    drop(lazy);
    registry.stop().await;
}

#[tokio::test]
async fn http2_works_without_tls() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let remote = common::Remote { client, ..registry.repository("tools/app") };
    let sample = Sample::generated(5, 200, common::CHUNK_LEN);
    remote.push("1", &sample).await;
    let streams = futures::future::join_all((0..8).map(|_| async { remote.objects(&sample.digests(), "").await.sent().len() })).await;
    assert_eq!(streams, [sample.objects.len(); 8]);
    registry.stop().await;
}
