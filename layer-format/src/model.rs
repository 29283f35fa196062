//! A model: what was learned from the traces of many runs of an image.
//!
//! Counts, not probabilities, so that one more trace can be merged in; they decay and are pruned by the `predictor`
//! crate, which gives these numbers their meaning. The same bytes are stored, served and used by clients. A model is
//! advice: a wrong or hostile one can cost bytes within the waste budget, never correctness.

use crate::codec::{FormatError, Reader, Writer};
use crate::path::LayerPath;
use crate::trace::{MAX_ENTRY_POINT_LEN, Touch, read_paths, read_touch, text};
use crate::{digest::Digest, entry::put_path};

const MAGIC: &[u8; 4] = b"TBMD";
const VERSION: u8 = 1;

/// Most states of a model.
pub const MAX_STATES: usize = 1 << 16;
/// Most entry points of a model.
pub const MAX_ENTRY_POINTS: usize = 64;
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

/// A state's place in the launches of an entry point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaunchItem {
    /// Index into [`Model::states`].
    pub state: u32,
    /// Decayed number of launches that touched it.
    pub count: f32,
    /// Typical time of its first touch, in microseconds since the start.
    pub time_us: u32,
}

/// What launches of one entry point touch, in the order in which they should arrive.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryPoint {
    /// As in [`crate::trace::Trace::entry_point`].
    pub name: String,
    /// Processor architecture.
    pub architecture: String,
    /// Decayed number of launches.
    pub weight: f32,
    /// The launch list.
    pub launch: Vec<LaunchItem>,
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

