//! What of a trace is learned and kept: touches that can have happened in the image, by names that the image has.
//!
//! * A read is learned if the file is there and has that bucket.
//! * A lookup is learned by the path that it found. One that found nothing says which tree object answered, and is
//!   learned by an entry of that object: the name that was looked for may be one of the user's, and is of no use.
//! * The entry point is learned by name if the manifest states it or the image has the program; else by its hash.
//!
//! So no name gets into a model, or is kept, that is not in the image anyway.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use layer_format::LayerPath;
use layer_format::entry::Kind;
use layer_format::manifest::ImageManifest;
use layer_format::trace::{BUCKET_LEN, Event, Touch, Trace, foreign_entry_point};

use super::frames::ReadError;
use super::nodes::{NodeError, Nodes};
use super::resolve::Layers;
use crate::db::namespace::NamespaceId;

/// The layers of an image; those behind one that cannot be read are left out.
pub(crate) async fn layers_of(nodes: &Arc<Nodes>, namespace: NamespaceId, manifest: &ImageManifest) -> Result<Layers, ReadError> {
    let mut roots = Vec::with_capacity(manifest.layers.len());
    for layer in &manifest.layers {
        match nodes.layer(namespace, *layer, None).await.map_err(NodeError::into_outage) {
            Ok(layer) => roots.push(layer.root),
            Err(Some(outage)) => return Err(outage),
            Err(None) => break,
        }
    }
    Ok(Layers { nodes: Arc::clone(nodes), namespace, roots })
}

/// What a layer has of a path.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Length of the file; 0 of anything else, and of nothing.
    pub(crate) file_len: u64,
    /// An entry that stands for the path: see [`Layers::look`].
    pub(crate) stand_in: Option<LayerPath>,
}

impl Known {
    pub(crate) async fn look(layers: &Layers, layer: usize, path: &LayerPath) -> Result<Self, ReadError> {
        match layers.look(layer, path).await.map_err(NodeError::into_outage) {
            Ok((entry, stand_in)) => {
                let file_len = entry.filter(|entry| matches!(entry.kind, Kind::File(_))).map_or(0, |entry| entry.len());
                Ok(Self { file_len, stand_in })
            }
            Err(Some(outage)) => Err(outage),
            Err(None) => Ok(Self { file_len: 0, stand_in: None }),
        }
    }

    /// Under which path the touch of `path` is known; `None` if it cannot have happened.
    pub(crate) fn touched<'a>(&'a self, path: &'a LayerPath, touch: Touch) -> Option<&'a LayerPath> {
        match touch {
            Touch::Meta => self.stand_in.as_ref(),
            Touch::Data { bucket } => (u64::from(bucket) * BUCKET_LEN < self.file_len).then_some(path),
        }
    }
}

/// The trace as it is learned: see the module. Each touch once, in the order of the first.
pub(crate) async fn plausible(layers: &Layers, manifest: &ImageManifest, trace: &Trace) -> Result<Trace, ReadError> {
    let mut known: HashMap<(u8, u32), Known> = HashMap::new();
    let (mut paths, mut events): (Vec<LayerPath>, Vec<Event>) = (Vec::new(), Vec::new());
    let mut numbers: HashMap<LayerPath, u32> = HashMap::new();
    let mut touched: HashSet<(u8, u32, Touch)> = HashSet::new();
    for event in &trace.events {
        let Some(path) = trace.paths.get(event.path as usize) else { continue };
        let key = (event.layer, event.path);
        let known = match known.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Known::look(layers, event.layer.into(), path).await?),
        };
        let Some(path) = known.touched(path, event.touch) else { continue };
        let number = match numbers.get(path) {
            Some(number) => *number,
            None => {
                let number = paths.len() as u32;
                paths.push(path.clone());
                numbers.insert(path.clone(), number);
                number
            }
        };
        if touched.insert((event.layer, number, event.touch)) {
            events.push(Event { path: number, ..*event });
        }
    }
    let entry_point = entry_point(layers, manifest, &trace.entry_point).await?;
    Ok(Trace { entry_point, paths, events, ..trace.clone() })
}

async fn entry_point(layers: &Layers, manifest: &ImageManifest, name: &str) -> Result<String, ReadError> {
    let is_stated = |name: &str| {
        manifest.startup_files.iter().any(|file| file.command.first().is_some_and(|program| program == name) || file.trigger.as_deref() == Some(name))
    };
    Ok(match name.is_empty() || is_stated(name) || layers.has_program(name).await? {
        true => name.to_owned(),
        false => foreign_entry_point(name),
    })
}
