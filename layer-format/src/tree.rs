//! The entries of a layer as a search tree whose nodes are objects.
//!
//! Leaves hold entries in the order of [`LayerPath`]; index nodes hold the first path, digest and entry count of each
//! child. Where a node ends is decided by the paths alone (a hash of the last path, with bounds), so that a change
//! touches one leaf and the nodes above it, and a new version of an image shares all others. There are at most two
//! levels of index: **a path is found with at most two object fetches after the root**, whatever the size. Up to
//! [`MAX_ROOT_LEAVES`] leaves the root refers to the leaves directly; above that the root grows, slowly (about
//! 80 bytes for each 4 000 entries).
//!
//! [`Lookup`] and [`Scan`] find entries without doing I/O: they say which object they need and are fed its node.

use crate::codec::{FormatError, Reader, Writer};
use crate::digest::Digest;
use crate::entry::{Entry, put_path, read_path};
use crate::path::LayerPath;

const MAGIC: &[u8; 3] = b"TBT";
const VERSION: u8 = 1;

/// Fewest and most entries of a leaf, or children of an index node, that is not the last one.
pub const NODE_ITEMS: std::ops::RangeInclusive<usize> = 16..=256;
/// A leaf ends when its entries take this many bytes, whatever their number.
pub const MAX_LEAF_BYTES: usize = 64 * 1024;
/// Most bytes of an entry without its path: so that a leaf, which may hold one such entry and [`MAX_LEAF_BYTES`] of
/// others, stays below [`crate::chunk::MAX_OBJECT_LEN`].
pub const MAX_ENTRY_BYTES: usize = 2 << 20;
/// Most leaves that a root refers to directly.
pub const MAX_ROOT_LEAVES: usize = 128;
/// Most items of a root, which has no content-defined end.
pub const MAX_ROOT_ITEMS: usize = 1 << 17;

/// What an index node says of a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// The smallest path below it.
    pub first: LayerPath,
    /// Its digest.
    pub digest: Digest,
    /// How many entries are below it, `1..`.
    pub entries: u64,
}

/// A tree object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Entries, ascending.
    Leaf(Vec<Entry>),
    /// Children, ascending, all of level `level - 1` (level 0 is a leaf).
    Index {
        /// Height above the leaves, 1 or 2.
        level: u8,
        /// The children.
        children: Vec<Child>,
    },
}

impl Node {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        let mut previous: &[u8] = b"";
        match self {
            Self::Leaf(entries) => {
                out.push(0);
                out.put_varint(entries.len() as u64);
                for entry in entries {
                    put_path(&mut out, previous, entry.path.as_bytes());
                    entry.encode_body(&mut out);
                    previous = entry.path.as_bytes();
                }
            }
            Self::Index { level, children } => {
                out.push(*level);
                out.put_varint(children.len() as u64);
                for child in children {
                    put_path(&mut out, previous, child.first.as_bytes());
                    out.extend_from_slice(child.digest.as_bytes());
                    out.put_varint(child.entries);
                    previous = child.first.as_bytes();
                }
            }
        }
        out
    }

    /// Parses a tree object.
    ///
    /// # Errors
    /// If the bytes are not one, or its items are not strictly ascending.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "tree node";
        let mut reader = Reader::new(what, bytes);
        reader.header(MAGIC, VERSION)?;
        let level = reader.u8()?;
        let mut previous = LayerPath::root();
        let mut path = |reader: &mut Reader<'_>, first: bool| {
            let path = read_path(reader, previous.as_bytes())?;
            if !first && path <= previous {
                return Err(FormatError::invalid(what, "paths ascend"));
            }
            previous = path.clone();
            Ok(path)
        };
        let node = match level {
            0 => {
                let count = reader.count(*NODE_ITEMS.end() as u64, 8)?;
                let mut entries = Vec::with_capacity(count);
                for at in 0..count {
                    let path = path(&mut reader, at == 0)?;
                    entries.push(Entry::decode_body(path, &mut reader)?);
                }
                Self::Leaf(entries)
            }
            1 | 2 => {
                let count = reader.count(MAX_ROOT_ITEMS as u64, 3 + Digest::LEN)?;
                if count == 0 {
                    return Err(FormatError::invalid(what, "an index has children"));
                }
                let mut children = Vec::with_capacity(count);
                for at in 0..count {
                    let first = path(&mut reader, at == 0)?;
                    let digest = reader.digest()?;
                    let entries = reader.varint(u64::MAX >> 16)?;
                    if entries == 0 {
                        return Err(FormatError::invalid(what, "a child has entries"));
                    }
                    children.push(Child { first, digest, entries });
                }
                Self::Index { level, children }
            }
            _ => return Err(FormatError::TooLarge { what: "level of a tree node", value: level.into(), max: 2 }),
        };
        reader.finish()?;
        Ok(node)
    }

    /// How many entries are at or below this node.
    pub fn entries(&self) -> u64 {
        match self {
            Self::Leaf(entries) => entries.len() as u64,
            Self::Index { children, .. } => children.iter().map(|child| child.entries).fold(0, u64::saturating_add),
        }
    }

    /// The entry of a leaf that stands for `path`: its own, else the one before it, else the leaf's first. A lookup of
    /// that entry leads to the same leaf; so what was looked up need not be remembered to know what answered. `None` of
    /// an index node or an empty leaf.
    pub fn stand_in(&self, path: &LayerPath) -> Option<&LayerPath> {
        let Self::Leaf(entries) = self else { return None };
        let after = entries.partition_point(|entry| entry.path <= *path);
        entries.get(after.saturating_sub(1)).map(|entry| &entry.path)
    }

    /// The position of the child whose range holds `path`: the last one that does not start after it.
    pub fn child_for(children: &[Child], path: &LayerPath) -> usize {
        children.partition_point(|child| child.first <= *path).saturating_sub(1)
    }
}

