//! A PostgreSQL and a SeaweedFS (S3) of a test's own: in a folder of their own below the temporary folder, reachable from
//! this machine only, gone with the process that started them, however it ends.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;

/// How long a server may take to start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A child that ends when its standard input does: so with this process. Its folder goes with it.
#[derive(Debug)]
struct Guarded(Child);

impl Guarded {
    /// `stop`: the signal.
    fn start(program: &Path, args: &[String], folder: &Path, log: &Path, stop: &str, user: Option<(u32, u32)>) -> Self {
        // The shell waits for a line, or for the end of its input, then ends the program, by its process id. Without the line
        // nobody will need the folder again.
        let script = r#"log=$1 stop=$2; shift 2; "$@" >>"$log" 2>&1 </dev/null & child=$!
            read -r line; kept=$?; kill -"$stop" $child; wait $child; [ $kept = 0 ] || rm -rf "$PWD""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(log).arg(stop).arg(program).args(args);
        command.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        Self(command.spawn().expect("sh starts"))
    }

    /// Ends the server, and waits for that. Its folder stays.
    fn stop(mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            let _ = input.write_all(b"\n");
        }
        let _ = self.0.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A PostgreSQL server, on a socket in its folder.
#[derive(Debug)]
pub struct Postgres {
    // In this order: the server ends before its folder is removed.
    server: Option<Guarded>,
    program: PathBuf,
    folder: TempDir,
    user: Option<(u32, u32)>,
}

impl Postgres {
    /// A new, empty one; why not if this machine has none.
    pub fn start() -> Result<Self, String> {
        let binaries = postgres_binaries().ok_or("PostgreSQL is not installed (Debian's package is `postgresql`)")?;
        let folder = tempfile::Builder::new().prefix("turbo-pg-").tempdir().map_err(|error| error.to_string())?;
        // It does not run as root.
        let user = is_root().then(|| user_ids("postgres").or_else(|| user_ids("nobody")).unwrap_or((65534, 65534)));
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).map_err(|error| error.to_string())?;
        }
        let mut initdb = Command::new(binaries.join("initdb"));
        initdb.args(["-D", "data", "-U", "turbo", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"]);
        initdb.current_dir(folder.path());
        if let Some((uid, gid)) = user {
            initdb.uid(uid).gid(gid);
        }
        let output = initdb.output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("initdb failed: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let mut postgres = Self { server: None, program: binaries.join("postgres"), folder, user };
        postgres.resume();
        Ok(postgres)
    }

    /// Starts it again after [`Postgres::pause`]; returns once it takes connections.
    pub fn resume(&mut self) {
        let folder = self.folder.path();
        let set = |setting: &str| ["-c".to_owned(), setting.to_owned()];
        let mut args: Vec<String> = ["-D", "data", "-k"].map(str::to_owned).to_vec();
        args.push(folder.display().to_string());
        for setting in ["listen_addresses=", "fsync=off", "max_connections=300", "shared_buffers=32MB", "autovacuum=off", "log_min_messages=warning"] {
            args.extend(set(setting));
        }
        // SIGINT: a fast shutdown, which cuts connections.
        self.server = Some(Guarded::start(&self.program, &args, folder, &folder.join("log"), "INT", self.user));
        let began = Instant::now();
        let socket = folder.join(".s.PGSQL.5432");
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(began.elapsed() < START, "PostgreSQL does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it; its data stays.
    pub fn pause(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
    }

    /// The URL of a database of this name.
    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&user=turbo", self.folder.path().display())
    }

    /// Makes a database of this name if there is none, and gives its URL.
    pub async fn database(&self, name: &str) -> String {
        let began = Instant::now();
        let mut connection = loop {
            match PgConnection::connect(&self.url("postgres")).await {
                Ok(connection) => break connection,
                // It takes connections a moment before it lets anyone in.
                Err(_) if began.elapsed() < START => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        };
        match connection.execute(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).await {
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P04" | "23505")) => {}
            Err(error) => panic!("{error}"),
        }
        self.url(name)
    }
}

/// A SeaweedFS server that speaks S3.
#[derive(Debug)]
pub struct Seaweed {
    server: Option<Guarded>,
    program: PathBuf,
    folder: TempDir,
    ports: Vec<u16>,
}

/// Names of what a client must know.
pub const ACCESS_KEY: &str = "turbo";
pub const SECRET_KEY: &str = "turbo-secret";

impl Seaweed {
    /// A new, empty one; why not if this machine has none.
    pub fn start() -> Result<Self, String> {
        let program = weed().ok_or("SeaweedFS is not there: `cargo xtask test` brings it, or TURBO_TEST_WEED names the program `weed`")?;
        let folder = tempfile::Builder::new().prefix("turbo-weed-").tempdir().map_err(|error| error.to_string())?;
        let identities = format!(
            r#"{{"identities":[{{"name":"turbo","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","List","Tagging","Write"]}}]}}"#
        );
        fs::write(folder.path().join("s3.json"), identities).map_err(|error| error.to_string())?;
        fs::create_dir(folder.path().join("data")).map_err(|error| error.to_string())?;
        let mut seaweed = Self { server: None, program, folder, ports: free_ports(8) };
        seaweed.resume();
        Ok(seaweed)
    }

    /// Starts it again after [`Seaweed::pause`]; returns once it answers.
    pub fn resume(&mut self) {
        let folder = self.folder.path();
        let fixed = [
            "server",
            "-dir=data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            "-s3.config=s3.json",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.volumeSizeLimitMB=64",
            "-filer.localSocket=filer.sock",
            "-s3.localSocket=s3.sock",
            "-volume.max=0",
            "-master.telemetry=false",
        ];
        let roles = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc"];
        let ports = roles.iter().zip(&self.ports).map(|(role, port)| format!("-{role}={port}"));
        let args: Vec<String> = fixed.iter().map(|arg| (*arg).to_owned()).chain(ports).collect();
        // It takes half a minute to stop by itself.
        self.server = Some(Guarded::start(&self.program, &args, folder, &folder.join("log"), "KILL", None));
        let began = Instant::now();
        while !is_healthy(self.ports[6]) {
            let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(began.elapsed() < START, "SeaweedFS does not start: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops it; its data stays.
    pub fn pause(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
        }
    }

    /// Where it is.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[6])
    }
}

fn is_healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut answer = String::new();
    let _ = stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer).map(drop));
    answer.starts_with("HTTP/1") && answer.contains(" 200")
}

fn free_ports(count: usize) -> Vec<u16> {
    let sockets: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    sockets.iter().map(|socket| socket.local_addr().expect("a port").port()).collect()
}

/// Debian's folder of the newest version from 15 on, else wherever `initdb` is on the path.
fn postgres_binaries() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|version| *version >= 15).max();
    let debian = newest.map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))).filter(|folder| folder.join("initdb").exists());
    debian.or_else(|| std::env::split_paths(&std::env::var_os("PATH")?).find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists()))
}

/// The program `weed`: named by the environment, beside what cargo builds, or on the path.
fn weed() -> Option<PathBuf> {
    let named = std::env::var_os("TURBO_TEST_WEED").map(PathBuf::from);
    let own = std::env::current_exe().ok();
    let beside = own.iter().flat_map(|own| own.ancestors().skip(1)).map(|folder| folder.join("tools/seaweedfs/weed"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|folder| folder.join("weed")).collect::<Vec<_>>();
    named.into_iter().chain(beside).chain(installed).find(|place| place.exists())
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("Uid:")).is_some_and(|ids| ids.split_ascii_whitespace().nth(1) == Some("0"))
}

fn user_ids(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}
