//! One registry for both: what container tools push is an image of ours, and the other way round.

mod common;

use std::io::Write;

use common::{Sample, TestRegistry, code};
use layer_format::Digest;
use layer_format::entry::Kind;
use layer_format::manifest::{ImageManifest, IsolationRule, LayerManifest, Manifest, Mode};
use layer_format::oci::media;
use layer_format::tree::Node;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::tempdir;

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

async fn push_blob(registry: &TestRegistry, name: &str, bytes: &[u8]) -> Value {
    let digest = sha256(bytes);
    let url = format!("{}/v2/{name}/blobs/uploads/?digest={digest}", registry.url);
    let answer = registry.client.post(url).body(bytes.to_vec()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    json!({"digest": digest, "size": bytes.len()})
}

/// An image of these layers.
async fn manifest(registry: &TestRegistry, name: &str, config: Value, layers: &[(&str, Vec<u8>)]) -> Value {
    let mut described = Vec::new();
    for (media_type, bytes) in layers {
        let mut blob = push_blob(registry, name, bytes).await;
        blob["mediaType"] = json!(media_type);
        described.push(blob);
    }
    let mut config = push_blob(registry, name, config.to_string().as_bytes()).await;
    config["mediaType"] = json!(media::CONFIG);
    json!({"schemaVersion": 2, "mediaType": media::MANIFEST, "config": config, "layers": described})
}

async fn put(registry: &TestRegistry, name: &str, reference: &str, manifest: &Value) -> Response {
    let url = format!("{}/v2/{name}/manifests/{reference}", registry.url);
    let media_type = manifest["mediaType"].as_str().unwrap().to_owned();
    registry.client.put(url).header("content-type", media_type).body(manifest.to_string()).send().await.unwrap()
}

fn config() -> Value {
    json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/usr/bin", "A=b"], "Entrypoint": ["/usr/bin/app"], "Cmd": ["--serve"],
        "WorkingDir": "/srv", "User": "1000"}, "rootfs": {"type": "layers", "diff_ids": []}})
}

/// The image as our own side sees it, with its layers' manifests.
async fn native(registry: &TestRegistry, name: &str, reference: &str) -> (ImageManifest, Vec<LayerManifest>) {
    let remote = registry.repository(name);
    let answer = remote.get(&format!("manifests/{reference}")).await;
    let status = answer.status();
    let bytes = answer.bytes().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&bytes));
    let image = ImageManifest::decode(&bytes).unwrap();
    let stream = remote.objects(&image.layers, "").await;
    let layers = image.layers.iter().map(|digest| LayerManifest::decode(&stream.objects[digest]).unwrap()).collect();
    (image, layers)
}

/// Paths and kinds of a small tree.
async fn entries(registry: &TestRegistry, name: &str, root: Digest) -> Vec<(String, Kind)> {
    let stream = registry.repository(name).objects(&[root], "").await;
    match Node::decode(&stream.objects[&root]).unwrap() {
        Node::Leaf(entries) => entries.into_iter().map(|entry| (entry.path.to_string(), entry.kind)).collect(),
        Node::Index { .. } => panic!("a small tree has one node"),
    }
}

