//! What follows a touch, while a launch runs.
//!
//! The probability of a successor after two touches blends what order 2 counted with what order 1 counted, so it backs
//! off smoothly where order 2 has seen little. Successors of successors follow with the product of the probabilities
//! on the way, the likeliest first. When those are exhausted or unlikely, the rest of the launch list follows.
//!
//! A touch can have several successors that all come: the next one of its process, and the first ones of processes that it began. So a
//! probability is a share of the launches that made the touch, not of all that ever followed it, and those of one touch need not sum to 1.
//!
//! Touches come from several processes interleaved, and the caller need not tell them apart: a touch continues the
//! most recent chain of which it is a known successor, and otherwise begins one.
//!
//! Each first touch also says of which variant the launch is. The rest of the launch list is weighted by that, and so
//! are transitions: a step to what only an unlikely variant touches is unlikely.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use layer_format::LayerPath;
use layer_format::model::{EntryPoint, Model, State, Transition};
use layer_format::trace::Touch;

use crate::launch::{self, Predicted, predicted, share};
use crate::mixture::{Chance, Mixture, Weighed};
use crate::posterior::Posterior;

/// How many chains of touches are followed: processes that are active at the same time.
const MAX_CHAINS: usize = 16;
/// What order 1 says weighs as much as this many launches seen at order 2. Anything from 0.25 to 1 gives the same stalls within 0.02 % on
/// the recorded runs of `traces/`; order 1 alone, up to 0.1 % more.
const BACK_OFF: f32 = 0.5;
/// Chains of successors less likely than this are not followed further: a launch list knows better then. On recorded runs 1/4 and 1/50 are
/// within 0.2 % of this.
const MIN_CHAIN: f32 = 1.0 / 16.0;

/// So many touches that the model does not know are told apart; what comes then says nothing more.
const MAX_UNKNOWN: usize = 4096;
/// Most that beliefs can raise the probability of a step.
const MAX_RAISE: f64 = 4.0;

/// Follows one launch, and predicts what comes next. Cheap to make: it holds the model, and a few numbers a state.
#[derive(Clone, Debug)]
pub struct Predictor {
    model: Arc<Model>,
    list: Mixture,
    posterior: Posterior,
    /// Decayed number of launches that touch each state.
    touches: Vec<f32>,
    observed: Vec<bool>,
    /// Hashes of touches that the model does not know.
    unknown: HashSet<u64>,
    /// Index into the list's states of the last touch that is one.
    last: Option<u32>,
    /// Last touch and the one before it, of each chain; the most recent first.
    chains: VecDeque<(Option<u32>, u32)>,
    /// Whether the most recent touch is the first of `chains`; not if the model does not know it.
    is_known: bool,
}

impl Predictor {
    /// Follows a launch of the model's heaviest entry point.
    pub fn new(model: Arc<Model>) -> Self {
        Self::for_launch(model, None, "")
    }

    /// Follows a launch of `entry_point`, chosen as [`launch_list`](crate::launch_list) does.
    pub fn for_launch(model: Arc<Model>, entry_point: Option<&str>, architecture: &str) -> Self {
        let entry = launch::find(&model, entry_point, architecture);
        let is_other = entry.is_some_and(|entry| entry_point.is_some_and(|name| name != entry.name));
        let list = Mixture::new(&model, entry);
        let posterior = Posterior::new(&list, is_other);
        let count = model.states.len();
        let mut touches = vec![0.0; count];
        for item in model.entry_points.iter().flat_map(EntryPoint::items) {
            if let Some(total) = touches.get_mut(item.state as usize) {
                *total += item.count;
            }
        }
        Self { model, list, posterior, touches, observed: vec![false; count], unknown: HashSet::new(), last: None, chains: VecDeque::new(), is_known: false }
    }