/// The root of a finished tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRoot {
    /// Digest of the root node.
    pub digest: Digest,
    /// Number of entries.
    pub entries: u64,
}

/// Builds a tree from entries in ascending order, in memory bounded by one leaf and the index.
#[derive(Debug)]
pub struct TreeBuilder {
    leaf: Vec<Entry>,
    leaf_bytes: usize,
    leaves: Vec<Child>,
    last: Option<LayerPath>,
}

impl Default for TreeBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl TreeBuilder {
    /// An empty tree.
    pub fn new() -> Self {
        Self { leaf: Vec::new(), leaf_bytes: 0, leaves: Vec::new(), last: None }
    }

    /// Adds the next entry; `put` stores the bytes of each finished node and returns their digest.
    ///
    /// # Errors
    /// [`BuildError::Order`] if the entry does not come after the previous one; else what `put` returns.
    pub fn push<E>(&mut self, entry: Entry, put: &mut impl FnMut(Vec<u8>) -> Result<Digest, E>) -> Result<(), BuildError<E>> {
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return Err(BuildError::Order(entry.path));
        }
        let mut body = Vec::new();
        entry.encode_body(&mut body);
        if body.len() > MAX_ENTRY_BYTES {
            return Err(BuildError::TooLarge(entry.path));
        }
        self.leaf_bytes += body.len() + entry.path.name().len() + 4;
        let path = entry.path.clone();
        self.leaf.push(entry);
        if ends_node(&path, 0, self.leaf.len()) || self.leaf_bytes >= MAX_LEAF_BYTES {
            self.finish_leaf(put)?;
        }
        self.last = Some(path);
        Ok(())
    }

    fn finish_leaf<E>(&mut self, put: &mut impl FnMut(Vec<u8>) -> Result<Digest, E>) -> Result<(), BuildError<E>> {
        let entries = std::mem::take(&mut self.leaf);
        self.leaf_bytes = 0;
        let Some(first) = entries.first().map(|entry| entry.path.clone()) else { return Ok(()) };
        let count = entries.len() as u64;
        let digest = put(Node::Leaf(entries).encode()).map_err(BuildError::Put)?;
        self.leaves.push(Child { first, digest, entries: count });
        Ok(())
    }

    /// Writes the remaining nodes. A tree without entries is one empty leaf.
    ///
    /// # Errors
    /// What `put` returns; [`BuildError::TooManyEntries`] beyond what a root can index.
    pub fn finish<E>(mut self, put: &mut impl FnMut(Vec<u8>) -> Result<Digest, E>) -> Result<TreeRoot, BuildError<E>> {
        self.finish_leaf(put)?;
        let children = match self.leaves.len() {
            0 => {
                let digest = put(Node::Leaf(Vec::new()).encode()).map_err(BuildError::Put)?;
                return Ok(TreeRoot { digest, entries: 0 });
            }
            1 => return Ok(TreeRoot { digest: self.leaves[0].digest, entries: self.leaves[0].entries }),
            2..=MAX_ROOT_LEAVES => return put_root(1, self.leaves, put),
            _ => self.leaves,
        };
        let mut upper: Vec<Child> = Vec::new();
        let mut group: Vec<Child> = Vec::new();
        let count = children.len();
        for (at, child) in children.into_iter().enumerate() {
            let ends = ends_node(&child.first, 1, group.len() + 1) || at + 1 == count;
            group.push(child);
            if ends {
                let node = Node::Index { level: 1, children: std::mem::take(&mut group) };
                let Node::Index { children, .. } = &node else { continue };
                let (first, entries) = (children[0].first.clone(), node.entries());
                upper.push(Child { first, entries, digest: put(node.encode()).map_err(BuildError::Put)? });
            }
        }
        put_root(2, upper, put)
    }
}

