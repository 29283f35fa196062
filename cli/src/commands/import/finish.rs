//! The end of an import: rules checked against the tree, manifests stored, the image named, the result told.

use anyhow::{Result, bail};
use chunker::Imported;
use client_store::Store;
use client_store::store::ImageOrigin;
use layer_format::Digest;
use layer_format::entry::Kind;
use layer_format::manifest::{FileMode, ImageManifest, IsolationRule, LayerManifest, Manifest, Mode};
use layer_format::reference::ImageReference;
use serde::Serialize;

use super::stated::Stated;
use crate::app::App;
use crate::exit::{Exit, UsageError};
use crate::images::{is_root_filesystem, lookup, put_layer};
use crate::output::{bytes, note};

/// What is printed.
#[derive(Debug, Serialize)]
struct Done<'a> {
    image: String,
    digest: Digest,
    entries: u64,
    bytes: u64,
    new_objects: u64,
    new_bytes: u64,
    stored_bytes: u64,
    skipped: Vec<String>,
    #[serde(flatten)]
    details: &'a Details,
}

/// What an import of a certain kind has to tell besides.
#[derive(Debug, Default, Serialize)]
pub(super) struct Details {
    /// Packages, lowest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) packages: Vec<serde_json::Value>,
    /// Files that several packages have: the path, and the packages, of which the last has it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) conflicts: Vec<(String, Vec<String>)>,
    /// Files of a directory that were opened and read; the others are those of an earlier import.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) files_read: Option<u64>,
}

/// Names the image, if all that it states makes sense for what was imported. Before that nothing is to be seen of it.
pub(super) fn finish(app: &App, name: &ImageReference, imported: Imported, stated: Stated, details: Details) -> Result<Exit> {
    let store = app.store()?;
    let Stated { image, mut layer, .. } = stated;
    (layer.root, layer.entries, layer.bytes) = (imported.root, imported.entries, imported.bytes);
    if !layer.isolation.iter().any(|rule| rule.path == "/") && is_root_filesystem(&store, imported.root)? {
        note("this is a whole root filesystem: the host is hidden (--isolate /=full)");
        layer.isolation.push(IsolationRule { path: "/".into(), mode: Mode::Full });
    }
    complete(app, name, image, vec![layer], imported, details)
}

/// The same with several layers, lowest first; `imported` is what is told of all of them.
pub(super) fn complete(
    app: &App,
    name: &ImageReference,
    mut image: ImageManifest,
    layers: Vec<LayerManifest>,
    imported: Imported,
    details: Details,
) -> Result<Exit> {
    let store = app.store()?;
    for layer in &layers {
        check_rules(&store, layer)?;
    }
    image.layers = layers.iter().map(|layer| put_layer(&store, layer)).collect::<Result<_>>()?;
    let digest = store.image_put(name, &image.encode()?, ImageOrigin::Imported)?;
    let skipped: Vec<String> = imported.skipped.iter().map(|skipped| format!("{}: {}", skipped.path, skipped.reason)).collect();
    for line in &skipped {
        note(format!("left out: {line}"));
    }
    let Imported { entries, bytes: size, new_objects, new_bytes, stored_bytes, .. } = imported;
    let done = Done { image: name.to_string(), digest, entries, bytes: size, new_objects, new_bytes, stored_bytes, skipped, details: &details };
    app.output.result(&done, |out| {
        writeln!(out, "{} {}", done.image, digest.short())?;
        writeln!(out, "{entries} entries, {}; new: {} in {new_objects} objects, {} stored", bytes(size), bytes(new_bytes), bytes(stored_bytes))
    })?;
    Ok(Exit::Success)
}

/// A rule for folders must not name a file of the tree, nor the other way round.
fn check_rules(store: &Store, layer: &LayerManifest) -> Result<()> {
    let is_folder = |path: &str| -> Result<Option<bool>> {
        let found = lookup(store, layer.root, path.trim_matches('/'))?;
        Ok(found.map(|entry| matches!(entry.kind, Kind::Directory { .. })))
    };
    for rule in &layer.isolation {
        if is_folder(&rule.path)? == Some(false) {
            bail!(UsageError(format!("{} is not a folder of the image: --isolate is for folders, --file-mode for single files", rule.path)));
        }
    }
    for rule in &layer.files {
        match is_folder(&rule.path)? {
            Some(true) => bail!(UsageError(format!("{} is a folder of the image: --file-mode is for single files, --isolate for folders", rule.path))),
            None if rule.mode == FileMode::Defaulted => {
                note(format!("{} is not in this image: another one of the stack has to bring what is placed on the host", rule.path));
            }
            _ => {}
        }
    }
    for rule in layer.attributes.iter().filter(|rule| rule.attributes.no_upgrade) {
        if is_folder(&rule.path)? != Some(false) {
            bail!(UsageError(format!("{} is not a file of the image: no-upgrade keeps a file of this image from being replaced", rule.path)));
        }
    }
    Ok(())
}
