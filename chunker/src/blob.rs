//! Takes a stream of bytes in as it arrives, in pieces, possibly over several sittings: cut, hashed, packed, and described
//! by a recipe. For whoever receives one opaque file and cannot have it read by the threads of an import.
//!
//! The chunks are those of the whole, wherever the pieces and the sittings begin and end: what follows the last cut is kept
//! uncut until more comes ([`BlobState::tail`]).
//!
//! Memory: at most 384 KiB of content, a frame and its compressed form, two compressors, and 40 bytes for each 2 MiB of the
//! stream.

use std::collections::{HashSet, VecDeque};

use layer_format::Digest;
use layer_format::chunk::{ChunkRef, MAX_CHUNK_LEN};
use layer_format::recipe::{Extent, NodeRef, Recipe};

use crate::cut::Cutter;
use crate::error::ImportError;
use crate::pipeline::{Compressor, FrameJob, PackWriter, present};
use crate::recipe_builder::RecipeBuilder;
use crate::sink::ObjectSink;

/// Content that is collected before it is cut.
const BATCH_LEN: usize = 320 * 1024;
/// Most chunks about which the sink is asked at a time.
const BATCH_CHUNKS: usize = 128;

/// A blob between two sittings: all that a writer has to know to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlobState {
    /// Finished recipe nodes, which are in the sink.
    pub nodes: Vec<NodeRef>,
    /// Chunks after those, which are in the sink.
    pub open: Vec<ChunkRef>,
    /// Bytes after those, at most [`MAX_CHUNK_LEN`], which are nowhere else.
    pub tail: Vec<u8>,
}

impl BlobState {
    /// Bytes of all that was taken in.
    pub fn len(&self) -> u64 {
        let open: u64 = self.open.iter().map(|chunk| u64::from(chunk.len)).sum();
        self.nodes.iter().map(|node| node.len).sum::<u64>() + open + self.tail.len() as u64
    }

    /// Whether nothing was taken in.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Takes in one blob.
pub struct BlobWriter<'a> {
    sink: &'a dyn ObjectSink,
    packs: PackWriter<'a>,
    compressor: Compressor<'static>,
    cutter: Cutter,
    recipe: RecipeBuilder,
    /// Bytes that are not cut yet.
    uncut: Vec<u8>,
    /// Where in those a chunk has to end.
    borders: VecDeque<usize>,
    data: FrameJob,
    nodes: FrameJob,
    /// Objects on their way to a pack that is not finished: the sink does not know of them.
    seen: HashSet<Digest>,
}

