//! A layer as the VM's filesystem sees it: [`LayerView`] over tree and recipe objects that are fetched as needed.
//!
//! The searches are those of [`layer_format::tree`] and [`layer_format::recipe`]; this file feeds them. All chunks that
//! a read lacks are asked for together. Along with what is missing goes what the model predicts to follow or, if it
//! does not know the place, what is guessed ([`crate::guess`]). No lock is held while data is fetched.

mod local;
mod nodes;

use std::sync::Arc;

use layer_format::codec::FormatError;
use layer_format::entry::{Entry, Kind};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::trace::{BUCKET_LEN, Source, Touch};
use layer_format::tree::{Lookup, Node, Scan, Step};
use layer_format::{Digest, LayerPath};

pub(crate) use local::Look;
pub use nodes::{DEFAULT_NODE_BYTES, Nodes};

use crate::error::FetchError;
use crate::fetch::{Candidate, Room, Wanted};
use crate::guess::Guess;
use crate::prefetch::{NODE_LEN, Prefetcher};
use crate::recorder::Recorder;
use crate::timeline::Asking;
use crate::view::{Caller, LayerView};

/// How many tree nodes go along with one that is missed, if nothing better is known. They are small: on a long link
/// sixteen take a fraction of the round trip that they may save.
const NEXT_NODES: usize = 16;
/// How likely the next nodes are needed: of a directory that is listed, and beside any other.
const IN_ORDER: f32 = 0.8;
const ANYWHERE: f32 = 0.15;

/// One layer of a run.
pub struct LayerReader {
    layer: u8,
    root: Digest,
    nodes: Arc<Nodes>,
    recorder: Arc<Recorder>,
    prefetcher: Option<Arc<Prefetcher>>,
    guess: Arc<Guess>,
}

impl std::fmt::Debug for LayerReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerReader").field("layer", &self.layer).field("root", &self.root).finish_non_exhaustive()
    }
}

fn invalid(digest: Digest) -> impl Fn(FormatError) -> FetchError {
    move |source| FetchError::Format { digest, source }
}

fn worse(one: Source, other: Source) -> Source {
    if one as u8 >= other as u8 { one } else { other }
}

/// Which read it is.
#[derive(Clone, Copy)]
struct Reading<'a> {
    path: &'a LayerPath,
    bucket: u32,
}

impl LayerReader {
    /// The layer number `layer` of an image, whose tree has this root.
    pub fn new(layer: u8, root: Digest, nodes: Arc<Nodes>, recorder: Arc<Recorder>, prefetcher: Option<Arc<Prefetcher>>, guess: Arc<Guess>) -> Self {
        Self { layer, root, nodes, recorder, prefetcher, guess }
    }

    /// What the model says should come along; `None` if it does not know.
    fn predicted(&self, path: &LayerPath, touch: Touch, room: Room) -> Option<Vec<Candidate>> {
        self.prefetcher.as_ref()?.at_miss(self.layer, path, touch, room)
    }

    /// Says for whom this thread waits, until the result is dropped.
    fn asking(&self, path: &LayerPath, touch: Touch, caller: Caller) -> Option<Asking> {
        self.nodes.fetcher().timeline().map(|timeline| timeline.asking(path, touch, caller.pid))
    }

    fn observe(&self, path: &LayerPath, touch: Touch) {
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.observe(self.layer, path, touch);
        }
        self.guess.touched(self.layer, path, touch);
    }

    /// A tree node, on the way to `path`. `siblings` is the node above it.
    fn node(&self, digest: &Digest, siblings: Option<&Node>, path: &LayerPath, probability: f32) -> Result<(Arc<Node>, Source), FetchError> {
        self.nodes.tree(digest, &|room| {
            if let Some(predicted) = self.predicted(path, Touch::Meta, room) {
                return predicted;
            }
            let Some(Node::Index { children, .. }) = siblings else { return Vec::new() };
            let next = children.iter().skip_while(|child| child.digest != *digest).skip(1);
            let count = NEXT_NODES.min((room.read_ahead / u64::from(NODE_LEN)) as usize);
            next.take(count).map(|child| Candidate { digest: child.digest, len: NODE_LEN, probability, within_us: 0 }).collect()
        })
    }

    fn touched_leaf(&self, digest: &Digest, node: &Node, path: &LayerPath, caller: Caller, source: Source) {
        if self.recorder.meta(self.layer, digest, path, caller.pid, source, || node.encode().len()) {
            self.observe(path, Touch::Meta);
            self.guess.looked(self.layer, path);
        }
    }

    /// The extents of `range`, fetching recipe nodes.
    fn extents(&self, recipe: &Recipe, range: std::ops::Range<u64>, reading: Reading<'_>, mut each: impl FnMut(u64, Extent) -> bool) -> Result<(), FetchError> {
        let mut walk = RangeWalk::new(recipe, range);
        loop {
            match walk.step() {
                RangeStep::Done => return Ok(()),
                RangeStep::Extent { offset, extent } => {
                    if !each(offset, extent) {
                        return Ok(());
                    }
                }
                RangeStep::Need(digest) => {
                    let touch = Touch::Data { bucket: reading.bucket };
                    let node = self.nodes.recipe(&digest, &|room| self.predicted(reading.path, touch, room).unwrap_or_default())?;
                    walk.feed((*node).clone()).map_err(invalid(digest))?;
                }
            }
        }
    }

    /// What should come along with chunks of a file that are missing.
    fn beside(&self, recipe: &Recipe, range: std::ops::Range<u64>, reading: Reading<'_>, room: Room) -> Vec<Candidate> {
        let predicted = self.predicted(reading.path, Touch::Data { bucket: reading.bucket }, room);
        predicted.unwrap_or_else(|| self.guess.at_miss(self.layer, reading.path, recipe, range, room))
    }
}

