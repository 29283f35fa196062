//! What goes with an object that was asked for, and what is planned anew.

use std::collections::HashMap;
use std::sync::Arc;

use layer_format::LayerPath;
use layer_format::model::{Model, State};
use layer_format::trace::{BUCKET_LEN, Touch, Trace};

use super::Policy;
use super::link::{Link, METERED_PROBABILITY};
use super::schedule::ScheduledTouch;
use super::travel::{Place, Travel};
use crate::launch::Predicted;
use crate::predict::Predictor;

/// What lies beside a miss that no model knows, as the client guesses it: how likely a file that is read in order goes on, a
/// small file is read whole, the start of a file is followed by more, and any other place.
const IN_ORDER: f32 = 0.8;
const WHOLE_FILE: f32 = 0.99;
const FROM_START: f32 = 0.4;
const ANYWHERE: f32 = 0.15;
/// Files up to this length are read whole, and a read so near behind the one before continues it.
const SMALL_FILE: u64 = 256 << 10;
const NEAR: u64 = 256 << 10;
/// Most bytes that come along from behind a place that is neither.
const ANYWHERE_BYTES: u64 = 512 << 10;
/// Bounds of what comes along otherwise, which is what arrives in a round trip.
const READ_AHEAD_BYTES: std::ops::RangeInclusive<u64> = 32 << 10..=4 << 20;
/// Tree objects that come along with one that is missed.
const NEXT_NODES: usize = 16;

/// Follows the launch as the policy does.
#[derive(Debug)]
pub(super) struct Follower<'a> {
    kind: Kind,
    link: Link,
    travel: &'a Travel,
    /// Where the last read of each file ended, as a bucket.
    ends: HashMap<(u8, LayerPath), u32>,
}

#[derive(Debug)]
enum Kind {
    Nothing,
    Readahead(u32),
    Guess,
    Model { model: Arc<Model>, predictor: Box<Predictor>, successors: usize, metered: bool, generation: u64 },
}

impl<'a> Follower<'a> {
    pub(super) fn new(policy: &Policy<'_>, trace: &Trace, link: Link, travel: &'a Travel) -> Self {
        let kind = match policy {
            Policy::Readahead { buckets } => Kind::Readahead(*buckets),
            Policy::OnDemand => Kind::Guess,
            Policy::Ours { model, successors, metered } => {
                let predictor = Box::new(Predictor::for_launch(Arc::clone(model), Some(&trace.entry_point), &trace.architecture));
                let generation = predictor.generation();
                Kind::Model { model: Arc::clone(model), predictor, successors: *successors, metered: *metered, generation }
            }
            Policy::None | Policy::StaticList(_) | Policy::Oracle => Kind::Nothing,
        };
        Self { kind, link, travel, ends: HashMap::new() }
    }

    /// The application touches something. If the launch turned out to be of another kind: what is to be planned instead.
    pub(super) fn observe(&mut self, touch: &ScheduledTouch) -> Option<Vec<Place>> {
        let Kind::Model { predictor, metered, generation, .. } = &mut self.kind else { return None };
        touch.places.iter().for_each(|place| predictor.observe(place.layer, &place.path, place.touch));
        if predictor.generation() == *generation {
            return None;
        }
        *generation = predictor.generation();
        Some(admitted(predictor.remaining(), self.link, *metered, self.travel))
    }

    /// What is sent after the objects of a touch that were asked for; it is the last one observed.
    pub(super) fn more(&mut self, touch: &ScheduledTouch) -> Vec<Place> {
        let Some(last) = touch.places.last() else { return Vec::new() };
        match &self.kind {
            Kind::Nothing => Vec::new(),
            Kind::Readahead(buckets) => self.following(last, (*buckets).into()),
            Kind::Guess => self.guess(last),
            Kind::Model { model, predictor, successors, metered, .. } if knows(model, last) => {
                admitted(predictor.successors(*successors), self.link, *metered, self.travel)
            }
            Kind::Model { .. } => self.guess(last),
        }
    }

    /// Notes where a read ends.
    pub(super) fn read(&mut self, touch: &ScheduledTouch) {
        if let Some(Place { layer, path, touch: Touch::Data { bucket } }) = touch.places.last() {
            self.ends.insert((*layer, path.clone()), *bucket);
        }
    }

    fn guess(&self, place: &Place) -> Vec<Place> {
        let Touch::Data { bucket } = place.touch else { return self.travel.next_entries(place, NEXT_NODES) };
        let read_ahead = self.link.in_flight_bytes().clamp(*READ_AHEAD_BYTES.start(), *READ_AHEAD_BYTES.end());
        let before = self.ends.get(&(place.layer, place.path.clone()));
        let len = u64::from(self.travel.buckets(place.layer, &place.path)) * BUCKET_LEN;
        let (probability, bytes) = match before {
            Some(end) if u64::from(bucket.abs_diff(*end)) * BUCKET_LEN <= NEAR => (IN_ORDER, read_ahead),
            _ if len <= SMALL_FILE => (WHOLE_FILE, read_ahead.max(SMALL_FILE)),
            None if bucket == 0 => (FROM_START, read_ahead),
            _ => (ANYWHERE, read_ahead.min(ANYWHERE_BYTES)),
        };
        if probability <= self.link.threshold(BUCKET_LEN / 2) { Vec::new() } else { self.following(place, bytes.div_ceil(BUCKET_LEN)) }
    }

    /// Up to so many buckets that follow a place in its file.
    fn following(&self, place: &Place, count: u64) -> Vec<Place> {
        let Touch::Data { bucket } = place.touch else { return Vec::new() };
        let end = u64::from(self.travel.buckets(place.layer, &place.path)).min(u64::from(bucket) + 1 + count);
        (u64::from(bucket) + 1..end).map(|bucket| Place { touch: Touch::Data { bucket: bucket as u32 }, ..place.clone() }).collect()
    }
}

fn knows(model: &Model, place: &Place) -> bool {
    let Ok(path) = model.paths.binary_search(&place.path) else { return false };
    model.states.binary_search(&State { layer: place.layer, path: path as u32, touch: place.touch }).is_ok()
}

/// Predictions that are worth sending.
pub(super) fn admitted(predictions: Vec<Predicted>, link: Link, metered: bool, travel: &Travel) -> Vec<Place> {
    let least = if metered { METERED_PROBABILITY } else { 0.0 };
    let places = predictions.into_iter().map(|item| (item.probability, Place { layer: item.layer, path: item.path, touch: item.touch }));
    let worth = places.filter(|(probability, place)| {
        // The way to an entry is shared with so many others that it hardly counts.
        let bytes = travel.needed(place).last().map_or(0, |object| travel.object(object).wire_bytes);
        *probability >= least && *probability > link.threshold(bytes.into())
    });
    worth.map(|(_, place)| place).collect()
}