impl std::fmt::Debug for BlobWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobWriter").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<'a> BlobWriter<'a> {
    /// Goes on where `state` ended; the default state begins a blob. Content is compressed with this level of zstd.
    ///
    /// # Errors
    /// If zstd cannot be set up.
    pub fn resume(sink: &'a dyn ObjectSink, zstd_level: i32, state: BlobState) -> Result<Self, ImportError> {
        Ok(Self {
            sink,
            packs: PackWriter::new(sink, &()),
            compressor: Compressor::new(zstd_level, None)?,
            cutter: Cutter::new(),
            recipe: RecipeBuilder::resume(state.nodes, state.open.into_iter().map(Extent::Data).collect()),
            uncut: state.tail,
            borders: VecDeque::new(),
            data: FrameJob::default(),
            nodes: FrameJob::default(),
            seen: HashSet::new(),
        })
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.recipe.len() + self.uncut.len() as u64
    }

    /// Whether there is nothing so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole content, as long as it is so short that nothing was cut.
    pub fn short(&self) -> Option<&[u8]> {
        (self.recipe.len() == 0).then_some(&self.uncut)
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`ImportError::Sink`]; the blob cannot go on then, but from its last state.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), ImportError> {
        while !bytes.is_empty() {
            let room = (BATCH_LEN + MAX_CHUNK_LEN as usize).saturating_sub(self.uncut.len()).max(1);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.uncut.extend_from_slice(now);
            bytes = later;
            if self.uncut.len() >= BATCH_LEN + MAX_CHUNK_LEN as usize {
                self.cut(MAX_CHUNK_LEN as usize)?;
            }
        }
        Ok(())
    }

    /// Ends a chunk here, as at the end of the blob: what follows is cut as if it began one. So a file in the blob has the
    /// chunks that it has by itself.
    pub fn border(&mut self) {
        if !self.uncut.is_empty() && self.borders.back() != Some(&self.uncut.len()) {
            self.borders.push_back(self.uncut.len());
        }
    }

    /// Ends the sitting: everything but the tail is in the sink then.
    ///
    /// # Errors
    /// [`ImportError::Sink`].
    pub fn suspend(mut self) -> Result<BlobState, ImportError> {
        self.cut(MAX_CHUNK_LEN as usize)?;
        self.flush()?;
        let tail = std::mem::take(&mut self.uncut);
        let (nodes, open) = self.recipe.into_parts();
        let chunk = |extent| if let Extent::Data(chunk) = extent { Some(chunk) } else { None };
        Ok(BlobState { nodes, open: open.into_iter().filter_map(chunk).collect(), tail })
    }

    /// Ends the blob: all of it is in the sink then.
    ///
    /// # Errors
    /// [`ImportError::Sink`].
    pub fn finish(mut self) -> Result<Recipe, ImportError> {
        self.cut(1)?;
        let mut finished = Vec::new();
        let recipe = self.recipe.finish(&mut |node: Vec<u8>| collect(&mut finished, node))?;
        self.put_nodes(finished)?;
        self.flush()?;
        Ok(recipe)
    }

    /// Cuts as long as there are `least` bytes: fewer than the longest chunk only at the end of the blob, or up to a border.
    fn cut(&mut self, least: usize) -> Result<(), ImportError> {
        let uncut = std::mem::take(&mut self.uncut);
        let (mut at, least) = (0, least.max(1));
        loop {
            let mut chunks = Vec::with_capacity(BATCH_CHUNKS);
            while chunks.len() < BATCH_CHUNKS {
                let border = self.borders.front().copied();
                let rest = &uncut[at..border.unwrap_or(uncut.len())];
                if border.is_none() && rest.len() < least {
                    break;
                }
                let len = self.cutter.next(rest);
                chunks.push(&rest[..len]);
                at += len;
                self.borders.pop_front_if(|border| *border == at);
            }
            if chunks.is_empty() {
                break;
            }
            self.take(&chunks)?;
        }
        self.uncut = uncut;
        self.uncut.drain(..at);
        for border in &mut self.borders {
            *border -= at;
        }
        Ok(())
    }

    /// Takes some chunks.
    fn take(&mut self, chunks: &[&[u8]]) -> Result<(), ImportError> {
        let digests: Vec<Digest> = chunks.iter().map(|chunk| Digest::of(chunk)).collect();
        let present = present(self.sink, &digests)?;
        let mut finished = Vec::new();
        for ((chunk, digest), present) in chunks.iter().zip(digests).zip(present) {
            if !present && self.seen.insert(digest) {
                add(&mut self.data, digest, chunk)?;
                if self.data.builder.is_full() {
                    let job = std::mem::take(&mut self.data);
                    self.data = self.write(job)?;
                }
            }
            let extent = Extent::Data(ChunkRef { digest, len: chunk.len() as u32 });
            self.recipe.push(extent, &mut |node| collect(&mut finished, node))?;
        }
        self.put_nodes(finished)
    }

    fn put_nodes(&mut self, nodes: Vec<Vec<u8>>) -> Result<(), ImportError> {
        let digests: Vec<Digest> = nodes.iter().map(|node| Digest::of(node)).collect();
        let present = present(self.sink, &digests)?;
        for ((node, digest), present) in nodes.iter().zip(digests).zip(present) {
            if !present && self.seen.insert(digest) {
                add(&mut self.nodes, digest, node)?;
                if self.nodes.builder.is_full() {
                    let job = std::mem::take(&mut self.nodes);
                    self.nodes = self.write(job)?;
                }
            }
        }
        Ok(())
    }

    /// Compresses a frame and writes it to the open pack. Returns an empty frame.
    fn write(&mut self, job: FrameJob) -> Result<FrameJob, ImportError> {
        let frame = self.compressor.encode(job);
        if let Some(visible) = self.packs.write(&frame)? {
            for digest in visible {
                self.seen.remove(&digest);
            }
        }
        Ok(frame.spare)
    }

    /// Writes what is under way and finishes the open pack.
    fn flush(&mut self) -> Result<(), ImportError> {
        for job in [std::mem::take(&mut self.data), std::mem::take(&mut self.nodes)] {
            if !job.builder.is_empty() {
                self.write(job)?;
            }
        }
        self.packs.finish()?;
        self.seen.clear();
        Ok(())
    }
}

