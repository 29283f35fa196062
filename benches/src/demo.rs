//! `turbo-bench demo`: one application, one link, three launches, and what streaming saved.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::app::{App, Version};
use crate::link::Side;
use crate::place::{LinkKind, Place};
use crate::turbo::{Home, Launch, Registry, Tools};

const IMAGE: &str = "demo/scipy:1.0";

/// Launch an application that has not been downloaded, and show what streaming saves.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A root filesystem to launch from, instead of one made of Debian packages.
    #[arg(long, value_name = "DIR", requires = "startup_file")]
    pub root: Option<PathBuf>,
    /// The program and its arguments in that root filesystem.
    #[arg(long, value_name = "COMMAND", requires = "root")]
    pub startup_file: Option<String>,
    /// Where the demo keeps the root filesystem that it makes.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    pub cache: PathBuf,
    /// Folder of `turbo` and `turbo-registry`, if they are not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
}

/// Runs the demo.
///
/// # Errors
/// If the root filesystem cannot be made, or a part of the product fails.
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
    let (place, line) = match Place::link(LinkKind::FAR) {
        Ok(place) => (place, format!("a link of {}", LinkKind::FAR.label())),
        Err(error) => {
            println!("note: no emulated link here, so all goes over the loopback device, where streaming saves bytes but hardly time\n  ({error:#})");
            (Place::Loopback, "the loopback device".to_owned())
        }
    };
    std::fs::create_dir_all(&args.cache).with_context(|| format!("cannot create {}", args.cache.display()))?;
    let work = tempfile::Builder::new().prefix("run-").tempdir_in(&args.cache).context("cannot create a folder for the demo")?;
    let log = args.cache.join("registry.log");
    let registry = Registry::start(&tools, &place, &work.path().join("registry"), &log)?;
    let home = |side, name: &str| Home::create(&tools, &place, &registry, side, work.path().join(name));
    println!("importing and pushing {}", root.display());
    home(Side::Server, "publisher")?.publish(&root, IMAGE, &startup)?;
    println!("launching `{startup}` over {line}, each time on a client that has nothing yet\n");
    let launches = launches(&place, &home)?;
    print(&launches);
    Ok(())
}

type Named = (&'static str, Launch);

fn launches<'a>(place: &Place, home: &impl Fn(Side, &str) -> Result<Home<'a>>) -> Result<[Named; 3]> {
    let pulled = home(Side::Client, "pulled")?;
    let pull = Launch::measure(place, || {
        pulled.call(&["pull", IMAGE])?;
        pulled.run(&["--no-trace-upload"], IMAGE).map(Some)
    })?;
    drop(pulled);
    // The first streamed run also leaves the trace that the second one's model is learned from.
    let fresh = home(Side::Client, "on-demand")?;
    let on_demand = Launch::measure(place, || fresh.run(&["--no-model"], IMAGE).map(Some))?;
    fresh.wait_for_model(IMAGE)?;
    drop(fresh);
    let fresh = home(Side::Client, "model")?;
    let model = Launch::measure(place, || fresh.run(&[], IMAGE).map(Some))?;
    Ok([("pull everything, then run", pull), ("run, nothing pulled, no model", on_demand), ("run with the model of that run", model)])
}

fn print(launches: &[Named; 3]) {
    println!("{:<32} {:>9} {:>12} {:>8}", "launch", "seconds", "received", "misses");
    for (name, launch) in launches {
        let misses = launch.stats.map_or_else(String::new, |stats| stats.demand_misses.to_string());
        println!("{name:<32} {:>9.2} {:>9.1} MB {misses:>8}", launch.seconds, launch.received_bytes as f64 / 1e6);
    }
    let (pull, model) = (&launches[0].1, &launches[2].1);
    let saved_bytes = pull.received_bytes.saturating_sub(model.received_bytes);
    println!(
        "\nstreaming saved {:.1} s ({:.1} times as fast) and {:.1} MB ({:.0} %)",
        pull.seconds - model.seconds,
        pull.seconds / model.seconds,
        saved_bytes as f64 / 1e6,
        100.0 * saved_bytes as f64 / pull.received_bytes.max(1) as f64
    );
}

/// `turbo-bench rootfs`: make a root filesystem and say where it is.
#[derive(Debug, clap::Args)]
pub struct RootfsArgs {
    /// The application to make it for.
    pub app: App,
    /// Folder of trees to use instead of Debian packages.
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
    /// Where root filesystems are kept.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub cache: PathBuf,
}

/// Prints the path of the root filesystem, then the command that starts the application in it.
///
/// # Errors
/// If it cannot be made.
pub fn print_rootfs(args: &RootfsArgs) -> Result<()> {
    let dataset: Option<&Path> = args.dataset.as_deref();
    let root = args.app.root(Version::First, dataset, &args.cache)?;
    println!("{}\n{}", root.display(), args.app.command(&root)?.join(" "));
    Ok(())
}
