//! What an inode is: its place, and what can change about it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use layer_format::LayerPath;
use layer_format::entry::Entry;
use parking_lot::{Mutex, RwLock};

use super::super::host::Stamp;
use super::super::{Attr, NodeKind, Time};

/// Device and inode number.
pub(super) type Id = (u64, u64);

/// Where the content and the metadata of an inode are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Layer,
    Host,
    Upper,
    /// Nowhere: a directory that only has to be there.
    Stub,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// Something of the layers under its path.
    Path(LayerPath),
    /// A file of a layer with several names.
    Link(u16, u64),
    Host(Id),
    Upper(Id),
}

/// What can change about an inode.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) place: Place,
    /// What the highest layer has.
    pub(super) entry: Option<Arc<Entry>>,
    /// The layers that a directory is merged from, or that a file is in.
    pub(super) layers: Vec<u16>,
    /// Of what is on disk.
    pub(super) id: Option<Id>,
    /// Whether the host's directory of this path does not show through, whatever the mode.
    pub(super) closed: bool,
    /// When names in it changed on the host, while its metadata are not the host's.
    pub(super) touched: Option<Time>,
    /// What it was like when its last name went.
    pub(super) last: Option<Attr>,
    /// The group of hard links that it belongs to, if they are not all on one disk.
    pub(super) group: Option<Key>,
}

/// The descriptors by which an inode is reached that has no name, or was moved while it was open.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) count: u64,
    pub(super) file: Option<Arc<OwnedFd>>,
    /// Counts the moves of the content; an older descriptor is of no use.
    pub(super) epoch: u64,
}

/// An inode.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: u64,
    pub(super) kind: NodeKind,
    /// Held to change the names in this directory.
    pub(super) entries: Mutex<()>,
    /// Held to copy this to the sandbox.
    pub(super) copying: Mutex<()>,
    /// Shared by those who change the content; exclusive to move it elsewhere.
    pub(super) content: RwLock<()>,
    pub(super) opened: Mutex<Held>,
    /// The length and times at the last opening.
    pub(super) stamp: Mutex<Option<Stamp>>,
    pub(super) state: RwLock<State>,
}

impl Node {
    pub(super) fn new(ino: u64, kind: NodeKind, state: State) -> Self {
        Self {
            ino,
            kind,
            entries: Mutex::default(),
            copying: Mutex::default(),
            content: RwLock::default(),
            opened: Mutex::default(),
            stamp: Mutex::default(),
            state: RwLock::new(state),
        }
    }

    pub(super) fn state(&self) -> State {
        self.state.read().clone()
    }

    pub(super) fn place(&self) -> Place {
        self.state.read().place
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.write());
    }
}

/// Hard links of which some are in the sandbox and others still in a layer or on the host.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// How many names are not in the sandbox.
    pub(super) left: u32,
    /// The copy in the sandbox.
    pub(super) copied: Option<(Id, LayerPath)>,
}
