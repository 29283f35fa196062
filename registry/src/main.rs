//! `turbo-registry`: parses the command line, starts the server, stops it on SIGTERM or SIGINT.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use registry::{LogFormat, Options};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The Turbo registry: keeps application images and streams them to `turbo run`.
#[derive(Debug, Parser)]
#[command(name = "turbo-registry", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve images until SIGTERM or SIGINT
    Serve(Box<Serve>),
    Gc(commands::Gc),
    Scrub(commands::Scrub),
    Reconcile(commands::Reconcile),
    Trash(commands::Trash),
    Undelete(commands::Undelete),
    /// Print the version
    Version,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// TOML file with any of these options as keys, such as: listen = "127.0.0.1:5000"
    #[arg(long, env = "TURBO_REGISTRY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Version => {
            println!("turbo-registry {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(serve) => run(*serve).map(|()| ExitCode::SUCCESS),
        Command::Gc(command) => operate(command.run()),
        Command::Scrub(command) => operate(command.run()),
        Command::Reconcile(command) => operate(command.run()),
        Command::Trash(command) => operate(command.run()),
        Command::Undelete(command) => operate(command.run()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("turbo-registry: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(serve: Serve) -> anyhow::Result<()> {
    let options = match &serve.config {
        Some(path) => serve.options.or(Options::from_file(path)?),
        None => serve.options,
    };
    start_logging(options.log_format.unwrap_or_default());
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("could not start threads")?.block_on(listen(options))
}

/// Runs an operator's command.
fn operate(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("could not start threads")?.block_on(command)
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}

async fn listen(options: Options) -> anyhow::Result<()> {
    let address = options.listen().to_owned();
    let config = options.into_config()?;
    let mut terminate = signal(SignalKind::terminate()).context("could not wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not wait for SIGINT")?;
    let listener = TcpListener::bind(&address).await.with_context(|| format!("could not listen on {address}"))?;
    let local = listener.local_addr()?;
    config.check_listen(local)?;
    let app = registry::App::open(config).await?;
    eprintln!("listening on {}://{local}", app.scheme());
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    registry::serve_app(app, listener, shutdown).await;
    Ok(())
}