#[tokio::test]
async fn what_docker_pushed_can_be_launched() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let base = gzip(&tar_of(&[("usr/bin/app", b"#!/bin/sh\n"), ("etc/old", b"1"), ("opt/dir/a", b"a")]));
    let upper = zstd::encode_all(&tar_of(&[("etc/.wh.old", b""), ("opt/dir/.wh..wh..opq", b""), ("srv/data", &common::noise(1, 200_000))])[..], 3).unwrap();
    let plain = tar_of(&[("last", b"x")]);
    let pushed = manifest(&registry, "team/app", config(), &[(GZIP, base.clone()), (ZSTD, upper), (media::LAYER_TAR, plain)]).await;
    assert_eq!(put(&registry, "team/app", "1.0", &pushed).await.status(), StatusCode::CREATED);
    for reference in ["1.0", "head"] {
        let (image, layers) = native(&registry, "team/app", reference).await;
        assert_eq!(image.startup_files[0].command, ["/usr/bin/app", "--serve"]);
        assert_eq!((image.architecture.as_str(), image.working_directory.as_deref()), ("x86_64", Some("/srv")));
        assert_eq!(image.metadata["oci.user"], "1000");
        assert_eq!(layers.len(), 3);
        assert_eq!(layers[0].isolation, [IsolationRule { path: "/".into(), mode: Mode::Full }]);
        assert_eq!(layers[2].environment.len(), 2);
        let found = entries(&registry, "team/app", layers[1].root).await;
        assert!(found.iter().any(|(path, kind)| path.trim_start_matches('/') == "etc/old" && *kind == Kind::Whiteout), "{found:?}");
        assert!(found.iter().any(|(path, kind)| path.trim_start_matches('/') == "opt/dir" && *kind == Kind::Directory { opaque: true }), "{found:?}");
    }
    let stream = registry.repository("team/app").launch("1.0", json!({"architecture": "x86_64", "predict": false, "budget_bytes": 0})).await;
    assert_eq!(stream.end, "");
    assert!(stream.missing().is_empty());
    // The next image shares the layer: nothing of it is stored again, and it replaces the first under the tag.
    let before = registry.metric("turbo_registry_objects").await;
    let second = manifest(&registry, "team/app", config(), &[(GZIP, base), (media::LAYER_TAR, tar_of(&[("last", b"y")]))]).await;
    put(&registry, "team/app", "1.0", &second).await;
    let (image, _) = native(&registry, "team/app", "1.0").await;
    assert_eq!(image.layers.len(), 2);
    let added = registry.metric("turbo_registry_objects").await - before;
    assert!(added < 12, "{added} new objects");
    // And what docker pulls is what it pushed.
    let answer = registry.client.get(format!("{}/v2/team/app/manifests/1.0", registry.url)).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), second.to_string());
    registry.stop().await;
}

#[tokio::test]
async fn the_image_for_this_processor_is_taken_from_a_list() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let mut listed = Vec::new();
    for architecture in ["riscv64", layer_format::oci::oci_architecture(std::env::consts::ARCH)] {
        let one = manifest(&registry, "app", config(), &[(media::LAYER_TAR, tar_of(&[("arch", architecture.as_bytes())]))]).await;
        let digest = sha256(one.to_string().as_bytes());
        assert_eq!(put(&registry, "app", &digest, &one).await.status(), StatusCode::CREATED);
        listed.push(
            json!({"mediaType": media::MANIFEST, "digest": digest, "size": one.to_string().len(), "platform": {"os": "linux", "architecture": architecture}}),
        );
    }
    let index = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": listed});
    put(&registry, "app", "latest", &index).await;
    let (_, layers) = native(&registry, "library/app", "latest").await;
    let found = entries(&registry, "library/app", layers[0].root).await;
    let Some(Kind::File(recipe)) = found.iter().find(|(path, _)| path.trim_start_matches('/') == "arch").map(|(_, kind)| kind.clone()) else {
        panic!("{found:?}")
    };
    assert_eq!(recipe.len(), layer_format::oci::oci_architecture(std::env::consts::ARCH).len() as u64);
    registry.stop().await;
}

#[tokio::test]
async fn images_that_cannot_be_run_are_kept_and_say_why() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let broken = {
        let mut bytes = gzip(&tar_of(&[("a", &common::noise(2, 100_000))]));
        bytes.truncate(bytes.len() / 2);
        bytes
    };
    let escape = {
        let mut bytes = tar_of(&[("xx/passwd", b"x")]);
        bytes[0..2].copy_from_slice(b"..");
        let mut header: [u8; 512] = bytes[..512].try_into().unwrap();
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes[..512].copy_from_slice(&header);
        bytes
    };
    for (tag, bytes) in [("broken", broken), ("escape", escape), ("garbage", common::noise(3, 5000))] {
        let pushed = manifest(&registry, "team/bad", config(), &[(GZIP, bytes.clone())]).await;
        assert_eq!(put(&registry, "team/bad", tag, &pushed).await.status(), StatusCode::CREATED);
        let answer = registry.repository("team/bad").get(&format!("manifests/{tag}")).await;
        assert_eq!(code(answer).await, (422, "IMAGE_INVALID".into()), "{tag}");
        let blob = registry.client.get(format!("{}/v2/team/bad/blobs/{}", registry.url, sha256(&bytes))).send().await.unwrap();
        assert!(blob.bytes().await.unwrap() == bytes, "docker gets what it pushed");
    }
    let chart = json!({"schemaVersion": 2, "mediaType": media::MANIFEST, "layers": [],
        "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": push_blob(&registry, "team/bad", b"{}").await["digest"], "size": 2}});
    put(&registry, "team/bad", "chart", &chart).await;
    assert_eq!(code(registry.repository("team/bad").get("manifests/chart").await).await, (422, "IMAGE_INVALID".into()));
    assert_eq!(common::temp_files(data.path()), 0);
    registry.stop().await;
}

