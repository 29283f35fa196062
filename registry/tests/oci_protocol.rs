//! The OCI distribution API, case by case, after the public conformance suite: pushes of every style, their refusals, restarts in
//! the middle, manifests, tags, referrers, deletes. The client is plain HTTP, so that what real clients never send is sent, too.

mod common;

use common::TestRegistry;
use layer_format::oci::media;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use tempfile::tempdir;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(bytes)))
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).unwrap_or_else(|| panic!("no {name} in {answer:?}")).to_str().unwrap()
}

/// The codes of an error answer.
async fn codes(answer: Response) -> (u16, Vec<String>) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    (status, body["errors"].as_array().unwrap().iter().map(|error| error["code"].as_str().unwrap().to_owned()).collect())
}

async fn code(answer: Response) -> (u16, String) {
    let (status, codes) = codes(answer).await;
    (status, codes[0].clone())
}

/// A repository, as a client of the specification sees it.
#[derive(Clone)]
struct Repo {
    url: String,
    name: String,
    client: Client,
}

impl Repo {
    fn of(registry: &TestRegistry, name: &str) -> Self {
        Self { url: registry.url.clone(), name: name.into(), client: registry.client.clone() }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Response {
        let url = if path.starts_with('/') { format!("{}{path}", self.url) } else { format!("{}/v2/{}/{path}", self.url, self.name) };
        let request = self.client.request(method.parse::<Method>().unwrap(), url).body(body);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
    }

    async fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], "").await
    }

    async fn start(&self) -> String {
        let answer = self.send("POST", "blobs/uploads/", &[], "").await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        assert_eq!(header(&answer, "range"), "0-0");
        header(&answer, "location").to_owned()
    }

    async fn push(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let location = self.start().await;
        let answer = self.send("PUT", &format!("{location}?digest={digest}"), &[], bytes.to_vec()).await;
        assert_eq!(answer.status(), StatusCode::CREATED, "{:?}", answer.text().await);
        digest
    }

    async fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        let answer = self.get(&format!("blobs/{digest}")).await;
        match answer.status() {
            StatusCode::OK => {
                assert_eq!(header(&answer, "docker-content-digest"), digest);
                Some(answer.bytes().await.unwrap().to_vec())
            }
            StatusCode::NOT_FOUND => None,
            status => panic!("{status}"),
        }
    }

    async fn put_manifest(&self, reference: &str, manifest: &Value) -> Response {
        let media_type = manifest["mediaType"].as_str().unwrap_or(media::MANIFEST).to_owned();
        self.send("PUT", &format!("manifests/{reference}"), &[("content-type", &media_type)], manifest.to_string()).await
    }

    /// An image without layers whose configuration is `{}`.
    async fn image(&self, more: Value) -> Value {
        let config = self.push(b"{}").await;
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::MANIFEST,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
            "layers": [],
        });
        manifest.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        manifest
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    common::noise(seed, len)
}

#[tokio::test]
async fn a_blob_comes_back_however_it_was_pushed() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    for (seed, len) in [(1, 0), (2, 1), (3, 2), (4, 16_384), (5, 16_385), (6, 70_000), (7, 3_000_001)] {
        let bytes = noise(seed, len);
        for digest in [sha256(&bytes), sha512(&bytes)] {
            let check = async |style: &str, answer: Response| {
                assert_eq!(answer.status(), StatusCode::CREATED, "{style} of {len}");
                assert_eq!(header(&answer, "docker-content-digest"), digest);
                let location = header(&answer, "location").to_owned();
                let answer = repo.get(&location).await;
                assert_eq!(header(&answer, "content-length"), len.to_string());
                assert!(answer.bytes().await.unwrap() == bytes, "{style} of {len}");
                assert_eq!(repo.send("DELETE", &format!("blobs/{digest}"), &[], "").await.status(), StatusCode::ACCEPTED);
                assert_eq!(repo.blob(&digest).await, None, "deleted at once");
            };
            check("POST alone", repo.send("POST", &format!("blobs/uploads/?digest={digest}"), &[], bytes.clone()).await).await;
            let location = repo.start().await;
            check("POST and PUT", repo.send("PUT", &format!("{location}?digest={digest}"), &[], bytes.clone()).await).await;
            let location = repo.start().await;
            let answer = repo.send("PATCH", &location, &[], bytes.clone()).await;
            assert_eq!(answer.status(), StatusCode::ACCEPTED);
            let location = header(&answer, "location").to_owned();
            check("one stream", repo.send("PUT", &format!("{location}?digest={digest}"), &[], "").await).await;
            let location = repo.start().await;
            let mut at = 0;
            for part in bytes.chunks((len / 3).max(1)) {
                let range = format!("{at}-{}", at + part.len() - 1);
                let answer = repo.send("PATCH", &location, &[("content-range", &range)], part.to_vec()).await;
                at += part.len();
                assert_eq!((answer.status(), header(&answer, "range")), (StatusCode::ACCEPTED, format!("0-{}", at - 1).as_str()));
            }
            check("in parts", repo.send("PUT", &format!("{location}?digest={digest}"), &[], "").await).await;
            let location = repo.start().await;
            let (first, last) = bytes.split_at(len / 2);
            if !first.is_empty() {
                let answer = repo.send("PATCH", &location, &[("content-range", &format!("0-{}", first.len() - 1))], first.to_vec()).await;
                assert_eq!(answer.status(), StatusCode::ACCEPTED);
                let range = format!("{}-{}", first.len(), len - 1);
                check("last part in the PUT", repo.send("PUT", &format!("{location}?digest={digest}"), &[("content-range", &range)], last.to_vec()).await)
                    .await;
            }
        }
    }
    assert_eq!(common::temp_files(data.path()), 0);
    registry.stop().await;
}

