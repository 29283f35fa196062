//! `turbo continue`.

use anyhow::{Context, Result, bail};
use client_store::Store;
use client_store::store::{MIN_STATE_PREFIX_LEN, StoredState};

use crate::app::App;
use crate::commands::launch_options::LaunchOptions;
use crate::commands::run::parse_name;
use crate::containers::Container;
use crate::control::client::{Reached, reach};
use crate::exit::Exit;
use crate::forks::Forks;
use crate::place::Choice;
use crate::states::{self, resume, sharing};

/// Go on from a state, in a new container.
///
/// The state may be from this machine or any other that saved it to the registry; what is not here is fetched. Any state can
/// be gone on from, not only the newest, and any number of times. Images start by digest, streamed as usual.
#[derive(Debug, clap::Args)]
pub struct Continue {
    /// First digits of a state's id (six or more; eight to find it on the registry), or a container, for its newest state.
    #[arg(value_name = "STATE|CONTAINER")]
    state: String,
    #[command(flatten)]
    options: LaunchOptions,
    /// Name of the new container [default: as the state's container, with a number if it is taken].
    #[arg(short, long, value_parser = parse_name)]
    name: Option<String>,
}

/// A state, and what its container is called.
struct Found {
    state: StoredState,
    container: Option<String>,
}

impl Continue {
    /// Runs to the end of the application.
    pub fn run(self, app: &App, forks: Forks) -> Result<Exit> {
        let offline = self.options.is_offline();
        let options = self.options.check()?;
        if let Some(id) = app.background_container() {
            // The container was made by the process that started this one.
            let choice = Choice::Existing(Box::new(app.containers().get(&id)?));
            return choice.launch(app, forks, options.detach(), |container| options.launch(container));
        }
        let store = app.store()?;
        // Until the container lists the state, a gc would take it for unused.
        let hold = store.hold()?;
        let found = find(app, &store, &self.state, offline)?;
        let wanted = self.name.as_deref().or(found.container.as_deref());
        let locked = resume::create(app, &store, &found.state, wanted, self.name.is_some())?;
        drop(hold);
        let container = locked.container.clone();
        let result = Choice::made(locked).launch(app, forks, options.detach(), |container| options.launch(container));
        if result.is_err() {
            remove_unstarted(app, &container);
        }
        result
    }
}

/// Takes away the container of a launch that did not come about: the state can be gone on from again.
fn remove_unstarted(app: &App, container: &Container) {
    if let Ok(Some(locked)) = app.containers().lock(container)
        && locked.container.exit_code.is_none()
        && locked.container.command.is_empty()
    {
        let _ = locked.remove();
    }
}

/// Finds what is meant: a container of this name, a state that is here, a container of this id, a state on the registry.
fn find(app: &App, store: &Store, text: &str, offline: bool) -> Result<Found> {
    let containers = app.containers();
    let all = containers.list()?;
    if let Some(container) = all.iter().find(|container| container.name == text) {
        return of_container(app, store, container);
    }
    let prefix = states::digits(text);
    let is_state = !prefix.is_empty() && prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && prefix.len() <= 64;
    if is_state && let Some(id) = states::only(prefix, &store.state_find(prefix)?)? {
        let state = store.state_get(&id)?.with_context(|| format!("state {} is damaged here", id.short()))?;
        if let Err(error) = crate::images::layer(store, &state.manifest.sandbox) {
            tracing::debug!("{error:#}");
        } else {
            // The oldest that came to it: those whose first state it is went on from there.
            let in_it = all.iter().rev().filter(|container| container.states.iter().any(|state| state.id == id));
            let container = in_it.min_by_key(|container| container.states.first().is_some_and(|first| first.id == id)).map(|container| container.name.clone());
            return Ok(Found { state, container });
        }
    }
    if let Some(container) = containers.find(text)? {
        return of_container(app, store, &container);
    }
    if !is_state {
        bail!("there is no container `{text}`, and it is not the start of a state's id; `turbo sessions` and `turbo states` list what there is");
    }
    if prefix.len() < MIN_STATE_PREFIX_LEN {
        bail!("`{text}` could be many states; give at least {MIN_STATE_PREFIX_LEN} digits");
    }
    if offline {
        bail!("no state here starts with `{prefix}`, and --offline forbids to look on the registry");
    }
    let sharing::Fetched { state, container } = sharing::fetch(app, store, prefix)?;
    Ok(Found { state, container })
}

fn of_container(app: &App, store: &Store, container: &Container) -> Result<Found> {
    let id = match reach(&app.containers(), container)? {
        Reached::Stopped(mut locked) => states::current(store, &mut locked)?,
        Reached::Running(_) => bail!("{} is running; `turbo save {}` takes its state, and prints what to continue", container.shown(), container.name),
    };
    let state = store.state_get(&id)?.with_context(|| format!("state {} is damaged here", id.short()))?;
    Ok(Found { state, container: Some(container.name.clone()) })
}
