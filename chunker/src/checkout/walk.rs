//! Walks the tree, makes its directories, and hands everything else to workers, in batches.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use layer_format::entry::{Entry, Kind, Meta};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::{Digest, LayerPath};
use rustix::fs::{AtFlags, linkat, utimensat};
use rustix::io::Errno;

use super::entries::Entries;
use super::kept::KnownFiles;
use super::large::LargeFile;
use super::make::{self, Rights, times};
use super::place::{New, Place};
use super::work::{Both, Done, Job, Shared, work};
use super::{BATCH_ITEMS, BATCH_LEN, CheckoutOptions};
use crate::beneath::{DIRECTORY, open_directory};
use crate::import::Skipped;
use crate::progress::Progress;
use crate::restore::RestoreError;
use crate::source::ObjectSource;

/// Most workers.
const MAX_THREADS: usize = 24;
/// Most directories that a batch keeps open.
const BATCH_DIRECTORIES: usize = 16;

/// Makes the whole tree in the new directory.
pub(super) fn run(
    layers: &[Digest],
    source: &dyn ObjectSource,
    place: &Place,
    new: &New<'_>,
    options: &CheckoutOptions<'_>,
    progress: &dyn Progress,
) -> Result<Done, RestoreError> {
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    let threads = if options.threads == 0 { cores() } else { options.threads }.clamp(1, MAX_THREADS);
    let rights = Rights::of_process();
    let shared = Shared { source, place, progress, rights, stop: AtomicBool::new(false), cannot_share: AtomicBool::new(false) };
    let (sender, receiver) = bounded(threads + 2);
    let mut walk = Walk {
        shared: &shared,
        root: &new.root,
        batches: Some(sender),
        batch: Vec::new(),
        batch_bytes: 0,
        batch_directories: 0,
        directory: None,
        known: KnownFiles::open(place),
        directories: Vec::new(),
        groups: HashMap::new(),
        links: Vec::new(),
        done: Done::default(),
    };
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for number in 0..threads {
            let (receiver, shared) = (receiver.clone(), &shared);
            let spawned = thread::Builder::new().name(format!("checkout-{number}")).spawn_scoped(scope, move || work(&receiver, shared));
            workers.push(spawned.map_err(|error| shared.write_failed(&LayerPath::root(), &error))?);
        }
        drop(receiver);
        let walked = walk.all(layers);
        if walked.is_err() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        walk.batches = None;
        let mut failed = None;
        for worker in workers {
            match worker.join() {
                Ok(Ok(done)) => walk.add(done),
                Ok(Err(error)) => failed = failed.or(Some(error)),
                Err(_) => failed = failed.or(Some(shared.write_failed(&LayerPath::root(), &std::io::Error::other("a worker panicked")))),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => walked,
        }
    })?;
    walk.link()?;
    walk.finish_directories(threads)?;
    let mut done = walk.done;
    done.late.sort_by(|(one, _), (other, _)| one.cmp(other));
    done.counted.skipped.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(done)
}

struct Walk<'a, 'b> {
    shared: &'a Shared<'b>,
    root: &'a OwnedFd,
    /// `None` once all is handed out.
    batches: Option<Sender<Vec<Job>>>,
    batch: Vec<Job>,
    batch_bytes: u64,
    batch_directories: usize,
    /// The directory of the last entry: entries of one directory are neighbours.
    directory: Option<(Vec<u8>, Arc<Both>)>,
    known: KnownFiles,
    /// Directories made, parents first.
    directories: Vec<(LayerPath, Meta)>,
    /// The first name of each file with several: by layer and group.
    groups: HashMap<(usize, u64), LayerPath>,
    /// Further names, each with the first.
    links: Vec<(LayerPath, LayerPath)>,
    done: Done,
}

impl Walk<'_, '_> {
    fn all(&mut self, layers: &[Digest]) -> Result<(), RestoreError> {
        let mut entries = Entries::new(layers, self.shared.source)?;
        while let Some((layer, entry)) = entries.next()? {
            self.entry(layer, entry)?;
        }
        self.flush()
    }

