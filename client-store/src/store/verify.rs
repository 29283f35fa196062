//! Hashing everything: every byte of every pack, and the index against the packs, both ways.
//!
//! One pack at a time, so that memory does not grow with the store: what the pack says that it holds is looked up in the
//! index, and what the index says lies in it is read and hashed. A row that leads to no pack, to nothing, or to other bytes
//! is a damaged object. An object that a pack holds and no row names is named again by a repair.

mod needed;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use layer_format::Digest;
use layer_format::frame::{Frame, MAX_ENCODED_LEN};
use layer_format::pack::{HEADER_LEN, PackIndex, check_header};
use serde::Serialize;

use super::index::{Location, PackRow};
use super::pack_file::{read_index, scan_frames};
use super::reader::{ReadError, read_direct};
use super::throttle::Throttle;
use super::{Inner, Store};
use crate::error::StoreError;

/// What to do with damaged objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Report them only.
    #[default]
    No,
    /// Take them out of the index, so that a run or pull fetches them again; name what is here and not named; note which
    /// packs a repack has to write anew.
    Forget,
}

/// How to verify.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyOptions {
    /// What to do with damaged objects.
    pub repair: Repair,
    /// Most bytes read a second; 0 for no bound.
    pub bytes_per_s: u64,
}

/// An object whose bytes are not what its digest says, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedObject {
    /// The object.
    pub digest: Digest,
    /// File of the pack that should hold it.
    pub pack: String,
    /// What is wrong.
    pub reason: String,
    /// Images that need it.
    pub images: Vec<Digest>,
    /// States that need it.
    pub states: Vec<Digest>,
}

/// A pack whose file is not as it was written. Its objects are told apart: they may all be whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedPack {
    /// Its file.
    pub pack: String,
    /// What is wrong.
    pub reason: String,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Packs read.
    pub packs: u64,
    /// Objects hashed.
    pub objects: u64,
    /// Uncompressed bytes hashed.
    pub bytes: u64,
    /// Damaged objects.
    pub damaged: Vec<DamagedObject>,
    /// Packs that are not as they were written.
    pub damaged_packs: Vec<DamagedPack>,
    /// Packs whose file is gone.
    pub missing_packs: Vec<String>,
    /// Objects that packs hold, whole, and the index does not name.
    pub unnamed_objects: u64,
    /// Images that lack something here, whether it was ever here or not.
    pub incomplete_images: Vec<Digest>,
    /// States of which something is damaged or missing here.
    pub incomplete_states: Vec<Digest>,
    /// Whether damaged objects were taken out of the index.
    pub repaired: bool,
}

impl VerifyReport {
    /// Whether nothing is damaged and no pack is gone. An image that is incomplete because not all of it was ever fetched is
    /// no damage.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.damaged_packs.is_empty() && self.missing_packs.is_empty() && self.unnamed_objects == 0
    }
}

/// An object of a pack, and whether the index names it.
struct Named {
    digest: Digest,
    location: Location,
    named: bool,
}

/// A row that does not lead to its object, the pack's file, and what is wrong.
type Bad = (Digest, Location, String, String);

impl Store {
    /// Hashes everything. `progress` is told the stored bytes done and in total.
    ///
    /// # Errors
    /// As [`Store::verify_with`].
    pub fn verify(&self, repair: Repair, progress: impl FnMut(u64, u64)) -> Result<VerifyReport, StoreError> {
        self.verify_with(&VerifyOptions { repair, bytes_per_s: 0 }, progress)
    }

    /// Hashes everything, within bounds. `progress` is told the stored bytes done and in total. Memory: one pack's index,
    /// and 48 bytes for each object of the image that needs most. Nothing is removed meanwhile; all else goes on.
    ///
    /// # Errors
    /// [`StoreError`] if the index fails; damage is a result, not an error.
    pub fn verify_with(&self, options: &VerifyOptions, mut progress: impl FnMut(u64, u64)) -> Result<VerifyReport, StoreError> {
        let inner = &*self.inner;
        inner.flush()?;
        let _hold = self.hold()?;
        let packs = inner.index.all_packs()?;
        let known: HashSet<u32> = packs.iter().map(|(id, _)| *id).collect();
        let mut rows: HashMap<u32, u64> = HashMap::new();
        let mut strays = Vec::new();
        inner.index.for_each_object(|digest, location| match known.contains(&location.pack) {
            true => *rows.entry(location.pack).or_default() += 1,
            false => strays.push((digest, location)),
        })?;
        let total = packs.iter().map(|(_, row)| row.len).sum();
        let mut bad: Vec<Bad> = Vec::new();
        for (digest, location) in strays {
            // A pack that appeared meanwhile is none of this verification's.
            if inner.index.pack(location.pack)?.is_none() {
                bad.push((digest, location, String::new(), "its pack is not in the index".into()));
            }
        }
        let mut run = Run { store: self, options, throttle: Throttle::new(options.bytes_per_s), report: VerifyReport::default(), bad, unnamed: Vec::new() };
        let mut done = 0;
        for (id, row) in &packs {
            run.pack(*id, row, rows.get(id).copied().unwrap_or(0))?;
            done += row.len;
            progress(done, total);
        }
        let Run { mut report, bad, .. } = run;
        if options.repair == Repair::Forget {
            for (digest, location, ..) in &bad {
                inner.bad.add(*digest, *location);
            }
        }
        report.damaged =
            bad.into_iter().map(|(digest, _, pack, reason)| DamagedObject { digest, pack, reason, images: Vec::new(), states: Vec::new() }).collect();
        self.find_images(&mut report)?;
        self.find_states(&mut report)?;
        if options.repair == Repair::Forget && !report.is_clean() {
            inner.write_housekeeping()?;
            self.forget_missing(&packs, &report.missing_packs)?;
            report.repaired = true;
        }
        Ok(report)
    }

