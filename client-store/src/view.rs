//! What the filesystem needs of a layer, whoever provides it.
//!
//! [`LayerView`] is the border between the VM (which knows names, modes and the sandbox) and the store (which knows
//! digests, packs and the network). The product's implementation is `reader::LayerReader`; tests of the VM use a
//! naive one in memory.

use layer_format::LayerPath;
use layer_format::entry::Entry;

use crate::error::FetchError;

/// Who asks: told to the recorder of first touches, so that the traces of several processes are not mixed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Process id as the filesystem sees it; 0 if nobody in particular.
    pub pid: u32,
}

/// Read access to one layer: an immutable tree of entries.
///
/// Every call may block while data is fetched from the registry, at most as long as the fetcher's configured wait
/// (default 60 s); then it fails. Calls from many threads at once are fine, and one that waits for the network does
/// not hold up another that does not need it. What is returned was verified against its digest.
pub trait LayerView: Send + Sync {
    /// The entry at `path`, or `None` if the layer has none. The root of a layer always has an entry.
    ///
    /// # Errors
    /// [`FetchError`] if a tree object cannot be had.
    fn lookup(&self, path: &LayerPath, caller: Caller) -> Result<Option<Entry>, FetchError>;

    /// At most `max` children of `directory`, in the order of their names (as bytes), starting after the name `after`.
    /// Empty at the end, and for what is not a directory.
    ///
    /// # Errors
    /// [`FetchError`] if a tree object cannot be had.
    fn list(&self, directory: &LayerPath, after: Option<&[u8]>, max: usize, caller: Caller) -> Result<Vec<Entry>, FetchError>;

    /// The bytes `offset..offset + len` of the file `entry`, fewer only at its end. Holes read as zeros.
    ///
    /// # Errors
    /// [`FetchError`] if a chunk cannot be had.
    fn read(&self, entry: &Entry, offset: u64, len: usize, caller: Caller) -> Result<Vec<u8>, FetchError>;

    /// The offset of the next data (`hole == false`) or hole (`hole == true`) at or after `offset`, as `lseek(2)` with
    /// `SEEK_DATA` and `SEEK_HOLE`: the end of the file counts as a hole; `None` beyond it.
    ///
    /// # Errors
    /// [`FetchError`] if a recipe node cannot be had.
    fn seek(&self, entry: &Entry, offset: u64, hole: bool, caller: Caller) -> Result<Option<u64>, FetchError>;
}
