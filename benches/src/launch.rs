//! `turbo-bench launch`: how long an application takes that has not been downloaded yet.
//!
//! For each link and application, rounds in which every way of launching has its turn, so that a slow
//! minute of the machine hits all alike; medians over the rounds. Every launch but the warm one starts
//! from an empty home. The server's files are in its page cache. Homes are on the disk of `--work`.
//!
//! What is measured against: [`floor`], the least that a launch can take which moves blocks of 64 KiB; and the
//! [practical oracle](crate::oracle).

mod floor;
mod prepare;
mod table;
pub(crate) mod wrong;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::app::App;
use crate::link::Side;
use crate::place::{LinkKind, Place};
use crate::report;
use crate::turbo::{Home, Launch, Registry, Tools};
pub(crate) use floor::Floor;
pub(crate) use prepare::Prepared;

/// Measure launches of three applications over three links.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Folder of trees to use instead of Debian packages: scipy/1.15.2 and 1.15.3, jsapp/v1 and v2, img-java/v1 and v2.
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
    /// Only this application; may be given more than once.
    #[arg(long = "app", value_name = "APP")]
    pub apps: Vec<App>,
    /// Only the links with this round trip in milliseconds: 20, 60 or 100; may be given more than once.
    #[arg(long = "rtt", value_name = "MS")]
    pub rtts_ms: Vec<u64>,
    /// Only this way to launch; may be given more than once.
    #[arg(long = "way", value_name = "WAY")]
    pub ways: Vec<Way>,
    /// Launches of each kind, of which the median counts; half as many without a model and with a wrong one.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Launches of the slow ways: pull, oracle, and without any prefetching.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub slow_rounds: u32,
    /// Runs that the model is learned from.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub lessons: u32,
    /// Where root filesystems are kept.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub cache: PathBuf,
    /// Where homes are while they are measured: a disk or a tmpfs.
    #[arg(long, value_name = "DIR", default_value = "target/bench/work")]
    pub work: PathBuf,
    /// Folder of `turbo` and `turbo-registry`, if they are not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Write every single launch to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/launch.json")]
    pub json: PathBuf,
    /// Put the table into the repository's README.md.
    #[arg(long)]
    pub write_readme: bool,
}

/// A way to launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Pull the whole image, then run it.
    Pull,
    /// Run it again where it was pulled: all is local.
    Warm,
    /// Run what was never pulled, without a model: what is fetched ahead is guessed.
    OnDemand,
    /// The same without any prefetching but more of a file that is read.
    Plain,
    /// The same with the model learned from runs before, each in another home.
    Model,
    /// The next version of the application, with the model learned from runs of this one.
    Previous,
    /// With a model that is sure of what the launch does not touch.
    Wrong,
    /// The files that the launch reads, downloaded and unpacked, then run.
    Oracle,
}

impl Way {
    /// All, in the order in which a round takes them.
    pub const ALL: [Self; 8] = [Self::Pull, Self::Warm, Self::OnDemand, Self::Plain, Self::Model, Self::Previous, Self::Wrong, Self::Oracle];

    /// In how many of the rounds it takes part.
    fn rounds(self, args: &Args) -> u32 {
        match self {
            Self::Pull | Self::Oracle | Self::Plain => args.slow_rounds.min(args.rounds),
            Self::OnDemand | Self::Wrong => args.rounds.div_ceil(2),
            Self::Warm | Self::Model | Self::Previous => args.rounds,
        }
    }
}

/// All launches of one application over one link.
#[derive(Debug, Serialize)]
pub struct Series {
    /// Name of the application.
    pub app: &'static str,
    /// Name of the link.
    pub link: String,
    /// Least times of this version and of the next, in seconds, and what was counted for them.
    pub floor: [Floor; 2],
    /// What was measured, in the order in which it was.
    pub launches: Vec<(Way, Launch)>,
}

impl Series {
    /// Median of a figure over the launches of one way; not a number if there were none.
    pub fn median(&self, way: Way, figure: impl Fn(&Launch) -> f64) -> f64 {
        let mut values: Vec<_> = self.launches.iter().filter(|(of, _)| *of == way).map(|(_, launch)| figure(launch)).collect();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => values[count / 2],
            count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
        }
    }

    /// Median of the seconds.
    pub fn seconds(&self, way: Way) -> f64 {
        self.median(way, |launch| launch.seconds)
    }
}