#[tokio::test]
async fn an_image_of_ours_is_pulled_as_ordinary_layers() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let files = [("usr/bin/app", b"#!/bin/sh\n".to_vec()), ("opt/data", common::noise(4, 300_000))];
    let sample = Sample::new(&files);
    registry.repository("tools/app").push("2.0", &sample).await;
    let url = format!("{}/v2/tools/app", registry.url);
    let get = async |path: String| {
        let answer = registry.client.get(format!("{url}/{path}")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.bytes().await.unwrap().to_vec()
    };
    let bytes = get("manifests/2.0".into()).await;
    let rendered: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(get(format!("manifests/{}", sha256(&bytes))).await, bytes, "its digest is known");
    let config: Value = serde_json::from_slice(&get(format!("blobs/{}", rendered["config"]["digest"].as_str().unwrap())).await).unwrap();
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/app"]));
    let layer = &rendered["layers"][0];
    let tar = get(format!("blobs/{}", layer["digest"].as_str().unwrap())).await;
    assert_eq!((json!(sha256(&tar)), json!(tar.len())), (layer["digest"].clone(), layer["size"].clone()));
    assert_eq!(config["rootfs"]["diff_ids"], json!([layer["digest"]]));
    let mut archive = tar::Archive::new(&tar[..]);
    let found: Vec<(String, u64)> =
        archive.entries().unwrap().map(|entry| entry.unwrap()).map(|entry| (entry.path().unwrap().display().to_string(), entry.size())).collect();
    assert!(found.contains(&("opt/data".into(), 300_000)) && found.contains(&("usr/bin/app".into(), 10)), "{found:?}");
    let part = registry.client.get(format!("{url}/blobs/{}", layer["digest"].as_str().unwrap())).header("range", "bytes=1000-200000").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert!(part.bytes().await.unwrap() == tar[1000..=200_000]);
    // Who pushes later wins, on both sides.
    let docker = manifest(&registry, "tools/app", config_of_docker(), &[(media::LAYER_TAR, tar_of(&[("d", b"d")]))]).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    put(&registry, "tools/app", "2.0", &docker).await;
    assert_eq!(native(&registry, "tools/app", "2.0").await.0.startup_files[0].command, ["/docker"]);
    assert_eq!(get("manifests/2.0".into()).await, docker.to_string().as_bytes());
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    registry.repository("tools/app").push("2.0", &sample).await;
    assert_eq!(native(&registry, "tools/app", "2.0").await.0.startup_files[0].command, ["/usr/bin/app"]);
    assert_eq!(get("manifests/2.0".into()).await, bytes);
    let tags: Value = serde_json::from_slice(&get("tags/list".into()).await).unwrap();
    assert_eq!(tags["tags"], json!(["2.0"]), "`head` is ours alone");
    // A tag that is deleted here is gone on both sides.
    assert_eq!(registry.client.delete(format!("{url}/manifests/2.0")).send().await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(registry.client.head(format!("{url}/manifests/2.0")).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(registry.repository("tools/app").get("manifests/2.0").await.status(), StatusCode::NOT_FOUND);
    registry.stop().await;
}

fn config_of_docker() -> Value {
    json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/docker"]}, "rootfs": {"type": "layers", "diff_ids": []}})
}
