//! Push and pull of a state: its manifest, and all that its sandbox needs. Its images are images like others, and do not
//! travel with it.

use layer_format::Digest;
use layer_format::manifest::{Manifest, StateManifest};
use layer_format::reference::Repository;

use super::pull::{DAMAGE_ROUNDS, Pull};
use super::push::{Push, ROUNDS};
use super::{Phase, TransferError, TransferOptions, TransferReport, blocking};
use crate::origin::OriginError;
use crate::remote::Registry;
use crate::store::Store;

/// A state that was brought here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledState {
    /// Its id.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: StateManifest,
    /// What its container was called where it was pushed from.
    pub container: Option<String>,
    /// What travelled.
    pub report: TransferReport,
}

/// Sends a state of the local store, and what the registry lacks of its sandbox, to a repository. `container` is a name for
/// people. A state that is there already costs one small request.
///
/// # Errors
/// [`TransferError`]. Packs that arrived stay there for a while: the same call goes on from there.
pub async fn push_state(
    store: &Store,
    registry: &Registry,
    repository: &Repository,
    state: &Digest,
    container: Option<&str>,
    options: &TransferOptions,
) -> Result<TransferReport, TransferError> {
    let (hold, found) = {
        let (store, state) = (store.clone(), *state);
        blocking(move || Ok((store.hold()?, store.state_get(&state)?))).await?
    };
    let name = format!("state {}", state.short());
    let found = found.ok_or_else(|| TransferError::NotLocal { image: name.clone() })?;
    let mut push = Push::new(store, registry, repository, name, *state, options);
    options.progress.phase(Phase::Manifest, None);
    let requests = &mut push.report.requests;
    let known = options.retry.run(|| {
        *requests += 1;
        registry.has_state(repository, state)
    });
    if !known.await? {
        for round in 1.. {
            push.send_layers(&[found.manifest.sandbox]).await?;
            options.progress.phase(Phase::Commit, None);
            let requests = &mut push.report.requests;
            let put = options.retry.run(|| {
                *requests += 1;
                registry.put_state(repository, state, found.bytes.clone(), container)
            });
            match put.await {
                // Its garbage collection was faster.
                Err(OriginError::Refused { code, .. }) if code == "OBJECTS_MISSING" && round < ROUNDS => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
    }
    drop(hold);
    Ok(push.report)
}

/// Brings here the state of a repository whose id starts with these hex digits, with what is not here of its sandbox.
///
/// # Errors
/// [`TransferError`]. Then no state is kept, and what had arrived stays: the same call goes on from there.
pub async fn pull_state(
    store: &Store,
    registry: &Registry,
    repository: &Repository,
    prefix: &str,
    options: &TransferOptions,
) -> Result<PulledState, TransferError> {
    let mut pull = Pull::new(store, registry, repository, format!("state {prefix}"), options);
    options.progress.phase(Phase::Manifest, None);
    let requests = &mut pull.report.requests;
    let remote = options.retry.run(|| {
        *requests += 1;
        registry.get_state(repository, prefix)
    });
    let remote = remote.await?;
    let manifest = StateManifest::decode(&remote.bytes).map_err(|source| TransferError::Format { digest: remote.digest, source })?;
    pull.report.digest = remote.digest;
    let hold = pull.hold().await?;
    // Each time what was found damaged is forgotten, and so fetched by the next.
    let mut left = DAMAGE_ROUNDS;
    while let Err(error) = pull.layers(&[manifest.sandbox]).await {
        match error {
            TransferError::LocalDamage { .. } if left > 0 => left -= 1,
            error => return Err(error),
        }
    }
    options.progress.phase(Phase::Commit, None);
    let (store, bytes) = (store.clone(), remote.bytes);
    blocking(move || Ok(store.state_put(&bytes)?)).await?;
    drop(hold);
    let report = pull.finish().await?;
    Ok(PulledState { digest: remote.digest, manifest, container: remote.container, report })
}
