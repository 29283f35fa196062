//! What follows a touch, while a launch runs.
//!
//! The probability of a successor after two touches blends what order 2 counted with what order 1 counted, so it backs
//! off smoothly where order 2 has seen little. Successors of successors follow with the product of the probabilities
//! on the way, the likeliest first. When those are exhausted or unlikely, the rest of the launch list follows, from
//! where the launch is now.
//!
//! Touches come from several processes interleaved, and the caller need not tell them apart: a touch continues the
//! most recent chain of which it is a known successor, and otherwise begins one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use layer_format::LayerPath;
use layer_format::model::{Model, State, Transition};
use layer_format::trace::Touch;

use crate::launch::{self, Item, Predicted, predicted, share};

/// How many chains of touches are followed: processes that are active at the same time.
const MAX_CHAINS: usize = 16;
/// What order 1 says weighs as much as this many launches seen at order 2.
const BACK_OFF: f32 = 0.5;
/// Chains of successors less likely than this are not followed further: a launch list knows better then.
const MIN_CHAIN: f32 = 1.0 / 16.0;

/// Follows one launch, and predicts what comes next. Cheap to make: it holds the model, and a few numbers a state.
#[derive(Clone, Debug)]
pub struct Predictor {
    model: Arc<Model>,
    list: Vec<Item>,
    /// Position in `list` of each state.
    positions: Vec<Option<u32>>,
    /// Decayed number of launches that touch each state.
    touches: Vec<f32>,
    observed: Vec<bool>,
    /// Where the launch is in `list`.
    position: usize,
    /// Last touch and the one before it, of each chain; the most recent first.
    chains: VecDeque<(Option<u32>, u32)>,
    /// Whether the most recent touch is the first of `chains`; not if the model does not know it.
    is_known: bool,
    generation: u64,
}

impl Predictor {
    /// Follows a launch of the model's heaviest entry point.
    pub fn new(model: Arc<Model>) -> Self {
        Self::for_launch(model, None, "")
    }

    /// Follows a launch of `entry_point`, chosen as [`launch_list`](crate::launch_list) does.
    pub fn for_launch(model: Arc<Model>, entry_point: Option<&str>, architecture: &str) -> Self {
        let list = launch::find(&model, entry_point, architecture).map(|entry| launch::items(&model, entry)).unwrap_or_default();
        let count = model.states.len();
        let mut positions = vec![None; count];
        for (at, item) in (0..).zip(&list) {
            positions[item.state as usize] = Some(at);
        }
        let mut touches = vec![0.0; count];
        for item in model.entry_points.iter().flat_map(|entry| &entry.launch) {
            if let Some(total) = touches.get_mut(item.state as usize) {
                *total += item.count;
            }
        }
        Self { model, list, positions, touches, observed: vec![false; count], position: 0, chains: VecDeque::new(), is_known: false, generation: 0 }
    }

    /// The application touched this, for the first time or again.
    pub fn observe(&mut self, layer: u8, path: &LayerPath, touch: Touch) {
        let Some(state) = find_state(&self.model, layer, path, touch) else {
            self.is_known = false;
            return;
        };
        self.is_known = true;
        self.observed[state as usize] = true;
        if let Some(at) = self.positions[state as usize] {
            self.position = at as usize + 1;
        }
        let follows = self.chains.iter().position(|(_, last)| *last == state || row1(&self.model, *last).iter().any(|step| step.to == state));
        let chain = match follows.and_then(|at| self.chains.remove(at)) {
            Some((before, last)) if last == state => (before, state),
            Some((_, last)) => (Some(last), state),
            None => (None, state),
        };
        self.chains.push_front(chain);
        self.chains.truncate(MAX_CHAINS);
    }

