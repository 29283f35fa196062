//! Whether a model that learned more may take the place of the one that is served.
//!
//! It may if it does better on the held-out traces, or about as well: a model that knows its traces perfectly cannot do
//! better, and has to go on learning. What counts is the median over the sources of traces, of what the mean launch of each
//! gains: so a source that sends traces of its own making, however many, neither brings a bad model through nor keeps a
//! good one out, as long as most sources are honest. What "about" is says [`MARGIN`].

use layer_format::model::Model;
use layer_format::trace::Trace;
use predictor::score::ScoreParams;
use predictor::{CompareParams, compare};

/// How much a launch may lose in [`Score::value`](predictor::score::Score::value). One trace more, of a launch that touches a little
/// else, moves the value by two or three hundredths, up and down: with less of a margin a model that happens to suit the held traces
/// stays for long while launches change.
const MARGIN: f64 = 0.03;

/// What a candidate gains in [`Score::value`](predictor::score::Score::value) on launches that neither model learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// The median over sources, `-1.0..=1.0`.
    pub(crate) gain: f64,
    /// How many traces were compared.
    pub(crate) traces: usize,
}

impl Verdict {
    /// Whether the candidate may be served.
    pub(crate) fn passes(&self) -> bool {
        self.gain >= -MARGIN
    }
}

/// Compares two models by the traces of each source; `None` if there are none. Takes a while.
pub(crate) fn judge(current: &Model, candidate: &Model, held_by_source: &[Vec<Trace>]) -> Option<Verdict> {
    // Successors do not count in the value.
    let params = CompareParams { min_traces: 1, score: ScoreParams { successors: 0, ..ScoreParams::default() }, ..CompareParams::default() };
    let gain = |held: &Vec<Trace>| {
        let verdict = compare(current, candidate, held, &params);
        Some(verdict.candidate?.value() - verdict.current?.value())
    };
    let mut gains: Vec<f64> = held_by_source.iter().filter_map(gain).collect();
    gains.sort_by(f64::total_cmp);
    let (low, high) = (gains.get(gains.len().checked_sub(1)? / 2)?, gains.get(gains.len() / 2)?);
    Some(Verdict { gain: (low + high) / 2.0, traces: held_by_source.iter().map(Vec::len).sum() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::trace::{Event, Source, Touch};
    use layer_format::{Digest, LayerPath};

    fn run(prefix: &str) -> Trace {
        let paths: Vec<LayerPath> = (0..20).map(|n| LayerPath::new(format!("{prefix}/{n}")).unwrap()).collect();
        let event = |path: u32| Event { time_us: u64::from(path) * 1000, process: 0, layer: 0, path, touch: Touch::Meta, source: Source::Missed };
        let events = (0..20).map(event).collect();
        Trace { image: Digest::of(b"i"), entry_point: "app".into(), architecture: "x86_64".into(), duration_us: 1, paths, events }
    }

    fn taught(prefixes: &[&str]) -> Model {
        let mut model = Model::default();
        prefixes.iter().for_each(|prefix| predictor::learn(&mut model, &run(prefix), &predictor::Params::default()));
        model
    }

    #[test]
    fn most_sources_decide_and_not_most_traces() {
        let (good, bad) = (taught(&["good", "good"]), taught(&["bad", "bad"]));
        let passes = |current: &Model, candidate: &Model, held: &[Vec<Trace>]| judge(current, candidate, held).unwrap().passes();
        assert!(passes(&bad, &good, &[vec![run("good")]]) && !passes(&good, &bad, &[vec![run("good")]]));
        assert!(passes(&good, &good, &[vec![run("good")]]), "as well is well enough");
        // One source claims the contrary, as often as it can.
        let held = [vec![run("good")], vec![run("bad"); 9], vec![run("good")]];
        assert!(passes(&bad, &good, &held) && !passes(&good, &bad, &held));
        assert_eq!(judge(&good, &bad, &[]), None);
    }
}
