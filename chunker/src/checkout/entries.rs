//! The entries of a stack of layers as one tree, in the order of the tree.
//!
//! The layers are scanned side by side. Of the entries of one path the highest layer's wins; what hides lower layers' entries
//! *below* a path (a whiteout, something that is not a directory, an opaque directory) is noted as the lowest layer that still
//! shows there, its floor. Parents come before what is below them, so a floor is known before it is asked for.

use std::collections::HashMap;

use layer_format::Digest;
use layer_format::entry::{Entry, Kind};
use layer_format::tree::{Node, Scan, Step};

use crate::restore::RestoreError;
use crate::source::ObjectSource;

/// The floor of what is hidden in all layers.
const NONE_SHOWS: usize = usize::MAX;

/// See the module.
pub(super) struct Entries<'a> {
    source: &'a dyn ObjectSource,
    /// Of each layer the rest of its entries, and the next one.
    layers: Vec<(Scan, Option<Entry>)>,
    /// Floors of directories in which not all layers show.
    floors: HashMap<Vec<u8>, usize>,
}

impl<'a> Entries<'a> {
    /// Of the layers with these roots, lowest first.
    pub(super) fn new(roots: &[Digest], source: &'a dyn ObjectSource) -> Result<Self, RestoreError> {
        let mut layers = Vec::with_capacity(roots.len());
        for root in roots {
            let mut scan = Scan::all(*root);
            let first = advance(&mut scan, source)?;
            layers.push((scan, first));
        }
        Ok(Self { source, layers, floors: HashMap::new() })
    }

    /// The next entry that shows, and the number of its layer.
    pub(super) fn next(&mut self) -> Result<Option<(usize, Entry)>, RestoreError> {
        loop {
            let found = match &mut self.layers[..] {
                [(scan, next)] => match next.take() {
                    Some(entry) => {
                        *next = advance(scan, self.source)?;
                        vec![(0, entry)]
                    }
                    None => return Ok(None),
                },
                layers => {
                    let Some(path) = layers.iter().filter_map(|(_, next)| next.as_ref().map(|entry| &entry.path)).min().cloned() else { return Ok(None) };
                    let mut found = Vec::new();
                    for (layer, (scan, next)) in layers.iter_mut().enumerate().rev() {
                        if let Some(entry) = next.take_if(|entry| entry.path == path) {
                            found.push((layer, entry));
                            *next = advance(scan, self.source)?;
                        }
                    }
                    found
                }
            };
            if let Some(shown) = self.shown(found) {
                return Ok(Some(shown));
            }
        }
    }

    /// What shows of the entries of one path, highest layer first.
    fn shown(&mut self, mut found: Vec<(usize, Entry)>) -> Option<(usize, Entry)> {
        if self.layers.len() > 1 {
            let path = found.first().map(|(_, entry)| entry.path.clone())?;
            let above = path.split().and_then(|(parent, _)| self.floors.get(parent)).copied().unwrap_or(0);
            let is_directory = found.iter().any(|(_, entry)| entry.is_dir());
            found.retain(|(layer, _)| *layer >= above);
            let floor = match found.first() {
                Some((_, entry)) if entry.is_dir() => found.iter().find_map(|(layer, entry)| match entry.kind {
                    Kind::Directory { opaque } => opaque.then_some(*layer),
                    _ => Some(layer + 1),
                }),
                _ => Some(NONE_SHOWS),
            };
            let floor = floor.unwrap_or(above);
            if is_directory && floor > 0 {
                self.floors.insert(path.as_bytes().to_vec(), floor);
            }
        }
        found.into_iter().next().filter(|(_, entry)| entry.kind != Kind::Whiteout)
    }
}

fn advance(scan: &mut Scan, source: &dyn ObjectSource) -> Result<Option<Entry>, RestoreError> {
    loop {
        match scan.step() {
            Step::Done(entry) => return Ok(entry),
            Step::Need(digest) => {
                let node = Node::decode(&source.object(&digest).map_err(RestoreError::Source)?);
                node.and_then(|node| scan.feed(&node)).map_err(|source| RestoreError::Object { digest, source })?;
            }
        }
    }
}