    /// The application touched this, for the first time or again. Costs no more for a long list than for a short one.
    pub fn observe(&mut self, layer: u8, path: &LayerPath, touch: Touch) {
        let Some(state) = find_state(&self.model, layer, path, touch) else {
            self.is_known = false;
            if self.is_first_unknown(layer, path, touch) {
                self.posterior.observe(&self.list, None, |_| false);
            }
            return;
        };
        let at = self.list.positions[state as usize];
        if !std::mem::replace(&mut self.observed[state as usize], true) {
            let (observed, states) = (&self.observed, &self.list.states);
            self.posterior.observe(&self.list, at, |at| observed[states[at as usize] as usize]);
        }
        self.last = at.or(self.last);
        self.is_known = true;
        let follows = self.chains.iter().position(|(_, last)| *last == state || row1(&self.model, *last).iter().any(|step| step.to == state));
        let chain = match follows.and_then(|at| self.chains.remove(at)) {
            Some((before, last)) if last == state => (before, state),
            Some((_, last)) => (Some(last), state),
            None => (None, state),
        };
        self.chains.push_front(chain);
        self.chains.truncate(MAX_CHAINS);
    }

    /// Whether this, which the model does not know, is touched for the first time; after many such touches no longer.
    fn is_first_unknown(&mut self, layer: u8, path: &LayerPath, touch: Touch) -> bool {
        let mut hasher = DefaultHasher::new();
        (layer, path, touch).hash(&mut hasher);
        self.unknown.len() < MAX_UNKNOWN && self.unknown.insert(hasher.finish())
    }

    /// What is likely to be touched after the most recent touch and was not touched yet, best first, at most `max`.
    pub fn successors(&self, max: usize) -> Vec<Predicted> {
        let mut given = self.observed.clone();
        let weights = self.posterior.weights(&self.list);
        let mut found = self.follow(max, &weights, &mut given);
        let wanted = max.saturating_sub(found.len());
        if wanted > 0 {
            let mut rest = self.rest(&weights, &given);
            if wanted < rest.len() {
                rest.select_nth_unstable_by(wanted, Weighed::order);
                rest.truncate(wanted);
            }
            rest.sort_unstable_by(Weighed::order);
            found.extend(rest.iter().filter_map(|item| predicted(&self.model, item.state, item.probability, item.time_us)));
        }
        found
    }

    /// All of the launch list that was not observed yet, in sending order, as the variants of which this launch may be say, each with its
    /// probability. Times count from now, that is from the touch observed last; what is overdue has time 0 and became less likely. Takes
    /// time in proportion to the list: call it when [`Self::generation`] has grown, not at each touch.
    pub fn remaining(&self) -> Vec<Predicted> {
        let mut rest = self.rest(&self.posterior.weights(&self.list), &self.observed);
        rest.sort_unstable_by(Weighed::order);
        rest.iter().filter_map(|item| predicted(&self.model, item.state, item.probability, item.time_us)).collect()
    }

    /// Grows whenever the launch turned out to be of another kind than assumed, or of no known kind: what was planned of
    /// [`Self::remaining`] should be planned anew. Another kind: another variant leads, or one's probability moved by a fifth.
    pub fn generation(&self) -> u64 {
        self.posterior.generation()
    }

    /// How likely this launch is of each variant of its entry point, in the model's order. What is left to 1 is how likely it is of none.
    pub fn beliefs(&self) -> &[f64] {
        self.posterior.variants()
    }

    /// The states of the list that are not in `given`, in no order; times count from now.
    fn rest(&self, weights: &[f64], given: &[bool]) -> Vec<Weighed> {
        let now: Vec<u32> = self.last.map(|at| self.list.chances(at).iter().map(|chance| chance.time_us).collect()).unwrap_or_default();
        let item = |at: u32| {
            let own = self.list.chances(at).iter().zip(&self.list.weights).enumerate();
            let chances = own.map(|(variant, (chance, weight))| {
                let chance = self.posterior.chance(at, variant, *chance, *weight);
                Chance { time_us: chance.time_us.saturating_sub(now.get(variant).copied().unwrap_or_default()), ..chance }
            });
            self.list.weigh(at, weights, chances)
        };
        (0u32..).zip(&self.list.states).filter(|(_, state)| !given[**state as usize]).filter_map(|(at, _)| item(at)).collect()
    }

