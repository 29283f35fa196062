//! The bytes of a model: docs/formats/model.md.
//!
//! Version 2 has variants, and leaves out counts that repeat: nearly all items of a variant are touched by all its launches, and
//! neighbouring transitions were mostly seen as often. That halves a model. Version 1 is read as one variant for each entry point.

use super::{EntryPoint, LaunchItem, MAX_ENTRY_POINTS, MAX_MODEL_LEN, MAX_STATES, MAX_TRANSITIONS, MAX_VARIANTS, Model, State, Transition, Variant};
use crate::codec::{FormatError, Reader, Writer};
use crate::entry::put_path;
use crate::trace::{MAX_ENTRY_POINT_LEN, read_paths, read_touch, text};

const MAGIC: &[u8; 4] = b"TBMD";
const VERSION: u8 = 2;
const WHAT: &str = "model";
/// Longest name of a processor architecture.
const MAX_ARCHITECTURE_LEN: usize = 64;
/// Most launches that an entry point counts, and most traces of a model.
const MAX_TRACES: u64 = u64::MAX >> 8;

impl Model {
    /// Its bytes: header, image, paths, states, entry points, transitions of order 1 and 2. Counts are 32-bit IEEE numbers; indices of
    /// sorted lists are written as differences.
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
            out.put_varint(entry.launches);
            out.put_varint(entry.variants.len() as u64);
            entry.variants.iter().for_each(|variant| put_variant(&mut out, variant));
        }
        put_transitions(&mut out, &self.order1, false);
        put_transitions(&mut out, &self.order2, true);
        out
    }

    /// Parses a model of any version so far.
    ///
    /// # Errors
    /// If the bytes are not one, a bound is exceeded, or an index points nowhere.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() > MAX_MODEL_LEN {
            return Err(FormatError::TooLarge { what: WHAT, value: bytes.len() as u64, max: MAX_MODEL_LEN as u64 });
        }
        let mut reader = Reader::new(WHAT, bytes);
        let version = reader.header(MAGIC, VERSION)?;
        let image = match reader.u8()? {
            0 => None,
            1 => Some(reader.digest()?),
            _ => return Err(FormatError::invalid(WHAT, "an unknown flag is set")),
        };
        let traces = reader.varint(MAX_TRACES)?;
        let paths = read_paths(&mut reader)?;
        if !paths.is_sorted() {
            return Err(FormatError::invalid(WHAT, "paths ascend"));
        }
        let count = reader.count(MAX_STATES as u64, 3)?;
        let mut states: Vec<State> = Vec::with_capacity(count);
        for _ in 0..count {
            let (layer, path) = (reader.u8()?, reader.varint(u32::MAX.into())? as u32);
            let state = State { layer, path, touch: read_touch(&mut reader)? };
            if state.path as usize >= paths.len() || states.last().is_some_and(|last| *last >= state) {
                return Err(FormatError::invalid(WHAT, "states ascend, and name a path"));
            }
            states.push(state);
        }
        let mut body = Body { reader, version, states: states.len() };
        let entry_points = body.entry_points()?;
        let (order1, order2) = (body.transitions(false)?, body.transitions(true)?);
        body.reader.finish()?;
        Ok(Self { image, traces, paths, states, entry_points, order1, order2 })
    }
}

fn put_variant(out: &mut Vec<u8>, variant: &Variant) {
    out.extend_from_slice(&variant.weight.to_bits().to_le_bytes());
    out.put_varint(variant.launches);
    out.put_varint(variant.launch.len() as u64);
    let (mut state, mut time_us) = (0i64, 0i64);
    for item in &variant.launch {
        put_flagged(out, i64::from(item.state) - state, item.count.to_bits() == variant.weight.to_bits());
        if item.count.to_bits() != variant.weight.to_bits() {
            out.extend_from_slice(&item.count.to_bits().to_le_bytes());
        }
        out.put_signed(i64::from(item.time_us) - time_us);
        (state, time_us) = (item.state.into(), item.time_us.into());
    }
}