    /// What is likely to be touched after the most recent touch and was not touched yet, best first, at most `max`.
    pub fn successors(&self, max: usize) -> Vec<Predicted> {
        let mut given = self.observed.clone();
        let mut found = self.follow(max, &mut given);
        let now_us = self.position.checked_sub(1).and_then(|at| self.list.get(at)).map_or(0, |item| item.time_us);
        let rest = self.list[self.position.min(self.list.len())..].iter().filter(|item| !given[item.state as usize]);
        let rest = rest.filter_map(|item| predicted(&self.model, item.state, item.probability, item.time_us.saturating_sub(now_us)));
        found.extend(rest.take(max.saturating_sub(found.len())));
        found
    }

    /// All of the launch list that was not observed yet, in sending order. Times count from now, that is from the touch observed last;
    /// what is overdue has time 0. Takes time in proportion to the list: call it when [`Self::generation`] has grown, not at each touch.
    pub fn remaining(&self) -> Vec<Predicted> {
        let now_us = self.position.checked_sub(1).and_then(|at| self.list.get(at)).map_or(0, |item| item.time_us);
        let rest = self.list.iter().filter(|item| !self.observed[item.state as usize]);
        rest.filter_map(|item| predicted(&self.model, item.state, item.probability, item.time_us.saturating_sub(now_us))).collect()
    }

