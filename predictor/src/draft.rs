//! A model while it changes: states by number in order of arrival, counts in hash maps.
//!
//! The stored form is sorted and indexes into itself, which is right for reading and wrong for adding. A draft is made
//! from a model in time proportional to it, changed, and turned back. It takes any model, also one that breaks the
//! order that the format asks for: what stands twice is added up, what points nowhere is left out.

use std::collections::{BTreeMap, HashMap};

use layer_format::model::{EntryPoint, LaunchItem, MAX_ENTRY_POINTS, Model, State, Transition, Variant};
use layer_format::trace::MAX_ENTRY_POINT_LEN;
use layer_format::{Digest, LayerPath};

use crate::variants::{self, Shares};

/// Counts below this are forgotten: about a hundred half-lives without a launch.
const DUST: f32 = 1e-30;
/// Most that a count can be: beyond, adding 1 to a 32-bit number changes nothing.
const MAX_COUNT: f32 = 16_777_216.0;
/// Most launches that are counted, as the format reads it.
const MAX_LAUNCHES: u64 = u64::MAX >> 8;
/// Longest name of a processor architecture, as the format reads it.
const MAX_ARCHITECTURE_LEN: usize = 64;
/// A newly seen time moves the typical one by at most as much as it is, and this: enough to learn from the start.
const SLACK_US: f64 = 100_000.0;

/// How often, and typically when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    /// Decayed count.
    pub(crate) count: f32,
    /// Typical time or gap, in microseconds.
    pub(crate) time_us: u32,
    /// Whether only what was added last has it.
    pub(crate) is_new: bool,
}

impl Seen {
    /// Adds another observation. The time becomes the mean weighted by the decayed counts (so it is an exponentially
    /// weighted mean with the model's own half-life), except that one observation cannot pull it further than to
    /// twice or half of what it was: a stalled or lying run does not reorder a launch.
    pub(crate) fn add(&mut self, count: f32, time_us: u32) {
        let total = self.count + count;
        if total > 0.0 {
            let (old, share) = (f64::from(self.time_us), f64::from(count / total));
            let step = (f64::from(time_us) - old).clamp(-(old / 2.0 + SLACK_US), old + SLACK_US);
            self.time_us = (old + step * share).round().clamp(0.0, f64::from(u32::MAX)) as u32;
        }
        self.count = total.min(MAX_COUNT);
    }
}

/// Launches of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct DraftVariant {
    /// Decayed number of launches.
    pub(crate) weight: f32,
    /// How many, not decayed.
    pub(crate) launches: u64,
    /// What they touch, by number of the state.
    pub(crate) items: HashMap<u32, Seen>,
}

impl DraftVariant {
    /// Adds launches of the same kind.
    pub(crate) fn absorb(&mut self, other: &Self) {
        self.weight = (self.weight + other.weight).min(MAX_COUNT);
        self.launches = self.launches.saturating_add(other.launches).min(MAX_LAUNCHES);
        for (state, seen) in &other.items {
            self.items.entry(*state).and_modify(|own| own.add(seen.count, seen.time_us)).or_insert(*seen);
        }
    }

    /// The share of launches that touch each state, ascending by state.
    pub(crate) fn shares(&self) -> Shares {
        let share = |count: f32| f64::from(count / self.weight.max(f32::MIN_POSITIVE)).min(1.0);
        let mut shares: Shares = self.items.iter().map(|(state, seen)| (*state, share(seen.count))).collect();
        shares.sort_unstable_by_key(|(state, _)| *state);
        shares
    }
}

/// The launches of one entry point.
#[derive(Clone, Debug, Default)]
pub(crate) struct Launches {
    /// How many, not decayed.
    pub(crate) launches: u64,
    /// By kind.
    pub(crate) variants: Vec<DraftVariant>,
}

impl Launches {
    /// Decayed number of launches.
    pub(crate) fn weight(&self) -> f32 {
        self.variants.iter().map(|variant| variant.weight).sum()
    }
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    pub(crate) image: Option<Digest>,
    pub(crate) traces: u64,
    pub(crate) paths: Vec<LayerPath>,
    path_numbers: HashMap<LayerPath, u32>,
    /// As in a model, but `path` indexes [`Draft::paths`].
    pub(crate) states: Vec<State>,
    state_numbers: HashMap<State, u32>,
    /// By name and architecture.
    pub(crate) entry_points: BTreeMap<(String, String), Launches>,
    /// By `[from, to]`.
    pub(crate) order1: HashMap<[u32; 2], Seen>,
    /// By `[before, from, to]`.
    pub(crate) order2: HashMap<[u32; 3], Seen>,
    /// States with a lower number were there before what was added last.
    pub(crate) established: u32,
    /// The model had to forget states, so one that it does not have may be an old one.
    pub(crate) is_full: bool,
}

