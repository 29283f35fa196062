//! The product under measurement: its two programs, started at the ends of a [`Place`].

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::link::{Side, Spawned};
use crate::place::Place;

const REGISTRY_START: Duration = Duration::from_secs(20);
/// How long the registry may take to learn.
const LEARNING: Duration = Duration::from_secs(60);

/// The programs.
#[derive(Debug, Clone)]
pub struct Tools {
    turbo: PathBuf,
    registry: PathBuf,
}

impl Tools {
    /// The programs in `folder`, or else beside the program that is running.
    ///
    /// # Errors
    /// If one is missing.
    pub fn find(folder: Option<&Path>) -> Result<Self> {
        let own = std::env::current_exe().context("this program has no path")?;
        let folder = folder.or_else(|| own.parent()).context("this program is in no folder")?;
        let tool = |name: &str| {
            let path = std::path::absolute(folder.join(name)).context("there is no current folder")?;
            ensure!(path.exists(), "there is no {}: build it, or name its folder with --bin-dir", path.display());
            Ok(path)
        };
        Ok(Self { turbo: tool("turbo")?, registry: tool("turbo-registry")? })
    }

    /// `turbo` with a home of its own, whose registry cannot be reached.
    pub fn turbo_in(&self, home: &Path) -> Command {
        let mut command = Command::new(&self.turbo);
        command.env("TURBO_HOME", home).env("TURBO_HUB", "http://127.0.0.1:1");
        shield(&mut command, home);
        command
    }
}

/// A registry at the server's end; ends when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Spawned,
    url: String,
}

impl Registry {
    /// Starts a registry over `data` on a free port and waits until it listens. What it prints goes to `log`.
    ///
    /// # Errors
    /// If it ends before it listens.
    pub fn start(tools: &Tools, place: &Place, data: &Path, log: &Path) -> Result<Self> {
        let port = place.listen()?.local_addr().context("a socket has no address")?.port();
        let address = format!("{}:{port}", place.server_address());
        let file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = file.try_clone().context("cannot copy a descriptor")?;
        let mut command = Command::new(&tools.registry);
        command.args(["serve", "--listen", &address, "--data"]).arg(data).stdin(Stdio::null()).stdout(file).stderr(errors);
        if matches!(place, Place::Link(_)) {
            // Only the other end of the link can reach it.
            command.arg("--insecure-no-auth");
        }
        let mut process = Spawned::spawn(place.command(Side::Server, command)?)?;
        process.wait_listening(port, REGISTRY_START).with_context(|| format!("the registry did not start; see {}", log.display()))?;
        Ok(Self { process, url: format!("http://{address}") })
    }
}

impl Registry {
    /// Its address, as a URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

/// One user of the registry: a store of its own, at one end of the link.
#[derive(Debug)]
pub struct Home<'a> {
    tools: &'a Tools,
    place: &'a Place,
    url: &'a str,
    side: Side,
    path: PathBuf,
    /// Whose processes the client's are, if not the caller's.
    user: Option<u32>,
}

/// What `turbo run --stats` writes. Fields that this version of the program does not write are zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the documentation of `turbo run --stats` explains them")]
pub struct RunStats {
    pub mount_us: u64,
    pub first_process_us: u64,
    pub exit_us: u64,
    pub total_us: u64,
    pub demand_misses: u64,
    pub stall_us: u64,
    pub demand_p99_us: u64,
    pub bytes_fetched: u64,
    pub bytes_received: u64,
    pub bytes_needed: u64,
    pub bytes_prefetched: u64,
    pub bytes_wasted: u64,
    pub requests: u64,
    pub hit_rate: f64,
}

impl RunStats {
    /// Bytes that were of no use, in proportion to those that were.
    pub fn waste(&self) -> f64 {
        self.bytes_wasted as f64 / self.bytes_fetched.saturating_sub(self.bytes_wasted).max(1) as f64
    }
}

