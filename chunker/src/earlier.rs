//! An earlier version of what is imported, for new content to be compressed against.

use layer_format::Digest;
use layer_format::delta::{OldVersion, Place};

use crate::source::{ObjectSource, SourceError};

/// Trees that are in the store already, and how the store keeps their objects.
///
/// Nothing of it has to be right: what cannot be found or read is not compressed against. It only must not go away before the
/// import has a name; who removes objects keeps those that delta frames need.
pub trait Earlier: ObjectSource {
    /// Roots of trees; a path is looked for in the last one first.
    fn roots(&self) -> &[Digest];

    /// Where these objects are, in the order asked.
    ///
    /// # Errors
    /// If the store cannot be asked: then nothing is compressed against these.
    fn places(&self, digests: &[Digest]) -> Result<Vec<Place>, SourceError>;
}

/// An earlier version to search in.
pub(crate) struct Old<'a>(pub(crate) &'a dyn Earlier);

impl OldVersion for Old<'_> {
    fn roots(&self) -> &[Digest] {
        self.0.roots()
    }

    fn object(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.0.object(digest).ok()
    }

    fn places(&self, digests: &[Digest]) -> Option<Vec<Place>> {
        self.0.places(digests).ok()
    }
}