    fn add(&mut self, done: Done) {
        self.done.counted.add(done.counted);
        self.done.late.extend(done.late);
    }

    fn entry(&mut self, layer: usize, entry: Entry) -> Result<(), RestoreError> {
        let Some((parent, name)) = entry.path.split() else {
            if entry.is_dir() {
                self.done.counted.entries += 1;
                self.directories.push((entry.path, entry.meta));
            }
            return Ok(());
        };
        let directory = self.directory(parent, &entry.path)?;
        if let Kind::Directory { .. } = entry.kind {
            make::directory(&directory.new, name, &entry.meta, &self.shared.rights).map_err(self.shared.place.failed("make the directory", &entry.path))?;
            self.done.counted.entries += 1;
            self.directories.push((entry.path, entry.meta));
            return Ok(());
        }
        let links = matches!(entry.kind, Kind::File(_) | Kind::Symlink(_) | Kind::Fifo);
        if let Some(link) = entry.meta.hard_link.filter(|_| links) {
            if let Some(first) = self.groups.get(&(layer, link.group)) {
                self.links.push((entry.path.clone(), first.clone()));
                return Ok(());
            }
            self.groups.insert((layer, link.group), entry.path.clone());
        }
        let stamp = self.known.find(&entry.path, &entry.kind, &entry.meta);
        if let Kind::File(recipe @ Recipe::Nodes { .. }) = &entry.kind {
            self.done.counted.entries += 1;
            self.done.counted.bytes += entry.len();
            if self.shared.is_kept(&directory, &entry, stamp.as_ref(), &mut self.done)? {
                return Ok(());
            }
            let recipe = recipe.clone();
            return self.large(&directory, entry, &recipe);
        }
        let bytes = entry.len().min(BATCH_LEN);
        self.push(Job::Entry(directory, Box::new(entry), stamp), bytes)
    }

    /// The directory with this path, opened.
    fn directory(&mut self, path: &[u8], entry: &LayerPath) -> Result<Arc<Both>, RestoreError> {
        if let Some((open, both)) = &self.directory
            && open == path
        {
            return Ok(Arc::clone(both));
        }
        let place = self.shared.place;
        let new = open_directory(self.root, path, DIRECTORY).map_err(|error| match error {
            Errno::NOENT => RestoreError::Tree { path: entry.clone(), rule: "its directory is not in the tree" },
            error => place.failed("open the directory of", entry)(error),
        })?;
        let old = place.old.as_ref().and_then(|old| open_directory(old, path, DIRECTORY).ok());
        let both = Arc::new(Both { new, old });
        self.directory = Some((path.to_owned(), Arc::clone(&both)));
        if self.batch_directories >= BATCH_DIRECTORIES {
            self.flush()?;
        }
        self.batch_directories += 1;
        Ok(both)
    }

    /// Hands out a large file in parts.
    fn large(&mut self, directory: &Both, entry: Entry, recipe: &Recipe) -> Result<(), RestoreError> {
        let file = self.shared.start(directory, &entry)?;
        let large = Arc::new(LargeFile::new(entry, file));
        let mut walk = RangeWalk::new(recipe, 0..recipe.len());
        let (mut part, mut bytes, mut ends_in_hole) = (Vec::new(), 0, false);
        loop {
            match walk.step() {
                RangeStep::Done => break,
                RangeStep::Need(digest) => {
                    let node = Recipe::decode_node(&self.shared.source.object(&digest).map_err(RestoreError::Source)?);
                    node.and_then(|node| walk.feed(node)).map_err(|source| RestoreError::Object { digest, source })?;
                }
                RangeStep::Extent { extent: Extent::Hole(_), .. } => ends_in_hole = true,
                RangeStep::Extent { offset, extent: Extent::Data(chunk) } => {
                    ends_in_hole = false;
                    part.push((offset, chunk));
                    bytes += u64::from(chunk.len);
                    if bytes >= BATCH_LEN {
                        self.part(&large, std::mem::take(&mut part), std::mem::take(&mut bytes))?;
                    }
                }
            }
        }
        self.part(&large, part, bytes)?;
        if ends_in_hole {
            large.set_len(recipe.len()).map_err(|error| self.shared.write_failed(&large.entry.path, &error))?;
        }
        self.shared.part_is_done(&large, &mut self.done)
    }

