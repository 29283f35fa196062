//! Makes the entries of a tree, in its order, below one directory.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use layer_format::entry::{Entry, Kind, Meta};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::tree::{Node, Scan, Step};
use layer_format::{Digest, FormatError, LayerPath};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, chmodat, fchmod, fsetxattr, fstat, fsync, futimens, linkat, mkdirat, mknodat, openat,
    statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::{RestoreError, RestoreOptions, Restored};
use crate::beneath::{DIRECTORY, open_directory};
use crate::capture::index::IndexWriter;
use crate::capture::{file_system_now, index_path};
use crate::import::Skipped;
use crate::progress::Progress;
use crate::read::Stamp;
use crate::source::ObjectSource;
use crate::xattr::is_kept;

/// See the module.
pub(super) struct Maker<'a> {
    pub(super) root: OwnedFd,
    target: &'a Path,
    source: &'a dyn ObjectSource,
    progress: &'a dyn Progress,
    options: &'a RestoreOptions<'a>,
    /// The directory of the last entry: entries of one directory are neighbours.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories whose bits, times and attributes are set at the end, when nothing is made in them any more.
    directories: Vec<(LayerPath, Meta, bool)>,
    /// The first name of each file with several.
    groups: HashMap<u64, LayerPath>,
    pub(super) restored: Restored,
    /// The newest `ctime`.
    last: (i64, u32),
}

impl<'a> Maker<'a> {
    /// Makes entries below `root`, an empty directory that will be `target`.
    pub(super) fn new(root: OwnedFd, target: &'a Path, source: &'a dyn ObjectSource, progress: &'a dyn Progress, options: &'a RestoreOptions<'a>) -> Self {
        let (directories, groups) = (Vec::new(), HashMap::new());
        Self { root, target, source, progress, options, parent: None, directories, groups, restored: Restored::default(), last: (0, 0) }
    }

    fn fetch(&self, digest: &Digest) -> Result<Vec<u8>, RestoreError> {
        self.source.object(digest).map_err(RestoreError::Source)
    }

    /// The next entry of a tree.
    pub(super) fn next(&self, scan: &mut Scan) -> Result<Option<Entry>, RestoreError> {
        loop {
            match scan.step() {
                Step::Done(entry) => return Ok(entry),
                Step::Need(digest) => {
                    let node = Node::decode(&self.fetch(&digest)?);
                    node.and_then(|node| scan.feed(&node)).map_err(|source| RestoreError::Object { digest, source })?;
                }
            }
        }
    }

    fn failed(&self, step: &'static str, path: &LayerPath) -> impl FnOnce(Errno) -> RestoreError + use<> {
        let (path, target) = (path.clone(), self.target.to_owned());
        move |error| match error {
            Errno::EXIST => RestoreError::Tree { path, rule: "the tree has this name twice" },
            Errno::NOTDIR | Errno::LOOP | Errno::NOENT => RestoreError::Tree { path, rule: "it lies below something that is not a directory" },
            error => RestoreError::Write { step, path, target, source: error.into() },
        }
    }

    fn skip(&mut self, path: &LayerPath, reason: impl Into<String>) {
        self.restored.skipped.push(Skipped { path: path.clone(), reason: reason.into() });
    }

