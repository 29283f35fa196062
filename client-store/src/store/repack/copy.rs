//! Copying what is needed of the chosen packs into new ones.

use std::collections::{HashMap, HashSet};

use layer_format::Digest;
use layer_format::frame::TARGET_FRAME_LEN;

use super::plan::{Class, Plan, newest_first, visit};
use super::{RepackOptions, RepackReport};
use crate::cache::ObjectCache;
use crate::error::StoreError;
use crate::store::index::Location;
use crate::store::pack_file::PackWriter;
use crate::store::throttle::Throttle;
use crate::store::walk::{ObjectKind, Walk};
use crate::store::{Store, layout};
use crate::transfer::assemble::{AssembleError, Assembler};

/// Level for objects that are compressed anew: that of an import.
const LEVEL: i32 = 3;
/// A frame that is shorter than this is joined with its neighbours, uncompressed bytes.
const SMALL_FRAME: u64 = TARGET_FRAME_LEN as u64 * 3 / 4;

/// What is copied next.
#[derive(Debug, PartialEq, Eq)]
enum Unit {
    /// A frame as it is.
    Frame { location: Location, objects: Vec<Digest> },
    /// One object, compressed with its neighbours.
    Object { digest: Digest, location: Location },
}

/// Copies all that is needed of the plan's packs.
pub(super) fn run(
    store: &Store,
    marked: &mut Walk,
    plan: &Plan,
    options: &RepackOptions,
    report: &mut RepackReport,
    progress: impl FnMut(u64, u64),
) -> Result<(), StoreError> {
    let mut copier = Copier {
        store,
        plan,
        from: plan.sources.keys().copied().collect(),
        open: HashMap::new(),
        throttle: Throttle::new(options.bytes_per_s),
        report,
        progress,
        done: 0,
        total: plan.sources.values().map(|source| source.len).sum(),
    };
    let mut walk = Walk::default();
    for layers in newest_first(store)? {
        // An image's inner objects first: who opens it reads them all.
        let (mut inner, mut chunks) = (Vec::new(), Vec::new());
        visit(store, &mut walk, &layers, |found| {
            // What no name leads to any more may have been there when the walk began.
            if marked.contains(&found.digest)
                && let Some(location) = store.inner.usable_location(&found.digest)?
                && plan.sources.contains_key(&location.pack)
            {
                let list = if matches!(found.kind, ObjectKind::Chunk { .. }) { &mut chunks } else { &mut inner };
                list.push((found.digest, location));
            }
            Ok(())
        })?;
        for list in [inner, chunks] {
            for unit in units(store, list, plan) {
                copier.copy(unit)?;
            }
        }
    }
    // What only delta frames elsewhere need, as it lay.
    let mut bases = Vec::new();
    for digest in marked.only_bases() {
        bases.extend(store.inner.usable_location(digest)?.filter(|location| plan.sources.contains_key(&location.pack)).map(|location| (*digest, location)));
    }
    bases.sort_unstable_by_key(|(_, location)| (location.pack, location.offset, location.slot));
    for unit in units(store, bases, plan) {
        copier.copy(unit)?;
    }
    copier.finish()
}

/// Cuts a sequence of objects into frames that can go as they are, and the rest. A delta frame goes as it is only if nothing that
/// it needs is moved: else reading it could take many reads where there was one.
fn units(store: &Store, objects: Vec<(Digest, Location)>, plan: &Plan) -> Vec<Unit> {
    let mut units = Vec::new();
    for run in objects.chunk_by(|(_, a), (_, b)| (a.pack, a.offset, a.frame_len) == (b.pack, b.offset, b.frame_len) && a.slot != Location::DIRECT) {
        let Some((_, first)) = run.first() else { continue };
        let plain: u64 = run.iter().map(|(_, location)| u64::from(location.len)).sum();
        let stays = plan.deltas.get(&(first.pack, first.offset.into()));
        let whole = stays.copied().unwrap_or(plain >= SMALL_FRAME)
            && run.iter().enumerate().all(|(slot, (_, location))| usize::from(location.slot) == slot)
            && store.frame_count(first.pack, first.offset.into()) == Some(run.len());
        match whole {
            true => units.push(Unit::Frame { location: *first, objects: run.iter().map(|(digest, _)| *digest).collect() }),
            false => units.extend(run.iter().map(|(digest, location)| Unit::Object { digest: *digest, location: *location })),
        }
    }
    units
}

