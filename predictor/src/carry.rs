//! A model for the next version of an image, before its first launch.
//!
//! States are (layer, path, bucket). Where the next version has the same content under the same path, the state is right
//! as it is. [`carry_over`] rewrites all others given what became of each: a file that was renamed has another path, one
//! whose content changed has its bytes elsewhere ([`Shifts`]), one that is gone is left out. Finding out what became of a
//! file needs the trees and recipes of both versions, and is the caller's; [`name_stem`] helps with names that hold a
//! version or a hash.

mod names;
mod shifts;

use std::collections::BTreeMap;

use layer_format::model::{EntryPoint, LaunchItem, Model, State, Transition, Variant};
use layer_format::trace::Touch;
use layer_format::{Digest, LayerPath};

use crate::draft::Draft;
use crate::params::Params;
use crate::prune::prune;

pub use names::name_stem;
pub use shifts::Shifts;

/// What became of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carried {
    /// It is what it was.
    Same,
    /// These touches, in the order in which they are made; none: it is gone.
    Became(Vec<(u8, LayerPath, Touch)>),
}

/// The model for `image`, the next version. `became` is asked once for each state. States that become one are one from
/// then on: as likely as the likelier, as early as the earlier. States that become several are touched one after the
/// other.
pub fn carry_over(model: &Model, image: Digest, params: &Params, mut became: impl FnMut(u8, &LayerPath, Touch) -> Carried) -> Model {
    let mut places = Places::default();
    let root = LayerPath::root();
    for state in &model.states {
        let path = model.paths.get(state.path as usize).unwrap_or(&root);
        match became(state.layer, path, state.touch) {
            Carried::Same => places.add(vec![(state.layer, path.clone(), state.touch)]),
            Carried::Became(touches) => places.add(touches),
        }
    }
    let mut carried = Model { image: Some(image), traces: model.traces, ..Model::default() };
    carried.entry_points = model.entry_points.iter().map(|entry| places.entry_point(entry)).collect();
    carried.order1 = places.order1(model);
    carried.order2 = model.order2.iter().filter_map(|step| places.step(step)).collect();
    (carried.paths, carried.states) = (places.paths, places.states);
    // The draft takes states in any order, and adds up transitions that are now the same.
    prune(&mut Draft::new(&carried), &params.bounded(), 1.0)
}

/// The states of the carried model, in order of arrival, and which of them each old state became.
#[derive(Debug, Default)]
struct Places {
    paths: Vec<LayerPath>,
    states: Vec<State>,
    numbers: BTreeMap<(u8, LayerPath, Touch), u32>,
    of_old: Vec<Vec<u32>>,
}

impl Places {
    fn add(&mut self, touches: Vec<(u8, LayerPath, Touch)>) {
        let mut became = Vec::with_capacity(touches.len());
        for (layer, path, touch) in touches {
            let next = self.states.len() as u32;
            let number = *self.numbers.entry((layer, path.clone(), touch)).or_insert(next);
            if number == next {
                self.states.push(State { layer, path: next, touch });
                self.paths.push(path);
            }
            became.push(number);
        }
        self.of_old.push(became);
    }

    fn of(&self, old: u32) -> &[u32] {
        self.of_old.get(old as usize).map_or(&[], Vec::as_slice)
    }

    fn entry_point(&self, entry: &EntryPoint) -> EntryPoint {
        EntryPoint { variants: entry.variants.iter().map(|variant| self.variant(variant)).collect(), ..entry.clone() }
    }

    fn variant(&self, variant: &Variant) -> Variant {
        let mut items: BTreeMap<u32, LaunchItem> = BTreeMap::new();
        for item in &variant.launch {
            for (later, state) in (0..).zip(self.of(item.state)) {
                let new = LaunchItem { state: *state, count: item.count, time_us: item.time_us.saturating_add(later) };
                let known = items.entry(*state).or_insert(new);
                known.count = known.count.max(new.count);
                known.time_us = known.time_us.min(new.time_us);
            }
        }
        Variant { launch: items.into_values().collect(), ..variant.clone() }
    }

    fn order1(&self, model: &Model) -> Vec<Transition> {
        let mut visits = vec![0f32; model.states.len()];
        for item in model.entry_points.iter().flat_map(EntryPoint::items) {
            if let Some(visits) = visits.get_mut(item.state as usize) {
                *visits += item.count;
            }
        }
        let within = (0u32..).zip(&self.of_old).flat_map(|(old, became)| {
            let count = visits[old as usize];
            became.windows(2).filter_map(move |pair| transition(pair[0], pair[0], pair[1], count, 0))
        });
        let between = model.order1.iter().filter_map(|step| {
            let (from, to) = (*self.of(step.from).last()?, *self.of(step.to).first()?);
            transition(from, from, to, step.count, step.gap_us)
        });
        within.chain(between).collect()
    }

    /// A transition of order 2; none through a state that became several, within which order 1 leads on.
    fn step(&self, step: &Transition) -> Option<Transition> {
        let ([before], [from], Some(to)) = (self.of(step.before), self.of(step.from), self.of(step.to).first()) else { return None };
        (before != from).then(|| transition(*before, *from, *to, step.count, step.gap_us))?
    }
}

