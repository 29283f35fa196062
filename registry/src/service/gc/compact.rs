//! Packs of which much is dead, and many small ones, become few full ones; packs in which nothing is found are retired; the bytes
//! of retired ones go after the grace for readers.
//!
//! A rewrite copies what is found into a new pack, each object verified, and makes that durable. Then, in one transaction, the
//! objects' rows move over and the old packs are retired. A crash before leaves a pack that no row names, for `reconcile`; a
//! reader that looked an object up before still finds it in the old pack. Frames all of whose objects are alive are copied as they
//! are. The order is that in which the newest image is read, then that of the old packs.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use layer_format::Digest;
use layer_format::frame::{Frame, FrameBuilder, delta};
use layer_format::pack::{MAX_PACK_FRAMES, MAX_PACK_OBJECTS, PackBuilder, PackIndex, TARGET_PACK_LEN, header, header_with_deltas};

use super::order::read_order;
use super::pace::Pace;
use super::sweep::PackUse;
use super::{Collector, GcError, GcOptions, GcReport, PackReason};
use crate::blob_storage::pack_key;
use crate::db::base::{base_delete_pack, base_insert};
use crate::db::commit;
use crate::db::gc::object_delete_from;
use crate::db::namespace::NamespaceId;
use crate::db::object::{FramePlace, object_insert_pack};
use crate::db::pack::{PackId, StoredFrame, pack_insert};
use crate::db::pack_life::{pack_break, pack_delete, pack_name_used, pack_objects, pack_objects_all, pack_retire};
use crate::service::frames::ReadError;
use crate::service::lease::ms;
use crate::service::pack_upload::read_index;

/// Packs that one collection rewrites at most; the next goes on.
const MAX_REWRITTEN: usize = 512;
const ZSTD_LEVEL: i32 = 3;

/// A pack that is rewritten, and what is found in it: per frame its slots and digests.
pub(super) struct Old {
    pub(super) id: PackId,
    pub(super) found: u64,
    pub(super) frames: BTreeMap<u32, Vec<(u16, Digest)>>,
    /// Frames that can be read.
    pub(super) index: PackIndex,
    /// Encoded bytes of its frames, in proportion to what is found of them.
    pub(super) live_bytes: u64,
}

impl Collector {
    /// Looks after all packs of the namespace.
    pub(super) async fn packs(
        &self,
        namespace: NamespaceId,
        pace: &mut Pace<'_>,
        packs: HashMap<PackId, PackUse>,
        options: GcOptions,
        report: &mut GcReport,
    ) -> Result<(), GcError> {
        let now = self.objects.db.now();
        let mut packs: Vec<PackUse> = packs.into_values().collect();
        packs.sort_by_key(|pack| pack.row.id);
        let small: Vec<PackId> = packs.iter().filter(|pack| self.is_small(pack)).map(|pack| pack.row.id).collect();
        let merge: HashSet<PackId> = if small.len() >= self.settings.small_pack_count.max(2) { small.into_iter().collect() } else { HashSet::new() };
        let mut rewritten = Vec::new();
        for pack in &packs {
            let fate = match pack.row.retired_at {
                Some(retired) if retired + ms(self.settings.reader_grace) <= now => {
                    self.remove_bytes(pack, pace, options, report).await?;
                    "remove"
                }
                Some(_) => "readers",
                None if pack.live == 0 => {
                    if options.dry_run {
                        report.packs_retired += 1;
                    } else {
                        self.retire(namespace, pack, pace, report).await?;
                    }
                    "retire"
                }
                None if rewritten.len() >= MAX_REWRITTEN => "kept",
                None if merge.contains(&pack.row.id) => {
                    rewritten.push(*pack);
                    "merge"
                }
                None if self.is_dead_enough(pack) => {
                    rewritten.push(*pack);
                    "rewrite"
                }
                None => "kept",
            };
            if options.list_packs {
                let row = &pack.row;
                let (bytes, objects) = (row.size_bytes, row.object_count);
                report.packs.push(PackReason { name: row.name.to_hex(), bytes, objects, found: pack.found, live: pack.live, fate });
            }
        }
        match options.dry_run {
            true => report.packs_rewritten = rewritten.len() as u64,
            false => self.rewrite_all(namespace, pace, &rewritten, report).await?,
        }
        Ok(())
    }

    fn is_small(&self, pack: &PackUse) -> bool {
        pack.row.retired_at.is_none() && pack.live > 0 && pack.row.size_bytes < self.settings.small_pack_bytes
    }

    /// Whether more of the pack is dead than is allowed.
    fn is_dead_enough(&self, pack: &PackUse) -> bool {
        let dead = pack.row.object_count.saturating_sub(pack.live);
        // Objects are about as long as each other: the sum of their lengths is not worth reading the index of each pack.
        dead as f64 > self.settings.dead_fraction * pack.row.object_count as f64
    }

