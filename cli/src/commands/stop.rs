//! `turbo stop`.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::app::App;
use crate::commands::selection::Selection;
use crate::containers::{Container, Containers};
use crate::control::Op;
use crate::control::client::{Client, Refused, connect};
use crate::exit::Exit;
use crate::output::note;

/// How long the processes of a VM may take to vanish when the turbo that ran it is gone.
const END_LIMIT: Duration = Duration::from_secs(30);

/// End containers, and say which state each ended in.
///
/// The application and the programs that joined it get SIGTERM. What still runs after a while is killed. The command
/// returns when a container is really over: its state is captured, and its sandbox free.
#[derive(Debug, clap::Args)]
pub struct Stop {
    #[command(flatten)]
    selection: Selection,
    /// Seconds until what still runs is killed.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u64,
}

/// What a container ended in.
#[derive(Debug, Serialize)]
pub struct Stopped {
    container: String,
    name: String,
    /// Its newest state, if it has one.
    state: Option<String>,
    exit_code: Option<u8>,
    /// Whether it is gone because it was temporary.
    deleted: bool,
}

impl Stop {
    /// Ends them all at once, then waits.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let found = self.selection.find(&containers, |container| containers.is_running(container))?;
        let signal = Op::Stop { signal: libc::SIGTERM, time_s: self.time };
        let stopped = end_all(&containers, found, &signal)?;
        report(app, &stopped)
    }
}

/// Ends containers, and waits until each is over. Nothing is ended unless all run.
pub fn end_all(containers: &Containers, found: Vec<Container>, how: &Op) -> Result<Vec<Stopped>> {
    let mut running = Vec::new();
    for container in found {
        match connect(containers, &container)? {
            Some(client) => running.push((container, client)),
            None => bail!("{} does not run", container.shown()),
        }
    }
    for (container, client) in &mut running {
        match client.ask::<()>(how.clone()) {
            Err(error) if error.is::<Refused>() => return Err(error.context(format!("ending {}", container.shown()))),
            // It has just ended: there is nothing left to be told.
            Err(error) => tracing::debug!("{error:#}"),
            Ok(()) => {}
        }
    }
    running.into_iter().map(|(container, client)| wait(containers, &container, client)).collect()
}

/// Waits until the container is over: the process that ran it is gone, and its lock free.
fn wait(containers: &Containers, container: &Container, client: Client) -> Result<Stopped> {
    client.wait_for_end()?;
    // Its last processes hold the lock as well. If someone starts it anew meanwhile, it is over, too.
    let supervisor = containers.owner(container);
    let begun = Instant::now();
    while containers.is_running(container) && containers.owner(container) == supervisor {
        if begun.elapsed() > END_LIMIT {
            bail!("{} has not ended; `turbo kill {}` ends it", container.shown(), container.name);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let now = containers.reload(container)?;
    Ok(Stopped {
        container: container.id.clone(),
        name: container.name.clone(),
        state: now.as_ref().and_then(|now| now.states.last()).map(|state| state.id.to_string()),
        exit_code: now.as_ref().and_then(|now| now.exit_code),
        deleted: now.is_none(),
    })
}

/// Prints what was ended, and how to go on.
pub fn report(app: &App, stopped: &[Stopped]) -> Result<Exit> {
    app.output.result(&stopped, |out| {
        for one in stopped {
            let shown = format!("{}#{}", one.name, &one.container[..8]);
            match &one.state {
                Some(state) => writeln!(out, "{shown}  {state}")?,
                None => writeln!(out, "{shown}")?,
            }
        }
        Ok(())
    })?;
    for state in stopped.iter().filter_map(|one| one.state.as_deref()) {
        hint(state);
    }
    Ok(Exit::Success)
}

/// Says how a state is gone on from.
pub fn hint(state: &str) {
    let digits = state.rsplit(':').next().unwrap_or(state);
    note(format!("To go on from this state: turbo continue {}", &digits[..digits.len().min(8)]));
}
