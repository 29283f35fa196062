//! A layer as the VM's filesystem sees it: [`LayerView`] over tree and recipe objects that are fetched as needed.
//!
//! The searches are those of [`layer_format::tree`] and [`layer_format::recipe`]; this file feeds them. All chunks that
//! a read lacks are asked for together. Along with what is missing goes what the model predicts to follow or, if it
//! does not know the place, what lies beside it: the rest of a small file, the next chunks of one that is read in
//! order, the next tree nodes. No lock is held while data is fetched.

mod nodes;

use std::sync::Arc;

use layer_format::codec::FormatError;
use layer_format::entry::{Entry, Kind};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::trace::{BUCKET_LEN, Source, Touch};
use layer_format::tree::{Lookup, Node, Scan, Step};
use layer_format::{Digest, LayerPath};
use lru::LruCache;
use parking_lot::Mutex;

pub use nodes::{DEFAULT_NODE_BYTES, Nodes};

use crate::error::FetchError;
use crate::fetch::{Candidate, Room, SURE, Wanted};
use crate::prefetch::{NODE_LEN, Prefetcher};
use crate::recorder::Recorder;
use crate::view::{Caller, LayerView};

/// Files of at most this many bytes are likely read as a whole.
const SMALL_FILE: u64 = 256 << 10;
/// How far a read may start from the end of the one before and still continue it (the kernel reads ahead in steps).
const NEAR: u64 = 256 << 10;
/// How many files are watched for being read in order.
const WATCHED_FILES: usize = 512;
/// How many tree nodes go along with one that is missed, if nothing better is known. They are small: on a long link
/// sixteen take a fraction of the round trip that they may save.
const NEXT_NODES: usize = 16;
/// How likely what lies beside a miss is needed: a file read in order, a small file, the start of a file, any other
/// place. Launches read half to two thirds of the bytes of the files that they open.
const IN_ORDER: f32 = 0.8;
const WHOLE_FILE: f32 = SURE;
const FROM_START: f32 = 0.4;
const ANYWHERE: f32 = 0.15;
const NEIGHBOUR: f32 = 0.15;
/// Most bytes that come along from beside a small file, and from behind any other place: what is unlikely is only worth
/// little, however long the link.
const NEIGHBOUR_BYTES: u64 = 128 << 10;
const ANYWHERE_BYTES: u64 = 512 << 10;

/// One layer of a run.
pub struct LayerReader {
    layer: u8,
    root: Digest,
    nodes: Arc<Nodes>,
    recorder: Arc<Recorder>,
    prefetcher: Option<Arc<Prefetcher>>,
    /// Where the last read of a file ended.
    watched: Mutex<LruCache<LayerPath, u64>>,
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

/// How a read continues the one before.
#[derive(Clone, Copy)]
struct Reading<'a> {
    path: &'a LayerPath,
    bucket: u32,
    in_order: bool,
}

impl LayerReader {
    /// The layer number `layer` of an image, whose tree has this root.
    pub fn new(layer: u8, root: Digest, nodes: Arc<Nodes>, recorder: Arc<Recorder>, prefetcher: Option<Arc<Prefetcher>>) -> Self {
        let watched = Mutex::new(LruCache::new(std::num::NonZeroUsize::new(WATCHED_FILES).unwrap_or(std::num::NonZeroUsize::MIN)));
        Self { layer, root, nodes, recorder, prefetcher, watched }
    }

    /// What the model says should come along; `None` if it does not know.
    fn predicted(&self, path: &LayerPath, touch: Touch, room: Room) -> Option<Vec<Candidate>> {
        self.prefetcher.as_ref()?.at_miss(self.layer, path, touch, room)
    }

