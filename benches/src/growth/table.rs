//! The table of what a chunk costs at each size.

use std::fmt::Write;

use super::{Measured, Step};
use crate::report::Setting;

/// How much a cost per chunk may grow over the range.
const MAX_GROWTH: f64 = 1.5;
/// How long opening a store may take, in seconds, whatever its size.
const MAX_OPEN_S: f64 = 0.1;

/// The step, its name, and whether its cost is one chunk's already.
const ROWS: [(Step, &str, bool); 7] = [
    (Step::Import, "import (processor time)", false),
    (Step::Push, "push", false),
    (Step::Pull, "pull", false),
    (Step::Lookup, "lookup of one object", true),
    (Step::Stats, "stats", false),
    (Step::Gc, "gc", false),
    (Step::Open, "open, in ms", true),
];

/// Microseconds per chunk at each size, the growth over the range, and the largest memory.
pub(super) fn markdown(setting: &Setting, sizes: &[u64], measured: &[Measured]) -> String {
    let mut table = format!("{}, {}; {}, medians of {}. Microseconds per chunk.\n\n| |", setting.date, setting.machine, setting.filesystem, setting.rounds);
    for size in sizes {
        let _ = write!(table, " {size} chunks |");
    }
    table.push_str(" growth | reached | memory at the largest |\n|---|");
    table.push_str(&"---|".repeat(sizes.len() + 3));
    table.push('\n');
    for (step, name, is_single) in ROWS {
        let at = |size: u64| {
            let of = || measured.iter().filter(move |one| one.chunks == size && one.step == step);
            let scale = if is_single { 1.0 } else { size as f64 };
            median(of().map(|one| one.seconds / scale)).zip(of().map(|one| one.peak_bytes).max())
        };
        let costs: Vec<_> = sizes.iter().filter_map(|size| at(*size)).collect();
        let (Some(last), Some((_, peak_bytes))) = (costs.last().map(|cost| cost.0), costs.last()) else { continue };
        let _ = write!(table, "| {name} |");
        for (seconds, _) in &costs {
            let _ = write!(table, " {:.2} |", seconds * if step == Step::Open { 1e3 } else { 1e6 });
        }
        let least = costs.iter().map(|cost| cost.0).fold(f64::INFINITY, f64::min);
        let growth = last / least;
        let is_reached = if step == Step::Open { last < MAX_OPEN_S } else { growth <= MAX_GROWTH };
        let _ = writeln!(table, " {growth:.2} | {} | {:.0} MiB |", if is_reached { "yes" } else { "no" }, *peak_bytes as f64 / f64::from(1 << 20));
    }
    table
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_against_the_cheapest_size() {
        let one = |chunks: u64, seconds: f64| Measured { chunks, step: Step::Push, seconds, peak_bytes: 1 << 20 };
        let table = markdown(&Setting::default(), &[10, 100, 1000], &[one(10, 0.000_1), one(100, 0.000_5), one(1000, 0.009)]);
        assert!(table.contains("| push | 10.00 | 5.00 | 9.00 | 1.80 | no | 1 MiB |"), "{table}");
    }
}
