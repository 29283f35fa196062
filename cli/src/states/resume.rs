//! A container that goes on from a state.

use std::path::Path;

use anyhow::{Context, Result};
use chunker::RestoreOptions;
use client_store::Store;
use client_store::store::StoredState;
use layer_format::manifest::StateManifest;
use layer_format::reference::{ImageReference, Revision};

use crate::app::App;
use crate::containers::{ContainerState, Locked, now_s};
use crate::images;
use crate::output::note;
use crate::progress::Bar;
use crate::sink::StoreSource;

/// Makes a container that is in this state, named `name`, or that with a number if it is taken and `exact` is not set. The
/// caller holds the store's content.
///
/// # Errors
/// If the state's sandbox cannot be restored; then there is no container.
pub fn create(app: &App, store: &Store, state: &StoredState, name: Option<&str>, exact: bool) -> Result<Locked> {
    let manifest = &state.manifest;
    let images = pinned(manifest)?;
    let containers = app.containers();
    let names = containers.lock_names()?;
    let wanted = name.map_or_else(|| default_name(&images), str::to_owned);
    let free = containers.free_name(&wanted)?;
    if exact && free != wanted {
        anyhow::bail!("there is a container `{wanted}` already; choose another --name, or `turbo rm` it");
    }
    // By digest: a name may mean another image by now, or on this machine. What depends on others names them itself.
    let direct = manifest.images.iter().zip(&images).filter(|(image, _)| !image.dependency).map(|(_, pinned)| pinned.to_string());
    let locked = containers.create_filled(&free, direct.collect(), false, |locked| {
        restore(store, manifest, &locked.folder)?;
        let container = &mut locked.container;
        container.settings.clone_from(&manifest.settings);
        container.stack.clone_from(&manifest.images);
        container.states.push(ContainerState { id: state.digest, taken_s: now_s(), saved: false });
        Ok(())
    });
    drop(names);
    locked.with_context(|| format!("a container could not be made of state {}", state.digest.short()))
}

/// The images of a state by digest, lowest first.
fn pinned(manifest: &StateManifest) -> Result<Vec<ImageReference>> {
    let pin = |image: &layer_format::manifest::StateImage| {
        let reference: ImageReference = image.reference.parse()?;
        Ok(ImageReference { repository: reference.repository, revision: Revision::Digest(image.digest) })
    };
    manifest.images.iter().map(pin).collect()
}

/// The name of the first image's repository, without its namespace.
fn default_name(images: &[ImageReference]) -> String {
    let first = images.first().map(|image| image.repository.as_str()).unwrap_or("container");
    first.rsplit('/').next().unwrap_or_default().to_owned()
}

fn restore(store: &Store, manifest: &StateManifest, folder: &Path) -> Result<()> {
    let layer = images::layer(store, &manifest.sandbox).context("the state's sandbox is not whole here; `turbo verify` tells more")?;
    let bar = Bar::spinner("restoring");
    let options = RestoreOptions { folder, max_bytes: layer.bytes };
    let restored = chunker::restore(layer.root, &StoreSource(store), &folder.join("sandbox/upper"), &options, &bar);
    drop(bar);
    let restored = restored.context("restoring what was written (if the disk is full, make room)")?;
    for skipped in &restored.skipped {
        note(format!("not restored: {}: {}", skipped.path, skipped.reason));
    }
    Ok(())
}
