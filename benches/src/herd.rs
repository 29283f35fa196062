//! `turbo-bench herd`: many clients that launch one image within a second, from one registry.
//!
//! The clients speak the protocol and keep nothing: what is measured is the server. Each way begins with a server that
//! has nothing in memory; one client alone tells how much of the storage a launch touches.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use client_store::Origin;
use client_store::origin::Received;
use client_store::remote::{Registry as Remote, RegistryOptions};
use futures::StreamExt;
use integration_tests::Nginx;
use layer_format::api::LaunchRequest;
use layer_format::reference::ImageReference;
use serde::Serialize;

use crate::app::App;
use crate::link::Side;
use crate::place::Place;
use crate::turbo::{Home, Registry, Tools};

/// Launch one image from many clients within a second.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many clients.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// Within how many milliseconds they begin.
    #[arg(long, default_value_t = 1000)]
    pub within_ms: u32,
    /// The application.
    #[arg(long, default_value = "scipy")]
    pub app: App,
    /// Folder of trees to use instead of Debian packages.
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
    /// Where root filesystems are kept.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub cache: PathBuf,
    /// Where the registry keeps its data meanwhile.
    #[arg(long, value_name = "DIR", default_value = "target/bench/work")]
    pub work: PathBuf,
    /// Folder of `turbo` and `turbo-registry`, if they are not beside this program.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Write the figures to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/herd.json")]
    pub json: PathBuf,
}

/// How long the server may take to learn from the first run.
const LEARN: Duration = Duration::from_secs(60);

/// What one herd cost.
#[derive(Debug, Clone, Serialize)]
pub struct Herd {
    /// Which way the clients took.
    pub way: &'static str,
    /// How many there were.
    pub clients: u32,
    /// From the first request to the end of the last answer, in seconds.
    pub seconds: f64,
    /// Median and 95th percentile of a single client, in seconds.
    pub median_s: f64,
    /// See `median_s`.
    pub p95_s: f64,
    /// Bytes that all clients received, on the wire.
    pub received_bytes: u64,
    /// Bytes that the registry sent.
    pub sent_bytes: u64,
    /// Bytes that the registry read from its storage.
    pub storage_bytes: u64,
    /// Peak resident memory of the registry, in bytes.
    pub peak_memory_bytes: u64,
    /// Processor time of the registry, in seconds.
    pub cpu_s: f64,
}

/// Measures and prints.
///
/// # Errors
/// If the application cannot be prepared, or a client does not get all of the launch.
pub fn run(args: &Args) -> Result<()> {
    let tools = Tools::find(args.bin_dir.as_deref())?;
    fs::create_dir_all(&args.work).with_context(|| format!("cannot create {}", args.work.display()))?;
    let work = tempfile::Builder::new().prefix("herd-").tempdir_in(&args.work).context("cannot create a folder")?;
    let root = args.app.root(crate::app::Version::First, args.dataset.as_deref(), &args.cache)?;
    let command = args.app.command(&root)?;
    let (place, data, log) = (Place::Loopback, work.path().join("registry"), work.path().join("registry.log"));
    let image = format!("bench/{}:1.0", args.app.name());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("threads cannot be started")?;
    {
        let registry = Registry::start(&tools, &place, &data, &log)?;
        let home = |side, name: &str| Home::create(&tools, &place, &registry, side, work.path().join(name));
        home(Side::Server, "publisher")?.publish(&root, &image, &command.join(" "))?;
        home(Side::Client, "teacher")?.run(&["--no-model"], &image)?;
        runtime.block_on(wait_for_model(registry.url(), &image))?;
    }
    let mut herds = Vec::new();
    let mut measure = |way, clients, options: &dyn Fn() -> RegistryOptions, nginx: Option<&PathBuf>| -> Result<()> {
        let registry = Registry::start(&tools, &place, &data, &log)?;
        let proxy = nginx.map(|program| Nginx::start(program, registry.url()));
        let url = proxy.as_ref().map_or(registry.url(), Nginx::url);
        let herd = runtime.block_on(herd(way, clients, args.within_ms, url, &image, options))?;
        let metrics = runtime.block_on(async { reqwest::get(format!("{}/metrics", registry.url())).await?.text().await });
        herds.push(finish(herd, &registry, &metrics.context("the registry does not tell its metrics")?)?);
        Ok(())
    };
    let plain = || RegistryOptions { lanes: Some(0), ..RegistryOptions::default() };
    measure("one client", 1, &plain, None)?;
    measure("direct", args.clients, &plain, None)?;
    measure("direct, 4 connections each", args.clients, &|| RegistryOptions { lanes: Some(3), ..plain() }, None)?;
    match Nginx::program() {
        Some(program) => measure("through nginx", args.clients, &|| RegistryOptions { cached_launch: true, ..plain() }, Some(&program))?,
        None => eprintln!("without nginx: there is none; `cargo xtask test` unpacks Debian's"),
    }
    print!("{}", table(&herds));
    let text = serde_json::to_vec_pretty(&herds).context("figures are not JSON")?;
    fs::write(&args.json, text).with_context(|| format!("cannot write {}", args.json.display()))
}

