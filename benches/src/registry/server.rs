//! The two registries, as processes over empty folders.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// How long one may take to begin, and to come to rest, in steps of [`STEP`].
const STEPS: u32 = 600;
const STEP: Duration = Duration::from_millis(50);

/// Which registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Turbo,
    DockerRegistry,
}

impl Kind {
    /// Both, in the order in which they take turns in a round.
    pub(crate) fn turns(round: u32) -> [Self; 2] {
        if round.is_multiple_of(2) { [Self::Turbo, Self::DockerRegistry] } else { [Self::DockerRegistry, Self::Turbo] }
    }

    /// For people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Turbo => "turbo-registry",
            Self::DockerRegistry => "docker-registry",
        }
    }
}

/// `turbo-registry` in this folder, or beside this program.
pub(crate) fn turbo(folder: Option<&Path>) -> Result<PathBuf> {
    let own = std::env::current_exe().context("this program has no path")?;
    let path = std::path::absolute(folder.or(own.parent()).context("this program is in no folder")?.join("turbo-registry"))?;
    ensure!(path.exists(), "there is no {}: build it, or name its folder with --bin-dir", path.display());
    Ok(path)
}

/// Debian's docker-registry: the machine's, or what `cargo xtask bench registry` unpacked beside what cargo builds.
pub(crate) fn docker_registry() -> Result<PathBuf> {
    let own = std::env::current_exe().context("this program has no path")?;
    let unpacked = own.ancestors().skip(1).map(|folder| folder.join("tools/docker-registry/usr/bin/docker-registry"));
    let found = std::iter::once(PathBuf::from("/usr/bin/docker-registry")).chain(unpacked).find(|path| path.exists());
    found.context("there is no docker-registry: `cargo xtask bench registry` unpacks Debian's")
}

/// A running registry; ends, and its data with it, when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    address: String,
    folder: PathBuf,
    kind: Kind,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Server {
    /// Starts one, and waits until it answers.
    pub(crate) fn start(kind: Kind, program: &Path, work: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(kind.name()).tempdir_in(work).context("cannot create a folder for a registry")?.keep();
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("there is no free port")?.port();
        let address = format!("127.0.0.1:{port}");
        let data = folder.join("data");
        let mut command = Command::new(program);
        match kind {
            Kind::Turbo => {
                command.args(["serve", "--listen", &address, "--data"]).arg(&data).env("RUST_LOG", "warn");
            }
            Kind::DockerRegistry => {
                // Debian's own configuration, without its password, and without a line in the log for each request.
                let config = format!(
                    "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  cache:\n    blobdescriptor: inmemory\n  \
                     filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n",
                    data.display()
                );
                let path = folder.join("config.yml");
                fs::write(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
                command.arg("serve").arg(path);
            }
        }
        let log = fs::File::create(folder.join("log")).context("cannot create a log")?;
        let errors = log.try_clone().context("cannot copy a descriptor")?;
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { child, address, folder, kind };
        for _ in 0..STEPS {
            if TcpStream::connect(server.address()).is_ok() {
                return Ok(server);
            }
            if !matches!(server.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(STEP);
        }
        bail!("{} did not start: {}", kind.name(), fs::read_to_string(server.folder.join("log")).unwrap_or_default())
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Which it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes that its files have, once they are the same for a while: work may go on after a push.
    pub(crate) fn stored_bytes(&self) -> Result<u64> {
        let data = self.folder.join("data");
        let (mut last, mut same) = (bytes_below(&data)?, 0);
        for _ in 0..STEPS {
            std::thread::sleep(STEP);
            let now = bytes_below(&data)?;
            same = if now == last { same + 1 } else { 0 };
            last = now;
            if same == 60 {
                break;
            }
        }
        Ok(last)
    }

    /// Memory that it has now, and the most it had, in bytes.
    pub(crate) fn memory_bytes(&self) -> Result<(u64, u64)> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{path} has no {name}"))?;
            let kib: u64 = line.trim_matches(|c: char| !c.is_ascii_digit()).parse().with_context(|| format!("{path} has no {name}"))?;
            Ok::<u64, anyhow::Error>(kib * 1024)
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }
}

fn bytes_below(folder: &Path) -> Result<u64> {
    let mut total = 0;
    let Ok(entries) = fs::read_dir(folder) else { return Ok(0) };
    for entry in entries.flatten() {
        // A file may go while it is looked at.
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => total += bytes_below(&entry.path())?,
            Ok(metadata) => total += metadata.len(),
            Err(_) => {}
        }
    }
    Ok(total)
}
