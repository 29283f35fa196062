//! How much of a launch a model would have known: shares, without a link.
//!
//! For the registry, which lets a newly merged model replace the current one only if it does better on traces that
//! neither has learned ([`compare`](mod@crate::compare)); and for people who ask whether a model is any good. How many seconds it saves on
//! a given link says [`replay`](crate::replay).
//!
//! The launch is played touch by touch. Before each touch a number of things ([`ScoreParams::pace`]) travels from the front of the plan:
//! the launch list, made anew whenever the predictor says so. What the launch touches and was not sent is a miss, and brings its likely
//! successors. So a model is not blamed for a branch that is at the end of the plan and is never sent, and is not praised for listing
//! everything.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use layer_format::model::Model;
use layer_format::trace::Trace;
use serde::{Deserialize, Serialize};

use crate::launch::Predicted;
use crate::predict::Predictor;
use crate::replay::Place;

/// What is asked of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreParams {
    /// What is less likely is not sent.
    pub min_probability: f32,
    /// How many successors are asked for at each touch.
    pub successors: usize,
    /// How many things travel in the time between two touches.
    pub pace: usize,
}

impl Default for ScoreParams {
    fn default() -> Self {
        Self { min_probability: 0.2, successors: 8, pace: 2 }
    }
}

/// Shares, each `0.0..=1.0`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Of what the launch touched, what had been sent.
    pub hit_rate: f64,
    /// Of what was sent unasked, what the launch touched.
    pub precision: f64,
    /// Of the touches after the first, those that were among the successors given after the touch before.
    pub next_hit_rate: f64,
}

impl Score {
    /// One number to compare models by: the F-measure of hit rate and precision with hit rate counting twice as much.
    /// On long links a miss costs a round trip, a useless object only its bytes.
    pub fn value(&self) -> f64 {
        let sum = 4.0 * self.precision + self.hit_rate;
        if sum > 0.0 { 5.0 * self.precision * self.hit_rate / sum } else { 0.0 }
    }

    /// The mean of several; `None` of none.
    pub fn mean(scores: &[Self]) -> Option<Self> {
        let of = |get: fn(&Self) -> f64| scores.iter().map(get).sum::<f64>() / scores.len() as f64;
        (!scores.is_empty()).then(|| Self { hit_rate: of(|s| s.hit_rate), precision: of(|s| s.precision), next_hit_rate: of(|s| s.next_hit_rate) })
    }
}

/// Scores `model` on a launch that it has not learned.
pub fn score(model: &Arc<Model>, trace: &Trace, params: &ScoreParams) -> Score {
    let mut predictor = Predictor::for_launch(Arc::clone(model), Some(&trace.entry_point), &trace.architecture);
    let is_worth = |item: &Predicted| item.probability >= params.min_probability;
    let plan = |predictor: &Predictor| -> VecDeque<Place> { predictor.remaining().into_iter().filter(is_worth).map(Place::from).collect() };
    let (mut planned, mut generation) = (plan(&predictor), predictor.generation());
    let mut touched: HashSet<Place> = HashSet::new();
    let mut sent: HashSet<Place> = HashSet::new();
    let (mut hits, mut asked, mut next_hits) = (0u64, 0u64, 0u64);
    for event in &trace.events {
        let Some(path) = trace.paths.get(event.path as usize) else { continue };
        let place = Place { layer: event.layer, path: path.clone(), touch: event.touch };
        if touched.contains(&place) {
            continue;
        }
        for _ in 0..params.pace {
            while planned.pop_front().is_some_and(|next| touched.contains(&next) || !sent.insert(next)) {}
        }
        if !touched.is_empty() {
            asked += 1;
            next_hits += u64::from(predictor.successors(params.successors).into_iter().any(|item| Place::from(item) == place));
        }
        let is_hit = sent.contains(&place);
        hits += u64::from(is_hit);
        touched.insert(place);
        predictor.observe(event.layer, path, event.touch);
        if !is_hit {
            let more = predictor.successors(params.successors).into_iter().filter(is_worth).map(Place::from);
            sent.extend(more.filter(|next| !touched.contains(next)));
        }
        if predictor.generation() != generation {
            (planned, generation) = (plan(&predictor), predictor.generation());
        }
    }
    Score { hit_rate: share(hits, touched.len() as u64), precision: share(hits, sent.len() as u64), next_hit_rate: share(next_hits, asked) }
}

impl From<Predicted> for Place {
    fn from(item: Predicted) -> Self {
        Self { layer: item.layer, path: item.path, touch: item.touch }
    }
}

/// A share of a whole; of nothing everything.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::walk;
    use crate::{Params, learn};

    #[test]
    fn shares_are_of_touches_and_of_the_list() {
        let mut model = Model::default();
        for _ in 0..3 {
            learn(&mut model, &walk("app", &["a", "b", "c", "d", "e"]), &Params::default());
        }
        let model = Arc::new(model);
        let same = score(&model, &walk("app", &["a", "b", "c", "d", "e"]), &ScoreParams::default());
        assert_eq!(same, Score { hit_rate: 1.0, precision: 1.0, next_hit_rate: 1.0 });
        assert_eq!(same.value(), 1.0);
        let other = score(&model, &walk("app", &["a", "b", "x", "y"]), &ScoreParams::default());
        assert_eq!((other.hit_rate, other.precision), (0.5, 0.4));
        assert!((other.next_hit_rate - 1.0 / 3.0).abs() < 1e-9);
        assert!(other.value() < same.value());
        assert_eq!(Score::mean(&[same, other]).map(|mean| mean.hit_rate), Some(0.75));
        assert_eq!(Score::mean(&[]), None);
    }

    #[test]
    fn a_model_that_knows_nothing_has_no_hits() {
        let nothing = score(&Arc::default(), &walk("app", &["a", "b"]), &ScoreParams::default());
        assert_eq!((nothing.hit_rate, nothing.next_hit_rate, nothing.value()), (0.0, 0.0, 0.0));
    }
}
