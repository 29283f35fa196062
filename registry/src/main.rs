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
    /// Work with the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the settings that `serve` would use, and print them as a configuration file, without secrets
    Check {
        #[command(flatten)]
        serve: Box<Serve>,
        /// Look whether database and storage can be reached, too
        #[arg(long)]
        connect: bool,
    },
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
        Command::Config { command: ConfigCommand::Check { serve, connect } } => check(*serve, connect).map(|()| ExitCode::SUCCESS),
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

impl Serve {
    /// Command line and variables, and where they say nothing the file.
    fn options(self) -> anyhow::Result<Options> {
        Ok(match &self.config {
            Some(path) => self.options.or(Options::from_file(path)?),
            None => self.options,
        })
    }
}

fn run(serve: Serve) -> anyhow::Result<()> {
    let options = serve.options()?;
    start_logging(options.log_format.unwrap_or_default());
    runtime()?.block_on(listen(options))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("could not start threads")
}

fn check(serve: Serve, connect: bool) -> anyhow::Result<()> {
    let options = serve.options()?;
    let (address, log_format) = (options.listen().to_owned(), options.log_format);
    let config = options.into_config()?;
    for local in std::net::ToSocketAddrs::to_socket_addrs(&address).with_context(|| format!("could not understand the address {address}"))? {
        config.check_listen(local)?;
    }
    let shown = Options { log_format: Some(log_format.unwrap_or_default()), ..Options::of(&config, &address) };
    print!("{}", shown.to_toml().context("could not show the settings")?);
    if connect {
        for line in runtime()?.block_on(registry::probe(&config))? {
            eprintln!("{line}");
        }
    }
    Ok(())
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