    /// Forgets packs whose file is gone, after their objects.
    fn forget_missing(&self, packs: &[(u32, PackRow)], missing: &[String]) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let gone: Vec<u32> = packs.iter().filter(|(_, row)| missing.contains(&row.file) && !inner.layout.pack(&row.file).exists()).map(|(id, _)| *id).collect();
        match gone.is_empty() {
            true => Ok(()),
            false => inner.index.write(|txn| gone.iter().try_for_each(|id| inner.index.packs.delete(txn, &id.to_be_bytes()).map(drop))),
        }
    }
}

struct Run<'a> {
    store: &'a Store,
    options: &'a VerifyOptions,
    throttle: Throttle,
    report: VerifyReport,
    bad: Vec<Bad>,
    /// Whole objects of the pack at hand that no row names.
    unnamed: Vec<(Digest, Location)>,
}

impl Run<'_> {
    /// Verifies a pack of which the index had so many rows.
    fn pack(&mut self, id: u32, row: &PackRow, rows: u64) -> Result<(), StoreError> {
        let path = self.store.inner.layout.pack(&row.file);
        self.report.packs += 1;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                self.report.missing_packs.push(row.file.clone());
                let lost = self.rows_of(id, &HashSet::new())?;
                self.bad.extend(lost.into_iter().map(|(digest, location)| (digest, location, row.file.clone(), error.to_string())));
                return Ok(());
            }
        };
        let listed = match row.finished {
            true => read_index(&file, &path).map_or_else(|error| Err(error.to_string()), |index| index.map_err(|error| error.to_string())),
            false => Ok(scan_frames(&file, row.len).finish().1),
        };
        let listed = match listed.and_then(|listed| whole(&file, row, &mut self.throttle).map(|()| listed)) {
            Ok(listed) => listed,
            Err(reason) => {
                self.report.damaged_packs.push(DamagedPack { pack: row.file.clone(), reason });
                read_index(&file, &path).ok().and_then(Result::ok).unwrap_or_default()
            }
        };
        let mut objects = self.look_up(id, &listed)?;
        if (objects.iter().filter(|object| object.named).count() as u64) < rows {
            // The pack does not know of all that should be in it.
            let seen: HashSet<Digest> = objects.iter().filter(|object| object.named).map(|object| object.digest).collect();
            let more = self.rows_of(id, &seen)?;
            let more_names: HashSet<Digest> = more.iter().map(|(digest, _)| *digest).collect();
            objects.retain(|object| object.named || !more_names.contains(&object.digest));
            objects.extend(more.into_iter().map(|(digest, location)| Named { digest, location, named: true }));
        }
        objects.sort_unstable_by_key(|object| (object.location.offset, object.location.slot));
        self.report.objects += objects.iter().filter(|object| object.named).count() as u64;
        self.report.bytes += objects.iter().filter(|object| object.named).map(|object| u64::from(object.location.len)).sum::<u64>();
        self.hash(&file, &row.file, &objects);
        self.mend(id)
    }

    /// What the index says of the objects that a pack says it holds: those that lie there, and those that lie nowhere.
    fn look_up(&self, id: u32, listed: &PackIndex) -> Result<Vec<Named>, StoreError> {
        let index = &self.store.inner.index;
        index.read(|txn| {
            let mut objects = Vec::with_capacity(listed.objects.len());
            let mut seen = HashSet::new();
            for object in &listed.objects {
                let Some(frame) = listed.frames.get(object.frame as usize) else { continue };
                let found = index.location_in(txn, &object.digest)?;
                let here = Location { pack: id, offset: frame.offset as u32, frame_len: frame.len, slot: object.slot, len: object.len };
                match found {
                    Some(location) if location.pack == id && seen.insert(object.digest) => objects.push(Named { digest: object.digest, location, named: true }),
                    None => objects.push(Named { digest: object.digest, location: here, named: false }),
                    Some(_) => {}
                }
            }
            Ok(objects)
        })
    }

    /// The rows of a pack that are not among those `seen`. Looks at every row.
    fn rows_of(&self, id: u32, seen: &HashSet<Digest>) -> Result<Vec<(Digest, Location)>, StoreError> {
        let mut found = Vec::new();
        self.store.inner.index.for_each_object(|digest, location| {
            if location.pack == id && !seen.contains(&digest) {
                found.push((digest, location));
            }
        })?;
        Ok(found)
    }

    /// Hashes the objects of one pack, sorted by place.
    fn hash(&mut self, file: &File, pack: &str, objects: &[Named]) {
        let same_frame = |a: &Location, b: &Location| a.offset == b.offset && a.slot != Location::DIRECT && b.slot != Location::DIRECT;
        for group in objects.chunk_by(|a, b| same_frame(&a.location, &b.location)) {
            let Some(first) = group.first() else { continue };
            let frame = match first.location.slot {
                Location::DIRECT => None,
                _ => Some(read_frame(&self.store.inner, file, &first.location)),
            };
            self.throttle.pause(first.location.frame_len.into());
            for Named { digest, location, named } in group {
                let wrong = match &frame {
                    None => read_direct(file, digest, location.offset.into(), location.len).err().map(describe),
                    Some(Err(reason)) => Some(reason.clone()),
                    Some(Ok(frame)) => match frame.object(location.slot.into()) {
                        Some(object) if Digest::of(object) == *digest => None,
                        _ => Some("its bytes do not match its digest".to_owned()),
                    },
                };
                match (wrong, named) {
                    (Some(reason), true) => self.bad.push((*digest, *location, pack.to_owned(), reason)),
                    // It was damaged, and has been forgotten.
                    (Some(_), false) => {}
                    (None, true) => {}
                    (None, false) => self.unnamed.push((*digest, *location)),
                }
            }
        }
    }

    /// Counts, and with a repair names, what was found in the pack and is not named; notes a damaged pack.
    fn mend(&mut self, id: u32) -> Result<(), StoreError> {
        let unnamed = std::mem::take(&mut self.unnamed);
        self.report.unnamed_objects += unnamed.len() as u64;
        let index = &self.store.inner.index;
        if self.options.repair == Repair::No {
            return Ok(());
        }
        let Some(row) = index.pack(id)? else { return Ok(()) };
        let damaged = self.report.damaged_packs.last().is_some_and(|last| last.pack == row.file);
        if unnamed.is_empty() && row.damaged == damaged {
            return Ok(());
        }
        index.write(|txn| {
            let Some(mut row) = index.pack_in(txn, id)? else { return Ok(()) };
            for (digest, location) in &unnamed {
                if index.location_in(txn, digest)?.is_none() {
                    index.put_location(txn, digest, location)?;
                }
            }
            row.damaged = damaged;
            index.put_pack(txn, id, &row)
        })
    }
}

