//! The `turbo` binary, run as an ordinary user with a home of its own.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::binaries::{binary, test_user};

/// A `TURBO_HOME` that belongs to the ordinary user.
#[derive(Debug)]
pub struct Home {
    folder: tempfile::TempDir,
    hub: Option<String>,
}

/// What a run of `turbo` printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit code; `None` if it was killed.
    pub code: Option<i32>,
    /// What it printed to stdout.
    pub stdout: String,
    /// What it printed to stderr.
    pub stderr: String,
}

impl Outcome {
    /// Fails the test unless the exit code is 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The value that `--format json` printed.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {} {}", self.stdout, self.stderr))
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Home {
    /// An empty home whose hub is this URL.
    pub fn new(hub: impl Into<String>) -> Self {
        Self::with_hub(Some(hub.into()))
    }

    /// An empty home without a reachable registry.
    pub fn offline() -> Self {
        Self::with_hub(None)
    }

    fn with_hub(hub: Option<String>) -> Self {
        let folder = tempfile::Builder::new().prefix("turbo-home-").tempdir().expect("a temporary folder");
        own(folder.path());
        Self { folder, hub }
    }

    /// The home folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the store and containers are.
    pub fn store(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// A command that runs `turbo` with these arguments as the ordinary user.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary("turbo"));
        command.args(args).env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.path()).env("TURBO_HOME", self.store()).env("TURBO_WAIT", "20");
        command.env("TURBO_HUB", self.hub.as_deref().unwrap_or("http://127.0.0.1:1"));
        command.current_dir(self.path()).stdin(Stdio::null());
        if let Some((uid, gid)) = test_user() {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Runs `turbo` with these arguments to its end.
    #[track_caller]
    pub fn turbo<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        self.command(args).output().expect("turbo runs").into()
    }

    /// A file of the ordinary user's, below its home folder.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).expect("a folder of ours");
        }
        std::fs::write(&path, content).expect("a file of ours");
        self.give_away(&path);
        path
    }

    /// Makes this path, and the folders between it and the home, the ordinary user's.
    pub fn give_away(&self, path: &Path) {
        for path in path.ancestors().take_while(|path| path.starts_with(self.path())) {
            own(path);
        }
    }
}

impl Drop for Home {
    /// A test that fails leaves no container running.
    fn drop(&mut self) {
        if self.store().join("containers").exists() {
            let _ = self.command(["kill", "--all"]).output();
        }
    }
}

/// Makes a path the ordinary user's.
pub fn own(path: &Path) {
    if let Some((uid, gid)) = test_user() {
        chown(path, Some(uid), Some(gid)).expect("root may give away");
    }
}

/// Waits until `condition` holds, at most a generous while.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether this machine can run a VM as the ordinary user; if not, says so. A test that needs it returns.
pub fn can_run() -> bool {
    let home = Home::offline();
    let version = home.turbo(["version", "--format", "json"]).ok().json();
    let failed: Vec<String> = version["result"]["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|check| check["ok"] != true)
        .map(|check| format!("{}: {}", check["name"], check["remedy"]))
        .collect();
    if !failed.is_empty() {
        eprintln!("skipped: this machine cannot run a VM as an ordinary user: {}", failed.join("; "));
    }
    failed.is_empty()
}
