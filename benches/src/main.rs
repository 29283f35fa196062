//! `turbo-bench`: the benchmarks of the product as a whole, and the demo.

use std::process::ExitCode;

use benchmarks::{demo, launch, store, vm};
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
