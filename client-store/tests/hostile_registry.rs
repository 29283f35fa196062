//! A registry that sends more, less, other or nothing: a clear error, nothing kept that is not right, and a store that is
//! whole. A pull from an honest one ends well afterwards.

mod store_support;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use client_store::remote::retry::RetryPolicy;
use client_store::remote::{Registry, RegistryOptions};
use client_store::store::Repair;
use client_store::transfer::{TransferError, TransferOptions, pull, push, restore};
use client_store::{Origin, Store};
use futures::StreamExt;
use layer_format::Digest;
use layer_format::api::{DIGEST_HEADER, Record, STREAM_MEDIA_TYPE};
use layer_format::chunk::MAX_OBJECT_LEN;
use store_support::fake_registry::{FakeRegistry, handle};
use store_support::*;

/// What is answered in place of the truth to requests whose path holds this text.
type Lie = Arc<dyn Fn() -> Response + Send + Sync>;

/// A server that lies about some paths and passes all else on to `fake`. Returns its URL.
async fn lying(fake: &FakeRegistry, about: &'static str, lie: Lie) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let fake = fake.clone();
    let answer = move |request: Request| {
        let (fake, lie) = (fake.clone(), Arc::clone(&lie));
        async move {
            match request.uri().path().contains(about) {
                true => lie(),
                false => handle(axum::extract::State(fake), request).await,
            }
        }
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    url
}

fn registry(url: &str) -> Registry {
    Registry::new(url, RegistryOptions { idle_timeout: Duration::from_secs(1), ..RegistryOptions::default() }).unwrap()
}

fn options() -> TransferOptions {
    let retry = RetryPolicy { attempts: 2, first_pause: Duration::from_millis(1), longest_pause: Duration::from_millis(2) };
    TransferOptions { retry, ..TransferOptions::default() }
}

fn stream(records: &[Record<'_>]) -> Vec<u8> {
    let mut plain = Vec::new();
    records.iter().for_each(|record| record.encode(&mut plain));
    zstd::encode_all(&plain[..], 1).unwrap()
}

fn streamed(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, STREAM_MEDIA_TYPE)], body.into()).into_response()
}

/// The same bytes again and again, for as long as they are read.
fn endless(start: Vec<u8>, again: Vec<u8>) -> Response {
    let pieces = futures::stream::once(async { Bytes::from(start) }).chain(futures::stream::repeat(Bytes::from(again)));
    streamed(Body::from_stream(pieces.map(Ok::<_, std::convert::Infallible>)))
}

/// A zstd stream without an end, of records that nobody asked for.
fn endless_records() -> Response {
    let mut record = Vec::new();
    Record::Object(&[0; 1000]).encode(&mut record);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&record.repeat(100)).unwrap();
    // Frames of zstd may follow one another.
    let frame = encoder.finish().unwrap();
    endless(Vec::new(), frame)
}

fn lies_about_objects() -> Vec<(&'static str, Lie)> {
    let bomb = || {
        // A kilobyte that says it is 64 objects of the largest size, all of them zeros.
        let zeros = vec![0; MAX_OBJECT_LEN as usize];
        streamed(stream(&vec![Record::Object(&zeros); 64]))
    };
    let header = |kind: u8, len: u32| [&[kind][..], &len.to_le_bytes()].concat();
    let too_long = move || streamed(zstd::encode_all(&header(1, u32::MAX)[..], 1).unwrap());
    let longer_than_there_is = move || streamed(zstd::encode_all(&[header(1, MAX_OBJECT_LEN), vec![7; 10]].concat()[..], 1).unwrap());
    let unknown_kind = move || streamed(zstd::encode_all(&header(99, 10)[..], 1).unwrap());
    let wrong_length = || {
        let body = Body::from_stream(futures::stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from_static(b"short"))]));
        ([(header::CONTENT_TYPE, STREAM_MEDIA_TYPE), (header::CONTENT_LENGTH, "1000000")], body).into_response()
    };
    let nothing = || streamed(Body::from_stream(futures::stream::pending::<Result<Bytes, std::convert::Infallible>>()));
    vec![
        ("records that nobody asked for, without end", Arc::new(endless_records)),
        ("an end that does not end", Arc::new(|| endless(stream(&[Record::End(b"")]), vec![0; 8192]))),
        ("a bomb", Arc::new(bomb)),
        ("a record of 4 GiB", Arc::new(too_long)),
        ("a record that ends too soon", Arc::new(longer_than_there_is)),
        ("a record of an unknown kind", Arc::new(unknown_kind)),
        ("bytes that do not decompress", Arc::new(|| streamed(vec![0x55; 5000]))),
        ("an empty answer", Arc::new(|| streamed(Body::empty()))),
        ("only an end", Arc::new(|| streamed(stream(&[Record::End(b"")])))),
        ("an end with a reason", Arc::new(|| streamed(stream(&[Record::End(b"not today")])))),
        ("other objects", Arc::new(|| streamed(stream(&[Record::Object(b"something else"), Record::End(b"")])))),
        ("a frame that is none", Arc::new(|| streamed(stream(&[Record::Frame(&[1; 40]), Record::End(b"")])))),
        ("missing: what was not asked for", Arc::new(|| streamed(stream(&[Record::Missing(Digest::of(b"?")), Record::End(b"")])))),
        ("a page of a proxy", Arc::new(|| ([(header::CONTENT_TYPE, "text/html")], "<html>hello</html>").into_response())),
        ("a redirect", Arc::new(|| (StatusCode::FOUND, [(header::LOCATION, "http://127.0.0.1:9/secret")]).into_response())),
        ("success without content", Arc::new(|| StatusCode::NO_CONTENT.into_response())),
        ("an error of many megabytes", Arc::new(|| (StatusCode::INTERNAL_SERVER_ERROR, vec![b'x'; 8 << 20]).into_response())),
        ("less than its length", Arc::new(wrong_length)),
        ("nothing", Arc::new(nothing)),
    ]
}

