//! `turbo trace replay`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use layer_format::model::Model;
use layer_format::recording::Recording;
use layer_format::reference::ImageReference;
use layer_format::trace::{BUCKET_LEN, Touch};
use layer_format::{Digest, LayerPath};
use predictor::replay::{Link, Object, Outcome, Policy, Setup, Travel, TravelBuilder, first_touches, replay};
use serde::Serialize;

use crate::app::App;
use crate::exit::Exit;
use crate::output::{bytes, note, table};
use crate::traces;
use crate::traces::summary::seconds;

/// Links that are tried unless others are named: a local network, a city, a thin line, a continent, the other side of the world.
const LINKS: [&str; 5] = ["0.5ms/1Gbit", "20ms/100Mbit", "60ms/25Mbit", "100ms/100Mbit", "250ms/1Gbit"];
/// Bytes of a tree object of unknown size: an average one.
const NODE_BYTES: u32 = 4096;
/// What is left of a byte that travels, in percent: launches of programs compress about that well.
const WIRE_PERCENT: u32 = 42;
/// Most buckets of one file, and of all: a touch that is farther out is left out.
const MAX_BUCKETS: u32 = 1 << 16;
const MAX_ALL_BUCKETS: usize = 1 << 20;
/// Buckets that the policy `read-ahead` sends along.
const READ_AHEAD: u32 = 8;
/// Successors that the model sends along with a miss.
const SUCCESSORS: usize = 32;

/// What to replay, and over what.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// A recording or a trace; best of a run from local data (`turbo trace record --warm`).
    file: PathBuf,
    /// Round trip and rate of a link; may be repeated [default: five links from 0.5ms/1Gbit to 250ms/1Gbit].
    #[arg(long, value_name = "RTT/RATE", value_parser = parse_link)]
    link: Vec<NamedLink>,
    /// A model to predict with, such as `turbo profile export` writes.
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    model: Option<PathBuf>,
    /// Predict with what the registry learned about this image.
    #[arg(long, value_name = "IMAGE")]
    image: Option<ImageReference>,
}

/// A link as it was named.
#[derive(Clone, Debug)]
struct NamedLink {
    name: String,
    link: Link,
}

/// A line of the result.
#[derive(Debug, Serialize)]
struct Row {
    link: String,
    policy: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    hit_rate: f64,
    waste: f64,
    ratio_to_oracle: f64,
}

impl Replay {
    /// Replays, and prints the table.
    pub fn run(self, app: &App) -> Result<Exit> {
        let recording = traces::open(&self.file)?;
        let model = self.model(app)?;
        if model.is_none() {
            note("no model: name one with --model FILE or --image IMAGE to see what predicting would do");
        }
        let links = if self.link.is_empty() { LINKS.iter().filter_map(|text| parse_link(text).ok()).collect() } else { self.link };
        let travel = travel(&recording);
        let rows: Vec<Row> = links.iter().flat_map(|link| simulate(&recording, &travel, link, model.as_ref())).collect();
        app.output.result(&serde_json::json!({"file": self.file, "replays": rows}), |out| {
            let cells = rows.iter().map(|row| {
                vec![
                    row.link.clone(),
                    row.policy.to_owned(),
                    seconds(row.outcome.launch_us),
                    seconds(row.outcome.stall_us),
                    format!("{:.1} %", row.hit_rate * 100.0),
                    bytes(row.outcome.sent_bytes),
                    format!("{:.1} %", row.waste * 100.0),
                    format!("{:.2}", row.ratio_to_oracle),
                ]
            });
            table(out, &["LINK", "POLICY", "LAUNCH", "WAITING", "IN TIME", "SENT", "OF NO USE", "TO ORACLE"], &cells.collect::<Vec<_>>())
        })?;
        Ok(Exit::Success)
    }

    fn model(&self, app: &App) -> Result<Option<Arc<Model>>> {
        let bytes = match (&self.model, &self.image) {
            (Some(file), _) => std::fs::read(file).with_context(|| format!("reading {}", file.display()))?,
            (None, Some(image)) => {
                let asked = app.block_on(app.registry()?.get_model_of(image))?.with_context(|| format!("what was learned about {image} cannot be asked"))?;
                asked.with_context(|| format!("nothing was learned about {image}; run it first"))?.1.to_vec()
            }
            (None, None) => return Ok(None),
        };
        Model::decode(&bytes).map(|model| Some(Arc::new(model))).context("the model is not valid")
    }
}

