//! Several servers on one PostgreSQL and one S3: what one takes the other has, work goes on at either, also when one is killed,
//! and what they do at the same time ends as if they had done it one after the other. Skipped, with the reason, on a machine
//! that lacks one of the two.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::backend::{BUCKET, Servers};
use common::servers::{ACCESS_KEY, Postgres, SECRET_KEY};
use common::{CHUNK_LEN, Remote, Sample, TestRegistry, code, noise};
use layer_format::api::Tags;
use layer_format::pack;
use reqwest::{Client, Response, StatusCode};
use sha2::Digest as _;
use tempfile::{TempDir, tempdir};

/// The servers of this test binary, or `None` if there cannot be any.
fn servers() -> Option<&'static Servers> {
    static SERVERS: OnceLock<Result<Servers, String>> = OnceLock::new();
    match SERVERS.get_or_init(Servers::start) {
        Ok(servers) => Some(servers),
        Err(reason) => {
            eprintln!("skipped: {reason}");
            None
        }
    }
}

async fn replica(servers: &Servers, name: &str) -> (TestRegistry, TempDir) {
    let data = tempdir().unwrap();
    (TestRegistry::with_config(servers.config(data.path(), name).await).await, data)
}

/// A replica that can be killed.
struct Process {
    child: Child,
    url: String,
    _data: TempDir,
}

