//! Reads every byte of every pack, and compares: frames with what was noted when they were stored, objects with their digests,
//! the whole with the pack's own. Packs that were verified longest ago come first, so a scrub that was cut is gone on with.
//!
//! A pack in which anything is wrong is written anew from what is right in it; what is not is looked for elsewhere, or taken out of the
//! index (`mend`).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use layer_format::Digest;
use layer_format::frame::Frame;
use layer_format::pack::{FOOTER_LEN, Footer, HEADER_LEN, PackBuilder, PackIndex, check_header};
use serde::Serialize;

use super::compact::Old;
use super::mend::Mended;
use super::pace::Pace;
use super::{Collector, GcError, GcReport};
use crate::blob_storage::{StorageError, pack_key};
use crate::db::commit;
use crate::db::namespace::NamespaceId;
use crate::db::pack::{StoredFrame, pack_get};
use crate::db::pack_life::{PackRow, pack_list, pack_namespace, pack_objects, pack_objects_all, pack_retire, pack_scrubbed};
use crate::db::root::namespace_list;
use crate::service::frames::ReadError;
use crate::service::lease::ms;

/// Bytes that are read at a time.
const PIECE_LEN: u64 = 4 << 20;
/// How long a scrub waits for a collection before it tells of damage without mending it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How to scrub.
#[derive(Clone, Debug, Default)]
pub struct ScrubOptions {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Tell, and mend nothing.
    pub dry_run: bool,
    /// Most bytes that are read a second.
    pub max_bytes_per_second: Option<u64>,
    /// Leave out packs that were verified within this time.
    pub skip_verified_within: Duration,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ScrubReport {
    /// Packs read.
    pub packs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects verified.
    pub objects: u64,
    /// Packs left out, since they were verified not long ago.
    pub skipped: u64,
    /// Packs in which something is wrong.
    pub damaged: Vec<DamagedPack>,
}

/// A pack in which something is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct DamagedPack {
    /// Whose it is.
    pub namespace: String,
    /// Its name in the storage.
    pub name: String,
    /// What is wrong.
    pub what: String,
    /// Objects of it.
    #[serde(flatten)]
    pub objects: Mended,
    /// Whether the registry is whole again, but for what is quarantined.
    pub is_mended: bool,
}

/// Reads no faster than it may.
struct Throttle {
    rate: Option<u64>,
    begun: Instant,
    bytes: u64,
}

impl Throttle {
    async fn took(&mut self, bytes: u64) {
        self.bytes += bytes;
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else { return };
        let due = Duration::from_secs_f64(self.bytes as f64 / rate as f64);
        if let Some(rest) = due.checked_sub(self.begun.elapsed()) {
            tokio::time::sleep(rest).await;
        }
    }
}

/// What is in a pack.
#[derive(Default)]
struct Contents {
    /// What is right, by the frame's offset and the slot.
    objects: HashMap<(u32, u16), Digest>,
    /// An index of the frames that are right, by what is in them.
    index: Option<PackIndex>,
    /// What is wrong first.
    wrong: Option<String>,
    /// The index at the end of the pack, if that is right.
    own_index: Option<PackIndex>,
}

impl Contents {
    fn is_wrong(&mut self, what: impl Into<String>) {
        self.wrong.get_or_insert(what.into());
    }
}

