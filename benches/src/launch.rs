//! `turbo-bench launch`: how long an application takes that has not been downloaded yet.
//!
//! For each link and application, rounds in which every way of launching has its turn, so that a slow
//! minute of the machine hits all alike; medians over the rounds. Every launch but the warm one starts
//! from an empty home. The server's files are in its page cache. Homes are on the disk of `--work`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::app::{App, Version};
use crate::link::Side;
use crate::oracle::Oracle;
use crate::place::{LinkKind, Place};
use crate::report;
use crate::turbo::{Home, Launch, Registry, Tools};

/// Measure launches of three applications over three links.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of trees to use instead of Debian packages: scipy/1.15.2, jsapp/v1 and img-java/v1.
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
    /// Only this application; may be given more than once.
    #[arg(long = "app", value_name = "APP")]
    pub apps: Vec<App>,
    /// Only the links with this round trip in milliseconds: 20, 60 or 100; may be given more than once.
    #[arg(long = "rtt", value_name = "MS")]
    pub rtts_ms: Vec<u64>,
    /// Launches of each kind, of which the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Pull the whole image, then run it.
    Pull,
    /// Run it again in the home of [`Way::Pull`]: all is local.
    Warm,
    /// Run what was never pulled, without a model.
    OnDemand,
    /// The same with the model learned from runs before, each in another home.
    Model,
    /// See [`Oracle`].
    Oracle,
}

impl Way {
    /// All, in the order in which a round takes them.
    pub const ALL: [Self; 5] = [Self::Pull, Self::Warm, Self::OnDemand, Self::Model, Self::Oracle];
}

/// All launches of one application over one link.
#[derive(Debug, Serialize)]
pub struct Series {
    /// Name of the application.
    pub app: &'static str,
    /// Name of the link.
    pub link: String,
    /// What was measured, in the order in which it was.
    pub launches: Vec<(Way, Launch)>,
}

impl Series {
    /// Median of a figure over the launches of one way.
    pub fn median(&self, way: Way, figure: impl Fn(&Launch) -> f64) -> f64 {
        let mut values: Vec<_> = self.launches.iter().filter(|(of, _)| *of == way).map(|(_, launch)| figure(launch)).collect();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => values[count / 2],
            count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
        }
    }
}

/// Measures and prints.
///
/// # Errors
/// If the link, an application or the product fails; nothing is printed for a half-measured series.
pub fn run(args: &Args) -> Result<()> {
    let tools = Tools::find(args.bin_dir.as_deref())?;
    let apps = if args.apps.is_empty() { App::ALL.to_vec() } else { args.apps.clone() };
    fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let work = tempfile::Builder::new().prefix("launch-").tempdir_in(&args.work).context("cannot create a folder for homes")?;
    let mut prepared = Vec::new();
    for app in apps {
        prepared.push(Prepared::new(app, args, work.path())?);
    }
    let mut series = Vec::new();
    for link in LinkKind::ALL.into_iter().filter(|link| args.rtts_ms.is_empty() || args.rtts_ms.contains(&(link.rtt.as_millis() as u64))) {
        for app in &mut prepared {
            eprintln!("{} over {}", app.image, link.label());
            series.push(app.measure(&tools, link, args.rounds, work.path())?);
        }
    }
    let report = report::Report::new(&args.work, args.rounds, series)?;
    report::write_json(&args.json, &report)?;
    let table = report.markdown();
    print!("{table}");
    if args.write_readme {
        report::write_readme("launch", &table)?;
    }
    Ok(())
}

/// An application that is ready to be launched.
struct Prepared {
    app: App,
    root: PathBuf,
    image: String,
    startup: String,
    oracle: Oracle,
    published: bool,
}

impl Prepared {
    fn new(app: App, args: &Args, work: &Path) -> Result<Self> {
        let root = app.root(Version::First, args.dataset.as_deref(), &args.cache)?;
        let command = app.command(&root)?;
        let oracle = Oracle::prepare(&root, &command, &work.join(format!("{}-oracle", app.name())))?;
        Ok(Self { app, root, image: format!("bench/{}:1.0", app.name()), startup: command.join(" "), oracle, published: false })
    }

    fn measure(&mut self, tools: &Tools, link: LinkKind, rounds: u32, work: &Path) -> Result<Series> {
        let place = Place::link(link)?;
        // One registry per application, kept over all links: a model learned once serves them all.
        let data = work.join(format!("{}-registry", self.app.name()));
        let registry = Registry::start(tools, &place, &data, &work.join("registry.log"))?;
        let home = |side, name: &str| Home::create(tools, &place, &registry, side, work.join(name));
        if !self.published {
            home(Side::Server, "publisher")?.publish(&self.root, &self.image, &self.startup)?;
            // The run that the model is learned from.
            home(Side::Client, "teacher")?.run(&["--no-model"], &self.image)?;
            self.published = true;
        }
        let mut launches = Vec::new();
        for round in 1..=rounds {
            let pulled = home(Side::Client, "pulled")?;
            for way in Way::ALL {
                let launch = self.launch(&place, &pulled, way, &home, work).with_context(|| format!("{way:?} of {}", self.image))?;
                eprintln!("  round {round} {way:?}: {:.2} s, {:.1} MB", launch.seconds, launch.received_bytes as f64 / 1e6);
                launches.push((way, launch));
            }
        }
        Ok(Series { app: self.app.name(), link: link.label(), launches })
    }

    fn launch<'a>(&self, place: &Place, pulled: &Home<'a>, way: Way, home: &impl Fn(Side, &str) -> Result<Home<'a>>, work: &Path) -> Result<Launch> {
        let image = self.image.as_str();
        match way {
            Way::Pull => Launch::measure(place, || {
                pulled.call(&["pull", image])?;
                pulled.run(&[], image).map(Some)
            }),
            Way::Warm => Launch::measure(place, || pulled.run(&[], image).map(Some)),
            Way::OnDemand => {
                let fresh = home(Side::Client, "on-demand")?;
                Launch::measure(place, || fresh.run(&["--no-model"], image).map(Some))
            }
            Way::Model => {
                let fresh = home(Side::Client, "model")?;
                Launch::measure(place, || fresh.run(&[], image).map(Some))
            }
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
        let series = Series { app: "a", link: String::new(), launches };
        assert_eq!(series.median(Way::Pull, |launch| launch.seconds), 3.0);
        assert_eq!(series.median(Way::Warm, |launch| launch.seconds), 5.0);
        assert!(series.median(Way::Oracle, |launch| launch.seconds).is_nan());
    }
}
