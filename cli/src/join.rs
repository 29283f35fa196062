//! Starting a program in a container that runs.
//!
//! The turbo that runs the container invites: it says how to enter the VM and what the images state, and keeps the container
//! up as long as the connection lasts. Program, environment and working directory are found as for a first start; the host's
//! part of the environment is that of whoever joins.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use layer_format::manifest::{EnvVar, ImageManifest};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::containers::Container;
use crate::control::client::Client;
use crate::control::{Invitation, Op};
use crate::detach::Background;
use crate::exit::Exit;
use crate::launch::{Launch, exit_of, working_dir};
use crate::{environment, startup};

/// What a run knows that determines how another program is started beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// Reference and manifest of each image, lowest first.
    pub images: Vec<(String, ImageManifest)>,
    /// Variables of each layer, lowest first.
    pub variables: Vec<Vec<EnvVar>>,
    /// Variables of the container.
    pub environment: Vec<(String, String)>,
    /// Program and arguments that the container starts in place of the images'.
    pub startup_file: Option<String>,
    /// Whether the application sees the host.
    pub host_visible: bool,
}

/// Asks the container in, for the program of `launch`. `None` if it has ended. While `client` lives it does not end.
pub fn accept(launch: &Launch, app: &App, client: &mut Client, container: &Container) -> Result<Option<vm::JoinSpec>> {
    let begun = Instant::now();
    for option in &launch.given {
        tracing::warn!("{} runs already: {option} has no effect on it", container.shown());
    }
    let Some(invitation) = invitation(app, client, container)? else { return Ok(None) };
    if invitation.frozen {
        bail!("{} is suspended; `turbo resume {}` first", container.shown(), container.name);
    }
    let Invitation { ticket, description, .. } = invitation;
    let vm = match ticket.hold() {
        Err(vm::VmError::Ended) => return Ok(None),
        held => held?,
    };
    // Only an answer given after it was taken hold of makes sure that the process is the VM's: the VM still stands.
    if client.status().is_err() {
        return Ok(None);
    }
    spec(launch, &description, vm, begun).map(Some)
}

/// Runs the program to its end.
pub fn run(joiner: vm::Joiner, spec: vm::JoinSpec, client: Client, background: Option<Background>) -> Result<Exit> {
    let mut running = joiner.start(spec)?;
    if let Some(background) = background {
        background.started();
    }
    let status = running.wait()?;
    // Until here, the connection keeps the container up.
    drop(client);
    Ok(exit_of(status))
}

/// `None` if the container has ended.
fn invitation(app: &App, client: &mut Client, container: &Container) -> Result<Option<Invitation>> {
    match client.ask(Op::Join) {
        Ok(invitation) => Ok(Some(invitation)),
        Err(error) if app.containers().is_running(container) && client.status().is_ok() => Err(error).with_context(|| format!("joining {}", container.shown())),
        Err(_) => Ok(None),
    }
}

fn spec(launch: &Launch, described: &Description, vm: vm::Held, since: Instant) -> Result<vm::JoinSpec> {
    let saved = || described.startup_file.as_deref().filter(|_| launch.trigger.is_none());
    let file = launch.startup_file.as_deref().or_else(saved);
    let startup = startup::choose(&described.images, file, launch.trigger.as_deref(), &launch.args, described.host_visible)?;
    let variables: Vec<_> = described.environment.iter().chain(&launch.env).cloned().collect();
    let from_image = startup.image.or(Some(0)).and_then(|at| described.images.get(at)?.1.working_directory.clone()).map(PathBuf::from);
    let (working_dir, working_dir_required) = working_dir(launch.working_dir.clone().or(from_image), described.host_visible);
    Ok(vm::JoinSpec {
        vm,
        command: startup.command.iter().map(OsString::from).collect(),
        env: environment::compose(std::env::vars_os(), &described.variables, &variables, described.host_visible),
        working_dir,
        working_dir_required,
        since,
    })
}
