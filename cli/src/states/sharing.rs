//! States on the registry: which repository they are in, saving, finding and fetching.
//!
//! A client's states are private: they are in a repository of the user who is logged in, or else one whose name is made from the
//! client's token, so that nobody else's prefix finds them. Public ones are in a repository that is the same for all.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use client_store::remote::Registry;
use client_store::remote::retry::RetryPolicy;
use client_store::store::StoredState;
use client_store::transfer::{TransferError, TransferReport, pull_state, push_state};
use client_store::{OriginError, Store};
use layer_format::Digest;
use layer_format::api::MIN_STATE_PREFIX_LEN;
use layer_format::manifest::StateImage;
use layer_format::reference::{ImageReference, Repository, Revision};

use crate::app::App;
use crate::config::{Authority, Settings};
use crate::progress::options;

/// What a client's own repository is named from, together with the token.
const OWNER_DOMAIN: &[u8] = b"turbo state owner";

/// Who can go on from a state that was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Whoever has the same token.
    #[default]
    Private,
    /// Everyone who may use the registry.
    Public,
}

impl Visibility {
    /// The repository of such states.
    pub fn repository(self, settings: &Settings) -> Result<Repository> {
        let name = match self {
            Self::Public => "states-public/default".to_owned(),
            Self::Private => owner(&settings.authority()?),
        };
        name.parse().context("the name of the repository for states")
    }

    /// As lists show it.
    pub fn shown(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Public => "public",
        }
    }
}

/// The repository of a user, or of the holder of a token.
fn owner(authority: &Authority) -> String {
    match authority {
        Authority::None => "states-anonymous/default".to_owned(),
        Authority::Login { name, .. } => format!("states-of-{name}/default"),
        Authority::Token(token) => format!("states-{}/default", &Digest::of(&[OWNER_DOMAIN, token.as_bytes()].concat()).to_hex()[..32]),
    }
}

/// How long a registry is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Someone asked for it.
    Asked,
    /// An application has ended, and someone may be waiting for its exit code.
    AtExit,
}

/// Saves a state of the local store to the registry.
///
/// # Errors
/// If the registry lacks one of its images: all are named, with the remedy.
pub fn push(app: &App, store: &Store, state: &Digest, container: &str, visibility: Visibility, patience: Patience) -> Result<TransferReport> {
    let registry = app.registry()?;
    let found = store.state_get(state)?.with_context(|| format!("state {} is not here any more", state.short()))?;
    let mut transfer = options("saving the state");
    if patience == Patience::AtExit {
        transfer.retry = RetryPolicy { attempts: 2, first_pause: Duration::from_millis(200), longest_pause: Duration::from_secs(1) };
    }
    let repository = visibility.repository(&app.settings)?;
    let pushed = app.block_on(async {
        let missing = missing_images(&registry, &found.manifest.images).await?;
        if !missing.is_empty() {
            let commands: Vec<String> = missing.iter().map(|image| format!("\n  turbo push {image}")).collect();
            bail!("the registry lacks images of this state, without which no one can go on from it; push them first:{}", commands.concat());
        }
        Ok(push_state(store, &registry, &repository, state, Some(container), &transfer).await?)
    })?;
    pushed.with_context(|| format!("state {} was not saved to {}", state.short(), app.settings.hub))
}

/// Those of the images that the registry does not have.
async fn missing_images(registry: &Registry, images: &[StateImage]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for image in images {
        let reference: ImageReference = image.reference.parse()?;
        let by_digest = ImageReference { repository: reference.repository, revision: Revision::Digest(image.digest) };
        match registry.head(&by_digest).await {
            Ok(_) => {}
            Err(OriginError::NotFound { .. }) if !missing.contains(&image.reference) => missing.push(image.reference.clone()),
            Err(OriginError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(missing)
}

/// A state that is here now, and what its container was called elsewhere.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub state: StoredState,
    pub container: Option<String>,
}

/// Fetches the state that starts with these digits: one of this client's, else a public one. What is here already does not
/// travel. The caller holds the store's content until a container lists the state.
///
/// # Errors
/// If there is none, or more than one.
pub fn fetch(app: &App, store: &Store, prefix: &str) -> Result<Fetched> {
    if prefix.len() < MIN_STATE_PREFIX_LEN {
        bail!("no state here starts with `{prefix}`; to look on the registry, give at least {MIN_STATE_PREFIX_LEN} digits");
    }
    let registry = app.registry()?;
    for visibility in [Visibility::Private, Visibility::Public] {
        let repository = visibility.repository(&app.settings)?;
        match app.block_on(pull_state(store, &registry, &repository, prefix, &options("fetching the state")))? {
            Ok(pulled) => {
                let state = store.state_get(&pulled.digest)?.context("the state that was just fetched is gone")?;
                return Ok(Fetched { state, container: pulled.container });
            }
            Err(TransferError::Origin(OriginError::NotFound { what, .. })) if what.starts_with("state ") => {}
            Err(TransferError::Origin(OriginError::Refused { code, message, .. })) if code == "STATE_AMBIGUOUS" => {
                bail!("`{prefix}` is the start of more than one state on {}: {message}", app.settings.hub)
            }
            Err(error) => return Err(error).with_context(|| format!("state {prefix} could not be fetched from {}", app.settings.hub)),
        }
    }
    bail!("there is no state that starts with `{prefix}`, neither here nor among yours and the public ones on {}; `turbo states` lists them", app.settings.hub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_have_repositories_of_their_own() {
        let token = |text: &str| owner(&Authority::Token(text.into()));
        let (one, other) = (token("one"), token("other"));
        assert_ne!(one, other);
        let user = owner(&Authority::Login { name: "alice".into(), secret: "x".into() });
        for name in [&one, &other, &user, &owner(&Authority::None)] {
            let repository: Repository = name.parse().unwrap();
            assert_eq!(repository.as_str(), name);
        }
        assert!(!one.contains("one") && one.len() == "states-".len() + 32 + "/default".len());
        // The registry computes the same: registry/src/service/access/secret.rs has this line, too.
        assert_eq!(token("a token"), format!("states-{}/default", &Digest::of(b"turbo state ownera token").to_hex()[..32]));
    }
}