impl Collector {
    /// Scrubs all packs, or those of one namespace.
    pub(crate) async fn scrub(&self, options: &ScrubOptions) -> Result<ScrubReport, GcError> {
        let mut report = ScrubReport::default();
        let mut throttle = Throttle { rate: options.max_bytes_per_second, begun: Instant::now(), bytes: 0 };
        let mut packs = Vec::new();
        {
            let mut db = self.objects.db.read().await?;
            for (namespace, name) in namespace_list(&mut db).await? {
                if options.namespace.as_ref().is_none_or(|only| *only == name) {
                    packs.extend(pack_list(&mut db, namespace).await?.into_iter().map(|pack| (pack.scrubbed_at, namespace, name.clone(), pack)));
                }
            }
        }
        packs.retain(|(.., pack)| pack.retired_at.is_none());
        packs.sort_by_key(|(scrubbed_at, _, _, pack)| (*scrubbed_at, pack.id));
        let recent = self.objects.db.now() - ms(options.skip_verified_within);
        for (scrubbed_at, namespace, name, pack) in packs {
            if !options.skip_verified_within.is_zero() && scrubbed_at.is_some_and(|at| at > recent) {
                report.skipped += 1;
                continue;
            }
            if let Some(damaged) = self.scrub_pack(namespace, &name, &pack, options.dry_run, &mut throttle, &mut report).await? {
                tracing::error!(pack = damaged.name, namespace = name, "pack {} is damaged: {}", damaged.name, damaged.what);
                report.damaged.push(damaged);
            }
        }
        report.bytes = throttle.bytes;
        Ok(report)
    }

    async fn scrub_pack(
        &self,
        namespace: NamespaceId,
        name: &str,
        pack: &PackRow,
        dry_run: bool,
        throttle: &mut Throttle,
        report: &mut ScrubReport,
    ) -> Result<Option<DamagedPack>, GcError> {
        let frames = {
            let mut db = self.objects.db.read().await?;
            pack_get(&mut db, pack.id).await?
        };
        let Some((.., frames)) = frames else { return Ok(None) };
        let contents = match self.read_pack(pack, &frames, throttle).await {
            Ok(contents) => contents,
            Err(StorageError::NotFound { .. }) => Contents { wrong: Some("it is not there, or was cut short".into()), ..Contents::default() },
            Err(error) => return Err(error.into()),
        };
        {
            // A collection may have retired it meanwhile.
            let mut db = self.objects.db.read().await?;
            if pack_namespace(&mut db, pack.id).await?.is_none() {
                return Ok(None);
            }
        }
        report.packs += 1;
        report.objects += contents.objects.len() as u64;
        let (right, lost) = self.compare(namespace, pack, &contents).await?;
        if contents.wrong.is_none() && lost.is_empty() {
            let mut transaction = self.objects.db.begin().await?;
            pack_scrubbed(&mut transaction, pack.id, self.objects.db.now()).await?;
            commit(transaction).await?;
            return Ok(None);
        }
        let what = contents.wrong.clone().unwrap_or_else(|| "objects are not where the index says".into());
        let mut damaged = DamagedPack { namespace: name.to_owned(), name: pack.name.to_hex(), what, objects: Mended::default(), is_mended: false };
        if dry_run {
            damaged.objects = self.mend_dry(namespace, pack.id, &lost).await?;
            return Ok(Some(damaged));
        }
        let Some(mut pace) = self.wait_for(namespace).await? else {
            damaged.objects = self.mend_dry(namespace, pack.id, &lost).await?;
            return Ok(Some(damaged));
        };
        let mended = self.replace(namespace, &mut pace, pack, contents, right, &lost).await;
        pace.end().await?;
        damaged.objects = mended?;
        damaged.is_mended = true;
        Ok(Some(damaged))
    }

