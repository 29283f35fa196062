//! `turbo sessions`.

use anyhow::Result;
use serde::Serialize;

use crate::app::App;
use crate::containers::{Container, ago};
use crate::exit::Exit;
use crate::output::table;

/// List containers.
#[derive(Debug, clap::Args)]
pub struct Sessions {
    /// Show at most this many.
    #[arg(short, long)]
    n: Option<usize>,
}

/// A row of the list.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    container: Container,
    running: bool,
}

impl Sessions {
    /// Lists them, newest first.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let all = containers.list()?;
        let rows: Vec<Row> =
            all.into_iter().take(self.n.unwrap_or(usize::MAX)).map(|container| Row { running: containers.is_running(&container), container }).collect();
        app.output.result(&rows, |out| {
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|Row { container, running }| {
                    let status = match (running, container.exit_code) {
                        (true, _) => "running".into(),
                        (false, Some(code)) => format!("ended with {code}"),
                        (false, None) => "stopped".into(),
                    };
                    vec![container.shown(), container.images.join(","), ago(container.created_s), status]
                })
                .collect();
            table(out, &["CONTAINER", "IMAGES", "CREATED", "STATUS"], &cells)
        })?;
        Ok(Exit::Success)
    }
}