    /// The bytes, then the row.
    async fn remove_bytes(&self, pack: &PackUse, pace: &mut Pace<'_>, options: GcOptions, report: &mut GcReport) -> Result<(), GcError> {
        let row = &pack.row;
        let (shared, last) = {
            let mut db = self.objects.db.read().await?;
            (pack_name_used(&mut db, &row.name, row.id).await?, row.size_bytes == 0)
        };
        let is_there = !shared && !last && self.storage.stat(&pack_key(&row.name)).await?.is_some();
        if !options.dry_run {
            if !shared {
                self.storage.delete(&pack_key(&row.name)).await?;
            }
            let mut transaction = self.objects.db.begin().await?;
            pace.check(&mut transaction).await?;
            base_delete_pack(&mut transaction, row.id).await?;
            pack_delete(&mut transaction, row.id).await?;
            commit(transaction).await?;
            pace.rest().await?;
        }
        // The newest row stays after its bytes went: they are counted once.
        if is_there {
            report.packs_removed += 1;
            report.bytes_freed += row.size_bytes;
        }
        Ok(())
    }

    async fn retire(&self, namespace: NamespaceId, pack: &PackUse, pace: &mut Pace<'_>, report: &mut GcReport) -> Result<(), GcError> {
        let index = match read_index(&*self.storage, &pack.row).await {
            Ok(index) => Some(index),
            Err(error) if error.is_loss() => None,
            Err(error) => return Err(error.into()),
        };
        let mut transaction = self.objects.db.begin().await?;
        pace.check(&mut transaction).await?;
        // Candidates that were due may have been taken away again.
        let found = match &index {
            Some(index) => {
                pack_objects(&mut transaction, namespace, pack.row.id, &index.objects.iter().map(|object| object.digest).collect::<Vec<_>>()).await?
            }
            None => pack_objects_all(&mut transaction, namespace, pack.row.id).await?,
        };
        if found.is_empty() && pack_retire(&mut transaction, pack.row.id, self.objects.db.now()).await? {
            report.packs_retired += 1;
        }
        commit(transaction).await?;
        pace.rest().await
    }