async fn pulls_again(store: &Store, fake: &FakeRegistry, image: &TestImage, what: &str) {
    assert_eq!(store.images().unwrap(), [], "{what}: nothing has a name");
    let report = store.verify(Repair::No, |_, _| {}).unwrap();
    assert!(report.is_clean(), "{what}: {report:?}");
    assert_eq!(std::fs::read_dir(store.home().join("tmp")).unwrap().count(), 0, "{what}: something is left");
    let name = reference("tools/app:1.0");
    pull(store, &fake.registry(), &name, &options()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(store.contains_all(&digests(image)).unwrap(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_in_place_of_objects_is_an_error_and_is_not_kept() {
    let fake = FakeRegistry::start().await;
    let image = image(4, 40, 20_000);
    fake.put("1.0", &image);
    for (what, lie) in lies_about_objects() {
        let url = lying(&fake, "/-/objects", lie).await;
        let home = tempfile::tempdir().unwrap();
        let store = open(home.path());
        let pulling = registry(&url);
        let name = reference("tools/app:1.0");
        let error = tokio::time::timeout(Duration::from_secs(30), pull(&store, &pulling, &name, &options())).await;
        let error = error.unwrap_or_else(|_| panic!("{what}: the pull does not end")).expect_err(what);
        assert!(matches!(error, TransferError::Origin(_) | TransferError::Damaged { .. } | TransferError::MissingOnRegistry { .. }), "{what}: {error:?}");
        let said = error.to_string();
        assert!(said.len() > 20 && said.len() < 2000, "{what}: {said}");
        assert!(pulling.received_bytes().unwrap() < 4 << 20, "{what}: {} bytes were received", pulling.received_bytes().unwrap());
        pulls_again(&store, &fake, &image, what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_in_place_of_a_manifest_is_an_error() {
    let fake = FakeRegistry::start().await;
    let image = image(5, 5, 20_000);
    fake.put("1.0", &image);
    let with_digest = |digest: Digest, body: Vec<u8>| -> Lie { Arc::new(move || ([(DIGEST_HEADER, digest.to_string())], body.clone()).into_response()) };
    let other = super_image();
    let deep = b"[".repeat(1 << 20);
    let lies: Vec<(&str, Lie)> = vec![
        ("no digest", Arc::new(|| "{}".into_response())),
        ("a digest that is none", Arc::new(|| ([(DIGEST_HEADER, "b3:zz")], "{}").into_response())),
        ("another image under this digest", with_digest(image.digest, other.manifest.clone())),
        ("something that is no manifest", with_digest(Digest::of(b"{}"), b"{}".to_vec())),
        ("brackets", with_digest(Digest::of(&deep), deep.clone())),
        ("many megabytes", with_digest(Digest::of(b"x"), vec![b' '; 64 << 20])),
        ("an image of which it has nothing", with_digest(other.digest, other.manifest.clone())),
        ("a redirect", Arc::new(|| (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, "http://127.0.0.1:9/")]).into_response())),
    ];
    for (what, lie) in lies {
        let url = lying(&fake, "/-/manifests", lie).await;
        let home = tempfile::tempdir().unwrap();
        let store = open(home.path());
        let error = pull(&store, &registry(&url), &reference("tools/app:1.0"), &options()).await.expect_err(what);
        assert!(error.to_string().len() < 2000, "{what}: {error}");
        pulls_again(&store, &fake, &image, what).await;
    }
}

fn super_image() -> TestImage {
    image(99, 5, 20_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_survives_every_answer() {
    let fake = FakeRegistry::start().await;
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let image = image(6, 20, 20_000);
    import(&store, "tools/app:1", &image);
    let name = reference("tools/app:1");
    let all_there = digests(&image).len().div_ceil(8);
    let lies: Vec<(&str, &'static str, Lie)> = vec![
        ("a bitmap that is too short", "/-/missing", Arc::new(|| Vec::<u8>::new().into_response())),
        ("a bitmap that is too long", "/-/missing", Arc::new(move || vec![0xFF; all_there + 1].into_response())),
        ("bits beyond the last", "/-/missing", Arc::new(move || vec![0xFF; all_there].into_response())),
        (
            "an endless bitmap",
            "/-/missing",
            Arc::new(|| Body::from_stream(futures::stream::repeat(Ok::<_, std::convert::Infallible>(Bytes::from_static(&[0; 4096])))).into_response()),
        ),
        ("nothing is missing, and yet", "/-/missing", Arc::new(move || vec![0; all_there].into_response())),
        ("a refusal", "/-/packs", Arc::new(|| (StatusCode::BAD_REQUEST, "no").into_response())),
        ("a redirect", "/-/packs", Arc::new(|| (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "http://127.0.0.1:9/")]).into_response())),
        ("success for what was not kept", "/-/packs", Arc::new(|| StatusCode::CREATED.into_response())),
    ];
    for (what, about, lie) in lies {
        let url = lying(&fake, about, lie).await;
        let error = tokio::time::timeout(Duration::from_secs(30), push(&store, &registry(&url), &name, &name, &options())).await;
        let error = error.unwrap_or_else(|_| panic!("{what}: the push does not end")).expect_err(what);
        assert!(error.to_string().len() < 2000, "{what}: {error}");
        assert_eq!(std::fs::read_dir(home.path().join("tmp")).unwrap().count(), 0, "{what}: something is left");
        assert_eq!(store.evict_to(1).unwrap(), 0, "{what}: it is not believed to be on a registry");
    }
    push(&store, &fake.registry(), &name, &name, &options()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_believes_nothing_but_the_objects_that_come() {
    use std::os::unix::fs::FileExt;
    let fake = FakeRegistry::start().await;
    let image = image(7, 40, 20_000);
    fake.put("1.0", &image);
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let name = reference("tools/app:1.0");
    pull(&store, &fake.registry(), &name, &options()).await.unwrap();
    drop(store);
    let largest = std::fs::read_dir(home.path().join("packs")).unwrap().flatten().max_by_key(|entry| entry.metadata().unwrap().len()).unwrap().path();
    std::fs::File::options().write(true).open(largest).unwrap().write_all_at(&[0x55; 100], 300_000).unwrap();
    let store = open(home.path());
    let found = store.verify(Repair::Forget, |_, _| {}).unwrap();
    assert!(!found.damaged.is_empty() && found.damaged_packs.len() == 1 && found.incomplete_images == [image.digest], "{found:?}");
    assert!(found.damaged.iter().all(|object| object.images == [image.digest]));
    let lie: Lie = Arc::new(|| streamed(stream(&[Record::Object(b"something else"), Record::End(b"")])));
    let url = lying(&fake, "/-/objects", lie).await;
    assert!(restore(&store, &registry(&url), &name.repository, &image.digest, &options()).await.is_err());
    assert!(!store.image_is_complete(&image.digest).unwrap());
    let report = restore(&store, &fake.registry(), &name.repository, &image.digest, &options()).await.unwrap();
    assert_eq!(report.moved_objects, found.damaged.len() as u64, "only what was damaged travels");
    assert!(store.image_is_complete(&image.digest).unwrap());
    // The pack with the damage in it is written anew, and then all is well.
    let repacked = store.repack(&Default::default(), |_, _| {}).unwrap();
    assert!(repacked.damaged_packs + repacked.dead_packs >= 1 && repacked.damaged_objects == 0, "{repacked:?}");
    assert!(store.verify(Repair::No, |_, _| {}).unwrap().is_clean());
    assert_eq!(store.images().unwrap()[0].names, ["tools/app:1.0"]);
}
