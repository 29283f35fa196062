//! Files of the old version that are right for the new one, and what the next checkout will know of this one's.

use std::os::fd::OwnedFd;

use layer_format::Digest;
use layer_format::LayerPath;
use layer_format::entry::{Kind, Meta};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, ioctl_ficlone, linkat, openat, statat, utimensat};

use super::entries::Entries;
use super::make::{Rights, times};
use super::place::Place;
use super::work::Both;
use crate::beneath::{DIRECTORY, open_directory};
use crate::capture::index::{IndexReader, IndexWriter};
use crate::capture::oldest::forget_oldest;
use crate::clock;
use crate::read::Stamp;
use crate::restore::RestoreError;
use crate::source::ObjectSource;

/// What can be done with a file of the old version.
pub(super) enum Old {
    /// It has its name in the new version, too; the time says whether it has that of the new version.
    Kept { has_its_time: bool },
    /// Its content is right, and it can be read from this file.
    Content(OwnedFd),
    /// Nothing.
    Other,
}

/// What the last checkout knows of its files.
pub(super) struct KnownFiles {
    index: Option<IndexReader>,
}

impl KnownFiles {
    /// Of the directory that is there.
    pub(super) fn open(place: &Place) -> Self {
        Self { index: place.old.as_ref().and_then(|_| IndexReader::open(&place.index)) }
    }

    /// The stamp of the file that has this path, content and attributes, if there was one.
    pub(super) fn find(&mut self, path: &LayerPath, kind: &Kind, meta: &Meta) -> Option<Stamp> {
        let Kind::File(recipe) = kind else { return None };
        let (stamp, known, xattrs) = self.index.as_mut()?.record(path)?;
        (known == *recipe && xattrs == meta.xattrs && meta.hard_link.is_none()).then_some(stamp)
    }
}

/// Looks at the file `name` of the old directory, of which the last checkout knows that it has the right content if it has this
/// stamp, and gives it its name in the new one if it can stay as it is.
pub(super) fn keep(directory: &Both, name: &[u8], meta: &Meta, stamp: &Stamp, rights: &Rights) -> Old {
    let Some(old) = &directory.old else { return Old::Other };
    let Some(stat) = statat(old, name, AtFlags::SYMLINK_NOFOLLOW).ok().filter(|stat| is_that(stat, stamp)) else { return Old::Other };
    // With a second name elsewhere it would be changed from there.
    if rights.are_as(&stat, meta) && stat.st_nlink == 1 && linkat(old, name, &directory.new, name, AtFlags::empty()).is_ok() {
        return Old::Kept { has_its_time: stamp.mtime == (meta.mtime_s, meta.mtime_ns) };
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match openat(old, name, flags, Mode::empty()) {
        Ok(file) if fstat(&file).is_ok_and(|stat| is_that(&stat, stamp)) => Old::Content(file),
        _ => Old::Other,
    }
}

fn is_that(stat: &Stat, stamp: &Stamp) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && Stamp::of(stat) == *stamp
}

/// Shares the content of a file with a new one, where the file system can.
pub(super) fn share(new: &OwnedFd, old: &OwnedFd) -> bool {
    ioctl_ficlone(new, old).is_ok()
}

/// Sets times of kept files, which come in the order of the tree. Whoever is not the owner of one fails, and the next checkout sees that.
pub(super) fn set_times(root: &OwnedFd, files: &[(LayerPath, Meta)]) {
    let mut parent: Option<(&[u8], OwnedFd)> = None;
    for (path, meta) in files {
        let Some((above, name)) = path.split() else { continue };
        if parent.as_ref().is_none_or(|(open, _)| *open != above) {
            parent = open_directory(root, above, DIRECTORY).ok().map(|fd| (above, fd));
        }
        if let Some((_, fd)) = &parent {
            let _ = utimensat(fd, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW);
        }
    }
}

/// Writes the index of the directory that is now in place: what of its files is known to be as the layers say. Failing to costs the
/// next checkout time.
pub(super) fn remember(layers: &[Digest], source: &dyn ObjectSource, place: &Place, root: &OwnedFd) -> Result<(), RestoreError> {
    if !place.believes {
        let _ = std::fs::remove_file(&place.index);
        return Ok(());
    }
    // All that was made has an older `ctime`, and a change from now on gives a later one.
    let mut index = IndexWriter::create(&place.index, clock::past(clock::now()));
    let mut entries = Entries::new(layers, source)?;
    let mut parent: Option<(Vec<u8>, OwnedFd)> = None;
    while let Some((_, entry)) = entries.next()? {
        let (Kind::File(recipe), Some((above, name))) = (&entry.kind, entry.path.split()) else { continue };
        if parent.as_ref().is_none_or(|(open, _)| open != above) {
            parent = open_directory(root, above, DIRECTORY).ok().map(|fd| (above.to_owned(), fd));
        }
        let stat = parent.as_ref().and_then(|(_, parent)| statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok());
        let Some(stat) = stat.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile) else { continue };
        let stamp = Stamp::of(&stat);
        // What has changed already is not what was made.
        if stamp.len == recipe.len() && stamp.mtime == (entry.meta.mtime_s, entry.meta.mtime_ns) {
            index.add(&stamp, &entry);
        }
    }
    index.finish();
    if let Some(folder) = place.index.parent() {
        forget_oldest(folder, &place.index);
    }
    Ok(())
}