    fn part(&mut self, large: &Arc<LargeFile>, part: Vec<(u64, layer_format::chunk::ChunkRef)>, bytes: u64) -> Result<(), RestoreError> {
        if part.is_empty() {
            return Ok(());
        }
        large.add_part();
        self.push(Job::Part(Arc::clone(large), part), bytes)
    }

    fn push(&mut self, job: Job, bytes: u64) -> Result<(), RestoreError> {
        self.batch.push(job);
        self.batch_bytes += bytes;
        if self.batch_bytes >= BATCH_LEN || self.batch.len() >= BATCH_ITEMS { self.flush() } else { Ok(()) }
    }

    /// Hands the batch on.
    fn flush(&mut self) -> Result<(), RestoreError> {
        (self.batch_bytes, self.batch_directories) = (0, 0);
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        // All workers end only when one has failed, and says why.
        let sent = self.batches.as_ref().is_some_and(|batches| batches.send(batch).is_ok());
        if sent && !self.shared.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(self.shared.write_failed(&LayerPath::root(), &std::io::Error::from(std::io::ErrorKind::Interrupted)))
    }

    /// Gives files their further names.
    fn link(&mut self) -> Result<(), RestoreError> {
        let place = self.shared.place;
        let open = |path: &LayerPath| {
            let (parent, name) = path.split().unwrap_or_default();
            open_directory(self.root, parent, DIRECTORY).map(|fd| (fd, name.to_owned())).map_err(place.failed("open the directory of", path))
        };
        for (path, first) in &self.links {
            let ((from, first_name), (to, name)) = (open(first)?, open(path)?);
            match linkat(&from, &first_name, &to, &name, AtFlags::empty()) {
                Ok(()) => self.done.counted.entries += 1,
                // The first name was left out, and said so.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(place.failed("link", path)(error)),
            }
        }
        Ok(())
    }

    /// Sets what would have hindered making what is in directories, and the times that making it has changed.
    fn finish_directories(&mut self, threads: usize) -> Result<(), RestoreError> {
        let (shared, root) = (self.shared, self.root);
        let (simple, other): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.directories).into_iter().partition(|(path, meta)| !path.is_root() && make::is_simple(meta, &shared.rights));
        let set = |(path, meta): &(LayerPath, Meta)| {
            let set = match utimensat(root, path.as_bytes(), &times(meta), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NAMETOOLONG) => open_directory(root, path.as_bytes(), DIRECTORY).and_then(|fd| rustix::fs::futimens(&fd, &times(meta))),
                other => other,
            };
            set.map_err(shared.place.failed("set the time of", path))
        };
        let share = simple.len().div_ceil(threads).max(256);
        thread::scope(|scope| {
            let mut parts = simple.chunks(share);
            let own = parts.next().unwrap_or_default();
            let others: Vec<_> = parts.map(|part| scope.spawn(move || part.iter().try_for_each(set))).collect();
            let mut result = own.iter().try_for_each(set);
            for other in others {
                result = result.and(other.join().unwrap_or(Ok(())));
            }
            result
        })?;
        // Innermost first: what takes the right to enter comes after all that is below.
        for (path, meta) in other.iter().rev() {
            let fd = open_directory(root, path.as_bytes(), DIRECTORY).map_err(shared.place.failed("open", path))?;
            let mut skipped: Vec<Skipped> = Vec::new();
            make::finish_directory(&fd, path, meta, &shared.rights, &mut skipped).map_err(shared.place.failed("finish", path))?;
            self.done.counted.skipped.extend(skipped);
        }
        Ok(())
    }
}
