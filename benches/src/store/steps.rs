//! The steps of one tool with one tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::peers::Peer;
use super::trees::{self, Tree};
use super::{Helper, Measured, Step};
use crate::sys::{self, Usage};
use crate::turbo::Tools;

/// Longer than a tick of the clock of a file system: what was changed before a step is older than it.
const SETTLE: Duration = Duration::from_millis(50);

/// Where a tool works: empty at the beginning.
struct Place {
    repository: PathBuf,
    out: PathBuf,
    other: PathBuf,
}

impl Place {
    fn new(work: &Path) -> Result<Self> {
        let place = Self { repository: work.join("repository"), out: work.join("out"), other: work.join("other") };
        for folder in [&place.repository, &place.out, &place.other] {
            renew(folder)?;
        }
        Ok(place)
    }
}

fn renew(folder: &Path) -> Result<()> {
    if folder.exists() {
        // `rm` also removes what has no right to be written to.
        let status = Command::new("rm").arg("-rf").arg(folder).status().context("cannot start rm")?;
        ensure!(status.success(), "cannot remove {}", folder.display());
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Runs a command to its end. `None` if it failed: then `what` and its last words are told.
fn measure(mut command: Command, log: &Path, what: &str) -> Result<Option<(f64, Usage)>> {
    let file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot {what}"))?;
    let (succeeded, usage) = sys::wait_usage(&child).with_context(|| format!("cannot wait for what is to {what}"))?;
    let wall = start.elapsed().as_secs_f64();
    if succeeded {
        return Ok(Some((wall, usage)));
    }
    let said = fs::read_to_string(log).unwrap_or_default();
    eprintln!("{what} failed: {}", said.lines().rev().take(3).collect::<Vec<_>>().join(" | "));
    Ok(None)
}

/// Whether a helper succeeds with these trees.
fn help(what: Helper, one: &Path, other: &Path) -> Result<bool> {
    let own = std::env::current_exe().context("this program has no path")?;
    let status = Command::new(own).args(["store-helper", what.word()]).arg(one).arg(other).stderr(Stdio::null()).status().context("cannot start a helper")?;
    Ok(status.success())
}

/// What Turbo keeps in its store to save time, and could lose.
const CACHES: [&str; 2] = ["imports", "checkouts"];

struct Recorder<'a> {
    tree: &'a Tree,
    tool: &'a str,
    repository: &'a Path,
    stored: u64,
    log: PathBuf,
    measured: &'a mut Vec<Measured>,
}

impl Recorder<'_> {
    /// Measures a step. Returns whether it succeeded.
    fn step(&mut self, step: Step, command: Command) -> Result<bool> {
        // What earlier steps wrote is not written back during this one.
        rustix::fs::sync();
        let what = format!("{} {} {step:?}", self.tool, self.tree.name);
        let done = measure(command, &self.log, &what)?;
        let stored = trees::stored_bytes(self.repository, &CACHES)?;
        let grown = stored as i64 - self.stored as i64;
        self.stored = stored;
        let Some((wall_s, usage)) = done else { return Ok(false) };
        self.measured.push(Measured {
            tree: self.tree.name.to_owned(),
            tool: self.tool.to_owned(),
            step,
            wall_s,
            cpu_s: usage.cpu_s,
            peak_bytes: usage.peak_bytes,
            stored_bytes: grown,
            is_right: None,
        });
        Ok(true)
    }

    /// Notes whether what the last step restored is right.
    fn compare(&mut self, restored: &Path, original: &Path, strict: bool) -> Result<()> {
        let inner = restored.join("t");
        // Some tools make a directory of their own, of the source's name.
        let only = fs::read_dir(restored)?.next().and_then(Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir());
        let candidates = [Some(inner), Some(restored.to_owned()), only];
        let mut is_right = false;
        for candidate in candidates.into_iter().flatten().filter(|candidate| candidate.is_dir()) {
            let what = if strict { Helper::CompareStrictly } else { Helper::Compare };
            is_right |= help(what, &candidate, original)?;
        }
        if !is_right {
            eprintln!("{} {}: what was restored is not the original", self.tool, self.tree.name);
        }
        if let Some(last) = self.measured.last_mut() {
            last.is_right = Some(is_right);
        }
        Ok(())
    }
}