fn put_transitions(out: &mut Vec<u8>, transitions: &[Transition], has_before: bool) {
    out.put_varint(transitions.len() as u64);
    let (mut previous, mut count) = (0i64, 0f32);
    for transition in transitions {
        let first = if has_before { transition.before } else { transition.from };
        let repeats = transition.count.to_bits() == count.to_bits();
        put_flagged(out, i64::from(first) - previous, repeats);
        if has_before {
            out.put_signed(i64::from(transition.from) - i64::from(first));
        }
        out.put_signed(i64::from(transition.to) - i64::from(transition.from));
        if !repeats {
            out.extend_from_slice(&transition.count.to_bits().to_le_bytes());
        }
        out.put_varint(transition.gap_us.into());
        (previous, count) = (first.into(), transition.count);
    }
}

/// A difference of indices, with a flag as its lowest bit.
fn put_flagged(out: &mut Vec<u8>, difference: i64, flag: bool) {
    out.put_signed(difference * 2 + i64::from(flag));
}

/// What follows the states.
struct Body<'a> {
    reader: Reader<'a>,
    version: u8,
    states: usize,
}

impl Body<'_> {
    fn entry_points(&mut self) -> Result<Vec<EntryPoint>, FormatError> {
        let count = self.reader.count(MAX_ENTRY_POINTS as u64, if self.version == 1 { 7 } else { 4 })?;
        let mut entry_points = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(WHAT, self.reader.sized(MAX_ENTRY_POINT_LEN)?)?;
            let architecture = text(WHAT, self.reader.sized(MAX_ARCHITECTURE_LEN)?)?;
            entry_points.push(if self.version == 1 {
                let variant = self.variant()?;
                EntryPoint::of_one_kind(name, architecture, variant.weight, variant.launch)
            } else {
                let launches = self.reader.varint(MAX_TRACES)?;
                let count = self.reader.count(MAX_VARIANTS as u64, 6)?;
                let variants = (0..count).map(|_| self.variant()).collect::<Result<_, _>>()?;
                EntryPoint { name, architecture, launches, variants }
            });
        }
        Ok(entry_points)
    }

    fn variant(&mut self) -> Result<Variant, FormatError> {
        let weight = self.reader.f32_count()?;
        let launches = if self.version == 1 { (weight.ceil() as u64).min(MAX_TRACES) } else { self.reader.varint(MAX_TRACES)? };
        let count = self.reader.count(MAX_STATES as u64, if self.version == 1 { 6 } else { 2 })?;
        let mut launch = Vec::with_capacity(count);
        let (mut state, mut time_us) = (0i64, 0i64);
        for _ in 0..count {
            let repeats = if self.version == 1 {
                state = self.reader.varint(u32::MAX.into())? as i64;
                false
            } else {
                self.flagged(&mut state)?
            };
            let number = self.state(state)?;
            let count = if repeats { weight } else { self.reader.f32_count()? };
            time_us = time_us.saturating_add(self.reader.signed()?);
            let time_us = u32::try_from(time_us).map_err(|_| FormatError::invalid(WHAT, "a time is a 32-bit number"))?;
            launch.push(LaunchItem { state: number, count, time_us });
        }
        Ok(Variant { weight, launches, launch })
    }

    fn transitions(&mut self, has_before: bool) -> Result<Vec<Transition>, FormatError> {
        let count = self.reader.count(MAX_TRANSITIONS as u64, if self.version == 1 { 7 } else { 3 })?;
        let mut transitions = Vec::with_capacity(count);
        let (mut first, mut last) = (0i64, 0f32);
        for _ in 0..count {
            let repeats = if self.version == 1 {
                first = first.saturating_add(self.reader.signed()?);
                false
            } else {
                self.flagged(&mut first)?
            };
            let before = self.state(first)?;
            let from = if has_before {
                let difference = self.reader.signed()?;
                self.state(first.saturating_add(difference))?
            } else {
                before
            };
            let difference = self.reader.signed()?;
            let to = self.state(i64::from(from).saturating_add(difference))?;
            let count = if repeats { last } else { self.reader.f32_count()? };
            last = count;
            transitions.push(Transition { before, from, to, count, gap_us: self.reader.varint(u32::MAX.into())? as u32 });
        }
        Ok(transitions)
    }

    /// Adds the difference that comes next to `index`; returns the flag with it.
    fn flagged(&mut self, index: &mut i64) -> Result<bool, FormatError> {
        let number = self.reader.signed()?;
        *index = index.saturating_add(number >> 1);
        Ok(number & 1 == 1)
    }

    /// The number of a state, which there must be.
    fn state(&self, index: i64) -> Result<u32, FormatError> {
        match usize::try_from(index) {
            Ok(at) if at < self.states => Ok(at as u32),
            _ => Err(FormatError::invalid(WHAT, "an index names a state")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::path::LayerPath;
    use crate::trace::Touch;

    fn sample() -> Model {
        let paths = ["a", "b/c"].map(|p| LayerPath::new(p).unwrap()).to_vec();
        let states = vec![
            State { layer: 0, path: 0, touch: Touch::Meta },
            State { layer: 0, path: 1, touch: Touch::Data { bucket: 3 } },
            State { layer: 1, path: 1, touch: Touch::Meta },
        ];
        let item = |state, count, time_us| LaunchItem { state, count, time_us };
        let variants = vec![
            Variant { weight: 1.0, launches: 200, launch: vec![item(2, 1.0, 70), item(0, 0.5, 30)] },
            Variant { weight: 0.5, launches: 7, launch: vec![item(0, 0.5, 20), item(1, 0.5, 90)] },
        ];
        let entry_points = vec![EntryPoint { name: "sh".into(), architecture: "x86_64".into(), launches: 300, variants }];
        let order1 = vec![
            Transition { before: 0, from: 0, to: 1, count: 2.0, gap_us: 5 },
            Transition { before: 0, from: 0, to: 2, count: 2.0, gap_us: 7 },
            Transition { before: 2, from: 2, to: 0, count: 1.0, gap_us: 0 },
        ];
        let order2 = vec![Transition { before: 1, from: 0, to: 2, count: 0.25, gap_us: 9 }, Transition { before: 2, from: 1, to: 0, count: 0.25, gap_us: 9 }];
        Model { image: Some(Digest::of(b"i")), traces: 301, paths, states, entry_points, order1, order2 }
    }

    #[test]
    fn golden_model() {
        let model = sample();
        let bytes = model.encode();
        assert_eq!(Model::decode(&bytes), Ok(model));
        assert_eq!(Digest::of(&bytes).to_hex(), "727d5c4e696c1b536824234ec50c934140e59526a1151c8cbc0614b17d62477e");
    }

    #[test]
    fn a_model_of_version_1_is_one_of_one_variant() {
        let model = Model::decode(include_bytes!("../../corpus/model/44ba98b34422")).unwrap();
        let item = |state, count, time_us| LaunchItem { state, count, time_us };
        let entry = EntryPoint::of_one_kind("app".into(), "x86_64".into(), 1.0, vec![item(0, 1.0, 5), item(1, 0.5, 3)]);
        assert_eq!((entry.launches, entry.weight()), (1, 1.0));
        assert_eq!(model.entry_points, [entry]);
        let step = Transition { before: 0, from: 0, to: 1, count: 1.0, gap_us: 10 };
        assert_eq!((model.traces, model.order1.as_slice(), model.order2.as_slice()), (1, &[step][..], &[Transition { before: 1, ..step }][..]));
        assert_eq!(Model::decode(&model.encode()), Ok(model), "and comes back in the newest version");
    }

    #[test]
    fn no_prefix_of_a_model_is_a_model_and_no_index_points_nowhere() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(Model::decode(&bytes[..len]).is_err());
        }
        let wrong = |change: fn(&mut Model)| {
            let mut model = sample();
            change(&mut model);
            Model::decode(&model.encode()).unwrap_err();
        };
        wrong(|model| model.order2[0].to = 3);
        wrong(|model| model.order1[0].from = 3);
        wrong(|model| model.entry_points[0].variants[1].launch[0].state = 3);
        wrong(|model| model.entry_points[0].variants[0].weight = f32::NAN);
        wrong(|model| model.entry_points[0].variants[0].launch[1].count = -1.0);
        wrong(|model| model.entry_points[0].variants = vec![Variant::default(); MAX_VARIANTS + 1]);
    }
}
