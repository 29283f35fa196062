//! What a model says about the launches of each entry point, in numbers for people.
//!
//! A model knows touches, not sizes: bytes are buckets touched times their length, so at most that much. Probabilities are those that a
//! launch is planned with; what is expected of it is the model's own opinion, so an upper bound for launches unlike those learned from.

use std::collections::{BTreeMap, BTreeSet};

use layer_format::model::{EntryPoint, Model};
use layer_format::trace::{BUCKET_LEN, Touch};
use layer_format::{Digest, LayerPath};
use predictor::Predicted;
use predictor::score::ScoreParams;
use serde::Serialize;

/// From this probability on something is sure.
pub(super) const SURE: f32 = 0.9;
/// From this probability on something is likely.
pub(super) const LIKELY: f32 = 0.5;
/// Most rows of a timeline, without the last one.
const MAX_SLOTS: u64 = 12;
/// Components of the folders that bytes are summed for.
const DEPTH: usize = 3;
/// Most folders, and paths that tell a variant.
const MAX_FOLDERS: usize = 5;
const MAX_TELLING: usize = 3;
/// A path tells a variant if the variant touches it more often than every other by this.
const TELLING: f32 = 0.5;
/// Variants with a smaller share are not compared with.
const COMPARED: f32 = 0.03;

/// A model in numbers.
#[derive(Debug, Serialize)]
pub(super) struct Learned {
    pub(super) repository: String,
    /// Digest of the model.
    pub(super) model: Digest,
    /// The image of the newest launch.
    pub(super) image: Option<Digest>,
    pub(super) traces: u64,
    /// Length of the model.
    pub(super) bytes: u64,
    pub(super) paths: usize,
    pub(super) states: usize,
    pub(super) transitions: usize,
    /// After so many launches what was learned counts half.
    pub(super) half_life: f32,
    pub(super) entry_points: Vec<Entry>,
}

/// An entry point.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) architecture: String,
    /// Launches learned from.
    pub(super) launches: u64,
    /// The same, decayed.
    pub(super) weight: f32,
    /// Different things that launches touch, and how many of them are sure.
    pub(super) touches: usize,
    pub(super) sure: usize,
    /// By how surely they are touched: sure, likely, rare.
    pub(super) by_probability: [Amount; 3],
    /// Of the touches of one more launch like these, those known before; absent if there was but one launch.
    pub(super) expected_hit_rate: Option<f64>,
    /// Bytes prefetched for nothing as a share of those of use.
    pub(super) expected_waste: Option<f64>,
    pub(super) variants: Vec<Kind>,
    pub(super) timeline: Vec<Slot>,
    pub(super) folders: Vec<Folder>,
}

/// How much is touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Amount {
    /// Paths; each counts where its likeliest touch belongs.
    pub(super) files: usize,
    pub(super) touches: usize,
    pub(super) bytes: u64,
}

/// A variant.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Kind {
    /// Of all launches, decayed.
    pub(super) share: f32,
    pub(super) launches: u64,
    pub(super) weight: f32,
    /// Expected of one launch.
    pub(super) touches: u64,
    pub(super) bytes: u64,
    /// What it touches, unlike all others.
    pub(super) touches_alone: Vec<Telling>,
    /// What all others touch.
    pub(super) leaves_out: Vec<Telling>,
}

/// A path that tells a variant.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Telling {
    pub(super) path: String,
    /// Not the path itself tells it, but parts of its content.
    pub(super) parts: bool,
}

/// A piece of the time of a launch.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Slot {
    pub(super) from_us: u64,
    /// Absent for the last one, which has all the rest.
    pub(super) to_us: Option<u64>,
    /// Expected.
    pub(super) touches: f64,
    pub(super) bytes: u64,
    /// Where most of its touches are.
    pub(super) mostly: String,
}

/// Expected bytes below a folder.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Folder {
    pub(super) path: String,
    pub(super) bytes: u64,
}

impl Learned {
    /// The numbers of a model, of one entry point if `only` says which.
    pub(super) fn new(repository: String, encoded: &[u8], model: &Model, only: Option<&str>) -> Self {
        let entries = model.entry_points.iter().filter(|entry| only.is_none_or(|only| entry.name == only));
        let mut entry_points: Vec<Entry> = entries.map(|entry| Entry::new(model, entry)).collect();
        entry_points.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        Self {
            repository,
            model: Digest::of(encoded),
            image: model.image,
            traces: model.traces,
            bytes: encoded.len() as u64,
            paths: model.paths.len(),
            states: model.states.len(),
            transitions: model.order1.len() + model.order2.len(),
            half_life: predictor::Params::default().half_life,
            entry_points,
        }
    }
}

