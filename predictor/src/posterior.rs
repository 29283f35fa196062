//! Which variant a launch is of, as its touches show: Bayes, with bounds.
//!
//! There is a hypothesis for each variant, and one more: that the launch is *new*, like none of them. Each begins with its share of the
//! launches before (the new one with [`NEW_PRIOR`]) and is held against every first touch. Touches of one launch are not independent (what
//! loads one module loads ten), so a logarithm of a likelihood counts by [`TEMPER`]; and no hypothesis falls further behind the best
//! than [`MAX_LAG`], so a launch that changes its mind is followed within a few touches.
//!
//! * A touch speaks for a variant with the share of its launches that made it, smoothed by [`SMOOTHING`] launches: what one launch did not
//!   touch the next may, what fifty did not touch the next will not.
//! * A touch that no variant knows speaks against all of them, and so for the new one.
//! * What a variant would have touched long ago and this launch has not speaks against it, all of it together at most [`MAX_MISSED`].
//!   Long ago: the middle one of the last touches has a typical time in that variant that is past by half, and by [`MIN_SLACK_US`].
//!
//! Pure arithmetic of at most nine hypotheses a touch.
//!
//! # What the constants are worth
//! On the recorded runs of `traces/` (each scored on runs unlike those learned from, so nearly always of a kind that is new in part) one
//! mixture that never learns of which kind the launch is stalls 0.4 % more at 60 ms and 25 Mbit/s than these constants, and 0.2 to 0.7 % less
//! on longer links. There only the price of a posterior shows: with 0.5, 0.11 and 4 for [`TEMPER`], [`UNKNOWN_TOUCH`] and [`MAX_NEW_LAG`]
//! stalls on long links are 1.4 to 2 % longer; either a smaller exponent or the other two bring that back. The gain is in launches that come
//! back as one of several kinds, and in launches of another program than the model's, which must not cost their bytes.

use std::collections::VecDeque;

use crate::mixture::{Chance, Mixture};

/// What is believed of a launch like none before, at its start.
const NEW_PRIOR: f64 = 0.02;
/// The same if even the entry point is not known.
const OTHER_PRIOR: f64 = 0.3;
/// How likely a new launch makes any given touch, be it known or not.
const NEW_TOUCH: f64 = 0.5;
/// How likely a launch of a known kind makes a touch that is not known.
const UNKNOWN_TOUCH: f64 = 0.2;
/// Launches that made, and that did not make, each touch, before any was learned.
const SMOOTHING: f64 = 0.05;
/// Least likelihood of a known touch.
const MIN_LIKELIHOOD: f64 = 0.02;
/// Exponent of each likelihood.
const TEMPER: f64 = 0.25;
/// Furthest that a variant can fall behind the best hypothesis, as a logarithm.
const MAX_LAG: f64 = 7.0;
/// The same for the hypothesis of a new launch: a launch of a known kind begins with much that is known.
const MAX_NEW_LAG: f64 = 6.0;
/// Most that touches which did not come speak against a variant, as a logarithm.
const MAX_MISSED: f64 = 4.0;
/// The share of its probability with which a touch that did not come speaks against its variant.
const MISSED_SHARE: f64 = 0.7;
/// A touch is overdue no sooner than this after its typical time, in microseconds.
const MIN_SLACK_US: u64 = 100_000;
/// The middle of so many touches says how far the launch is.
const RECENT: usize = 7;
/// Of the touches that are overdue and come after all: the share of all that come.
const LATE: f64 = 0.1;
/// What a new launch touches of what known ones do, as a share of its probability.
const NEW_SHARE: f64 = 0.25;
/// A belief that moved by more than this is a reason to plan anew. Also: another hypothesis leads, and beliefs moved by a quarter of it.
pub(crate) const STEP: f64 = 0.2;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(crate) struct Posterior {
    /// Logarithms of what the touches said, one for each variant and the last for the new one.
    evidence: Vec<f64>,
    /// Logarithms of the prior.
    prior: Vec<f64>,
    variants: Vec<Progress>,
    /// For each state of the mixture a bit for each variant: it is overdue there, and was counted.
    overdue: Vec<u8>,
    /// Current beliefs; sum 1.
    beliefs: Vec<f64>,
    /// Beliefs when the generation began.
    planned: Vec<f64>,
    generation: u64,
}

/// How far a launch is, if it is of a variant.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Typical times of the last touches.
    recent: VecDeque<u32>,
    /// Index into the variant's states by time, of the first that is not overdue.
    next: usize,
    /// What overdue touches say against it; not negative.
    missed: f64,
}

impl Posterior {
    /// Beliefs at the start. `is_other`: the launch is not of the entry point whose variants these are.
    pub(crate) fn new(mixture: &Mixture, is_other: bool) -> Self {
        let variants = mixture.weights.len();
        let new = if is_other { OTHER_PRIOR } else { NEW_PRIOR };
        if variants == 0 {
            return Self::default();
        }
        let mut prior: Vec<f64> = mixture.prior.iter().map(|prior| (prior * (1.0 - new)).max(f64::MIN_POSITIVE).ln()).collect();
        prior.push(new.ln());
        let mut posterior = Self {
            evidence: vec![0.0; variants + 1],
            prior,
            variants: vec![Progress::default(); variants],
            overdue: vec![0; mixture.states.len()],
            ..Self::default()
        };
        posterior.believe();
        posterior.planned.clone_from(&posterior.beliefs);
        posterior
    }

