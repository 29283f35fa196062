//! `turbo suspend` and `turbo resume`.

use anyhow::{Result, bail};
use serde_json::json;

use crate::app::App;
use crate::commands::selection::Selection;
use crate::commands::stop::hint;
use crate::containers::{Container, Containers};
use crate::control::client::{Client, connect};
use crate::control::{Frozen, Op};
use crate::exit::Exit;
use crate::output::note;

/// Stop every process of containers, until `resume`.
///
/// They use no processor time, and keep their memory. If a state can be taken, its id is printed.
#[derive(Debug, clap::Args)]
pub struct Suspend {
    #[command(flatten)]
    selection: Selection,
}

/// Let the processes of suspended containers go on.
#[derive(Debug, clap::Args)]
pub struct Resume {
    #[command(flatten)]
    selection: Selection,
}

impl Suspend {
    /// Suspends them.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let mut rows = Vec::new();
        for (container, mut client) in running(&containers, &self.selection)? {
            let frozen: Frozen = client.ask(Op::Freeze)?;
            if frozen.waiting > 0 {
                note(format!("{}: {} threads wait for the disk or the network, and stop when that is over", container.shown(), frozen.waiting));
            }
            // Where no state can be taken of what runs, the newest one is what there is.
            let captured: Option<String> = client.ask(Op::Capture).inspect_err(|error| tracing::debug!("{error:#}")).ok();
            let newest = || containers.reload(&container).ok().flatten()?.states.last().map(|state| state.id.to_string());
            let state = captured.or_else(newest);
            rows.push((container, frozen.waiting, state));
        }
        let values: Vec<_> = rows
            .iter()
            .map(|(container, waiting, state)| json!({"container": container.id, "name": container.name, "waiting": waiting, "state": state}))
            .collect();
        app.output.result(&values, |out| {
            rows.iter().try_for_each(|(container, _, state)| match state {
                Some(state) => writeln!(out, "{}  {state}", container.shown()),
                None => writeln!(out, "{}", container.shown()),
            })
        })?;
        rows.iter().filter_map(|(_, _, state)| state.as_deref()).for_each(hint);
        Ok(Exit::Success)
    }
}

impl Resume {
    /// Resumes them.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let mut rows = Vec::new();
        for (container, mut client) in running(&containers, &self.selection)? {
            client.ask::<()>(Op::Thaw)?;
            rows.push(container);
        }
        let values: Vec<_> = rows.iter().map(|container| json!({"container": container.id, "name": container.name})).collect();
        app.output.result(&values, |out| rows.iter().try_for_each(|container| writeln!(out, "{}", container.shown())))?;
        Ok(Exit::Success)
    }
}

/// Connections to all that were named, which must run.
fn running(containers: &Containers, selection: &Selection) -> Result<Vec<(Container, Client)>> {
    let found = selection.find(containers, |container| containers.is_running(container))?;
    let connected = found.into_iter().map(|container| match connect(containers, &container)? {
        Some(client) => Ok((container, client)),
        None => bail!("{} does not run; `turbo start {}` starts it", container.shown(), container.name),
    });
    connected.collect()
}