/// Measures and prints.
///
/// # Errors
/// If the link, an application or the product fails; nothing is printed for a half-measured series.
pub fn run(args: &Args) -> Result<()> {
    let (series, setting) = measure(args)?;
    let report = Report { setting, series };
    report::write_json(&args.json, &report)?;
    let table = table::markdown(&report.setting, &report.series);
    print!("{table}");
    if args.write_readme {
        report::write_readme("launch", &table)?;
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    setting: report::Setting,
    series: Vec<Series>,
}

fn measure(args: &Args) -> Result<(Vec<Series>, report::Setting)> {
    let tools = Tools::find(args.bin_dir.as_deref())?;
    let apps = if args.apps.is_empty() { App::ALL.to_vec() } else { args.apps.clone() };
    fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let work = tempfile::Builder::new().prefix("launch-").tempdir_in(&args.work).context("cannot create a folder for homes")?;
    let mut prepared = Vec::new();
    for app in apps {
        prepared.push(Prepared::new(app, &tools, args, work.path()).with_context(|| format!("preparing {}", app.name()))?);
    }
    let links = || LinkKind::ALL.into_iter().filter(|link| args.rtts_ms.is_empty() || args.rtts_ms.contains(&(link.rtt.as_millis() as u64)));
    let estimate: f64 = links().flat_map(|link| prepared.iter().map(move |app| app.estimate_s(link, args))).sum();
    eprintln!("about {:.0} minutes from here", estimate / 60.0);
    let mut series = Vec::new();
    for link in links() {
        for app in &prepared {
            eprintln!("{} over {}", app.app.name(), link.label());
            series.push(app.measure(&tools, link, args, work.path())?);
        }
    }
    Ok((series, report::Setting::here(&args.work, args.rounds)?))
}

/// Waits for what the registry does in the background.
pub(crate) fn settle() {
    std::thread::sleep(Duration::from_secs(2));
}

impl Prepared {
    pub(crate) fn measure(&self, tools: &Tools, link: LinkKind, args: &Args, work: &Path) -> Result<Series> {
        let place = Place::link(link)?;
        let registry = Registry::start(tools, &place, &self.registry, &work.join("registry.log"))?;
        let home = |name: &str| Home::create(tools, &place, &registry, Side::Client, work.join(name));
        let pulled = home("pulled")?;
        let mut launches = Vec::new();
        for round in 0..args.rounds {
            for way in Way::ALL.into_iter().filter(|way| round < way.rounds(args)) {
                // All is local only where it was pulled.
                if !args.ways.is_empty() && !args.ways.contains(&way) && way != Way::Pull && way != Way::Warm {
                    continue;
                }
                let launch = self.launch(&place, &pulled, way, &home, work).with_context(|| format!("{way:?} of {}", self.app.name()))?;
                eprintln!("  round {} {way:?}: {}", round + 1, launch.in_words());
                launches.push((way, launch));
            }
        }
        let warm = Series { app: self.app.name(), link: link.label(), floor: [Floor::default(); 2], launches };
        let floor = self.versions.each_ref().map(|version| version.floor.over(link, warm.seconds(Way::Warm)));
        Ok(Series { floor, ..warm })
    }

    fn launch<'a>(&self, place: &Place, pulled: &Home<'a>, way: Way, home: &impl Fn(&str) -> Result<Home<'a>>, work: &Path) -> Result<Launch> {
        // What these teach would change what the next round measures.
        let silent: &[&str] = &["--no-trace-upload"];
        let fresh = |name: &str, flags: &[&str], image: &str| {
            let fresh = home(name)?;
            Launch::measure(place, || fresh.run(flags, image).map(Some))
        };
        match way {
            Way::Pull => Launch::measure(place, || {
                pulled.call(&["pull", &self.image])?;
                pulled.run(silent, &self.image).map(Some)
            }),
            Way::Warm => Launch::measure(place, || pulled.run(silent, &self.image).map(Some)),
            Way::OnDemand => fresh("on-demand", &["--no-model", "--no-trace-upload"], &self.image),
            Way::Plain => fresh("plain", &["--on-demand", "--no-trace-upload"], &self.image),
            Way::Model => fresh("model", &[], &self.image),
            Way::Previous => fresh("previous", silent, &self.next_image),
            Way::Wrong => fresh("wrong", silent, &self.wrong_image),
            Way::Oracle => {
                let folder = work.join("oracle");
                let launch = Launch::measure(place, || self.oracle.launch(place, &folder).map(|()| None));
                fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
                launch
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_of_its_way_alone() {
        let launch = |way, seconds| (way, Launch { seconds, received_bytes: 0, stats: None });
        let launches = vec![launch(Way::Warm, 9.0), launch(Way::Pull, 3.0), launch(Way::Pull, 1.0), launch(Way::Pull, 8.0), launch(Way::Warm, 1.0)];
        let series = Series { app: "a", link: String::new(), floor: [Floor::default(); 2], launches };
        assert_eq!((series.seconds(Way::Pull), series.seconds(Way::Warm)), (3.0, 5.0));
        assert!(series.seconds(Way::Oracle).is_nan());
    }
}
