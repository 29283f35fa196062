//! `turbo trace`.

mod record;
mod replay;
mod send;
mod show;

use anyhow::Result;

use crate::app::App;
use crate::exit::Exit;
use crate::forks::Forks;

/// Recordings of runs: what was touched, what was waited for, and what another link or model would have made of it.
///
/// Every run records its first touches; `record` and `turbo run --trace FILE` also record how the run went in time.
#[derive(Debug, clap::Subcommand)]
pub enum Trace {
    /// Run an image as `turbo run` does, and write a recording of the launch.
    Record(Box<record::Record>),
    /// Say what a recorded launch would take over other links, with nothing local.
    Replay(replay::Replay),
    /// Show a recording, or the trace of an image's newest run: in words, as JSON, or drawn as a page.
    Show(show::Show),
    Send(send::Send),
}

impl Trace {
    /// Whether it starts an application.
    pub fn starts(&self) -> bool {
        matches!(self, Self::Record(_))
    }

    /// Does it.
    pub fn run(self, app: &App, forks: Forks) -> Result<Exit> {
        match self {
            Self::Record(record) => record.run(app, forks),
            Self::Replay(replay) => replay.run(app),
            Self::Show(show) => show.run(app),
            Self::Send(send) => send.run(app),
        }
    }
}