    /// Beliefs in the variants.
    pub(crate) fn variants(&self) -> &[f64] {
        self.beliefs.split_last().map(|(_, variants)| variants).unwrap_or_default()
    }

    /// Weights for the variants' chances: beliefs, of the belief in a new launch a part, in proportion to the variants' priors.
    pub(crate) fn weights(&self, mixture: &Mixture) -> Vec<f64> {
        let new = self.beliefs.last().copied().unwrap_or_default();
        self.variants().iter().zip(&mixture.prior).map(|(belief, prior)| belief + new * NEW_SHARE * prior).collect()
    }

    /// Grows when the launch should be planned anew: see [`STEP`].
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The launch touched this for the first time; `None` if the entry point's launches never did. `is_touched` says whether a state of the
    /// mixture was touched before.
    pub(crate) fn observe(&mut self, mixture: &Mixture, at: Option<u32>, is_touched: impl Fn(u32) -> bool) {
        let Some((new, variants)) = self.evidence.split_last_mut() else { return };
        *new += TEMPER * NEW_TOUCH.ln();
        match at {
            None => variants.iter_mut().for_each(|evidence| *evidence += TEMPER * UNKNOWN_TOUCH.ln()),
            Some(at) => {
                let chances = variants.iter_mut().zip(mixture.chances(at)).zip(&mixture.weights);
                chances.for_each(|((evidence, chance), weight)| *evidence += TEMPER * smoothed(chance.probability, *weight).max(MIN_LIKELIHOOD).ln());
            }
        }
        let best = self.evidence.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let new = self.variants.len();
        for (number, evidence) in self.evidence.iter_mut().enumerate() {
            *evidence = (*evidence - best).max(if number == new { -MAX_NEW_LAG } else { -MAX_LAG });
        }
        if let Some(at) = at {
            self.advance(mixture, at, is_touched);
        }
        self.believe();
        self.plan();
    }

    /// What a variant says of a state that was not touched yet: what is overdue comes rarely.
    pub(crate) fn chance(&self, at: u32, variant: usize, chance: Chance, weight: f32) -> Chance {
        if self.overdue.get(at as usize).is_some_and(|overdue| overdue >> variant & 1 == 1) {
            let share = smoothed(chance.probability, weight);
            return Chance { probability: (share * LATE / (1.0 - share + share * LATE)) as f32, ..chance };
        }
        chance
    }

    /// Counts what became overdue with the touch of `at`, and takes back if that was.
    fn advance(&mut self, mixture: &Mixture, at: u32, is_touched: impl Fn(u32) -> bool) {
        let missed = |chance: Chance| -TEMPER * (1.0 - MISSED_SHARE * f64::from(chance.probability)).ln();
        for (number, progress) in self.variants.iter_mut().enumerate() {
            let chance = |at: u32| mixture.chances(at).get(number).copied().unwrap_or_default();
            let own = chance(at);
            if own.probability <= 0.0 {
                continue;
            }
            if let Some(overdue) = self.overdue.get_mut(at as usize).filter(|overdue| **overdue >> number & 1 == 1) {
                *overdue &= !(1 << number);
                progress.missed = (progress.missed - missed(own)).max(0.0);
            }
            progress.recent.push_back(own.time_us);
            if progress.recent.len() > RECENT {
                progress.recent.pop_front();
            }
            let mut recent: Vec<u32> = progress.recent.iter().copied().collect();
            recent.sort_unstable();
            let now_us = u64::from(recent[recent.len() / 2]);
            while let Some(next) = mixture.by_time[number].get(progress.next).copied() {
                let time_us = u64::from(chance(next).time_us);
                if time_us + MIN_SLACK_US.max(time_us / 2) > now_us {
                    break;
                }
                progress.next += 1;
                if !is_touched(next) {
                    self.overdue[next as usize] |= 1 << number;
                    progress.missed += missed(chance(next));
                }
            }
        }
    }

    /// Makes beliefs of prior and evidence.
    fn believe(&mut self) {
        let missed = self.variants.iter().map(|progress| progress.missed.min(MAX_MISSED)).chain([0.0]);
        let scores: Vec<f64> = self.prior.iter().zip(&self.evidence).zip(missed).map(|((prior, evidence), missed)| prior + evidence - missed).collect();
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        self.beliefs = scores.iter().map(|score| (score - best).exp()).collect();
        let total: f64 = self.beliefs.iter().sum();
        self.beliefs.iter_mut().for_each(|belief| *belief /= total);
    }

    /// Begins a generation if there is reason to.
    fn plan(&mut self) {
        let moved = self.beliefs.iter().zip(&self.planned).map(|(now, then)| (now - then).abs()).fold(0.0, f64::max);
        if moved > STEP || moved > STEP / 4.0 && leader(&self.beliefs) != leader(&self.planned) {
            self.generation += 1;
            self.planned.clone_from(&self.beliefs);
        }
    }
}

/// The first of the largest.
fn leader(beliefs: &[f64]) -> Option<usize> {
    (0..beliefs.len()).reduce(|best, next| if beliefs[next] > beliefs[best] { next } else { best })
}

/// The probability that one more launch of a variant makes a touch.
fn smoothed(share: f32, weight: f32) -> f64 {
    let (share, weight) = (f64::from(share), f64::from(weight.max(0.0)));
    (share * weight + SMOOTHING) / (weight + 2.0 * SMOOTHING)
}
