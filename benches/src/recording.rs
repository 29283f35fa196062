//! `turbo-bench recording`: what it costs a run whose data is all local to record what it does.
//!
//! The same container work is done with recording off, with the trace that every run records, and with a timeline
//! beside it, in turns that begin with another way each round, so that neither a slow minute nor a place in the order favours one.
//! What counts is the median over the rounds of the ratio within a round. Each run mounts its image anew: every first
//! touch is one again, which is the most that recording can cost.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::app::{App, Version};
use crate::report::Setting;
use crate::turbo::Tools;

/// A run may take this many times one that records nothing.
const TARGET: f64 = 1.01;
const IMAGE: &str = "bench/recording:1";

/// Measure what recording costs a run from local data.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Measured rounds, of which the median counts.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// A root filesystem with Python, instead of one made of Debian packages.
    #[arg(long, value_name = "DIR", requires = "startup_file")]
    pub root: Option<PathBuf>,
    /// The program and its arguments in that root filesystem.
    #[arg(long, value_name = "COMMAND", requires = "root")]
    pub startup_file: Option<String>,
    /// Where root filesystems are kept.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub cache: PathBuf,
    /// Where stores and sandboxes are while they are measured.
    #[arg(long, value_name = "DIR", default_value = "target/bench/work")]
    pub work: PathBuf,
    /// Folder of `turbo`, if it is not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Write every single measurement to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/recording.json")]
    pub json: PathBuf,
    /// Put the table into the repository's README.md.
    #[arg(long)]
    pub write_readme: bool,
}

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    Nothing,
    Trace,
    Timeline,
}

const WAYS: [Way; 3] = [Way::Nothing, Way::Trace, Way::Timeline];

/// All rounds of one workload, of each way in the order of [`WAYS`].
#[derive(Debug, Serialize)]
struct Series {
    name: &'static str,
    /// Seconds from the command to its end.
    rounds: Vec<[f64; WAYS.len()]>,
    /// Processor ticks of all rounds together, of turbo and of all that it started.
    ticks: [u64; WAYS.len()],
}

impl Series {
    fn median(&self, way: Way) -> f64 {
        median(self.rounds.iter().map(|round| round[way as usize]))
    }

    /// How much longer a way takes than one that records nothing.
    fn ratio(&self, way: Way) -> f64 {
        median(self.rounds.iter().map(|round| round[way as usize] / round[Way::Nothing as usize]))
    }

