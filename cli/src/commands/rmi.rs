//! `turbo rmi`.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use client_store::Store;
use client_store::store::ImageInfo;
use layer_format::reference::{HEAD, ImageReference};

use crate::app::App;
use crate::containers::Container;
use crate::exit::{Exit, UsageError};
use crate::output::{bytes, note};

/// Remove images from this machine. Their data goes with the next `turbo gc`, unless other images need it.
#[derive(Debug, clap::Args)]
pub struct Rmi {
    /// Images.
    images: Vec<ImageReference>,
    /// Remove all images.
    #[arg(short, long, conflicts_with = "images")]
    all: bool,
    /// Remove also what containers use, and what no registry has.
    #[arg(short, long)]
    force: bool,
}

impl Rmi {
    /// Removes them; all are checked before any is removed.
    pub fn run(self, app: &App) -> Result<Exit> {
        if self.images.is_empty() && !self.all {
            bail!(UsageError("name an image, or say --all; `turbo images` lists them".into()));
        }
        let store = app.store()?;
        let infos = store.images()?;
        let mut wanted = self.images;
        if self.all {
            wanted = infos.iter().flat_map(|info| &info.names).map(|name| name.parse()).collect::<Result<_, _>>()?;
        }
        let containers = app.containers().list()?;
        for image in &wanted {
            let found = store.image_get(image)?.with_context(|| format!("the image {image} is not here; `turbo images` lists what is"))?;
            // What a container depends on is as much a part of it as what was named.
            let parts = |container: &Container| container.images.iter().chain(container.stack.iter().map(|part| &part.reference)).cloned().collect::<Vec<_>>();
            let user = containers.iter().find(|container| parts(container).iter().any(|name| name.parse::<ImageReference>().as_ref() == Ok(image)));
            if let Some(container) = user.filter(|_| !self.force) {
                bail!("the container {} uses {image}; `turbo rm` it first, or say --force", container.shown());
            }
            let only_copy = infos.iter().any(|info| info.digest == found.digest && !info.on_registry);
            if only_copy && self.all && !self.force {
                bail!("{image} was never pushed: this may be the only copy; name it, or say --force");
            }
        }
        let frees = frees(&store, &infos, &wanted)?;
        let mut removed = Vec::new();
        for image in &wanted {
            removed.extend(store.image_remove(image)?);
        }
        app.output.result(&removed, |out| removed.iter().try_for_each(|name| writeln!(out, "{name}")))?;
        match frees {
            Some(0) => note("other images, or a cache that the limit bounds, hold all of that: `turbo gc` frees nothing more"),
            Some(count) => note(format!("`turbo gc` now frees {} more", bytes(count))),
            None => {}
        }
        Ok(Exit::Success)
    }
}

/// What a gc will free more when these names are gone, if that can be said at once.
fn frees(store: &Store, infos: &[ImageInfo], names: &[ImageReference]) -> Result<Option<u64>> {
    /// Above, a walk of all images takes longer than people wait for a name to go away.
    const MAX_OBJECTS: u64 = 500_000;
    if store.stats()?.objects > MAX_OBJECTS {
        return Ok(None);
    }
    let mut going = HashSet::new();
    for name in names {
        let Some(found) = store.image_get(name)? else { continue };
        // An image stays for as long as another name leads to it; `head` is none that anyone gave.
        let others =
            infos.iter().filter(|info| info.digest == found.digest).flat_map(|info| &info.names).filter_map(|name| name.parse::<ImageReference>().ok());
        let stays = |other: &ImageReference| {
            other.release() != Some(HEAD) && !names.iter().any(|name| name == other || name.release().is_none() && name.repository == other.repository)
        };
        if !others.into_iter().any(|other| stays(&other)) {
            going.insert(found.digest);
        }
    }
    Ok(Some(store.removal_frees(&going)?))
}
