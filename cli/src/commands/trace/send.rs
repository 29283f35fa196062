//! `turbo trace send`.

use anyhow::Result;

use crate::app::App;
use crate::exit::Exit;
use crate::outbox;

/// Send the traces of earlier runs that wait for the registry. Every run does so by itself, in the background.
#[derive(Debug, clap::Args)]
pub struct Send {}

impl Send {
    /// Sends them, and says how many.
    pub fn run(self, app: &App) -> Result<Exit> {
        let sent = outbox::send_all(app)?;
        app.output.result(&sent, |out| writeln!(out, "{} sent, {} forgotten, {} waiting", sent.sent, sent.forgotten, sent.waiting))?;
        Ok(Exit::Success)
    }
}