    async fn rewrite_all(&self, namespace: NamespaceId, pace: &mut Pace<'_>, packs: &[PackUse], report: &mut GcReport) -> Result<(), GcError> {
        let mut old = Vec::new();
        for pack in packs {
            let index = match read_index(&*self.storage, &pack.row).await {
                Ok(index) => index,
                Err(error) if error.is_loss() => {
                    tracing::error!(pack = %pack.row.name, error = crate::chain(&error), "pack {} cannot be read: run `turbo-registry scrub`", pack.row.name);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let digests: Vec<Digest> = index.objects.iter().map(|object| object.digest).collect();
            let found = {
                let mut db = self.objects.db.read().await?;
                pack_objects(&mut db, namespace, pack.row.id, &digests).await?
            };
            let mut frames: BTreeMap<u32, Vec<(u16, Digest)>> = BTreeMap::new();
            for (digest, offset, slot) in &found {
                frames.entry(*offset).or_default().push((*slot, *digest));
            }
            let live_bytes = index
                .frames
                .iter()
                .filter_map(|frame| frames.get(&(frame.offset as u32)).map(|found| u64::from(frame.len) * found.len() as u64 / u64::from(frame.count.max(1))));
            let live_bytes = live_bytes.sum();
            old.push(Old { id: pack.row.id, found: found.len() as u64, frames, index, live_bytes });
            pace.rest().await?;
        }
        // Alone, a small pack would only become another small pack.
        if old.is_empty() {
            return Ok(());
        }
        let wanted: HashSet<Digest> = old.iter().flat_map(|old| old.frames.values().flatten().map(|(_, digest)| *digest)).collect();
        let order = read_order(&self.objects, namespace, &wanted, pace).await?;
        let mut group: Vec<Old> = Vec::new();
        for pack in old {
            let sum = |of: &dyn Fn(&Old) -> u64| group.iter().map(of).sum::<u64>() + of(&pack);
            let is_full = sum(&|old| old.live_bytes) > TARGET_PACK_LEN
                || sum(&|old| old.found) > MAX_PACK_OBJECTS as u64 / 2
                || sum(&|old| old.frames.len() as u64) > MAX_PACK_FRAMES as u64 / 2;
            if is_full && !group.is_empty() {
                self.rewrite(namespace, pace, std::mem::take(&mut group), &order, report).await?;
            }
            group.push(pack);
        }
        self.rewrite(namespace, pace, group, &order, report).await
    }

    /// Rewrites some packs into one.
    pub(super) async fn rewrite(
        &self,
        namespace: NamespaceId,
        pace: &mut Pace<'_>,
        group: Vec<Old>,
        order: &HashMap<Digest, u32>,
        report: &mut GcReport,
    ) -> Result<(), GcError> {
        let name = Digest(rand::random());
        let mut writer = self.storage.create(&pack_key(&name)).await?;
        let built = match self.build(namespace, &group, order, &mut *writer, pace).await {
            Ok(built) => built,
            Err(error) => {
                writer.abort().await;
                return match error {
                    GcError::Read(error) if error.is_loss() => {
                        tracing::error!(error = crate::chain(&error), "packs cannot be rewritten: run `turbo-registry scrub`");
                        Ok(())
                    }
                    error => Err(error),
                };
            }
        };
        writer.finish().await?;
        let db = &self.objects.db;
        let mut transaction = db.begin().await?;
        pace.check(&mut transaction).await?;
        let digests: Vec<Digest> = built.index.objects.iter().map(|object| object.digest).collect();
        // What is written anew because of damage may have the bytes that the old one should have.
        let old_packs: Vec<PackId> = group.iter().map(|old| old.id).collect();
        pack_break(&mut transaction, old_packs).await?;
        let id = pack_insert(&mut transaction, namespace, &built.digest, &name, built.len, digests.len(), &built.frames).await?;
        // The namespace has the same pack already: its objects are found there, or will be.
        let Some(id) = id else {
            drop(transaction);
            return Ok(self.storage.delete(&pack_key(&name)).await?);
        };
        let mut moved: HashSet<Digest> = HashSet::new();
        let mut retired = 0;
        for old in &group {
            let of_pack: Vec<Digest> = old.frames.values().flatten().map(|(_, digest)| *digest).collect();
            let gone = object_delete_from(&mut transaction, namespace, &[old.id], &of_pack).await?;
            let all_moved = gone.len() as u64 == old.found || pack_objects_all(&mut transaction, namespace, old.id).await?.is_empty();
            if all_moved && pack_retire(&mut transaction, old.id, db.now()).await? {
                retired += 1;
            }
            moved.extend(gone);
        }
        let index =
            PackIndex { frames: built.index.frames, objects: built.index.objects.into_iter().filter(|object| moved.contains(&object.digest)).collect() };
        object_insert_pack(&mut transaction, namespace, id, &index).await?;
        base_insert(&mut transaction, namespace, id, &built.bases.into_iter().collect::<Vec<_>>()).await?;
        commit(transaction).await?;
        report.packs_rewritten += group.len() as u64;
        report.packs_retired += retired;
        report.packs_made += 1;
        pace.rest().await
    }

    /// Whether nothing that a delta frame needs lies in one of these packs.
    async fn bases_stay(&self, namespace: NamespaceId, encoded: &[u8], moving: &HashSet<PackId>) -> Result<bool, GcError> {
        let places = self.objects.locate(namespace, &delta::bases(encoded)?).await?;
        Ok(!places.values().any(|place| moving.contains(&place.frame.pack)))
    }

    async fn build(
        &self,
        namespace: NamespaceId,
        group: &[Old],
        order: &HashMap<Digest, u32>,
        writer: &mut dyn crate::blob_storage::BlobWriter,
        pace: &mut Pace<'_>,
    ) -> Result<Built, GcError> {
        let mut frames = Vec::new();
        for old in group {
            for frame in &old.index.frames {
                let Some(found) = old.frames.get(&(frame.offset as u32)) else { continue };
                let rank = found.iter().filter_map(|(_, digest)| order.get(digest)).min().copied().unwrap_or(u32::MAX);
                frames.push((rank, FramePlace { pack: old.id, offset: frame.offset as u32, len: frame.len }, found, frame.count));
            }
        }
        frames.sort_by_key(|(rank, place, ..)| (*rank, *place));
        let mut out = Output {
            pack: PackBuilder::new(),
            hasher: blake3::Hasher::new(),
            frames: Vec::new(),
            bases: HashSet::new(),
            writer,
            open: Vec::new(),
            open_len: 0,
        };
        let mut deltas = HashSet::new();
        for (_, place, ..) in &frames {
            if self.objects.frames.is_delta(*place).await? {
                deltas.insert(*place);
            }
        }
        out.write(if deltas.is_empty() { header() } else { header_with_deltas() }.to_vec()).await?;
        let moving: HashSet<PackId> = group.iter().map(|old| old.id).collect();
        for (_, place, found, count) in frames {
            let encoded = self.objects.frames.encoded(place).await?.ok_or(ReadError::Damaged(layer_format::FormatError::DigestMismatch { what: "frame" }))?;
            let wanted = found.clone();
            let mut is_whole = found.len() == usize::from(count);
            let mut prefix = Vec::new();
            if deltas.contains(&place) {
                prefix = self.objects.frames.prefix_of(place.pack, &encoded).await?;
                // What it needs may not lie together any more if it is moved: then its objects go plain.
                is_whole &= self.bases_stay(namespace, &encoded, &moving).await?;
            }
            let checked = tokio::task::spawn_blocking(move || take_objects(encoded, &prefix, &wanted, is_whole)).await.map_err(|_| GcError::Cancelled)?;
            match checked.map_err(|error| GcError::Read(ReadError::Damaged(error)))? {
                Taken::Whole(encoded, objects) => out.frame(encoded, &objects).await?,
                Taken::Parts(objects) => out.objects(objects).await?,
            }
            pace.rest().await?;
        }
        out.finish().await
    }
}

enum Taken {
    /// The frame as it is.
    Whole(Vec<u8>, Vec<(Digest, u32)>),
    /// Some of its objects.
    Parts(Vec<Vec<u8>>),
}

/// Verifies what is wanted of a frame.
fn take_objects(encoded: Bytes, prefix: &[u8], wanted: &[(u16, Digest)], is_whole: bool) -> Result<Taken, layer_format::FormatError> {
    let frame = Frame::decode_delta(&encoded, prefix)?;
    let mut parts = Vec::new();
    for (slot, digest) in wanted {
        let bytes = crate::service::objects::verified(&frame, *slot, digest).ok_or(layer_format::FormatError::DigestMismatch { what: "object" })?;
        parts.push(bytes.to_vec());
    }
    if !is_whole {
        return Ok(Taken::Parts(parts));
    }
    let objects = frame.objects().map(|bytes| (Digest::of(bytes), bytes.len() as u32)).collect();
    Ok(Taken::Whole(encoded.to_vec(), objects))
}

struct Built {
    index: PackIndex,
    frames: Vec<StoredFrame>,
    bases: HashSet<Digest>,
    digest: Digest,
    len: u64,
}

/// A pack being written.
struct Output<'a> {
    pack: PackBuilder,
    hasher: blake3::Hasher,
    frames: Vec<StoredFrame>,
    bases: HashSet<Digest>,
    writer: &'a mut dyn crate::blob_storage::BlobWriter,
    /// Objects that are not in a frame yet.
    open: Vec<Vec<u8>>,
    open_len: usize,
}

impl Output<'_> {
    async fn write(&mut self, bytes: Vec<u8>) -> Result<(), GcError> {
        self.hasher.update(&bytes);
        Ok(self.writer.write(bytes.into()).await?)
    }

