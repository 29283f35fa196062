//! One trace, or another model, into a model.
//!
//! Learning is merging: a trace becomes a model of one launch, in which everything has the count 1, and that is merged
//! into the model of all launches before it. Their counts decay by one launch first. So learning traces one by one,
//! and merging models learned from parts of them in the same order, give the same counts; and one more trace costs
//! time in proportion to it and to the bounded model, however many came before.
//!
//! # What is learned of a trace
//! * Every first touch, whether it was local, prefetched or missed: a model that forgot what it prefetched would
//!   unlearn what it knows best.
//! * Transitions between neighbouring touches *of one process*; so how processes happened to interleave leaves no mark.
//!   Where a process begins, its first touch follows whatever was touched last before it, by whom ever: most likely
//!   its parent.
//!
//! # What a hostile trace can do
//! Each of its touches and transitions counts once, whatever it repeats; it brings at most as many states as a model
//! may have; and what it alone has seen takes a bounded share of a full model ([`Params::max_trace_share`]). Typical
//! times move by a bounded step.

use std::collections::{HashMap, HashSet};

use layer_format::model::Model;
use layer_format::trace::Trace;

use crate::draft::{Draft, DraftVariant, Keeps, Launches, Seen};
use crate::params::Params;
use crate::prune::prune;

/// A model of this share of what it may hold had to forget, or soon will.
const FULL: f64 = 0.8;

/// Adds one launch to what `model` knows.
pub fn learn(model: &mut Model, trace: &Trace, params: &Params) {
    let params = params.bounded();
    *model = combine(model, &of_one(trace, &params), &params, params.max_trace_share);
}

/// Adds all that `other` learned, as if its launches came after those of `into`. Unlike a trace, `other` is trusted:
/// its counts are taken as they are.
pub fn merge(into: &mut Model, other: &Model, params: &Params) {
    *into = combine(into, other, &params.bounded(), 1.0);
}

fn combine(older: &Model, newer: &Model, params: &Params, new_share: f32) -> Model {
    let mut draft = Draft::new(older);
    draft.is_full = older.states.len() as f64 >= FULL * params.max_states as f64 || older.encode().len() as f64 >= FULL * params.max_model_bytes as f64;
    draft.decay(params.decay(newer.traces));
    draft.add(newer, true);
    prune(&mut draft, params, new_share)
}

/// The last touches of a process.
#[derive(Clone, Copy)]
struct Last {
    before: Option<u32>,
    state: u32,
    time_us: u64,
}

/// The model of one launch; not pruned, but of at most [`Params::max_states`] states: the first ones.
fn of_one(trace: &Trace, params: &Params) -> Model {
    let mut draft = Draft::default();
    (draft.image, draft.traces) = (Some(trace.image), 1);
    let mut touched: Vec<(u32, u64)> = Vec::new();
    let mut seen_states: HashSet<u32> = HashSet::new();
    let mut processes: HashMap<u16, Last> = HashMap::new();
    let mut latest: Option<Last> = None;
    for event in &trace.events {
        let Some(path) = trace.paths.get(event.path as usize) else { continue };
        let state = draft.state(event.layer, path, event.touch);
        if !seen_states.insert(state) {
            continue;
        }
        touched.push((state, event.time_us));
        let own = processes.get(&event.process).copied();
        if let Some(last) = own.or(latest) {
            let time_us = u32::try_from(event.time_us.saturating_sub(last.time_us)).unwrap_or(u32::MAX);
            let seen = Seen { count: 1.0, time_us, is_new: true };
            draft.order1.insert([last.state, state], seen);
            if let Some(before) = last.before {
                draft.order2.insert([before, last.state, state], seen);
            }
        }
        let last = Last { before: own.map(|last| last.state), state, time_us: event.time_us };
        processes.insert(event.process, last);
        latest = Some(last);
        if touched.len() >= params.max_states {
            break;
        }
    }
    let items = ascending(&touched).map(|(state, time_us)| (state, Seen { count: 1.0, time_us, is_new: true })).collect();
    draft.entry_points.insert(
        (trace.entry_point.clone(), trace.architecture.clone()),
        Launches { launches: 1, variants: vec![DraftVariant { weight: 1.0, launches: 1, items }] },
    );
    let keeps = Keeps {
        states: vec![true; draft.states.len()],
        entry_points: draft.entry_points.keys().cloned().collect(),
        order1: draft.order1.keys().copied().collect(),
        order2: draft.order2.keys().copied().collect(),
    };
    draft.model(&keeps)
}

/// The times of touches in 32 bits, each at least a microsecond after the one before it: so the order of touches, also
/// of simultaneous ones, survives in the times.
fn ascending(touched: &[(u32, u64)]) -> impl Iterator<Item = (u32, u32)> {
    let mut earliest = 0u32;
    let last = u32::MAX - touched.len() as u32;
    (0u32..).zip(touched).map(move |(at, (state, time_us))| {
        let time_us = u32::try_from(*time_us).unwrap_or(u32::MAX).clamp(earliest, last.saturating_add(at));
        earliest = time_us + 1;
        (*state, time_us)
    })
}

#[cfg(test)]
mod tests;
