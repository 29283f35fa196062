//! Keeping the store below its cap: whole packs, the one used longest ago first.
//!
//! Never: what a pinned image, a running process, a state, or an image that no registry is known to have needs, and packs made
//! here that are not known to be on a registry. Index rows go first, then the file: whoever finds a row finds the bytes,
//! or finds the row gone when it looks again.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use layer_format::Digest;
use serde::Serialize;

use super::index::{PackOrigin, PackRow};
use super::pack_file::{read_index, scan_frames};
use super::walk::Walk;
use super::{ImageOrigin, Inner, Store, WalkError};
use crate::error::StoreError;

/// What eviction leaves, in percent of the cap, so that the next flush does not evict again.
const LEAVE_PERCENT: u64 = 90;
const EVICTIONS_KEY: &[u8] = b"evictions";
/// After a cap could not be kept, nothing is tried for this long: finding out costs a walk of what is protected.
const RETRY: Duration = Duration::from_secs(60);

/// What an eviction did, and what kept it from doing more. A pack that several things protect counts for the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EvictReport {
    /// Whether an import, pull, push or gc was going on, so that nothing was done.
    pub busy: bool,
    /// The bound.
    pub cap_bytes: u64,
    /// Bytes of packs that are left.
    pub stored_bytes: u64,
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Bytes left that no registry is known to have: packs made here.
    pub only_copy_bytes: u64,
    /// Bytes left that pinned images need.
    pub pinned_bytes: u64,
    /// Bytes left that running containers need.
    pub running_bytes: u64,
    /// Bytes left that states need.
    pub state_bytes: u64,
}

impl EvictReport {
    /// If the bound could not be kept: why, and what helps.
    pub fn problem(&self) -> Option<String> {
        if self.cap_bytes == 0 || self.stored_bytes <= self.cap_bytes {
            return None;
        }
        let mut reasons = Vec::new();
        let mut say = |bytes: u64, what: &str| {
            if bytes > 0 {
                reasons.push(format!("{} MiB {what}", bytes.div_ceil(1 << 20)));
            }
        };
        say(self.only_copy_bytes, "are not known to be on a registry (`turbo push` the images that were made here, or `turbo rmi` them and run `turbo gc`)");
        say(self.pinned_bytes, "are of pinned images");
        say(self.running_bytes, "are of images that run");
        say(self.state_bytes, "are of states of containers (`turbo rm` removes them)");
        if self.busy {
            reasons.push("an import, pull, push or gc is going on".into());
        }
        let (stored, cap) = (self.stored_bytes.div_ceil(1 << 20), self.cap_bytes >> 20);
        Some(format!("the store takes {stored} MiB, above its limit of {cap} MiB: {}", reasons.join("; ")))
    }
}

/// Takes a pack out of `rest`, after those that are compressed against it.
fn take_with_dependents(id: u32, base_packs: &HashMap<u32, HashSet<u32>>, rest: &mut HashMap<u32, PackRow>, out: &mut Vec<(u32, PackRow)>) {
    let Some(row) = rest.remove(&id) else { return };
    for (other, bases) in base_packs {
        if bases.contains(&id) {
            take_with_dependents(*other, base_packs, rest, out);
        }
    }
    out.push((id, row));
}

/// Why a pack must not be evicted, the strongest reason first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Protection {
    OnlyCopy,
    Pinned,
    Running,
    State,
}

impl Store {
    /// Evicts if the store is above its cap and nobody holds the content. For the end of an import; flushes and pulls do it
    /// by themselves. Failing is no one's loss but the disk's: it is told once.
    pub fn enforce_cap(&self) {
        let inner = &*self.inner;
        if inner.options.cap_bytes == 0 || inner.cap_unmet.lock().is_some_and(|at| at.elapsed() < RETRY) {
            return;
        }
        match self.evict(inner.options.cap_bytes) {
            Err(error) => tracing::warn!(%error, "the store is above its cap and could not be evicted"),
            Ok(report) => {
                let problem = report.problem().filter(|_| !report.busy);
                let told = std::mem::replace(&mut *inner.cap_unmet.lock(), problem.is_some().then(Instant::now)).is_some();
                if let Some(problem) = problem.filter(|_| !told) {
                    tracing::warn!("{problem}");
                }
            }
        }
    }

    /// Evicts until packs take at most 90 % of `cap_bytes`, if they take more than that now. Returns the bytes freed;
    /// 0 also if an import, pull, push or gc is going on.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails.
    pub fn evict_to(&self, cap_bytes: u64) -> Result<u64, StoreError> {
        Ok(self.evict(cap_bytes)?.freed_bytes)
    }

