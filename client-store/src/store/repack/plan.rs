//! Which packs are written anew.

use std::collections::{HashMap, HashSet};

use layer_format::Digest;

use super::{RepackOptions, RepackReport};
use crate::error::StoreError;
use crate::store::fragmentation::Fragmentation;
use crate::store::gc::Counted;
use crate::store::index::{Location, PackOrigin};
use crate::store::walk::{ObjectKind, Visit, Walk};
use crate::store::{Store, WalkError};

/// What packs must have in common to be written into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Class {
    pub(super) origin: PackOrigin,
    pub(super) on_registry: bool,
}

/// A pack that is written anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) class: Class,
    pub(super) len: u64,
    pub(super) used: u64,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) sources: HashMap<u32, Source>,
    /// The delta frames of these packs, by pack and offset, and whether all that they need stays where it is.
    pub(super) deltas: HashMap<(u32, u64), bool>,
}

/// Chooses packs. `walk` has seen all that is needed.
pub(super) fn make(store: &Store, walk: &Walk, options: &RepackOptions, report: &mut RepackReport) -> Result<Plan, StoreError> {
    let mut packs = store.count_alive(walk)?;
    packs.retain(|pack| pack.row.origin != PackOrigin::Streamed || pack.row.damaged);
    let (plain, dead) = packs.iter().fold((0, 0), |(plain, dead), pack| (plain + pack.row.plain, dead + pack.dead()));
    let much = |dead: u64, plain: u64| dead > 0 && dead.saturating_mul(100) > plain.saturating_mul(options.dead_percent);
    let store_is_dead = much(dead, plain);
    let spread = spread_over(store, options)?;
    let mut plan = Plan::default();
    let mut room = room(store);
    // Most garbage first, in case there is not room for all.
    packs.sort_by_key(|pack| (std::cmp::Reverse(pack.dead()), pack.id));
    // What nothing needs at all is removed and not written anew.
    for pack in packs.iter().filter(|pack| pack.alive > 0) {
        let reason = match () {
            () if much(pack.dead(), pack.row.plain) || store_is_dead && pack.dead() > 0 => &mut report.dead_packs,
            () if spread.contains(&pack.id) => &mut report.fragmented_packs,
            () if pack.row.damaged => &mut report.damaged_packs,
            () => continue,
        };
        if pack.row.len > room {
            report.postponed_packs += 1;
            continue;
        }
        room -= pack.row.len;
        *reason += 1;
        report.source_bytes += pack.row.len;
        let class = Class { origin: pack.row.origin, on_registry: pack.row.on_registry };
        plan.sources.insert(pack.id, Source { class, len: pack.row.len, used: pack.row.used });
    }
    follow_deltas(store, &packs, report, &mut plan)?;
    Ok(plan)
}

/// Adds the packs whose delta frames need something that is moved, so that they are written anew without it.
fn follow_deltas(store: &Store, packs: &[Counted], report: &mut RepackReport, plan: &mut Plan) -> Result<(), StoreError> {
    let base_packs = if plan.sources.is_empty() { HashMap::new() } else { store.base_packs()? };
    // What is moved now may be what others need.
    let mut any = true;
    while std::mem::take(&mut any) {
        for pack in packs.iter().filter(|pack| pack.alive > 0) {
            let needs = base_packs.get(&pack.id).is_some_and(|packs| packs.iter().any(|id| plan.sources.contains_key(id)));
            if needs && !plan.sources.contains_key(&pack.id) {
                let class = Class { origin: pack.row.origin, on_registry: pack.row.on_registry };
                report.fragmented_packs += 1;
                report.source_bytes += pack.row.len;
                plan.sources.insert(pack.id, Source { class, len: pack.row.len, used: pack.row.used });
                any = true;
            }
        }
    }
    for pack in packs.iter().filter(|pack| plan.sources.contains_key(&pack.id)) {
        for frame in store.inner.delta_frames(&pack.row) {
            let index = &store.inner.index;
            let stays = index.read(|txn| {
                let look = |digest| Ok(index.location_in(txn, digest)?.is_some_and(|location| !plan.sources.contains_key(&location.pack)));
                frame.bases.iter().map(look).collect::<heed::Result<Vec<bool>>>()
            })?;
            plan.deltas.insert((pack.id, frame.offset), !stays.contains(&false));
        }
    }
    Ok(())
}

/// How many bytes may be written before anything is removed: half of what is free.
fn room(store: &Store) -> u64 {
    rustix::fs::statvfs(store.home()).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize) / 2)
}

/// Packs over which images are spread. Of each image only those objects count that no newer one has: their order is what a
/// repack can give them, and after one their ratio is about 1. So a repack that follows finds nothing to do.
fn spread_over(store: &Store, options: &RepackOptions) -> Result<HashSet<u32>, StoreError> {
    let mut spread = HashSet::new();
    let mut walk = Walk::default();
    for roots in newest_first(store)? {
        let (mut read, mut packs) = (Fragmentation::default(), HashSet::new());
        each(store, &mut walk, &roots, |location, is_chunk| {
            if is_chunk {
                read.read(&location);
                packs.insert(location.pack);
            }
        })?;
        // A frame more or less in a small image is no reason to write.
        if read.ratio() > options.fragmentation && read.frames > read.ideal_frames() + 8 {
            spread.extend(packs);
        }
    }
    Ok(spread)
}

/// Calls `f` with the place of every object that these layers need, is here and was not seen before, and whether it is a
/// chunk.
fn each(store: &Store, walk: &mut Walk, layers: &[Digest], mut f: impl FnMut(Location, bool)) -> Result<(), StoreError> {
    visit(store, walk, layers, |found| {
        if let Some(location) = store.inner.usable_location(&found.digest)? {
            f(location, matches!(found.kind, ObjectKind::Chunk { .. }));
        }
        Ok(())
    })
}

/// Walks layers. What is not valid leads nowhere.
pub(super) fn visit(store: &Store, walk: &mut Walk, layers: &[Digest], mut f: impl FnMut(&Visit<'_>) -> Result<(), StoreError>) -> Result<(), StoreError> {
    match walk.layers(store, layers, &mut |found| f(&found).map_err(WalkError::Store)) {
        Err(WalkError::Store(error)) => Err(error),
        Err(WalkError::Format { .. }) | Ok(()) => Ok(()),
    }
}

/// The layers of every image, the newest image first, and the sandboxes of states after them.
pub(super) fn newest_first(store: &Store) -> Result<Vec<Vec<Digest>>, StoreError> {
    let mut images = store.image_rows()?;
    images.sort_by_key(|(digest, row)| (std::cmp::Reverse(row.created_s), *digest));
    let mut roots = Vec::new();
    for (digest, _) in images {
        roots.extend(store.manifest_of(&digest)?.map(|manifest| manifest.layers));
    }
    for (digest, _) in store.states()? {
        roots.extend(store.state_get(&digest).ok().flatten().map(|state| vec![state.manifest.sandbox]));
    }
    Ok(roots)
}
