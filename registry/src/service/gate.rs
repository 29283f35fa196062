//! Whether a model that learned more may take the place of the one that is served.

use std::sync::Arc;

use layer_format::model::Model;
use layer_format::trace::Trace;
use predictor::score::{Score, ScoreParams, score};

/// How much worse, in [`Score::value`], a model may be on held-out traces and still pass: what one unusual run more or less
/// makes. Without it a model that knows its traces perfectly would never learn again.
pub(crate) const MARGIN: f64 = 0.01;

/// What two models are worth on traces that neither has learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) current: f64,
    pub(crate) candidate: f64,
}

impl Verdict {
    pub(crate) fn passes(&self) -> bool {
        self.candidate >= self.current - MARGIN
    }
}

/// Compares two models; `None` if there is nothing to compare them by: then the candidate passes. Takes a while.
pub(crate) fn judge(current: &Arc<Model>, candidate: &Arc<Model>, held: &[Trace]) -> Option<Verdict> {
    // Successors are not asked for: launches are served from the launch list.
    let params = ScoreParams { successors: 0, ..ScoreParams::default() };
    let value = |model| Score::mean(&held.iter().map(|trace| score(model, trace, &params)).collect::<Vec<_>>()).map(|score| score.value());
    Some(Verdict { current: value(current)?, candidate: value(candidate)? })
}