    /// Makes an entry; entries come in the order of the tree.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<(), RestoreError> {
        let path = &entry.path;
        let Some((parent, name)) = path.split() else {
            if let Kind::Directory { opaque } = entry.kind {
                self.directories.push((path.clone(), entry.meta.clone(), opaque));
            }
            return Ok(());
        };
        if self.parent.as_ref().is_none_or(|(open, _)| open != parent) {
            let fd = open_directory(&self.root, parent, DIRECTORY).map_err(self.failed("open the directory of", path))?;
            self.parent = Some((parent.to_owned(), fd));
        }
        let Some((_, directory)) = self.parent.take() else { return Ok(()) };
        let made = self.make(&directory, name, entry);
        self.parent = Some((parent.to_owned(), directory));
        self.restored.entries += 1;
        self.progress.advance(1, 0);
        made
    }

    fn make(&mut self, directory: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), RestoreError> {
        let (path, meta) = (&entry.path, &entry.meta);
        let links = matches!(entry.kind, Kind::File(_) | Kind::Symlink(_) | Kind::Fifo);
        if let Some(link) = meta.hard_link.filter(|_| links) {
            if let Some(first) = self.groups.get(&link.group) {
                let (parent, first_name) = first.split().unwrap_or_default();
                let parent = open_directory(&self.root, parent, DIRECTORY).map_err(self.failed("open the directory of", first))?;
                linkat(&parent, first_name, directory, name, AtFlags::empty()).map_err(self.failed("link", path))?;
                let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed("look at", path))?;
                self.last = self.last.max(Stamp::of(&stat).ctime);
                return Ok(());
            }
            self.groups.insert(link.group, path.clone());
        }
        match &entry.kind {
            Kind::Directory { opaque } => {
                mkdirat(directory, name, Mode::from_raw_mode(0o700)).map_err(self.failed("make the directory", path))?;
                self.directories.push((path.clone(), meta.clone(), *opaque));
                return Ok(());
            }
            Kind::File(recipe) => return self.file(directory, name, entry, recipe),
            Kind::Whiteout => return mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(self.failed("make the tombstone", path)),
            Kind::Symlink(target) => symlinkat(&target[..], directory, name).map_err(self.failed("make the symbolic link", path))?,
            Kind::Fifo => {
                mknodat(directory, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0).map_err(self.failed("make the pipe", path))?;
                // Made here and now, and not a link: nothing is followed.
                chmodat(directory, name, Mode::from_raw_mode(meta.mode.into()), AtFlags::empty()).map_err(self.failed("set the permissions of", path))?;
            }
            Kind::Socket => {
                self.skip(path, "a socket does not outlive its program");
                return Ok(());
            }
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {
                self.skip(path, "a device belongs to its machine");
                return Ok(());
            }
        }
        if !meta.xattrs.is_empty() {
            self.skip(path, "its extended attributes need a privilege");
        }
        utimensat(directory, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed("set the time of", path))
    }

    fn file(&mut self, directory: &OwnedFd, name: &[u8], entry: &Entry, recipe: &Recipe) -> Result<(), RestoreError> {
        let (path, meta) = (&entry.path, &entry.meta);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(directory, name, flags, Mode::from_raw_mode(0o600)).map_err(self.failed("make the file", path))?;
        let file = File::from(fd);
        let failed = |step: &'static str, error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::FBIG | Errno::INVAL) => RestoreError::Tree { path: path.clone(), rule: "it is longer than a file can be here" },
            _ => RestoreError::Write { step, path: path.clone(), target: self.target.to_owned(), source: error },
        };
        let mut walk = RangeWalk::new(recipe, 0..recipe.len());
        let mut ends_in_hole = false;
        loop {
            match walk.step() {
                RangeStep::Done => break,
                RangeStep::Need(digest) => {
                    let node = Recipe::decode_node(&self.fetch(&digest)?);
                    node.and_then(|node| walk.feed(node)).map_err(|source| RestoreError::Object { digest, source })?;
                }
                RangeStep::Extent { extent: Extent::Hole(_), .. } => ends_in_hole = true,
                RangeStep::Extent { offset, extent: Extent::Data(chunk) } => {
                    ends_in_hole = false;
                    self.restored.bytes += u64::from(chunk.len);
                    if self.restored.bytes > self.options.max_bytes {
                        return Err(RestoreError::Tree { path: path.clone(), rule: "the tree has more bytes than its layer says" });
                    }
                    let bytes = self.fetch(&chunk.digest)?;
                    if bytes.len() != chunk.len as usize {
                        return Err(RestoreError::Object { digest: chunk.digest, source: FormatError::Truncated { what: "chunk" } });
                    }
                    file.write_all_at(&bytes, offset).map_err(|error| failed("write", error))?;
                    self.progress.advance(0, bytes.len() as u64);
                }
            }
        }
        if ends_in_hole {
            file.set_len(recipe.len()).map_err(|error| failed("set the length of", error))?;
        }
        // Writing takes set-user-ID bits away, and what may not be written takes no attributes: so the bits come last.
        self.xattrs(&file, path, meta);
        fchmod(&file, Mode::from_raw_mode(meta.mode.into())).map_err(self.failed("set the permissions of", path))?;
        futimens(&file, &times(meta)).map_err(self.failed("set the time of", path))?;
        let stamp = Stamp::of(&fstat(&file).map_err(self.failed("look at", path))?);
        self.last = self.last.max(stamp.ctime);
        Ok(())
    }

    fn xattrs(&mut self, file: &impl AsFd, path: &LayerPath, meta: &Meta) {
        for (name, value) in &meta.xattrs {
            let set = match is_kept(name) {
                true => fsetxattr(file, &name[..], value, XattrFlags::empty()),
                false => Err(Errno::PERM),
            };
            if let Err(error) = set {
                self.skip(path, format!("its attribute `{}` cannot be set here: {error}", String::from_utf8_lossy(name)));
            }
        }
    }

    /// Sets what would have hindered making what is in them, innermost first.
    pub(super) fn finish_directories(&mut self) -> Result<(), RestoreError> {
        self.parent = None;
        for (path, meta, opaque) in std::mem::take(&mut self.directories).into_iter().rev() {
            let fd = open_directory(&self.root, path.as_bytes(), DIRECTORY).map_err(self.failed("open", &path))?;
            if opaque {
                fsetxattr(&fd, c"user.overlay.opaque", b"y", XattrFlags::empty()).map_err(self.failed("make opaque", &path))?;
            }
            // While it can still be done: an owner may not set attributes of what it may not write.
            self.xattrs(&fd, &path, &meta);
            fchmod(&fd, Mode::from_raw_mode(meta.mode.into())).map_err(self.failed("set the permissions of", &path))?;
            if !path.is_root() {
                futimens(&fd, &times(&meta)).map_err(self.failed("set the time of", &path))?;
            }
        }
        Ok(())
    }

    /// Writes the capture index of what was made.
    pub(super) fn index(&self, root: Digest, temporary: &Path) -> Result<(), RestoreError> {
        // A change from now on has a later `ctime` than all that was made. Ticks are some milliseconds.
        let mut now = (0, 0);
        for _ in 0..20 {
            now = file_system_now(temporary).unwrap_or((0, 0));
            if now > self.last {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut index = IndexWriter::create(&index_path(self.options.folder), now);
        let mut scan = Scan::all(root);
        let mut parent: Option<(Vec<u8>, OwnedFd)> = None;
        while let Some(entry) = self.next(&mut scan)? {
            let (Kind::File(_), Some((above, name))) = (&entry.kind, entry.path.split()) else { continue };
            if parent.as_ref().is_none_or(|(open, _)| open != above) {
                parent = open_directory(&self.root, above, DIRECTORY).ok().map(|fd| (above.to_owned(), fd));
            }
            let stat = parent.as_ref().and_then(|(_, parent)| statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok());
            if let Some(stat) = stat.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile) {
                index.add(&Stamp::of(&stat), &entry);
            }
        }
        index.finish();
        // So that the index is not older than the sandbox it is of.
        let _ = File::open(self.options.folder).map(|folder| fsync(&folder));
        Ok(())
    }
}

fn times(meta: &Meta) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime_s, tv_nsec: meta.mtime_ns.into() };
    Timestamps { last_access: time, last_modification: time }
}
