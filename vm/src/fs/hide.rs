//! What lies over a hidden directory: a filesystem whose root does not exist, as far as anyone who asks can tell.
//!
//! Looking at it, opening it, entering it and making something in it give `ENOENT`, since the kernel asks for the root's
//! attributes before all of that. The name itself is taken: making or renaming something in its place fails.

use client_store::view::Caller;
use rustix::io::Errno;

use super::{Attr, NodeKind, Space, Tree};

/// A tree of which every part is missing, even the root.
#[derive(Clone, Copy, Debug, Default)]
pub struct HideFs;

impl Tree for HideFs {
    type Child = ();

    fn lookup(&self, _parent: u64, _name: &[u8], _caller: Caller) -> Result<Option<Attr>, Errno> {
        Err(Errno::NOENT)
    }

    fn forget(&self, _ino: u64, _count: u64) {}

    fn attr(&self, _ino: u64, _caller: Caller) -> Result<Attr, Errno> {
        Err(Errno::NOENT)
    }

    fn open(&self, _ino: u64) -> Result<(u64, bool), Errno> {
        Err(Errno::NOENT)
    }

    fn close(&self, _handle: u64) {}

    fn read(&self, _ino: u64, _handle: u64, _offset: u64, _len: usize, _caller: Caller) -> Result<Vec<u8>, Errno> {
        Err(Errno::NOENT)
    }

    fn seek(&self, _ino: u64, _handle: u64, _offset: u64, _hole: bool, _caller: Caller) -> Result<u64, Errno> {
        Err(Errno::NOENT)
    }

    fn open_dir(&self, _ino: u64) -> Result<u64, Errno> {
        Err(Errno::NOENT)
    }

    fn close_dir(&self, _handle: u64) {}

    fn list(&self, _ino: u64, _handle: u64, _index: usize, _max: usize, _caller: Caller) -> Result<Vec<()>, Errno> {
        Err(Errno::NOENT)
    }

    fn name(_child: &()) -> &[u8] {
        b""
    }

    fn peek(&self, _child: &()) -> (u64, NodeKind) {
        (0, NodeKind::File)
    }

    fn enter(&self, _child: &()) -> Option<Attr> {
        None
    }

    fn read_link(&self, _ino: u64) -> Result<Vec<u8>, Errno> {
        Err(Errno::NOENT)
    }

    fn xattr(&self, _ino: u64, _name: &[u8]) -> Result<Vec<u8>, Errno> {
        Err(Errno::NOENT)
    }

    fn xattr_names(&self, _ino: u64) -> Result<Vec<u8>, Errno> {
        Err(Errno::NOENT)
    }

    fn space(&self) -> Space {
        Space::default()
    }
}
