//! The table of the VM's benchmark, with a target for each row.

use std::fmt::Write as _;

use super::{Place, Series};
use crate::report::Setting;

/// A start may take this many times bubblewrap's, and [`START_EXTRA_S`] more.
const START_FACTOR: f64 = 1.3;
const START_EXTRA_S: f64 = 0.015;
/// A start with twenty images may take this many times one with a single image.
const LAYERS_FACTOR: f64 = 1.5;
/// Warm work may take this many times the native time.
const WRITE_COPY_FACTOR: f64 = 1.05;
const MERGE_FACTOR: f64 = 1.25;
/// Sequential reads may take this many times the native time: 0.95 of the rate.
const READ_FACTOR: f64 = 1.0 / 0.95;

/// The rows, with a line above that says what was measured where.
pub(super) fn markdown(setting: &Setting, series: &[Series]) -> String {
    let mut text = format!(
        "Milliseconds, medians of {} interleaved rounds, all data local, sandbox on {}. Measured on {}; {}.\n\n\
         | what | native or bwrap | write-copy | merge | ratios (targets) |\n|---|---|---|---|---|\n",
        setting.rounds, setting.filesystem, setting.date, setting.machine
    );
    for one in series {
        let cell = |place| {
            let median = one.median(place);
            if median.is_nan() { "–".to_owned() } else { format!("{:.1}", median * 1000.0) }
        };
        let (base, verdict) = judge(one);
        let (first, second) = if base == Place::Bubblewrap { (Place::OneLayer, Place::TwentyLayers) } else { (Place::WriteCopy, Place::Merge) };
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {} | {} | {} | {} | {verdict} |", one.name, cell(base), cell(first), cell(second));
    }
    text
}

/// What a series is compared with, and how it stands.
fn judge(series: &Series) -> (Place, String) {
    let reached = |value: f64, limit: f64| if value <= limit { "reached" } else { "not reached" };
    let (bwrap, one, twenty) = (series.median(Place::Bubblewrap), series.median(Place::OneLayer), series.median(Place::TwentyLayers));
    if !bwrap.is_nan() {
        let limit = START_FACTOR * bwrap + START_EXTRA_S;
        let start = format!("one image ≤ {:.1} ms: {}", limit * 1000.0, reached(one, limit));
        return (Place::Bubblewrap, format!("{start}; 20 images {:.2} (≤ {LAYERS_FACTOR}): {}", twenty / one, reached(twenty / one, LAYERS_FACTOR)));
    }
    let native = series.median(Place::Native);
    let (write_copy, merge) = (series.median(Place::WriteCopy) / native, series.median(Place::Merge) / native);
    let limit = if series.name.contains("read") { READ_FACTOR } else { WRITE_COPY_FACTOR };
    let merge_limit = if series.name.contains("read") { READ_FACTOR } else { MERGE_FACTOR };
    let verdict = format!("{write_copy:.2} (≤ {limit:.2}) {}, {merge:.2} (≤ {merge_limit:.2}) {}", reached(write_copy, limit), reached(merge, merge_limit));
    (Place::Native, verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, seconds: &[(Place, f64)]) -> Series {
        Series { name: name.into(), seconds: seconds.to_vec() }
    }

    #[test]
    fn targets_are_applied() {
        let (base, verdict) = judge(&series("start", &[(Place::Bubblewrap, 0.010), (Place::OneLayer, 0.027), (Place::TwentyLayers, 0.054)]));
        assert_eq!(base, Place::Bubblewrap);
        assert_eq!(verdict, "one image ≤ 28.0 ms: reached; 20 images 2.00 (≤ 1.5): not reached");
        let (_, verdict) = judge(&series("git status", &[(Place::Native, 1.0), (Place::WriteCopy, 1.06), (Place::Merge, 1.2)]));
        assert_eq!(verdict, "1.06 (≤ 1.05) not reached, 1.20 (≤ 1.25) reached");
    }
}