    async fn frame(&mut self, encoded: Vec<u8>, objects: &[(Digest, u32)]) -> Result<(), GcError> {
        let placed = self.pack.push(&encoded, objects)?;
        let bases = delta::bases(&encoded)?;
        let mut check = [0; 16];
        check.copy_from_slice(&blake3::hash(&encoded).as_bytes()[..16]);
        self.frames.push(StoredFrame { offset: placed.offset as u32, len: placed.len, check, is_delta: !bases.is_empty() });
        self.bases.extend(bases);
        self.write(encoded).await
    }

    async fn objects(&mut self, objects: Vec<Vec<u8>>) -> Result<(), GcError> {
        for object in objects {
            self.open_len += object.len();
            self.open.push(object);
            if self.open_len >= layer_format::frame::TARGET_FRAME_LEN || self.open.len() >= layer_format::frame::MAX_FRAME_OBJECTS {
                self.close_frame().await?;
            }
        }
        Ok(())
    }

    async fn close_frame(&mut self) -> Result<(), GcError> {
        let objects = std::mem::take(&mut self.open);
        self.open_len = 0;
        if objects.is_empty() {
            return Ok(());
        }
        let encoded = tokio::task::spawn_blocking(move || {
            let mut builder = FrameBuilder::new();
            let mut names = Vec::with_capacity(objects.len());
            for object in &objects {
                builder.push(object)?;
                names.push((Digest::of(object), object.len() as u32));
            }
            let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
            Ok::<_, layer_format::FormatError>((builder.finish(compressor.as_mut()), names))
        });
        let (encoded, names) = encoded.await.map_err(|_| GcError::Cancelled)??;
        self.frame(encoded, &names).await
    }

    async fn finish(mut self) -> Result<Built, GcError> {
        self.close_frame().await?;
        let (tail, index) = std::mem::take(&mut self.pack).finish();
        let at = index.frames.last().map_or(layer_format::pack::HEADER_LEN as u64, |frame| frame.offset + u64::from(frame.len));
        let len = at + tail.len() as u64;
        self.write(tail).await?;
        Ok(Built { index, frames: self.frames, bases: self.bases, digest: Digest(*self.hasher.finalize().as_bytes()), len })
    }
}