/// The recipe of several blobs, one behind the other. Writes the recipe nodes that it needs; copies no content.
///
/// # Errors
/// [`ImportError::Sink`].
pub fn join(sink: &dyn ObjectSink, parts: &[Recipe]) -> Result<Recipe, ImportError> {
    let parts: Vec<&Recipe> = parts.iter().filter(|part| !part.is_empty()).collect();
    // Of the nodes that the whole refers to: above all that the parts refer to.
    let level = parts.iter().map(|part| if let Recipe::Nodes { level, .. } = part { level + 1 } else { 0 }).max().unwrap_or_default();
    let (mut finished, mut nodes) = (Vec::new(), Vec::with_capacity(parts.len()));
    for part in parts {
        let mut top = part.clone();
        let mut at = if let Recipe::Nodes { level, .. } = part { level + 1 } else { 0 };
        while at < level {
            let node = NodeRef { len: top.len(), digest: collect(&mut finished, top.encode_node())? };
            top = Recipe::Nodes { level: at, nodes: vec![node] };
            at += 1;
        }
        nodes.push(NodeRef { len: top.len(), digest: collect(&mut finished, top.encode_node())? });
    }
    let mut writer = BlobWriter::resume(sink, 1, BlobState::default())?;
    writer.put_nodes(finished)?;
    writer.flush()?;
    Ok(if nodes.is_empty() { Recipe::Extents(Vec::new()) } else { Recipe::Nodes { level, nodes } })
}

fn collect(finished: &mut Vec<Vec<u8>>, node: Vec<u8>) -> Result<Digest, ImportError> {
    let digest = Digest::of(&node);
    finished.push(node);
    Ok(digest)
}

