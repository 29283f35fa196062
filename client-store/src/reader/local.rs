//! The layers of an image as far as their nodes are on this machine: nothing here waits for the network. What is
//! lacking is named, so that it can be fetched and the question asked again.

use layer_format::chunk::ChunkRef;
use layer_format::entry::{Entry, Kind};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::tree::{Lookup, Scan, Step};
use layer_format::{Digest, LayerPath};

use super::Nodes;

/// Most symbolic links on the way to a file, as Linux has it.
const MAX_LINKS: usize = 40;

/// An answer from what is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look<T> {
    /// It is known.
    Found(T),
    /// There is none, or the layer is not valid there.
    Absent,
    /// This node is needed to tell.
    Needs(Digest),
}

/// The chunks of a part of a file, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    /// In order, with the offset of each in the file.
    pub(crate) chunks: Vec<(u64, ChunkRef)>,
    /// The recipe node that tells the rest.
    pub(crate) needs: Option<Digest>,
}

impl Nodes {
    /// The entry at `path` of the layer with this root.
    pub(crate) fn local_entry(&self, root: &Digest, path: &LayerPath) -> Look<Entry> {
        let mut search = Lookup::new(*root, path.clone());
        loop {
            let digest = match search.step() {
                Step::Done(Some(entry)) => return Look::Found(entry.clone()),
                Step::Done(None) => return Look::Absent,
                Step::Need(digest) => *digest,
            };
            let Some(node) = self.local_tree(&digest) else { return Look::Needs(digest) };
            if search.feed(&node).is_err() {
                return Look::Absent;
            }
        }
    }

    /// At most `max` children of a directory, in order of their names.
    pub(crate) fn local_children(&self, root: &Digest, directory: &LayerPath, max: usize) -> Look<Vec<Entry>> {
        let mut scan = Scan::directory(*root, directory.clone(), None);
        let mut entries = Vec::new();
        while entries.len() < max {
            match scan.step() {
                Step::Done(None) => break,
                Step::Done(Some(entry)) => entries.push(entry),
                Step::Need(digest) => {
                    let Some(node) = self.local_tree(&digest) else { return Look::Needs(digest) };
                    if scan.feed(&node).is_err() {
                        return Look::Absent;
                    }
                }
            }
        }
        Look::Found(entries)
    }

    /// The chunks that hold the bytes `range` of a file.
    pub(crate) fn local_chunks(&self, recipe: &Recipe, range: std::ops::Range<u64>) -> Chunks {
        let mut walk = RangeWalk::new(recipe, range);
        let mut found = Chunks::default();
        loop {
            match walk.step() {
                RangeStep::Done => return found,
                RangeStep::Extent { offset, extent: Extent::Data(chunk) } => found.chunks.push((offset, chunk)),
                RangeStep::Extent { .. } => {}
                RangeStep::Need(digest) => {
                    let Some(node) = self.local_recipe(&digest) else {
                        found.needs = Some(digest);
                        return found;
                    };
                    if walk.feed((*node).clone()).is_err() {
                        return found;
                    }
                }
            }
        }
    }

    /// The bytes `range` of a file, holes as zeros. `Err` with the object that is not here; what is not valid reads as empty.
    pub(crate) fn local_content(&self, recipe: &Recipe, range: std::ops::Range<u64>) -> Result<Vec<u8>, Digest> {
        let range = range.start..range.end.min(recipe.len());
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.local_chunks(recipe, range.clone());
        if let Some(digest) = found.needs {
            return Err(digest);
        }
        let mut content = vec![0; (range.end - range.start) as usize];
        for (at, chunk) in found.chunks {
            let bytes = self.fetcher().local(&chunk.digest).ok_or(chunk.digest)?;
            let (from, to) = (range.start.max(at), range.end.min(at + u64::from(chunk.len)));
            let Some(part) = bytes.get((from - at) as usize..(to - at) as usize) else { return Ok(Vec::new()) };
            content[(from - range.start) as usize..(to - range.start) as usize].copy_from_slice(part);
        }
        Ok(content)
    }

    /// The file at the absolute `path` of a stack of layers, lowest first: symbolic links are followed within it, and of
    /// several layers the last that has the name wins. With the number of its layer.
    pub(crate) fn local_file(&self, roots: &[Digest], path: &LayerPath) -> Look<(u8, Entry)> {
        let mut left: Vec<Vec<u8>> = components(path.as_bytes());
        let mut at = LayerPath::root();
        let mut links = 0;
        let mut last = None;
        while let Some(name) = left.pop() {
            match &name[..] {
                b"." => continue,
                b".." => {
                    at = at.parent().unwrap_or_default();
                    continue;
                }
                _ => {}
            }
            let Ok(next) = at.join(&name) else { return Look::Absent };
            let (layer, entry) = match self.topmost(roots, &next) {
                Look::Found(found) => found,
                Look::Absent => return Look::Absent,
                Look::Needs(digest) => return Look::Needs(digest),
            };
            match &entry.kind {
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Look::Absent;
                    }
                    if target.starts_with(b"/") {
                        at = LayerPath::root();
                    }
                    left.extend(components(target));
                }
                Kind::Directory { .. } => (at, last) = (next, Some((layer, entry))),
                Kind::File(_) if left.is_empty() => return Look::Found((layer, entry)),
                _ => return Look::Absent,
            }
        }
        last.map_or(Look::Absent, Look::Found)
    }

    fn topmost(&self, roots: &[Digest], path: &LayerPath) -> Look<(u8, Entry)> {
        for (layer, root) in (0..=u8::MAX).zip(roots).rev() {
            match self.local_entry(root, path) {
                Look::Found(Entry { kind: Kind::Whiteout, .. }) => return Look::Absent,
                Look::Found(entry) => return Look::Found((layer, entry)),
                Look::Absent => {}
                Look::Needs(digest) => return Look::Needs(digest),
            }
        }
        Look::Absent
    }
}

/// The components of a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).rev().map(<[u8]>::to_vec).collect()
}
