//! `turbo-link run`: a command at each end of an emulated WAN link.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use benchmarks::link::{Direction, HeldSignals, Link, LinkSpec, Queue, Side, Spawned, parse_ms, parse_percent, parse_queue, parse_rate, run_in_foreground};
use clap::{Args, Parser, Subcommand};

/// An emulated WAN link between two network namespaces.
///
/// The server's end is 10.77.0.1, the client's 10.77.0.2.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Set the link up, run a command at the client's end, and take the link down.
    ///
    /// The exit code is the client's. Counters of both directions go to standard error as JSON.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    way: Way,
    /// Bytes (256k), or the time to drain them (50ms), that may wait before the bottleneck.
    #[arg(long, value_name = "BYTES|MS", value_parser = parse_queue, default_value = "100ms")]
    queue: Queue,
    /// Largest IP packet, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..))]
    mtu: u16,
    /// Seed of loss and jitter.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Shell command to run at the server's end in the background.
    #[arg(long, value_name = "COMMAND")]
    server: Option<String>,
    /// Start the client when something listens on this TCP port at the server's end.
    #[arg(long, value_name = "PORT", requires = "server")]
    wait: Option<u16>,
    /// Write the counters to this file instead of standard error.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Shell command to run at the client's end.
    client: String,
}

/// Both directions, or only the way up where an option says so.
#[derive(Debug, Args)]
struct Way {
    /// Bits per second with k, M or G; 0 is no limit.
    #[arg(long, value_name = "BIT/S", value_parser = parse_rate, default_value = "0")]
    rate: u64,
    /// One-way delay in milliseconds: half of the round trip.
    #[arg(long, value_name = "MS", value_parser = parse_ms, default_value = "0")]
    delay: Duration,
    /// Packets lost at random, in percent.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, default_value = "0")]
    loss: f64,
    /// Random addition to the delay, in milliseconds, up to this.
    #[arg(long, value_name = "MS", value_parser = parse_ms, default_value = "0")]
    jitter: Duration,
    /// Rate from the client to the server, if another.
    #[arg(long, value_name = "BIT/S", value_parser = parse_rate)]
    up_rate: Option<u64>,
    /// One-way delay from the client to the server, if another.
    #[arg(long, value_name = "MS", value_parser = parse_ms)]
    up_delay: Option<Duration>,
    /// Loss from the client to the server, if another.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    up_loss: Option<f64>,
    /// Jitter from the client to the server, if another.
    #[arg(long, value_name = "MS", value_parser = parse_ms)]
    up_jitter: Option<Duration>,
}

impl Run {
    fn spec(&self) -> LinkSpec {
        let way = &self.way;
        let down = Direction { rate_bps: way.rate, delay: way.delay, queue: self.queue, loss: way.loss, jitter: way.jitter };
        let up = Direction {
            rate_bps: way.up_rate.unwrap_or(down.rate_bps),
            delay: way.up_delay.unwrap_or(down.delay),
            queue: self.queue,
            loss: way.up_loss.unwrap_or(down.loss),
            jitter: way.up_jitter.unwrap_or(down.jitter),
        };
        LinkSpec { down, up, mtu_bytes: self.mtu, seed: self.seed, ..LinkSpec::symmetric(0, Duration::ZERO) }
    }
}

fn main() -> ExitCode {
    let Verb::Run(run) = Cli::parse().command;
    match execute(&run) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("turbo-link: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn execute(run: &Run) -> Result<u8> {
    // Before the link starts its thread, which must not be ended by a signal before it is taken down.
    let held = HeldSignals::hold();
    let link = Link::up(&run.spec())?;
    let mut server = None;
    if let Some(text) = &run.server {
        let mut command = link.command(Side::Server, shell(text))?;
        // The client's output stays the only one on standard output.
        command.stdin(Stdio::null()).stdout(std::io::stderr());
        let mut spawned = Spawned::spawn(command)?;
        if let Some(port) = run.wait {
            spawned.wait_listening(port, Duration::from_secs(30))?;
        }
        server = Some(spawned);
    }
    let status = run_in_foreground(link.command(Side::Client, shell(&run.client))?, held)?;
    drop(server);
    let stats = serde_json::to_string(&link.stats()).context("cannot print the counters")?;
    match &run.stats {
        Some(path) => std::fs::write(path, stats + "\n").with_context(|| format!("cannot write {}", path.display()))?,
        None => eprintln!("{stats}"),
    }
    // A client ended by a signal has no code; shells say 128 and its number.
    let by_signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    Ok(status.code().or(by_signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn shell(text: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(text);
    command
}
