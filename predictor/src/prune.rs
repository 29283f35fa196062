//! What a model forgets when it is larger than it may be.
//!
//! Everything has a value: a state the decayed number of launches that touch it, a transition of order 1 half of its
//! count, one of order 2 a quarter of its count times what order 1 does not know already. The least valuable goes
//! first, of equals what comes later in a launch. So a state outlives the transitions at it, and transitions of
//! order 2 that only repeat order 1 cost nothing under pressure.
//!
//! A state belongs to the variant that touches it most often, a transition to the variant of the state that it leads to. Half of the room
//! is divided among the variants in proportion to how far they recur (a heap of odd launches hardly does), and one that has less to fill
//! its part with leaves the rest to others; only what remains goes by value alone. So no kind of launch, however often it comes and however
//! much it touches, takes the room of all others.
//!
//! What the newest trace alone has seen may take [`Params::max_trace_share`] of a full model, and of one that is not
//! full whatever is free.

use std::collections::HashMap;

use layer_format::model::Model;

use crate::draft::{Draft, Keeps, Seen};
use crate::params::Params;
use crate::variants;

/// Most bytes of all paths written out; a reader refuses models whose paths unfold to much more.
const MAX_PATH_BYTES: usize = 16 << 20;
/// Estimated bytes of an encoded state, launch item, transition of order 1 and of order 2.
const STATE_LEN: usize = 4;
const ITEM_LEN: usize = 6;
const ORDER1_LEN: usize = 7;
const ORDER2_LEN: usize = 9;
/// How much of a part a variant gets of which there was one launch, and one that does not recur at all.
const NEWCOMER: f64 = 0.5;
const HEAP: f64 = 0.1;
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

