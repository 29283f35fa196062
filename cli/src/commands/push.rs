//! `turbo push`.

use anyhow::{Context, Result, bail};
use client_store::transfer::{TransferReport, push};
use client_store::{OriginError, Store};
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::dependencies::{Request, follow};
use crate::exit::Exit;
use crate::image_sources::{LocalSource, RegistrySource};
use crate::images;
use crate::output::bytes;
use crate::progress::options;
use crate::stack::Role;

/// Send an image to the registry; only what it lacks travels. What the image depends on must be there.
#[derive(Debug, clap::Args)]
pub struct Push {
    /// The image here.
    image: ImageReference,
    /// Its name there [default: the same].
    remote: Option<ImageReference>,
    /// Push first what it depends on, is here, and the registry lacks.
    #[arg(long)]
    with_dependencies: bool,
}

impl Push {
    /// Pushes. Repeating a push that was cut goes on where it was.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        let image = images::find(&store, &self.image)?;
        let mut first = Vec::new();
        if !image.manifest.dependencies.is_empty() {
            if self.with_dependencies {
                first = self.push_dependencies(app, &store)?;
            }
            self.check_dependencies(app, &store)?;
        }
        let remote = self.remote.clone().unwrap_or_else(|| self.image.clone());
        let pushed = send(app, &store, &self.image, &remote)?;
        let json = |image: &ImageReference, pushed: &TransferReport| {
            serde_json::json!({"image": image, "digest": pushed.digest, "objects": pushed.moved_objects, "bytes": pushed.moved_bytes,
                "packs": pushed.packs, "requests": pushed.requests})
        };
        let mut value = json(&remote, &pushed);
        value["dependencies"] = first.iter().map(|(image, pushed)| json(image, pushed)).collect();
        app.output.result(&value, |out| {
            first.iter().chain([&(remote, pushed)]).try_for_each(|(image, pushed)| match pushed.moved_objects {
                0 => writeln!(out, "{image} {}: the registry has all of it", pushed.digest.short()),
                count => writeln!(out, "{image} {}: {count} objects, {} sent", pushed.digest.short(), bytes(pushed.moved_bytes)),
            })
        })?;
        Ok(Exit::Success)
    }

    /// Refuses if the registry lacks something that the image needs, and names all of it.
    fn check_dependencies(&self, app: &App, store: &Store) -> Result<()> {
        let named = std::slice::from_ref(&self.image);
        let source = RegistrySource::new(store, named, false, app.registry()?, app.runtime()?.handle().clone());
        let graph = follow(&source, &Request { images: named, ..Request::default() })?;
        let mut lines = Vec::new();
        for missing in graph.missing {
            // What could not be asked is not known to be missing.
            match missing.error.downcast_ref::<OriginError>() {
                Some(OriginError::NotFound { .. }) | None => lines.push(format!("\n  {}", missing.wanted)),
                Some(_) => return Err(missing.error.context(format!("{} could not be asked for {}", app.settings.hub, missing.wanted))),
            }
        }
        if !lines.is_empty() {
            let hint = if self.with_dependencies { "they are not here either" } else { "push them first, or say --with-dependencies" };
            bail!("{} is not pushed, since {} lacks what it depends on ({hint}):{}", self.image, app.settings.hub, lines.concat());
        }
        Ok(())
    }

    /// Pushes dependencies that are here, lowest first. A name that the registry has is left as it is there.
    fn push_dependencies(&self, app: &App, store: &Store) -> Result<Vec<(ImageReference, TransferReport)>> {
        let named = std::slice::from_ref(&self.image);
        let graph = follow(&LocalSource(store), &Request { images: named, ..Request::default() })?;
        let registry = app.registry()?;
        let mut pushed = Vec::new();
        for node in graph.nodes.iter().filter(|node| node.role == Role::Dependency) {
            match app.block_on(registry.head(&node.reference))? {
                Ok(_) => {}
                Err(OriginError::NotFound { .. }) => pushed.push((node.reference.clone(), send(app, store, &node.reference, &node.reference)?)),
                Err(error) => return Err(error).with_context(|| format!("{} could not be asked for {}", app.settings.hub, node.reference)),
            }
        }
        Ok(pushed)
    }
}

fn send(app: &App, store: &Store, image: &ImageReference, remote: &ImageReference) -> Result<TransferReport> {
    let pushed = app.block_on(push(store, &app.registry()?, image, remote, &options("pushing")))?;
    pushed.with_context(|| format!("{image} was not pushed to {}", app.settings.hub))
}