struct Output {
    pack: Assembler<PackWriter>,
    objects: u64,
    used: u64,
}

struct Copier<'a, P> {
    store: &'a Store,
    plan: &'a Plan,
    from: HashSet<u32>,
    open: HashMap<Class, Output>,
    throttle: Throttle,
    report: &'a mut RepackReport,
    progress: P,
    done: u64,
    total: u64,
}

impl<P: FnMut(u64, u64)> Copier<'_, P> {
    fn copy(&mut self, unit: Unit) -> Result<(), StoreError> {
        match unit {
            Unit::Frame { location, objects } => {
                let Some((encoded, names)) = self.store.verified_frame(location.pack, location.offset.into(), location.frame_len, &objects) else {
                    // Some of it is damaged: the rest is saved one by one.
                    return objects.into_iter().try_for_each(|digest| self.copy_object(digest, &location));
                };
                self.report.copied_frames += 1;
                self.advance(encoded.len() as u64);
                self.push(&location, names.len() as u64, |pack| pack.push_frame(&encoded, &names))
            }
            Unit::Object { digest, location } => self.copy_object(digest, &location),
        }
    }

    fn copy_object(&mut self, digest: Digest, location: &Location) -> Result<(), StoreError> {
        let Some(bytes) = self.store.get(&digest)? else {
            self.report.damaged_objects += 1;
            return Ok(());
        };
        self.report.cut_objects += 1;
        self.advance(bytes.len() as u64);
        self.push(location, 1, |pack| pack.push_object(digest, &bytes))
    }

    fn advance(&mut self, bytes: u64) {
        self.throttle.pause(bytes);
        self.done = (self.done + bytes).min(self.total);
        (self.progress)(self.done, self.total);
    }

    fn push(
        &mut self,
        location: &Location,
        objects: u64,
        push: impl FnOnce(&mut Assembler<PackWriter>) -> Result<(), AssembleError>,
    ) -> Result<(), StoreError> {
        let Some(source) = self.plan.sources.get(&location.pack) else { return Ok(()) };
        let mut output = match self.open.remove(&source.class) {
            Some(output) => output,
            None => {
                let writer = self.store.pack_writer(source.class.origin)?;
                Output { pack: Assembler::new(writer, LEVEL, true).map_err(|error| self.failed(error))?, objects: 0, used: 0 }
            }
        };
        output.used = output.used.max(source.used);
        output.objects += objects;
        push(&mut output.pack).map_err(|error| self.failed(error))?;
        match output.pack.is_full() {
            true => self.end(source.class, output),
            false => {
                self.open.insert(source.class, output);
                Ok(())
            }
        }
    }

    /// From here on the objects lie in the new pack.
    fn end(&mut self, class: Class, output: Output) -> Result<(), StoreError> {
        let finished = output.pack.finish().map_err(|error| self.failed(error))?;
        finished.out.finish_moved(finished.digest, &finished.index, &self.from, class.on_registry, output.used)?;
        self.report.written_packs += 1;
        self.report.written_bytes += finished.len;
        self.report.moved_objects += output.objects;
        Ok(())
    }

    fn finish(mut self) -> Result<(), StoreError> {
        for (class, output) in std::mem::take(&mut self.open) {
            self.end(class, output)?;
        }
        (self.progress)(self.total, self.total);
        Ok(())
    }

    fn failed(&self, error: AssembleError) -> StoreError {
        let path = self.store.inner.layout.tmp();
        match error {
            AssembleError::Io(source) => layout::io_error("writing a pack below", &path)(source),
            AssembleError::Format(source) => StoreError::Damaged { path, source },
        }
    }
}
