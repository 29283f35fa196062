//! Tables of outcomes, in Markdown.

use std::fmt::Write as _;

use predictor::replay::{LINKS, Outcome};

use super::{Cell, Way, add};

/// The link over which applications are shown one by one.
const SHOWN: &str = "wan";

/// Everything: a row for each application, link and policy.
pub(super) fn whole(cells: &[Cell<'_>]) -> String {
    let mut text = "| application | link | policy | launch s | stall s | hit rate | on trained paths | waste | MB | launch / oracle |\n|---|---|---|---|---|---|---|---|---|---|\n".to_owned();
    for cell in cells {
        let oracle = cells.iter().find(|other| (other.app, other.link, other.way) == (cell.app, cell.link, Way::Oracle));
        let (each, sum) = (cell.launches.max(1) as f64 * 1e6, &cell.sum);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.2} | {:.2} | {:.3} | {:.3} | {:.2} | {:.1} | {:.2} |",
            cell.app,
            cell.link,
            title(cell.way),
            sum.launch_us as f64 / each,
            sum.stall_us as f64 / each,
            sum.hit_rate(),
            trained(cell),
            sum.waste(),
            sum.sent_bytes as f64 / each,
            oracle.map_or(f64::NAN, |oracle| sum.ratio_to(&oracle.sum)),
        );
    }
    text
}

/// What fits a README: all applications over each link, and each application over one.
pub(super) fn summary(cells: &[Cell<'_>]) -> String {
    let ways: Vec<Way> = Way::ALL.into_iter().filter(|way| *way != Way::Previous).collect();
    let apps = names(cells);
    let launches: u64 = cells.iter().filter(|cell| cell.link == SHOWN && cell.way == Way::Ours).map(|cell| cell.launches).sum();
    let mut text = format!(
        "Simulated from {launches} recorded launches of {} applications, which no model and no list has seen: mean seconds that a launch waits for data, and in\n\
         parentheses the launch's length in proportion to the oracle's. Lists are of one earlier launch, models of three.\n\
         On demand Turbo fetches more of a file that is read, and guesses nothing else.\n\n| link |",
        apps.len()
    );
    for way in &ways {
        let _ = write!(text, " {} |", title(*way));
    }
    text += " ours: hit rate, on trained paths, waste |\n|---|";
    text += &"---|".repeat(ways.len() + 1);
    text.push('\n');
    for named in LINKS {
        let of = |way: Way| sum(cells.iter().filter(|cell| cell.link == named.name && cell.way == way));
        let link = format!("{}: {} ms, {} Mbit/s", named.name, named.link.round_trip_us as f64 / 1e3, named.link.bytes_per_s / 125_000);
        row(&mut text, &link, &ways, of);
    }
    text += "\nBy application, over the link `wan`; the last column is Turbo with the model of the previous version:\n\n| application |";
    for way in &ways {
        let _ = write!(text, " {} |", title(*way));
    }
    text += " ours: hit rate, on trained paths, waste | previous version's model |\n|---|";
    text += &"---|".repeat(ways.len() + 2);
    text.push('\n');
    for app in apps {
        let of = |way: Way| sum(cells.iter().filter(|cell| cell.link == SHOWN && cell.way == way && cell.app == app));
        row(&mut text, app, &ways, of);
        text.truncate(text.trim_end().len());
        match of(Way::Previous) {
            Some(previous) => {
                let _ = writeln!(text, " {} |", seconds(&previous, of(Way::Oracle).as_ref()));
            }
            None => text += " – |\n",
        }
    }
    text
}

struct Sum {
    launches: u64,
    outcome: Outcome,
    trained_touches: u64,
    trained_misses: u64,
}

fn sum<'a>(cells: impl Iterator<Item = &'a Cell<'a>>) -> Option<Sum> {
    let mut sum = Sum { launches: 0, outcome: Outcome::default(), trained_touches: 0, trained_misses: 0 };
    for cell in cells {
        sum.launches += cell.launches;
        add(&mut sum.outcome, &cell.sum);
        sum.trained_touches += cell.trained_touches;
        sum.trained_misses += cell.trained_misses;
    }
    (sum.launches > 0).then_some(sum)
}

fn row(text: &mut String, name: &str, ways: &[Way], of: impl Fn(Way) -> Option<Sum>) {
    let oracle = of(Way::Oracle);
    let _ = write!(text, "| {name} |");
    for way in ways {
        let cell = of(*way).map_or_else(|| "–".to_owned(), |sum| seconds(&sum, oracle.as_ref()));
        let _ = write!(text, " {cell} |");
    }
    if let Some(ours) = of(Way::Ours) {
        let trained = 1.0 - ours.trained_misses as f64 / ours.trained_touches.max(1) as f64;
        let _ = write!(text, " {:.1} %, {:.1} %, {:.0} % |", 100.0 * ours.outcome.hit_rate(), 100.0 * trained, 100.0 * ours.outcome.waste());
    }
    text.push('\n');
}

fn seconds(sum: &Sum, oracle: Option<&Sum>) -> String {
    let stall = sum.outcome.stall_us as f64 / 1e6 / sum.launches as f64;
    let ratio = oracle.map_or(f64::NAN, |oracle| sum.outcome.ratio_to(&oracle.outcome));
    format!("{stall:.2} ({ratio:.1})")
}

fn trained(cell: &Cell<'_>) -> f64 {
    1.0 - cell.trained_misses as f64 / cell.trained_touches.max(1) as f64
}

fn names<'a>(cells: &[Cell<'a>]) -> Vec<&'a str> {
    let mut names: Vec<&str> = cells.iter().map(|cell| cell.app).collect();
    names.dedup();
    names.sort_unstable();
    names.dedup();
    names
}

fn title(way: Way) -> &'static str {
    match way {
        Way::None => "one bucket at a time",
        Way::Readahead => "read-ahead of 512 KiB",
        Way::OnDemand => "Turbo on demand",
        Way::Files => "list of files",
        Way::Buckets => "list of buckets",
        Way::Previous => "Turbo, previous version's model",
        Way::Ours => "Turbo",
        Way::Oracle => "oracle",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_are_averaged_and_compared_with_the_oracle() {
        let cell = |app, way, launch_us, stall_us| Cell {
            app,
            link: "wan",
            way,
            launches: 2,
            sum: Outcome { launch_us, stall_us, touches: 10, hits: 9, misses: 1, ..Outcome::default() },
            trained_touches: 8,
            trained_misses: 0,
        };
        let cells = [cell("a", Way::Ours, 6_000_000, 3_000_000), cell("a", Way::Oracle, 4_000_000, 1_000_000), cell("b", Way::Ours, 2_000_000, 1_000_000)];
        let text = summary(&cells);
        assert!(text.contains("| a | – | – | – | – | – | 1.50 (1.5) | 0.50 (1.0) | 90.0 %, 100.0 %, 0 % | – |"), "{text}");
        assert!(text.contains("from 4 recorded launches of 2 applications"), "{text}");
        assert_eq!(whole(&cells).lines().count(), 5);
    }
}
