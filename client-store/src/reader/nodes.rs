//! Parsed tree and recipe nodes, kept in memory and shared by all layers of a run.

use std::sync::Arc;

use layer_format::Digest;
use layer_format::recipe::Recipe;
use layer_format::trace::Source;
use layer_format::tree::Node;
use lru::LruCache;
use parking_lot::Mutex;

use crate::error::FetchError;
use crate::fetch::{Choose, Fetcher, Wanted};

/// Bytes of encoded nodes whose parsed form is kept. Parsed they take about four times as much.
pub const DEFAULT_NODE_BYTES: usize = 16 << 20;

#[derive(Clone, Debug)]
enum Parsed {
    Tree(Arc<Node>),
    Recipe(Arc<Recipe>),
}

#[derive(Debug)]
struct Kept {
    nodes: LruCache<Digest, Item>,
    bytes: usize,
}

#[derive(Debug)]
struct Item {
    parsed: Parsed,
    len: usize,
    /// Whether the application needed it, or it was only looked at to tell what it may need.
    used: bool,
}

/// Parsed nodes, by digest.
#[derive(Debug)]
pub struct Nodes {
    fetcher: Arc<Fetcher>,
    kept: Mutex<Kept>,
    max_bytes: usize,
}

impl Nodes {
    /// An empty cache of at most `max_bytes` of encoded nodes.
    pub fn new(fetcher: Arc<Fetcher>, max_bytes: usize) -> Self {
        Self { fetcher, kept: Mutex::new(Kept { nodes: LruCache::unbounded(), bytes: 0 }), max_bytes }
    }

    /// The fetcher behind it.
    pub fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    fn kept(&self, digest: &Digest) -> Option<Parsed> {
        self.kept.lock().nodes.get(digest).map(|item| item.parsed.clone())
    }

    /// The same for the application: the first use counts.
    fn use_kept(&self, digest: &Digest) -> Option<(Parsed, Source)> {
        let (parsed, len) = {
            let mut kept = self.kept.lock();
            let item = kept.nodes.get_mut(digest)?;
            let first = !std::mem::replace(&mut item.used, true);
            (item.parsed.clone(), first.then_some(item.len))
        };
        Some((parsed, len.map_or(Source::Local, |len| self.fetcher.used(digest, len))))
    }

    fn keep(&self, digest: Digest, parsed: Parsed, len: usize, used: bool) {
        let mut kept = self.kept.lock();
        kept.bytes += len;
        if let Some(old) = kept.nodes.put(digest, Item { parsed, len, used }) {
            kept.bytes -= old.len;
        }
        while kept.bytes > self.max_bytes && kept.nodes.len() > 1 {
            let Some((_, old)) = kept.nodes.pop_lru() else { return };
            kept.bytes -= old.len;
        }
    }

    /// The tree node of this name, and where it came from (local, if it was parsed before).
    ///
    /// # Errors
    /// [`FetchError`] if it cannot be had, or is not a tree node.
    pub fn tree(&self, digest: &Digest, choose: Choose<'_>) -> Result<(Arc<Node>, Source), FetchError> {
        if let Some((Parsed::Tree(node), source)) = self.use_kept(digest) {
            return Ok((node, source));
        }
        let (bytes, source) = self.fetch(digest, choose)?;
        let node = Node::decode(&bytes).map_err(|source| FetchError::Format { digest: *digest, source })?;
        let node = Arc::new(node);
        self.keep(*digest, Parsed::Tree(node.clone()), bytes.len(), true);
        Ok((node, source))
    }

    /// The recipe node of this name.
    ///
    /// # Errors
    /// [`FetchError`] if it cannot be had, or is not a recipe node.
    pub fn recipe(&self, digest: &Digest, choose: Choose<'_>) -> Result<Arc<Recipe>, FetchError> {
        if let Some((Parsed::Recipe(node), _)) = self.use_kept(digest) {
            return Ok(node);
        }
        let (bytes, _) = self.fetch(digest, choose)?;
        let node = Recipe::decode_node(&bytes).map_err(|source| FetchError::Format { digest: *digest, source })?;
        let node = Arc::new(node);
        self.keep(*digest, Parsed::Recipe(node.clone()), bytes.len(), true);
        Ok(node)
    }

    /// The tree node, if it is on this machine.
    pub fn local_tree(&self, digest: &Digest) -> Option<Arc<Node>> {
        if let Some(Parsed::Tree(node)) = self.kept(digest) {
            return Some(node);
        }
        let bytes = self.fetcher.local(digest)?;
        let node = Node::decode(&bytes).ok().map(Arc::new)?;
        self.keep(*digest, Parsed::Tree(node.clone()), bytes.len(), false);
        Some(node)
    }

    /// The recipe node, if it is on this machine.
    pub fn local_recipe(&self, digest: &Digest) -> Option<Arc<Recipe>> {
        if let Some(Parsed::Recipe(node)) = self.kept(digest) {
            return Some(node);
        }
        let bytes = self.fetcher.local(digest)?;
        let node = Recipe::decode_node(&bytes).ok().map(Arc::new)?;
        self.keep(*digest, Parsed::Recipe(node.clone()), bytes.len(), false);
        Some(node)
    }

    fn fetch(&self, digest: &Digest, choose: Choose<'_>) -> Result<(bytes::Bytes, Source), FetchError> {
        let mut found = self.fetcher.get_many(&[Wanted { digest: *digest, len: 0 }], choose)?;
        let fetched = found.pop().ok_or(FetchError::NotFound { digest: *digest })?;
        Ok((fetched.bytes, fetched.source))
    }
}