fn transition(before: u32, from: u32, to: u32, count: f32, gap_us: u32) -> Option<Transition> {
    (from != to).then_some(Transition { before, from, to, count, gap_us })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{any_trace, check, counts, trace, walk};
    use crate::{launch_list, learn};
    use proptest::prelude::*;

    fn to(path: &str) -> Carried {
        Carried::Became(vec![(1, LayerPath::new(path).unwrap(), Touch::Meta)])
    }

    #[test]
    fn paths_that_stay_are_predicted_in_the_next_version_renamed_ones_move_and_lost_ones_go() {
        let params = Params::default();
        let mut model = Model::default();
        learn(&mut model, &walk("app", &["bin/app", "lib/app-1.0.so", "etc/app", "lib/old"]), &params);
        let next = Digest::of(b"version 2");
        let became = |_: u8, path: &LayerPath, _| match path.name() {
            b"app-1.0.so" => to("lib/app-1.1.so"),
            b"old" => Carried::Became(Vec::new()),
            _ => Carried::Same,
        };
        let carried = carry_over(&model, next, &params, became);
        check(&carried, &params);
        assert_eq!((carried.image, carried.traces), (Some(next), 1));
        let list: Vec<String> = launch_list(&carried, Some("app"), "x86_64").iter().map(|item| format!("{}{}", item.layer, item.path)).collect();
        assert_eq!(list, ["0/bin/app", "1/lib/app-1.1.so", "0/etc/app"]);
        let same = carry_over(&model, next, &params, |_, _, _| Carried::Same);
        assert_eq!(same, Model { image: Some(next), ..model });
    }

    #[test]
    fn two_paths_that_become_one_are_as_likely_as_the_likelier() {
        let params = Params { half_life: f32::INFINITY, ..Params::default() };
        let mut model = Model::default();
        for _ in 0..3 {
            learn(&mut model, &walk("app", &["a", "c"]), &params);
        }
        learn(&mut model, &walk("app", &["a", "b", "c"]), &params);
        let merge_into = |target: &'static str| {
            carry_over(&model, Digest::of(b"2"), &params, move |_, path, _| if path.name() == b"b" { to(target) } else { Carried::Same })
        };
        let merged = merge_into("c");
        check(&merged, &params);
        assert_eq!(launch_list(&merged, Some("app"), "x86_64").len(), 3, "layer 1 is another place than layer 0");
        let onto = carry_over(&model, Digest::of(b"2"), &params, |_, path, touch| match path.name() {
            b"b" => Carried::Became(vec![(0, LayerPath::new("c").unwrap(), touch)]),
            _ => Carried::Same,
        });
        let list = launch_list(&onto, Some("app"), "x86_64");
        assert_eq!((list.len(), list[0].probability, list[1].probability), (2, 1.0, 1.0));
    }

    #[test]
    fn a_state_that_becomes_several_is_followed_through_all_of_them() {
        let params = Params::default();
        let mut model = Model::default();
        learn(&mut model, &trace("app", &[(0, 0, "a", Some(0)), (10, 0, "a", Some(1)), (20, 0, "b", None)]), &params);
        // Every bucket moved by half of one.
        let carried = carry_over(&model, Digest::of(b"2"), &params, |layer, path, touch| match touch {
            Touch::Data { bucket } => Carried::Became((bucket..bucket + 2).map(|bucket| (layer, path.clone(), Touch::Data { bucket })).collect()),
            Touch::Meta => Carried::Same,
        });
        check(&carried, &params);
        let list: Vec<u64> = launch_list(&carried, Some("app"), "x86_64").iter().map(|item| item.touch.to_number()).collect();
        assert_eq!(list, [1, 2, 3, 0]);
        let steps = crate::samples::transitions(&carried);
        assert_eq!(steps.keys().map(String::as_str).collect::<Vec<_>>(), ["0/a#1 > 0/a#2", "0/a#2 > 0/a#3", "0/a#3 > 0/b#0"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn learning_and_carrying_is_learning_renamed_traces(traces in proptest::collection::vec(any_trace(), 1..6), renames in proptest::collection::vec(proptest::option::of(0usize..1000), 40)) {
            // Renames that keep distinct paths distinct: `None` stays, a number is the new name's.
            let renamed = |path: &LayerPath| {
                let text = path.to_string();
                let number: usize = text.rsplit('f').next().unwrap().parse().unwrap();
                renames[number].map(|new| LayerPath::new(format!("moved/{number}-{new}")).unwrap())
            };
            let params = Params { min_probability: 0.0, ..Params::default() };
            let (mut model, mut expected) = (Model::default(), Model::default());
            for trace in &traces {
                learn(&mut model, trace, &params);
                let mut other = trace.clone();
                other.paths.iter_mut().for_each(|path| if let Some(new) = renamed(path) { *path = new });
                learn(&mut expected, &other, &params);
            }
            let carried = carry_over(&model, expected.image.unwrap(), &params, |layer, path, touch| match renamed(path) {
                Some(new) => Carried::Became(vec![(layer, new, touch)]),
                None => Carried::Same,
            });
            check(&carried, &params);
            prop_assert_eq!(counts(&carried), counts(&expected));
        }
    }
}