    /// As [`Store::evict_to`], and says what kept it from freeing more.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails.
    pub fn evict(&self, cap_bytes: u64) -> Result<EvictReport, StoreError> {
        let inner = &*self.inner;
        let mut packs = inner.index.all_packs()?;
        let mut report = EvictReport { cap_bytes, stored_bytes: packs.iter().map(|(_, row)| row.len).sum(), ..EvictReport::default() };
        if report.stored_bytes <= cap_bytes {
            return Ok(report);
        }
        let Some(_content) = inner.layout.content_lock(true, false)? else { return Ok(EvictReport { busy: true, ..report }) };
        let mut protected = self.protected_packs()?;
        let only_copies = packs.iter().filter(|(_, row)| row.origin == PackOrigin::Imported && !row.on_registry);
        protected.extend(only_copies.map(|(id, _)| (*id, Protection::OnlyCopy)));
        // What a pack is compressed against is kept as long as it is, and goes after it.
        let base_packs = self.base_packs()?;
        for (id, bases) in &base_packs {
            if let Some(why) = protected.get(id).copied() {
                bases.iter().for_each(|base| _ = protected.entry(*base).and_modify(|other| *other = why.min(*other)).or_insert(why));
            }
        }
        packs.retain(|(id, row)| {
            let bytes = match protected.get(id) {
                None => return true,
                Some(Protection::OnlyCopy) => &mut report.only_copy_bytes,
                Some(Protection::Pinned) => &mut report.pinned_bytes,
                Some(Protection::Running) => &mut report.running_bytes,
                Some(Protection::State) => &mut report.state_bytes,
            };
            *bytes += row.len;
            false
        });
        packs.sort_by_key(|(id, row)| (row.used, *id));
        let target = cap_bytes / 100 * LEAVE_PERCENT;
        let order: Vec<u32> = packs.iter().map(|(id, _)| *id).collect();
        let mut rest: HashMap<u32, PackRow> = packs.into_iter().collect();
        for id in order {
            if report.stored_bytes <= target {
                break;
            }
            let mut going = Vec::new();
            take_with_dependents(id, &base_packs, &mut rest, &mut going);
            for (id, row) in going {
                if inner.remove_pack(id, &row)? {
                    report.stored_bytes -= row.len;
                    report.freed_bytes += row.len;
                    inner.counters.evicted_packs.fetch_add(1, Ordering::Relaxed);
                    inner.counters.evicted_bytes.fetch_add(row.len, Ordering::Relaxed);
                } else {
                    report.running_bytes += row.len;
                }
            }
        }
        if report.freed_bytes > 0 {
            self.nothing_is_complete()?;
        }
        Ok(report)
    }

    /// Packs that hold an object of an image or state that must not lose any, and why.
    fn protected_packs(&self) -> Result<HashMap<u32, Protection>, StoreError> {
        let running = self.running_images()?;
        let mut images: Vec<(Protection, Digest)> = Vec::new();
        for (digest, row) in self.image_rows()? {
            let only_copy = row.origin == ImageOrigin::Imported && !row.on_registry;
            let why = match () {
                () if only_copy => Protection::OnlyCopy,
                () if row.pinned => Protection::Pinned,
                () if running.contains(&digest) => Protection::Running,
                () => continue,
            };
            images.push((why, digest));
        }
        // One walk for all: what an image shares with one before it counts there.
        images.sort_unstable();
        let (mut walk, mut protected) = (Walk::default(), HashMap::new());
        let mut packs = HashSet::new();
        for (why, digest) in images {
            self.packs_of(&mut walk, &digest, &mut packs)?;
            packs.drain().for_each(|id| _ = protected.entry(id).or_insert(why));
        }
        self.packs_of_states(&mut walk, &mut packs)?;
        packs.drain().for_each(|id| _ = protected.entry(id).or_insert(Protection::State));
        Ok(protected)
    }

    /// Adds the packs that hold objects of states, of those that `walk` has not seen.
    pub(super) fn packs_of_states(&self, walk: &mut Walk, packs: &mut HashSet<u32>) -> Result<(), StoreError> {
        self.walk_states(walk, |_, visit| {
            packs.extend(self.inner.index.location(&visit.digest)?.map(|location| location.pack));
            Ok(())
        })
    }