async fn wait_for_model(url: &str, image: &str) -> Result<()> {
    let reference: ImageReference = image.parse().context("the image has no valid name")?;
    let remote = Remote::new(url, RegistryOptions::default())?;
    let begun = Instant::now();
    while remote.get_model(&reference.repository, None).await?.is_none() {
        ensure!(begun.elapsed() < LEARN, "the registry learned nothing from a run");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Figures of the clients' side; those of the server are added by [`finish`].
async fn herd(way: &'static str, clients: u32, within_ms: u32, url: &str, image: &str, options: &dyn Fn() -> RegistryOptions) -> Result<Herd> {
    let received = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for n in 0..clients {
        let remote = Remote::new(url, options())?;
        let (image, received) = (image.to_owned(), Arc::clone(&received));
        let pause = Duration::from_millis(u64::from(within_ms) * u64::from(n) / u64::from(clients));
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep_until((begun + pause).into()).await;
            let begun = Instant::now();
            launch(&remote, &image, n).await?;
            received.fetch_add(remote.received_bytes().unwrap_or(0), Ordering::Relaxed);
            anyhow::Ok(begun.elapsed().as_secs_f64())
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.push(task.await.context("a client panicked")??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Ok(Herd {
        way,
        clients,
        seconds,
        median_s: at(0.5),
        p95_s: at(0.95),
        received_bytes: received.load(Ordering::Relaxed),
        sent_bytes: 0,
        storage_bytes: 0,
        peak_memory_bytes: 0,
        cpu_s: 0.0,
    })
}

async fn launch(remote: &Remote, image: &str, n: u32) -> Result<()> {
    let reference: ImageReference = image.parse().context("the image has no valid name")?;
    let request = LaunchRequest { architecture: std::env::consts::ARCH.into(), predict: true, budget_bytes: 1 << 30, ..LaunchRequest::default() };
    let mut stream = remote.launch(&reference, &format!("{n:032x}"), request).await?;
    let mut objects = 0;
    while let Some(record) = stream.next().await {
        match record? {
            Received::Object(_) => objects += 1,
            Received::End(reason) if reason.is_empty() => {
                ensure!(objects > 100, "a launch brought {objects} objects: nothing was learned");
                return Ok(());
            }
            Received::End(reason) => bail!("a launch ended early: {reason}"),
            _ => {}
        }
    }
    bail!("a launch was cut")
}

/// Adds what the server tells, and the system about it.
fn finish(mut herd: Herd, registry: &Registry, metrics: &str) -> Result<Herd> {
    let metric = |name: &str| -> Result<u64> {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).with_context(|| format!("the registry does not tell {name}"))?;
        line.parse().with_context(|| format!("{name} is not a number"))
    };
    herd.sent_bytes = metric("turbo_registry_sent_bytes_total")?;
    herd.storage_bytes = metric("turbo_registry_storage_read_bytes_total")?;
    let status = fs::read_to_string(format!("/proc/{}/status", registry.id())).context("the registry is gone")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    herd.peak_memory_bytes = peak.context("the system does not tell the registry's memory")? * 1024;
    let stat = fs::read_to_string(format!("/proc/{}/stat", registry.id())).context("the registry is gone")?;
    let ticks: u64 = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum();
    herd.cpu_s = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Ok(herd)
}

fn table(herds: &[Herd]) -> String {
    let mut out =
        "| way | clients | all, s | median, s | p95, s | received, MB | sent by the registry, MB | read from storage, MB | peak memory, MB | CPU, s |\n"
            .to_owned();
    out.push_str(&format!("|{}\n", "---|".repeat(10)));
    let mb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    for herd in herds {
        let row = [
            herd.way.to_owned(),
            herd.clients.to_string(),
            format!("{:.2}", herd.seconds),
            format!("{:.2}", herd.median_s),
            format!("{:.2}", herd.p95_s),
            mb(herd.received_bytes),
            mb(herd.sent_bytes),
            mb(herd.storage_bytes),
            mb(herd.peak_memory_bytes),
            format!("{:.2}", herd.cpu_s),
        ];
        out.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    out
}
