//! What the walk of a capture asks besides what the walk of an import does.

use std::sync::Arc;

use layer_format::LayerPath;
use rustix::fs::Stat;

use super::unlock::Unlocker;

/// See the module.
pub(crate) struct CaptureWalk<'a> {
    /// Whether a path, and all that is below, stays here.
    pub(crate) leave_out: &'a (dyn Fn(&LayerPath) -> bool + Sync),
    pub(crate) unlocker: Arc<Unlocker>,
}

impl CaptureWalk<'_> {
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
