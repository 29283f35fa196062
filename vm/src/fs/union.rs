//! The read-write union of layers, host and sandbox, for the subtrees where each file needs a decision of its own.
//!
//! Overlayfs does write-copy and full isolation at native speed, for a whole tree. This does all modes, file modes and attributes,
//! for the whole path space, so that any subtree of it can be mounted where overlayfs does not suffice:
//!
//! ```text
//!  lookup   sandbox, else topmost layer, else host where the mode shows it; a tombstone ends the search
//!  write    merge: what the host has and no layer or the sandbox has a name for is written on the host, in place
//!           otherwise copied to the sandbox first
//! ```
//!
//! The sandbox has overlayfs' form, so both can use it, one for this path and the other for that. The parts: [`view`] finds
//! what a name is; [`nodes`] remembers which inodes the kernel knows; [`upper`] and [`base`] touch the disk; the other modules
//! are the operations. Paths on disk are walked without following links: see [`base`].
//!
//! Locks, in the order in which they are taken: a node's `copying` (child before parent) or `content`; the `gate`, shared for a change
//! by path and exclusive for the moment in which a directory moves; `entries` of directories, by number; a node's `opened`; the
//! `table`; a node's state. None is held while a layer is asked, but a node's own `copying` and `content`.

mod attributes;
mod base;
mod copy;
mod copyup;
mod create;
mod files;
mod lists;
mod moves;
mod node;
mod nodes;
mod policy;
mod remove;
mod rename;
mod spot;
mod upper;
mod view;

use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use client_store::view::Caller;
use client_store::{FetchError, LayerView};
use layer_format::LayerPath;
use parking_lot::{Condvar, Mutex, RwLock};
use rustix::io::Errno;

use super::host::{Handles, NATIVE};
use super::{Attr, NodeKind, Space};
use crate::rules::Rules;
use base::Base;
use files::Handle;
use lists::DirHandle;
use node::{Node, Place, State};
use nodes::Table;
use spot::{Ground, Spot};
use upper::Upper;
use view::{DirView, Found};

pub use attributes::Change;
pub use create::Special;
pub use files::Opened;
pub use lists::Name;
pub use rename::Rename;

/// How many failed paths are remembered, so that each is logged once.
const MAX_LOGGED: usize = 1000;

/// What a union is made of.
#[derive(Clone)]
pub struct UnionOptions {
    /// Lowest first.
    pub layers: Vec<Arc<dyn LayerView>>,
    /// Modes and attributes.
    pub rules: Arc<Rules>,
    /// `<sandbox>/upper` on the host, in overlayfs' form; made if missing. `<sandbox>/work` is used for what is not complete.
    pub upper: PathBuf,
    /// Host paths never shown: the store, the sandbox.
    pub hidden: Vec<PathBuf>,
    /// Directories that must be found though nothing has them: shown empty, never created anywhere.
    pub passages: Vec<LayerPath>,
    /// The host's user id of the caller, to tell own host files from others'.
    pub uid: u32,
    /// The caller's group id.
    pub gid: u32,
}

impl std::fmt::Debug for UnionOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnionOptions").field("upper", &self.upper).field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

/// What an inode looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Attributes.
    pub attr: Attr,
    /// Whether it belongs to the user in the VM; otherwise to nobody in there.
    pub user: bool,
    /// Whether it belongs to the user's group.
    pub group: bool,
    /// Whether it changes only through the union, so that it may be believed for ever.
    pub fixed: bool,
}

/// What a lookup found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An inode, with a reference.
    Present(Shown),
    /// Nothing.
    Absent {
        /// Whether that changes only through the union.
        fixed: bool,
    },
}

/// The union. Every call may come from any thread; those that touch a layer may block as long as a [`LayerView`] does.
///
/// References are counted for each inode that an answer contains, and given back by [`UnionFs::forget`].
pub struct UnionFs {
    layers: Vec<Arc<dyn LayerView>>,
    rules: Arc<Rules>,
    /// Whether one mode holds everywhere, and nothing has attributes.
    bare: bool,
    upper: Upper,
    host: Base,
    hidden: Vec<LayerPath>,
    passages: Vec<LayerPath>,
    uid: u32,
    groups: Vec<u32>,
    /// The server's own; the kernel has applied the application's already.
    umask: u32,
    table: RwLock<Table>,
    gate: RwLock<()>,
    /// Directories that are being moved piece by piece: see [`UnionFs::settle`].
    moving: Mutex<HashSet<u64>>,
    moving_count: AtomicUsize,
    moved: Condvar,
    /// Defaulted files that were placed on the host, or deleted there, in this run.
    settled: Mutex<HashSet<LayerPath>>,
    handles: Handles<Handle>,
    listings: Handles<DirHandle>,
    logged: Mutex<HashSet<LayerPath>>,
}

