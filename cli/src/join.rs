//! Starting a program in a container that runs.
//!
//! The turbo that runs the container invites: it says how to enter the VM and what the images state, and keeps the container
//! up as long as the connection lasts. Program, environment and working directory are found as for a first start; the host's
//! part of the environment is that of whoever joins.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use layer_format::manifest::{EnvIsolation, EnvVar, ImageManifest};
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::containers::Container;
use crate::control::client::Client;
use crate::control::{Invitation, Op};
use crate::detach::Background;
use crate::environment;
use crate::exit::Exit;
use crate::launch::{Launch, exit_of, working_dir};
use crate::stack::Role;
use crate::startup::{self, Candidate, Wish};

/// What a run knows that determines how another program is started beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// Role and manifest of each image, lowest first.
    pub images: Vec<(Role, ImageManifest)>,
    /// Variables of each layer, and which of the host's it keeps out, lowest first.
    pub variables: Vec<(Vec<EnvVar>, EnvIsolation)>,
    /// Variables of the container.
    pub environment: Vec<(String, String)>,
    /// Program and arguments that the container starts in place of the images'.
    pub startup_file: Option<Vec<String>>,
    /// How much of the host's environment there is.
    pub host: environment::Host,
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
    let images: Vec<_> = described.images.iter().map(|(role, manifest)| Candidate { role: *role, manifest }).collect();
    let wish = Wish { startup_file: file, trigger: launch.trigger.as_deref(), args: &launch.args, host_visible: described.host.visible };
    let startup = startup::choose(&images, &wish)?;
    if !startup.beside.is_empty() {
        bail!("the group has several startup files; they start together, with the container");
    }
    let layers: Vec<_> = described.variables.iter().map(|(variables, isolation)| environment::Stated { variables, isolation }).collect();
    let variables = described.environment.iter().chain(&launch.env).map(|(name, value)| (name, value));
    let first_named = || images.iter().position(|image| image.role == Role::Image).unwrap_or(0);
    let from_image = images.get(startup.image.unwrap_or_else(first_named)).and_then(|image| image.manifest.working_directory.clone()).map(PathBuf::from);
    let (working_dir, working_dir_required) = working_dir(launch.working_dir.clone().or(from_image), described.host.visible);
    Ok(vm::JoinSpec {
        vm,
        command: startup.command.iter().map(OsString::from).collect(),
        env: environment::compose(std::env::vars_os(), &layers, variables, described.host),
        working_dir,
        working_dir_required,
        since,
    })
}
