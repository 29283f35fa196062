//! Pushing and pulling: what goes in comes out, and nothing else.

mod common;

use common::backend::is_local;
use common::{CHUNK_LEN, Got, Sample, TestRegistry, assert_pack_files, code, noise, pack_files, temp_files};
use layer_format::api::{DIGEST_HEADER, ManifestPut, Tags};
use layer_format::{Digest, pack};
use reqwest::StatusCode;
use tempfile::tempdir;

#[tokio::test]
async fn what_is_pushed_is_pulled() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = Sample::generated(1, 60, 3 * CHUNK_LEN + 5);
    let digests = sample.digests();
    assert_eq!(remote.missing(&digests).await, vec![true; digests.len()]);
    remote.push("1.0", &sample).await;
    assert_eq!(remote.missing(&digests).await, vec![false; digests.len()]);

    for reference in ["1.0", "head", &sample.digest().to_string()] {
        let answer = remote.get(&format!("manifests/{reference}")).await;
        assert_eq!(answer.headers()[DIGEST_HEADER], sample.digest().to_string().as_str());
        assert_eq!(answer.bytes().await.unwrap(), sample.image);
    }
    let mut asked = digests.clone();
    asked.reverse();
    let absent = Digest::of(b"absent");
    asked.insert(3, absent);
    let stream = remote.objects(&asked, "").await;
    assert_eq!(stream.end, "");
    assert_eq!(stream.missing(), [absent]);
    let expected: Vec<Got> = asked.iter().map(|digest| if *digest == absent { Got::Missing(absent) } else { Got::Object(*digest) }).collect();
    assert_eq!(stream.records, expected, "each once, in the order asked");

    let frames = remote.objects(&digests, "?frames=1").await;
    assert_eq!(frames.objects.len(), digests.len());
    assert!(frames.records.iter().all(|got| matches!(got, Got::Frame(_))));
    let whole = sample.pack().len();
    assert!(frames.wire_bytes < whole + 1000, "{} bytes for a pack of {whole}", frames.wire_bytes);
    let some: Vec<Digest> = digests.iter().copied().step_by(3).collect();
    let part = remote.objects(&some, "?frames=1").await;
    assert_eq!(part.objects.len(), some.len(), "of a frame that is not wanted whole only what is wanted is sent");
    registry.stop().await;
}

#[tokio::test]
async fn a_stream_costs_one_read_a_frame() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = Sample::generated(2, 100, CHUNK_LEN);
    remote.put_pack(&sample.pack()).await;
    let frames = pack::read_index(&sample.pack()).unwrap().frames.len() as u64;
    for _ in 0..3 {
        remote.objects(&sample.digests(), "").await;
    }
    assert_eq!(registry.metric("turbo_registry_frame_cache_misses_total").await, frames);
    assert_eq!(registry.metric("turbo_registry_objects_sent_total").await, 3 * sample.objects.len() as u64);
    registry.stop().await;
}