/// All steps of Turbo.
pub(super) fn turbo(tools: &Tools, data: &Path, tree: &Tree, work: &Path, compares: bool, measured: &mut Vec<Measured>) -> Result<()> {
    let place = Place::new(work)?;
    let (v1, v2) = (tree.v1(data), tree.v2(data));
    let command = |home: &Path, words: &[&str], paths: &[&Path]| {
        let mut command = tools.turbo_in(home);
        command.args(words).args(paths);
        command
    };
    let checkout = |image: &str| command(&place.repository, &["pull", image, "--offline", "--checkout"], &[&place.out.join("t")]);
    let mut recorder = Recorder { tree, tool: "turbo", repository: &place.repository, stored: 0, log: work.join("log"), measured };
    let mut ok = recorder.step(Step::First, command(&place.repository, &["import", "dir", "--name", "bench/tree:1"], &[&v1]))?;
    ok &= recorder.step(Step::Second, command(&place.repository, &["import", "dir", "--name", "bench/tree:2"], &[&v2]))?;
    ok &= recorder.step(Step::Unchanged, command(&place.repository, &["import", "dir", "--name", "bench/tree:2"], &[&v2]))?;
    ok &= recorder.step(Step::Restore, checkout("bench/tree:2"))?;
    if compares {
        recorder.compare(&place.out, &v2, true)?;
    }
    renew(&place.out)?;
    ok &= measure(checkout("bench/tree:1"), &recorder.log, "check version 1 out")?.is_some();
    std::thread::sleep(SETTLE);
    ok &= recorder.step(Step::Update, checkout("bench/tree:2"))?;
    if compares {
        recorder.compare(&place.out, &v2, true)?;
    }
    // A directory that becomes version 2 by an update, in a store of its own.
    renew(&place.out)?;
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(&v1).arg(place.out.join("t"));
    ok &= measure(copy, &recorder.log, "copy version 1")?.is_some();
    std::thread::sleep(SETTLE);
    let home = place.other.join("home");
    ok &= measure(command(&home, &["import", "dir", "--name", "bench/tree:1"], &[&place.out.join("t")]), &recorder.log, "import the copy")?.is_some();
    ok &= help(Helper::Change, &place.out.join("t"), &v2)?;
    std::thread::sleep(SETTLE);
    (recorder.repository, recorder.stored) = (&home, trees::stored_bytes(&home, &CACHES)?);
    ok &= recorder.step(Step::SecondInPlace, command(&home, &["import", "dir", "--name", "bench/tree:2"], &[&place.out.join("t")]))?;
    if !ok {
        bail!("turbo failed with {}", tree.name);
    }
    Ok(())
}

/// All steps of a peer. One that fails is told and not measured.
pub(super) fn peer(peer: &Peer, data: &Path, tree: &Tree, work: &Path, compares: bool, measured: &mut Vec<Measured>) -> Result<()> {
    let place = Place::new(work)?;
    let (v1, v2) = (tree.v1(data), tree.v2(data));
    let bash = |line: &str| {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("set -o pipefail; {line}")]).env("LC_ALL", "C");
        for (name, path) in [("R", &place.repository), ("V1", &v1), ("V2", &v2), ("O", &place.out), ("W", &place.other)] {
            command.env(name, path);
        }
        for name in ["HOME", "BORG_BASE_DIR", "RESTIC_CACHE_DIR", "XDG_CACHE_HOME"] {
            command.env(name, place.other.join(name));
        }
        command.env("BUPSTASH_KEY", place.other.join("key"));
        for (name, value) in [
            ("RESTIC_PASSWORD", "x"),
            ("RUSTIC_PASSWORD", "x"),
            ("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes"),
            ("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes"),
        ] {
            command.env(name, value);
        }
        command
    };
    let mut recorder = Recorder { tree, tool: peer.name, repository: &place.repository, stored: 0, log: work.join("log"), measured };
    if peer.first.is_empty() {
        recorder.step(Step::Unchanged, bash("find $V2 -ls > /dev/null"))?;
        return Ok(());
    }
    if !peer.init.is_empty() && measure(bash(peer.init), &recorder.log, "make a repository")?.is_none() {
        return Ok(());
    }
    recorder.stored = trees::stored_bytes(&place.repository, &CACHES)?;
    if !recorder.step(Step::First, bash(peer.first))? || !recorder.step(Step::Second, bash(peer.second))? {
        return Ok(());
    }
    if recorder.step(Step::Restore, bash(peer.restore))? && compares {
        recorder.compare(&place.out, &v2, false)?;
    }
    if let Some((prepare, update)) = peer.update {
        renew(&place.out)?;
        if (prepare.is_empty() || measure(bash(prepare), &recorder.log, "bring version 1")?.is_some()) && recorder.step(Step::Update, bash(update))? && compares
        {
            recorder.compare(&place.out, &v2, false)?;
        }
    }
    Ok(())
}