    /// Adds the packs that hold objects of an image, of those that `walk` has not seen.
    pub(super) fn packs_of(&self, walk: &mut Walk, image: &Digest, packs: &mut HashSet<u32>) -> Result<(), StoreError> {
        let Some(manifest) = self.manifest_of(image)? else { return Ok(()) };
        let walked = walk.image(self, &manifest, &mut |visit| {
            packs.extend(self.inner.index.location(&visit.digest).map_err(WalkError::Store)?.map(|location| location.pack));
            Ok::<_, WalkError>(())
        });
        match walked {
            Err(WalkError::Store(error)) => Err(error),
            // An image that is not valid cannot run; what it leads to is not known.
            Err(WalkError::Format { .. }) | Ok(()) => Ok(()),
        }
    }

    /// After a push: packs made here whose images are all on a registry may be evicted from now on.
    pub(crate) fn release_pushed_packs(&self, image: &Digest) -> Result<(), StoreError> {
        self.image_is_on_registry(image)?;
        let (mut pushed, mut walk) = (HashSet::new(), Walk::default());
        self.packs_of(&mut walk, image, &mut pushed)?;
        let (mut kept, mut walk) = (HashSet::new(), Walk::default());
        for (digest, row) in self.image_rows()? {
            if row.origin == ImageOrigin::Imported && !row.on_registry {
                self.packs_of(&mut walk, &digest, &mut kept)?;
            }
        }
        self.packs_of_states(&mut walk, &mut kept)?;
        let index = &self.inner.index;
        index.write(|txn| {
            for id in pushed.difference(&kept) {
                if let Some(mut row) = index.pack_in(txn, *id)?.filter(|row| !row.on_registry) {
                    row.on_registry = true;
                    index.put_pack(txn, *id, &row)?;
                }
            }
            Ok(())
        })
    }

    /// After a loss of unknown extent: no image is known to be complete.
    pub(super) fn nothing_is_complete(&self) -> Result<(), StoreError> {
        for (digest, row) in self.image_rows()? {
            if row.complete && (row.origin != ImageOrigin::Imported || row.on_registry) {
                self.image_update(&digest, |row| row.complete = false)?;
            }
        }
        Ok(())
    }
}

impl Inner {
    /// Removes a pack and its rows. `false` if a living process is writing to it. The caller holds the content lock.
    pub(super) fn remove_pack(&self, id: u32, row: &PackRow) -> Result<bool, StoreError> {
        let path = self.layout.pack(&row.file);
        let file = File::open(&path).ok();
        // Locked until the row is gone, so that no one goes on appending.
        if file.as_ref().is_some_and(|file| file.try_lock().is_err()) {
            return Ok(false);
        }
        let listed = match &file {
            Some(file) if row.finished => read_index(file, &path).ok().and_then(Result::ok),
            Some(file) => Some(scan_frames(file, row.len)).filter(|pack| pack.len() == row.len).map(|pack| pack.finish().1),
            None => None,
        };
        let mut digests: Vec<Digest> = match listed {
            Some(index) => index.objects.iter().map(|object| object.digest).collect(),
            // The pack cannot say what it held: look at every row.
            None => {
                let mut digests = Vec::new();
                self.index.for_each_object(|digest, location| digests.extend((location.pack == id).then_some(digest)))?;
                digests
            }
        };
        digests.sort_unstable();
        self.index.write(|txn| {
            for digest in &digests {
                if self.index.location_in(txn, digest)?.is_some_and(|location| location.pack == id) {
                    self.index.objects.delete(txn, digest.as_bytes())?;
                }
            }
            self.index.packs.delete(txn, &id.to_be_bytes())?;
            let count = self.index.meta.get(txn, EVICTIONS_KEY)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
            self.index.meta.put(txn, EVICTIONS_KEY, &(count + 1).to_le_bytes())
        })?;
        self.reader.forget(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(super::layout::io_error("removing", &path)(error)),
            _ => Ok(true),
        }
    }

    /// An open file keeps the space of a removed pack.
    pub(super) fn close_files_of_evicted_packs(&self) -> Result<(), StoreError> {
        let count =
            self.index.read(|txn| Ok(self.index.meta.get(txn, EVICTIONS_KEY)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)))?;
        let mut seen = self.seen_evictions.lock();
        if std::mem::replace(&mut *seen, count) != count {
            self.reader.close_files();
        }
        Ok(())
    }

    /// The pack that has this file name.
    pub(super) fn pack_of_file(&self, txn: &heed::RoTxn<'_>, file: &str) -> heed::Result<Option<u32>> {
        for item in self.index.packs.iter(txn)? {
            let (key, row) = item?;
            if super::index::decode::<PackRow>(row)?.file == file {
                return Ok(Some(key.iter().fold(0, |id, byte| id << 8 | u32::from(*byte))));
            }
        }
        Ok(None)
    }
}