fn put_root<E>(level: u8, children: Vec<Child>, put: &mut impl FnMut(Vec<u8>) -> Result<Digest, E>) -> Result<TreeRoot, BuildError<E>> {
    let node = Node::Index { level, children };
    let bytes = node.encode();
    if bytes.len() > crate::chunk::MAX_OBJECT_LEN as usize {
        return Err(BuildError::TooManyEntries);
    }
    Ok(TreeRoot { entries: node.entries(), digest: put(bytes).map_err(BuildError::Put)? })
}

/// Why a tree could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E> {
    /// Entries did not come in ascending order, or one came twice.
    #[error("entry {0} is out of order or there twice")]
    Order(LayerPath),
    /// The extended attributes of an entry take too many bytes.
    #[error("the attributes of {0} are too large")]
    TooLarge(LayerPath),
    /// More entries than a root can index.
    #[error("a layer cannot hold so many entries")]
    TooManyEntries,
    /// Storing a node failed.
    #[error("storing a tree node failed")]
    Put(#[source] E),
}

/// Whether a node of `level` with `count` items ends after the item `path`: one path in 64, from 16 items on.
fn ends_node(path: &LayerPath, level: u8, count: usize) -> bool {
    if count < *NODE_ITEMS.start() {
        return false;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[level]);
    hasher.update(path.as_bytes());
    let hash = Digest(*hasher.finalize().as_bytes());
    count >= *NODE_ITEMS.end() || hash.prefix64().is_multiple_of(64)
}

/// What a search needs or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// The tree object `digest` must be fed next.
    Need(Digest),
    /// The answer.
    Done(T),
}

/// Finds one entry. Ask [`Lookup::step`]; while it says [`Step::Need`], feed it that node.
#[derive(Debug, Clone)]
pub struct Lookup {
    path: LayerPath,
    state: Step<Option<Entry>>,
    /// Level that the next node must have; `None` for the root.
    level: Option<u8>,
}

impl Lookup {
    /// Looks for `path` in the tree with this root.
    pub fn new(root: Digest, path: LayerPath) -> Self {
        Self { path, state: Step::Need(root), level: None }
    }

    /// The next step.
    pub fn step(&self) -> &Step<Option<Entry>> {
        &self.state
    }

    /// Gives the search the node that it asked for.
    ///
    /// # Errors
    /// If the node has another level than its parent says.
    pub fn feed(&mut self, node: &Node) -> Result<(), FormatError> {
        check_level(node, self.level)?;
        self.state = match node {
            Node::Leaf(entries) => {
                let found = entries.binary_search_by(|entry| entry.path.cmp(&self.path)).ok();
                Step::Done(found.and_then(|at| entries.get(at)).cloned())
            }
            Node::Index { level, children } => {
                self.level = Some(level - 1);
                Step::Need(children[Node::child_for(children, &self.path)].digest)
            }
        };
        Ok(())
    }
}

fn check_level(node: &Node, expected: Option<u8>) -> Result<(), FormatError> {
    let level = match node {
        Node::Leaf(_) => 0,
        Node::Index { level, .. } => *level,
    };
    match expected {
        Some(expected) if expected != level => Err(FormatError::invalid("tree node", "its level does not match its parent")),
        _ => Ok(()),
    }
}

/// Walks entries in order, from a given path on: a directory listing, or a whole layer.
#[derive(Debug, Clone)]
pub struct Scan {
    /// Nodes still to visit, next one last, with their level.
    pending: Vec<(Digest, Option<u8>)>,
    from: LayerPath,
    /// Only the children of this directory, if set.
    directory: Option<LayerPath>,
    /// Whether `from` still has to be looked for.
    seeking: bool,
    ready: std::collections::VecDeque<Entry>,
}

