//! States of containers: taken at every start and stop, and when asked for; saved to the registry; gone on from anywhere.
//!
//! A state's id is the digest of its manifest: images, sandbox, settings, and nothing else, so that equal containers have equal
//! states. A container that is not *dirty* is in its newest state: then a start finds its id without looking at the sandbox.
//! It is dirty from before the application starts until the capture after it; so a crash at any point leaves a container that is
//! captured at its next start, and all earlier states as they were.
//!
//! * [`take`] a container's state now. [`sharing`] through the registry. [`resume`] a container from a state. [`level`]: what
//!   an image made of a state states of isolation.

pub mod level;
pub mod resume;
pub mod sharing;
pub mod take;

use anyhow::{Context, Result, bail};
use client_store::Store;
use layer_format::Digest;

use crate::app::App;
use crate::containers::{ContainerState, Locked, now_s};
use crate::launch::warn;
use crate::stack::Stack;
use sharing::Visibility;
use take::Taker;

/// Most states that a container lists; older ones are forgotten, unless another container lists them.
const MAX_STATES: usize = 1000;

/// Before the application starts: notes the state that the container is in, and that it may leave it from now on. `None` for a
/// temporary container, which has no states.
///
/// # Errors
/// If that cannot be written down: a crash would then take the old state for the current one.
pub fn at_start(app: &App, store: &Store, container: &mut Locked, stack: &Stack) -> Result<Option<Taker>> {
    if container.container.temporary {
        return Ok(None);
    }
    let _hold = store.hold()?;
    let taker = Taker::at_start(app, store, container, stack);
    match taker.at_start_state(&container.container) {
        Ok(id) => note(container, id),
        Err(error) => warn::<()>("the state at this start was not captured; the container starts all the same", Err(error)),
    }
    let settings = &mut container.container;
    settings.stack.clone_from(&taker.images);
    settings.no_sync = Some(taker.no_sync_texts());
    settings.dirty = true;
    container.save().context("the container could not be marked as changed, and was not started; is the disk full?")?;
    Ok(Some(taker))
}

/// After the last program: captures the state that the container ended in, whatever the exit code, and saves it to the
/// registry if that was asked for. What fails here is a warning: the application's exit code is what counts.
pub fn at_stop(app: &App, store: &Store, container: &mut Locked, taker: &Taker, share: Option<Visibility>) {
    let captured = (|| {
        let _hold = store.hold()?;
        let id = taker.take(false)?;
        for earlier in taker.taken_meanwhile() {
            note_state(container, earlier);
        }
        note(container, id);
        container.container.dirty = false;
        container.save()?;
        Ok::<_, anyhow::Error>(id)
    })();
    let id = match captured {
        Ok(id) => id,
        Err(error) => {
            container.container.dirty = true;
            let remedy = "what the application wrote is kept, and captured at the next start or by `turbo save`";
            return warn::<()>(&format!("the state of {} was not captured ({remedy})", container.container.shown()), Err(error));
        }
    };
    tracing::info!("{} ended in state {id}", container.container.shown());
    if let Some(visibility) = share {
        let shared = sharing::push(app, store, &id, &container.container.name, visibility, sharing::Patience::AtExit);
        match shared {
            Ok(_) => note_saved(container, &id),
            Err(error) => {
                let name = &container.container.name;
                warn::<()>(&format!("state {} was not saved to the registry; `turbo save {name}` tries again", id.short()), Err(error));
            }
        }
    }
}

/// The state that a container that does not run is in; captured now if it may differ from its newest one.
///
/// # Errors
/// If it was never started, or the capture fails.
pub fn current(store: &Store, container: &mut Locked) -> Result<Digest> {
    if !container.container.dirty
        && let Some(last) = container.container.states.last()
        && store.state_get(&last.id)?.is_some()
    {
        return Ok(last.id);
    }
    if container.container.stack.is_empty() {
        bail!("{} was never started, so it has no state yet; `turbo start {}` starts it", container.container.shown(), container.container.name);
    }
    let _hold = store.hold()?;
    let taker = Taker::of_stopped(store, container);
    let id = taker.take(false).with_context(|| format!("the state of {} could not be captured", container.container.shown()))?;
    note(container, id);
    container.container.dirty = false;
    container.save()?;
    Ok(id)
}

/// Makes `id` the newest state, unless it is.
fn note(container: &mut Locked, id: Digest) {
    note_state(container, ContainerState { id, taken_s: now_s(), saved: false });
}

fn note_state(container: &mut Locked, state: ContainerState) {
    let states = &mut container.container.states;
    if states.last().is_none_or(|last| last.id != state.id) {
        states.push(state);
        let surplus = states.len().saturating_sub(MAX_STATES);
        states.drain(..surplus);
    }
}

/// Notes that the registry has a state.
pub fn note_saved(container: &mut Locked, id: &Digest) {
    for state in container.container.states.iter_mut().filter(|state| state.id == *id) {
        state.saved = true;
    }
    warn("that the state was saved could not be noted", container.save());
}

/// A state as people write it: hex digits, with or without `b3:`.
pub fn digits(text: &str) -> &str {
    text.strip_prefix("b3:").unwrap_or(text)
}

/// The only one of these states.
///
/// # Errors
/// If there are several: all are listed.
pub fn only(prefix: &str, found: &[Digest]) -> Result<Option<Digest>> {
    match found {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        many => {
            let list: Vec<String> = many.iter().map(|digest| digest.to_hex()).collect();
            bail!("`{prefix}` is the start of {} states; give more digits:\n  {}", many.len(), list.join("\n  "))
        }
    }
}
