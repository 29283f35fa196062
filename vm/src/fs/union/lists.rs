//! Listings.

use std::sync::Arc;

use client_store::view::Caller;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::super::NodeKind;
use super::base::magic;
use super::node::Place;
use super::{Shown, UnionFs};

/// An open directory: its names as they were when it was opened or rewound, sorted.
#[derive(Debug)]
pub(super) struct DirHandle {
    ino: u64,
    names: Mutex<Snapshot>,
}

#[derive(Debug)]
struct Snapshot {
    names: Arc<Vec<Name>>,
    read: bool,
}

/// A name in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Its inode number, without a reference.
    pub ino: u64,
}

impl UnionFs {
    /// Opens a directory for listing.
    ///
    /// # Errors
    /// `ENOTDIR`; `EIO` if data cannot be had; what the host answers.
    pub fn open_dir(&self, ino: u64, caller: Caller) -> Result<u64, Errno> {
        let names = self.snapshot(ino, caller)?;
        Ok(self.listings.insert(DirHandle { ino, names: Mutex::new(Snapshot { names, read: false }) }))
    }

    /// Closes a directory.
    pub fn close_dir(&self, handle: u64) {
        self.listings.remove(handle);
    }

    /// At most `max` names from the `index`th on, without `.` and `..`, in the order of their bytes. From the start again, the
    /// names are those of now.
    ///
    /// # Errors
    /// As [`UnionFs::open_dir`].
    pub fn list(&self, handle: u64, index: usize, max: usize, caller: Caller) -> Result<Vec<Name>, Errno> {
        let open = self.listings.get(handle).ok_or(Errno::BADF)?;
        let (mut names, read) = {
            let snapshot = open.names.lock();
            (Arc::clone(&snapshot.names), snapshot.read)
        };
        if index == 0 && read {
            names = self.snapshot(open.ino, caller)?;
            open.names.lock().names = Arc::clone(&names);
        }
        open.names.lock().read = true;
        Ok(names.iter().skip(index).take(max).cloned().collect())
    }

    /// A name of a listing as [`UnionFs::lookup`] would find it, with a reference; `None` if it is gone or cannot be had.
    pub fn enter(&self, ino: u64, name: &[u8], caller: Caller) -> Option<Shown> {
        self.look(ino, name, caller).ok().flatten().map(|(_, shown)| shown)
    }

    /// Writes a directory of the sandbox or the host to the disk.
    ///
    /// # Errors
    /// What the filesystem answers.
    pub fn sync_dir(&self, ino: u64) -> Result<(), Errno> {
        let node = self.directory(ino)?;
        if !matches!(node.place(), Place::Upper | Place::Host) {
            return Ok(());
        }
        let target = self.reach(&node)?;
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(magic(&target), flags, rustix::fs::Mode::empty()).and_then(rustix::fs::fsync)
    }

    fn snapshot(&self, ino: u64, caller: Caller) -> Result<Arc<Vec<Name>>, Errno> {
        self.settle(ino);
        let dir = self.directory(ino)?;
        let view = match self.view(&dir) {
            Ok(view) => view,
            // It is removed, and open still.
            Err(Errno::STALE) => return Ok(Arc::default()),
            Err(errno) => return Err(errno),
        };
        let in_layers = self.list_layers(&view, caller)?;
        let names = self.list_names(&view, &in_layers, false)?;
        let table = self.table.read();
        let named = names.into_iter().map(|(name, listed)| {
            let ino = table.child(ino, &name).map_or_else(|| table.number(&listed.key), |node| node.ino);
            Name { name, kind: listed.kind, ino }
        });
        Ok(Arc::new(named.collect()))
    }
}
