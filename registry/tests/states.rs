//! States of a repository: complete or refused, found by prefix in their own repository alone, and hostile requests.

mod common;

use common::{CHUNK_LEN, Remote, Sample, TestRegistry, code};
use layer_format::Digest;
use layer_format::api::{CONTAINER_HEADER, DIGEST_HEADER, StatePut, States};
use layer_format::manifest::{Manifest, StateImage, StateManifest};
use reqwest::{Response, StatusCode};
use tempfile::tempdir;

/// The manifest of a state with this sandbox; `seed` makes it one of many.
fn state(sandbox: Digest, seed: u64) -> Vec<u8> {
    let image = StateImage { reference: "tools/app:1".into(), digest: Digest::of(&seed.to_le_bytes()), dependency: false };
    StateManifest::new(vec![image], sandbox).encode().unwrap()
}

async fn put(remote: &Remote, bytes: &[u8], container: Option<&str>) -> Response {
    let mut request = remote.client.put(format!("{}/states/{}", remote.base, Digest::of(bytes)));
    if let Some(container) = container {
        request = request.header(CONTAINER_HEADER, container);
    }
    request.body(bytes.to_vec()).send().await.unwrap()
}

async fn list(remote: &Remote, query: &str) -> States {
    remote.get(&format!("states{query}")).await.json().await.unwrap()
}

#[tokio::test]
async fn a_state_is_taken_when_its_sandbox_is_there_and_found_by_its_id() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("states-alice/default");
    let sample = Sample::generated(1, 20, CHUNK_LEN + 5);
    let one = state(sample.layer, 1);
    assert_eq!(code(put(&remote, &one, None).await).await, (422, "OBJECTS_MISSING".into()));
    assert_eq!(code(remote.get("states").await).await, (404, "REPOSITORY_UNKNOWN".into()), "a refused state makes no repository");
    // All but one chunk: still refused, and the answer names it.
    let (last, most) = sample.objects.split_last().unwrap();
    remote.put_pack(&layer_format::pack::build(most, Some(1)).unwrap().0).await;
    let refused = put(&remote, &one, None).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused.text().await.unwrap().contains(&Digest::of(last).to_string()));
    remote.put_pack(&layer_format::pack::build([last], Some(1)).unwrap().0).await;
    let answer = put(&remote, &one, Some("notes")).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.json::<StatePut>().await.unwrap(), StatePut { digest: Digest::of(&one), existed: false });
    assert!(put(&remote, &one, None).await.json::<StatePut>().await.unwrap().existed);

    let hex = Digest::of(&one).to_hex();
    for name in [&hex[..8], &hex[..31], &hex, &format!("b3:{hex}"), &format!("b3%3A{hex}")] {
        let answer = remote.get(&format!("states/{name}")).await;
        assert_eq!(answer.headers()[DIGEST_HEADER], Digest::of(&one).to_string().as_str());
        assert_eq!(answer.headers()[CONTAINER_HEADER], "notes", "the name stays if a later put has none");
        assert_eq!(answer.bytes().await.unwrap(), one);
    }
    let listed = list(&remote, "").await;
    assert_eq!((listed.repository.as_str(), listed.states.len(), listed.states[0].container.as_deref()), ("states-alice/default", 1, Some("notes")));
    assert!(listed.states[0].pushed_at > 1_600_000_000);

    let deleted = remote.client.delete(format!("{}/states/{hex}", remote.base)).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::ACCEPTED);
    assert_eq!(code(remote.get(&format!("states/{hex}")).await).await, (404, "STATE_UNKNOWN".into()));
    let again = remote.client.delete(format!("{}/states/{hex}", remote.base)).send().await.unwrap();
    assert_eq!(code(again).await, (404, "STATE_UNKNOWN".into()));
    registry.stop().await;
}

#[tokio::test]
async fn one_owner_sees_nothing_of_another() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let (alice, bob) = (registry.repository("states-alice/default"), registry.repository("states-bob/default"));
    let sample = Sample::generated(2, 5, 1000);
    alice.put_pack(&sample.pack()).await;
    let one = state(sample.layer, 1);
    put(&alice, &one, None).await;
    let hex = Digest::of(&one).to_hex();
    // Neither the state, nor its objects, nor that anyone has them.
    assert_eq!(code(bob.get(&format!("states/{hex}")).await).await, (404, "STATE_UNKNOWN".into()));
    assert_eq!(code(put(&bob, &one, None).await).await, (422, "OBJECTS_MISSING".into()));
    assert_eq!(bob.missing(&sample.digests()).await, vec![true; sample.objects.len()]);
    let deleted = bob.client.delete(format!("{}/states/{hex}", bob.base)).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NOT_FOUND);
    let all = registry.client.get(format!("{}/v1/repositories", registry.url)).send().await.unwrap().text().await.unwrap();
    assert!(!all.contains("states-"), "whose states there are is not listed: {all}");
    assert_eq!(alice.get(&format!("states/{hex}")).await.status(), StatusCode::OK);
    registry.stop().await;
}