fn recipe_of(entry: &Entry) -> Option<&Recipe> {
    match &entry.kind {
        Kind::File(recipe) => Some(recipe),
        _ => None,
    }
}

impl LayerView for LayerReader {
    fn lookup(&self, path: &LayerPath, caller: Caller) -> Result<Option<Entry>, FetchError> {
        let _asking = self.asking(path, Touch::Meta, caller);
        let mut search = Lookup::new(self.root, path.clone());
        let mut above: Option<Arc<Node>> = None;
        let mut source = Source::Local;
        loop {
            let digest = match search.step() {
                Step::Done(found) => return Ok(found.clone()),
                Step::Need(digest) => *digest,
            };
            let (node, from) = self.node(&digest, above.as_deref(), path, ANYWHERE)?;
            source = worse(source, from);
            search.feed(&node).map_err(invalid(digest))?;
            if matches!(*node, Node::Leaf(_)) {
                // A name that is not in the image is nobody else's business.
                self.touched_leaf(&digest, &node, node.stand_in(path).unwrap_or(&LayerPath::root()), caller, source);
            }
            above = Some(node);
        }
    }

    fn list(&self, directory: &LayerPath, after: Option<&[u8]>, max: usize, caller: Caller) -> Result<Vec<Entry>, FetchError> {
        let _asking = self.asking(directory, Touch::Meta, caller);
        let mut scan = Scan::directory(self.root, directory.clone(), after);
        let mut above: Option<Arc<Node>> = None;
        let mut entries = Vec::new();
        if after.is_none() {
            self.guess.listed(self.layer, directory);
        }
        while entries.len() < max {
            let digest = match scan.step() {
                Step::Done(None) => break,
                Step::Done(Some(entry)) => {
                    if after.is_none_or(|after| entry.path.name() != after) {
                        entries.push(entry);
                    }
                    continue;
                }
                Step::Need(digest) => digest,
            };
            let (node, source) = self.node(&digest, above.as_deref(), directory, IN_ORDER)?;
            scan.feed(&node).map_err(invalid(digest))?;
            match &*node {
                // Named by its own first entry: a lookup of that leads to this leaf again.
                Node::Leaf(items) => self.touched_leaf(&digest, &node, items.first().map_or(directory, |entry| &entry.path), caller, source),
                Node::Index { .. } => above = Some(node),
            }
        }
        Ok(entries)
    }

    fn read(&self, entry: &Entry, offset: u64, len: usize, caller: Caller) -> Result<Vec<u8>, FetchError> {
        let Some(recipe) = recipe_of(entry) else { return Ok(Vec::new()) };
        let range = offset..offset.saturating_add(len as u64).min(recipe.len());
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let bucket = u32::try_from(offset / BUCKET_LEN).unwrap_or(u32::MAX);
        let _asking = self.asking(&entry.path, Touch::Data { bucket }, caller);
        let reading = Reading { path: &entry.path, bucket };
        let mut wanted = Vec::new();
        let mut places = Vec::new();
        self.extents(recipe, range.clone(), reading, |at, extent| {
            if let Extent::Data(chunk) = extent {
                wanted.push(Wanted { digest: chunk.digest, len: chunk.len });
                places.push(at);
            }
            true
        })?;
        let found = self.nodes.fetcher().get_many(&wanted, &|room| self.beside(recipe, range.clone(), reading, room))?;
        let mut content = vec![0; (range.end - range.start) as usize];
        for ((fetched, wanted), at) in found.iter().zip(&wanted).zip(&places) {
            if fetched.bytes.len() != wanted.len as usize {
                return Err(invalid(wanted.digest)(FormatError::Invalid { what: "chunk", rule: "it is as long as its reference says" }));
            }
            let (from, to) = (range.start.max(*at), range.end.min(at + u64::from(wanted.len)));
            let bytes = &fetched.bytes[(from - at) as usize..(to - at) as usize];
            content[(from - range.start) as usize..(to - range.start) as usize].copy_from_slice(bytes);
        }
        let source_of = |bucket: u32| {
            let start = u64::from(bucket) * BUCKET_LEN;
            let overlapping = places.iter().zip(&found).filter(|(at, fetched)| **at < start + BUCKET_LEN && **at + fetched.bytes.len() as u64 > start);
            overlapping.fold(Source::Local, |source, (_, fetched)| worse(source, fetched.source))
        };
        self.recorder.data(self.layer, &entry.path, recipe.len(), range, caller.pid, source_of, |bucket| self.observe(&entry.path, Touch::Data { bucket }));
        Ok(content)
    }

    fn seek(&self, entry: &Entry, offset: u64, hole: bool, caller: Caller) -> Result<Option<u64>, FetchError> {
        let Some(recipe) = recipe_of(entry) else { return Ok(None) };
        let len = recipe.len();
        if offset >= len {
            return Ok(None);
        }
        let reading = Reading { path: &entry.path, bucket: u32::try_from(offset / BUCKET_LEN).unwrap_or(u32::MAX) };
        let _asking = self.asking(&entry.path, Touch::Data { bucket: reading.bucket }, caller);
        let mut found = if hole { Some(len) } else { None };
        self.extents(recipe, offset..len, reading, |at, extent| {
            if matches!(extent, Extent::Hole(_)) != hole {
                return true;
            }
            found = Some(at.max(offset));
            false
        })?;
        Ok(found)
    }
}
