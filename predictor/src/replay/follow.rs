//! What goes with an object that was asked for.

use std::sync::Arc;

use layer_format::trace::{Touch, Trace};

use super::Policy;
use super::link::{Link, METERED_PROBABILITY};
use super::travel::{Place, Travel};
use crate::launch::Predicted;
use crate::predict::Predictor;

/// Follows the launch as the policy does.
#[derive(Debug)]
pub(super) struct Follower<'a> {
    kind: Kind,
    link: Link,
    travel: &'a Travel,
}

#[derive(Debug)]
enum Kind {
    Nothing,
    Readahead(u32),
    Model { predictor: Box<Predictor>, successors: usize, metered: bool },
}

impl<'a> Follower<'a> {
    pub(super) fn new(policy: &Policy<'_>, trace: &Trace, link: Link, travel: &'a Travel) -> Self {
        let kind = match policy {
            Policy::Readahead { buckets } => Kind::Readahead(*buckets),
            Policy::Ours { model, successors, metered } => {
                let predictor = Predictor::for_launch(Arc::clone(model), Some(&trace.entry_point), &trace.architecture);
                Kind::Model { predictor: Box::new(predictor), successors: *successors, metered: *metered }
            }
            Policy::None | Policy::StaticList(_) | Policy::Oracle => Kind::Nothing,
        };
        Self { kind, link, travel }
    }

    /// The application touches a place.
    pub(super) fn observe(&mut self, place: &Place) {
        if let Kind::Model { predictor, .. } = &mut self.kind {
            predictor.observe(place.layer, &place.path, place.touch);
        }
    }

    /// What is sent after the objects of `place`, which was asked for and is the last place observed.
    pub(super) fn more(&self, place: &Place) -> Vec<Place> {
        match (&self.kind, place.touch) {
            (Kind::Readahead(buckets), Touch::Data { bucket }) => {
                let end = self.travel.buckets(place.layer, &place.path);
                let following = (1..=*buckets).filter_map(|ahead| bucket.checked_add(ahead)).take_while(|bucket| *bucket < end);
                following.map(|bucket| Place { touch: Touch::Data { bucket }, ..place.clone() }).collect()
            }
            (Kind::Model { predictor, successors, metered }, _) => admitted(predictor.successors(*successors), self.link, *metered, self.travel),
            _ => Vec::new(),
        }
    }
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