impl Scan {
    /// All entries of the tree.
    pub fn all(root: Digest) -> Self {
        Self { pending: vec![(root, None)], from: LayerPath::root(), directory: None, seeking: false, ready: Default::default() }
    }

    /// The children of `directory`, in order of their names, starting after the name `after` if given.
    pub fn directory(root: Digest, directory: LayerPath, after: Option<&[u8]>) -> Self {
        // The smallest name is one byte; every child sorts at or after it, every smaller directory before.
        let from = directory.join(after.unwrap_or(b"\x01")).unwrap_or_else(|_| directory.clone());
        Self { pending: vec![(root, None)], from, directory: Some(directory), seeking: true, ready: Default::default() }
    }

    /// The next entry, or the node needed to find it, or `Done(None)` at the end.
    pub fn step(&mut self) -> Step<Option<Entry>> {
        if let Some(entry) = self.ready.pop_front() {
            return Step::Done(Some(entry));
        }
        match self.pending.last() {
            Some((digest, _)) => Step::Need(*digest),
            None => Step::Done(None),
        }
    }

    /// Gives the scan the node that it asked for.
    ///
    /// # Errors
    /// If the node has another level than its parent says.
    pub fn feed(&mut self, node: &Node) -> Result<(), FormatError> {
        let Some((_, level)) = self.pending.pop() else { return Ok(()) };
        check_level(node, level)?;
        match node {
            Node::Index { level, children } => {
                let start = if self.seeking { Node::child_for(children, &self.from) } else { 0 };
                let wanted = children[start..].iter().enumerate().take_while(|(at, child)| *at == 0 || self.may_hold(&child.first));
                let mut below: Vec<_> = wanted.map(|(_, child)| (child.digest, Some(level - 1))).collect();
                below.reverse();
                self.pending.append(&mut below);
            }
            Node::Leaf(entries) => {
                for entry in entries {
                    if self.directory.is_none() || (entry.path >= self.from && self.is_child(&entry.path)) {
                        self.ready.push_back(entry.clone());
                    } else if entry.path > self.from && !self.may_hold(&entry.path) {
                        self.pending.clear();
                        break;
                    }
                }
                self.seeking = false;
            }
        }
        Ok(())
    }

    fn is_child(&self, path: &LayerPath) -> bool {
        match (&self.directory, path.split()) {
            (Some(directory), Some((parent, _))) => parent == directory.as_bytes(),
            _ => false,
        }
    }

    /// Whether a node that starts with `first` may hold entries of the scan.
    fn may_hold(&self, first: &LayerPath) -> bool {
        match &self.directory {
            None => true,
            Some(directory) => first.split().map(|(parent, _)| parent).unwrap_or_default() <= directory.as_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Kind, Meta};
    use crate::recipe::Recipe;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet, HashMap};
    use std::convert::Infallible;

    type Objects = HashMap<Digest, Vec<u8>>;

    fn entry(path: &LayerPath, is_dir: bool) -> Entry {
        let kind = if is_dir { Kind::Directory { opaque: false } } else { Kind::File(Recipe::Extents(vec![])) };
        Entry { path: path.clone(), meta: Meta { mode: 0o644, ..Meta::default() }, kind }
    }

    fn build(entries: impl IntoIterator<Item = Entry>) -> (TreeRoot, Objects) {
        let mut objects = Objects::new();
        let mut put = |bytes: Vec<u8>| {
            let digest = Digest::of(&bytes);
            objects.insert(digest, bytes);
            Ok::<_, Infallible>(digest)
        };
        let mut builder = TreeBuilder::new();
        for entry in entries {
            builder.push(entry, &mut put).unwrap();
        }
        let root = builder.finish(&mut put).unwrap();
        (root, objects)
    }

    fn lookup(root: &TreeRoot, objects: &Objects, path: &LayerPath) -> (Option<Entry>, usize) {
        let mut search = Lookup::new(root.digest, path.clone());
        let mut fetches = 0;
        loop {
            match search.step() {
                Step::Need(digest) => {
                    fetches += 1;
                    let node = Node::decode(&objects[digest]).unwrap();
                    search.feed(&node).unwrap();
                }
                Step::Done(found) => return (found.clone(), fetches),
            }
        }
    }

    fn scan(mut scan: Scan, objects: &Objects) -> Vec<LayerPath> {
        let mut found = Vec::new();
        loop {
            match scan.step() {
                Step::Need(digest) => scan.feed(&Node::decode(&objects[&digest]).unwrap()).unwrap(),
                Step::Done(Some(entry)) => found.push(entry.path),
                Step::Done(None) => return found,
            }
        }
    }

