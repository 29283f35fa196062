//! Docker's daemon, with folders of its own and no network.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How long it may take to begin, in steps of [`STEP`].
const STEPS: u32 = 600;
const STEP: Duration = Duration::from_millis(100);

/// A running daemon; stopped when dropped.
#[derive(Debug)]
pub struct Docker {
    child: Child,
    folder: tempfile::TempDir,
}

impl Docker {
    /// Starts one; `None`, with the reason on stderr, where it cannot run.
    pub fn start() -> Option<Self> {
        for tool in ["dockerd", "docker"] {
            if !Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success()) {
                eprintln!("skipped: this machine has no {tool}; `cargo xtask test` installs it");
                return None;
            }
        }
        let folder = tempfile::Builder::new().prefix("turbo-docker-").tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let log = std::fs::File::create(folder.path().join("log")).expect("a file of ours");
        let child = Command::new("dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid"), "-H", &format!("unix://{}", at("socket"))])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"])
            .stderr(log)
            .spawn()
            .expect("dockerd starts");
        let mut docker = Self { child, folder };
        for _ in 0..STEPS {
            if docker.run(&["version"]).status.success() {
                return Some(docker);
            }
            if !matches!(docker.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(STEP);
        }
        let log = std::fs::read_to_string(docker.folder.path().join("log")).unwrap_or_default();
        eprintln!("skipped: docker's daemon does not start here: {}", log.lines().last().unwrap_or_default());
        None
    }

    /// Where its socket and data are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `docker` with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["-H", &format!("unix://{}", self.folder.path().join("socket").display())]).args(arguments);
        command.env("HOME", self.folder.path()).env("DOCKER_BUILDKIT", "0");
        command
    }

    /// Runs it.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("docker starts")
    }

    /// Runs it, and fails the test if it fails; what it printed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        // It leaves the mount of a network namespace in its folder, which then cannot be removed.
        let left = self.folder.path().join("exec/netns/default");
        if left.exists() {
            let _ = Command::new("umount").arg("-l").arg(&left).stderr(Stdio::null()).status();
        }
    }
}
