//! The import of a directory of which an earlier import remembers the files: those that have not changed are not read.
//!
//! What is remembered is the *import index* of a tree: for each regular file its content and its stamp, in the form of a
//! capture index (`docs/formats/capture-index.md`), in a folder of the store. A file is taken to be the same if device, inode
//! number, length, `mtime` **and `ctime`** are: package registries ship constant times, so `mtime` and length say nothing,
//! and no program can set `ctime` back.
//!
//! * **Racy times.** A file that was changed within a tick of the clock of the import is not remembered, and so read by the
//!   next one.
//! * **Clocks of others.** Only file systems that take their times from this machine's clock are believed, and of a tree over
//!   several of them only the one of its root: elsewhere every file is read.
//! * **Gone content.** A file of whose content the store has lost a part is read.
//! * **Damage.** What is damaged of an index makes files be read, nothing else.
//!
//! What it cannot see: a store to a shared mapping that was dirty before the import began and stays so. Who imports what a
//! program holds mapped and writes to asks for [`ImportAgain::reads_all`].

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use layer_format::Digest;
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use crate::capture::index::{IndexReader, IndexWriter};
use crate::capture::known::KnownFiles;
use crate::capture::oldest::forget_oldest;
use crate::clock;
use crate::error::ImportError;
use crate::import::{ImportOptions, Imported, import_directory, settings};
use crate::pipeline;
use crate::progress::Progress;
use crate::read::Identity;
use crate::scan::Scanner;
use crate::sink::ObjectSink;
use crate::sorted::Sorted;
use crate::source::ObjectSource;

/// End of the name of an import index.
const EXTENSION: &str = "index";

/// Where import indexes are kept, and whether they are believed.
#[derive(Clone, Copy, Debug)]
pub struct ImportAgain<'a> {
    /// A folder for import indexes alone. Old ones are removed from it.
    pub folder: &'a Path,
    /// Read every file, and remember it for the next import.
    pub reads_all: bool,
}

/// A finished import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedAgain {
    /// The tree, and what of it is new in the store.
    pub imported: Imported,
    /// Files that were opened, to read them.
    pub files_read: u64,
}

/// As [`crate::import_directory`], without reading files that an earlier import of this directory into this store has read. See the
/// module for what is believed.
///
/// # Errors
/// As [`crate::import_directory`]. That nothing could be remembered is no error.
pub fn import_directory_again<S: ObjectSink + ObjectSource>(
    dir: &Path,
    options: &ImportOptions,
    again: &ImportAgain<'_>,
    store: &S,
    progress: &dyn Progress,
) -> Result<ImportedAgain, ImportError> {
    let Ok(Tree { dev, index }) = Tree::of(dir, options, again.folder) else {
        let imported = import_directory(dir, options, store, progress)?;
        return Ok(ImportedAgain { files_read: imported.files, imported });
    };
    let mut settings = settings(options)?;
    settings.source = Some(store);
    // From now on a change to a file gives it a `ctime` at or after this.
    let mut writer = IndexWriter::create(&index, clock::now());
    let reader = if again.reads_all { None } else { IndexReader::open(&index) };
    let known = KnownFiles { index: reader, dev: Some(dev), sink: store, source: store };
    let scanner = Scanner::open(dir, options, &settings.reader, None, Some(known))?;
    let imported = pipeline::run(&settings, store, progress, Sorted::with_index(&mut writer), |feed| scanner.run(feed))?;
    writer.finish();
    forget_oldest(again.folder, &index);
    Ok(ImportedAgain { imported, files_read: settings.reader.opened.load(Ordering::Relaxed) })
}

/// A tree that can be remembered.
struct Tree {
    /// The file system of its root.
    dev: u64,
    /// The file of its index.
    index: PathBuf,
}

impl Tree {
    /// Fails for a tree on a file system whose times say nothing here, and where it cannot be told.
    fn of(dir: &Path, options: &ImportOptions, folder: &Path) -> io::Result<Self> {
        let fd = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if !clock::is_own(&fd) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (dev, _) = Identity::of(&fstat(&fd)?).inode();
        let path = dir.canonicalize()?;
        // Records are found by the path in the layer, so an import to another place has an index of its own.
        let name = Digest::of(&[path.as_os_str().as_bytes(), b"\0", options.at.as_bytes()].concat());
        Ok(Self { dev, index: folder.join(format!("{}.{EXTENSION}", &name.to_hex()[..32])) })
    }
}
