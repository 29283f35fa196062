//! The tables: targets with what was reached, then the tests of `zb`.

use std::fmt::Write as _;

use super::server::Kind;
use super::{Measured, clients, memory, requests};
use crate::report::Setting;

/// What is wanted of a figure.
enum Target {
    /// At least so many times the other's.
    AtLeast(f64),
    /// At most so many times the other's.
    AtMost(f64),
    /// At most so much, whatever the other's.
    Below(f64),
}

const ROWS: &[(&str, Target)] = &[
    (clients::DOCKER_PUSH, Target::AtMost(1.0)),
    (clients::DOCKER_PULL, Target::AtMost(1.0)),
    (clients::SKOPEO_PUSH, Target::AtMost(1.0)),
    (clients::SKOPEO_PULL, Target::AtMost(1.0)),
    (requests::BLOB_RATE, Target::AtLeast(1.5)),
    (requests::MANIFEST_RATE, Target::AtLeast(1.5)),
    (requests::PULL_RATE, Target::AtLeast(1.5)),
    (memory::IDLE, Target::Below(40.0)),
    (memory::UPLOADING, Target::Below(300.0)),
];
/// Of stored bytes, whichever the encoder.
const STORED_TARGET: Target = Target::AtMost(0.4);

/// Both tables in Markdown, and above them what was measured where.
pub(crate) fn markdown(setting: &Setting, measured: &Measured) -> String {
    let mut text = format!(
        "turbo-registry against Debian's docker-registry in one run, in turns; medians of {} rounds, all in {}.\nMeasured on {}; {}.\n\n\
         | | turbo-registry | docker-registry | ratio | target | |\n|---|---|---|---|---|---|\n",
        setting.rounds, setting.filesystem, setting.date, setting.machine
    );
    let mut stored: Vec<&str> = measured.figures.iter().map(|figure| figure.what.as_str()).filter(|what| what.starts_with(clients::STORED)).collect();
    stored.dedup();
    let rows = ROWS.iter().map(|(what, target)| (*what, target)).chain(stored.into_iter().map(|what| (what, &STORED_TARGET)));
    // Writing to a string does not fail.
    for (what, target) in rows {
        let Some(own) = median(measured, what, |figure| figure.kind == Kind::Turbo) else { continue };
        let other = median(measured, what, |figure| figure.kind == Kind::DockerRegistry);
        let ratio = ratio(measured, what);
        let (said, reached) = match target {
            Target::AtLeast(times) => (format!("≥ {times}"), ratio.map(|ratio| ratio >= *times)),
            Target::AtMost(times) => (format!("≤ {times}"), ratio.map(|ratio| ratio <= *times)),
            Target::Below(bound) => (format!("< {bound}"), Some(own < *bound)),
        };
        let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), number);
        let reached = reached.map_or("–", |reached| if reached { "reached" } else { "not reached" });
        let _ = writeln!(text, "| {what} | {} | {} | {} | {said} | {reached} |", number(own), shown(other), shown(ratio));
    }
    if !measured.zb.is_empty() {
        text += "\nThe tests of zot's `zb`, 4 clients; each cell is turbo-registry / docker-registry.\n\n\
                 | test | requests/s | ratio | first byte, ms | p50, ms | p75, ms | p90, ms | p99, ms |\n|---|---|---|---|---|---|---|---|\n";
        for pair in measured.zb.chunk_by(|one, other| one.test == other.test) {
            let of = |kind: Kind| pair.iter().find(|row| row.kind == kind).map(|row| &row.load);
            let (Some(own), Some(other)) = (of(Kind::Turbo), of(Kind::DockerRegistry)) else { continue };
            let both = |one: f64, other: f64| format!("{} / {}", number(one), number(other));
            let cells = [
                both(own.rate(), other.rate()),
                number(own.rate() / other.rate()),
                both(own.first_byte_ms, other.first_byte_ms),
                both(own.p50_ms, other.p50_ms),
                both(own.p75_ms, other.p75_ms),
                both(own.p90_ms, other.p90_ms),
                both(own.p99_ms, other.p99_ms),
            ];
            let _ = writeln!(text, "| {} | {} |", pair[0].test, cells.join(" | "));
        }
    }
    text
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn median(measured: &Measured, what: &str, counts: impl Fn(&super::Figure) -> bool) -> Option<f64> {
    middle(measured.figures.iter().filter(|figure| figure.what == what && counts(figure)).map(|figure| figure.value).collect())
}

/// The median over the rounds of this registry's figure to the other's of the same round.
fn ratio(measured: &Measured, what: &str) -> Option<f64> {
    let of = |kind: Kind| measured.figures.iter().filter(move |figure| figure.what == what && figure.kind == kind);
    middle(of(Kind::Turbo).filter_map(|own| of(Kind::DockerRegistry).find(|other| other.round == own.round).map(|other| own.value / other.value)).collect())
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => values.get(half).copied(),
        _ => Some((values[half - 1] + values[half]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Figure;

    #[test]
    fn ratios_are_of_one_round_and_judged() {
        let figure = |what: &str, kind, round, value| Figure { what: what.to_owned(), kind, round, value };
        let mut measured = Measured::default();
        for (round, (own, other)) in [(3000.0, 1000.0), (1600.0, 1000.0), (100.0, 1000.0)].into_iter().enumerate() {
            measured.figures.push(figure(requests::BLOB_RATE, Kind::Turbo, round as u32, own));
            measured.figures.push(figure(requests::BLOB_RATE, Kind::DockerRegistry, round as u32, other));
        }
        measured.figures.push(figure(memory::UPLOADING, Kind::Turbo, 0, 310.0));
        let text = markdown(&Setting::default(), &measured);
        assert!(text.contains("| 1600 | 1000 | 1.60 | ≥ 1.5 | reached |"), "{text}");
        assert!(text.contains("| 310 | – | – | < 300 | not reached |"), "{text}");
    }
}
