//! `turbo`: see `turbo --help`.

#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags, reason = "doc comments of arguments are help text")]
#![allow(unreachable_pub, reason = "in a program `pub` says what a module offers to the others; nothing is reachable from outside")]

mod app;
mod args;
mod changes;
mod commands;
mod config;
mod containers;
mod control;
mod copy;
mod credentials;
mod dependencies;
mod detach;
mod environment;
mod exit;
mod forks;
mod have;
mod history;
mod host_facts;
mod image_sources;
mod images;
mod isolation;
mod join;
mod launch;
mod live;
mod outbox;
mod output;
mod place;
mod progress;
mod releases;
mod side;
mod sink;
mod stack;
mod startup;
mod states;
mod traces;
mod user_folders;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use app::App;
use args::{Command, Turbo};
use config::Settings;
use exit::{Exit, UsageError};
use forks::Forks;
use output::Output;

fn main() -> ExitCode {
    let arguments = match Turbo::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Success }.into();
        }
    };
    let output = Output { format: arguments.format, command: arguments.command.name() };
    match run(arguments, output) {
        Ok(exit) => exit.into(),
        Err(error) => {
            output.error(&error);
            exit_of(&error).into()
        }
    }
}

fn run(arguments: Turbo, output: Output) -> Result<Exit> {
    // The process that becomes the VM is forked before any thread exists.
    let (forks, background) = match &arguments.command {
        Command::Run(_) | Command::New(_) | Command::Try(_) | Command::Start(_) | Command::Continue(_) => {
            let background = detach::Background::take();
            (Forks::both()?, background)
        }
        Command::Trace(command) if command.starts() => (Forks::both()?, None),
        // Both sides may be containers that do not run.
        Command::Cp(_) => (Forks::launchers(2)?, None),
        _ => (Forks::default(), None),
    };
    log(arguments.verbose);
    let settings = Settings::load(&arguments.settings)?;
    let mut app = App::new(settings, output, background);
    app.is_verbose = arguments.verbose > 0;
    let app = app;
    let result = match arguments.command {
        Command::Run(command) => command.run(&app, forks),
        Command::New(command) => command.run(&app, forks),
        Command::Try(command) => command.run(&app, forks),
        Command::Start(command) => command.run(&app, forks),
        Command::Continue(command) => command.run(&app, forks),
        Command::Save(command) => command.run(&app),
        Command::States(command) => command.run(&app),
        Command::Commit(command) => command.run(&app),
        Command::Stop(command) => command.run(&app),
        Command::Kill(command) => command.run(&app),
        Command::Suspend(command) => command.run(&app),
        Command::Resume(command) => command.run(&app),
        Command::Ps(command) => command.run(&app),
        Command::History(command) => command.run(&app),
        Command::Revert(command) => command.run(&app),
        Command::Fork(command) => command.run(&app),
        Command::Diff(command) => command.run(&app),
        Command::Cp(command) => command.run(&app, forks),
        Command::Import(command) => command.run(&app),
        Command::Push(command) => command.run(&app),
        Command::Pull(command) => command.run(&app),
        Command::Export(command) => command.run(&app),
        Command::Images(command) => command.run(&app),
        Command::Inspect(command) => command.run(&app),
        Command::Sessions(command) => command.run(&app),
        Command::Rm(command) => command.run(&app),
        Command::Rmi(command) => command.run(&app),
        Command::Logs(command) => command.run(&app),
        Command::Gc(command) => command.run(&app),
        Command::Verify(command) => command.run(&app),
        Command::Stats(command) => command.run(&app),
        Command::Profile(command) => command.run(&app),
        Command::Trace(command) => command.run(&app, forks),
        Command::Login(command) => command.run(&app),
        Command::Logout(command) => command.run(&app),
        Command::Config(command) => command.run(&app, &arguments.settings),
        Command::Doctor(command) => command.run(&app),
        Command::Version(command) => command.run(&app),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    app.close();
    result
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if error.is::<UsageError>() {
        return Exit::Usage;
    }
    match error.downcast_ref::<vm::VmError>() {
        Some(vm::VmError::NotFound { .. }) => Exit::NotFound,
        Some(vm::VmError::NotExecutable { .. }) => Exit::NotExecutable,
        _ => Exit::Failure,
    }
}

fn log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    // fuser warns of each operation that a filesystem leaves to the kernel's default.
    let default = ["warn,fuser=error", "info,fuser=error", "debug"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_env("TURBO_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(live::LogWriter::default)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}