#[tokio::test]
async fn what_is_not_what_it_says_is_refused_and_leaves_nothing() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    for len in [5, 200_000] {
        let (bytes, wrong) = (noise(1, len), sha256(&noise(2, len)));
        let invalid = |answer| async { assert_eq!(code(answer).await, (400, "DIGEST_INVALID".into())) };
        invalid(repo.send("POST", &format!("blobs/uploads/?digest={wrong}"), &[], bytes.clone()).await).await;
        for wrong in [wrong.clone(), sha512(b"other"), "sha256:baddigeststring".into(), "md5:00".into()] {
            let location = repo.start().await;
            invalid(repo.send("PUT", &format!("{location}?digest={wrong}"), &[], bytes.clone()).await).await;
            let location = repo.start().await;
            repo.send("PATCH", &location, &[], bytes.clone()).await;
            invalid(repo.send("PUT", &format!("{location}?digest={wrong}"), &[], "").await).await;
        }
        let location = repo.start().await;
        invalid(repo.send("PUT", &location, &[], bytes.clone()).await).await;
        assert_eq!(repo.blob(&wrong).await, None);
        assert_eq!(repo.blob(&sha256(&bytes)).await, None);
    }
    // After a wrong digest the upload is over.
    let location = repo.start().await;
    repo.send("PUT", &format!("{location}?digest={}", sha256(b"x")), &[], "y").await;
    assert_eq!(code(repo.get(&location).await).await, (404, "BLOB_UPLOAD_UNKNOWN".into()));
    assert_eq!(common::temp_files(data.path()), 0);
    registry.stop().await;
}

