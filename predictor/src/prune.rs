//! What a model forgets when it is larger than it may be.
//!
//! Everything has a value: a state the decayed number of launches that touch it, a transition of order 1 half of its
//! count, one of order 2 a quarter of its count times what order 1 does not know already. The least valuable goes
//! first, of equals what comes later in a launch. So a state outlives the transitions at it, and transitions of
//! order 2 that only repeat order 1 cost nothing under pressure.
//!
//! What the newest trace alone has seen may take [`Params::max_trace_share`] of a full model, and of one that is not
//! full whatever is free.

use std::collections::HashMap;

use layer_format::model::Model;

use crate::draft::{Draft, Keeps};
use crate::params::Params;

/// Most bytes of all paths written out; a reader refuses models whose paths unfold to much more.
const MAX_PATH_BYTES: usize = 16 << 20;
/// Estimated bytes of an encoded state, launch item, transition of order 1 and of order 2.
const STATE_LEN: usize = 4;
const ITEM_LEN: usize = 9;
const ORDER1_LEN: usize = 10;
const ORDER2_LEN: usize = 12;
/// How often the estimate is corrected before all is given up.
const MAX_ROUNDS: usize = 24;

/// The model of a draft within the bounds. `new_share`: see [`Params::max_trace_share`].
pub(crate) fn prune(draft: &mut Draft, params: &Params, new_share: f32) -> Model {
    forget_rare(draft, params);
    let ranked = Ranked::new(draft);
    let mut budget = params.max_model_bytes;
    for _ in 0..MAX_ROUNDS {
        let model = draft.model(&ranked.keep(draft, params, budget, new_share));
        let len = model.encode().len();
        if len <= params.max_model_bytes {
            return model;
        }
        // The estimate was too low by this much: ask for that much less, and a little.
        budget = (budget as f64 * 0.97 * params.max_model_bytes as f64 / len as f64) as usize;
    }
    Model { image: draft.image, traces: draft.traces, ..Model::default() }
}

/// Forgets what too few launches touch, and entry points beyond the bound, lightest first.
fn forget_rare(draft: &mut Draft, params: &Params) {
    let mut heaviest: Vec<_> = draft.entry_points.iter().map(|(key, launches)| (launches.weight, key.clone())).collect();
    heaviest.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (_, key) in heaviest.drain(params.max_entry_points.min(heaviest.len())..) {
        draft.entry_points.remove(&key);
    }
    for launches in draft.entry_points.values_mut() {
        let least = launches.weight * params.min_probability;
        launches.items.retain(|_, seen| seen.count >= least && seen.count > 0.0);
    }
}

/// Something that can be forgotten.
#[derive(Clone, Copy, Debug)]
struct Item {
    value: f32,
    /// When it matters in a launch, for the order among equals.
    time_us: u32,
    what: What,
    /// Estimated bytes, for a state without its path.
    len: usize,
    is_new: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    State(u32),
    Order1([u32; 2]),
    Order2([u32; 3]),
}

/// All that can be forgotten, most valuable first.
struct Ranked {
    items: Vec<Item>,
    /// Estimated bytes of each path.
    path_lens: Vec<usize>,
}

impl Ranked {
    fn new(draft: &Draft) -> Self {
        let mut states = vec![(0f32, u32::MAX, 0usize); draft.states.len()];
        for launches in draft.entry_points.values() {
            for (state, seen) in &launches.items {
                let (value, time_us, lists) = &mut states[*state as usize];
                *value += seen.count;
                *time_us = seen.time_us.min(*time_us);
                *lists += 1;
            }
        }
        let mut items = Vec::with_capacity(states.len() + draft.order1.len() + draft.order2.len());
        for (number, (value, time_us, lists)) in (0..).zip(&states) {
            // What is in no launch list is nothing that a launch touches.
            if *lists > 0 {
                items.push(Item {
                    value: *value,
                    time_us: *time_us,
                    what: What::State(number),
                    len: STATE_LEN + ITEM_LEN * lists,
                    is_new: number >= draft.established,
                });
            }
        }
        let mut totals: HashMap<u32, f32> = HashMap::new();
        for ([from, _], seen) in sorted(&draft.order1) {
            *totals.entry(from).or_default() += seen.count;
        }
        for (key, seen) in &draft.order1 {
            items.push(Item { value: seen.count * 0.5, time_us: states[key[0] as usize].1, what: What::Order1(*key), len: ORDER1_LEN, is_new: seen.is_new });
        }
        for (key, seen) in &draft.order2 {
            let [_, from, to] = *key;
            let known = draft.order1.get(&[from, to]).map_or(0.0, |seen| seen.count) / totals.get(&from).copied().unwrap_or(1.0).max(f32::MIN_POSITIVE);
            items.push(Item {
                value: seen.count * 0.25 * (1.0 - known).max(0.0),
                time_us: states[from as usize].1,
                what: What::Order2(*key),
                len: ORDER2_LEN,
                is_new: seen.is_new,
            });
        }
        items.sort_unstable_by(|a, b| b.value.total_cmp(&a.value).then_with(|| (a.time_us, a.what).cmp(&(b.time_us, b.what))));
        Self { items, path_lens: path_lens(draft) }
    }

