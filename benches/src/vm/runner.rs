//! Warm work: a runner in each place does what it is told, and says how long it took.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Place, Series, corpus};
use crate::turbo::Tools;

/// Do what standard input says, and print how long it took; not for people.
#[derive(Debug, clap::Args)]
pub struct RunnerArgs {}

/// One piece of work: a shell command in the folder with the files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Work {
    /// For people.
    pub(super) name: String,
    /// What `sh -c` gets.
    pub(super) script: String,
    /// Not timed: brings back what the script changes.
    pub(super) before: String,
}

/// The runner's loop: a line of JSON in, a line with seconds out, until there is no more.
///
/// # Errors
/// If a command fails; what it printed is passed on.
pub fn serve(_args: &RunnerArgs) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let work: Work = serde_json::from_str(&line.context("reading what to do")?).context("what to do is not understood")?;
        if !work.before.is_empty() {
            shell(&work.before)?;
        }
        let start = Instant::now();
        shell(&work.script)?;
        println!("{}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn shell(script: &str) -> Result<()> {
    let status = Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).status().context("cannot start a shell")?;
    ensure!(status.success(), "`{script}`: {status}");
    Ok(())
}

/// A runner in a place.
struct Runner {
    place: Place,
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Runner {
    fn start(place: Place, mut command: Command) -> Result<Self> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start a runner")?;
        let (input, output) = (process.stdin.take(), process.stdout.take().context("a runner has no output")?);
        Ok(Self { place, process, input, output: BufReader::new(output) })
    }

    fn work(&mut self, work: &Work) -> Result<f64> {
        let input = self.input.as_mut().context("the runner has ended")?;
        writeln!(input, "{}", serde_json::to_string(work)?)?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the runner in {:?} ended at `{}`", self.place, work.name))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // The end of its input ends it, and its container with it.
        self.input = None;
        let _ = self.process.wait();
    }
}

/// Does every piece of work in every place, in turns.
///
/// # Errors
/// If the files cannot be made, or anything fails anywhere.
pub(super) fn measure(tools: &Tools, folder: &Path, cache: &Path, rounds: u32, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Series>> {
    let works: Vec<Work> = corpus::works().into_iter().filter(|work| wanted(&work.name)).collect();
    if works.is_empty() {
        return Ok(Vec::new());
    }
    let own = std::env::current_exe().context("this program has no path")?;
    let tree = folder.join("tree");
    corpus::build(&tree, cache, &works)?;
    let native = {
        let mut command = Command::new(&own);
        command.arg("vm-runner").current_dir(&tree);
        command
    };
    let home = folder.join("home");
    import(tools, &home, &tree)?;
    let container = |level: &str| {
        let mut command = tools.turbo_in(&home);
        let startup = format!("{} vm-runner", own.display());
        command.args(["try", "bench/vm:1", "--offline", "--isolate", level, "--working-dir", corpus::INSIDE, "--startup-file", &startup]);
        command
    };
    let mut runners =
        [Runner::start(Place::Native, native)?, Runner::start(Place::WriteCopy, container("write-copy"))?, Runner::start(Place::Merge, container("merge"))?];
    let mut series = Vec::new();
    for work in &works {
        let mut seconds = Vec::new();
        for round in 0..=rounds {
            for runner in &mut runners {
                let took = runner.work(work)?;
                if round > 0 {
                    seconds.push((runner.place, took));
                }
            }
        }
        eprintln!("{} done", work.name);
        series.push(Series { name: work.name.clone(), seconds });
    }
    Ok(series)
}

fn import(tools: &Tools, home: &Path, tree: &Path) -> Result<()> {
    let mut command = tools.turbo_in(home);
    command.args(["import", "dir"]).arg(tree).args(["--at", corpus::INSIDE, "--name", "bench/vm:1"]);
    check(command, "import the files")
}

/// Runs a command to its end.
pub(super) fn check(mut command: Command, what: &str) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot {what}"))?;
    if !output.status.success() {
        bail!("cannot {what}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// The path of a program that an ordinary installation has.
pub(super) fn program(name: &str, package: &str) -> Result<PathBuf> {
    let places = ["/usr/local/bin", "/usr/bin", "/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    found.with_context(|| format!("there is no {name}: apt-get install {package}"))
}