#[tokio::test]
async fn parts_come_in_order() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    let bytes = noise(3, 300_000);
    let location = repo.start().await;
    let patch = |range: &'static str, body: &[u8]| repo_patch(&repo, &location, range, body.to_vec());
    assert_eq!(patch("0-99999", &bytes[..100_000]).await.status(), StatusCode::ACCEPTED);
    for range in ["0-99999", "100001-200000", "99999-199998", "200000-299999"] {
        let answer = patch(range, &bytes[100_000..200_000]).await;
        assert_eq!(header(&answer, "range"), "0-99999");
        assert!(header(&answer, "location").starts_with(&location));
        assert_eq!(code(answer).await, (416, "BLOB_UPLOAD_INVALID".into()), "{range}");
    }
    let digest = sha256(&bytes);
    let answer = repo.send("PUT", &format!("{location}?digest={digest}"), &[("content-range", "5-6")], "ab").await;
    assert_eq!(code(answer).await.0, 416, "also the last part");
    for (range, expected) in [("100000-100002", "SIZE_INVALID"), ("x", "BLOB_UPLOAD_INVALID"), ("7-5", "BLOB_UPLOAD_INVALID"), ("0", "BLOB_UPLOAD_INVALID")] {
        assert_eq!(code(repo_patch(&repo, &location, range, b"four".to_vec()).await).await, (400, expected.into()), "{range}");
    }
    let answer = repo.get(&location).await;
    assert_eq!((answer.status(), header(&answer, "range")), (StatusCode::NO_CONTENT, "0-99999"), "what was refused changed nothing");
    assert_eq!(patch("100000-299999", &bytes[100_000..]).await.status(), StatusCode::ACCEPTED);
    let answer = repo.send("PUT", &format!("{location}?digest={digest}"), &[], "").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(repo.blob(&digest).await.unwrap() == bytes);
    assert_eq!(repo.get(&location).await.status(), StatusCode::NOT_FOUND);
    // Cancelled, and another repository's.
    let location = repo.start().await;
    let other = location.replace("team/app", "team/other");
    assert_eq!(repo.get(&other).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(repo.send("DELETE", &other, &[], "").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(repo.send("DELETE", &location, &[], "").await.status(), StatusCode::NO_CONTENT);
    for method in ["GET", "DELETE", "PATCH"] {
        assert_eq!(repo.send(method, &location, &[], "").await.status(), StatusCode::NOT_FOUND, "{method}");
    }
    registry.stop().await;
}

async fn repo_patch(repo: &Repo, location: &str, range: &str, body: Vec<u8>) -> Response {
    repo.send("PATCH", location, &[("content-range", range)], body).await
}

#[tokio::test]
async fn a_push_goes_on_after_a_restart_and_after_a_cut() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let data = tempdir().unwrap();
    let bytes = noise(4, 5_000_000);
    let digest = sha256(&bytes);
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    let location = repo.start().await;
    assert_eq!(repo_patch(&repo, &location, "0-1999999", bytes[..2_000_000].to_vec()).await.status(), StatusCode::ACCEPTED);
    registry.stop().await;

    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    let answer = repo.get(&location).await;
    assert_eq!(header(&answer, "range"), "0-1999999");
    // A client that promises more than it sends, and is gone.
    let mut stream = tokio::net::TcpStream::connect(registry.url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&bytes[2_000_000..3_500_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    drop(stream);
    let began = std::time::Instant::now();
    let received = loop {
        let answer = repo.get(&location).await;
        let received: usize = header(&answer, "range").split_once('-').unwrap().1.parse::<usize>().unwrap() + 1;
        if received > 2_000_000 {
            break received;
        }
        assert!(began.elapsed().as_secs() < 20, "what came is forgotten");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(received <= 3_500_000);
    registry.stop().await;

    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    let answer = repo.send("PUT", &format!("{location}?digest={digest}"), &[], bytes[received..].to_vec()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(repo.blob(&digest).await.unwrap() == bytes);
    registry.stop().await;
}

#[tokio::test]
async fn ranges_of_blobs() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "library/app");
    for len in [1000usize, 2_000_000] {
        let bytes = noise(len as u64, len);
        let path = format!("blobs/{}", repo.push(&bytes).await);
        for (first, last) in [(0, 0), (0, len - 1), (len / 3, len / 2), (len - 1, len + 50), (500, 600)] {
            let answer = repo.send("GET", &path, &[("range", &format!("bytes={first}-{last}"))], "").await;
            let end = last.min(len - 1);
            assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
            assert_eq!(header(&answer, "content-range"), format!("bytes {first}-{end}/{len}"));
            assert_eq!(header(&answer, "content-length"), (end + 1 - first).to_string());
            assert!(answer.bytes().await.unwrap() == bytes[first..=end]);
        }
        for range in ["bytes=500-0".to_owned(), format!("bytes={len}-"), format!("bytes={}-{}", len + 1, len + 2)] {
            let answer = repo.send("GET", &path, &[("range", &range)], "").await;
            assert_eq!(header(&answer, "content-range"), format!("bytes */{len}"));
            assert_eq!(code(answer).await, (416, "RANGE_INVALID".into()), "{range}");
        }
        let answer = repo.send("HEAD", &path, &[], "").await;
        assert_eq!((answer.status(), header(&answer, "content-length")), (StatusCode::OK, len.to_string().as_str()));
        let etag = header(&answer, "etag").to_owned();
        assert_eq!(repo.send("GET", &path, &[("if-none-match", &etag)], "").await.status(), StatusCode::NOT_MODIFIED);
    }
    assert_eq!(repo.send("HEAD", &format!("blobs/{}", sha256(b"never pushed")), &[], "").await.status(), StatusCode::NOT_FOUND);
    registry.stop().await;
}

#[tokio::test]
async fn a_blob_is_seen_in_its_own_repository_only_until_it_is_mounted() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let (one, two, far) = (Repo::of(&registry, "team/one"), Repo::of(&registry, "team/two"), Repo::of(&registry, "elsewhere/app"));
    let bytes = noise(5, 400_000);
    let digest = one.push(&bytes).await;
    for repo in [&two, &far] {
        assert_eq!(repo.blob(&digest).await, None);
        // Neither the name of the source alone nor a source without the blob gives access.
        for query in [
            format!("mount={digest}"),
            format!("mount={digest}&from=team/nothing"),
            format!("mount={digest}&from=NOT/A/NAME"),
            format!("mount={}&from=team/one", sha256(b"absent")),
        ] {
            let answer = repo.send("POST", &format!("blobs/uploads/?{query}"), &[], "").await;
            assert_eq!(answer.status(), StatusCode::ACCEPTED, "{query}: an upload in its place");
            assert_eq!(repo.blob(&digest).await, None);
        }
        let answer = repo.send("POST", &format!("blobs/uploads/?mount={digest}&from=team/one"), &[], "").await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let location = header(&answer, "location").to_owned();
        assert!(repo.get(&location).await.bytes().await.unwrap() == bytes);
    }
    assert_eq!(one.send("DELETE", &format!("blobs/{digest}"), &[], "").await.status(), StatusCode::ACCEPTED);
    assert_eq!(one.blob(&digest).await, None);
    assert!(two.blob(&digest).await.unwrap() == bytes && far.blob(&digest).await.unwrap() == bytes);
    registry.stop().await;
}

#[tokio::test]
async fn manifests_are_kept_byte_for_byte_and_only_if_they_are_complete() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    let image = repo.image(json!({"unknown": {"field": [1, 2.5]}})).await;
    // With its own order and spaces.
    let bytes = serde_json::to_string_pretty(&image).unwrap();
    for reference in ["1.0".to_owned(), sha256(bytes.as_bytes()), sha512(bytes.as_bytes())] {
        let answer = repo.send("PUT", &format!("manifests/{reference}"), &[("content-type", media::MANIFEST)], bytes.clone()).await;
        assert_eq!(answer.status(), StatusCode::CREATED, "{reference}");
        let digest = header(&answer, "docker-content-digest").to_owned();
        assert_eq!(digest, if reference.starts_with("sha512") { sha512(bytes.as_bytes()) } else { sha256(bytes.as_bytes()) });
        let location = header(&answer, "location").to_owned();
        for path in [location, format!("manifests/{reference}")] {
            let answer = repo.get(&path).await;
            assert_eq!((header(&answer, "content-type"), header(&answer, "docker-content-digest")), (media::MANIFEST, digest.as_str()));
            assert_eq!(answer.headers().get_all("content-type").iter().count(), 1, "podman takes the last, others the first");
            assert_eq!(answer.text().await.unwrap(), bytes);
            let answer = repo.send("HEAD", &path, &[], "").await;
            assert_eq!(header(&answer, "content-length"), bytes.len().to_string());
        }
    }
    let mut missing = image.clone();
    missing["layers"] = json!([
        {"mediaType": media::LAYER_TAR, "digest": sha256(b"one"), "size": 3},
        {"mediaType": media::LAYER_TAR, "digest": sha256(b"two"), "size": 3},
        {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "digest": sha256(b"foreign"), "size": 3, "urls": ["https://elsewhere.example/x"]},
    ]);
    assert_eq!(codes(repo.put_manifest("2", &missing).await).await, (400, vec!["MANIFEST_BLOB_UNKNOWN".into(); 2]));
    // Of another repository it is not there either.
    let other = Repo::of(&registry, "team/other");
    assert_eq!(code(other.put_manifest("1", &image).await).await, (400, "MANIFEST_BLOB_UNKNOWN".into()));
    repo.push(b"one").await;
    repo.push(b"two").await;
    assert_eq!(repo.put_manifest("2", &missing).await.status(), StatusCode::CREATED, "what is kept elsewhere is not asked for");
    missing["layers"][0]["size"] = json!(4);
    assert_eq!(code(repo.put_manifest("3", &missing).await).await, (400, "SIZE_INVALID".into()));
    for (body, media_type, expected) in [
        (b"no json".to_vec(), media::MANIFEST, (400, "MANIFEST_INVALID")),
        (bytes.clone().into_bytes(), "text/plain", (400, "MANIFEST_INVALID")),
        (bytes.clone().into_bytes(), media::INDEX, (400, "MANIFEST_INVALID")),
        (br#"{"schemaVersion":1,"name":"x"}"#.to_vec(), "application/vnd.docker.distribution.manifest.v1+json", (400, "MANIFEST_INVALID")),
        (vec![b'['; 3 << 20], media::MANIFEST, (400, "MANIFEST_INVALID")),
        (vec![b' '; (4 << 20) + 1], media::MANIFEST, (413, "SIZE_INVALID")),
    ] {
        let answer = repo.send("PUT", "manifests/bad", &[("content-type", media_type)], body).await;
        assert_eq!(code(answer).await, (expected.0, expected.1.into()), "{media_type}");
    }
    for reference in [sha256(b"other"), sha512(b"other"), "sha256:baddigeststring".into()] {
        let answer = repo.send("PUT", &format!("manifests/{reference}"), &[("content-type", media::MANIFEST)], bytes.clone()).await;
        assert_eq!(code(answer).await, (400, "DIGEST_INVALID".into()), "{reference}");
    }
    // The largest that the specification wants to be taken.
    let large = repo.image(json!({"annotations": {"x": "y".repeat(3_900_000)}})).await;
    assert_eq!(repo.put_manifest("large", &large).await.status(), StatusCode::CREATED);
    assert_eq!(code(repo.get("manifests/bad").await).await, (404, "MANIFEST_UNKNOWN".into()));
    registry.stop().await;
}

#[tokio::test]
async fn indexes_name_manifests_of_their_repository() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    let index = |manifests: Vec<Value>| json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": manifests});
    let entry = |media_type: &str, text: &str| json!({"mediaType": media_type, "digest": sha256(text.as_bytes()), "size": text.len()});
    assert_eq!(repo.put_manifest("empty", &index(vec![])).await.status(), StatusCode::CREATED);
    let image = repo.image(json!({})).await;
    let listed = index(vec![entry(media::MANIFEST, &image.to_string())]);
    assert_eq!(code(repo.put_manifest("list", &listed).await).await, (400, "MANIFEST_BLOB_UNKNOWN".into()));
    repo.put_manifest(&sha256(image.to_string().as_bytes()), &image).await;
    assert_eq!(repo.put_manifest("list", &listed).await.status(), StatusCode::CREATED);
    let nested = index(vec![entry(media::INDEX, &listed.to_string())]);
    assert_eq!(repo.put_manifest("nested", &nested).await.status(), StatusCode::CREATED);
    let docker = json!({"schemaVersion": 2, "mediaType": media::DOCKER_LIST, "manifests": listed["manifests"]});
    assert_eq!(repo.put_manifest("docker", &docker).await.status(), StatusCode::CREATED);
    registry.stop().await;
}

