//! Compressed layers that are stored by what is in them: every byte comes back, builds share their content, and the registry says
//! what it saved and what not.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::TestRegistry;
use serde_json::Value;

/// How long the registry may take to look at what was pushed.
const PATIENCE: Duration = Duration::from_secs(90);

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: this machine has no {tool}; `cargo xtask test` installs it");
    }
    found
}

/// What a program makes of some bytes.
fn piped(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut pipe, input) = (child.stdin.take().unwrap(), input.to_vec());
    let feeding = std::thread::spawn(move || pipe.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    output.stdout
}

fn digest(bytes: &[u8]) -> String {
    let line = String::from_utf8(piped("sha256sum", &[], bytes)).unwrap();
    format!("sha256:{}", line.split_whitespace().next().unwrap())
}

/// A program of some files, of which build `n` has changed a few.
fn files(n: u64) -> Vec<(String, Vec<u8>)> {
    let file = |at: u64| {
        let version = if (at + n).is_multiple_of(60) { n } else { 0 };
        let mut state = (at * 1_000_003 + version) | 1;
        let mut next = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 9) % below
        };
        let words = 40 + next(3000);
        let text: Vec<String> = (0..words).map(|_| format!("{:x}", next(4000) * next(60))).collect();
        (format!("app/lib/module-{at}.py"), text.join(if at.is_multiple_of(2) { " " } else { "\n" }).into_bytes())
    };
    (0..400).map(file).collect()
}

fn tar(files: &[(String, Vec<u8>)], time: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(time);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A client of the registry's APIs.
struct Client<'a> {
    registry: &'a TestRegistry,
    http: reqwest::Client,
}

impl<'a> Client<'a> {
    fn new(registry: &'a TestRegistry) -> Self {
        Self { registry, http: reqwest::Client::new() }
    }

    async fn push(&self, repository: &str, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        let url = format!("{}/v2/{repository}/blobs/uploads/?digest={digest}", self.registry.url());
        let answer = self.http.post(url).body(bytes).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        digest
    }

    async fn get(&self, repository: &str, digest: &str, range: Option<String>) -> Vec<u8> {
        let mut request = self.http.get(format!("{}/v2/{repository}/blobs/{digest}", self.registry.url()));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
        answer.bytes().await.unwrap().to_vec()
    }