    /// How much likelier a state is in this launch than in any.
    fn raise(&self, state: u32, weights: &[f64]) -> f32 {
        let Some(at) = self.list.positions.get(state as usize).copied().flatten() else { return 1.0 };
        let sum = |weights: &[f64]| self.list.chances(at).iter().zip(weights).map(|(chance, weight)| f64::from(chance.probability) * weight).sum::<f64>();
        let (now, before) = (sum(weights), sum(&self.list.prior));
        if before > 0.0 { (now / before).min(MAX_RAISE) as f32 } else { 1.0 }
    }

    /// The likeliest states down the transitions; marks them in `given`.
    fn follow(&self, max: usize, weights: &[f64], given: &mut [bool]) -> Vec<Predicted> {
        let mut found = Vec::new();
        let Some(chain) = self.chains.front().filter(|_| self.is_known) else { return found };
        // Probabilities are not negative, so their bits order as they do; then the sooner, then the lower number.
        let mut heap = BinaryHeap::from([(1f32.to_bits(), Reverse(0u32), Reverse((chain.1, chain.0)))]);
        let mut done = vec![false; given.len()];
        while let Some((bits, Reverse(time_us), Reverse((state, before)))) = heap.pop() {
            let probability = f32::from_bits(bits);
            if found.len() >= max {
                break;
            }
            if std::mem::replace(&mut done[state as usize], true) {
                continue;
            }
            if !std::mem::replace(&mut given[state as usize], true) {
                found.extend(predicted(&self.model, state, probability, time_us));
            }
            for (step, chance) in self.steps(before, state) {
                let probability = probability * (chance * self.raise(step.to, weights)).min(1.0);
                if probability >= MIN_CHAIN && !done[step.to as usize] {
                    heap.push((probability.to_bits(), Reverse(time_us.saturating_add(step.gap_us)), Reverse((step.to, Some(state)))));
                }
            }
        }
        found
    }

    /// The transitions out of `state` reached from `before`, each with its probability.
    fn steps(&self, before: Option<u32>, state: u32) -> impl Iterator<Item = (&Transition, f32)> {
        let row = row1(&self.model, state);
        let sum = |row: &[Transition]| row.iter().map(|step| step.count).sum::<f32>();
        // A share of the launches that touch `state`, as far as they are known: so neither a last touch nor a fan-out of processes misleads.
        let total = Some(self.touches[state as usize]).filter(|touches| *touches > 0.0).unwrap_or_else(|| sum(row));
        let longer = before.map_or(&[][..], |before| row2(&self.model, before, state));
        let times = before.and_then(|before| row1(&self.model, before).iter().find(|step| step.to == state)).map_or(0.0, |step| step.count);
        let longer_total = if longer.is_empty() {
            0.0
        } else if times > 0.0 {
            times
        } else {
            sum(longer)
        };
        let count = self.model.states.len();
        row.iter().filter(move |step| (step.to as usize) < count).map(move |step| {
            let short = share(step.count, total);
            let long = longer.iter().find(|other| other.to == step.to).map_or(0.0, |other| other.count);
            (step, share(long + BACK_OFF * short, longer_total + BACK_OFF))
        })
    }
}

fn find_state(model: &Model, layer: u8, path: &LayerPath, touch: Touch) -> Option<u32> {
    let path = model.paths.binary_search(path).ok()? as u32;
    model.states.binary_search(&State { layer, path, touch }).ok().map(|at| at as u32)
}

/// The transitions of order 1 out of `from`.
fn row1(model: &Model, from: u32) -> &[Transition] {
    row(&model.order1, |step| step.from.cmp(&from))
}

/// The transitions of order 2 out of `before`, `from`.
fn row2(model: &Model, before: u32, from: u32) -> &[Transition] {
    row(&model.order2, |step| (step.before, step.from).cmp(&(before, from)))
}

fn row(steps: &[Transition], order: impl Fn(&Transition) -> std::cmp::Ordering) -> &[Transition] {
    let start = steps.partition_point(|step| order(step).is_lt());
    let len = steps[start..].partition_point(|step| order(step).is_eq());
    &steps[start..start + len]
}

#[cfg(test)]
mod tests;