#[tokio::test]
async fn tags_are_listed_in_pages_and_deleted() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "single");
    assert_eq!(code(repo.get("tags/list").await).await, (404, "NAME_UNKNOWN".into()));
    let image = repo.image(json!({})).await;
    let digest = sha256(image.to_string().as_bytes());
    for tag in ["c", "A", "b", "a.1", "_x"] {
        assert_eq!(repo.put_manifest(tag, &image).await.status(), StatusCode::CREATED);
    }
    let answer = repo.send("PUT", &format!("manifests/{digest}?tag=t1&tag=t2"), &[("content-type", media::MANIFEST)], image.to_string()).await;
    assert_eq!(answer.headers().get_all("oci-tag").iter().collect::<Vec<_>>(), ["t1", "t2"]);
    let list = |query: &str| {
        let path = format!("tags/list{query}");
        let repo = repo.clone();
        async move {
            let answer = repo.get(&path).await;
            let link = answer.headers().get("link").map(|value| value.to_str().unwrap().to_owned());
            let body: Value = answer.json().await.unwrap();
            assert_eq!(body["name"], "single", "as the client calls it");
            (body["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect::<Vec<_>>(), link)
        }
    };
    let all = ["A", "_x", "a.1", "b", "c", "t1", "t2"];
    assert_eq!(list("").await, (all.iter().map(|tag| (*tag).to_owned()).collect(), None));
    let (mut seen, mut query) = (Vec::new(), "?n=3".to_owned());
    loop {
        let (tags, link) = list(&query).await;
        assert!(tags.len() <= 3);
        seen.extend(tags);
        let Some(link) = link else { break };
        let target = link.strip_prefix("</v2/single/tags/list").unwrap().strip_suffix(">; rel=\"next\"").unwrap();
        query = target.to_owned();
    }
    assert_eq!(seen, all);
    assert_eq!(list("?last=b").await.0, ["c", "t1", "t2"], "exclusive");
    assert_eq!(list("?n=0").await.0.len(), 0);
    assert_eq!(list("?n=18446744073709551615").await.0.len(), 7, "no page is that large");
    assert_eq!(repo.get("tags/list?n=-1").await.status(), StatusCode::BAD_REQUEST);
    let catalog: Value = repo.get("/v2/_catalog?n=1").await.json().await.unwrap();
    assert_eq!(catalog, json!({"repositories": ["library/single"]}));
    // A tag goes, its manifest stays; a manifest takes its tags along.
    assert_eq!(repo.send("DELETE", "manifests/b", &[], "").await.status(), StatusCode::ACCEPTED);
    assert_eq!(repo.send("HEAD", "manifests/b", &[], "").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(code(repo.send("DELETE", "manifests/b", &[], "").await).await, (404, "MANIFEST_UNKNOWN".into()));
    assert_eq!(repo.get(&format!("manifests/{digest}")).await.status(), StatusCode::OK);
    assert_eq!(repo.send("DELETE", &format!("manifests/{digest}"), &[], "").await.status(), StatusCode::ACCEPTED);
    for reference in ["A", "t2", &digest] {
        assert_eq!(repo.send("HEAD", &format!("manifests/{reference}"), &[], "").await.status(), StatusCode::NOT_FOUND);
    }
    assert_eq!(list("").await.0.len(), 0);
    registry.stop().await;
}

#[tokio::test]
async fn referrers_are_found_by_subject_and_kind() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    let subject = sha256(b"an image that is not there yet");
    let about = json!({"mediaType": media::MANIFEST, "digest": subject, "size": 10});
    let list = |query: &str| {
        let path = format!("referrers/{subject}{query}");
        let repo = repo.clone();
        async move {
            let answer = repo.get(&path).await;
            assert_eq!((answer.status(), header(&answer, "content-type")), (StatusCode::OK, media::INDEX));
            let filtered = answer.headers().get("oci-filters-applied").map(|value| value.to_str().unwrap().to_owned());
            let body: Value = answer.json().await.unwrap();
            assert_eq!((&body["schemaVersion"], &body["mediaType"]), (&json!(2), &json!(media::INDEX)));
            (body["manifests"].as_array().unwrap().clone(), filtered)
        }
    };
    assert_eq!(list("").await, (vec![], None), "an empty list, also where no repository is");
    let signature = repo.image(json!({"artifactType": "application/vnd.example.signature", "subject": about, "annotations": {"by": "me"}})).await;
    let answer = repo.put_manifest(&sha256(signature.to_string().as_bytes()), &signature).await;
    assert_eq!((answer.status(), header(&answer, "oci-subject")), (StatusCode::CREATED, subject.as_str()));
    let by_config = repo.image(json!({"subject": about})).await;
    repo.put_manifest("sbom", &by_config).await;
    let index = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": [], "subject": about, "artifactType": "application/vnd.example.list"});
    repo.put_manifest("list", &index).await;
    let (found, _) = list("").await;
    assert_eq!(found.len(), 3);
    let (found, filtered) = list("?artifactType=application%2Fvnd.example.signature").await;
    assert_eq!((found.len(), filtered.as_deref()), (1, Some("artifactType")));
    assert_eq!(
        found[0],
        json!({"mediaType": media::MANIFEST, "digest": sha256(signature.to_string().as_bytes()), "size": signature.to_string().len(),
        "annotations": {"by": "me"}, "artifactType": "application/vnd.example.signature"})
    );
    assert_eq!(list("?artifactType=application/vnd.oci.empty.v1%2Bjson").await.0.len(), 1, "the configuration's type counts");
    repo.send("DELETE", "manifests/sbom", &[], "").await;
    repo.send("DELETE", &format!("manifests/{}", sha256(by_config.to_string().as_bytes())), &[], "").await;
    assert_eq!(list("").await.0.len(), 2);
    assert_eq!(repo.get("referrers/sha256:bad").await.status(), StatusCode::BAD_REQUEST);
    registry.stop().await;
}

#[tokio::test]
async fn identical_content_is_stored_once() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    let old = noise(6, 4_000_000);
    repo.push(&old).await;
    let before = registry.metric("turbo_registry_pack_bytes").await;
    let mut new = old.clone();
    new.splice(1_000_000..1_000_100, *b"something else");
    let digest = repo.push(&new).await;
    assert!(repo.blob(&digest).await.unwrap() == new);
    let added = registry.metric("turbo_registry_pack_bytes").await - before;
    assert!(added < before / 20, "{added} bytes for a small change of {before}");
    let before = registry.metric("turbo_registry_pack_bytes").await;
    Repo::of(&registry, "team/other").push(&new).await;
    assert_eq!(registry.metric("turbo_registry_pack_bytes").await, before, "nothing is written for what the namespace has");
    Repo::of(&registry, "foreign/other").push(&old).await;
    assert!(registry.metric("turbo_registry_pack_bytes").await > before + 1_000_000, "namespaces share nothing");
    registry.stop().await;
}

