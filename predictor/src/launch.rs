//! What a launch will touch, before it began.

use layer_format::LayerPath;
use layer_format::model::{EntryPoint, Model};
use layer_format::trace::{Touch, foreign_entry_point};

/// Added to a time before it is divided by a probability (see [`launch_list`]): what is touched at once, but seldom,
/// goes behind what is touched surely and soon.
const PATIENCE_US: f64 = 100_000.0;

/// Something that will be touched.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// Which layer of the image, 0 the lowest.
    pub layer: u8,
    /// Path in the layer.
    pub path: LayerPath,
    /// What of it.
    pub touch: Touch,
    /// How likely it is touched in this launch, `0.0..=1.0`.
    pub probability: f32,
    /// When, in microseconds: since the start of the launch, or for successors of a touch since that touch.
    pub time_us: u32,
}

/// What a launch of `entry_point` touches, in sending order: by expected time of the first touch, divided by
/// probability. An unknown or absent entry point gets the list of the heaviest one of that architecture, or else of
/// the heaviest of all. Empty if the model knows no launch.
pub fn launch_list(model: &Model, entry_point: Option<&str>, architecture: &str) -> Vec<Predicted> {
    let items = find(model, entry_point, architecture).map(|entry| items(model, entry)).unwrap_or_default();
    items.iter().filter_map(|item| predicted(model, item.state, item.probability, item.time_us)).collect()
}

/// A launch list's item.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) state: u32,
    pub(crate) probability: f32,
    pub(crate) time_us: u32,
}

/// The entry point whose list [`launch_list`] gives.
pub(crate) fn find<'a>(model: &'a Model, entry_point: Option<&str>, architecture: &str) -> Option<&'a EntryPoint> {
    let same_architecture = || model.entry_points.iter().filter(|entry| entry.architecture == architecture);
    let named = |name: &str| same_architecture().find(|entry| entry.name == name);
    // A program that the image does not have is learned under another name.
    let exact = entry_point.and_then(|name| named(name).or_else(|| named(&foreign_entry_point(name))));
    exact.or_else(|| heaviest(same_architecture())).or_else(|| heaviest(model.entry_points.iter()))
}

/// The heaviest; of equals the first.
fn heaviest<'a>(entries: impl Iterator<Item = &'a EntryPoint>) -> Option<&'a EntryPoint> {
    entries.reduce(|best, entry| if entry.weight > best.weight { entry } else { best })
}

/// The items of an entry point in sending order, no state twice.
pub(crate) fn items(model: &Model, entry: &EntryPoint) -> Vec<Item> {
    let mut has = vec![false; model.states.len()];
    let mut items: Vec<(f64, Item)> = Vec::with_capacity(entry.launch.len());
    for item in &entry.launch {
        let probability = share(item.count, entry.weight);
        let Some(has) = has.get_mut(item.state as usize) else { continue };
        if probability > 0.0 && !std::mem::replace(has, true) {
            let key = (f64::from(item.time_us) + PATIENCE_US) / f64::from(probability);
            items.push((key, Item { state: item.state, probability, time_us: item.time_us }));
        }
    }
    items.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    items.into_iter().map(|(_, item)| item).collect()
}

/// A share of a whole, `0.0..=1.0` whatever is given.
pub(crate) fn share(part: f32, whole: f32) -> f32 {
    if part > 0.0 && whole > 0.0 { (part / whole).min(1.0) } else { 0.0 }
}

/// The prediction of a state.
pub(crate) fn predicted(model: &Model, state: u32, probability: f32, time_us: u32) -> Option<Predicted> {
    let state = model.states.get(state as usize)?;
    let path = model.paths.get(state.path as usize)?.clone();
    Some(Predicted { layer: state.layer, path, touch: state.touch, probability, time_us })
}