/// Whether a pack's file is what was written: one that is named by its digest is hashed; of others the header is looked at.
fn whole(mut file: &File, row: &PackRow, throttle: &mut Throttle) -> Result<(), String> {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0).map_err(|error| error.to_string())?;
    check_header(&header).map_err(|error| error.to_string())?;
    let Some(wanted) = Path::new(&row.file).file_stem().and_then(|stem| Digest::from_hex(stem.to_str()?).ok()) else { return Ok(()) };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut buffer).map_err(|error| error.to_string())?;
        if read == 0 {
            break;
        }
        throttle.pause(read as u64);
        hasher.update(&buffer[..read]);
    }
    match Digest(*hasher.finalize().as_bytes()) == wanted {
        true => Ok(()),
        false => Err("the file is not the one that its name says".into()),
    }
}

fn read_frame(inner: &Inner, file: &File, location: &Location) -> Result<Frame, String> {
    if location.frame_len as usize > MAX_ENCODED_LEN {
        return Err("the index gives its frame an impossible length".into());
    }
    let mut encoded = vec![0; location.frame_len as usize];
    file.read_exact_at(&mut encoded, location.offset.into()).map_err(|error| error.to_string())?;
    inner.decode_frame(&encoded).map_err(describe)
}

fn describe(error: ReadError) -> String {
    match error {
        ReadError::Vanished => "its pack is gone".into(),
        ReadError::Damaged(reason) => reason,
        ReadError::Io(error) => error.to_string(),
    }
}
