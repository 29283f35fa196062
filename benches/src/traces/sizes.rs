//! What travels for the places of an image, by cutting the image as an import does.
//!
//! The objects that the runs touch are compressed as a streamed answer is: in the order of their first touch, in one
//! stream, flushed about every 64 KiB. What a flush brings out is apportioned to the objects in it by what each compresses to by
//! itself. The other objects of the same files, which lists of whole files send, follow at the end.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result};
use chunker::{ImportOptions, MemoryStore, ObjectSource, import_directory};
use layer_format::entry::{Entry, Kind};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::trace::{BUCKET_LEN, Trace};
use layer_format::tree::{Lookup, Node, Step};
use layer_format::{Digest, LayerPath};
use predictor::replay::{Object, Place, Travel, TravelBuilder};
use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation, OutBuffer};

/// Level and window of the registry's streamed answers.
const LEVEL: i32 = 3;
const WINDOW_LOG: u32 = 21;
/// Plain bytes after which the stream is flushed.
const FLUSH_BYTES: u64 = 64 << 10;

/// Sizes for all paths that the traces touch in the image of `root`, which has one layer.
///
/// # Errors
/// If the root filesystem cannot be read.
pub(crate) fn of(root: &Path, traces: &[Trace]) -> Result<Travel> {
    let store = MemoryStore::new();
    let imported = import_directory(root, &ImportOptions::default(), &store, &()).with_context(|| format!("cannot import {}", root.display()))?;
    let mut builder = TravelBuilder::new();
    for path in traces.iter().flat_map(|trace| &trace.paths) {
        if !builder.has(0, path) {
            let (way, buckets) = resolve(&store, imported.root, path)?;
            builder.add(0, path.clone(), &way, &buckets);
        }
    }
    let order = order(&builder, traces);
    let sizes = sizes(&store, builder.digests(), &order)?;
    Ok(builder.finish(sizes))
}

/// The tree objects that lead to a path, and what each of its buckets is made of.
fn resolve(store: &MemoryStore, root: Digest, path: &LayerPath) -> Result<(Vec<Digest>, Vec<Vec<Digest>>)> {
    let (mut way, mut lookup) = (Vec::new(), Lookup::new(root, path.clone()));
    let entry: Option<Entry> = loop {
        match lookup.step() {
            Step::Done(entry) => break entry.clone(),
            Step::Need(digest) => {
                let digest = *digest;
                way.push(digest);
                lookup.feed(&Node::decode(&store.object(&digest)?)?)?;
            }
        }
    };
    let mut buckets = Vec::new();
    if let Some(Kind::File(recipe)) = entry.map(|entry| entry.kind) {
        for bucket in 0..recipe.len().div_ceil(BUCKET_LEN) {
            buckets.push(content(store, &recipe, bucket * BUCKET_LEN..(bucket + 1) * BUCKET_LEN)?);
        }
    }
    Ok((way, buckets))
}

fn content(store: &MemoryStore, recipe: &Recipe, range: std::ops::Range<u64>) -> Result<Vec<Digest>> {
    let (mut found, mut walk) = (Vec::new(), RangeWalk::new(recipe, range));
    loop {
        match walk.step() {
            RangeStep::Done => return Ok(found),
            RangeStep::Extent { extent: Extent::Data(chunk), .. } => found.push(chunk.digest),
            RangeStep::Extent { extent: Extent::Hole(_), .. } => {}
            RangeStep::Need(digest) => {
                found.push(digest);
                walk.feed(Recipe::decode_node(&store.object(&digest)?)?)?;
            }
        }
    }
}

/// Numbers of all objects: those that are touched by the time of their first touch in the first run that has them, then the rest.
fn order(builder: &TravelBuilder, traces: &[Trace]) -> Vec<u32> {
    let travel = builder.preview();
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    for trace in traces {
        for event in &trace.events {
            let place = Place { layer: event.layer, path: trace.paths[event.path as usize].clone(), touch: event.touch };
            order.extend(travel.needed(&place).filter(|number| seen.insert(*number)));
        }
    }
    order.extend((0..builder.digests().len() as u32).filter(|number| !seen.contains(number)));
    order
}

fn sizes(store: &MemoryStore, digests: &[Digest], order: &[u32]) -> Result<Vec<Object>> {
    let mut encoder = Encoder::new(LEVEL)?;
    encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
    let mut objects = vec![Object::default(); digests.len()];
    let mut pending: Vec<(u32, u64)> = Vec::new();
    let (mut plain, mut out) = (0, 0);
    let mut buffer = vec![0; 1 << 20];
    for (at, number) in order.iter().enumerate() {
        let bytes = store.object(&digests[*number as usize])?;
        objects[*number as usize].plain_bytes = bytes.len() as u32;
        pending.push((*number, zstd::bulk::compress(&bytes, LEVEL)?.len() as u64));
        plain += bytes.len() as u64;
        let mut input = InBuffer::around(&bytes);
        while input.pos() < bytes.len() {
            let mut output = OutBuffer::around(&mut buffer[..]);
            encoder.run(&mut input, &mut output)?;
            out += output.pos() as u64;
        }
        if plain >= FLUSH_BYTES || at + 1 == order.len() {
            loop {
                let mut output = OutBuffer::around(&mut buffer[..]);
                let left = encoder.flush(&mut output)?;
                out += output.pos() as u64;
                if left == 0 {
                    break;
                }
            }
            let alone: u64 = pending.iter().map(|(_, len)| len).sum();
            for (number, len) in pending.drain(..) {
                objects[number as usize].wire_bytes = (out * len).div_ceil(alone.max(1)) as u32;
            }
            (plain, out) = (0, 0);
        }
    }
    Ok(objects)
}
