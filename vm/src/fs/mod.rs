//! The read-only filesystems below the sandbox, without FUSE: image layers ([`ImageFs`]) and host ([`HostFs`]); what lies
//! over hidden directories ([`HideFs`]); and the union that decides file by file ([`UnionFs`]).
//!
//! Inode numbers are 53 bits wide (exact in a JavaScript number) and made by hashing what the inode is, so that they are
//! the same each time during a run, without remembering inodes that the kernel has forgotten.

mod hide;
mod host;
mod image;
mod inodes;
mod listing;
mod merge;
mod stubs;
mod union;
mod veil;

#[cfg(test)]
#[path = "../../tests/support/layer.rs"]
pub(crate) mod layer;

use client_store::view::Caller;
use rustix::io::Errno;

pub use hide::HideFs;
pub use host::{HostFs, Witness};
pub use image::{HostHas, ImageFs};
pub use merge::Verdict;
pub use stubs::Stubs;
pub use union::{Answer, Change, Name, Opened, Rename, Shown, Special, UnionFs, UnionOptions};

/// Inode number of the root of each filesystem.
pub const ROOT: u64 = 1;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device; with device number 0 it is a whiteout.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Seconds since 1970, and nanoseconds.
pub type Time = (i64, u32);

/// The attributes of an inode. It belongs to the user in the VM, whoever the owner is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// What it is.
    pub kind: NodeKind,
    /// Permissions with setuid, setgid and sticky bits.
    pub perm: u16,
    /// How many names it has. 1 for directories, which tells `find` not to conclude the number of subdirectories from it.
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
    /// Occupied space in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Device number, as Linux encodes it in 32 bits.
    pub rdev: u32,
}

/// What `statfs(2)` tells, in units of `block_size` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Space {
    pub block_size: u32,
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
}

/// A read-only tree of inodes as the kernel asks for it.
///
/// Every call may come from any thread, and may block as long as a [`client_store::LayerView`] does. A reference is counted
/// for each inode that [`Tree::lookup`] or [`Tree::enter`] returned, and given back by [`Tree::forget`]; the root always
/// exists. Numbers that were forgotten give `ESTALE`.
pub trait Tree: Send + Sync + 'static {
    /// One child of a directory in a listing.
    type Child: Clone + Send;

    /// The child `name` of a directory, with a reference; `None` if there is none.
    ///
    /// # Errors
    /// `ENOTDIR`, `EIO` if data cannot be had, or what the host answers.
    fn lookup(&self, parent: u64, name: &[u8], caller: Caller) -> Result<Option<Attr>, Errno>;

    /// Gives back `count` references.
    fn forget(&self, ino: u64, count: u64);

    /// The attributes of an inode.
    ///
    /// # Errors
    /// As [`Tree::lookup`].
    fn attr(&self, ino: u64, caller: Caller) -> Result<Attr, Errno>;

    /// Opens a file: a handle, and whether what the kernel has of it is still right. `ENOSYS` if no file needs to be opened.
    ///
    /// # Errors
    /// What the host answers.
    fn open(&self, ino: u64) -> Result<(u64, bool), Errno>;

    /// Closes a handle of [`Tree::open`].
    fn close(&self, handle: u64);

    /// At most `len` bytes from `offset` on, fewer only at the end.
    ///
    /// # Errors
    /// `EIO` if data cannot be had; `EISDIR`.
    fn read(&self, ino: u64, handle: u64, offset: u64, len: usize, caller: Caller) -> Result<Vec<u8>, Errno>;

    /// The next data or hole, as [`client_store::LayerView::seek`].
    ///
    /// # Errors
    /// `ENXIO` beyond the end; as [`Tree::read`].
    fn seek(&self, ino: u64, handle: u64, offset: u64, hole: bool, caller: Caller) -> Result<u64, Errno>;

    /// Opens a directory for listing; as [`Tree::open`].
    ///
    /// # Errors
    /// As [`Tree::open`].
    fn open_dir(&self, ino: u64) -> Result<u64, Errno>;

    /// Closes a handle of [`Tree::open_dir`].
    fn close_dir(&self, handle: u64);

    /// At most `max` children from the `index`th on, without `.` and `..`. Empty only at the end.
    ///
    /// # Errors
    /// As [`Tree::lookup`].
    fn list(&self, ino: u64, handle: u64, index: usize, max: usize, caller: Caller) -> Result<Vec<Self::Child>, Errno>;

    /// The name of a child.
    fn name(child: &Self::Child) -> &[u8];

    /// The inode number and kind of a child, without a reference.
    fn peek(&self, child: &Self::Child) -> (u64, NodeKind);

    /// A child as [`Tree::lookup`] would return it, with a reference; `None` if it vanished or cannot be looked at.
    fn enter(&self, child: &Self::Child) -> Option<Attr>;

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    fn read_link(&self, ino: u64) -> Result<Vec<u8>, Errno>;

    /// An extended attribute; never fetches anything.
    ///
    /// # Errors
    /// `ENODATA` if there is none; `ENOSYS` if there is none on any inode.
    fn xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Errno>;

    /// The names of all extended attributes, each with a NUL after it.
    ///
    /// # Errors
    /// `ENOSYS` if there is none on any inode.
    fn xattr_names(&self, ino: u64) -> Result<Vec<u8>, Errno>;

    /// What the filesystem has room for.
    fn space(&self) -> Space;
}
