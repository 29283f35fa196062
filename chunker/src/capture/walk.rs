//! What the walk of a capture asks besides what the walk of an import does.

use std::sync::Arc;

use layer_format::LayerPath;
use rustix::fs::Stat;

use super::index::IndexReader;
use super::known::whole;
use super::unlock::Unlocker;
use crate::error::ImportError;
use crate::pipeline::{Feed, FileToRead, KnownFile, LARGE_FILE_LEN};
use crate::sink::ObjectSink;
use crate::source::ObjectSource;

/// See the module.
pub(crate) struct CaptureWalk<'a> {
    /// Whether a path, and all that is below, stays here.
    pub(crate) leave_out: &'a (dyn Fn(&LayerPath) -> bool + Sync),
    pub(crate) index: Option<IndexReader>,
    pub(crate) unlocker: Arc<Unlocker>,
    pub(crate) sink: &'a dyn ObjectSink,
    pub(crate) source: &'a dyn ObjectSource,
}

impl CaptureWalk<'_> {
    /// Passes on a file whose content is known, or gives it back.
    pub(crate) fn known(&mut self, file: FileToRead, feed: &mut Feed) -> Result<Option<FileToRead>, ImportError> {
        let found = self.index.as_mut().zip(file.begin.stamp).and_then(|(index, stamp)| index.find(&file.begin.entry.path, &stamp));
        let Some((recipe, xattrs)) = found.filter(|(recipe, _)| recipe.len() == file.identity.len) else { return Ok(Some(file)) };
        if file.identity.len <= LARGE_FILE_LEN {
            return feed.known(KnownFile { file, recipe, xattrs }).map(|()| None);
        }
        // A worker could not read it at once.
        match whole(&[&recipe], self.sink, Some(self.source))?.first() {
            Some(true) => feed.ready(KnownFile { file, recipe, xattrs }.into_begin()).map(|()| None),
            _ => Ok(Some(file)),
        }
    }

    /// The permission bits that a file had before the capture made it readable, if it did.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the fields' types differ between architectures")]
    pub(crate) fn original_mode(&self, stat: &Stat) -> Option<u16> {
        self.unlocker.original_mode(stat.st_dev as u64, stat.st_ino as u64)
    }

    /// Makes a directory one that can be listed, and whose names can be looked up.
    pub(crate) fn make_readable(&self, path: &[u8], dev: u64, ino: u64) -> rustix::io::Result<()> {
        self.unlocker.unlock(path, dev, ino)
    }
}
