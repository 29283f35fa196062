//! An earlier version of what is imported, for new content to be compressed against.

use layer_format::Digest;
use layer_format::delta::Place;

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