#[tokio::test]
async fn a_pack_is_stored_once_and_survives_a_restart() {
    let data = tempdir().unwrap();
    let sample = Sample::generated(3, 20, 2 * CHUNK_LEN);
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let digest = Digest::of(&sample.pack());
    let head = |remote: &common::Remote| remote.client.head(format!("{}/packs/{digest}", remote.base)).send();
    assert_eq!(head(&remote).await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(remote.put_pack(&sample.pack()).await.status(), StatusCode::CREATED);
    assert_eq!(remote.put_pack(&sample.pack()).await.status(), StatusCode::OK);
    assert_eq!(head(&remote).await.unwrap().status(), StatusCode::OK);
    let put: ManifestPut = remote.put_image("1.0", &sample.image).await.json().await.unwrap();
    assert!(!put.existed);
    let put: ManifestPut = remote.put_image("2.0", &sample.image).await.json().await.unwrap();
    assert!(put.existed);
    assert_eq!(registry.metric("turbo_registry_packs").await, 1);
    registry.stop().await;

    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let tags: Tags = remote.get("tags").await.json().await.unwrap();
    assert_eq!(tags.tags.keys().collect::<Vec<_>>(), ["1.0", "2.0", "head"]);
    assert_eq!(remote.objects(&sample.digests(), "").await.sent().len(), sample.objects.len());
    registry.stop().await;
}

#[tokio::test]
async fn the_same_pack_pushed_by_ten_at_once_is_one_pack() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let pack = Sample::generated(4, 30, 2 * CHUNK_LEN).pack();
    let pushes = (0..10).map(|_| {
        let (remote, pack) = (registry.repository("tools/app"), pack.clone());
        async move { remote.put_pack(&pack).await.status() }
    });
    let statuses = futures::future::join_all(pushes).await;
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::CREATED).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| status.is_success()));
    assert_eq!(registry.metric("turbo_registry_packs").await, 1);
    assert_pack_files(data.path(), 1);
    assert_eq!(temp_files(data.path()), 0);
    registry.stop().await;
}

#[tokio::test]
async fn a_bad_pack_stores_nothing() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let sample = Sample::generated(5, 40, CHUNK_LEN);
    let pack = sample.pack();
    let mut damaged = pack.clone();
    damaged[pack.len() / 2] ^= 1;
    let cut = pack[..pack.len() - 10].to_vec();
    let oversized = vec![0u8; 1000];
    assert_eq!(code(remote.put_pack_as(Digest::of(&pack), damaged.clone()).await).await, (400, "PACK_INVALID".into()));
    assert_eq!(code(remote.put_pack(&damaged).await).await, (400, "PACK_INVALID".into()));
    assert_eq!(code(remote.put_pack(&cut).await).await, (400, "PACK_INVALID".into()));
    assert_eq!(code(remote.put_pack(&oversized).await).await, (400, "PACK_INVALID".into()));
    assert_eq!(code(remote.put_pack_as(Digest::of(b"other"), pack.clone()).await).await, (400, "DIGEST_INVALID".into()));
    let answer = remote.client.put(format!("{}/packs/b3:00", remote.base)).body(pack.clone()).send().await.unwrap();
    assert_eq!(code(answer).await, (400, "DIGEST_INVALID".into()));
    assert_eq!(remote.missing(&sample.digests()).await, vec![true; sample.objects.len()]);
    assert_pack_files(data.path(), 0);
    assert_eq!(temp_files(data.path()), 0);
    assert_eq!(remote.put_pack(&pack).await.status(), StatusCode::CREATED);
    registry.stop().await;
}

#[tokio::test]
async fn an_image_is_visible_only_when_all_of_it_is_there() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    // 20 chunks: more than stand in an entry, so there is a recipe node.
    let sample = Sample::new(&[("bin/app", noise(1, 20 * CHUNK_LEN)), ("lib/x", noise(2, 100))]);
    for left_out in 0..sample.objects.len() {
        let objects: Vec<_> = sample.objects.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, bytes)| bytes).collect();
        let remote = registry.repository(&format!("n{left_out}/app"));
        remote.put_pack(&pack::build(&objects, Some(1)).unwrap().0).await;
        let answer = remote.put_image("1.0", &sample.image).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let body: layer_format::api::ErrorBody = answer.json().await.unwrap();
        assert_eq!(body.errors[0].code, "OBJECTS_MISSING");
        let digest = Digest::of(&sample.objects[left_out]);
        assert_eq!(body.errors[0].detail, serde_json::json!([digest]));
        assert_eq!(code(remote.get("manifests/1.0").await).await, (404, "MANIFEST_UNKNOWN".into()));
        remote.put_pack(&pack::build([&sample.objects[left_out]], None).unwrap().0).await;
        assert_eq!(remote.put_image("1.0", &sample.image).await.status(), StatusCode::CREATED);
    }
    assert_eq!(code(remote.put_image("1.0", b"{}").await).await, (400, "MANIFEST_INVALID".into()));
    assert_eq!(code(remote.put_image(&Digest::of(b"x").to_string(), &sample.image).await).await, (400, "DIGEST_INVALID".into()));
    registry.stop().await;
}

