//! Lists as other systems record them: what one run touched first, in order.

use std::collections::HashSet;

use layer_format::trace::{Touch, Trace};

use super::schedule::Schedule;
use super::travel::{Place, Travel};

/// The places that a run touched, in the order of their first touch.
pub fn first_touches(trace: &Trace) -> Vec<Place> {
    Schedule::of(trace).touches.into_iter().flat_map(|touch| touch.places).collect()
}

/// The whole of each file that a run read from, in the order of the files' first touch: what prefetch lists of files, and
/// layers with the touched files put first, send.
pub fn whole_files(trace: &Trace, travel: &Travel) -> Vec<Place> {
    let mut seen = HashSet::new();
    let mut places = Vec::new();
    for place in first_touches(trace) {
        if place.touch == Touch::Meta {
            places.push(place);
        } else if seen.insert((place.layer, place.path.clone())) {
            let buckets = 0..travel.buckets(place.layer, &place.path);
            places.extend(buckets.map(|bucket| Place { touch: Touch::Data { bucket }, ..place.clone() }));
        }
    }
    places
}