impl<'a> Home<'a> {
    /// A home in `path`, which is made anew.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn create(tools: &'a Tools, place: &'a Place, registry: &'a Registry, side: Side, path: PathBuf) -> Result<Self> {
        remove(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { tools, place, url: &registry.url, side, path, user: None })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `turbo ARGS` in this home.
    fn turbo(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(&self.tools.turbo);
        command.args(args).env("TURBO_HOME", &self.path).env("TURBO_HUB", self.url);
        shield(&mut command, &self.path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(user) = self.user {
            command.uid(user).gid(user).current_dir("/");
        }
        self.place.command(self.side, command)
    }

    /// From now on the home is that user's, and what runs in it runs as that user. Only root can do that.
    ///
    /// # Errors
    /// If the home cannot be given away.
    pub fn become_user(&mut self, user: u32) -> Result<()> {
        std::os::unix::fs::chown(&self.path, Some(user), Some(user)).with_context(|| format!("cannot give {} away", self.path.display()))?;
        self.user = Some(user);
        Ok(())
    }

    /// Runs `turbo ARGS` to its end.
    ///
    /// # Errors
    /// If it fails, with what it printed last.
    pub fn call(&self, args: &[&str]) -> Result<()> {
        let output = self.turbo(args)?.output().context("cannot start turbo")?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let tail: Vec<_> = said.lines().rev().take(12).collect();
            bail!("turbo {}: {}\n{}", args.join(" "), output.status, tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        Ok(())
    }

    /// Imports a root filesystem as an image that is fully isolated, and pushes it.
    ///
    /// # Errors
    /// If one of both fails.
    pub fn publish(&self, root: &Path, image: &str, startup: &str) -> Result<()> {
        let root = root.to_str().context("the path of the root filesystem is not UTF-8")?;
        self.call(&["import", "dir", root, "--name", image, "--startup-file", startup, "--isolate", "/=full"])?;
        self.call(&["push", image])
    }

    /// Waits until launches of the image get a model: a run does not wait until its trace is taken.
    ///
    /// # Errors
    /// If there is none after a while.
    pub fn wait_for_model(&self, image: &str) -> Result<()> {
        let begun = Instant::now();
        while let Err(error) = self.call(&["profile", "show", image]) {
            ensure!(begun.elapsed() < LEARNING, "the registry has learned nothing about {image}: {error:#}");
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    /// `turbo run`; `flags` come before the image.
    ///
    /// # Errors
    /// If the application fails or no statistics are written.
    pub fn run(&self, flags: &[&str], image: &str) -> Result<RunStats> {
        self.run_with(flags, image, &[])
    }

    /// `turbo run`; `flags` come before the image, `args` are the application's.
    ///
    /// # Errors
    /// As [`Home::run`].
    pub fn run_with(&self, flags: &[&str], image: &str, args: &[&str]) -> Result<RunStats> {
        let file = self.path.join("stats.json");
        let _ = fs::remove_file(&file);
        let name = file.to_str().context("the path of the home is not UTF-8")?;
        self.call(&[&["run", "--stats", name], flags, &[image, "--"], args].concat())?;
        let text = fs::read_to_string(&file).with_context(|| format!("turbo run wrote no {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not what turbo run --stats should write", file.display()))
    }
}

impl Drop for Home<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("warning: {error:#}");
        }
    }
}

/// Nothing that the user of this machine has set may change what is measured.
fn shield(command: &mut Command, home: &Path) {
    command.env("TURBO_CONFIG", home.join("config.toml"));
    for variable in ["TURBO_TOKEN", "TURBO_CACHE_SIZE", "TURBO_WAIT", "TURBO_TRACES", "TURBO_LOG"] {
        command.env_remove(variable);
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("cannot remove {}", path.display())),
        _ => Ok(()),
    }
}

/// What one measured launch took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Launch {
    /// From the command to the end of the application, in seconds.
    pub seconds: f64,
    /// What the client's end received meanwhile; without a link, what turbo says it fetched.
    pub received_bytes: u64,
    /// What turbo says, where turbo ran.
    pub stats: Option<RunStats>,
}

impl Launch {
    /// For people who watch.
    pub fn in_words(&self) -> String {
        let stats = self.stats.map_or_else(String::new, |stats| {
            format!(", {} misses, {:.1} % there, {:.0} % wasted", stats.demand_misses, 100.0 * stats.hit_rate, 100.0 * stats.waste())
        });
        format!("{:.2} s, {:.1} MB{stats}", self.seconds, self.received_bytes as f64 / 1e6)
    }

    /// Measures `launch`. What is not yet on disk is written first, so that it does not disturb.
    ///
    /// # Errors
    /// Those of `launch`.
    pub fn measure(place: &Place, launch: impl FnOnce() -> Result<Option<RunStats>>) -> Result<Self> {
        rustix::fs::sync();
        let before = place.received_bytes();
        let start = Instant::now();
        let stats = launch()?;
        let seconds = start.elapsed().as_secs_f64();
        let counted = place.received_bytes().zip(before).map(|(after, before)| after - before);
        Ok(Self { seconds, received_bytes: counted.or(stats.map(|stats| stats.bytes_received)).unwrap_or(0), stats })
    }
}
