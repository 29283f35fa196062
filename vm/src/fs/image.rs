//! The merged view of image layers. Immutable: the kernel may keep all it learns for ever.
//!
//! Each directory remembers which layers it exists in, so a lookup asks only those, each once, highest first, and stops
//! where nothing lower can matter; no directory is listed to find a name. Where overlayfs merges a directory with the
//! host's, tombstones and opaque directories are shown in its form; elsewhere they just take effect.

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use client_store::view::Caller;
use client_store::{FetchError, LayerView};
use layer_format::LayerPath;
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::recipe::{Extent, Recipe};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::inodes::{Identity, Inodes};
use super::listing::Listing;
use super::merge::{self, Verdict, is_whiteout};
use super::{Attr, NodeKind, ROOT, Space, Stubs, Tree};
use crate::rules::Rules;

/// How many listings are kept half-read.
const LISTINGS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// How many failed paths are remembered, so that each is logged once.
const MAX_LOGGED: usize = 1000;
/// What overlayfs asks about a directory. Attributes of an image below this name are not shown: they would be orders to it.
const OVERLAY_PREFIX: &[u8] = b"user.overlay.";
const OPAQUE: &[u8] = b"user.overlay.opaque";

/// Whether the host shows a directory at a path.
pub type HostHas = Box<dyn Fn(&LayerPath) -> bool + Send + Sync>;

/// Layers, lowest first, as one tree.
pub struct ImageFs {
    /// The stubs are layer 0; the images' follow.
    layers: Vec<Arc<dyn LayerView>>,
    /// Directories in the root that are always mounted over, so that no layer needs to be asked about them.
    always: Stubs,
    stubs: Arc<Stubs>,
    /// Which files higher layers do not replace.
    rules: Arc<Rules>,
    /// `None` if the host is not below.
    host_has: Option<HostHas>,
    /// Directories with the mode Hide: found, so that they can be mounted over, but empty and not listed.
    covered: BTreeSet<LayerPath>,
    inodes: Inodes<Node>,
    /// The root's entry is read when it is first needed, not when the filesystem is made.
    root: Mutex<Option<Entry>>,
    listings: Mutex<LruCache<u64, Arc<Mutex<Listing>>>>,
    logged: Mutex<HashSet<LayerPath>>,
}

impl std::fmt::Debug for ImageFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageFs").field("layers", &self.layers.len()).field("host_below", &self.host_has.is_some()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Node {
    /// `None` for the root.
    entry: Option<Entry>,
    layers: Vec<u16>,
    closed: bool,
    /// Whether overlayfs merges this directory with the host's.
    host: bool,
}

/// A file with several names is one inode; anything else is its path.
#[derive(PartialEq, Hash)]
enum Key<'a> {
    Path(&'a [u8]),
    HardLink(u16, u64),
}

impl Identity for Node {
    type Key<'a> = Key<'a>;

    fn key(&self) -> Key<'_> {
        match &self.entry {
            Some(entry) => match (&entry.meta.hard_link, self.layers.first()) {
                (Some(link), Some(layer)) if !entry.is_dir() => Key::HardLink(*layer, link.group),
                _ => Key::Path(entry.path.as_bytes()),
            },
            None => Key::Path(b""),
        }
    }
}

impl Node {
    fn path(&self) -> LayerPath {
        self.entry.as_ref().map(|entry| entry.path.clone()).unwrap_or_default()
    }
}

impl ImageFs {
    /// `always` are directories in the root that no layer is asked about; `stubs` exist where no layer has the name.
    pub fn new(layers: Vec<Arc<dyn LayerView>>, always: Stubs, stubs: Stubs, host_has: Option<HostHas>) -> Self {
        let stubs = Arc::new(stubs);
        let lowest: Arc<dyn LayerView> = Arc::clone(&stubs) as Arc<dyn LayerView>;
        let layers: Vec<_> = std::iter::once(lowest).chain(layers).take(usize::from(u16::MAX)).collect();
        let root = Node { entry: None, layers: (0..layers.len() as u16).rev().collect(), closed: false, host: host_has.is_some() };
        Self {
            layers,
            always,
            stubs,
            rules: Arc::default(),
            host_has,
            covered: BTreeSet::new(),
            inodes: Inodes::new(root),
            root: Mutex::new(None),
            listings: Mutex::new(LruCache::new(LISTINGS)),
            logged: Mutex::new(HashSet::new()),
        }
    }

