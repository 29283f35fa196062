//! What each image takes, what it shares with others, and what would go with it.

use std::collections::{HashMap, HashSet};

use layer_format::Digest;
use serde::Serialize;

use super::fragmentation::Fragmentation;
use super::index::PackOrigin;
use super::walk::{ObjectKind, Walk};
use super::{Store, WalkError};
use crate::error::StoreError;

/// What an image takes in the store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageUsage {
    /// The image.
    pub digest: Digest,
    /// Objects of it that are here.
    pub objects: u64,
    /// Their uncompressed bytes.
    pub plain_bytes: u64,
    /// Of these, bytes that no other image and no state needs.
    pub unique_plain_bytes: u64,
    /// Objects of it that are not here, as far as they are known.
    pub missing_objects: u64,
    /// Bytes on disk that `turbo gc` would free if this image alone were removed: those of packs of which nothing else needs
    /// anything.
    pub removal_frees_bytes: u64,
    /// Frames that are read and decoded when all of it is read in order.
    pub frames: u64,
    /// The same for each MiB of it.
    pub frames_per_mib: f64,
    /// How many times that is what it would be after a repack for this image; 1.0 is not fragmented.
    pub fragmentation: f64,
}

impl ImageUsage {
    fn nothing(digest: Digest) -> Self {
        Self {
            digest,
            objects: 0,
            plain_bytes: 0,
            unique_plain_bytes: 0,
            missing_objects: 0,
            removal_frees_bytes: 0,
            frames: 0,
            frames_per_mib: 0.0,
            fragmentation: 1.0,
        }
    }
}

/// Who needs something: one image, or several images or a state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    One(u32),
    Several,
}

fn add<K: std::hash::Hash + Eq>(owners: &mut HashMap<K, Owner>, key: K, owner: Owner) {
    owners.entry(key).and_modify(|known| *known = if *known == owner { owner } else { Owner::Several }).or_insert(owner);
}

impl Store {
    /// What every image takes, in the order of [`Store::images`]' digests. Walks all images: seconds for millions of
    /// objects. Memory: about 100 bytes for each object that an image needs.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails.
    pub fn image_usage(&self) -> Result<Vec<ImageUsage>, StoreError> {
        let inner = &*self.inner;
        inner.flush()?;
        let rows = self.image_rows()?;
        let mut usage: Vec<ImageUsage> = Vec::new();
        // Who needs each object, with its length, and who needs anything of each pack.
        let mut objects: HashMap<Digest, (Owner, u32)> = HashMap::new();
        let mut packs: HashMap<u32, Owner> = HashMap::new();
        for (number, (digest, _)) in rows.iter().enumerate() {
            let owner = Owner::One(number as u32);
            let mut one = ImageUsage::nothing(*digest);
            let mut read = Fragmentation::default();
            if let Some(manifest) = self.manifest_of(digest)? {
                let mut walk = Walk::default();
                let walked = walk.image(self, &manifest, &mut |visit| {
                    let Some(location) = inner.usable_location(&visit.digest).map_err(WalkError::Store)? else {
                        one.missing_objects += 1;
                        return Ok(());
                    };
                    one.objects += 1;
                    one.plain_bytes += u64::from(location.len);
                    if matches!(visit.kind, ObjectKind::Chunk { .. }) {
                        read.read(&location);
                    }
                    let known = objects.entry(visit.digest).or_insert((owner, location.len));
                    if known.0 != owner {
                        known.0 = Owner::Several;
                    }
                    add(&mut packs, location.pack, owner);
                    Ok::<_, WalkError>(())
                });
                known(walked)?;
                self.packs_of_bases(&mut walk, |pack| add(&mut packs, pack, owner))?;
            }
            (one.frames, one.fragmentation) = (read.frames, read.ratio());
            one.frames_per_mib = if read.bytes == 0 { 0.0 } else { read.frames as f64 / (read.bytes as f64 / f64::from(1 << 20)) };
            usage.push(one);
        }
        let mut walk = Walk::default();
        self.walk_states(&mut walk, |_, visit| {
            if let Some(known) = objects.get_mut(&visit.digest) {
                known.0 = Owner::Several;
            }
            if let Some(location) = inner.usable_location(&visit.digest)? {
                add(&mut packs, location.pack, Owner::Several);
            }
            Ok(())
        })?;
        self.packs_of_bases(&mut walk, |pack| add(&mut packs, pack, Owner::Several))?;
        for (owner, len) in objects.into_values() {
            if let Owner::One(number) = owner {
                usage[number as usize].unique_plain_bytes += u64::from(len);
            }
        }
        for (id, row) in inner.index.all_packs()? {
            if let Some(Owner::One(number)) = packs.get(&id)
                && row.origin != PackOrigin::Streamed
            {
                usage[*number as usize].removal_frees_bytes += row.len;
            }
        }
        Ok(usage)
    }

    /// Bytes on disk that the next gc would free if all of these images were removed. Walks all images.
    ///
    /// # Errors
    /// [`StoreError`] if the index or the disk fails.
    pub fn removal_frees(&self, images: &HashSet<Digest>) -> Result<u64, StoreError> {
        let (mut walk, mut kept, mut going) = (Walk::default(), HashSet::new(), HashSet::new());
        let rows = self.image_rows()?;
        for (digest, _) in rows.iter().filter(|(digest, _)| !images.contains(digest)) {
            self.packs_of(&mut walk, digest, &mut kept)?;
        }
        self.packs_of_states(&mut walk, &mut kept)?;
        self.packs_of_bases(&mut walk, |pack| _ = kept.insert(pack))?;
        for digest in images {
            self.packs_of(&mut walk, digest, &mut going)?;
        }
        self.packs_of_bases(&mut walk, |pack| _ = going.insert(pack))?;
        let freed =
            self.inner.index.all_packs()?.into_iter().filter(|(id, row)| going.contains(id) && !kept.contains(id) && row.origin != PackOrigin::Streamed);
        Ok(freed.map(|(_, row)| row.len).sum())
    }
}

impl Store {
    /// Calls `f` with the packs of what the delta frames of what was seen are compressed against.
    fn packs_of_bases(&self, walk: &mut Walk, mut f: impl FnMut(u32)) -> Result<(), StoreError> {
        walk.add_bases(self)?;
        for digest in walk.only_bases() {
            if let Some(location) = self.inner.usable_location(digest)? {
                f(location.pack);
            }
        }
        Ok(())
    }
}

/// An image that is not valid takes what could be walked of it.
fn known(walked: Result<(), WalkError>) -> Result<(), StoreError> {
    match walked {
        Err(WalkError::Store(error)) => Err(error),
        Err(WalkError::Format { .. }) | Ok(()) => Ok(()),
    }
}