    fn files(count: usize) -> BTreeSet<LayerPath> {
        (0..count).map(|n| LayerPath::new(format!("usr/lib/d{}/e{}/file{n}", n % 97, n % 11)).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_a_map(names in proptest::collection::btree_set("[ab\u{1}]{1,2}(/[ab-]{1,2}){0,3}", 0..400), probes in proptest::collection::vec("[ab]{1,2}(/[ab-]{1,2}){0,3}", 20)) {
            let mut model: BTreeMap<LayerPath, bool> = BTreeMap::from([(LayerPath::root(), true)]);
            for name in &names {
                model.insert(LayerPath::new(name.as_bytes()).unwrap(), name.len() % 2 == 0);
            }
            let (root, objects) = build(model.iter().map(|(path, dir)| entry(path, *dir)));
            prop_assert_eq!(root.entries, model.len() as u64);
            prop_assert_eq!(scan(Scan::all(root.digest), &objects), model.keys().cloned().collect::<Vec<_>>());
            for probe in names.iter().chain(&probes) {
                let path = LayerPath::new(probe.as_bytes()).unwrap();
                prop_assert_eq!(lookup(&root, &objects, &path).0, model.get(&path).map(|dir| entry(&path, *dir)));
                let children: Vec<LayerPath> = model.keys().filter(|key| key.split().is_some_and(|(parent, _)| parent == path.as_bytes())).cloned().collect();
                prop_assert_eq!(scan(Scan::directory(root.digest, path.clone(), None), &objects), children.clone());
                if let Some(first) = children.first() {
                    let mut after = first.name().to_vec();
                    after.push(0x01);
                    let rest: Vec<LayerPath> = children.iter().filter(|child| child.name() >= &after[..]).cloned().collect();
                    prop_assert_eq!(scan(Scan::directory(root.digest, path.clone(), Some(&after)), &objects), rest);
                }
            }
            for bytes in objects.values() {
                prop_assert_eq!(&Node::decode(bytes).unwrap().encode(), bytes);
            }
        }
    }

    #[test]
    fn a_path_among_100_000_is_found_with_two_fetches_after_the_root() {
        let paths = files(100_000);
        let (root, objects) = build(paths.iter().map(|path| entry(path, false)));
        for path in paths.iter().step_by(997) {
            let (found, fetches) = lookup(&root, &objects, path);
            assert!(found.is_some());
            assert!(fetches <= 3, "{fetches} fetches with the root");
        }
        let largest = objects.values().map(Vec::len).max().unwrap();
        assert!(largest <= 32 * 1024, "the largest node has {largest} bytes");
    }

    #[test]
    fn a_new_file_changes_one_path_of_nodes() {
        let mut paths = files(50_000);
        let (_, before) = build(paths.iter().map(|path| entry(path, false)));
        paths.insert(LayerPath::new("usr/lib/d50/e5/new").unwrap());
        let (_, after) = build(paths.iter().map(|path| entry(path, false)));
        let fresh = after.keys().filter(|digest| !before.contains_key(digest)).count();
        assert!(fresh <= 4, "{fresh} new nodes");
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let mut builder = TreeBuilder::new();
        let mut put = |bytes: Vec<u8>| Ok::<_, Infallible>(Digest::of(&bytes));
        let b = LayerPath::new("b").unwrap();
        builder.push(entry(&b, false), &mut put).unwrap();
        assert!(matches!(builder.push(entry(&b, false), &mut put), Err(BuildError::Order(_))));
        let node = Node::Leaf(vec![entry(&b, false), entry(&LayerPath::new("a").unwrap(), false)]);
        assert!(Node::decode(&node.encode()).is_err());
    }

    #[test]
    fn golden_leaf() {
        let root = entry(&LayerPath::root(), true);
        let mut link = entry(&LayerPath::new("bin").unwrap(), false);
        link.kind = Kind::Symlink(b"usr/bin".to_vec());
        link.meta = Meta { mode: 0o777, uid: 1, gid: 2, mtime_s: -3, mtime_ns: 4, xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())], hard_link: None };
        let bytes = Node::Leaf(vec![root, link]).encode();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }
    const GOLDEN: &str = "544254010002000001a40300000000000362696e22ff03010205040106757365722e610162077573722f62696e";
}
