//! The binary: how it starts, stops, and what a kill leaves.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Remote, Sample, temp_files};
use layer_format::Digest;
use reqwest::{Client, StatusCode};
use tempfile::tempdir;

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(data: &Path) -> Self {
        let mut child =
            command().args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data).env("RUST_LOG", "warn").stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = lines.find_map(|line| line.unwrap().strip_prefix("listening on ").map(str::to_owned)).expect("a line that says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    fn remote(&self) -> Remote {
        Remote { base: format!("{}/v1/repositories/tools/app/-", self.url), client: Client::new() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turbo-registry"));
    command.env_remove("RUST_LOG");
    command
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_push_leaves_nothing_and_the_push_can_be_repeated() {
    let data = tempdir().unwrap();
    let sample = Sample::generated(1, 50, 20_000);
    let pack = sample.pack();
    let mut server = Server::start(data.path());
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    write!(stream, "PUT /v1/repositories/tools/app/-/packs/{} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", Digest::of(&pack), pack.len()).unwrap();
    stream.write_all(&pack[..pack.len() / 2]).unwrap();
    let began = Instant::now();
    while temp_files(data.path()) == 0 {
        assert!(began.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(100));
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert_eq!(temp_files(data.path()), 1);

    let server = Server::start(data.path());
    assert_eq!(temp_files(data.path()), 0);
    let remote = server.remote();
    assert_eq!(remote.missing(&sample.digests()).await, vec![true; sample.objects.len()]);
    assert_eq!(remote.put_pack(&pack).await.status(), StatusCode::CREATED);
    assert_eq!(remote.put_image("1", &sample.image).await.status(), StatusCode::CREATED);
    // What was acknowledged survives a kill.
    drop(server);
    let server = Server::start(data.path());
    assert_eq!(server.remote().objects(&sample.digests(), "").await.sent().len(), sample.objects.len());
}

#[test]
fn it_stops_when_told_to() {
    let data = tempdir().unwrap();
    let mut server = Server::start(data.path());
    Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status().unwrap();
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn it_refuses_to_serve_everyone_and_to_share_a_folder() {
    let data = tempdir().unwrap();
    let run = |args: &[&str]| command().args(args).arg("--data").arg(data.path()).output().unwrap();
    let output = run(&["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--insecure-no-auth"));
    let _server = Server::start(data.path());
    let output = run(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use by another"), "{output:?}");
    assert_eq!(command().args(["serve", "--listten"]).output().unwrap().status.code(), Some(2));
    assert!(command().arg("version").output().unwrap().stdout.starts_with(b"turbo-registry "));
}

#[test]
fn a_file_and_variables_configure_it() {
    let data = tempdir().unwrap();
    let file = data.path().join("registry.toml");
    std::fs::write(&file, "listen = '0.0.0.0:0'\n").unwrap();
    let output = command().args(["serve", "--config"]).arg(&file).env("TURBO_REGISTRY_DATA", data.path().join("d")).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("0.0.0.0"), "{output:?}");
    std::fs::write(&file, "lissten = 'x'\n").unwrap();
    let output = command().args(["serve", "--config"]).arg(&file).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("lissten") && message.contains("did you mean `listen`?") && message.contains("registry.toml"), "{message}");
}

#[test]
fn config_check_shows_what_serve_would_use_and_what_is_wrong() {
    let data = tempdir().unwrap();
    let file = data.path().join("registry.toml");
    std::fs::write(&file, "listen = '127.0.0.1:7000'\nmax_streams = 7\nmax_uploads = 3\ns3_secret_access_key = 'letmein'\n").unwrap();
    let check = |more: &[&str], database: &str| {
        let mut command = command();
        command.args(["config", "check", "--config"]).arg(&file).args(more);
        command.env("TURBO_REGISTRY_DATA", data.path().join("d")).env("TURBO_REGISTRY_MAX_UPLOADS", "4").env("TURBO_REGISTRY_DATABASE_URL", database);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let sqlite = format!("sqlite:{}/d/registry.db", data.path().display());
    let (ok, shown, _) = check(&["--max-blob-bytes", "2000000"], &sqlite);
    assert!(ok);
    for line in ["listen = \"127.0.0.1:7000\"", "max_streams = 7", "max_uploads = 4", "max_blob_bytes = 2000000", "max_requests = 1024"] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in {shown}");
    }
    assert!(!shown.contains("letmein"));
    // What is shown is a configuration.
    std::fs::write(&file, shown).unwrap();
    let (ok, _, found) = check(&["--connect"], &sqlite);
    assert!(ok && found.contains("will be created"), "{found}");
    assert!(!data.path().join("d").exists(), "nothing was created");
    let (ok, shown, error) = check(&["--connect"], "postgres://turbo:letmein@127.0.0.1:9/turbo");
    assert!(!ok && error.contains("postgres://turbo:HIDDEN@127.0.0.1:9/turbo cannot be used"), "{error}");
    assert!(!shown.contains("letmein") && !error.contains("letmein"));
    let (ok, _, error) = check(&["--max-streams", "0"], &sqlite);
    assert!(!ok && error.contains("`max_streams` is 0, and must be between 1 and"), "{error}");
    let (ok, _, error) = check(&[], "mysql://x");
    assert!(ok, "only --connect opens it: {error}");
    assert!(!check(&["--connect"], "mysql://x").0);
    assert!(!check(&["--listen", "0.0.0.0:1"], &sqlite).0, "others could reach it");
}
