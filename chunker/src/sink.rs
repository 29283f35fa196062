//! Where finished packs go, and what is there already.

use std::io::Write;

use layer_format::Digest;
use layer_format::pack::PackIndex;

use crate::earlier::Earlier;
use crate::error::SinkError;

/// A store of objects that an import writes to.
///
/// An object is *present* once the pack that holds it is finished; an import relies on `present` saying so from then
/// on, also for packs of the import itself (else an object may be written once more, which is a waste and not an
/// error). Several imports may use one sink at a time.
pub trait ObjectSink: Sync {
    /// For each digest, whether the object is present: then it is not written again. Called with batches of up to some
    /// hundred digests, possibly with one twice, from several threads at once.
    ///
    /// # Errors
    /// Ends the import.
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError>;

    /// A writer for a new pack. Called from one thread, when the first object of the pack is ready; one pack at a time
    /// is open for each import.
    ///
    /// # Errors
    /// Ends the import.
    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError>;

    /// An earlier version of what is imported, which this store has: new content is compressed against it where that is worth an
    /// additional read.
    fn earlier(&self) -> Option<&dyn Earlier> {
        None
    }
}

/// A pack being written. It receives the whole file, from header to footer, in order. Dropping it unfinished leaves
/// nothing behind.
pub trait PackSink: Write + Send {
    /// Makes the pack and its objects visible, as durable as the sink promises. `digest` is the BLAKE3 of all bytes
    /// written and the pack's name; `index` is the same as at the end of the file.
    ///
    /// # Errors
    /// Ends the import; then the pack is not visible.
    fn finish(self: Box<Self>, digest: Digest, index: PackIndex) -> Result<(), SinkError>;
}
