//! `turbo-registry`: parses the command line, starts the server, stops it on SIGTERM or SIGINT, and lets it read its
//! certificate again on SIGHUP.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use commands::{backup, check, health, maintain, manual, secret_files, supervisor};
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
    Gc(maintain::Gc),
    Scrub(maintain::Scrub),
    Reconcile(maintain::Reconcile),
    Trash(maintain::Trash),
    Undelete(maintain::Undelete),
    /// Work with the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Ask the server of this machine whether it is ready; for health checks of containers
    Health(Box<health::Health>),
    /// Copy database and packs to a folder that a server can be started on, while this one runs
    Backup(Box<backup::Backup>),
    #[command(flatten)]
    Console(registry::console::Command),
    /// Print the version
    Version,
    /// Write the manual pages
    #[command(hide = true)]
    Man(manual::Man),
    /// Print the completions for a shell
    #[command(hide = true)]
    Completions(manual::Completions),
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
    if let Err(error) = secret_files::resolve() {
        eprintln!("turbo-registry: {error:#}");
        return ExitCode::FAILURE;
    }
    let result = match Cli::parse().command {
        Command::Version => {
            println!("turbo-registry {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(serve) => run(*serve).map(done),
        Command::Config { command: ConfigCommand::Check { serve, connect } } => {
            runtime().and_then(|runtime| runtime.block_on(check::run(serve.options()?, connect))).map(done)
        }
        Command::Health(health) => health.run().map(done),
        Command::Backup(backup) => backup.run().map(done),
        Command::Man(man) => man.run(Cli::command()).map(done),
        Command::Completions(completions) => completions.run(Cli::command()).map(done),
        Command::Console(command) => console(command).map(done),
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

fn console(command: registry::console::Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("could not start a thread")?;
    runtime.block_on(command.run())
}

/// Tells who the first administrator is, once. A password goes to a terminal alone: what is not one may be kept.
fn welcome(first: &registry::FirstAdministrator) {
    use std::io::IsTerminal;
    match (&first.file, &first.password) {
        (Some(file), Some(password)) if std::io::stderr().is_terminal() => {
            eprintln!(
                "first start: the administrator is `{}`, with the password\n\n    {password}\n\nIt is also in {}, until you change it.",
                first.name,
                file.display()
            );
        }
        (Some(file), _) => eprintln!("first start: the administrator is `{}`, with the password in {}", first.name, file.display()),
        (None, _) => eprintln!("first start: the administrator is `{}`", first.name),
    }
}

fn done(_: ()) -> ExitCode {
    ExitCode::SUCCESS
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
    let mut hangup = signal(SignalKind::hangup()).context("could not wait for SIGHUP")?;
    let listener = TcpListener::bind(&address).await.with_context(|| format!("could not listen on {address}"))?;
    let local = listener.local_addr()?;
    config.check_listen(local)?;
    let app = registry::App::open(config).await?;
    let url = format!("{}://{local}", app.scheme());
    if let Some(first) = app.listens_on(local).await? {
        welcome(&first);
    }
    eprintln!("listening on {url}");
    let reloaded = app.clone();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            supervisor::reloading(|| reloaded.reload());
        }
    });
    supervisor::answer_watchdog();
    supervisor::ready(&url);
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        supervisor::stopping();
    };
    registry::serve_app(app, listener, shutdown).await;
    Ok(())
}
