//! `turbo sessions`.

use anyhow::Result;
use serde::Serialize;

use crate::app::App;
use crate::containers::{Container, Containers, ago};
use crate::control::client::Client;
use crate::control::{Completing, Phase};
use crate::exit::Exit;
use crate::output::table;

/// Longest text of a column that is not shown in full.
const COLUMN: usize = 40;

/// List containers.
#[derive(Debug, clap::Args)]
pub struct Sessions {
    /// Show at most this many.
    #[arg(short, value_name = "COUNT")]
    n: Option<usize>,
    /// Show only the newest.
    #[arg(short, long, conflicts_with = "n")]
    latest: bool,
    /// Show everything in full.
    #[arg(long)]
    no_trunc: bool,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    /// It was never started.
    Created,
    Starting,
    Running,
    Suspended,
    /// The application has ended; what it wrote is being kept.
    Ending,
    /// A turbo uses its files, but not to run it.
    Busy,
    /// It ended, with a code.
    Exited,
    /// It ended without one: the turbo that ran it was killed.
    Stopped,
}

/// A row of the list.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    container: Container,
    running: bool,
    status: Status,
    /// Images of which the rest is being brought here.
    completions: Vec<Completing>,
    /// Digest of the newest state.
    state: Option<String>,
}

impl Sessions {
    /// Lists them, newest first.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let count = if self.latest { 1 } else { self.n.unwrap_or(usize::MAX) };
        let rows: Vec<Row> = containers.list()?.into_iter().take(count).map(|container| row(&containers, container)).collect();
        app.output.result(&rows, |out| {
            let cells: Vec<Vec<String>> = rows.iter().map(|row| self.cells(row)).collect();
            table(out, &["CONTAINER", "IMAGES", "COMMAND", "CREATED", "STATUS", "STATE"], &cells)
        })?;
        Ok(Exit::Success)
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let container = &row.container;
        let status = match (row.status, container.exit_code) {
            (Status::Created, _) => "created".into(),
            (Status::Starting, _) => "starting".into(),
            (Status::Running, _) => match row.completions.iter().find_map(Completing::words) {
                Some(words) => format!("running ({words})"),
                None => "running".into(),
            },
            (Status::Suspended, _) => "suspended".into(),
            (Status::Ending, _) => "ending".into(),
            (Status::Busy, _) => "in use".into(),
            (Status::Exited, Some(code)) => format!("exited with {code}"),
            (Status::Exited | Status::Stopped, _) => "stopped".into(),
        };
        let state = row.state.as_deref().unwrap_or("-");
        let digits = state.rsplit(':').next().unwrap_or(state);
        let name = if self.no_trunc { format!("{}#{}", container.name, container.id) } else { container.shown() };
        let state = if self.no_trunc { state } else { &digits[..digits.len().min(8)] };
        let command = shell_words::join(&container.command);
        vec![name, self.cut(container.images.join(",")), self.cut(command), ago(container.created_s), status, state.to_owned()]
    }

    fn cut(&self, text: String) -> String {
        if self.no_trunc || text.chars().count() <= COLUMN {
            return text;
        }
        text.chars().take(COLUMN - 1).chain(['…']).collect()
    }
}

fn row(containers: &Containers, container: Container) -> Row {
    let running = containers.is_running(&container);
    let mut completions = Vec::new();
    let status = if running {
        let status = Client::connect(&containers.folder(&container)).ok().flatten().and_then(|mut client| client.status().ok());
        if let Some(status) = &status {
            completions.clone_from(&status.completions);
        }
        match status.map(|status| (status.phase, status.frozen)) {
            Some((Phase::Starting, _)) => Status::Starting,
            Some((Phase::Running, true)) => Status::Suspended,
            Some((Phase::Running, false)) => Status::Running,
            Some((Phase::Ending, _)) => Status::Ending,
            None => Status::Busy,
        }
    } else if container.started_s == 0 {
        Status::Created
    } else if container.exit_code.is_some() {
        Status::Exited
    } else {
        Status::Stopped
    };
    let state = container.states.last().map(|state| state.id.to_string());
    Row { container, running, status, completions, state }
}
