//! Keeping the store below its cap: whole packs, the one used longest ago first.
//!
//! Never: what a pinned image, a running process, a state, or an image that no registry is known to have needs, and packs made
//! here that are not known to be on a registry. Index rows go first, then the file: whoever finds a row finds the bytes,
//! or finds the row gone when it looks again.

use std::collections::HashSet;
use std::fs::File;
use std::sync::atomic::Ordering;

use layer_format::Digest;

use super::index::{PackOrigin, PackRow};
use super::pack_file::{read_index, scan_frames};
use super::walk::Walk;
use super::{ImageOrigin, Inner, Store, WalkError};
use crate::error::StoreError;

/// What eviction leaves, in percent of the cap, so that the next flush does not evict again.
const LEAVE_PERCENT: u64 = 90;
const EVICTIONS_KEY: &[u8] = b"evictions";

impl Store {
    /// Evicts if the store is above its cap and nobody holds the content. For the end of an import; flushes and pulls do it
    /// by themselves. Failing is no one's loss but the disk's.
    pub fn enforce_cap(&self) {
        if self.inner.options.cap_bytes != 0
            && let Err(error) = self.evict_to(self.inner.options.cap_bytes)
        {
            tracing::warn!(%error, "the store is above its cap and could not be evicted");
        }
    }

    /// Evicts until packs take at most 90 % of `cap_bytes`, if they take more than that now. Returns the bytes freed;
    /// 0 also if an import, pull, push or gc is going on.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails.
    pub fn evict_to(&self, cap_bytes: u64) -> Result<u64, StoreError> {
        let inner = &*self.inner;
        let mut packs = inner.index.all_packs()?;
        let mut total: u64 = packs.iter().map(|(_, row)| row.len).sum();
        if total <= cap_bytes {
            return Ok(0);
        }
        let Some(_content) = inner.layout.content_lock(true, false)? else { return Ok(0) };
        let protected = self.protected_packs()?;
        packs.retain(|(id, row)| !protected.contains(id) && (row.origin != PackOrigin::Imported || row.on_registry));
        packs.sort_by_key(|(id, row)| (row.used, *id));
        let (mut freed, target) = (0, cap_bytes / 100 * LEAVE_PERCENT);
        for (id, row) in packs {
            if total <= target {
                break;
            }
            if inner.remove_pack(id, &row)? {
                total -= row.len;
                freed += row.len;
                inner.counters.evicted_packs.fetch_add(1, Ordering::Relaxed);
                inner.counters.evicted_bytes.fetch_add(row.len, Ordering::Relaxed);
            }
        }
        if freed > 0 {
            self.nothing_is_complete()?;
        }
        Ok(freed)
    }

    /// Packs that hold an object of an image that must not lose any.
    fn protected_packs(&self) -> Result<HashSet<u32>, StoreError> {
        let running = self.running_images()?;
        let mut walk = Walk::default();
        let mut packs = HashSet::new();
        for (digest, row) in self.image_rows()? {
            let only_copy = row.origin == ImageOrigin::Imported && !row.on_registry;
            if row.pinned || only_copy || running.contains(&digest) {
                self.packs_of(&mut walk, &digest, &mut packs)?;
            }
        }
        self.packs_of_states(&mut walk, &mut packs)?;
        Ok(packs)
    }

    /// Adds the packs that hold objects of states, of those that `walk` has not seen.
    fn packs_of_states(&self, walk: &mut Walk, packs: &mut HashSet<u32>) -> Result<(), StoreError> {
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
