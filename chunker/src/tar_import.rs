//! Imports a tar stream: plain, gzip or zstd, recognised by its first bytes, from a file or a pipe.
//!
//! Understood: v7, ustar, GNU (long names, base-256 numbers, old sparse files) and PAX (`path`, `linkpath`, `size`,
//! `mtime`, `uid`, `gid`, `SCHILY.xattr.*`, `LIBARCHIVE.xattr.*`, GNU sparse 0.0, 0.1 and 1.0). Global PAX headers and
//! volume labels are passed over.
//!
//! * A leading `/` of a name is dropped, as tar itself does; a name with `..` is refused.
//! * A later entry of the same path replaces the earlier one. Missing parents are created: 0755, owner 0:0, time 0.
//! * Nothing may lie below what is not a directory: an entry that another tool would extract *through* a symbolic link
//!   is refused. A hard link names an earlier entry.
//! * The stream must end as a tar does: one that was cut short is refused. A layer of an OCI image, whose digest says that it is
//!   whole, may end behind its last entry: some tools write no end.
//!
//! Content is cut as it streams by; the tree is sorted, so all entries are kept until the end (about 350 bytes each).

mod decompress;
mod error;
pub(crate) mod header;
mod names;
mod pax;
mod reader;
mod sparse;

use std::io::Read;

pub use error::TarError;

use crate::error::ImportError;
use crate::import::{ImportOptions, Imported, settings};
use crate::pipeline;
use crate::progress::Progress;
use crate::sink::ObjectSink;
use names::Names;
use reader::TarReader;

/// Most names of an archive, so that a small hostile archive of countless empty files cannot exhaust the memory.
pub const MAX_TAR_NAMES: usize = 8_000_000;

/// Imports a tar stream; see the module for what it accepts. The same content gives the same root as
/// [`crate::import_directory`], if the archive has the same metadata.
///
/// # Errors
/// [`ImportError::Tar`] for a damaged or hostile archive. On an error while `reader` blocks, the error is returned once
/// that read ends.
pub fn import_tar(reader: impl Read + Send, options: &ImportOptions, sink: &dyn ObjectSink, progress: &dyn Progress) -> Result<Imported, ImportError> {
    let settings = settings(options)?;
    let names = Names::new(&options.at);
    pipeline::run(&settings, sink, progress, names, |feed| {
        let stream = decompress::open(reader)?;
        TarReader::new(stream, options).run(feed)
    })
}
