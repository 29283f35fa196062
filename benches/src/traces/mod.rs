//! `turbo-bench traces`: records runs of applications for the replay simulator.
//!
//! Each application is imported and pushed to a registry on this machine, run once so that all it touches is local, and
//! then run again with its first touches recorded. The image as a whole is not local, so the kernel reads no further
//! ahead than in a streamed launch, and what is recorded is what the application asked for. Runs are those of an
//! ordinary user; root records as another user.
//!
//! Beside the traces, what travels for each place that some run touched: see [`sizes`].

pub(crate) mod sizes;
pub mod subjects;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use layer_format::recording::Recording;
use layer_format::trace::Trace;

use crate::link::Side;
use crate::place::Place;
use crate::turbo::{Home, Registry, Tools};
use subjects::{SUBJECTS, Subject};

const ZSTD_LEVEL: i32 = 19;
/// Times that a run is recorded; the shortest is kept, which the machine disturbed least.
const TRIES: u32 = 3;
/// Who records where root runs the benchmark.
const ORDINARY_USER: u32 = 65533;

/// Record runs of applications, for the replay simulator.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of trees to use instead of Debian packages: scipy/1.15.2 and 1.15.3, img-java/v1 and v2.
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
    /// Only this application; may be given more than once.
    #[arg(long = "app", value_name = "NAME")]
    pub apps: Vec<String>,
    /// Where root filesystems are kept.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub cache: PathBuf,
    /// Folder of `turbo` and `turbo-registry`, if they are not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Where the traces go.
    #[arg(long, value_name = "DIR", default_value = "predictor/traces")]
    pub output: PathBuf,
}

/// Records.
///
/// # Errors
/// If a root filesystem cannot be made, or an application or the product fails.
pub fn run(args: &Args) -> Result<()> {
    let tools = Tools::find(args.bin_dir.as_deref())?;
    let wanted = |subject: &&Subject| match args.apps.is_empty() {
        true => !subject.needs_dataset || args.dataset.is_some(),
        false => args.apps.iter().any(|name| name == subject.name),
    };
    let subjects: Vec<_> = SUBJECTS.iter().filter(wanted).collect();
    ensure!(!subjects.is_empty(), "there is no such application; there are {}", SUBJECTS.iter().map(|subject| subject.name).collect::<Vec<_>>().join(", "));
    for folder in [&args.output, &args.cache] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    for subject in subjects {
        record(&tools, subject, args).with_context(|| format!("recording {}", subject.name))?;
    }
    Ok(())
}

fn record(tools: &Tools, subject: &Subject, args: &Args) -> Result<()> {
    let root = subject.root(args.dataset.as_deref(), &args.cache)?;
    let program = subject.program(&root)?;
    // Where an ordinary user can go.
    let work = tempfile::Builder::new().prefix("turbo-traces-").tempdir().context("cannot create a folder for homes")?;
    fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).context("cannot open a folder")?;
    let place = Place::Loopback;
    let registry = Registry::start(tools, &place, &work.path().join("registry"), &work.path().join("registry.log"))?;
    let image = format!("traces/{}:1.0", subject.name);
    Home::create(tools, &place, &registry, Side::Server, work.path().join("publisher"))?.publish(&root, &image, &program)?;
    let mut traces = Vec::new();
    for run in subject.runs {
        let mut home = Home::create(tools, &place, &registry, Side::Client, work.path().join("home"))?;
        if rustix::process::geteuid().is_root() {
            home.become_user(ORDINARY_USER)?;
        }
        home.run_with(&["--no-model"], &image, run.args)?;
        let file = work.path().join("home/recorded.trace");
        let name = file.to_str().context("the path of the home is not UTF-8")?;
        let mut best: Option<Trace> = None;
        for _ in 0..TRIES {
            home.run_with(&["--no-model", "--trace", name], &image, run.args)?;
            let bytes = fs::read(&file).with_context(|| format!("turbo run wrote no {}", file.display()))?;
            let trace = Recording::decode(&bytes).map(|recording| recording.trace).with_context(|| format!("{} is not a trace", file.display()))?;
            if best.as_ref().is_none_or(|best| trace.duration_us < best.duration_us) {
                best = Some(trace);
            }
        }
        let trace = best.context("nothing was recorded")?;
        let target = args.output.join(format!("{}.{}.{}.trace.zst", subject.name, run.role.name(), run.name));
        let len = write(&target, &trace.encode())?;
        eprintln!(
            "  {}: {} touches of {} paths in {:.2} s, {len} bytes",
            target.display(),
            trace.events.len(),
            trace.paths.len(),
            trace.duration_us as f64 / 1e6
        );
        traces.push(trace);
    }
    let travel = sizes::of(&root, &traces)?;
    let wire: u64 = travel.objects().iter().map(|object| u64::from(object.wire_bytes)).sum();
    let target = args.output.join(format!("{}.sizes.zst", subject.name));
    let len = write(&target, &travel.encode())?;
    eprintln!("  {}: {} objects, {:.1} MB on the wire, {len} bytes", target.display(), travel.objects().len(), wire as f64 / 1e6);
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<usize> {
    let packed = zstd::encode_all(bytes, ZSTD_LEVEL).context("cannot compress")?;
    fs::write(path, &packed).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(packed.len())
}