impl Draft {
    /// The draft of a model, nothing of it new.
    pub(crate) fn new(model: &Model) -> Self {
        let mut draft = Self::default();
        draft.add(model, false);
        draft.established = draft.states.len() as u32;
        draft
    }

    /// The number of a state.
    pub(crate) fn state(&mut self, layer: u8, path: &LayerPath, touch: layer_format::trace::Touch) -> u32 {
        let path = match self.path_numbers.get(path) {
            Some(number) => *number,
            None => {
                let number = self.paths.len() as u32;
                self.paths.push(path.clone());
                self.path_numbers.insert(path.clone(), number);
                number
            }
        };
        let state = State { layer, path, touch };
        *self.state_numbers.entry(state).or_insert_with(|| {
            self.states.push(state);
            self.states.len() as u32 - 1
        })
    }

    /// Multiplies all counts, and forgets those that became nothing.
    pub(crate) fn decay(&mut self, factor: f64) {
        let shrink = |count: &mut f32| {
            *count = (f64::from(*count) * factor) as f32;
            *count >= DUST
        };
        self.entry_points.retain(|_, launches| {
            launches.variants.retain_mut(|variant| {
                variant.items.retain(|_, seen| shrink(&mut seen.count));
                shrink(&mut variant.weight)
            });
            !launches.variants.is_empty()
        });
        self.order1.retain(|_, seen| shrink(&mut seen.count));
        self.order2.retain(|_, seen| shrink(&mut seen.count));
    }

    /// Adds what a model says. `is_new`: what was not there is marked so.
    pub(crate) fn add(&mut self, model: &Model, is_new: bool) {
        self.image = model.image.or(self.image);
        self.traces = self.traces.saturating_add(model.traces).min(MAX_LAUNCHES);
        let numbers: Vec<Option<u32>> =
            model.states.iter().map(|state| model.paths.get(state.path as usize).map(|path| self.state(state.layer, path, state.touch))).collect();
        let number = |index: u32| numbers.get(index as usize).copied().flatten();
        for entry in &model.entry_points {
            let key = (shortened(&entry.name, MAX_ENTRY_POINT_LEN), shortened(&entry.architecture, MAX_ARCHITECTURE_LEN));
            let launches = self.entry_points.entry(key).or_default();
            launches.launches = launches.launches.saturating_add(entry.launches).min(MAX_LAUNCHES);
            for variant in &entry.variants {
                let mut newer = DraftVariant { weight: cleaned(variant.weight), launches: variant.launches, items: HashMap::new() };
                for item in &variant.launch {
                    if let Some(state) = number(item.state) {
                        add(&mut newer.items, state, item.count, item.time_us, is_new);
                    }
                }
                if is_new {
                    let mut shares = newer.shares();
                    if self.is_full {
                        shares.retain(|(state, _)| *state < self.established);
                    }
                    variants::join(launches, newer, &shares);
                } else {
                    launches.variants.push(newer);
                }
            }
            variants::reduce(launches);
        }
        for step in &model.order1 {
            if let (Some(from), Some(to)) = (number(step.from), number(step.to)) {
                add(&mut self.order1, [from, to], step.count, step.gap_us, is_new);
            }
        }
        for step in &model.order2 {
            if let (Some(before), Some(from), Some(to)) = (number(step.before), number(step.from), number(step.to)) {
                add(&mut self.order2, [before, from, to], step.count, step.gap_us, is_new);
            }
        }
    }

