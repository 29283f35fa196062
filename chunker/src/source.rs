//! Where objects are read from.

use std::error::Error;

use layer_format::Digest;

/// A store of objects that an export reads from.
pub trait ObjectSource: Sync {
    /// The bytes of an object, verified: they have this digest. An export asks for objects mostly in the order in which
    /// an import packs them, so a source does well to keep the frame that it decompressed last.
    ///
    /// # Errors
    /// If the object is not there, cannot be read, or is damaged: ends the export.
    fn object(&self, digest: &Digest) -> Result<Vec<u8>, SourceError>;

    /// Calls `each` with the number and the verified bytes of each of these objects, in order, until it returns `false`. For
    /// sources that save time if they know what is asked for next.
    ///
    /// # Errors
    /// As [`ObjectSource::object`], of the first object that cannot be had.
    fn each_object(&self, digests: &[Digest], each: &mut dyn FnMut(usize, &[u8]) -> bool) -> Result<(), SourceError> {
        for (number, digest) in digests.iter().enumerate() {
            if !each(number, &self.object(digest)?) {
                break;
            }
        }
        Ok(())
    }

    /// Says that these objects will be asked for next, about in this order: for sources to which a question about many is
    /// cheaper than many questions. What cannot be had shows when it is asked for.
    fn expect(&self, _digests: &[Digest]) {}
}

/// Why an object could not be read: a sentence, and what caused it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl SourceError {
    /// An error with its cause. `message` names the object and the remedy, and does not repeat the cause.
    pub fn new(message: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { message: message.into(), source: Some(source.into()) }
    }

    /// An error without a further cause.
    pub fn message(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }
}
