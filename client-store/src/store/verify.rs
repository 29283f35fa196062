//! Hashing everything.

use std::collections::HashMap;
use std::fs::File;

use layer_format::Digest;
use layer_format::frame::Frame;
use serde::Serialize;

use super::index::Location;
use super::reader::read_direct;
use super::walk::{Visit, Walk};
use super::{Store, WalkError};
use crate::error::StoreError;

/// What to do with damaged objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Report them only.
    #[default]
    No,
    /// Take them out of the index, so that a run or pull fetches them again.
    Forget,
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
    /// Packs whose file is gone.
    pub missing_packs: Vec<String>,
    /// Images that lack something here, whether it was ever here or not.
    pub incomplete_images: Vec<Digest>,
    /// States of which something is damaged or missing here.
    pub incomplete_states: Vec<Digest>,
    /// Whether damaged objects were taken out of the index.
    pub repaired: bool,
}

impl Store {
    /// Hashes every object that the index names. `progress` is told the stored bytes done and in total.
    ///
    /// # Errors
    /// [`StoreError`] if the index fails; damage is a result, not an error.
    pub fn verify(&self, repair: Repair, mut progress: impl FnMut(u64, u64)) -> Result<VerifyReport, StoreError> {
        let inner = &*self.inner;
        inner.flush()?;
        let _hold = self.hold()?;
        let mut by_pack: HashMap<u32, Vec<(Digest, Location)>> = HashMap::new();
        inner.index.for_each_object(|digest, location| by_pack.entry(location.pack).or_default().push((digest, location)))?;
        let packs = inner.index.all_packs()?;
        let total = packs.iter().map(|(_, row)| row.len).sum();
        let (mut report, mut done) = (VerifyReport::default(), 0);
        let mut bad: Vec<(Digest, Location, String, String)> = Vec::new();
        for (id, row) in packs {
            let mut objects = by_pack.remove(&id).unwrap_or_default();
            objects.sort_unstable_by_key(|(_, location)| (location.offset, location.slot));
            let path = inner.layout.pack(&row.file);
            report.packs += 1;
            match File::open(&path) {
                Ok(file) => {
                    report.objects += objects.len() as u64;
                    report.bytes += objects.iter().map(|(_, location)| u64::from(location.len)).sum::<u64>();
                    bad.extend(damaged_objects(&file, &objects).into_iter().map(|(digest, location, reason)| (digest, location, row.file.clone(), reason)));
                }
                Err(error) => {
                    report.missing_packs.push(row.file.clone());
                    bad.extend(objects.into_iter().map(|(digest, location)| (digest, location, row.file.clone(), error.to_string())));
                }
            }
            done += row.len;
            progress(done, total);
        }
        for (digest, location) in by_pack.into_values().flatten() {
            bad.push((digest, location, String::new(), "its pack is not in the index".into()));
        }
        if repair == Repair::Forget {
            for (digest, location, ..) in &bad {
                inner.bad.add(*digest, *location);
            }
        }
        report.damaged =
            bad.into_iter().map(|(digest, _, pack, reason)| DamagedObject { digest, pack, reason, images: Vec::new(), states: Vec::new() }).collect();
        self.find_images(&mut report)?;
        self.find_states(&mut report)?;
        if repair == Repair::Forget && !report.damaged.is_empty() {
            inner.write_housekeeping()?;
            report.repaired = true;
        }
        Ok(report)
    }

    /// Says which images need the damaged objects, and which are incomplete.
    fn find_images(&self, report: &mut VerifyReport) -> Result<(), StoreError> {
        let places: HashMap<Digest, usize> = report.damaged.iter().enumerate().map(|(at, object)| (object.digest, at)).collect();
        for (image, row) in self.image_rows()? {
            let Some(manifest) = self.manifest_of(&image)? else { continue };
            let mut complete = true;
            let mut walk = Walk::default();
            let walked = walk.image(self, &manifest, &mut |visit| {
                if let Some(at) = places.get(&visit.digest) {
                    report.damaged[*at].images.push(image);
                }
                complete &= visit.bytes.is_some()
                    || !places.contains_key(&visit.digest) && self.inner.usable_location(&visit.digest).map_err(WalkError::Store)?.is_some();
                Ok::<_, WalkError>(())
            });
            match walked {
                Err(WalkError::Store(error)) => return Err(error),
                Err(WalkError::Format { .. }) => complete = false,
                Ok(()) => {}
            }
            if !complete {
                report.incomplete_images.push(image);
            }
            if row.complete != complete {
                self.image_update(&image, |row| row.complete = complete)?;
            }
        }
        Ok(())
    }
}

impl Store {
    /// Says which states need the damaged objects, and which are incomplete.
    fn find_states(&self, report: &mut VerifyReport) -> Result<(), StoreError> {
        let places: HashMap<Digest, usize> = report.damaged.iter().enumerate().map(|(at, object)| (object.digest, at)).collect();
        let is_bad = |visit: &Visit<'_>| -> Result<bool, StoreError> {
            Ok(places.contains_key(&visit.digest) || visit.bytes.is_none() && self.inner.usable_location(&visit.digest)?.is_none())
        };
        // States share most of what they need: one walk for all says whether there is anything to be told at all.
        let mut any = false;
        self.walk_states(&mut Walk::default(), |_, visit| {
            any |= is_bad(visit)?;
            Ok(())
        })?;
        for (digest, _) in self.states()? {
            let Some(state) = self.state_get(&digest).ok().flatten() else {
                report.incomplete_states.push(digest);
                continue;
            };
            if !any {
                continue;
            }
            let mut complete = true;
            let walked = Walk::default().layers(self, &[state.manifest.sandbox], &mut |visit| {
                complete &= !is_bad(&visit).map_err(WalkError::Store)?;
                if let Some(at) = places.get(&visit.digest) {
                    report.damaged[*at].states.push(digest);
                }
                Ok::<_, WalkError>(())
            });
            match walked {
                Err(WalkError::Store(error)) => return Err(error),
                Err(WalkError::Format { .. }) => complete = false,
                Ok(()) => {}
            }
            if !complete {
                report.incomplete_states.push(digest);
            }
        }
        Ok(())
    }
}

/// The objects of one pack, sorted by place, that are not what they should be.
fn damaged_objects(file: &File, objects: &[(Digest, Location)]) -> Vec<(Digest, Location, String)> {
    use std::os::unix::fs::FileExt;
    let mut bad = Vec::new();
    for group in objects.chunk_by(|(_, a), (_, b)| a.offset == b.offset && a.slot != Location::DIRECT && b.slot != Location::DIRECT) {
        let Some((digest, first)) = group.first() else { continue };
        if first.slot == Location::DIRECT {
            if let Err(error) = read_direct(file, digest, first.offset.into(), first.len) {
                bad.push((*digest, *first, format!("{error:?}")));
            }
            continue;
        }
        let mut encoded = vec![0; (first.frame_len as usize).min(layer_format::frame::MAX_ENCODED_LEN)];
        let frame = file.read_exact_at(&mut encoded, first.offset.into()).map_err(|error| error.to_string());
        let frame = frame.and_then(|()| Frame::decode(&encoded).map_err(|error| error.to_string()));
        for (digest, location) in group {
            let reason = match &frame {
                Ok(frame) if frame.object(location.slot.into()).is_some_and(|object| Digest::of(object) == *digest) => continue,
                Ok(_) => "its bytes do not match its digest".to_owned(),
                Err(reason) => reason.clone(),
            };
            bad.push((*digest, *location, reason));
        }
    }
    bad
}
