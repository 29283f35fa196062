//! `turbo ps`.

use anyhow::Result;
use serde::Serialize;

use crate::app::App;
use crate::containers::Container;
use crate::control::Completing;
use crate::control::client::Client;
use crate::exit::Exit;
use crate::output::table;

/// List processes in containers.
#[derive(Debug, clap::Args)]
pub struct Ps {
    /// Name of a container, or first digits of its id [default: all that run].
    container: Option<String>,
    /// Also show processor time and the whole command.
    #[arg(short, long)]
    long: bool,
}

/// A process.
#[derive(Debug, Serialize)]
struct Row {
    pid: i32,
    inner_pid: i32,
    parent: i32,
    name: String,
    container: String,
    container_name: String,
    user: String,
    uid: u32,
    state: char,
    /// Images of the container of which the rest is being brought here.
    completions: Vec<Completing>,
    user_ms: u64,
    kernel_ms: u64,
    command: Vec<String>,
}

impl Ps {
    /// Lists them by container, then by id.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let found = match &self.container {
            Some(name) => vec![containers.get(name)?],
            None => containers.list()?.into_iter().filter(|container| containers.is_running(container)).collect(),
        };
        let mut rows = Vec::new();
        for container in &found {
            // One that only starts, or has just ended, has no processes.
            let Some(mut client) = Client::connect(&containers.folder(container))? else { continue };
            let Some(status) = client.status().ok() else { continue };
            let Some(init) = status.init else { continue };
            rows.extend(vm::processes(init)?.into_iter().map(|process| row(process, container, &status.completions)));
        }
        app.output.result(&rows, |out| {
            let mut header = vec!["PID", "NAME", "CONTAINER", "USER", "IMAGES"];
            if self.long {
                header.extend(["STATE", "USER TIME", "KERNEL TIME", "COMMAND"]);
            }
            let cells = rows.iter().map(|row| self.cells(row)).collect::<Vec<_>>();
            table(out, &header, &cells)
        })?;
        Ok(Exit::Success)
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let mut cells =
            vec![row.pid.to_string(), row.name.clone(), format!("{}#{}", row.container_name, &row.container[..8]), row.user.clone(), images(&row.completions)];
        if self.long {
            let seconds = |ms: u64| format!("{}.{:02} s", ms / 1000, ms % 1000 / 10);
            cells.extend([row.state.to_string(), seconds(row.user_ms), seconds(row.kernel_ms), shell_words::join(&row.command)]);
        }
        cells
    }
}

/// How far the images are here: the one that has most to bring. Nothing is said of what is all here.
fn images(completions: &[Completing]) -> String {
    let least = completions.iter().min_by_key(|one| one.progress.local_bytes.saturating_mul(1000) / one.progress.total_bytes.max(1));
    least.and_then(Completing::words).unwrap_or_else(|| "-".into())
}

fn row(process: vm::Process, container: &Container, completions: &[Completing]) -> Row {
    Row {
        pid: process.pid,
        inner_pid: process.inner_pid,
        parent: process.parent,
        name: process.name,
        container: container.id.clone(),
        container_name: container.name.clone(),
        user: user_name(process.uid),
        uid: process.uid,
        state: process.state,
        completions: completions.to_vec(),
        user_ms: process.user_ms,
        kernel_ms: process.kernel_ms,
        command: process.command.iter().map(|part| part.to_string_lossy().into_owned()).collect(),
    }
}

/// The name in `/etc/passwd`, else the number.
fn user_name(uid: u32) -> String {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}
