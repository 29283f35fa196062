//! Walks a directory in the order of the tree ([`LayerPath`]'s order), following no symbolic link.
//!
//! All entries of a directory come together, and directories come in the order of their paths as bytes. That is not a
//! depth-first walk (`b-x` comes before `b/c`), so directories found wait in a heap: what is found below a directory
//! always sorts after it, so the smallest waiting path is the next one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layer_format::entry::{Entry, Kind, MAX_TARGET_LEN, Meta};
use layer_format::recipe::Recipe;
use layer_format::{FormatError, LayerPath};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::beneath::{DIRECTORY, open_directory};
use crate::capture::known::KnownFiles;
use crate::capture::walk::CaptureWalk;
use crate::error::ImportError;
use crate::import::{ImportOptions, Skipped, parents};
use crate::pipeline::{Begin, Feed, FileToRead, LARGE_FILE_LEN, Link};
use crate::read::{Directory, FileReader, Identity, Stamp};
use crate::segments::SegmentedFile;
use crate::xattr;

/// A directory found and not yet visited; `path` is relative to the source.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pending {
    path: Vec<u8>,
    dev: u64,
    ino: u64,
    /// Its owner may not list it, or not look names up in it.
    is_locked: bool,
}

impl Pending {
    fn new(path: Vec<u8>, stat: &Stat) -> Self {
        let (dev, ino) = Identity::of(stat).inode();
        Self { path, dev, ino, is_locked: stat.st_mode & 0o500 != 0o500 }
    }
}

/// See the module.
pub(crate) struct Scanner<'a> {
    source: &'a Path,
    root: OwnedFd,
    options: &'a ImportOptions,
    reader: &'a FileReader,
    pending: BinaryHeap<Reverse<Pending>>,
    /// Files with several names whose content was read.
    read: HashSet<(u64, u64)>,
    /// Set for the capture of a sandbox.
    capture: Option<CaptureWalk<'a>>,
    /// Files that need not be read, and whether stamps are wanted to know them again.
    known: Option<KnownFiles<'a>>,
}