#[tokio::test]
async fn many_push_and_delete_the_same_blob_at_a_time() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let bytes = noise(7, 600_000);
    let digest = sha256(&bytes);
    let tasks = (0..12).map(|at| {
        let repo = Repo::of(&registry, if at % 2 == 0 { "team/one" } else { "team/two" });
        let (bytes, digest) = (bytes.clone(), digest.clone());
        async move {
            for _ in 0..4 {
                repo.push(&bytes).await;
                match at % 4 {
                    0 => drop(repo.send("DELETE", &format!("blobs/{digest}"), &[], "").await),
                    _ => {
                        if let Some(found) = repo.blob(&digest).await {
                            assert!(found == bytes);
                        }
                    }
                }
            }
        }
    });
    futures::future::join_all(tasks).await;
    let repo = Repo::of(&registry, "team/one");
    repo.push(&bytes).await;
    assert!(repo.blob(&digest).await.unwrap() == bytes);
    assert_eq!(common::temp_files(data.path()), 0);
    registry.stop().await;
}

#[tokio::test]
async fn every_refusal_has_a_code_of_the_specification() {
    let data = tempdir().unwrap();
    let registry = TestRegistry::start(data.path()).await;
    let repo = Repo::of(&registry, "team/app");
    let blob = sha256(b"x");
    let answer = repo.get("/v2/").await;
    assert_eq!((answer.status(), header(&answer, "docker-distribution-api-version")), (StatusCode::OK, "registry/2.0"));
    for (method, path, status, expected) in [
        ("GET", "/v2/team/app".to_owned(), 404, "UNSUPPORTED"),
        ("PUT", "/v2/".into(), 405, "UNSUPPORTED"),
        ("POST", "/v2/team/app/manifests/1".into(), 405, "UNSUPPORTED"),
        ("GET", "/v2/Team/app/manifests/1".into(), 400, "NAME_INVALID"),
        ("GET", format!("/v2/{}/manifests/1", "a/".repeat(200) + "a"), 400, "NAME_INVALID"),
        ("GET", "/v2/team%2Fapp/manifests/1".into(), 400, "NAME_INVALID"),
        ("GET", "/v2/team/app%00/manifests/1".into(), 400, "NAME_INVALID"),
        ("GET", "/v2/team/app/manifests/1".into(), 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/team/app/manifests/-1".into(), 400, "TAG_INVALID"),
        ("DELETE", format!("/v2/team/app/manifests/{blob}"), 404, "MANIFEST_UNKNOWN"),
        ("GET", format!("/v2/team/app/blobs/{blob}"), 404, "BLOB_UNKNOWN"),
        ("DELETE", format!("/v2/team/app/blobs/{blob}"), 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/team/app/blobs/sha256:x".into(), 400, "DIGEST_INVALID"),
        ("PATCH", "/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef".into(), 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PATCH", "/v2/team/app/blobs/uploads/x".into(), 404, "BLOB_UPLOAD_UNKNOWN"),
        ("POST", "/v2/team/app/blobs/uploads/?mount=x&from=team/app".into(), 400, "DIGEST_INVALID"),
        ("POST", "/v2/team/app/blobs/uploads/?digest-algorithm=md5".into(), 400, "DIGEST_INVALID"),
    ] {
        assert_eq!(code(repo.send(method, &path, &[], "").await).await, (status, expected.into()), "{method} {path}");
    }
    registry.stop().await;
}
