//! What a model may remember, and for how long.
//!
//! On the recorded runs of `traces/` a half-life of 5, 20 or 100 launches makes less than 1 % of a difference in stalls, 5 being the worst on
//! thin links: two or three runs are too few for forgetting to matter. 20 is what remembers a weekly job among daily ones and forgets a
//! version that nobody starts any more within some hundred launches.

use layer_format::model::{MAX_ENTRY_POINTS, MAX_MODEL_LEN, MAX_STATES, MAX_TRANSITIONS};

/// How fast a model forgets, and how large it may become. Bounds beyond those of the format count as those.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// After this many launches what was learned counts half. Infinite: nothing is forgotten.
    pub half_life: f32,
    /// Most states.
    pub max_states: usize,
    /// Most transitions of each order.
    pub max_transitions: usize,
    /// Most pairs of entry point and architecture.
    pub max_entry_points: usize,
    /// Most bytes of the encoded model.
    pub max_model_bytes: usize,
    /// Most of a full model, as a share, that what a single trace is the first to show may take. The rest stays with
    /// what was learned before, so one odd or hostile trace cannot replace it.
    pub max_trace_share: f32,
    /// What fewer of an entry point's launches touch than this share is forgotten: with the default half-life,
    /// what was touched in all launches is forgotten after about 160 launches without it.
    pub min_probability: f32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            half_life: 20.0,
            max_states: MAX_STATES,
            max_transitions: MAX_TRANSITIONS,
            max_entry_points: MAX_ENTRY_POINTS,
            max_model_bytes: 1_000_000,
            max_trace_share: 0.25,
            min_probability: 1.0 / 256.0,
        }
    }
}

impl Params {
    /// What a count is multiplied by when so many more launches are learned: `0.0..=1.0`.
    pub fn decay(&self, launches: u64) -> f64 {
        match self.half_life {
            half_life if half_life > 0.0 => half_to_the(launches as f64 / f64::from(half_life)),
            _ if launches == 0 => 1.0,
            _ => 0.0,
        }
    }

    /// These with every bound within the format's.
    pub(crate) fn bounded(&self) -> Self {
        Self {
            half_life: self.half_life,
            max_states: self.max_states.min(MAX_STATES),
            max_transitions: self.max_transitions.min(MAX_TRANSITIONS),
            max_entry_points: self.max_entry_points.min(MAX_ENTRY_POINTS),
            max_model_bytes: self.max_model_bytes.min(MAX_MODEL_LEN),
            max_trace_share: self.max_trace_share.clamp(0.0, 1.0),
            min_probability: self.min_probability.clamp(0.0, 1.0),
        }
    }
}

/// One half to the power of `exponent`, which is not negative. The standard library's powers may differ in the last bit
/// from machine to machine, and then so would models; sums and products do not.
fn half_to_the(exponent: f64) -> f64 {
    let whole = exponent.floor();
    if whole > 1022.0 {
        return 0.0;
    }
    let x = (whole - exponent) * std::f64::consts::LN_2;
    let (sum, _) = (1..=20).fold((1.0, 1.0), |(sum, term), n| {
        let term = term * x / f64::from(n);
        (sum + term, term)
    });
    sum * f64::from_bits((1023 - whole as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_halve_after_a_half_life() {
        let params = Params::default();
        assert_eq!((params.decay(0), params.decay(20), params.decay(40), params.decay(u64::MAX)), (1.0, 0.5, 0.25, 0.0));
        assert!((params.decay(1).powi(20) - 0.5).abs() < 1e-12);
        for (half_life, decay) in [(f32::INFINITY, 1.0), (0.0, 0.0), (f32::NAN, 0.0), (-1.0, 0.0)] {
            assert_eq!(Params { half_life, ..Params::default() }.decay(1), decay);
        }
        for tenth in 0..600 {
            let exponent = f64::from(tenth) / 10.0;
            assert!((half_to_the(exponent) / 0.5f64.powf(exponent) - 1.0).abs() < 1e-14);
        }
    }
}