/// Forgets what too few launches touch, variants of too few launches, and entry points beyond the bound, lightest first.
fn forget_rare(draft: &mut Draft, params: &Params) {
    for launches in draft.entry_points.values_mut() {
        let least = launches.weight() * params.min_probability;
        launches.variants.retain(|variant| variant.weight >= least);
        for variant in &mut launches.variants {
            let least = variant.weight * params.min_probability;
            variant.items.retain(|_, seen| seen.count >= least && seen.count > 0.0);
        }
    }
    draft.entry_points.retain(|_, launches| !launches.variants.is_empty());
    let mut heaviest: Vec<_> = draft.entry_points.iter().map(|(key, launches)| (launches.weight(), key.clone())).collect();
    heaviest.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (_, key) in heaviest.drain(params.max_entry_points.min(heaviest.len())..) {
        draft.entry_points.remove(&key);
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
    /// Number of the variant that it belongs to.
    kind: usize,
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
    /// How far each variant recurs.
    kinds: Vec<f64>,
}

/// How launches of all kinds touch a state.
#[derive(Clone, Copy, Debug)]
struct Touched {
    /// Decayed number.
    count: f32,
    /// The earliest typical time.
    time_us: u32,
    /// In how many lists it is.
    lists: usize,
    /// Number of the variant that touches it most often; of equals the first.
    kind: usize,
    most: f32,
}

impl Default for Touched {
    fn default() -> Self {
        Self { count: 0.0, time_us: u32::MAX, lists: 0, kind: 0, most: 0.0 }
    }
}

impl Touched {
    fn add(&mut self, kind: usize, seen: &Seen) {
        self.count += seen.count;
        self.time_us = seen.time_us.min(self.time_us);
        self.lists += 1;
        if seen.count > self.most {
            (self.kind, self.most) = (kind, seen.count);
        }
    }
}

impl Ranked {
    fn new(draft: &Draft) -> Self {
        let mut states = vec![Touched::default(); draft.states.len()];
        let mut kinds = Vec::new();
        for variant in draft.entry_points.values().flat_map(|launches| &launches.variants) {
            for (state, seen) in &variant.items {
                states[*state as usize].add(kinds.len(), seen);
            }
            kinds.push(if variant.launches < 2 { NEWCOMER } else { variants::recurrence(variant.launches, &variant.shares()).max(HEAP) });
        }
        let mut items = Vec::with_capacity(states.len() + draft.order1.len() + draft.order2.len());
        for (number, touched) in (0..).zip(&states) {
            // What is in no launch list is nothing that a launch touches.
            if touched.lists > 0 {
                let len = STATE_LEN + ITEM_LEN * touched.lists;
                let is_new = number >= draft.established;
                items.push(Item { value: touched.count, time_us: touched.time_us, what: What::State(number), len, kind: touched.kind, is_new });
            }
        }
        let mut totals: HashMap<u32, f32> = HashMap::new();
        for ([from, _], seen) in sorted(&draft.order1) {
            *totals.entry(from).or_default() += seen.count;
        }
        let step = |from: u32, to: u32, what, value, len, is_new| Item {
            value,
            time_us: states[from as usize].time_us,
            what,
            len,
            kind: states[to as usize].kind,
            is_new,
        };
        for (key, seen) in &draft.order1 {
            items.push(step(key[0], key[1], What::Order1(*key), seen.count * 0.5, ORDER1_LEN, seen.is_new));
        }
        for (key, seen) in &draft.order2 {
            let [_, from, to] = *key;
            let known = draft.order1.get(&[from, to]).map_or(0.0, |seen| seen.count) / totals.get(&from).copied().unwrap_or(1.0).max(f32::MIN_POSITIVE);
            items.push(step(from, to, What::Order2(*key), seen.count * 0.25 * (1.0 - known).max(0.0), ORDER2_LEN, seen.is_new));
        }
        items.sort_unstable_by(|a, b| b.value.total_cmp(&a.value).then_with(|| (a.time_us, a.what).cmp(&(b.time_us, b.what))));
        Self { items, path_lens: path_lens(draft), kinds }
    }

    /// The most valuable items that fit `budget` bytes and the other bounds.
    fn keep(&self, draft: &Draft, params: &Params, budget: usize, new_share: f32) -> Keeps {
        let header = 64
            + draft
                .entry_points
                .iter()
                .map(|((name, architecture), launches)| 20 + name.len() + architecture.len() + 8 * launches.variants.len())
                .sum::<usize>();
        let budget = budget.saturating_sub(header);
        let mut kept = Kept {
            bytes: Room::new(budget, new_share, self.items.iter().filter(|item| !item.is_new).map(|item| self.len(draft, item)).sum()),
            states: Room::new(params.max_states, new_share, self.items.iter().filter(|item| !item.is_new && matches!(item.what, What::State(_))).count()),
            path_bytes: MAX_PATH_BYTES,
            has_path: vec![false; draft.paths.len()],
            keeps: Keeps { states: vec![false; draft.states.len()], entry_points: draft.entry_points.keys().cloned().collect(), ..Keeps::default() },
        };
        let all: f64 = self.kinds.iter().sum();
        let parts = |whole: usize| -> Vec<usize> { self.kinds.iter().map(|kind| (whole as f64 / 2.0 * kind / all) as usize).collect() };
        let (mut parts, mut state_parts) = (parts(budget), parts(params.max_states));
        let mut rest = Vec::new();
        for item in &self.items {
            let is_state = matches!(item.what, What::State(_));
            let len = self.len(draft, item);
            match (parts.get_mut(item.kind), state_parts.get_mut(item.kind)) {
                (Some(part), Some(states)) if *part >= len && (*states > 0 || !is_state) => {
                    if kept.take(self, draft, params, item) {
                        *part -= len;
                        *states -= usize::from(is_state);
                    }
                }
                _ => rest.push(item),
            }
        }
        for item in rest {
            kept.take(self, draft, params, item);
        }
        kept.keeps
    }

    /// Estimated bytes of an item, its path with it.
    fn len(&self, draft: &Draft, item: &Item) -> usize {
        match item.what {
            What::State(state) => item.len + self.path_lens[draft.states[state as usize].path as usize],
            _ => item.len,
        }
    }
}

/// What was decided to be kept so far, and the room that is left.
struct Kept {
    bytes: Room,
    states: Room,
    path_bytes: usize,
    has_path: Vec<bool>,
    keeps: Keeps,
}

impl Kept {
    /// Keeps an item if there is room.
    fn take(&mut self, ranked: &Ranked, draft: &Draft, params: &Params, item: &Item) -> bool {
        match item.what {
            What::State(state) => {
                let path = draft.states[state as usize].path as usize;
                let (unfolded, path_len) = if self.has_path[path] { (0, 0) } else { (draft.paths[path].as_bytes().len(), ranked.path_lens[path]) };
                let fits = unfolded <= self.path_bytes && self.states.has(1, item.is_new) && self.bytes.take(item.len + path_len, item.is_new);
                if fits {
                    self.states.take(1, item.is_new);
                    self.path_bytes -= unfolded;
                    self.has_path[path] = true;
                    self.keeps.states[state as usize] = true;
                }
                fits
            }
            What::Order1(key) => {
                let fits = self.keeps.order1.len() < params.max_transitions && self.bytes.take(item.len, item.is_new);
                if fits {
                    self.keeps.order1.push(key);
                }
                fits
            }
            What::Order2(key) => {
                let fits = self.keeps.order2.len() < params.max_transitions && self.bytes.take(item.len, item.is_new);
                if fits {
                    self.keeps.order2.push(key);
                }
                fits
            }
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