/// Every policy over one link.
fn simulate(recording: &Recording, travel: &Travel, link: &NamedLink, model: Option<&Arc<Model>>) -> Vec<Row> {
    let list = first_touches(&recording.trace);
    let run = |policy: &Policy<'_>| replay(&recording.trace, link.link, &Setup::default(), travel, policy);
    let oracle = run(&Policy::Oracle);
    let mut outcomes = vec![
        ("one by one", run(&Policy::None)),
        ("read-ahead", run(&Policy::Readahead { buckets: READ_AHEAD })),
        ("no model", run(&Policy::OnDemand)),
        ("list of this run", run(&Policy::StaticList(&list))),
    ];
    outcomes.extend(model.map(|model| ("model", run(&Policy::Ours { model, successors: SUCCESSORS, metered: false }))));
    outcomes.push(("oracle", oracle));
    let row = |(policy, outcome): (&'static str, Outcome)| Row {
        link: link.name.clone(),
        policy,
        hit_rate: outcome.hit_rate(),
        waste: outcome.waste(),
        ratio_to_oracle: outcome.ratio_to(&oracle),
        outcome,
    };
    outcomes.into_iter().map(row).collect()
}

/// What travels for each place, as the recording tells: an object for each tree object and bucket that was touched, and
/// for the buckets between them, compressed about as well as launches are.
fn travel(recording: &Recording) -> Travel {
    let trace = &recording.trace;
    let sizes = recording.timeline.as_ref().map(|timeline| timeline.sizes.as_slice()).unwrap_or_default();
    let mut files: BTreeMap<(u8, &LayerPath), BTreeMap<u64, u32>> = BTreeMap::new();
    for (at, event) in trace.events.iter().enumerate() {
        let Some(path) = trace.paths.get(event.path as usize) else { continue };
        let file = files.entry((event.layer, path)).or_default();
        match event.touch {
            Touch::Data { bucket } if bucket >= MAX_BUCKETS => {}
            touch => drop(file.insert(touch.to_number(), sizes.get(at).copied().unwrap_or_default())),
        }
    }
    let mut builder = TravelBuilder::new();
    let mut bytes: BTreeMap<Digest, u32> = BTreeMap::new();
    let mut buckets_left = MAX_ALL_BUCKETS;
    for ((layer, path), touched) in files {
        let mut object = |number: u64| {
            let usual = if number == 0 { NODE_BYTES } else { BUCKET_LEN as u32 };
            let size = touched.get(&number).copied().filter(|size| *size > 0).unwrap_or(usual);
            let name = [&[layer][..], &number.to_le_bytes(), path.as_bytes()].concat();
            let digest = Digest::of(&name);
            bytes.insert(digest, size);
            digest
        };
        let way: Vec<Digest> = touched.contains_key(&0).then(|| object(0)).into_iter().collect();
        let count = touched.last_key_value().map_or(0, |(last, _)| *last as usize).min(buckets_left);
        buckets_left -= count;
        let buckets: Vec<Vec<Digest>> = (1..=count as u64).map(|number| vec![object(number)]).collect();
        builder.add(layer, path.clone(), &way, &buckets);
    }
    let objects = builder.digests().iter().map(|digest| {
        let plain_bytes = bytes.get(digest).copied().unwrap_or_default();
        Object { wire_bytes: (u64::from(plain_bytes) * u64::from(WIRE_PERCENT)).div_ceil(100) as u32, plain_bytes }
    });
    let objects = objects.collect();
    builder.finish(objects)
}

/// Parses `100ms/100Mbit`.
fn parse_link(text: &str) -> Result<NamedLink, String> {
    let wrong = || format!("`{text}`: a link is a round trip and a rate, such as 100ms/100Mbit");
    let (round_trip, rate) = text.split_once('/').ok_or_else(wrong)?;
    let number = |text: &str, units: &[(&str, f64)]| {
        let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
        number.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0).map(|number| number * factor)
    };
    let round_trip_us = number(round_trip, &[("us", 1.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6)]).ok_or_else(wrong)?;
    let bits = number(rate, &[("kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9), ("bit", 1.0)]).filter(|bits| *bits >= 8.0).ok_or_else(wrong)?;
    Ok(NamedLink { name: text.to_owned(), link: Link { round_trip_us: round_trip_us as u64, bytes_per_s: (bits / 8.0) as u64 } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_a_round_trip_and_a_rate() {
        for (text, round_trip_us, bytes_per_s) in
            [("100ms/100Mbit", 100_000, 12_500_000), ("0.5ms/1Gbit", 500, 125_000_000), ("1s/56kbit", 1_000_000, 7000), ("0us/8bit", 0, 1)]
        {
            let link = parse_link(text).unwrap().link;
            assert_eq!((link.round_trip_us, link.bytes_per_s), (round_trip_us, bytes_per_s), "{text}");
        }
        for text in ["", "100ms", "100/100", "100ms/0Mbit", "-1ms/1Mbit", "NaNms/1Mbit", "1ms/infMbit", "ms/Mbit", "1ms/100MB"] {
            assert!(parse_link(text).is_err(), "{text}");
        }
        assert!(LINKS.iter().all(|text| parse_link(text).is_ok()));
    }
}