impl Process {
    async fn start(servers: &Servers, name: &str) -> Self {
        let data = tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_turbo-registry"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data.path()).env("RUST_LOG", "warn").stderr(Stdio::piped());
        command.env("TURBO_REGISTRY_DATABASE_URL", servers.postgres.database(name).await);
        command.env("TURBO_REGISTRY_STORAGE_URL", format!("s3://{BUCKET}/{name}"));
        command.env("TURBO_REGISTRY_S3_ENDPOINT", servers.seaweed.endpoint());
        command.env("TURBO_REGISTRY_S3_ACCESS_KEY_ID", ACCESS_KEY).env("TURBO_REGISTRY_S3_SECRET_ACCESS_KEY", SECRET_KEY);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = lines.find_map(|line| line.unwrap().strip_prefix("listening on ").map(str::to_owned)).expect("a line that says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url, _data: data }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn sha256(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// The uploads of a repository, at any server.
struct Uploads {
    client: Client,
    path: String,
}

impl Uploads {
    async fn start(client: &Client, url: &str) -> Self {
        let answer = client.post(format!("{url}/v2/team/app/blobs/uploads/")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        Self { client: client.clone(), path: answer.headers()["location"].to_str().unwrap().to_owned() }
    }

    async fn patch(&self, url: &str, first: usize, bytes: &[u8]) -> Response {
        let range = format!("{first}-{}", first + bytes.len() - 1);
        self.client.patch(format!("{url}{}", self.path)).header("content-range", range).body(bytes.to_vec()).send().await.unwrap()
    }

    /// Bytes that are there.
    async fn received(&self, url: &str) -> usize {
        let answer = self.client.get(format!("{url}{}", self.path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        let range = answer.headers()["range"].to_str().unwrap().to_owned();
        match range.as_str() {
            "0-0" => 0,
            range => range.strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1,
        }
    }

    async fn finish(&self, url: &str, digest: &str) -> Response {
        self.client.put(format!("{url}{}?digest={digest}", self.path)).send().await.unwrap()
    }
}

async fn blob(client: &Client, url: &str, digest: &str) -> (StatusCode, Vec<u8>) {
    let answer = client.get(format!("{url}/v2/team/app/blobs/{digest}")).send().await.unwrap();
    (answer.status(), answer.bytes().await.unwrap().to_vec())
}

#[tokio::test]
async fn an_upload_goes_on_at_another_replica_also_when_the_first_is_killed() {
    let Some(servers) = servers() else { return };
    let mut first = Process::start(servers, "killed").await;
    let (second, _data) = replica(servers, "killed").await;
    let client = Client::new();
    // Longer than a part of an S3 upload, so that parts are in flight when the kill comes.
    let bytes = noise(1, 14_000_000);
    let digest = sha256(&bytes);
    let upload = Uploads::start(&client, &first.url).await;
    assert_eq!(upload.patch(&first.url, 0, &bytes[..3_000_000]).await.status(), StatusCode::ACCEPTED);
    assert_eq!(upload.received(&second.url).await, 3_000_000);
    assert_eq!(upload.patch(&second.url, 3_000_000, &bytes[3_000_000..4_000_000]).await.status(), StatusCode::ACCEPTED);
    // The first one gets most of the rest, and dies before the end.
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let cut = tokio::spawn(client.patch(format!("{}{}", first.url, upload.path)).body(body).send());
    for piece in bytes[4_000_000..13_000_000].chunks(1 << 20) {
        sender.send(Ok(piece.to_vec())).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    first.kill();
    assert!(cut.await.unwrap().is_err());
    assert_eq!(upload.received(&second.url).await, 4_000_000, "what was not acknowledged is sent again");
    assert_eq!(upload.patch(&second.url, 4_000_000, &bytes[4_000_000..]).await.status(), StatusCode::ACCEPTED);
    assert_eq!(upload.finish(&second.url, &digest).await.status(), StatusCode::CREATED);
    let third = Process::start(servers, "killed").await;
    for url in [&second.url, &third.url] {
        assert!(blob(&client, url, &digest).await == (StatusCode::OK, bytes.clone()));
    }
    second.stop().await;
}

#[tokio::test]
async fn of_two_replicas_that_go_on_with_an_upload_one_wins() {
    let Some(servers) = servers() else { return };
    let (one, _one) = replica(servers, "race").await;
    let (two, _two) = replica(servers, "race").await;
    let client = Client::new();
    let bytes = noise(2, 600_000);
    let upload = Uploads::start(&client, &one.url).await;
    for at in (0..bytes.len()).step_by(100_000) {
        let part = &bytes[at..at + 100_000];
        let answers = futures::future::join(upload.patch(&one.url, at, part), upload.patch(&two.url, at, part)).await;
        let statuses = [answers.0.status(), answers.1.status()];
        assert_eq!(statuses.iter().filter(|status| **status == StatusCode::ACCEPTED).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| !status.is_server_error()), "{statuses:?}");
        assert_eq!(upload.received(&two.url).await, at + part.len());
    }
    let digest = sha256(&bytes);
    let ends = futures::future::join(upload.finish(&one.url, &digest), upload.finish(&two.url, &digest)).await;
    let statuses = [ends.0.status(), ends.1.status()];
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::CREATED).count(), 1, "{statuses:?}");
    assert!(blob(&client, &one.url, &digest).await == (StatusCode::OK, bytes));
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn the_same_objects_pushed_everywhere_at_once_are_stored_once_and_nobody_waits_in_a_circle() {
    let Some(servers) = servers() else { return };
    let (one, _one) = replica(servers, "packs").await;
    let (two, _two) = replica(servers, "packs").await;
    let sample = Sample::generated(3, 300, 200);
    let mut packs = Vec::new();
    // The same objects in other orders: other packs.
    for turn in 0..6 {
        let mut objects = sample.objects.clone();
        let middle = turn * objects.len() / 6;
        objects.rotate_left(middle);
        packs.push(pack::build(&objects, Some(1)).unwrap().0);
    }
    let pushes = (0..24).map(|at| {
        let (registry, bytes) = (if at % 2 == 0 { &one } else { &two }, &packs[at / 2 % 6]);
        let remote = registry.repository("tools/app");
        async move { remote.put_pack(bytes).await.status() }
    });
    let statuses = futures::future::join_all(pushes).await;
    assert!(statuses.iter().all(StatusCode::is_success), "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == StatusCode::CREATED).count(), 6, "each pack once");
    assert_eq!(one.metric("turbo_registry_packs").await, 6);
    let stream = two.repository("tools/app").objects(&sample.digests(), "").await;
    assert_eq!(stream.objects.len(), sample.objects.len());
    one.stop().await;
    two.stop().await;
}

/// Numbers that are the same each time.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[tokio::test]
async fn pushes_and_deletes_at_two_replicas_leave_releases_that_name_images() {
    let Some(servers) = servers() else { return };
    let (one, _one) = replica(servers, "deletes").await;
    let (two, _two) = replica(servers, "deletes").await;
    let samples: Vec<Sample> = (0..4).map(|seed| Sample::generated(100 + seed, 2, 300)).collect();
    for sample in &samples {
        one.repository("tools/app").put_pack(&sample.pack()).await;
    }
    let workers = (0..8u64).map(|worker| {
        let remote = if worker % 2 == 0 { one.repository("tools/app") } else { two.repository("tools/app") };
        let samples = &samples;
        async move {
            let mut state = worker + 1;
            for _ in 0..25 {
                let sample = &samples[next(&mut state) as usize % samples.len()];
                let release = format!("{}.0", next(&mut state) % 3);
                let status = match next(&mut state) % 4 {
                    0 | 1 => remote.put_image(&release, &sample.image).await.status(),
                    2 => remote.client.delete(format!("{}/manifests/{release}", remote.base)).send().await.unwrap().status(),
                    _ => remote.client.delete(format!("{}/manifests/{}", remote.base, sample.digest())).send().await.unwrap().status(),
                };
                assert!(!status.is_server_error(), "{status}");
                check_releases(&remote).await;
            }
        }
    });
    futures::future::join_all(workers).await;
    // Nothing moves any more: every release names an image, and `head` is there as long as any is.
    let remote = one.repository("tools/app");
    let tags: Tags = remote.get("tags").await.json().await.unwrap();
    for (release, digest) in &tags.tags {
        assert_eq!(remote.get(&format!("manifests/{digest}")).await.status(), StatusCode::OK, "{release}");
    }
    let mut left = 0;
    for sample in &samples {
        left += usize::from(remote.get(&format!("manifests/{}", sample.digest())).await.status() == StatusCode::OK);
    }
    assert_eq!(tags.tags.contains_key("head"), left > 0);
    one.stop().await;
    two.stop().await;
}

/// Whatever others do meanwhile, an answer is an image or that there is none.
async fn check_releases(remote: &Remote) {
    for release in ["head", "0.0", "1.0"] {
        let status = remote.get(&format!("manifests/{release}")).await.status();
        assert!(matches!(status, StatusCode::OK | StatusCode::NOT_FOUND), "{status}");
    }
}

#[tokio::test]
async fn replicas_that_start_at_once_migrate_once_and_share_what_they_have() {
    let Some(servers) = servers() else { return };
    let started = futures::future::join_all((0..4).map(|_| replica(servers, "start"))).await;
    let sample = Sample::generated(5, 20, CHUNK_LEN);
    started[0].0.repository("tools/app").push("1.0", &sample).await;
    for (registry, _) in &started {
        let remote = registry.repository("tools/app");
        assert_eq!(remote.get("manifests/1.0").await.bytes().await.unwrap(), sample.image);
        assert_eq!(remote.objects(&sample.digests(), "").await.objects.len(), sample.objects.len());
        let answer = registry.client.get(format!("{}/readyz", registry.url)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    // What one forgets is gone at all.
    let digest = sample.digest();
    let remote = started[1].0.repository("tools/app");
    assert_eq!(remote.client.delete(format!("{}/manifests/{digest}", remote.base)).send().await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(started[3].0.repository("tools/app").get("manifests/1.0").await.status(), StatusCode::NOT_FOUND);
    for (registry, _) in started {
        registry.stop().await;
    }
}

#[tokio::test]
async fn an_outage_is_answered_as_one_and_ends_without_a_restart() {
    let mut servers = match Servers::start() {
        Ok(servers) => servers,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let (registry, _data) = replica(&servers, "outage").await;
    let remote = registry.repository("tools/app");
    let sample = Sample::generated(6, 10, CHUNK_LEN);
    let other = Sample::generated(7, 10, CHUNK_LEN);
    remote.push("1.0", &sample).await;
    let get = async |path: &str| registry.client.get(format!("{}{path}", registry.url)).send().await.unwrap();
    let is_outage = |answer: &Response| answer.status() == StatusCode::SERVICE_UNAVAILABLE && answer.headers().contains_key("retry-after");

    servers.postgres.pause();
    let image = format!("/v1/repositories/tools/app/-/manifests/{}", sample.digest());
    let pack = other.pack();
    let answers = futures::future::join4(get("/readyz"), get(&image), get("/v2/tools/app/tags/list"), remote.put_pack(&pack)).await;
    for answer in [&answers.0, &answers.1, &answers.2, &answers.3] {
        assert!(is_outage(answer), "{answer:?}");
    }
    servers.postgres.resume();
    wait_until_ready(&registry).await;
    assert_eq!(get(&image).await.status(), StatusCode::OK);

    servers.seaweed.pause();
    let answers = futures::future::join(get("/readyz"), remote.put_pack(&pack)).await;
    assert!(is_outage(&answers.0), "{:?}", answers.0);
    assert_eq!(code(answers.1).await, (503, "UNAVAILABLE".into()));
    servers.seaweed.resume();
    wait_until_ready(&registry).await;
    assert_eq!(remote.put_pack(&pack).await.status(), StatusCode::CREATED);
    assert_eq!(remote.objects(&other.digests(), "").await.objects.len(), other.objects.len());
    registry.stop().await;
}

async fn wait_until_ready(registry: &TestRegistry) {
    let began = Instant::now();
    while registry.client.get(format!("{}/readyz", registry.url)).send().await.unwrap().status() != StatusCode::OK {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_text_that_postgresql_cannot_keep_is_refused_with_a_reason() {
    let Some(servers) = servers() else { return };
    let (registry, _data) = replica(servers, "nul").await;
    let upload = Uploads::start(&registry.client, &registry.url).await;
    let config = sha256(b"{}");
    let answer = registry.client.put(format!("{}{}?digest={config}", registry.url, upload.path)).body("{}").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"a\u0000b","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{config}","size":2}},"layers":[]}}"#
    );
    let put = registry.client.put(format!("{}/v2/team/app/manifests/1", registry.url)).header("content-type", "application/vnd.oci.image.manifest.v1+json");
    let answer = put.body(manifest).send().await.unwrap();
    assert!(answer.status() == StatusCode::BAD_REQUEST, "{}", answer.status());
    registry.stop().await;
}

#[tokio::test]
async fn the_same_tables_on_both_databases() {
    let Ok(postgres) = Postgres::start() else {
        eprintln!("skipped: PostgreSQL is not installed");
        return;
    };
    let data = tempdir().unwrap();
    registry::App::open(registry::Config::new(data.path())).await.unwrap().close().await;
    let other = tempdir().unwrap();
    let mut config = registry::Config::new(other.path());
    config.database_url = Some(postgres.database("tables").await);
    registry::App::open(config.clone()).await.unwrap().close().await;
    let sqlite = common::schema::sqlite(&data.path().join("registry.db")).await;
    let there = common::schema::postgres(config.database_url.as_deref().unwrap()).await;
    for (table, columns) in &sqlite {
        assert_eq!(there.get(table), Some(columns), "table {table}");
    }
    assert_eq!(sqlite.keys().collect::<Vec<_>>(), there.keys().collect::<Vec<_>>());
    assert!(sqlite.len() > 10, "there are tables");
}

#[tokio::test]
async fn a_copy_that_went_bad_is_fetched_again() {
    let Some(servers) = servers() else { return };
    let (registry, data) = replica(servers, "copies").await;
    let remote = registry.repository("tools/app");
    // Not compressed, so that any byte matters.
    let objects: Vec<Vec<u8>> = (0..20).map(|seed| noise(seed, CHUNK_LEN)).collect();
    let (bytes, index) = pack::build(&objects, None).unwrap();
    assert_eq!(remote.put_pack(&bytes).await.status(), StatusCode::CREATED);
    registry.stop().await;
    // A server without frames in memory.
    let mut config = servers.config(data.path(), "copies").await;
    config.frame_cache_bytes = 1;
    let registry = TestRegistry::with_config(config).await;
    let remote = registry.repository("tools/app");
    let digests: Vec<_> = index.objects.iter().map(|object| object.digest).collect();
    let read = async || remote.objects(&digests, "").await.objects.len();
    assert_eq!(read().await, objects.len());
    let folder = data.path().join("copies");
    let copies = || std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(copies().len(), 1);
    let mut damaged = std::fs::read(&copies()[0]).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&copies()[0], &damaged).unwrap();
    assert_eq!(read().await, objects.len(), "the copy was not trusted");
    std::fs::write(&copies()[0], b"cut").unwrap();
    assert_eq!(read().await, objects.len());
    std::fs::remove_file(&copies()[0]).unwrap();
    assert_eq!(read().await, objects.len());
    assert_eq!(registry.metric("turbo_registry_objects_damaged_total").await, 0);
    registry.stop().await;
}
