//! The summary of what is here that goes with a launch request.
//!
//! It names what the newest run of the repository touched, as far as it is here: just what the registry would otherwise
//! send again, also for another version of the image. Before there was a run it names all that is here, if that is
//! little. It is small on purpose, since it goes up before anything comes down.

use std::path::Path;

use anyhow::Result;
use client_store::{ObjectCache, Store};
use layer_format::api::HaveFilter;
use layer_format::entry::Kind;
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::reference::{ImageReference, Repository, Revision};
use layer_format::trace::{BUCKET_LEN, Touch, Trace};
use layer_format::tree::{Lookup, Node, Step};
use layer_format::{Digest, LayerPath};

use crate::traces;

/// Most objects that the summary names: some 10 kB.
const MAX_HAVE: usize = 8192;

/// A summary of what is here of this repository; none if nothing is known to be.
pub fn have(home: &Path, store: &Store, repository: &Repository) -> Result<Option<HaveFilter>> {
    let digests = match traces::load(home, repository) {
        Ok(trace) => touched(store, repository, &trace)?,
        Err(_) => store.digests(MAX_HAVE)?.unwrap_or_default(),
    };
    if digests.is_empty() {
        return Ok(None);
    }
    let mut filter = HaveFilter::for_count(digests.len());
    digests.iter().for_each(|digest| filter.insert(digest));
    Ok(Some(filter))
}

/// The objects behind a trace's touches that are here, in their order, at most [`MAX_HAVE`].
fn touched(store: &Store, repository: &Repository, trace: &Trace) -> Result<Vec<Digest>> {
    let image = ImageReference { repository: repository.clone(), revision: Revision::Digest(trace.image) };
    let Some(manifest) = store.image_get(&image)?.and_then(|image| ImageManifest::decode(&image.bytes).ok()) else { return Ok(Vec::new()) };
    let mut walk = LocalWalk { store, found: Vec::new(), seen: Default::default() };
    let roots: Vec<Option<Digest>> =
        manifest.layers.iter().map(|layer| walk.object(layer).and_then(|bytes| LayerManifest::decode(&bytes).ok()).map(|layer| layer.root)).collect();
    for event in &trace.events {
        if walk.found.len() >= MAX_HAVE {
            break;
        }
        if let (Some(Some(root)), Some(path)) = (roots.get(usize::from(event.layer)), trace.paths.get(event.path as usize)) {
            // What is not here ends the walk of this touch, and of no other.
            let _ = walk.touch(*root, path, event.touch);
        }
    }
    Ok(walk.found)
}

/// Walks trees as far as they are here, and notes every object on the way.
struct LocalWalk<'a> {
    store: &'a Store,
    found: Vec<Digest>,
    seen: std::collections::HashSet<Digest>,
}

impl LocalWalk<'_> {
    fn note(&mut self, digest: &Digest) {
        if self.seen.insert(*digest) {
            self.found.push(*digest);
        }
    }

    fn object(&mut self, digest: &Digest) -> Option<bytes::Bytes> {
        let bytes = self.store.get(digest).ok()??;
        self.note(digest);
        Some(bytes)
    }

    fn touch(&mut self, root: Digest, path: &LayerPath, touch: Touch) -> Option<()> {
        let mut search = Lookup::new(root, path.clone());
        let entry = loop {
            let digest = match search.step() {
                Step::Done(found) => break found.clone()?,
                Step::Need(digest) => *digest,
            };
            search.feed(&Node::decode(&self.object(&digest)?).ok()?).ok()?;
        };
        let (Kind::File(recipe), Touch::Data { bucket }) = (&entry.kind, touch) else { return None };
        let start = u64::from(bucket) * BUCKET_LEN;
        let mut walk = RangeWalk::new(recipe, start..start + BUCKET_LEN);
        loop {
            match walk.step() {
                RangeStep::Done => return Some(()),
                RangeStep::Need(digest) => walk.feed(Recipe::decode_node(&self.object(&digest)?).ok()?).ok()?,
                RangeStep::Extent { extent: Extent::Data(chunk), .. } => {
                    if !self.seen.contains(&chunk.digest) && self.store.contains(&[chunk.digest]).ok()?.first() == Some(&true) {
                        self.note(&chunk.digest);
                    }
                }
                RangeStep::Extent { .. } => {}
            }
        }
    }
}