#[tokio::test]
async fn a_new_version_is_checked_in_proportion_to_what_changed() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let mut files: Vec<(String, Vec<u8>)> = (0..3000).map(|n| (format!("d{}/f{n}", n % 40), noise(n, 50))).collect();
    let sample = |files: &[(String, Vec<u8>)]| Sample::new(&files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect::<Vec<_>>());
    remote.push("1", &sample(&files)).await;
    registry.stop().await;

    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    files[7].1 = noise(99_999, 50);
    let next = sample(&files);
    let missing = remote.missing(&next.digests()).await;
    let new: Vec<_> = next.objects.iter().zip(&missing).filter(|(_, missing)| **missing).map(|(bytes, _)| bytes).collect();
    assert!(new.len() <= 5, "{} objects travel", new.len());
    remote.put_pack(&pack::build(&new, Some(1)).unwrap().0).await;
    assert_eq!(remote.put_image("2", &next.image).await.status(), StatusCode::CREATED);
    let reads = registry.metric("turbo_registry_frame_reads_total").await;
    assert!(reads <= 5, "{reads} nodes were read");
    registry.stop().await;
}

#[tokio::test]
async fn namespaces_do_not_see_each_other() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let (owner, neighbour, stranger) = (registry.repository("a/app"), registry.repository("a/other/app"), registry.repository("b/app"));
    let sample = Sample::generated(6, 10, CHUNK_LEN);
    owner.push("1", &sample).await;
    let digests = sample.digests();
    assert!(neighbour.missing(&digests).await.iter().all(|missing| !missing));
    assert!(stranger.missing(&digests).await.iter().all(|missing| *missing));
    for query in ["", "?frames=1"] {
        assert_eq!(stranger.objects(&digests, query).await.missing(), digests);
    }
    for digest in &digests {
        assert_eq!(code(stranger.get(&format!("objects/{digest}")).await).await, (404, "OBJECT_UNKNOWN".into()));
    }
    let pack = Digest::of(&sample.pack());
    assert_eq!(stranger.client.head(format!("{}/packs/{pack}", stranger.base)).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(code(stranger.put_image("1", &sample.image).await).await, (422, "OBJECTS_MISSING".into()));
    assert_eq!(code(stranger.get("manifests/head").await).await, (404, "MANIFEST_UNKNOWN".into()));
    // Another repository of the same namespace shares objects, not images.
    assert_eq!(code(neighbour.get(&format!("manifests/{}", sample.digest())).await).await, (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(neighbour.put_image("1", &sample.image).await.status(), StatusCode::CREATED);
    // Who brings the bytes has them.
    assert_eq!(stranger.put_pack(&sample.pack()).await.status(), StatusCode::CREATED);
    assert_eq!(stranger.put_image("1", &sample.image).await.status(), StatusCode::CREATED);
    assert_pack_files(data.path(), 2);
    registry.stop().await;
}

#[tokio::test]
async fn a_damaged_object_is_reported_and_never_served() {
    if !is_local() {
        return;
    }
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    // Stored frames, so that one byte damages one object.
    let objects: Vec<Vec<u8>> = (0..20).map(|n| noise(n, CHUNK_LEN)).collect();
    let (bytes, index) = pack::build(&objects, None).unwrap();
    assert_eq!(remote.put_pack(&bytes).await.status(), StatusCode::CREATED);
    let victim = index.objects[7];
    let file = &pack_files(data.path())[0];
    let mut stored = std::fs::read(file).unwrap();
    let frame = index.frames[victim.frame as usize];
    let at = frame.offset as usize + 7 + 3 * usize::from(frame.count) + 7 * CHUNK_LEN + 100;
    stored[at] ^= 1;
    std::fs::write(file, stored).unwrap();
    let digests: Vec<Digest> = index.objects.iter().map(|object| object.digest).collect();
    for query in ["", "?frames=1"] {
        let stream = remote.objects(&digests, query).await;
        assert_eq!(stream.missing(), [victim.digest], "{query}");
        assert_eq!(stream.objects.len(), 19);
        assert_eq!(stream.end, "");
    }
    assert_eq!(code(remote.get(&format!("objects/{}", victim.digest)).await).await, (404, "OBJECT_UNKNOWN".into()));
    assert_eq!(registry.metric("turbo_registry_objects_damaged_total").await, 1);
    // The file is gone altogether.
    registry.stop().await;
    std::fs::remove_file(&pack_files(data.path())[0]).unwrap();
    let registry = TestRegistry::start(data.path()).await;
    assert_eq!(registry.repository("tools/app").objects(&digests, "").await.missing(), digests);
    registry.stop().await;
}

#[tokio::test]
async fn releases_follow_pushes_and_deletes() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let samples = [Sample::generated(7, 2, 10), Sample::generated(8, 2, 10)];
    remote.push("1", &samples[0]).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    remote.push("2", &samples[1]).await;
    let delete = |reference: String| remote.client.delete(format!("{}/manifests/{reference}", remote.base)).send();
    assert_eq!(code(delete("head".into()).await.unwrap()).await, (400, "RELEASE_INVALID".into()));
    assert_eq!(code(delete("3".into()).await.unwrap()).await, (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(delete(samples[1].digest().to_string()).await.unwrap().status(), StatusCode::ACCEPTED);
    let tags: Tags = remote.get("tags").await.json().await.unwrap();
    assert_eq!(tags.tags.into_iter().collect::<Vec<_>>(), [("1".into(), samples[0].digest()), ("head".into(), samples[0].digest())]);
    assert_eq!(delete("1".into()).await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(remote.get("manifests/head").await.bytes().await.unwrap(), samples[0].image, "an image outlives its releases");
    let listed: serde_json::Value = registry.client.get(format!("{}/v1/repositories?limit=99999999", registry.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(listed, serde_json::json!({"repositories": ["tools/app"]}));
    registry.stop().await;
}

#[tokio::test]
async fn one_object_is_cacheable_for_ever_and_has_ranges() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let remote = registry.repository("tools/app");
    let bytes = noise(1, 10_000);
    remote.put_pack(&pack::build([&bytes], Some(1)).unwrap().0).await;
    let digest = Digest::of(&bytes);
    let url = format!("{}/objects/{digest}", remote.base);
    let answer = remote.client.get(&url).send().await.unwrap();
    assert_eq!(answer.headers()["cache-control"], "public, max-age=31536000, immutable");
    let etag = answer.headers()["etag"].clone();
    assert_eq!(answer.bytes().await.unwrap(), bytes);
    let answer = remote.client.get(&url).header("if-none-match", etag).send().await.unwrap();
    assert_eq!((answer.status(), answer.bytes().await.unwrap().len()), (StatusCode::NOT_MODIFIED, 0));
    let answer = remote.client.get(&url).header("range", "bytes=100-199").send().await.unwrap();
    assert_eq!((answer.status(), answer.headers()["content-range"].to_str().unwrap()), (StatusCode::PARTIAL_CONTENT, "bytes 100-199/10000"));
    assert_eq!(answer.bytes().await.unwrap(), bytes[100..200]);
    let answer = remote.client.get(&url).header("range", "bytes=10000-").send().await.unwrap();
    assert_eq!(answer.headers()["content-range"], "bytes */10000");
    assert_eq!(code(answer).await, (416, "RANGE_INVALID".into()));
    let answer = remote.client.head(&url).send().await.unwrap();
    assert_eq!((answer.status(), answer.headers()["content-length"].to_str().unwrap()), (StatusCode::OK, "10000"));
    registry.stop().await;
}
