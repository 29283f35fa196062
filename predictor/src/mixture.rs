//! The launch lists of an entry point's variants, laid over each other.
//!
//! With a weight for each variant (how much of all launches it is, or how likely this launch is one of them) the lists make one: a state's
//! probability is the weighted mean of its probabilities, its typical time that of the variants that touch it.
//!
//! # Sending order
//! First what every variant that is still possible touches. It is needed whichever way the launch goes, and while it travels the launch
//! shows which way that is; sent before, a branch that is not taken would delay it. Within that, and then within the rest, by time divided
//! by probability. With one variant, or one that is nearly certain, there is nothing to wait for, and the second rule is all.

use layer_format::model::{EntryPoint, Model};

use crate::launch::share;

/// Added to a time before it is divided by a probability: what is touched at once, but seldom, goes behind what is touched surely and
/// soon. In microseconds.
const PATIENCE_US: f64 = 100_000.0;
/// A variant with less weight does not decide what all variants touch.
const POSSIBLE: f64 = 0.05;
/// What all variants touch is touched by at least this share of each one's launches.
const SHARED: f32 = 0.5;

/// What a variant says about a state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Chance {
    /// The share of its launches that touch it.
    pub(crate) probability: f32,
    /// When, typically, in microseconds since the start.
    pub(crate) time_us: u32,
}

/// A state of the list under some weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weighed {
    pub(crate) state: u32,
    pub(crate) probability: f32,
    pub(crate) time_us: u32,
    /// Place in the sending order.
    key: (bool, f64),
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(crate) struct Mixture {
    /// Decayed number of launches of each variant.
    pub(crate) weights: Vec<f32>,
    /// Each of them normalised: the variants' shares of all launches.
    pub(crate) prior: Vec<f64>,
    /// All states that any variant touches, none twice.
    pub(crate) states: Vec<u32>,
    /// Index into `states` of each of the model's states.
    pub(crate) positions: Vec<Option<u32>>,
    /// Of each variant, indices into `states` ascending by time.
    pub(crate) by_time: Vec<Vec<u32>>,
    /// For each of `states`, one for each variant.
    chances: Vec<Chance>,
}

impl Mixture {
    /// The lists of an entry point; of none nothing.
    pub(crate) fn new(model: &Model, entry: Option<&EntryPoint>) -> Self {
        let variants = entry.map(|entry| entry.variants.as_slice()).unwrap_or_default();
        let weights: Vec<f32> = variants.iter().map(|variant| variant.weight.max(0.0)).collect();
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        let prior = weights.iter().map(|weight| if total > 0.0 { f64::from(*weight) / total } else { 1.0 / weights.len() as f64 }).collect();
        let mut mixture = Self { weights, prior, positions: vec![None; model.states.len()], ..Self::default() };
        for (number, variant) in variants.iter().enumerate() {
            let mut by_time = Vec::with_capacity(variant.launch.len());
            for item in &variant.launch {
                let Some(position) = mixture.positions.get_mut(item.state as usize) else { continue };
                let at = *position.get_or_insert_with(|| {
                    mixture.states.push(item.state);
                    mixture.chances.extend(std::iter::repeat_n(Chance::default(), variants.len()));
                    mixture.states.len() as u32 - 1
                });
                let chance = &mut mixture.chances[at as usize * variants.len() + number];
                let probability = share(item.count, variant.weight);
                if chance.probability == 0.0 && probability > 0.0 {
                    *chance = Chance { probability, time_us: item.time_us };
                    by_time.push(at);
                }
            }
            by_time.sort_by_key(|at| mixture.chances[*at as usize * variants.len() + number].time_us);
            mixture.by_time.push(by_time);
        }
        mixture
    }

    /// What each variant says about a state of the list.
    pub(crate) fn chances(&self, at: u32) -> &[Chance] {
        let count = self.weights.len();
        self.chances.get(at as usize * count..(at as usize + 1) * count).unwrap_or_default()
    }

    /// A state under weights of the variants; `None` if it is not touched. `chances` are [`Self::chances`], or what has become of them in
    /// this launch.
    pub(crate) fn weigh(&self, at: u32, weights: &[f64], chances: impl Iterator<Item = Chance> + Clone) -> Option<Weighed> {
        let (mut probability, mut time) = (0f64, 0f64);
        for (weight, chance) in weights.iter().zip(chances.clone()) {
            probability += weight * f64::from(chance.probability);
            time += weight * f64::from(chance.probability) * f64::from(chance.time_us);
        }
        if probability <= 0.0 {
            return None;
        }
        let time = time / probability;
        let mut possible = weights.iter().zip(chances).filter(|(weight, _)| **weight >= POSSIBLE);
        let is_shared = possible.all(|(_, chance)| chance.probability >= SHARED);
        let is_settled = weights.iter().filter(|weight| **weight >= POSSIBLE).count() <= 1;
        let key = (!is_shared && !is_settled, (time + PATIENCE_US) / probability.min(1.0));
        Some(Weighed { state: *self.states.get(at as usize)?, probability: probability.min(1.0) as f32, time_us: time.round() as u32, key })
    }

    /// The list under the prior, in sending order.
    pub(crate) fn list(&self) -> Vec<Weighed> {
        let mut list: Vec<Weighed> = (0..self.states.len() as u32).filter_map(|at| self.weigh(at, &self.prior, self.chances(at).iter().copied())).collect();
        list.sort_unstable_by(Weighed::order);
        list
    }
}

impl Weighed {
    /// The sending order: total, so it does not depend on the order before.
    pub(crate) fn order(&self, other: &Self) -> std::cmp::Ordering {
        self.key.0.cmp(&other.key.0).then(self.key.1.total_cmp(&other.key.1)).then(self.state.cmp(&other.state))
    }
}