impl Model {
    /// Its bytes: header, image, paths, states, entry points, transitions of order 1 and 2. Counts are 32-bit IEEE
    /// numbers; indices of sorted lists are written as differences.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.push(self.image.is_some().into());
        if let Some(image) = &self.image {
            out.extend_from_slice(image.as_bytes());
        }
        out.put_varint(self.traces);
        out.put_varint(self.paths.len() as u64);
        let mut previous: &[u8] = b"";
        for path in &self.paths {
            put_path(&mut out, previous, path.as_bytes());
            previous = path.as_bytes();
        }
        out.put_varint(self.states.len() as u64);
        for state in &self.states {
            out.push(state.layer);
            out.put_varint(state.path.into());
            out.put_varint(state.touch.to_number());
        }
        out.put_varint(self.entry_points.len() as u64);
        for entry in &self.entry_points {
            out.put_sized(entry.name.as_bytes());
            out.put_sized(entry.architecture.as_bytes());
            out.extend_from_slice(&entry.weight.to_bits().to_le_bytes());
            out.put_varint(entry.launch.len() as u64);
            let mut time_us = 0i64;
            for item in &entry.launch {
                out.put_varint(item.state.into());
                out.extend_from_slice(&item.count.to_bits().to_le_bytes());
                out.put_signed(i64::from(item.time_us) - time_us);
                time_us = item.time_us.into();
            }
        }
        for (order, transitions) in [(1, &self.order1), (2, &self.order2)] {
            out.put_varint(transitions.len() as u64);
            let mut from = 0i64;
            for transition in transitions {
                let first = if order == 2 { transition.before } else { transition.from };
                out.put_signed(i64::from(first) - from);
                from = first.into();
                if order == 2 {
                    out.put_signed(i64::from(transition.from) - from);
                }
                out.put_signed(i64::from(transition.to) - i64::from(transition.from));
                out.extend_from_slice(&transition.count.to_bits().to_le_bytes());
                out.put_varint(transition.gap_us.into());
            }
        }
        out
    }

    /// Parses a model.
    ///
    /// # Errors
    /// If the bytes are not one, a bound is exceeded, or an index points nowhere.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "model";
        if bytes.len() > MAX_MODEL_LEN {
            return Err(FormatError::TooLarge { what, value: bytes.len() as u64, max: MAX_MODEL_LEN as u64 });
        }
        let mut reader = Reader::new(what, bytes);
        reader.header(MAGIC, VERSION)?;
        let image = match reader.u8()? {
            0 => None,
            1 => Some(reader.digest()?),
            _ => return Err(FormatError::invalid(what, "an unknown flag is set")),
        };
        let traces = reader.varint(u64::MAX >> 8)?;
        let paths = read_paths(&mut reader)?;
        if !paths.is_sorted() {
            return Err(FormatError::invalid(what, "paths ascend"));
        }
        let count = reader.count(MAX_STATES as u64, 3)?;
        let mut states: Vec<State> = Vec::with_capacity(count);
        for _ in 0..count {
            let (layer, path) = (reader.u8()?, reader.varint(u32::MAX.into())? as u32);
            let state = State { layer, path, touch: read_touch(&mut reader)? };
            if state.path as usize >= paths.len() || states.last().is_some_and(|last| *last >= state) {
                return Err(FormatError::invalid(what, "states ascend, and name a path"));
            }
            states.push(state);
        }
        let check_state = |index: i64| match usize::try_from(index) {
            Ok(at) if at < states.len() => Ok(at as u32),
            _ => Err(FormatError::invalid(what, "an index names a state")),
        };
        let count = reader.count(MAX_ENTRY_POINTS as u64, 7)?;
        let mut entry_points = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(what, reader.sized(MAX_ENTRY_POINT_LEN)?)?;
            let architecture = text(what, reader.sized(64)?)?;
            let weight = reader.f32_count()?;
            let items = reader.count(MAX_STATES as u64, 6)?;
            let mut launch = Vec::with_capacity(items);
            let mut time_us = 0i64;
            for _ in 0..items {
                let state = check_state(reader.varint(u32::MAX.into())? as i64)?;
                let count = reader.f32_count()?;
                time_us = time_us.saturating_add(reader.signed()?);
                let time_us = u32::try_from(time_us).map_err(|_| FormatError::invalid(what, "a time is a 32-bit number"))?;
                launch.push(LaunchItem { state, count, time_us });
            }
            entry_points.push(EntryPoint { name, architecture, weight, launch });
        }
        let mut orders = [Vec::new(), Vec::new()];
        for (order, transitions) in (1..).zip(&mut orders) {
            let count = reader.count(MAX_TRANSITIONS as u64, 7)?;
            transitions.reserve_exact(count);
            let mut first = 0i64;
            for _ in 0..count {
                first = first.saturating_add(reader.signed()?);
                let before = check_state(first)?;
                let from = if order == 2 { check_state(first.saturating_add(reader.signed()?))? } else { before };
                let to = check_state(i64::from(from).saturating_add(reader.signed()?))?;
                let count = reader.f32_count()?;
                transitions.push(Transition { before, from, to, count, gap_us: reader.varint(u32::MAX.into())? as u32 });
            }
        }
        reader.finish()?;
        let [order1, order2] = orders;
        Ok(Self { image, traces, paths, states, entry_points, order1, order2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> Model {
        let paths = ["a", "b/c"].map(|p| LayerPath::new(p).unwrap()).to_vec();
        let states = vec![
            State { layer: 0, path: 0, touch: Touch::Meta },
            State { layer: 0, path: 1, touch: Touch::Data { bucket: 3 } },
            State { layer: 1, path: 1, touch: Touch::Meta },
        ];
        let launch = vec![LaunchItem { state: 2, count: 1.0, time_us: 70 }, LaunchItem { state: 0, count: 0.5, time_us: 30 }];
        let entry_points = vec![EntryPoint { name: "sh".into(), architecture: "x86_64".into(), weight: 1.5, launch }];
        let order1 = vec![Transition { before: 0, from: 0, to: 1, count: 2.0, gap_us: 5 }, Transition { before: 2, from: 2, to: 0, count: 1.0, gap_us: 0 }];
        let order2 = vec![Transition { before: 1, from: 0, to: 2, count: 0.25, gap_us: 9 }];
        Model { image: Some(Digest::of(b"i")), traces: 3, paths, states, entry_points, order1, order2 }
    }

    #[test]
    fn golden_model() {
        let model = sample();
        let bytes = model.encode();
        assert_eq!(Model::decode(&bytes), Ok(model));
        assert_eq!(Digest::of(&bytes).to_hex(), "caa60f91aa23d62482e9ad7cc534e887f2f98b2557df60c3b109965a851c8f24");
    }

    #[test]
    fn no_prefix_of_a_model_is_a_model_and_no_index_points_nowhere() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(Model::decode(&bytes[..len]).is_err());
        }
        let mut wrong = sample();
        wrong.order2[0].to = 3;
        assert!(Model::decode(&wrong.encode()).is_err());
        wrong = sample();
        wrong.entry_points[0].weight = f32::NAN;
        assert!(Model::decode(&wrong.encode()).is_err());
    }
}
