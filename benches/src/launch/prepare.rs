//! What is done before anything is measured: root filesystems, images, models, floors and oracles.
//!
//! Everything is published and taught over the loopback device, to a registry whose data the measured ones then serve:
//! a repository whose model was learned from runs of its image; one whose model was learned from runs of the first
//! version when the second came; and one whose model is wrong.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use layer_format::trace::Trace;

use super::{Args, Floor, Way, floor, settle, wrong};
use crate::app::{App, Version};
use crate::link::Side;
use crate::oracle::Oracle;
use crate::place::{LinkKind, Place};
use crate::turbo::{Home, Registry, Tools};

/// One version of an application.
#[derive(Debug)]
pub(crate) struct Built {
    root: PathBuf,
    /// Without the time, which depends on the link.
    pub(crate) floor: Floor,
    /// A run of it, with everything local.
    pub(crate) trace: Trace,
}

/// An application that is ready to be launched.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) app: App,
    /// The version that is launched, and the next.
    pub(crate) versions: [Built; 2],
    pub(super) image: String,
    pub(super) next_image: String,
    pub(super) wrong_image: String,
    pub(super) oracle: Oracle,
    /// The registry's data.
    pub(super) registry: PathBuf,
}

impl Prepared {
    pub(crate) fn new(app: App, tools: &Tools, args: &Args, work: &Path) -> Result<Self> {
        let name = app.name();
        let roots = [Version::First, Version::Second].map(|version| app.root(version, args.dataset.as_deref(), &args.cache));
        let [first, second] = roots;
        let roots = [first?, second?];
        let [image, next, next_image, wrong_image] =
            [format!("bench/{name}:1.0"), format!("bench/{name}-next:1.0"), format!("bench/{name}-next:2.0"), format!("bench/{name}-wrong:1.0")];
        let data = work.join(format!("{name}-registry"));
        let place = Place::Loopback;
        let registry = Registry::start(tools, &place, &data, &work.join("registry.log"))?;
        let home = |side, name: &str| Home::create(tools, &place, &registry, side, work.join(name));
        let startup = |root: &Path| anyhow::Ok(app.command(root)?.join(" "));

        let publisher = home(Side::Server, "publisher")?;
        for image in [&image, &next, &wrong_image] {
            publisher.publish(&roots[0], image, &startup(&roots[0])?)?;
        }
        for lesson in 0..args.lessons {
            for image in [&image, &next] {
                // The first is as a user's first; the others have what it taught.
                let flags: &[&str] = if lesson == 0 { &["--no-model"] } else { &[] };
                home(Side::Client, "teacher")?.run(flags, image)?;
            }
        }
        publisher.wait_for_model(&image)?;
        publisher.wait_for_model(&next)?;
        publisher.publish(&roots[1], &next_image, &startup(&roots[1])?)?;
        settle();

        let [first, second] = roots;
        let (trace, next_trace) = (record(&home(Side::Client, "recorder")?, &image)?, record(&home(Side::Client, "recorder")?, &next_image)?);
        let file = work.join("wrong.model");
        fs::write(&file, wrong::model(&first, &trace)?.encode()).with_context(|| format!("cannot write {}", file.display()))?;
        publisher.call(&["profile", "import", "--pin", &wrong_image, file.to_str().context("the path of the work folder is not UTF-8")?])?;
        settle();

        let oracle = Oracle::prepare(&first, &app.command(&first)?, &work.join(format!("{name}-oracle")))?;
        let built = |root: PathBuf, trace: Trace| anyhow::Ok(Built { floor: Floor::of(&root, &trace)?, root, trace });
        let versions = [built(first, trace)?, built(second, next_trace)?];
        for version in &versions {
            let floor = version.floor;
            eprintln!(
                "{}: {} blocks touched, {:.1} MB of {:.1} MB",
                version.root.display(),
                floor.blocks,
                floor.wire_bytes as f64 / 1e6,
                floor.plain_bytes as f64 / 1e6
            );
        }
        Ok(Self { app, versions, image, next_image, wrong_image, oracle, registry: data })
    }

    /// Where its image's content is.
    pub(crate) fn root(&self) -> &Path {
        &self.versions[0].root
    }

    /// About how long its launches over a link take, in seconds.
    pub(super) fn estimate_s(&self, link: LinkKind, args: &Args) -> f64 {
        let floor = self.versions[0].floor.over(link, 1.0).seconds;
        // As the launches of other systems were to this floor, rounded up.
        let times = |way| match way {
            Way::Warm => 0.3,
            Way::Model => 1.3,
            Way::Previous => 1.6,
            Way::OnDemand | Way::Wrong => 2.5,
            Way::Plain => 5.0,
            Way::Oracle => 2.2,
            Way::Pull => 6.0,
        };
        let wanted = |way: &Way| args.ways.is_empty() || args.ways.contains(way) || matches!(way, Way::Pull | Way::Warm);
        Way::ALL.into_iter().filter(wanted).map(|way| f64::from(way.rounds(args)) * (times(way) * floor + 0.5)).sum()
    }
}

/// A run with everything local that it touches.
fn record(home: &Home<'_>, image: &str) -> Result<Trace> {
    let file = home.path().join("recorded.trace");
    let name = file.to_str().context("the path of the home is not UTF-8")?;
    home.run(&["--no-model", "--no-trace-upload"], image)?;
    home.run(&["--no-model", "--no-trace-upload", "--trace", name], image)?;
    floor::read_trace(&file)
}