    /// How much more processor time it takes. Ticks are coarse, but others that use the machine do not add to them.
    fn cpu_ratio(&self, way: Way) -> f64 {
        self.ticks[way as usize] as f64 / self.ticks[Way::Nothing as usize].max(1) as f64
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// Measures and prints.
///
/// # Errors
/// If the root filesystem cannot be made, or a run fails.
pub fn run(args: &Args) -> Result<()> {
    let tools = Tools::find(args.bin_dir.as_deref())?;
    let (root, startup) = match (&args.root, &args.startup_file) {
        (Some(root), Some(startup)) => (root.clone(), startup.clone()),
        _ => {
            let root = App::Scipy.root(Version::First, None, &args.cache)?;
            let startup = App::Scipy.command(&root)?.join(" ");
            (root, startup)
        }
    };
    fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let work = tempfile::Builder::new().prefix("recording-").tempdir_in(std::path::absolute(&args.work)?).context("cannot create a folder to work in")?;
    let home = work.path().join("home");
    let root = root.to_str().context("the path of the root filesystem is not UTF-8")?;
    call(&tools, &home, &["import", "dir", root, "--name", IMAGE, "--startup-file", &startup, "--isolate", "/=full"])?;
    let python = startup.split_whitespace().next().unwrap_or_default();
    let walk = format!("{python} -S -c 'import os; print(sum(1 for d, s, f in os.walk(\"/usr\") for n in f if os.lstat(os.path.join(d, n))))'");
    let mut all = Vec::new();
    for (name, command) in [("python imports scipy", startup.as_str()), ("walk of all files", walk.as_str())] {
        let mut series = Series { name, rounds: Vec::new(), ticks: [0; WAYS.len()] };
        series.measure(&tools, &home, work.path(), command, args.rounds)?;
        all.push(series);
    }
    let setting = Setting::here(work.path(), args.rounds)?;
    let table = markdown(&setting, &all);
    crate::report::write_json(&args.json, &(&setting, &all))?;
    print!("{table}");
    if args.write_readme {
        crate::report::write_readme("recording", &table)?;
    }
    Ok(())
}

impl Series {
    fn measure(&mut self, tools: &Tools, home: &Path, work: &Path, command: &str, rounds: u32) -> Result<()> {
        let recording = work.join("recording");
        let recording = recording.to_str().context("the path of the work folder is not UTF-8")?;
        // The first one warms what there is to warm.
        for round in 0..=rounds as usize {
            let mut seconds = [0.0; WAYS.len()];
            for turn in 0..WAYS.len() {
                let way = WAYS[(turn + round) % WAYS.len()];
                let flags: &[&str] = match way {
                    Way::Nothing => &["--record", "nothing"],
                    Way::Trace => &[],
                    Way::Timeline => &["--trace", recording],
                };
                let (start, before) = (Instant::now(), children_ticks()?);
                call(tools, home, &[&["run", "--offline", "--temp", "--startup-file", command], flags, &[IMAGE]].concat())?;
                seconds[way as usize] = start.elapsed().as_secs_f64();
                if round > 0 {
                    self.ticks[way as usize] += children_ticks()? - before;
                }
            }
            if round > 0 {
                self.rounds.push(seconds);
            }
        }
        Ok(())
    }
}

/// Processor time of all children of this process that ended, and of theirs, in ticks: `cutime` and `cstime` of proc(5).
fn children_ticks() -> Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    // The program's name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field =
        |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok()).with_context(|| format!("no field {number} in /proc/self/stat"));
    Ok(field(16)? + field(17)?)
}

fn call(tools: &Tools, home: &Path, args: &[&str]) -> Result<()> {
    let output = tools.turbo_in(home).args(args).stdin(Stdio::null()).output().context("cannot start turbo")?;
    if !output.status.success() {
        bail!("turbo {}: {}\n{}", args.join(" "), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn markdown(setting: &Setting, all: &[Series]) -> String {
    let mut text = format!(
        "Milliseconds of a whole run from local data, medians of {} interleaved rounds; ratios are medians of those within a round, those of\n\
         processor time of all rounds together. Measured on {}; {}.\n\n\
         | what | nothing recorded | trace, always on | with timeline (`--trace`) | trace / nothing (target ≤ {TARGET}) | timeline / nothing | processor time: trace, timeline |\n|---|---|---|---|---|---|---|\n",
        setting.rounds, setting.date, setting.machine
    );
    for series in all {
        let cell = |way| format!("{:.1}", series.median(way) * 1000.0);
        let ratio = series.ratio(Way::Trace);
        let reached = if ratio <= TARGET { "reached" } else { "not reached" };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {ratio:.3} {reached} | {:.3} | {:.3}, {:.3} |",
            series.name,
            cell(Way::Nothing),
            cell(Way::Trace),
            cell(Way::Timeline),
            series.ratio(Way::Timeline),
            series.cpu_ratio(Way::Trace),
            series.cpu_ratio(Way::Timeline)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_within_a_round() {
        // The machine gets slower from round to round; the way does not.
        let rounds = (1..=5).map(|slow| [1.0, 1.005, 1.02].map(|seconds| seconds * f64::from(slow))).collect();
        let series = Series { name: "x", rounds, ticks: [200, 201, 204] };
        assert!((series.cpu_ratio(Way::Timeline) - 1.02).abs() < 1e-9 && children_ticks().is_ok());
        assert!((series.ratio(Way::Trace) - 1.005).abs() < 1e-9 && (series.ratio(Way::Timeline) - 1.02).abs() < 1e-9);
        assert!((series.median(Way::Nothing) - 3.0).abs() < 1e-9);
        assert!(median(std::iter::empty()).is_nan() && (median([4.0, 1.0].into_iter()) - 2.5).abs() < 1e-9);
    }
}