    /// Shows nothing at these paths but a place to mount on, which is not listed, in each directory that some layer has.
    #[must_use]
    pub fn covering(self, covered: BTreeSet<LayerPath>) -> Self {
        Self { covered, ..self }
    }

    /// Honours [`Rules::kept_by`], whose layers are counted as those given to [`ImageFs::new`].
    pub fn keeping(mut self, rules: Arc<Rules>) -> Self {
        self.rules = rules;
        self
    }

    /// The layer that keeps its file at a path: by our numbers, of which the stubs have the first.
    fn kept_by(&self, path: &LayerPath) -> Option<u16> {
        self.rules.kept_by(path).and_then(|layer| u16::try_from(layer + 1).ok())
    }

    fn layer(&self, number: u16) -> Option<Arc<dyn LayerView>> {
        self.layers.get(usize::from(number)).cloned()
    }

    fn node(&self, ino: u64) -> Result<Arc<Node>, Errno> {
        self.inodes.get(ino).ok_or(Errno::STALE)
    }

    fn directory(&self, ino: u64) -> Result<Arc<Node>, Errno> {
        let node = self.node(ino)?;
        if node.entry.as_ref().is_none_or(Entry::is_dir) { Ok(node) } else { Err(Errno::NOTDIR) }
    }

    fn file(&self, ino: u64) -> Result<(Arc<Node>, Arc<dyn LayerView>), Errno> {
        let node = self.node(ino)?;
        let layer = node.layers.first().and_then(|layer| self.layer(*layer)).ok_or(Errno::IO)?;
        match node.entry.as_ref().map(|entry| &entry.kind) {
            Some(Kind::File(_)) => Ok((node, layer)),
            None | Some(Kind::Directory { .. }) => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// What a child of a directory is.
    fn resolve(&self, directory: &Node, path: &LayerPath, caller: Caller) -> Result<Verdict, Errno> {
        let accept = |number, entry: &Entry| self.counts(number, entry);
        let found = merge::resolve(path, &directory.layers, self.kept_by(path), |number| self.layer(number), accept, caller);
        let verdict = found.map_err(|error| self.failed(path, &error))?;
        Ok(Verdict { host: directory.host, ..verdict })
    }

    /// Whether an entry takes part. Images made from containers often have an empty `/etc/resolv.conf`, or a link to a file
    /// of a service that does not run here; such a one gives way to a stub that has content.
    fn counts(&self, layer: u16, entry: &Entry) -> bool {
        let useless = match &entry.kind {
            Kind::File(recipe) => recipe.is_empty(),
            Kind::Symlink(target) => [&b"/run/"[..], b"../run/", b"/var/run/"].iter().any(|start| target.starts_with(start)),
            _ => false,
        };
        layer == 0 || !useless || self.stubs.content(&entry.path).is_empty()
    }

    fn failed(&self, path: &LayerPath, error: &FetchError) -> Errno {
        let mut logged = self.logged.lock();
        if logged.len() < MAX_LOGGED && logged.insert(path.clone()) {
            tracing::error!(path = %path, "the application got EIO for {path}: {error}");
        }
        Errno::IO
    }

    fn root_entry(&self, caller: Caller) -> Result<Entry, Errno> {
        if let Some(entry) = &*self.root.lock() {
            return Ok(entry.clone());
        }
        // The lock is not held meanwhile: it may take long, and asking twice is harmless.
        let root = LayerPath::root();
        let top = self.layers.iter().rev().find_map(|layer| layer.lookup(&root, caller).transpose());
        let entry = top.transpose().map_err(|error| self.failed(&root, &error))?.ok_or(Errno::IO)?;
        Ok(self.root.lock().insert(entry).clone())
    }

    fn remember(&self, verdict: &Verdict) -> Option<Attr> {
        let node = self.to_node(verdict)?;
        let (ino, node) = self.inodes.insert(node, |_, _| false);
        node.entry.as_ref().map(|entry| attr(ino, entry))
    }

    fn to_node(&self, verdict: &Verdict) -> Option<Node> {
        let entry = verdict.visible()?.clone();
        let merged = verdict.host && !verdict.closed && entry.is_dir();
        let host = merged && self.host_has.as_ref().is_some_and(|host_has| host_has(&entry.path));
        Some(Node { closed: verdict.closed && entry.is_dir(), layers: verdict.layers.clone(), entry: Some(entry), host })
    }

    /// A directory that is mounted over.
    fn mount_point(&self, parent: u64, path: &LayerPath) -> Option<Verdict> {
        if self.covered.contains(path) {
            let entry = Entry { path: path.clone(), meta: Meta { mode: 0o700, ..Meta::default() }, kind: Kind::Directory { opaque: true } };
            return Some(Verdict { found: Some(entry), closed: true, ..Verdict::default() });
        }
        let entry = if parent == ROOT { self.always.get(path) } else { None };
        entry.map(|entry| Verdict { found: Some(entry.clone()), ..Verdict::default() })
    }

    #[cfg(test)]
    pub(super) fn inode_count(&self) -> usize {
        self.inodes.count()
    }
}

impl Tree for ImageFs {
    type Child = Arc<Verdict>;

    fn lookup(&self, parent: u64, name: &[u8], caller: Caller) -> Result<Option<Attr>, Errno> {
        let directory = self.directory(parent)?;
        let path = directory.path().join(name).map_err(|_| Errno::NAMETOOLONG)?;
        let verdict = match self.mount_point(parent, &path) {
            Some(verdict) => verdict,
            None => self.resolve(&directory, &path, caller)?,
        };
        Ok(self.remember(&verdict))
    }

    fn forget(&self, ino: u64, count: u64) {
        self.inodes.forget(ino, count);
    }

    fn attr(&self, ino: u64, caller: Caller) -> Result<Attr, Errno> {
        match &self.node(ino)?.entry {
            Some(entry) => Ok(attr(ino, entry)),
            None => self.root_entry(caller).map(|entry| attr(ROOT, &entry)),
        }
    }

    fn open(&self, _ino: u64) -> Result<(u64, bool), Errno> {
        Err(Errno::NOSYS)
    }

    fn close(&self, _handle: u64) {}

    fn read(&self, ino: u64, _handle: u64, offset: u64, len: usize, caller: Caller) -> Result<Vec<u8>, Errno> {
        let (node, layer) = self.file(ino)?;
        let entry = node.entry.as_ref().ok_or(Errno::ISDIR)?;
        layer.read(entry, offset, len, caller).map_err(|error| self.failed(&entry.path, &error))
    }

    fn seek(&self, ino: u64, _handle: u64, offset: u64, hole: bool, caller: Caller) -> Result<u64, Errno> {
        let (node, layer) = self.file(ino)?;
        let entry = node.entry.as_ref().ok_or(Errno::ISDIR)?;
        if offset >= entry.len() {
            return Err(Errno::NXIO);
        }
        layer.seek(entry, offset, hole, caller).map_err(|error| self.failed(&entry.path, &error))?.ok_or(Errno::NXIO)
    }

    fn open_dir(&self, _ino: u64) -> Result<u64, Errno> {
        Err(Errno::NOSYS)
    }

    fn close_dir(&self, _handle: u64) {}

    fn list(&self, ino: u64, _handle: u64, index: usize, max: usize, caller: Caller) -> Result<Vec<Arc<Verdict>>, Errno> {
        let directory = self.directory(ino)?;
        let path = directory.path();
        // The directories that are mounted over come first in the root, and not again among the others.
        let always: Vec<&Entry> = if ino == ROOT { self.always.children(&path).collect() } else { Vec::new() };
        let first = always.iter().skip(index).take(max);
        let mut page: Vec<Arc<Verdict>> = first.filter_map(|entry| self.mount_point(ino, &entry.path).map(Arc::new)).collect();
        let listing = self.listings.lock().get_or_insert(ino, || Arc::new(Mutex::new(Listing::new(path.clone(), &directory.layers, directory.host)))).clone();
        let keep = |verdict: &Verdict| {
            let shown = |entry: &Entry| !always.iter().any(|stub| stub.path == entry.path) && !self.covered.contains(&entry.path);
            verdict.visible().is_some_and(shown)
        };
        let (from, rest) = (index.saturating_sub(always.len()), max - page.len());
        let accept = |number, entry: &Entry| {
            let kept = self.kept_by(&entry.path).filter(|kept| directory.layers.contains(kept));
            self.counts(number, entry) && !merge::gives_way(&entry.path, number, kept, |number| self.layer(number), caller)
        };
        let found = listing.lock().get(from, rest, &|layer| self.layer(layer), &keep, &accept, caller);
        page.extend(found.map_err(|error| self.failed(&path, &error))?);
        if page.is_empty() {
            // The end: the kernel caches the listing.
            self.listings.lock().pop(&ino);
        }
        Ok(page)
    }

    fn name(child: &Arc<Verdict>) -> &[u8] {
        child.found.as_ref().map(|entry| entry.path.name()).unwrap_or_default()
    }

    fn peek(&self, child: &Arc<Verdict>) -> (u64, NodeKind) {
        let node = self.to_node(child);
        let kind = node.as_ref().and_then(|node| node.entry.as_ref()).map_or(NodeKind::File, kind);
        (node.map_or(0, |node| Inodes::number(&node)), kind)
    }

    fn enter(&self, child: &Arc<Verdict>) -> Option<Attr> {
        self.remember(child)
    }

    fn read_link(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        match &self.node(ino)?.entry {
            Some(Entry { kind: Kind::Symlink(target), .. }) => Ok(target.clone()),
            _ => Err(Errno::INVAL),
        }
    }

    fn xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let node = self.node(ino)?;
        if name == OPAQUE && self.host_has.is_some() && node.closed {
            return Ok(b"y".to_vec());
        }
        let found = node.entry.as_ref().and_then(|entry| entry.meta.xattrs.iter().find(|(have, _)| have == name));
        found.filter(|_| !name.starts_with(OVERLAY_PREFIX)).map(|(_, value)| value.clone()).ok_or(Errno::NODATA)
    }

    fn xattr_names(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        let node = self.node(ino)?;
        let names = node.entry.iter().flat_map(|entry| &entry.meta.xattrs).map(|(name, _)| name).filter(|name| !name.starts_with(OVERLAY_PREFIX));
        Ok(names.flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    fn space(&self) -> Space {
        Space { block_size: 4096, ..Space::default() }
    }
}

pub(super) fn kind(entry: &Entry) -> NodeKind {
    match entry.kind {
        Kind::File(_) => NodeKind::File,
        Kind::Directory { .. } => NodeKind::Directory,
        Kind::Symlink(_) => NodeKind::Symlink,
        Kind::Fifo => NodeKind::Fifo,
        Kind::Socket => NodeKind::Socket,
        Kind::CharDevice { .. } | Kind::Whiteout => NodeKind::CharDevice,
        Kind::BlockDevice { .. } => NodeKind::BlockDevice,
    }
}

pub(super) fn attr(ino: u64, entry: &Entry) -> Attr {
    let meta = &entry.meta;
    let (perm, rdev) = match entry.kind {
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } if !is_whiteout(entry) => (meta.mode, encode_device(major, minor)),
        _ if is_whiteout(entry) => (0, 0),
        _ => (meta.mode, 0),
    };
    let time = (meta.mtime_s, meta.mtime_ns);
    let nlink = if entry.is_dir() { 1 } else { meta.hard_link.map_or(1, |link| link.count) };
    Attr { ino, kind: kind(entry), perm, nlink, size: entry.len(), blocks: blocks(entry), atime: time, mtime: time, ctime: time, rdev }
}

/// Space taken. Programs that copy holes look for them only in files that take less space than their length needs. The
/// holes of a file with recipe nodes are not known without fetching them, so it claims a block less: they will ask.
fn blocks(entry: &Entry) -> u64 {
    match &entry.kind {
        Kind::File(Recipe::Extents(extents)) => extents.iter().filter(|extent| matches!(extent, Extent::Data(_))).map(Extent::len).sum::<u64>().div_ceil(512),
        Kind::File(recipe) => (recipe.len() / 512).saturating_sub(1),
        _ => 0,
    }
}

/// A device number as the kernel's `new_encode_dev`.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