impl Entry {
    fn new(model: &Model, entry: &EntryPoint) -> Self {
        let list = predictor::launch_list(model, Some(&entry.name), &entry.architecture);
        let (expected_hit_rate, expected_waste) = expected(model, entry).unzip();
        Self {
            name: entry.name.clone(),
            architecture: entry.architecture.clone(),
            launches: entry.launches,
            weight: entry.weight(),
            touches: list.len(),
            sure: list.iter().filter(|item| item.probability >= SURE).count(),
            by_probability: by_probability(&list),
            expected_hit_rate,
            expected_waste,
            variants: kinds(model, entry),
            timeline: timeline(&list),
            folders: folders(&list),
        }
    }
}

fn len(touch: Touch) -> u64 {
    if touch == Touch::Meta { 0 } else { BUCKET_LEN }
}

fn class(probability: f32) -> usize {
    [SURE, LIKELY].iter().filter(|least| probability < **least).count()
}

fn by_probability(list: &[Predicted]) -> [Amount; 3] {
    let mut amounts = [Amount::default(); 3];
    let mut files: BTreeMap<(u8, &LayerPath), f32> = BTreeMap::new();
    for item in list {
        let amount = &mut amounts[class(item.probability)];
        amount.touches += 1;
        amount.bytes += len(item.touch);
        let most = files.entry((item.layer, &item.path)).or_default();
        *most = most.max(item.probability);
    }
    files.into_values().for_each(|most| amounts[class(most)].files += 1);
    amounts
}

/// For each state how likely each variant touches it, and when it is touched first.
type Shares = BTreeMap<u32, (Vec<f32>, u32)>;

fn shares(model: &Model, entry: &EntryPoint) -> Shares {
    let mut states = Shares::new();
    for (number, variant) in entry.variants.iter().enumerate().filter(|(_, variant)| variant.weight > 0.0) {
        for item in variant.launch.iter().filter(|item| (item.state as usize) < model.states.len()) {
            let (shares, first) = states.entry(item.state).or_insert_with(|| (vec![0.0; entry.variants.len()], u32::MAX));
            shares[number] = (item.count / variant.weight).min(1.0);
            *first = item.time_us.min(*first);
        }
    }
    states
}

/// Hit rate and waste of one more launch of any of the variants, if it is known of which: then its touches are predicted as that variant's
/// earlier launches made them. A variant of one launch has none; there the others predict.
fn expected(model: &Model, entry: &EntryPoint) -> Option<(f64, f64)> {
    let least = ScoreParams::default().min_probability;
    let states = shares(model, entry);
    let (mut touches, mut hits, mut used, mut wasted) = (0.0, 0.0, 0.0, 0.0);
    for (number, variant) in entry.variants.iter().enumerate() {
        let others = entry.weight() - variant.weight;
        if variant.launches < 2 && others <= 0.0 {
            continue;
        }
        for (state, (shares, _)) in &states {
            let elsewhere = || {
                shares
                    .iter()
                    .zip(&entry.variants)
                    .enumerate()
                    .filter(|(other, _)| *other != number)
                    .map(|(_, (share, other))| share * other.weight)
                    .sum::<f32>()
                    / others
            };
            let predicted = if variant.launches < 2 { elsewhere() } else { shares[number] };
            let (weight, share) = (f64::from(variant.weight), f64::from(shares[number]));
            touches += weight * share;
            if predicted >= least {
                let bytes = model.states.get(*state as usize).map_or(0, |state| len(state.touch)) as f64;
                hits += weight * share;
                used += weight * share * bytes;
                wasted += weight * (1.0 - share) * bytes;
            }
        }
    }
    (touches > 0.0).then(|| (hits / touches, if used > 0.0 { wasted / used } else { 0.0 }))
}

