//! A model: what was learned from the traces of many runs of an image.
//!
//! Counts, not probabilities, so that one more trace can be merged in; they decay and are pruned by the `predictor`
//! crate, which gives these numbers their meaning. The same bytes are stored, served and used by clients. A model is
//! advice: a wrong or hostile one can cost bytes within the waste budget, never correctness.

use crate::digest::Digest;
use crate::path::LayerPath;
use crate::trace::Touch;

mod encoding;

/// Most states of a model.
pub const MAX_STATES: usize = 1 << 16;
/// Most entry points of a model.
pub const MAX_ENTRY_POINTS: usize = 64;
/// Most variants of an entry point.
pub const MAX_VARIANTS: usize = 8;
/// Most transitions of each order.
pub const MAX_TRANSITIONS: usize = 1 << 18;
/// Most bytes of an encoded model.
pub const MAX_MODEL_LEN: usize = 4 << 20;

/// A thing that can be touched: a state of the Markov chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// Which layer of the image, 0 the lowest.
    pub layer: u8,
    /// Index into [`Model::paths`].
    pub path: u32,
    /// What is touched.
    pub touch: Touch,
}

/// A state's place in the launches of a variant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaunchItem {
    /// Index into [`Model::states`].
    pub state: u32,
    /// Decayed number of launches that touched it.
    pub count: f32,
    /// Typical time of its first touch, in microseconds since the start.
    pub time_us: u32,
}

/// Launches that touch nearly the same: what arguments, data or the hour of the day make of an entry point. Nothing of those is recorded, so a
/// variant has no name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variant {
    /// Decayed number of launches.
    pub weight: f32,
    /// Number of launches, not decayed.
    pub launches: u64,
    /// What they touch, ascending by time.
    pub launch: Vec<LaunchItem>,
}

/// The launches of one startup file's program, or of one trigger.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EntryPoint {
    /// As in [`crate::trace::Trace::entry_point`].
    pub name: String,
    /// Processor architecture.
    pub architecture: String,
    /// Number of launches, not decayed, also those of variants that were forgotten.
    pub launches: u64,
    /// Its kinds of launches, at most [`MAX_VARIANTS`].
    pub variants: Vec<Variant>,
}

impl EntryPoint {
    /// An entry point all of whose launches are of one kind.
    pub fn of_one_kind(name: String, architecture: String, weight: f32, launch: Vec<LaunchItem>) -> Self {
        let launches = (weight.ceil() as u64).min(u64::MAX >> 8);
        Self { name, architecture, launches, variants: vec![Variant { weight, launches, launch }] }
    }

    /// The items of all variants; a state that several touch comes several times.
    pub fn items(&self) -> impl Iterator<Item = &LaunchItem> {
        self.variants.iter().flat_map(|variant| &variant.launch)
    }

    /// Decayed number of launches.
    pub fn weight(&self) -> f32 {
        self.variants.iter().map(|variant| variant.weight).sum()
    }
}

/// After `from` (and, for order 2, `before` it), `to` was touched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// The state before `from`, for transitions of order 2; equal to `from` for order 1.
    pub before: u32,
    /// The last state.
    pub from: u32,
    /// The next state.
    pub to: u32,
    /// Decayed number of times.
    pub count: f32,
    /// Typical time between the two, in microseconds.
    pub gap_us: u32,
}

/// A model of one image's repository.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// The image of the newest trace in it.
    pub image: Option<Digest>,
    /// Number of traces merged so far, not decayed.
    pub traces: u64,
    /// Paths, ascending.
    pub paths: Vec<LayerPath>,
    /// States, ascending, no state twice.
    pub states: Vec<State>,
    /// Entry points.
    pub entry_points: Vec<EntryPoint>,
    /// Transitions of order 1, ascending by (from, to).
    pub order1: Vec<Transition>,
    /// Transitions of order 2, ascending by (before, from, to).
    pub order2: Vec<Transition>,
}
