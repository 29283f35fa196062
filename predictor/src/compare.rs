//! Which of two models is better, on launches that neither has learned.
//!
//! For the registry, which lets a newly merged model replace the current one only if it does better. Better is the mean of
//! [`Score::value`] over the held-out launches, by a margin; but not if launches of one entry point, or the worst-off single launch,
//! pay for it: a model that serves most launches a little better and one of them much worse is no progress, and is what somebody would
//! upload who wants to harm that one.

use std::collections::BTreeMap;
use std::sync::Arc;

use layer_format::model::Model;
use layer_format::trace::Trace;
use serde::{Deserialize, Serialize};

use crate::score::{Score, ScoreParams, score};

/// When a model counts as better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompareParams {
    /// How launches are scored.
    pub score: ScoreParams,
    /// With fewer held-out launches nothing is decided.
    pub min_traces: usize,
    /// Mean values that differ by no more are a tie.
    pub margin: f64,
    /// Most that the mean of one entry point's launches may lose for the better mean of all.
    pub max_loss: f64,
    /// Most that a single launch may lose.
    pub max_single_loss: f64,
}

impl Default for CompareParams {
    fn default() -> Self {
        Self { score: ScoreParams::default(), min_traces: 3, margin: 0.005, max_loss: 0.05, max_single_loss: 0.3 }
    }
}

/// The model to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preferred {
    /// The current one is better.
    Current,
    /// The candidate is better, and nobody pays for it.
    Candidate,
    /// Neither: the difference is within the margin, or the candidate's gain is some launches' loss.
    Tie,
    /// Too few held-out launches to tell.
    NotEnough,
}

/// What comparing found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The model to use.
    pub preferred: Preferred,
    /// How many launches were held out.
    pub held_out: usize,
    /// On how many of them the candidate does better, by more than the margin.
    pub wins: usize,
    /// On how many it does worse, by more than the margin.
    pub losses: usize,
    /// Mean of the current model; absent without held-out launches.
    pub current: Option<Score>,
    /// Mean of the candidate.
    pub candidate: Option<Score>,
    /// What the launch that loses most with the candidate loses in [`Score::value`]; 0 if none does.
    pub worst_loss: f64,
}

/// Compares `candidate` with `current`. Takes time in proportion to the launches times the models.
pub fn compare(current: &Model, candidate: &Model, held_out: &[Trace], params: &CompareParams) -> Verdict {
    let (current, candidate) = (Arc::new(current.clone()), Arc::new(candidate.clone()));
    let scores = |model: &Arc<Model>| -> Vec<Score> { held_out.iter().map(|trace| score(model, trace, &params.score)).collect() };
    let (before, after) = (scores(&current), scores(&candidate));
    let gains: Vec<f64> = before.iter().zip(&after).map(|(before, after)| after.value() - before.value()).collect();
    let mut by_entry_point: BTreeMap<(&str, &str), (f64, usize)> = BTreeMap::new();
    for (trace, gain) in held_out.iter().zip(&gains) {
        let (sum, count) = by_entry_point.entry((&trace.entry_point, &trace.architecture)).or_default();
        (*sum, *count) = (*sum + gain, *count + 1);
    }
    let mean = if gains.is_empty() { 0.0 } else { gains.iter().sum::<f64>() / gains.len() as f64 };
    let worst_loss = gains.iter().fold(0.0, |worst: f64, gain| worst.max(-gain));
    let somebody_pays = worst_loss > params.max_single_loss || by_entry_point.values().any(|(sum, count)| -sum / *count as f64 > params.max_loss);
    let preferred = if held_out.len() < params.min_traces {
        Preferred::NotEnough
    } else if mean > params.margin && !somebody_pays {
        Preferred::Candidate
    } else if mean < -params.margin {
        Preferred::Current
    } else {
        Preferred::Tie
    };
    Verdict {
        preferred,
        held_out: held_out.len(),
        wins: gains.iter().filter(|gain| **gain > params.margin).count(),
        losses: gains.iter().filter(|gain| **gain < -params.margin).count(),
        current: Score::mean(&before),
        candidate: Score::mean(&after),
        worst_loss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{taught, walk};

    const SERVE: [&str; 6] = ["bin/app", "lib/a", "lib/b", "etc/serve", "lib/http", "lib/tls"];
    const OTHER: [&str; 6] = ["bin/app", "p", "q", "r", "s", "t"];

    #[test]
    fn the_model_that_knows_more_of_what_is_held_out_is_preferred() {
        let known = taught(&[walk("app", &SERVE), walk("app", &SERVE)]);
        let wrong = taught(&[walk("app", &OTHER), walk("app", &OTHER)]);
        let held_out = vec![walk("app", &SERVE); 4];
        let preferred = |current: &Model, candidate: &Model, held_out: &[Trace]| compare(current, candidate, held_out, &CompareParams::default()).preferred;
        assert_eq!(preferred(&wrong, &known, &held_out), Preferred::Candidate);
        assert_eq!(preferred(&known, &wrong, &held_out), Preferred::Current);
        assert_eq!(preferred(&known, &known, &held_out), Preferred::Tie);
        assert_eq!(preferred(&Model::default(), &known, &held_out), Preferred::Candidate);
        assert_eq!(preferred(&known, &Model::default(), &held_out), Preferred::Current);
        assert_eq!(preferred(&wrong, &known, &held_out[..2]), Preferred::NotEnough);
        let nothing = compare(&wrong, &known, &[], &CompareParams::default());
        assert_eq!((nothing.preferred, nothing.current, nothing.worst_loss), (Preferred::NotEnough, None, 0.0));
        let verdict = compare(&wrong, &known, &held_out, &CompareParams::default());
        assert_eq!((verdict.wins, verdict.losses, verdict.held_out, verdict.worst_loss), (4, 0, 4, 0.0));
        assert!(verdict.candidate.unwrap().hit_rate > 0.99 && verdict.current.unwrap().hit_rate < 0.5, "{verdict:?}");
    }

    #[test]
    fn a_gain_for_most_that_one_entry_point_pays_for_is_no_gain() {
        let migrate = ["bin/app", "lib/a", "etc/migrate", "lib/sql", "lib/pg"];
        let both = taught(&[walk("app", &SERVE[..4]), walk("migrate", &migrate)]);
        let poisoned = taught(&[walk("app", &SERVE), walk("migrate", &OTHER)]);
        let mut held_out = vec![walk("app", &SERVE); 20];
        held_out.push(walk("migrate", &migrate));
        let verdict = compare(&both, &poisoned, &held_out, &CompareParams::default());
        assert_eq!((verdict.preferred, verdict.wins, verdict.losses), (Preferred::Tie, 20, 1));
        assert!(verdict.candidate.unwrap().value() > verdict.current.unwrap().value() && verdict.worst_loss > 0.3, "{verdict:?}");
        let fair = taught(&[walk("app", &SERVE), walk("migrate", &migrate)]);
        assert_eq!(compare(&both, &fair, &held_out, &CompareParams::default()).preferred, Preferred::Candidate);
    }
}
