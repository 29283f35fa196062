//! `turbo pull`.

use anyhow::{Context, Result};
use client_store::Store;
use client_store::transfer::{TransferReport, pull};
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::commands::checkout::CheckoutOptions;
use crate::commands::launch_options::{Images, parse_images};
use crate::dependencies::{Request, follow, missing_error};
use crate::exit::Exit;
use crate::image_sources::RegistrySource;
use crate::images;
use crate::output::{bytes, note};
use crate::progress::options;
use crate::stack::Role;

/// Bring whole images here, and what they depend on; only what is not here travels.
#[derive(Debug, clap::Args)]
pub struct Pull {
    /// Images, separated by commas.
    #[arg(value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    images: Images,
    /// Leave out what they depend on.
    #[arg(long)]
    no_dependencies: bool,
    #[command(flatten)]
    checkout: CheckoutOptions,
}

struct Pulled {
    image: ImageReference,
    report: TransferReport,
    dependency: bool,
}

impl Pull {
    /// Pulls. Repeating a pull that was cut goes on where it was.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        self.checkout.check(&self.images.0)?;
        if self.checkout.is_offline() {
            return self.checkout.run(app, &store, &self.images.0);
        }
        let mut results = Vec::new();
        for image in &self.images.0 {
            results.push(fetch(app, &store, image, false)?);
        }
        if self.checkout.is_wanted() {
            return self.checkout.run(app, &store, &self.images.0);
        }
        if !self.no_dependencies {
            for image in dependencies(app, &store, &self.images.0)? {
                results.push(fetch(app, &store, &image, true)?);
            }
        }
        let json = |Pulled { image, report, dependency }: &Pulled| {
            serde_json::json!({"image": image, "digest": report.digest, "objects": report.moved_objects, "bytes": report.moved_bytes,
                "requests": report.requests, "dependency": dependency})
        };
        let value: Vec<_> = results.iter().map(json).collect();
        app.output.result(&value, |out| {
            results.iter().try_for_each(|Pulled { image, report, dependency }| {
                let why = if *dependency { ", a dependency" } else { "" };
                match report.moved_objects {
                    0 => writeln!(out, "{image} {}{why}: all of it is here", report.digest.short()),
                    count => writeln!(out, "{image} {}{why}: {count} objects, {}", report.digest.short(), bytes(report.moved_bytes)),
                }
            })
        })?;
        Ok(Exit::Success)
    }
}

/// Brings these images, and what they depend on; those that are here as a whole make no request.
pub fn bring(app: &App, images: &[ImageReference]) -> Result<()> {
    let store = app.store()?;
    let mut pulled = Vec::new();
    for image in images {
        let known = store.image_get(image)?;
        if !known.map(|known| store.image_is_complete(&known.digest)).transpose()?.unwrap_or(false) {
            fetch(app, &store, image, false)?;
            pulled.push(image.clone());
        }
    }
    for image in dependencies(app, &store, &pulled)? {
        fetch(app, &store, &image, true)?;
    }
    Ok(())
}

fn fetch(app: &App, store: &Store, image: &ImageReference, dependency: bool) -> Result<Pulled> {
    let report = app.block_on(pull(store, &app.registry()?, image, &options("pulling")))?;
    let report = report.with_context(|| format!("{image} was not pulled from {}", app.settings.hub))?;
    Ok(Pulled { image: image.clone(), report, dependency })
}

/// What these images, which are here, depend on and the registry has, lowest first. Makes no request if that is nothing.
fn dependencies(app: &App, store: &Store, named: &[ImageReference]) -> Result<Vec<ImageReference>> {
    let mut any = false;
    for image in named {
        any |= !images::find(store, image)?.manifest.dependencies.is_empty();
    }
    if !any {
        return Ok(Vec::new());
    }
    let source = RegistrySource::new(store, named, true, app.registry()?, app.runtime()?.handle().clone());
    let graph = follow(&source, &Request { images: named, remote_first: true, ..Request::default() })?;
    if !graph.missing.is_empty() {
        return Err(missing_error(&graph.missing));
    }
    graph.notes.iter().for_each(note);
    Ok(graph.nodes.into_iter().filter(|node| node.role == Role::Dependency && node.image.on_registry).map(|node| node.reference).collect())
}