impl std::fmt::Debug for UnionFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnionFs").field("layers", &self.layers.len()).field("upper", &self.upper).finish_non_exhaustive()
    }
}

impl UnionFs {
    /// Opens the sandbox, making and cleaning what it needs there.
    ///
    /// # Errors
    /// If the sandbox cannot be used.
    pub fn new(options: UnionOptions) -> io::Result<Self> {
        let work = options.upper.parent().map(|sandbox| sandbox.join("work")).unwrap_or_else(|| PathBuf::from("work"));
        Self::over(options, Path::new("/"), &work)
    }

    /// With the host's root and the working directory elsewhere: for tests.
    fn over(options: UnionOptions, host: &Path, work: &Path) -> io::Result<Self> {
        let native = NATIVE.iter().filter_map(|name| LayerPath::new(*name).ok());
        let hidden = options.hidden.iter().filter_map(|path| LayerPath::from_absolute(path.as_os_str().as_bytes()).ok()).filter(|path| !path.is_root());
        let rules = options.rules;
        let bare = rules.stated().all(|(path, _)| path.is_root()) && rules.stated_files().next().is_none() && rules.stated_attributes().next().is_none();
        let layers: Vec<_> = options.layers.into_iter().take(usize::from(u16::MAX)).collect();
        let upper = Upper::open(&options.upper, work)?;
        let closed = upper.is_opaque(&LayerPath::root())?;
        let root = State {
            place: Place::Upper,
            entry: None,
            layers: if closed { Vec::new() } else { (0..layers.len() as u16).rev().collect() },
            id: upper.stat(&LayerPath::root())?.as_ref().map(base::id),
            closed,
            touched: None,
            last: None,
            group: None,
        };
        let groups = rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).chain([options.gid]).collect();
        Ok(Self {
            layers,
            rules,
            bare,
            upper,
            host: Base::open(host)?,
            hidden: native.chain(hidden).collect(),
            passages: options.passages,
            uid: options.uid,
            groups,
            umask: own_umask(),
            table: RwLock::new(Table::new(root)),
            gate: RwLock::default(),
            moving: Mutex::default(),
            moving_count: AtomicUsize::new(0),
            moved: Condvar::new(),
            settled: Mutex::default(),
            handles: Handles::default(),
            listings: Handles::default(),
            logged: Mutex::default(),
        })
    }

    /// The child `name` of a directory, with a reference.
    ///
    /// # Errors
    /// `ENOTDIR`, `EIO` if data cannot be had, or what the host answers.
    pub fn lookup(&self, parent: u64, name: &[u8], caller: Caller) -> Result<Answer, Errno> {
        self.settle(parent);
        match self.look(parent, name, caller)? {
            Some((_, shown)) => Ok(Answer::Present(shown)),
            None => {
                let view = self.view(&*self.directory(parent)?)?;
                let path = view.path.join(name).map_err(|_| Errno::NAMETOOLONG)?;
                let policy = self.policy(&path);
                let live = policy.is_defaulted() || !view.closed && (policy.shows_host() || !self.bare && self.rules.leads_to_host(&path));
                Ok(Answer::Absent { fixed: !live })
            }
        }
    }

    /// As [`UnionFs::lookup`], for ourselves.
    fn look(&self, parent: u64, name: &[u8], caller: Caller) -> Result<Option<(Arc<Node>, Shown)>, Errno> {
        let dir = self.directory(parent)?;
        loop {
            let changes = self.table.read().changes(parent);
            let view = self.view(&dir)?;
            let Some(found) = self.find(&view, name, caller)? else {
                self.drop_stale(parent, name, changes);
                return Ok(None);
            };
            if found.seed {
                self.seed(&dir, &found, caller)?;
                continue;
            }
            if let Some((key, _)) = found.group()
                && self.table.read().group(&key).is_some_and(|group| group.copied.is_some())
                && self.join_group(&dir, &view, &found, &key)?
            {
                continue;
            }
            if let Some(entered) = self.register(&dir, &view, name, &found, Some(changes)) {
                return Ok(Some(entered));
            }
        }
    }

    /// A name that the host no longer has is no path of its inode.
    fn drop_stale(&self, parent: u64, name: &[u8], changes: u64) {
        if self.table.read().child(parent, name).is_some() {
            let mut table = self.table.write();
            if table.changes(parent) == changes {
                table.remove_name(parent, name);
            }
        }
    }

    /// Counts a reference to what was found; `None` if the directory has changed since `changes`.
    fn register(&self, dir: &Node, view: &DirView, name: &[u8], found: &Found, changes: Option<u64>) -> Option<(Arc<Node>, Shown)> {
        let mut table = self.table.write();
        let moved = |table: &Table| table.place(dir.ino).map_or(true, |(path, _)| path != view.path);
        if changes.is_some_and(|changes| table.changes(dir.ino) != changes || moved(&table)) {
            return None;
        }
        let node = table.enter(dir.ino, name, found.kind, found.key(), || found.state());
        drop(table);
        let shown = self.shown(&node, found);
        Some((node, shown))
    }

    /// Gives back `count` references.
    pub fn forget(&self, ino: u64, count: u64) {
        self.table.write().forget(ino, count);
    }

    /// Makes the directories down to `path` exist in the sandbox, as they are seen. Where overlayfs uses the same sandbox for what lies
    /// around a subtree of the union, this must be done before it is mounted: it would not notice them later, and fail
    /// to copy one of them itself.
    ///
    /// # Errors
    /// `ENOENT` if there is no such directory; as [`UnionFs::lookup`].
    pub fn claim(&self, path: &LayerPath, caller: Caller) -> Result<(), Errno> {
        let mut held = vec![self.node(super::ROOT)?];
        let claimed = path.as_bytes().split(|b| *b == b'/').filter(|name| !name.is_empty()).try_for_each(|name| {
            let parent = held.last().map_or(super::ROOT, |node| node.ino);
            let (node, _) = self.look(parent, name, caller)?.ok_or(Errno::NOENT)?;
            held.push(Arc::clone(&node));
            let _gate = self.gate.read();
            self.ensure_upper(&node)
        });
        held.iter().for_each(|node| self.forget(node.ino, 1));
        claimed
    }

    /// What the filesystem of the sandbox has room for.
    pub fn space(&self) -> Space {
        let Ok(found) = rustix::fs::fstatvfs(self.upper.base().root()) else { return Space::default() };
        Space {
            block_size: found.f_frsize as u32,
            blocks: found.f_blocks,
            free: found.f_bfree,
            available: found.f_bavail,
            files: found.f_files,
            files_free: found.f_ffree,
        }
    }

    fn node(&self, ino: u64) -> Result<Arc<Node>, Errno> {
        self.table.read().node(ino).ok_or(Errno::STALE)
    }

    fn directory(&self, ino: u64) -> Result<Arc<Node>, Errno> {
        let node = self.node(ino)?;
        if node.kind == NodeKind::Directory { Ok(node) } else { Err(Errno::NOTDIR) }
    }

    fn path(&self, node: &Node) -> Result<LayerPath, Errno> {
        self.table.read().place(node.ino).map(|(path, _)| path)
    }

    fn view(&self, dir: &Node) -> Result<DirView, Errno> {
        let table = self.table.read();
        let (path, closed) = table.place(dir.ino)?;
        let state = dir.state();
        Ok(DirView { path, upper: state.place == Place::Upper, layers: state.layers, closed })
    }

    /// Waits until no directory above `ino`, or itself, is being moved: its content is neither here nor there.
    fn settle(&self, ino: u64) {
        if self.moving_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut moving = self.moving.lock();
        loop {
            let table = self.table.read();
            let blocked = moving.iter().any(|above| table.is_below(ino, *above));
            drop(table);
            if !blocked {
                return;
            }
            self.moved.wait(&mut moving);
        }
    }

    fn failed(&self, path: &LayerPath, error: &FetchError) -> Errno {
        let mut logged = self.logged.lock();
        if logged.len() < MAX_LOGGED && logged.insert(path.clone()) {
            tracing::error!(path = %path, "the application got EIO for {path}: {error}");
        }
        Errno::IO
    }

    #[cfg(test)]
    fn inode_count(&self) -> usize {
        self.table.read().len()
    }
}

/// The permissions that this process's new files lack.
fn own_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|line| line.strip_prefix("Umask:")).and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
    found.unwrap_or(0o022)
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod model;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod moves_tests;
#[cfg(test)]
mod tables_tests;
#[cfg(test)]
mod tests;