impl<'a> Scanner<'a> {
    /// Opens the source, which may itself be named through symbolic links.
    pub(crate) fn open(
        source: &'a Path,
        options: &'a ImportOptions,
        reader: &'a FileReader,
        capture: Option<CaptureWalk<'a>>,
        known: Option<KnownFiles<'a>>,
    ) -> Result<Self, ImportError> {
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let root = openat(CWD, source, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR => ImportError::NotADirectory { path: source.to_owned() },
            error => ImportError::read("open", source.to_owned(), error),
        })?;
        Ok(Self { source, root, options, reader, pending: BinaryHeap::new(), read: HashSet::new(), capture, known })
    }

    /// Describes the whole tree to `feed`.
    pub(crate) fn run(mut self, feed: &mut Feed) -> Result<(), ImportError> {
        for entry in parents(&self.options.at) {
            feed.begin(Begin::new(entry, Link::None))?;
        }
        let stat = fstat(&self.root).map_err(|error| ImportError::read("read", self.source.to_owned(), error))?;
        let found = xattr::of_file(self.root.as_fd()).map_err(|error| ImportError::read("read extended attributes of", self.source.to_owned(), error))?;
        let mut entry = Entry { path: self.options.at.clone(), meta: self.meta(&stat), kind: Kind::Directory { opaque: false } };
        if self.capture.is_some() {
            // When the sandbox itself was made says nothing of its content.
            (entry.meta.mtime_s, entry.meta.mtime_ns) = (0, 0);
        }
        self.begin(entry, Link::None, found, feed)?;
        self.pending.push(Reverse(Pending::new(Vec::new(), &stat)));
        while let Some(Reverse(next)) = self.pending.pop() {
            self.directory(&next, feed)?;
        }
        Ok(())
    }

    fn directory(&mut self, pending: &Pending, feed: &mut Feed) -> Result<(), ImportError> {
        let shown = self.shown(&pending.path);
        if let Some(capture) = self.capture.as_ref().filter(|_| pending.is_locked) {
            capture.make_readable(&pending.path, pending.dev, pending.ino).map_err(|error| ImportError::read("make readable", shown.clone(), error))?;
        }
        let fd = open_directory(&self.root, &pending.path, DIRECTORY).map_err(|error| match error {
            Errno::NOENT | Errno::LOOP | Errno::NOTDIR => ImportError::Changed { path: shown.clone() },
            error => ImportError::read("open", shown.clone(), error),
        })?;
        let stat = fstat(&fd).map_err(|error| ImportError::read("read", shown.clone(), error))?;
        let (dev, ino) = Identity::of(&stat).inode();
        if (dev, ino) != (pending.dev, pending.ino) {
            return Err(ImportError::Changed { path: shown });
        }
        let names = list(&fd).map_err(|error| ImportError::read("list", shown.clone(), error))?;
        let unfit = |source: FormatError| ImportError::Unfit { path: shown.clone(), source };
        let path = LayerPath::new(pending.path.clone()).and_then(|path| path.below(&self.options.at)).map_err(unfit)?;
        let directory = Arc::new(Directory { fd, shown: shown.clone() });
        for name in names {
            self.name(&directory, &pending.path, &path, name, feed)?;
        }
        Ok(())
    }

    /// One name of a directory.
    fn name(&mut self, directory: &Arc<Directory>, relative: &[u8], path: &LayerPath, name: CString, feed: &mut Feed) -> Result<(), ImportError> {
        let relative = || match relative {
            b"" => name.as_bytes().to_vec(),
            relative => [relative, name.as_bytes()].join(&b'/'),
        };
        let left_out = |capture: &CaptureWalk<'_>| LayerPath::new(relative()).is_ok_and(|path| (capture.leave_out)(&path));
        if self.capture.as_ref().is_some_and(left_out) {
            return Ok(());
        }
        if !self.options.exclude.is_empty() && self.options.exclude.iter().any(|excluded| excluded.as_bytes() == relative()) {
            return Ok(());
        }
        let stat = statat(&directory.fd, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| match error {
            Errno::NOENT => ImportError::Changed { path: directory.show(&name) },
            error => ImportError::read("read", directory.show(&name), error),
        })?;
        let path = path.join(name.as_bytes()).map_err(|source| ImportError::Unfit { path: directory.show(&name), source })?;
        let identity = Identity::of(&stat);
        let meta = self.meta(&stat);
        let link = identity.link(&stat);
        let device = || (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let mut begin = Box::new(Begin::new(Entry { path, meta, kind: Kind::File(Recipe::Extents(Vec::new())) }, link));
                let stamped = self.known.as_ref().is_some_and(|known| known.believes(identity.inode().0));
                begin.stamp = stamped.then(|| Stamp::of(&stat));
                return self.file(FileToRead { directory: Arc::clone(directory), name, identity, begin }, feed);
            }
            FileType::Directory => {
                self.pending.push(Reverse(Pending::new(relative(), &stat)));
                Kind::Directory { opaque: false }
            }
            FileType::Symlink => Kind::Symlink(target(directory, &name)?),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket if self.capture.is_some() => return feed.skipped(Skipped { path, reason: "a socket does not outlive its program".to_owned() }),
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => match device() {
                (0, 0) if self.options.overlay => {
                    let meta = Meta::default();
                    return feed.begin(Begin::new(Entry { path, meta, kind: Kind::Whiteout }, Link::None));
                }
                _ if self.capture.is_some() => return feed.skipped(Skipped { path, reason: "a device belongs to its machine".to_owned() }),
                (major, minor) => Kind::CharDevice { major, minor },
            },
            FileType::BlockDevice if self.capture.is_some() => {
                return feed.skipped(Skipped { path, reason: "a device belongs to its machine".to_owned() });
            }
            FileType::BlockDevice => {
                let (major, minor) = device();
                Kind::BlockDevice { major, minor }
            }
            FileType::Unknown => return feed.skipped(Skipped { path, reason: "it is of a kind that is not known".to_owned() }),
        };
        let is_directory = matches!(kind, Kind::Directory { .. });
        let attributes =
            || xattr::of_name(directory.fd.as_fd(), &name).map_err(|error| ImportError::read("read extended attributes of", directory.show(&name), error));
        let mut found = attributes()?;
        if let Some(capture) = self.capture.as_ref().filter(|_| is_directory && !found.unreadable.is_empty()) {
            let (dev, ino) = identity.inode();
            capture.make_readable(&relative(), dev, ino).map_err(|error| ImportError::read("make readable", directory.show(&name), error))?;
            found = attributes()?;
        }
        let link = if is_directory { Link::None } else { link };
        self.begin(Entry { path, meta, kind }, link, found, feed)
    }

    fn file(&mut self, mut file: FileToRead, feed: &mut Feed) -> Result<(), ImportError> {
        let again = match file.begin.link {
            Link::Inode { dev, ino, .. } => !self.read.insert((dev, ino)),
            _ => false,
        };
        if again {
            // The attributes belong to the inode: they are those of its first name.
            feed.begin(file.begin)?;
            return feed.end();
        }
        if let Some(known) = &mut self.known {
            file = match known.pass_on(file, feed)? {
                Some(file) => file,
                None => return Ok(()),
            };
        }
        match file.identity.len {
            0..=LARGE_FILE_LEN => feed.read(file),
            _ if file.identity.has_holes => self.reader.read_sparse(file, feed),
            _ => feed.segments(SegmentedFile::new(file)),
        }
    }

    fn begin(&self, mut entry: Entry, link: Link, found: xattr::Found, feed: &mut Feed) -> Result<(), ImportError> {
        xattr::check(&found.kept).map_err(|rule| ImportError::Entry { path: entry.path.clone(), rule })?;
        for name in &found.unreadable {
            feed.skipped(Skipped::xattr(entry.path.clone(), name))?;
        }
        if let Kind::Directory { opaque } = &mut entry.kind {
            *opaque = self.options.overlay && found.opaque;
        }
        entry.meta.xattrs = found.kept;
        feed.begin(Begin::new(entry, link))
    }

    #[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the fields' types differ between architectures")]
    fn meta(&self, stat: &Stat) -> Meta {
        let (uid, gid) = self.options.owner.unwrap_or((stat.st_uid, stat.st_gid));
        let mode = self.capture.as_ref().and_then(|capture| capture.original_mode(stat)).unwrap_or((stat.st_mode & 0o7777) as u16);
        let mtime_ns = (stat.st_mtime_nsec as u32).min(999_999_999);
        Meta { mode, uid, gid, mtime_s: stat.st_mtime as i64, mtime_ns, xattrs: Vec::new(), hard_link: None }
    }

    fn shown(&self, relative: &[u8]) -> PathBuf {
        match relative {
            b"" => self.source.to_owned(),
            relative => self.source.join(OsStr::from_bytes(relative)),
        }
    }
}

/// The names in a directory but `.` and `..`, sorted as bytes.
fn list(fd: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        match entry?.file_name() {
            name if name == c"." || name == c".." => {}
            name => names.push(name.to_owned()),
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn target(directory: &Directory, name: &CString) -> Result<Vec<u8>, ImportError> {
    let path = || directory.show(name);
    let target = readlinkat(&directory.fd, name, Vec::new()).map_err(|error| match error {
        Errno::NOENT | Errno::INVAL => ImportError::Changed { path: path() },
        error => ImportError::read("read", path(), error),
    })?;
    match target.as_bytes().len() {
        0..=MAX_TARGET_LEN => Ok(target.into_bytes()),
        len => Err(ImportError::Unfit {
            path: path(),
            source: FormatError::TooLarge { what: "target of a symbolic link", value: len as u64, max: MAX_TARGET_LEN as u64 },
        }),
    }
}
