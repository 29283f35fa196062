//! What an import is asked for and what it answers; the import of a directory.

use std::path::Path;

use layer_format::entry::{Entry, Kind, Meta};
use layer_format::{Digest, LayerPath};

use crate::error::ImportError;
use crate::pipeline::{self, Settings};
use crate::progress::Progress;
use crate::read::FileReader;
use crate::scan::Scanner;
use crate::sink::ObjectSink;
use crate::sorted::Sorted;

/// Most workers: more would need more than 128 MiB, and the sequencer is the limit before.
const MAX_THREADS: usize = 24;

/// How to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportOptions {
    /// Where the imported tree is placed in the layer. The directories above are created: mode 0755, owner 0:0, time 0.
    pub at: LayerPath,
    /// Level of zstd. Higher levels take more time and memory; digests do not depend on it.
    pub zstd_level: i32,
    /// Worker threads, at most 24; 0 for one for each core. The result does not depend on it.
    pub threads: usize,
    /// Owner and group of every imported entry, in place of the source's.
    pub owner: Option<(u32, u32)>,
    /// The source is the upper directory of an overlay mount: a character device 0:0 is a whiteout, a directory with
    /// `user.overlay.opaque` or `trusted.overlay.opaque` is opaque. Only for directories.
    pub overlay: bool,
    /// `.wh.NAME` is a whiteout and `.wh..wh..opq` makes its directory opaque, as in the layers of OCI images; otherwise
    /// these are plain names. Only for tars.
    pub oci_whiteouts: bool,
    /// Most bytes of the uncompressed archive: a small one can be made that decompresses without end. Only for tars.
    pub max_tar_bytes: u64,
    /// Paths relative to the source that are left out, with all that is below. Only for directories.
    pub exclude: Vec<LayerPath>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        let (at, exclude) = (LayerPath::root(), Vec::new());
        Self { at, zstd_level: 3, threads: 0, owner: None, overlay: false, oci_whiteouts: false, max_tar_bytes: u64::MAX, exclude }
    }
}

/// A finished import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Digest of the root of the tree.
    pub root: Digest,
    /// Entries of the tree.
    pub entries: u64,
    /// Names of regular files among them.
    pub files: u64,
    /// Bytes of content, with holes; a file with several names counts once.
    pub bytes: u64,
    /// Objects that the sink lacked: chunks, recipe and tree nodes.
    pub new_objects: u64,
    /// Their bytes before compression.
    pub new_bytes: u64,
    /// Bytes of all packs written. 0 if there was nothing new.
    pub stored_bytes: u64,
    /// What was left out, and why: to show as warnings.
    pub skipped: Vec<Skipped>,
}

impl Default for Imported {
    fn default() -> Self {
        let root = Digest([0; Digest::LEN]);
        Self { root, entries: 0, files: 0, bytes: 0, new_objects: 0, new_bytes: 0, stored_bytes: 0, skipped: Vec::new() }
    }
}

/// Something that could not be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The entry concerned.
    pub path: LayerPath,
    /// What is missing, and why.
    pub reason: String,
}

impl Skipped {
    pub(crate) fn xattr(path: LayerPath, name: &[u8]) -> Self {
        Self { path, reason: format!("its attribute `{}` could not be read: import as its owner or as root to keep it", String::from_utf8_lossy(name)) }
    }
}

/// Imports the directory `dir`: everything in it, with all metadata, following no symbolic link but going into what is
/// mounted below. Reads, cuts, hashes, compresses and stores on all cores; see [`crate::pipeline`] for the memory that it takes.
///
/// # Errors
/// [`ImportError::Denied`] for what may not be read, [`ImportError::Changed`] if someone writes to the tree meanwhile:
/// nothing is left out silently. On an error, packs finished before stay in the sink, and are of use to the next try.
pub fn import_directory(dir: &Path, options: &ImportOptions, sink: &dyn ObjectSink, progress: &dyn Progress) -> Result<Imported, ImportError> {
    let settings = settings(options)?;
    let scanner = Scanner::open(dir, options, &settings.reader, None, None)?;
    pipeline::run(&settings, sink, progress, Sorted::default(), |feed| scanner.run(feed))
}

pub(crate) fn settings(options: &ImportOptions) -> Result<Settings<'static>, ImportError> {
    let levels = zstd::compression_level_range();
    let level = options.zstd_level;
    if !levels.contains(&level) {
        return Err(ImportError::Level { level, min: *levels.start(), max: *levels.end() });
    }
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if options.threads == 0 { cores() } else { options.threads };
    Ok(Settings { threads: threads.clamp(1, MAX_THREADS), level, reader: FileReader::default(), source: None })
}

/// The plain directories above `path`, outermost first.
pub(crate) fn parents(path: &LayerPath) -> Vec<Entry> {
    let mut above: Vec<Entry> = std::iter::successors(path.parent(), LayerPath::parent).map(plain_directory).collect();
    above.reverse();
    above
}

/// A directory that only has to be there.
pub(crate) fn plain_directory(path: LayerPath) -> Entry {
    Entry { path, meta: Meta { mode: 0o755, ..Meta::default() }, kind: Kind::Directory { opaque: false } }
}