    /// Grows whenever the launch turned out to be of another kind than assumed: what was planned of [`Self::remaining`] should be planned anew.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The likeliest states down the transitions; marks them in `given`.
    fn follow(&self, max: usize, given: &mut [bool]) -> Vec<Predicted> {
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
                let probability = probability * chance;
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
        // Not all launches that touch a state go on from it: the last touch of a process has no successor.
        let total = row.iter().map(|step| step.count).sum::<f32>().max(self.touches.get(state as usize).copied().unwrap_or_default());
        let longer = before.map_or(&[][..], |before| row2(&self.model, before, state));
        let times = before.and_then(|before| row1(&self.model, before).iter().find(|step| step.to == state)).map_or(0.0, |step| step.count);
        let longer_total = longer.iter().map(|step| step.count).sum::<f32>().max(if longer.is_empty() { 0.0 } else { times });
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
mod tests {
    use super::*;
    use crate::samples::{trace, walk};
    use crate::{Params, learn};
    use layer_format::trace::Trace;

    fn taught(traces: &[Trace]) -> Arc<Model> {
        let mut model = Model::default();
        traces.iter().for_each(|trace| learn(&mut model, trace, &Params::default()));
        Arc::new(model)
    }

    fn observe(predictor: &mut Predictor, paths: &[&str]) {
        paths.iter().for_each(|path| predictor.observe(0, &LayerPath::new(*path).unwrap(), Touch::Meta));
    }

    fn names(predictions: &[Predicted]) -> Vec<String> {
        predictions.iter().map(|item| item.path.to_string()).collect()
    }

    const SERVE: [&str; 6] = ["bin/app", "lib/common", "etc/serve", "lib/config", "lib/serve", "lib/http"];
    const MIGRATE: [&str; 6] = ["bin/app", "lib/common", "etc/migrate", "lib/config", "lib/migrate", "lib/sql"];

    #[test]
    fn two_ways_to_start_a_program_have_different_successors_at_order_2() {
        let model = taught(&[walk("app", &SERVE), walk("app", &MIGRATE), walk("app", &SERVE), walk("app", &MIGRATE)]);
        for (path, other, last) in [(SERVE, MIGRATE, "/lib/serve"), (MIGRATE, SERVE, "/lib/migrate")] {
            let mut predictor = Predictor::new(Arc::clone(&model));
            observe(&mut predictor, &path[..2]);
            let both = names(&predictor.successors(8));
            assert!(both.contains(&"/etc/serve".into()) && both.contains(&"/etc/migrate".into()), "the branch is open: {both:?}");
            // Both ways touch lib/config; what follows it depends on what came before it.
            observe(&mut predictor, &path[2..4]);
            let next = predictor.successors(4);
            assert_eq!(names(&next)[0], last);
            assert_eq!(names(&next)[1].trim_start_matches('/'), path[5]);
            assert!(next[0].probability > 0.8, "{next:?}");
            let wrong = next.iter().find(|item| item.path.to_string().trim_start_matches('/') == other[4]);
            assert!(wrong.is_none_or(|wrong| wrong.probability < 0.6), "{next:?}");
        }
    }

    #[test]
    fn without_a_known_touch_before_order_1_answers() {
        let model = taught(&[walk("app", &SERVE), walk("app", &MIGRATE)]);
        let mut predictor = Predictor::new(model);
        observe(&mut predictor, &["lib/config"]);
        let next = predictor.successors(4);
        assert!(names(&next).contains(&"/lib/serve".into()) && names(&next).contains(&"/lib/migrate".into()), "{next:?}");
        assert!(next.iter().all(|item| (0.4..0.6).contains(&item.probability)));
    }

    #[test]
    fn successors_go_on_down_the_chain_with_their_gaps_and_skip_what_was_touched() {
        let model = taught(&[walk("app", &SERVE)]);
        let mut predictor = Predictor::new(model);
        observe(&mut predictor, &["lib/config", "bin/app"]);
        let next = predictor.successors(9);
        assert_eq!(names(&next), ["/lib/common", "/etc/serve", "/lib/serve", "/lib/http"]);
        assert_eq!(next.iter().map(|item| item.time_us).collect::<Vec<_>>(), [1000, 2000, 4000, 5000]);
        assert_eq!(names(&predictor.successors(1)), ["/lib/common"]);
        assert_eq!(names(&predictor.successors(0)), [""; 0]);
    }

    #[test]
    fn after_a_touch_that_no_launch_made_the_rest_of_the_list_follows() {
        let model = taught(&[walk("app", &SERVE)]);
        let mut predictor = Predictor::new(model);
        observe(&mut predictor, &["bin/app", "lib/common", "home/new"]);
        assert_eq!(names(&predictor.successors(2)), ["/etc/serve", "/lib/config"]);
        assert_eq!(predictor.successors(2)[0].time_us, 1000);
    }

    #[test]
    fn interleaved_processes_are_followed_apart() {
        let two = |steps: [(u16, &'static str); 8]| trace("app", &steps.map(|(process, path)| (0, process, path, None)));
        let model = taught(&[two([(0, "a1"), (0, "a2"), (0, "a3"), (0, "a4"), (1, "b1"), (1, "b2"), (1, "b3"), (1, "b4")])]);
        let mut predictor = Predictor::new(model);
        observe(&mut predictor, &["a1", "b1", "a2", "b2"]);
        assert_eq!(names(&predictor.successors(1)), ["/b3"]);
        observe(&mut predictor, &["a3"]);
        assert_eq!(names(&predictor.successors(1)), ["/a4"]);
    }

    #[test]
    fn an_empty_model_predicts_nothing() {
        let mut predictor = Predictor::new(Arc::default());
        observe(&mut predictor, &["a"]);
        assert!(predictor.successors(5).is_empty());
        assert!(crate::launch_list(&Model::default(), None, "x86_64").is_empty());
    }

    #[test]
    fn a_model_that_breaks_its_rules_does_no_harm() {
        let mut model = Model::clone(&taught(&[walk("app", &SERVE), walk("app", &MIGRATE)]));
        model.order1.reverse();
        model.order2.iter_mut().for_each(|step| step.to = 99);
        model.entry_points[0].launch.extend_from_within(..);
        model.entry_points[0].launch[0].state = 99;
        model.states[1].path = 99;
        let mut predictor = Predictor::new(Arc::new(model.clone()));
        observe(&mut predictor, &SERVE);
        predictor.successors(99);
        crate::launch_list(&model, None, "");
        let mut other = Model::default();
        crate::merge(&mut other, &model, &Params::default());
        crate::samples::check(&other, &Params::default());
    }
}