    /// The right to change packs of the namespace: nobody collects meanwhile.
    pub(super) async fn wait_for(&self, namespace: NamespaceId) -> Result<Option<Pace<'_>>, GcError> {
        let begun = Instant::now();
        loop {
            if let Some(pace) = Pace::take(&self.objects.db, namespace, 0.0).await? {
                return Ok(Some(pace));
            }
            if begun.elapsed() > PATIENCE {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Which objects whose rows name the pack are right, and which are not.
    async fn compare(&self, namespace: NamespaceId, pack: &PackRow, contents: &Contents) -> Result<(BTreeMap<u32, Vec<(u16, Digest)>>, Vec<Digest>), GcError> {
        let rows = {
            let mut db = self.objects.db.read().await?;
            match &contents.own_index {
                Some(index) => pack_objects(&mut db, namespace, pack.id, &index.objects.iter().map(|object| object.digest).collect::<Vec<_>>()).await?,
                None => pack_objects_all(&mut db, namespace, pack.id).await?,
            }
        };
        let (mut right, mut lost) = (BTreeMap::<u32, Vec<(u16, Digest)>>::new(), Vec::new());
        for (digest, offset, slot) in rows {
            match contents.objects.get(&(offset, slot)) == Some(&digest) {
                true => right.entry(offset).or_default().push((slot, digest)),
                false => lost.push(digest),
            }
        }
        Ok((right, lost))
    }

    /// Mends what is lost, and writes what is right into a new pack.
    async fn replace(
        &self,
        namespace: NamespaceId,
        pace: &mut Pace<'_>,
        pack: &PackRow,
        contents: Contents,
        right: BTreeMap<u32, Vec<(u16, Digest)>>,
        lost: &[Digest],
    ) -> Result<Mended, GcError> {
        let mended = match lost.is_empty() {
            true => Mended::default(),
            false => self.mend(namespace, pace, pack.id, lost).await?,
        };
        let found: u64 = right.values().map(|found| found.len() as u64).sum();
        match contents.index.filter(|_| found > 0) {
            Some(index) => {
                let old = Old { id: pack.id, found, frames: right, index, live_bytes: 0 };
                self.rewrite(namespace, pace, vec![old], &HashMap::new(), &mut GcReport::default()).await?;
            }
            None => {
                let mut transaction = self.objects.db.begin().await?;
                pace.check(&mut transaction).await?;
                if pack_objects_all(&mut transaction, namespace, pack.id).await?.is_empty() {
                    pack_retire(&mut transaction, pack.id, self.objects.db.now()).await?;
                }
                commit(transaction).await?;
            }
        }
        Ok(mended)
    }

    /// Reads a pack from its first to its last byte.
    async fn read_pack(&self, pack: &PackRow, frames: &[StoredFrame], throttle: &mut Throttle) -> Result<Contents, StorageError> {
        let key = pack_key(&pack.name);
        // From where it is, and not from a copy.
        self.storage.forget(&key);
        let mut hasher = blake3::Hasher::new();
        let mut contents = Contents::default();
        let mut builder = PackBuilder::new();
        let mut offsets = Vec::new();
        let head = self.storage.read(&key, 0..HEADER_LEN as u64).await?;
        hasher.update(&head);
        if let Err(error) = check_header(&head) {
            contents.is_wrong(error.to_string());
        }
        let mut rest = frames;
        let mut at = HEADER_LEN as u64;
        while let Some(first) = rest.first() {
            let start = u64::from(first.offset).max(at);
            let count = rest.iter().take_while(|frame| u64::from(frame.offset) + u64::from(frame.len) <= start + PIECE_LEN).count().max(1);
            let (now, later) = rest.split_at(count);
            rest = later;
            let end = now.last().map_or(start, |frame| u64::from(frame.offset) + u64::from(frame.len));
            let bytes = self.storage.read(&key, at..end).await?;
            let (base, now) = (at, now.to_vec());
            at = end;
            throttle.took(bytes.len() as u64).await;
            let failed = |error| StorageError::Io { doing: "verify", path: key.clone().into(), source: error };
            let (deltas, plain): (Vec<StoredFrame>, Vec<StoredFrame>) = now.into_iter().partition(|frame| frame.is_delta);
            let piece = bytes.clone();
            let work = tokio::task::spawn_blocking(move || {
                hasher.update(&piece);
                let checked: Vec<_> = plain.into_iter().map(|frame| (frame, check_frame(&piece, base, &frame, None))).collect();
                (hasher, checked)
            });
            let (back, mut checked) = work.await.map_err(|error| failed(std::io::Error::other(error)))?;
            // One at a time: what they are compressed against may be hundreds of times as long as they are.
            for frame in deltas {
                let prefix = self.prefix_in(pack, &bytes, base, &frame).await.map_err(|error| failed(std::io::Error::other(error)))?;
                let piece = bytes.clone();
                let work = tokio::task::spawn_blocking(move || check_frame(&piece, base, &frame, prefix.as_deref()));
                checked.push((frame, work.await.map_err(|error| failed(std::io::Error::other(error)))?));
            }
            checked.sort_by_key(|(frame, _)| frame.offset);
            hasher = back;
            for (frame, checked) in checked {
                match checked {
                    Ok((encoded, objects)) => {
                        for (slot, (digest, _)) in objects.iter().enumerate() {
                            contents.objects.insert((frame.offset, slot as u16), *digest);
                        }
                        if builder.push(&encoded, &objects).is_ok() {
                            offsets.push(frame.offset);
                        }
                    }
                    Err(what) => contents.is_wrong(format!("the frame at byte {}: {what}", frame.offset)),
                }
            }
        }
        let tail = self.storage.read(&key, at..pack.size_bytes.max(at)).await?;
        throttle.took(tail.len() as u64).await;
        hasher.update(&tail);
        contents.own_index = own_index(&tail, pack.size_bytes);
        if contents.own_index.is_none() {
            contents.is_wrong("its index is damaged");
        }
        if pack.is_whole == Some(true) && Digest(*hasher.finalize().as_bytes()) != pack.digest {
            contents.is_wrong("its bytes are not those that were stored");
        }
        // As the frames lie in this pack, which is where they are copied from.
        let (_, mut index) = builder.finish();
        for (frame, offset) in index.frames.iter_mut().zip(offsets) {
            frame.offset = offset.into();
        }
        contents.index = Some(index);
        Ok(contents)
    }
}

impl Collector {
    /// What a delta frame in these bytes of a pack is compressed against; `None` if it cannot be had.
    async fn prefix_in(&self, pack: &PackRow, bytes: &Bytes, base: u64, frame: &StoredFrame) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(encoded) = frame_bytes(bytes, base, frame) else { return Ok(None) };
        match self.objects.frames.prefix_of(pack.id, encoded).await {
            Ok(prefix) => Ok(Some(prefix)),
            Err(error) if error.is_loss() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn frame_bytes<'a>(bytes: &'a [u8], base: u64, frame: &StoredFrame) -> Option<&'a [u8]> {
    let start = u64::from(frame.offset).checked_sub(base)? as usize;
    bytes.get(start..start + frame.len as usize)
}

type CheckedFrame = (Vec<u8>, Vec<(Digest, u32)>);

fn check_frame(bytes: &Bytes, base: u64, frame: &StoredFrame, prefix: Option<&[u8]>) -> Result<CheckedFrame, String> {
    let encoded = frame_bytes(bytes, base, frame).ok_or("it is cut short")?;
    if blake3::hash(encoded).as_bytes()[..16] != frame.check {
        return Err("its bytes are not those that were stored".into());
    }
    let decoded = match (frame.is_delta, prefix) {
        (false, _) => Frame::decode(encoded),
        (true, Some(prefix)) => Frame::decode_delta(encoded, prefix),
        (true, None) => return Err("what it is compressed against is not there".into()),
    };
    let decoded = decoded.map_err(|error| error.to_string())?;
    Ok((encoded.to_vec(), decoded.objects().map(|object| (Digest::of(object), object.len() as u32)).collect()))
}

fn own_index(tail: &[u8], pack_len: u64) -> Option<PackIndex> {
    let (index, footer) = tail.split_at(tail.len().checked_sub(FOOTER_LEN)?);
    let footer = Footer::decode(footer, pack_len).ok()?;
    (index.len() == footer.index_len as usize).then(|| PackIndex::decode(index, &footer).ok()).flatten()
}
