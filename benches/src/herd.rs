//! `turbo-bench herd`: many clients that launch one image within a second, from one registry.
//!
//! The clients speak the protocol and keep nothing: what is measured is the server, and with `--rtt` the wire. Each way
//! begins with a server that has nothing in memory; one client alone tells how much of the storage a launch touches. All
//! clients are one process, which runs at the client's end of the link.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
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
use serde::{Deserialize, Serialize};

use crate::app::{App, Version};
use crate::link::Side;
use crate::place::{LinkKind, Place};
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
    /// Over the emulated link of this round trip in milliseconds (20, 60 or 100), rather than on the loopback device.
    #[arg(long = "rtt", value_name = "MS")]
    pub rtt_ms: Option<u64>,
    /// How often each way is measured, all ways in turn.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
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

/// The clients of one herd, as a process of their own.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientArgs {
    /// Where they launch from.
    url: String,
    /// Where the registry is, to be asked for its metrics at the end.
    registry: String,
    /// What they launch.
    image: String,
    #[arg(long)]
    clients: u32,
    #[arg(long)]
    within_ms: u32,
    #[arg(long)]
    lanes: u8,
    #[arg(long)]
    cached: bool,
}

/// A way to launch.
struct Way {
    name: &'static str,
    clients: u32,
    lanes: u8,
    cached: bool,
}

/// What one herd cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Herd {
    /// Which way the clients took.
    pub way: String,
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
    let root = args.app.root(Version::First, args.dataset.as_deref(), &args.cache)?;
    let command = args.app.command(&root)?;
    let place = match args.rtt_ms {
        None => Place::Loopback,
        Some(rtt) => {
            let link = LinkKind::ALL.into_iter().find(|link| link.rtt.as_millis() as u64 == rtt).context("there is no link of this round trip")?;
            Place::link(link)?
        }
    };
    let (data, log) = (work.path().join("registry"), work.path().join("registry.log"));
    let image = format!("bench/{}:1.0", args.app.name());
    {
        let registry = Registry::start(&tools, &Place::Loopback, &data, &log)?;
        let home = |side, name: &str| Home::create(&tools, &Place::Loopback, &registry, side, work.path().join(name));
        home(Side::Server, "publisher")?.publish(&root, &image, &command.join(" "))?;
        let teacher = home(Side::Client, "teacher")?;
        teacher.run(&["--no-model"], &image)?;
        teacher.wait_for_model(&image)?;
    }
    let mut ways = vec![
        Way { name: "one client", clients: 1, lanes: 0, cached: false },
        Way { name: "one client, 4 connections", clients: 1, lanes: 3, cached: false },
        Way { name: "direct", clients: args.clients, lanes: 0, cached: false },
        Way { name: "direct, 4 connections each", clients: args.clients, lanes: 3, cached: false },
    ];
    let nginx = Nginx::program().filter(|_| args.rtt_ms.is_none());
    match &nginx {
        Some(_) => ways.push(Way { name: "through nginx", clients: args.clients, lanes: 0, cached: true }),
        None => eprintln!("without nginx: it is on the loopback device alone, and unpacked by `cargo xtask test`"),
    }
    let mut herds = Vec::new();
    for round in 0..args.rounds {
        for way in &ways {
            let registry = Registry::start(&tools, &place, &data, &log)?;
            let proxy = nginx.as_ref().filter(|_| way.cached).map(|program| Nginx::start(program, registry.url()));
            let url = proxy.as_ref().map_or(registry.url(), Nginx::url);
            let herd = way.measure(&place, args.within_ms, url, &image, &registry)?;
            eprintln!("  round {} {}: {:.2} s", round + 1, way.name, herd.seconds);
            herds.push(herd);
        }
    }
    print!("{}", table(&ways, &herds));
    let text = serde_json::to_vec_pretty(&herds).context("figures are not JSON")?;
    fs::write(&args.json, text).with_context(|| format!("cannot write {}", args.json.display()))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("threads cannot be started")
}

impl Way {
    fn measure(&self, place: &Place, within_ms: u32, url: &str, image: &str, registry: &Registry) -> Result<Herd> {
        let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
        command.args(["herd-client", url, registry.url(), image, "--clients", &self.clients.to_string()]);
        command.args(["--within-ms", &within_ms.to_string(), "--lanes", &self.lanes.to_string()]);
        if self.cached {
            command.arg("--cached");
        }
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).stdout(Stdio::piped());
        let output = place.command(Side::Client, command)?.output().context("the clients cannot be started")?;
        ensure!(output.status.success(), "the clients failed ({}): {}", self.name, output.status);
        let (herd, metrics): (Herd, String) = serde_json::from_slice(&output.stdout).context("the clients printed no figures")?;
        finish(Herd { way: self.name.to_owned(), ..herd }, registry, &metrics)
    }
}

/// Runs the clients, and prints their figures and the registry's metrics as JSON.
///
/// # Errors
/// If a client does not get all of the launch.
pub fn run_clients(args: &ClientArgs) -> Result<()> {
    let (herd, metrics) = runtime()?.block_on(async {
        let herd = herd(args).await?;
        let metrics = reqwest::get(format!("{}/metrics", args.registry)).await?.text().await?;
        anyhow::Ok((herd, metrics))
    })?;
    println!("{}", serde_json::to_string(&(herd, metrics))?);
    Ok(())
}

/// Figures of the clients' side; those of the server are added by [`finish`].
async fn herd(args: &ClientArgs) -> Result<Herd> {
    let ClientArgs { url, image, clients, within_ms, lanes, cached, .. } = args.clone();
    let received = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for n in 0..clients {
        let remote = Remote::new(&url, RegistryOptions { lanes: Some(lanes), cached_launch: cached, ..RegistryOptions::default() })?;
        let (image, received) = (image.clone(), Arc::clone(&received));
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
        way: String::new(),
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

/// Medians over the rounds.
fn table(ways: &[Way], herds: &[Herd]) -> String {
    let mut out =
        "| way | clients | all, s | median, s | p95, s | received, MB | sent by the registry, MB | read from storage, MB | peak memory, MB | CPU, s |\n"
            .to_owned();
    out.push_str(&format!("|{}\n", "---|".repeat(10)));
    for way in ways {
        let median = |figure: &dyn Fn(&Herd) -> f64, digits: usize| {
            let mut values: Vec<f64> = herds.iter().filter(|herd| herd.way == way.name).map(figure).collect();
            values.sort_by(f64::total_cmp);
            format!("{:.digits$}", values.get(values.len() / 2).copied().unwrap_or(f64::NAN))
        };
        let mb = |figure: fn(&Herd) -> u64| median(&move |herd| figure(herd) as f64 / 1e6, 1);
        let row = [
            way.name.to_owned(),
            way.clients.to_string(),
            median(&|herd| herd.seconds, 2),
            median(&|herd| herd.median_s, 2),
            median(&|herd| herd.p95_s, 2),
            mb(|herd| herd.received_bytes),
            mb(|herd| herd.sent_bytes),
            mb(|herd| herd.storage_bytes),
            mb(|herd| herd.peak_memory_bytes),
            median(&|herd| herd.cpu_s, 2),
        ];
        out.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    out
}