    /// What the repository saves, once all its blobs were looked at.
    async fn savings(&self, repository: &str) -> Value {
        let started = Instant::now();
        loop {
            let url = format!("{}/v1/repositories/{repository}/-/savings", self.registry.url());
            let answer = self.http.get(url).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let savings: Value = answer.json().await.unwrap();
            if savings["pending"]["blobs"] == 0 {
                return savings;
            }
            assert!(started.elapsed() < PATIENCE, "{savings}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// `encoder` or `reason` of each group, with its blobs.
fn groups(savings: &Value) -> Vec<(String, u64)> {
    let name = |group: &Value| group["encoder"].as_str().or(group["reason"].as_str()).unwrap().to_owned();
    savings["groups"].as_array().unwrap().iter().map(|group| (name(group), group["blobs"].as_u64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_of_all_kinds_come_back_and_say_what_they_save() {
    let mut registry = TestRegistry::start();
    let plain = tar(&files(0), 1_700_000_000);
    let mut blobs = vec![("none".to_owned(), plain.clone())];
    for level in [1, 6, 9] {
        blobs.push((format!("gzip by zlib-{level}"), piped("gzip", &["-n", &format!("-{level}")], &plain)));
    }
    let noise: Vec<u8> = (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 31).to_le_bytes()).collect();
    blobs.push(("it is compressed by zstd".to_owned(), zstd::encode_all(&plain[..], 3).unwrap()));
    blobs.push(("it is neither a tar nor compressed by gzip".to_owned(), noise.clone()));
    let mut cut = piped("gzip", &["-n"], &plain);
    cut.truncate(cut.len() / 2);
    blobs.push(("the gzip stream ends too early".to_owned(), cut));
    // Two members, something behind them, and no tar in them.
    let mut members = piped("gzip", &["-n"], &noise);
    members.extend(piped("gzip", &["-n", "-6"], &plain[512..]));
    members.extend_from_slice(b"behind");
    blobs.push(("gzip by zlib-6".to_owned(), members));
    // 544 MiB of zeros in half a MiB.
    let bomb = piped("gzip", &["-n"], &vec![0; 32 << 20]).repeat(17);
    blobs.push(("it becomes too long by decompression".to_owned(), bomb));
    let mut digests = Vec::new();
    {
        let client = Client::new(&registry);
        for (_, bytes) in &blobs {
            digests.push(client.push("tools/kinds", bytes.clone()).await);
        }
    }
    // What is to be looked at survives a crash.
    registry.crash_and_restart();
    let client = Client::new(&registry);
    let savings = client.savings("tools/kinds").await;
    let mut found = groups(&savings);
    let mut expected: Vec<(String, u64)> = Vec::new();
    for (name, _) in &blobs {
        match expected.iter_mut().find(|(other, _)| other == name) {
            Some((_, count)) => *count += 1,
            None => expected.push((name.clone(), 1)),
        }
    }
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{savings:#}");
    // Also in a repository that gets the blob later, and from another namespace.
    let mounted = &digests[2];
    for other in ["tools/other", "far/away"] {
        let url = format!("{}/v2/{other}/blobs/uploads/?mount={mounted}&from=tools/kinds", registry.url());
        assert_eq!(client.http.post(url).send().await.unwrap().status(), 201);
        assert!(client.get(other, mounted, None).await == blobs[2].1, "{other}");
    }
    client.push("tools/again", blobs[2].1.clone()).await;
    client.savings("tools/again").await;
    for (digest, (name, bytes)) in digests.iter().zip(&blobs) {
        assert!(client.get("tools/kinds", digest, None).await == *bytes, "{name}");
        for (first, last) in [(0, 0), (1, 70_000), (bytes.len() / 2, bytes.len() / 2 + 1000), (bytes.len() - 9, bytes.len() - 1)] {
            let last = last.min(bytes.len() - 1);
            let part = client.get("tools/kinds", digest, Some(format!("bytes={first}-{last}"))).await;
            assert!(part == bytes[first..=last], "{name}: {first}-{last}");
        }
    }
    assert!(client.get("tools/again", mounted, None).await == blobs[2].1);
}

/// Ten builds, each with other times and a few other files, packed by a tool; what is stored against what was pushed.
async fn ten_builds(pack: impl Fn(&Path, &[u8]) -> Vec<u8>) -> (f64, Value) {
    let registry = TestRegistry::start();
    let client = Client::new(&registry);
    let folder = tempfile::tempdir().unwrap();
    let mut pushed = Vec::new();
    for build in 0..10 {
        let bytes = pack(folder.path(), &tar(&files(build), 1_700_000_000 + 86_400 * build));
        pushed.push((client.push("tools/builds", bytes.clone()).await, bytes));
    }
    let savings = client.savings("tools/builds").await;
    for (digest, bytes) in &pushed {
        assert!(client.get("tools/builds", digest, None).await == *bytes);
    }
    let number = |name: &str| savings["total"][name].as_f64().unwrap();
    (number("stored_bytes") / number("pushed_bytes"), savings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_builds_by_gzip_take_little_more_than_one() {
    let (share, savings) = ten_builds(|_, tar| piped("gzip", &["-n"], tar)).await;
    eprintln!("gzip: {share:.3} of what was pushed");
    assert!(share < 0.4, "{savings:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_builds_by_container_tools_take_little_more_than_one() {
    if !has("umoci") || !has("skopeo") {
        return;
    }
    let pack = |folder: &Path, tar: &[u8]| {
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).current_dir(folder).env("HOME", folder).output().unwrap();
            assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        for old in ["root", "layout", "plain", "packed"] {
            let _ = std::fs::remove_dir_all(folder.join(old));
        }
        std::fs::create_dir(folder.join("root")).unwrap();
        std::fs::write(folder.join("root.tar"), tar).unwrap();
        run("tar", &["-C", "root", "-xf", "root.tar"]);
        run("umoci", &["init", "--layout", "layout"]);
        run("umoci", &["new", "--image", "layout:one"]);
        run("umoci", &["insert", "--rootless", "--image", "layout:one", "root", "/"]);
        // Once more, so that the compressor is skopeo's, as in podman and buildah.
        run("skopeo", &["--insecure-policy", "copy", "--dest-decompress", "oci:layout:one", "dir:plain"]);
        run("skopeo", &["--insecure-policy", "copy", "--dest-compress", "dir:plain", "dir:packed"]);
        let largest = std::fs::read_dir(folder.join("packed")).unwrap().map(|entry| entry.unwrap().path());
        std::fs::read(largest.max_by_key(|path| path.metadata().unwrap().len()).unwrap()).unwrap()
    };
    let (share, savings) = ten_builds(pack).await;
    eprintln!("skopeo: {share:.3} of what was pushed");
    assert!(groups(&savings).iter().all(|(name, _)| name.starts_with("gzip by klauspost-5")), "{savings:#}");
    assert!(share < 0.4, "{savings:#}");
}
