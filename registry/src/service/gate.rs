//! Whether a model that learned more may take the place of the one that is served.
//!
//! It may if it does better on the held-out traces, or about as well: a model that knows its traces perfectly cannot do
//! better, and has to go on learning. It may not if one of the launches loses much by it: that is what somebody would upload who wants
//! to harm that one. What "about" and "much" are says [`CompareParams`].

use layer_format::model::Model;
use layer_format::trace::Trace;
use predictor::score::ScoreParams;
use predictor::{CompareParams, Preferred, Verdict, compare};

/// One held trace is enough to tell that a model does worse on it.
fn params() -> CompareParams {
    // Successors do not count in the value.
    CompareParams { min_traces: 1, score: ScoreParams { successors: 0, ..ScoreParams::default() }, ..CompareParams::default() }
}

/// Compares two models. Takes a while.
pub(crate) fn judge(current: &Model, candidate: &Model, held: &[Trace]) -> Verdict {
    compare(current, candidate, held, &params())
}

/// Whether the candidate may be served.
pub(crate) fn passes(verdict: &Verdict) -> bool {
    match verdict.preferred {
        Preferred::Candidate | Preferred::NotEnough => true,
        Preferred::Current => false,
        Preferred::Tie => verdict.worst_loss <= params().max_single_loss,
    }
}