fn add(job: &mut FrameJob, digest: Digest, bytes: &[u8]) -> Result<(), ImportError> {
    job.builder.push(bytes).map_err(|error| ImportError::Internal(error.to_string()))?;
    job.sample.add(bytes);
    job.objects.push((digest, bytes.len() as u32));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use crate::source::ObjectSource;
    use layer_format::recipe::{RangeStep, RangeWalk};
    use proptest::prelude::*;

    fn content(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        std::iter::repeat_with(next).flat_map(u64::to_le_bytes).take(len).collect()
    }

    fn read(store: &MemoryStore, recipe: &Recipe) -> Vec<u8> {
        let mut walk = RangeWalk::new(recipe, 0..recipe.len());
        let mut out = Vec::new();
        loop {
            match walk.step() {
                RangeStep::Done => return out,
                RangeStep::Need(digest) => walk.feed(Recipe::decode_node(&store.object(&digest).unwrap()).unwrap()).unwrap(),
                RangeStep::Extent { extent: Extent::Data(chunk), .. } => out.extend(store.object(&chunk.digest).unwrap()),
                RangeStep::Extent { .. } => panic!("a stream has no holes"),
            }
        }
    }

    fn at_once(store: &MemoryStore, content: &[u8]) -> Recipe {
        let mut writer = BlobWriter::resume(store, 1, BlobState::default()).unwrap();
        writer.push(content).unwrap();
        writer.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_and_sittings_leave_no_trace(seed: u64, len in 0usize..3_000_000, pieces in proptest::collection::vec((0usize..700_000, proptest::bool::ANY), 0..12)) {
            let content = content(seed, len);
            let (one, other) = (MemoryStore::new(), MemoryStore::new());
            let expected = at_once(&one, &content);
            let (mut state, mut rest) = (BlobState::default(), &content[..]);
            let mut writer = BlobWriter::resume(&other, 1, state).unwrap();
            for (piece, ends) in pieces {
                let (now, later) = rest.split_at(piece.min(rest.len()));
                writer.push(now).unwrap();
                rest = later;
                if ends {
                    state = writer.suspend().unwrap();
                    prop_assert_eq!(state.len(), (content.len() - rest.len()) as u64);
                    prop_assert!(state.tail.len() <= MAX_CHUNK_LEN as usize);
                    writer = BlobWriter::resume(&other, 1, state).unwrap();
                }
            }
            writer.push(rest).unwrap();
            let recipe = writer.finish().unwrap();
            prop_assert_eq!(&recipe, &expected);
            prop_assert!(read(&other, &recipe) == content);
            let before = other.packs().len();
            prop_assert_eq!(at_once(&other, &content), expected);
            prop_assert_eq!(other.packs().len(), before, "what is there is not written again");
        }
    }

    #[test]
    fn a_long_stream_has_nodes_and_duplicates_are_written_once() {
        let store = MemoryStore::new();
        let part = content(7, 3_000_000);
        let whole: Vec<u8> = std::iter::repeat_n(&part, 4).flatten().copied().collect();
        let recipe = at_once(&store, &whole);
        assert!(matches!(recipe, Recipe::Nodes { .. }));
        assert!(read(&store, &recipe) == whole);
        let stored: usize = store.packs().iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(stored < 3_600_000, "{stored} bytes for four times 3 MB of the same");
    }

    /// The extents of a recipe.
    fn chunks(store: &MemoryStore, recipe: &Recipe) -> Vec<ChunkRef> {
        let mut walk = RangeWalk::new(recipe, 0..recipe.len());
        let mut out = Vec::new();
        loop {
            match walk.step() {
                RangeStep::Done => return out,
                RangeStep::Need(digest) => walk.feed(Recipe::decode_node(&store.object(&digest).unwrap()).unwrap()).unwrap(),
                RangeStep::Extent { extent: Extent::Data(chunk), .. } => out.push(chunk),
                RangeStep::Extent { .. } => panic!("a stream has no holes"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn up_to_a_border_the_chunks_are_those_of_the_file_alone(seed: u64, lens in proptest::collection::vec(prop_oneof![0usize..9000, 0usize..900_000], 0..40), pieces in 1usize..300_000) {
            let store = MemoryStore::new();
            let content = content(seed, lens.iter().sum());
            let (mut expected, mut rest) = (Vec::new(), &content[..]);
            let mut writer = BlobWriter::resume(&store, 1, BlobState::default()).unwrap();
            for len in &lens {
                let (file, after) = rest.split_at(*len);
                for piece in file.chunks(pieces) {
                    writer.push(piece).unwrap();
                }
                writer.border();
                let alone = MemoryStore::new();
                expected.extend(chunks(&alone, &at_once(&alone, file)));
                rest = after;
            }
            let recipe = writer.finish().unwrap();
            prop_assert!(read(&store, &recipe) == content);
            prop_assert_eq!(chunks(&store, &recipe), expected);
        }
    }

    #[test]
    fn joined_recipes_are_read_as_one() {
        let store = MemoryStore::new();
        let parts = [content(1, 100), Vec::new(), content(2, 9_000_000), content(3, 400_000), content(4, 1)];
        let recipes: Vec<Recipe> = parts.iter().map(|part| at_once(&store, part)).collect();
        let joined = join(&store, &recipes).unwrap();
        assert!(read(&store, &joined) == parts.concat());
        assert!(read(&store, &join(&store, &recipes[..1]).unwrap()) == parts[0]);
        assert!(join(&store, &[]).unwrap().is_empty());
    }
}
