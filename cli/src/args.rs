//! The command line: every command and option. Help, completions and manual pages come from these definitions.
//!
//! Parsing only validates; work starts after all of it succeeded.

use clap::{Parser, Subcommand};

use crate::commands::*;
use crate::config;
use crate::output::Format;

/// Starts applications that have not been downloaded yet.
///
/// Images are stacks of layers, kept in chunks on a registry that you run yourself. `turbo run` mounts an image, starts
/// its program at once, and fetches what it touches while it runs. Nothing needs root, a driver or a daemon.
#[derive(Debug, Parser)]
#[command(
    name = "turbo",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Exit codes: the application's own; 125 an error of turbo's, 126 not executable, 127 not found, 2 wrong usage."
)]
pub struct Turbo {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Settings.
    #[command(flatten)]
    pub settings: config::Options,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Settings")]
    pub format: Format,
    /// Tell more on stderr: of a launch what it waits for and receives; twice for more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Settings")]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an image from a directory, an archive or packages.
    #[command(subcommand)]
    Import(Box<import::Import>),
    /// Send an image to the registry; only what it lacks travels.
    Push(push::Push),
    /// Bring whole images here; only what is not here travels.
    Pull(pull::Pull),
    /// Write an image's files to a tar archive.
    Export(export::Export),
    /// Start the container of an image, creating it if absent; join it if it runs.
    ///
    /// Images need not be here: what the program touches is fetched while it runs.
    Run(run::Run),
    /// Create a container and start it.
    New(new::New),
    /// Start an image in a container that is deleted at the end.
    Try(run::Try),
    /// Start a container again, or a program in one that runs.
    Start(start::Start),
    /// Go on from a state, in a new container.
    Continue(continue_command::Continue),
    /// Take a container's state now, and save it to the registry.
    Save(save::Save),
    /// List states, here and on the registry.
    States(states::States),
    /// Make an image of a container.
    Commit(commit::Commit),
    /// End containers, and say which state each ended in.
    Stop(stop::Stop),
    /// End containers at once, without giving them time.
    Kill(kill::Kill),
    /// Stop every process of containers, until `resume`.
    Suspend(suspend::Suspend),
    /// Let the processes of suspended containers go on.
    Resume(suspend::Resume),
    /// List processes in containers.
    Ps(ps::Ps),
    /// Copy a container: what was written, settings and states.
    Fork(fork::Fork),
    /// List what a container's programs changed in files.
    Diff(diff::Diff),
    /// Copy files between the host and containers.
    Cp(cp::Cp),
    /// Drop all that a container's programs changed in files.
    Revert(revert::Revert),
    /// List images by last use.
    History(history::History),
    /// List images that are here.
    Images(images::Images),
    /// Show what an image consists of.
    Inspect(inspect::Inspect),
    /// List containers.
    #[command(alias = "containers")]
    Sessions(sessions::Sessions),
    /// Delete containers, with what they wrote.
    Rm(rm::Rm),
    /// Remove images from this machine.
    Rmi(rmi::Rmi),
    /// Print what a detached container printed.
    Logs(logs::Logs),
    /// Remove data that no image needs.
    Gc(gc::Gc),
    /// Check every stored byte against its digest.
    Verify(verify::Verify),
    /// Show what the store holds.
    Stats(stats::Stats),
    /// What was learned about an image's launches.
    #[command(subcommand)]
    Profile(profile::Profile),
    /// Recordings of runs: make one, draw it, and see what another link would make of it.
    #[command(subcommand)]
    Trace(trace::Trace),
    /// Log in to a registry.
    Login(login::Login),
    /// Forget a login.
    Logout(logout::Logout),
    /// Show or change the configuration.
    Config(config_command::Config),
    /// Say whether this machine can run images, and what to do if not.
    Doctor(doctor::Doctor),
    /// Show the version, and what this machine can do.
    Version(version::Version),
    /// Print a completion script for a shell.
    Completions(completions::Completions),
    /// Write manual pages to a folder.
    Man(completions::Man),
}

impl Command {
    /// The command's name, as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Import(_) => "import",
            Self::Push(_) => "push",
            Self::Pull(_) => "pull",
            Self::Export(_) => "export",
            Self::Run(_) => "run",
            Self::New(_) => "new",
            Self::Try(_) => "try",
            Self::Start(_) => "start",
            Self::Continue(_) => "continue",
            Self::Save(_) => "save",
            Self::States(_) => "states",
            Self::Commit(_) => "commit",
            Self::Stop(_) => "stop",
            Self::Kill(_) => "kill",
            Self::Suspend(_) => "suspend",
            Self::Resume(_) => "resume",
            Self::Ps(_) => "ps",
            Self::Revert(_) => "revert",
            Self::Fork(_) => "fork",
            Self::Diff(_) => "diff",
            Self::Cp(_) => "cp",
            Self::History(_) => "history",
            Self::Images(_) => "images",
            Self::Inspect(_) => "inspect",
            Self::Sessions(_) => "sessions",
            Self::Rm(_) => "rm",
            Self::Rmi(_) => "rmi",
            Self::Logs(_) => "logs",
            Self::Gc(_) => "gc",
            Self::Verify(_) => "verify",
            Self::Stats(_) => "stats",
            Self::Profile(_) => "profile",
            Self::Trace(_) => "trace",
            Self::Login(_) => "login",
            Self::Logout(_) => "logout",
            Self::Config(_) => "config",
            Self::Doctor(_) => "doctor",
            Self::Version(_) => "version",
            Self::Completions(_) => "completions",
            Self::Man(_) => "man",
        }
    }
}