fn kinds(model: &Model, entry: &EntryPoint) -> Vec<Kind> {
    let (total, states) = (entry.weight(), shares(model, entry));
    let mut paths = Shares::new();
    let mut amounts = vec![(0f64, 0f64); entry.variants.len()];
    for (state, (shares, time_us)) in &states {
        let Some(state) = model.states.get(*state as usize) else { continue };
        let (most, first) = paths.entry(state.path).or_insert_with(|| (vec![0.0; shares.len()], u32::MAX));
        *first = *time_us.min(first);
        for ((share, most), (touches, bytes)) in shares.iter().zip(most).zip(&mut amounts) {
            *most = most.max(*share);
            *touches += f64::from(*share);
            *bytes += f64::from(*share) * len(state.touch) as f64;
        }
    }
    let path_of = |state: &u32| model.states.get(*state as usize).map(|state| state.path);
    let share = |number: usize| if total > 0.0 { entry.variants[number].weight / total } else { 0.0 };
    let kind = |(number, (touches, bytes)): (usize, &(f64, f64))| {
        let others: Vec<usize> = (0..entry.variants.len()).filter(|other| *other != number && share(*other) >= COMPARED).collect();
        let telling = |gain: &dyn Fn(&[f32]) -> f32| -> Vec<Telling> {
            let found = |shares: &Shares| -> Vec<u32> {
                let mut found: Vec<(f32, u32, u32)> = shares.iter().map(|(number, (shares, first))| (gain(shares), *first, *number)).collect();
                found.retain(|(gain, ..)| *gain >= TELLING && !others.is_empty());
                found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
                found.into_iter().map(|(.., number)| number).collect()
            };
            let whole = found(&paths);
            let mut parts: Vec<u32> = found(&states).iter().filter_map(path_of).filter(|path| !whole.contains(path)).collect();
            let mut seen = BTreeSet::new();
            parts.retain(|path| seen.insert(*path));
            let named = |paths: &[u32], parts| {
                let names = of_several_folders(paths.iter().filter_map(|path| model.paths.get(*path as usize)));
                names.into_iter().map(move |path| Telling { path, parts }).collect::<Vec<_>>()
            };
            let mut all = named(&whole, false);
            all.extend(named(&parts, true));
            all.truncate(MAX_TELLING);
            all
        };
        Kind {
            share: share(number),
            launches: entry.variants[number].launches,
            weight: entry.variants[number].weight,
            touches: touches.round() as u64,
            bytes: *bytes as u64,
            touches_alone: telling(&|shares| shares[number] - others.iter().map(|other| shares[*other]).fold(0.0, f32::max)),
            leaves_out: telling(&|shares| others.iter().map(|other| shares[*other]).fold(1.0, f32::min) - shares[number]),
        }
    };
    amounts.iter().enumerate().map(kind).collect()
}

/// The first few, of each folder one as long as there are others.
fn of_several_folders<'a>(paths: impl Iterator<Item = &'a LayerPath>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let (first, again): (Vec<_>, Vec<_>) = paths.map(|path| (folder(path), path)).partition(|(folder, _)| seen.insert(folder.clone()));
    first.into_iter().chain(again).take(MAX_TELLING).map(|(_, path)| path.to_string()).collect()
}

/// The folder of a path, at most so deep.
fn folder(path: &LayerPath) -> String {
    let text = path.to_string();
    let components: Vec<&str> = text.split('/').filter(|component| !component.is_empty()).collect();
    let depth = components.len().saturating_sub(1).min(DEPTH);
    format!("/{}", components[..depth].join("/"))
}

fn timeline(list: &[Predicted]) -> Vec<Slot> {
    let mut times: Vec<(u32, f64)> = list.iter().map(|item| (item.time_us, f64::from(item.probability))).collect();
    times.sort_by_key(|(time_us, _)| *time_us);
    let all: f64 = times.iter().map(|(_, probability)| probability).sum();
    let mut sum = 0.0;
    let Some((most, _)) = times.iter().find(|(_, probability)| {
        sum += probability;
        sum >= 0.95 * all
    }) else {
        return Vec::new();
    };
    // 1, 2 or 5 of a power of ten, from 1 ms.
    let widths = (3..=10).flat_map(|power| [1, 2, 5].map(|step| step * 10u64.pow(power)));
    let width = widths.into_iter().find(|width| width * MAX_SLOTS > u64::from(*most)).unwrap_or(10u64.pow(10));
    let count = u64::from(*most) / width + 1;
    let mut slots: Vec<(Slot, BTreeMap<String, f64>)> = (0..=count)
        .map(|slot| {
            let to_us = (slot < count).then_some((slot + 1) * width);
            (Slot { from_us: slot * width, to_us, touches: 0.0, bytes: 0, mostly: String::new() }, BTreeMap::new())
        })
        .collect();
    for item in list {
        let (slot, folders) = &mut slots[(u64::from(item.time_us) / width).min(count) as usize];
        slot.touches += f64::from(item.probability);
        slot.bytes += (f64::from(item.probability) * len(item.touch) as f64) as u64;
        *folders.entry(folder(&item.path)).or_default() += f64::from(item.probability);
    }
    let named = slots.into_iter().map(|(slot, folders)| {
        let mostly = folders.into_iter().reduce(|best, next| if next.1 > best.1 { next } else { best });
        Slot { mostly: mostly.map(|(folder, _)| folder).unwrap_or_default(), ..slot }
    });
    named.filter(|slot| slot.to_us.is_some() || slot.touches > 0.0).collect()
}

fn folders(list: &[Predicted]) -> Vec<Folder> {
    let mut bytes: BTreeMap<String, f64> = BTreeMap::new();
    for item in list.iter().filter(|item| len(item.touch) > 0) {
        *bytes.entry(folder(&item.path)).or_default() += f64::from(item.probability) * len(item.touch) as f64;
    }
    let mut folders: Vec<Folder> = bytes.into_iter().map(|(path, bytes)| Folder { path, bytes: bytes as u64 }).collect();
    folders.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
    folders.truncate(MAX_FOLDERS);
    folders
}