    /// The most valuable items that fit `budget` bytes and the other bounds.
    fn keep(&self, draft: &Draft, params: &Params, budget: usize, new_share: f32) -> Keeps {
        let header = 64 + draft.entry_points.keys().map(|(name, architecture)| 10 + name.len() + architecture.len()).sum::<usize>();
        let mut bytes =
            Room::new(budget.saturating_sub(header), new_share, self.items.iter().filter(|item| !item.is_new).map(|item| self.len(draft, item)).sum());
        let mut states = Room::new(params.max_states, new_share, self.items.iter().filter(|item| !item.is_new && matches!(item.what, What::State(_))).count());
        let mut path_bytes = MAX_PATH_BYTES;
        let mut has_path = vec![false; draft.paths.len()];
        let mut keeps = Keeps { states: vec![false; draft.states.len()], entry_points: draft.entry_points.keys().cloned().collect(), ..Keeps::default() };
        for item in &self.items {
            match item.what {
                What::State(state) => {
                    let path = draft.states[state as usize].path as usize;
                    let (unfolded, path_len) = if has_path[path] { (0, 0) } else { (draft.paths[path].as_bytes().len(), self.path_lens[path]) };
                    if unfolded <= path_bytes && states.has(1, item.is_new) && bytes.take(item.len + path_len, item.is_new) {
                        states.take(1, item.is_new);
                        path_bytes -= unfolded;
                        has_path[path] = true;
                        keeps.states[state as usize] = true;
                    }
                }
                What::Order1(key) => {
                    if keeps.order1.len() < params.max_transitions && bytes.take(item.len, item.is_new) {
                        keeps.order1.push(key);
                    }
                }
                What::Order2(key) => {
                    if keeps.order2.len() < params.max_transitions && bytes.take(item.len, item.is_new) {
                        keeps.order2.push(key);
                    }
                }
            }
        }
        keeps
    }

    /// Estimated bytes of an item, its path with it.
    fn len(&self, draft: &Draft, item: &Item) -> usize {
        match item.what {
            What::State(state) => item.len + self.path_lens[draft.states[state as usize].path as usize],
            _ => item.len,
        }
    }
}

/// Room for items, with a smaller one for new items.
struct Room {
    all: usize,
    new: usize,
}

impl Room {
    /// New items get `new_share`, or what `established` leaves free if that is more.
    fn new(all: usize, new_share: f32, established: usize) -> Self {
        Self { all, new: all.saturating_sub(established).max((all as f64 * f64::from(new_share)) as usize) }
    }

    fn has(&self, len: usize, is_new: bool) -> bool {
        len <= self.all && (!is_new || len <= self.new)
    }

    fn take(&mut self, len: usize, is_new: bool) -> bool {
        let fits = self.has(len, is_new);
        if fits {
            self.all -= len;
            self.new -= if is_new { len } else { 0 };
        }
        fits
    }
}

/// Estimated bytes of each path: what it does not share with its neighbour in the full set, and two lengths.
fn path_lens(draft: &Draft) -> Vec<usize> {
    let mut order: Vec<usize> = (0..draft.paths.len()).collect();
    order.sort_unstable_by(|a, b| draft.paths[*a].cmp(&draft.paths[*b]));
    let mut lens = vec![0; draft.paths.len()];
    let mut previous: &[u8] = b"";
    for number in order {
        let path = draft.paths[number].as_bytes();
        let shared = previous.iter().zip(path).take_while(|(a, b)| a == b).count();
        lens[number] = 3 + path.len() - shared;
        previous = path;
    }
    lens
}

/// In the order of keys, so that sums of 32-bit numbers do not depend on a hash.
fn sorted<K: Ord + Copy, V: Copy>(map: &HashMap<K, V>) -> Vec<(K, V)> {
    let mut items: Vec<(K, V)> = map.iter().map(|(key, value)| (*key, *value)).collect();
    items.sort_unstable_by_key(|(key, _)| *key);
    items
}
