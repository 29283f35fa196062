//! Repository tasks: `cargo xtask test`, `check-deps`, `bench`, `demo` and `package`.

mod bench;
mod deps;
mod package;
mod setup;
mod steps;
mod test;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks around the code: tests, benchmarks, the demo.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything that a change must pass, from set-up to tests.
    Test(test::Test),
    /// Check that each crate uses only the crates that it may know.
    CheckDeps,
    /// Run a benchmark: `bench launch --help` shows the options of that one.
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of `turbo-bench`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    Package(package::Package),
    /// Launch an application that has not been downloaded, over an emulated link, and show what streaming saves.
    #[command(disable_help_flag = true)]
    Demo {
        /// Arguments of `turbo-bench demo`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Test(test) => test.run(),
        Task::CheckDeps => deps::check(),
        Task::Bench { args } => bench::run(&args),
        Task::Demo { args } => bench::demo(&args),
        Task::Package(package) => package.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