#[tokio::test]
async fn an_ambiguous_prefix_is_refused_and_lists_are_bounded() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("states-alice/default");
    let sample = Sample::generated(3, 1, 10);
    remote.put_pack(&sample.pack()).await;
    // Of some 80 000 states two have the same eight digits.
    let mut found = std::collections::HashMap::new();
    let (one, other) = (0u64..)
        .find_map(|seed| {
            let bytes = state(sample.layer, seed);
            let key = Digest::of(&bytes).to_hex()[..8].to_owned();
            found.insert(key, seed).map(|earlier| (state(sample.layer, earlier), bytes))
        })
        .unwrap();
    for bytes in [&one, &other] {
        assert_eq!(put(&remote, bytes, None).await.status(), StatusCode::CREATED);
    }
    let (a, b) = (Digest::of(&one).to_hex(), Digest::of(&other).to_hex());
    let shared = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let refused = remote.get(&format!("states/{}", &a[..8])).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    let text = refused.text().await.unwrap();
    assert!(text.contains("STATE_AMBIGUOUS") && text.contains(&a) && text.contains(&b), "{text}");
    let deleted = remote.client.delete(format!("{}/states/{}", remote.base, &a[..8])).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::CONFLICT, "nothing is deleted by chance");
    assert_eq!(remote.get(&format!("states/{}", &a[..=shared])).await.bytes().await.unwrap(), one);
    assert_eq!(list(&remote, "?limit=1").await.states.len(), 1);
    assert_eq!(list(&remote, "").await.states.len(), 2);
    for bad in ["?limit=0", "?limit=x", "?limit=1001"] {
        assert_eq!(remote.get(&format!("states{bad}")).await.status(), StatusCode::BAD_REQUEST, "{bad}");
    }
    registry.stop().await;
}

#[tokio::test]
async fn hostile_requests_change_nothing() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("states-alice/default");
    let sample = Sample::generated(4, 3, 100);
    remote.put_pack(&sample.pack()).await;
    let good = state(sample.layer, 1);
    let as_named = |name: String, bytes: Vec<u8>| remote.client.put(format!("{}/states/{name}", remote.base)).body(bytes).send();
    let id = Digest::of(&good);
    let cases: Vec<(String, Vec<u8>, u16, &str)> = vec![
        (Digest::of(b"other").to_string(), good.clone(), 400, "DIGEST_INVALID"),
        (id.to_hex()[..20].into(), good.clone(), 400, "DIGEST_INVALID"),
        ("..%2F..%2Fetc".into(), good.clone(), 400, "DIGEST_INVALID"),
        (Digest::of(b"{}").to_string(), b"{}".to_vec(), 400, "STATE_INVALID"),
        (Digest::of(&sample.image).to_string(), sample.image.clone(), 400, "STATE_INVALID"),
        (Digest::of(b"").to_string(), Vec::new(), 400, "STATE_INVALID"),
        (id.to_string(), vec![b' '; 5 << 20], 413, "BODY_TOO_LARGE"),
    ];
    for (name, bytes, status, what) in cases {
        assert_eq!(code(as_named(name.clone(), bytes).await.unwrap()).await, (status, what.to_owned()), "{name}");
    }
    // A sandbox that is no layer.
    let chunk = state(*sample.files.values().next().unwrap().first().unwrap(), 1);
    assert_eq!(code(put(&remote, &chunk, None).await).await, (422, "IMAGE_INVALID".into()));
    for name in ["with space", "", "-x", &"x".repeat(200)] {
        assert_eq!(put(&remote, &good, Some(name)).await.status(), StatusCode::BAD_REQUEST, "{name:?}");
    }
    for path in ["states/%", "states/0123456", "states/..", "states/01234567/more", "states/0123456G"] {
        assert!(remote.get(path).await.status().is_client_error(), "{path}");
    }
    assert_eq!(code(remote.get("states").await).await, (404, "REPOSITORY_UNKNOWN".into()), "nothing of it was kept");
    assert_eq!(put(&remote, &good, None).await.status(), StatusCode::CREATED);
    registry.stop().await;
}

#[tokio::test]
async fn states_outlive_the_server() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let sample = Sample::generated(5, 3, 100);
    let remote = registry.repository("states-alice/default");
    remote.put_pack(&sample.pack()).await;
    let one = state(sample.layer, 1);
    put(&remote, &one, Some("notes")).await;
    registry.stop().await;
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("states-alice/default");
    assert_eq!(remote.get(&format!("states/{}", Digest::of(&one).to_hex())).await.bytes().await.unwrap(), one);
    assert_eq!(list(&remote, "").await.states.len(), 1);
    registry.stop().await;
}