    /// The model of what `keeps` says should stay; in the format's order.
    pub(crate) fn model(&self, keeps: &Keeps) -> Model {
        let kept: Vec<u32> = (0..self.states.len() as u32).filter(|state| keeps.states.get(*state as usize) == Some(&true)).collect();
        let mut paths: Vec<(&LayerPath, u32)> = Vec::with_capacity(kept.len());
        let mut taken = vec![false; self.paths.len()];
        for state in &kept {
            let path = self.states[*state as usize].path;
            if !std::mem::replace(&mut taken[path as usize], true) {
                paths.push((&self.paths[path as usize], path));
            }
        }
        paths.sort();
        let mut path_numbers = vec![0u32; self.paths.len()];
        for (new, (_, old)) in (0..).zip(&paths) {
            path_numbers[*old as usize] = new;
        }
        let renumbered = |state: u32| State { path: path_numbers[self.states[state as usize].path as usize], ..self.states[state as usize] };
        let mut states: Vec<(State, u32)> = kept.iter().map(|state| (renumbered(*state), *state)).collect();
        states.sort_unstable();
        let mut numbers: Vec<Option<u32>> = vec![None; self.states.len()];
        for (new, (_, old)) in (0..).zip(&states) {
            numbers[*old as usize] = Some(new);
        }
        let number = |state: u32| numbers.get(state as usize).copied().flatten();
        let transition = |[before, from, to]: [u32; 3], seen: &Seen| {
            Some(Transition { before: number(before)?, from: number(from)?, to: number(to)?, count: seen.count, gap_us: seen.time_us })
        };
        let mut order1: Vec<Transition> = keeps.order1.iter().filter_map(|key| transition([key[0], key[0], key[1]], self.order1.get(key)?)).collect();
        let mut order2: Vec<Transition> = keeps.order2.iter().filter_map(|key| transition(*key, self.order2.get(key)?)).collect();
        order1.sort_unstable_by_key(|step| (step.from, step.to));
        order2.sort_unstable_by_key(|step| (step.before, step.from, step.to));
        let entry_points = keeps.entry_points.iter().filter_map(|key| Some((key, self.entry_points.get(key)?))).take(MAX_ENTRY_POINTS);
        let entry_points = entry_points.map(|((name, architecture), launches)| {
            let mut variants: Vec<Variant> = launches.variants.iter().map(|variant| finished(variant, number)).collect();
            variants.sort_by(|a, b| b.weight.total_cmp(&a.weight));
            EntryPoint { name: name.clone(), architecture: architecture.clone(), launches: launches.launches, variants }
        });
        let entry_points = entry_points.collect();
        let paths = paths.into_iter().map(|(path, _)| path.clone()).collect();
        Model { image: self.image, traces: self.traces, paths, states: states.into_iter().map(|(state, _)| state).collect(), entry_points, order1, order2 }
    }
}

/// A variant in the format's order, of the states that have a number.
fn finished(variant: &DraftVariant, number: impl Fn(u32) -> Option<u32>) -> Variant {
    let item = |(state, seen): (&u32, &Seen)| Some(LaunchItem { state: number(*state)?, count: seen.count.min(variant.weight), time_us: seen.time_us });
    let mut launch: Vec<LaunchItem> = variant.items.iter().filter_map(item).collect();
    launch.sort_unstable_by_key(|item| (item.time_us, item.state));
    Variant { weight: variant.weight, launches: variant.launches, launch }
}

/// What of a draft stays.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keeps {
    /// For each state.
    pub(crate) states: Vec<bool>,
    /// Ascending.
    pub(crate) entry_points: Vec<(String, String)>,
    pub(crate) order1: Vec<[u32; 2]>,
    pub(crate) order2: Vec<[u32; 3]>,
}

fn add<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Seen>, key: K, count: f32, time_us: u32, is_new: bool) {
    let count = cleaned(count);
    if count > 0.0 {
        map.entry(key).and_modify(|seen| seen.add(count, time_us)).or_insert(Seen { count, time_us, is_new });
    }
}

/// A count as the format allows it, whatever it was.
fn cleaned(count: f32) -> f32 {
    if count > 0.0 { count.min(MAX_COUNT) } else { 0.0 }
}

/// At most `max` bytes of a text.
pub(crate) fn shortened(text: &str, max: usize) -> String {
    text[..text.floor_char_boundary(max)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_the_weighted_mean_and_one_absurd_time_moves_it_little() {
        let mut seen = Seen { count: 3.0, time_us: 1_000_000, is_new: false };
        seen.add(1.0, 1_400_000);
        assert_eq!((seen.count, seen.time_us), (4.0, 1_100_000));
        seen.add(1.0, u32::MAX);
        assert_eq!(seen.time_us, 1_340_000);
        seen.add(5.0, 0);
        assert_eq!(seen.time_us, 955_000);
    }
}
