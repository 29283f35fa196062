//! The table: for each tree what Turbo takes, in proportion to the best peer, and whether that is the target.

use std::fmt::Write as _;

use super::peers::deduplicates;
use super::trees::Tree;
use super::{Measured, Step};
use crate::report::Setting;

/// Most memory that a step may take, in bytes.
const PEAK_TARGET: u64 = 128 << 20;

/// Medians of all that was measured.
struct Medians<'a> {
    measured: &'a [Measured],
}

impl Medians<'_> {
    fn of(&self, tree: &Tree, tool: &str, step: Step, value: impl Fn(&Measured) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.measured.iter().filter(|one| one.tree == tree.name && one.tool == tool && one.step == step).map(value).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            count if count % 2 == 1 => values.get(middle).copied(),
            _ => Some((values[middle - 1] + values[middle]) / 2.0),
        }
    }

    /// The best of the peers that `counts`, and that did it right; its name.
    fn best(&self, tree: &Tree, step: Step, value: impl Fn(&Measured) -> f64 + Copy, counts: impl Fn(&str) -> bool) -> Option<(f64, &str)> {
        let mut tools: Vec<&str> = self.measured.iter().filter(|one| one.tool != "turbo").map(|one| one.tool.as_str()).collect();
        tools.sort_unstable();
        tools.dedup();
        let wrong = |tool: &str| self.measured.iter().any(|one| one.tree == tree.name && one.tool == tool && one.step == step && one.is_right == Some(false));
        let found = tools.into_iter().filter(|tool| counts(tool) && !wrong(tool));
        found.filter_map(|tool| self.of(tree, tool, step, value).map(|value| (value, tool))).min_by(|one, other| one.0.total_cmp(&other.0))
    }
}

/// What a row compares.
struct Row {
    name: &'static str,
    step: Step,
    /// Stored bytes in place of seconds.
    is_size: bool,
    /// The peers that count.
    against: fn(&Tree, &str) -> bool,
    target: fn(&Tree) -> f64,
}

const ROWS: [Row; 11] = [
    Row { name: "first import", step: Step::First, is_size: false, against: |_, tool| deduplicates(tool), target: |_| 0.75 },
    Row { name: "… against tar + zstd", step: Step::First, is_size: false, against: |_, tool| tool == "tar+zstd", target: |_| 1.0 },
    Row { name: "import of version 2", step: Step::Second, is_size: false, against: |_, tool| deduplicates(tool), target: |_| 0.6 },
    Row { name: "… of a directory changed to it", step: Step::SecondInPlace, is_size: false, against: |_, tool| deduplicates(tool), target: |_| 0.4 },
    Row {
        name: "import of an unchanged tree, against `find -ls`",
        step: Step::Unchanged,
        is_size: false,
        against: |_, tool| tool == "find -ls",
        target: |_| 2.0,
    },
    Row { name: "stored bytes, version 1", step: Step::First, is_size: true, against: |_, tool| deduplicates(tool), target: |_| 1.0 },
    Row { name: "… against tar + zstd", step: Step::First, is_size: true, against: |_, tool| tool == "tar+zstd", target: |_| 1.10 },
    Row {
        name: "stored bytes that version 2 adds",
        step: Step::Second,
        is_size: true,
        against: |_, tool| deduplicates(tool),
        target: |tree| tree.added_target,
    },
    Row { name: "checkout", step: Step::Restore, is_size: false, against: |_, tool| deduplicates(tool), target: |_| 0.6 },
    Row { name: "… against `cp -a`", step: Step::Restore, is_size: false, against: |tree, tool| tree.has_many_files && tool == "cp", target: |_| 1.0 },
    Row { name: "checkout of version 2 over version 1", step: Step::Update, is_size: false, against: |_, _| true, target: |tree| tree.update_target },
];

/// The table in Markdown, and above it what was measured where.
pub(super) fn markdown(setting: &Setting, trees: &[Tree], measured: &[Measured], missing: &[&str]) -> String {
    let medians = Medians { measured };
    let mut text = format!(
        "Medians of {} rounds in turns, all in {}; what Turbo took, in proportion to the best peer (named), and the target.\nMeasured on {}; {}.\n",
        setting.rounds, setting.filesystem, setting.date, setting.machine
    );
    if !missing.is_empty() {
        text += &format!("Not installed, and so not measured: {}.\n", missing.join(", "));
    }
    let names: Vec<&str> = trees.iter().map(|tree| tree.name).collect();
    // Writing to a string does not fail.
    let _ = write!(text, "\n| | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(trees.len()));
    for row in &ROWS {
        let cells: Vec<String> = trees.iter().map(|tree| cell(row, tree, &medians)).collect();
        let _ = writeln!(text, "| {} | {} |", row.name, cells.join(" | "));
    }
    let peaks: Vec<String> = trees.iter().map(|tree| peak(tree, measured)).collect();
    let _ = writeln!(text, "| peak memory (≤ {} MiB) | {} |", PEAK_TARGET >> 20, peaks.join(" | "));
    text
}

fn cell(row: &Row, tree: &Tree, medians: &Medians<'_>) -> String {
    let value = |one: &Measured| if row.is_size { one.stored_bytes as f64 / 1e6 } else { one.wall_s };
    let Some(own) = medians.of(tree, "turbo", row.step, value) else { return "–".to_owned() };
    let shown = if row.is_size { format!("{own:.2} MB") } else { format!("{own:.2} s") };
    // What an import of a changed directory is compared with is an import of version 2.
    let step = if row.step == Step::SecondInPlace { Step::Second } else { row.step };
    match medians.best(tree, step, value, |tool| (row.against)(tree, tool)) {
        None => shown,
        Some((best, tool)) => {
            let (ratio, target) = (own / best, (row.target)(tree));
            let reached = if ratio <= target { "reached" } else { "not reached" };
            format!("{shown}, {ratio:.2} of {tool} (≤ {target:.2} {reached})")
        }
    }
}

fn peak(tree: &Tree, measured: &[Measured]) -> String {
    let of_turbo = measured.iter().filter(|one| one.tree == tree.name && one.tool == "turbo");
    let Some(peak) = of_turbo.map(|one| one.peak_bytes).max() else { return "–".to_owned() };
    format!("{} MiB ({})", peak >> 20, if peak <= PEAK_TARGET { "reached" } else { "not reached" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::trees::ALL;

    fn measured(tool: &str, wall_s: f64, is_right: Option<bool>) -> Measured {
        let (tree, tool) = ("scipy".to_owned(), tool.to_owned());
        Measured { tree, tool, step: Step::Restore, wall_s, cpu_s: wall_s, peak_bytes: 1 << 20, stored_bytes: 0, is_right }
    }

    #[test]
    fn the_best_peer_that_is_right_counts() {
        let all = [
            measured("turbo", 3.0, Some(true)),
            measured("turbo", 1.0, None),
            measured("turbo", 2.0, None),
            measured("borg", 4.0, Some(true)),
            measured("restic", 1.0, Some(false)),
            measured("cp", 0.5, Some(true)),
        ];
        let row = ROWS.iter().find(|row| row.name == "checkout").unwrap();
        let medians = Medians { measured: &all };
        assert_eq!(cell(row, &ALL[0], &medians), "2.00 s, 0.50 of borg (≤ 0.60 reached)");
        assert_eq!(cell(row, &ALL[1], &medians), "–");
        let alone = [measured("turbo", 2.0, None)];
        assert_eq!(cell(row, &ALL[0], &Medians { measured: &alone }), "2.00 s");
    }
}
