//! `turbo-bench`: the benchmarks of the product as a whole, and the demo.

use std::process::ExitCode;

use benchmarks::{demo, frames, growth, herd, launch, recording, registry, replay, store, traces, vm};
use clap::{Parser, Subcommand};

/// Benchmarks of Turbo.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Launch(launch::Args),
    Herd(herd::Args),
    #[command(hide = true)]
    HerdClient(herd::ClientArgs),
    Replay(replay::Args),
    Traces(traces::Args),
    Recording(recording::Args),
    Registry(registry::Args),
    Frames(frames::Args),
    Growth(growth::Args),
    #[command(hide = true)]
    GrowthTar(growth::PopulationArgs),
    #[command(hide = true)]
    GrowthLookup(growth::LookupArgs),
    Vm(vm::Args),
    Store(store::Args),
    #[command(hide = true)]
    StoreHelper(store::HelperArgs),
    #[command(hide = true)]
    VmRunner(vm::RunnerArgs),
    Demo(demo::Args),
    /// Make the root filesystem of an application, and print its path and start command.
    Rootfs(demo::RootfsArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Verb::Launch(args) => launch::run(&args),
        Verb::Herd(args) => herd::run(&args),
        Verb::HerdClient(args) => herd::run_clients(&args),
        Verb::Replay(args) => replay::run(&args),
        Verb::Traces(args) => traces::run(&args),
        Verb::Recording(args) => recording::run(&args),
        Verb::Registry(args) => registry::run(&args),
        Verb::Frames(args) => frames::run(&args),
        Verb::Growth(args) => growth::run(&args),
        Verb::GrowthTar(args) => growth::write_tar(&args),
        Verb::GrowthLookup(args) => growth::look_up(&args),
        Verb::Vm(args) => vm::run(&args),
        Verb::Store(args) => store::run(&args),
        Verb::StoreHelper(args) => store::help(&args),
        Verb::VmRunner(args) => vm::serve(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Rootfs(args) => demo::print_rootfs(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("turbo-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