    fn observe(&self, path: &LayerPath, touch: Touch) {
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.observe(self.layer, path, touch);
        }
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
            next.take(count).map(|child| Candidate { digest: child.digest, len: NODE_LEN, probability }).collect()
        })
    }

    fn touched_leaf(&self, digest: &Digest, path: &LayerPath, caller: Caller, source: Source) {
        if self.recorder.meta(self.layer, digest, path, caller.pid, source) {
            self.observe(path, Touch::Meta);
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
        if let Some(predicted) = self.predicted(reading.path, Touch::Data { bucket: reading.bucket }, room) {
            return predicted;
        }
        let (probability, most) = match () {
            () if reading.in_order => (IN_ORDER, room.read_ahead),
            () if recipe.len() <= SMALL_FILE => (WHOLE_FILE, room.read_ahead.max(SMALL_FILE)),
            () if range.start == 0 => (FROM_START, room.read_ahead),
            () => (ANYWHERE, room.read_ahead.min(ANYWHERE_BYTES)),
        };
        let mut candidates = Vec::new();
        let mut bytes = 0;
        let mut walk = RangeWalk::new(recipe, range.end..recipe.len());
        loop {
            match walk.step() {
                RangeStep::Extent { extent: Extent::Data(chunk), .. } => {
                    bytes += u64::from(chunk.len);
                    if bytes > most {
                        return candidates;
                    }
                    candidates.push(Candidate { digest: chunk.digest, len: chunk.len, probability });
                }
                RangeStep::Extent { .. } => {}
                RangeStep::Done => {
                    if recipe.len() <= SMALL_FILE {
                        self.neighbours(reading.path, room.read_ahead.min(NEIGHBOUR_BYTES), &mut candidates);
                    }
                    return candidates;
                }
                RangeStep::Need(digest) => {
                    let fed = self.nodes.local_recipe(&digest).map(|node| walk.feed((*node).clone()));
                    if !matches!(fed, Some(Ok(()))) {
                        candidates.push(Candidate { digest, len: NODE_LEN, probability });
                        return candidates;
                    }
                }
            }
        }
    }

    /// The small files that follow `path` in its directory, as far as their tree node is here: a program that reads one
    /// of many small files (modules, locales, icons) tends to read others beside it.
    fn neighbours(&self, path: &LayerPath, mut room: u64, candidates: &mut Vec<Candidate>) {
        let mut search = Lookup::new(self.root, path.clone());
        let leaf = loop {
            let Step::Need(digest) = *search.step() else { return };
            let Some(node) = self.nodes.local_tree(&digest) else { return };
            if matches!(*node, Node::Leaf(_)) {
                break node;
            }
            if search.feed(&node).is_err() {
                return;
            }
        };
        let Node::Leaf(entries) = &*leaf else { return };
        let directory = path.split().map(|(parent, _)| parent);
        let following = entries.iter().skip_while(|entry| entry.path <= *path).take_while(|entry| entry.path.split().map(|(parent, _)| parent) == directory);
        for entry in following {
            let Some(Recipe::Extents(extents)) = recipe_of(entry).filter(|recipe| recipe.len() <= SMALL_FILE) else { continue };
            for extent in extents {
                let Extent::Data(chunk) = extent else { continue };
                let Some(left) = room.checked_sub(chunk.len.into()) else { return };
                room = left;
                candidates.push(Candidate { digest: chunk.digest, len: chunk.len, probability: NEIGHBOUR });
            }
        }
    }

    /// Notes where a read ends; says whether it continues the one before.
    fn continues(&self, path: &LayerPath, range: &std::ops::Range<u64>) -> bool {
        let mut watched = self.watched.lock();
        match watched.get_mut(path) {
            Some(end) => {
                let before = std::mem::replace(end, range.end);
                range.start > 0 && range.start.abs_diff(before) <= NEAR
            }
            None => {
                watched.put(path.clone(), range.end);
                false
            }
        }
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
                self.touched_leaf(&digest, node.stand_in(path).unwrap_or(&LayerPath::root()), caller, source);
            }
            above = Some(node);
        }
    }

    fn list(&self, directory: &LayerPath, after: Option<&[u8]>, max: usize, caller: Caller) -> Result<Vec<Entry>, FetchError> {
        let mut scan = Scan::directory(self.root, directory.clone(), after);
        let mut above: Option<Arc<Node>> = None;
        let mut entries = Vec::new();
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
                Node::Leaf(items) => self.touched_leaf(&digest, items.first().map_or(directory, |entry| &entry.path), caller, source),
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
        let reading = Reading { path: &entry.path, bucket, in_order: self.continues(&entry.path, &range) };
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
        self.recorder.data(self.layer, &entry.path, range, caller.pid, source_of, |bucket| self.observe(&entry.path, Touch::Data { bucket }));
        Ok(content)
    }

    fn seek(&self, entry: &Entry, offset: u64, hole: bool, _caller: Caller) -> Result<Option<u64>, FetchError> {
        let Some(recipe) = recipe_of(entry) else { return Ok(None) };
        let len = recipe.len();
        if offset >= len {
            return Ok(None);
        }
        let reading = Reading { path: &entry.path, bucket: u32::try_from(offset / BUCKET_LEN).unwrap_or(u32::MAX), in_order: false };
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
