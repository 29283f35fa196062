//! The tables of launches, in Markdown: times with their targets, and what else there is to say about each launch.

use std::fmt::Write as _;

use super::{Series, Way};
use crate::report::Setting;
use crate::turbo::Launch;

/// What a launch with a model of the same version may take, in proportion to the floor.
const SAME_TARGET: f64 = 1.20;
/// With the previous version's.
const PREVIOUS_TARGET: f64 = 1.45;
/// With a wrong model, in proportion to one without.
const WRONG_TARGET: f64 = 1.05;

pub(super) fn markdown(setting: &Setting, series: &[Series]) -> String {
    let mut text = format!(
        "Seconds from the command to the end of the application, medians of {} rounds (fewer of the slow ways), client on {}. `floor64` is computed: two round\n\
         trips and the touched blocks of 64 KiB, compressed, at the link's rate. In parentheses: in proportion to the floor of that version, for the wrong model\n\
         to the launch without one; targets: {SAME_TARGET:.2}, {PREVIOUS_TARGET:.2}, {WRONG_TARGET:.2}.\n\
         Measured on {}; {}.\n\n\
         | application | link | floor64 | model of the same version | of the previous version | no model | wrong model | no prefetching | oracle | pull, then run | all local |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
        setting.rounds, setting.filesystem, setting.date, setting.machine
    );
    for series in series {
        let [floor, next_floor] = series.floor.map(|floor| floor.seconds);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {floor:.1} | {} | {} | {} | {} | {} | {} | {} | {} |",
            series.app,
            series.link,
            with_target(series.seconds(Way::Model), floor, SAME_TARGET),
            with_target(series.seconds(Way::Previous), next_floor, PREVIOUS_TARGET),
            plain(series.seconds(Way::OnDemand)),
            with_target(series.seconds(Way::Wrong), series.seconds(Way::OnDemand), WRONG_TARGET),
            plain(series.seconds(Way::Plain)),
            plain(series.seconds(Way::Oracle)),
            plain(series.seconds(Way::Pull)),
            plain(series.seconds(Way::Warm)),
        );
    }
    text += "\nOf the same launches: megabytes received; seconds that threads waited for data, all added up; share of touches that found their data there; bytes that\n\
             were of no use in proportion to those that were; and the time under which 99 of 100 demands were answered, in milliseconds.\n\n\
             | application | link | same version | previous version | no model | wrong model | no prefetching |\n|---|---|---|---|---|---|---|\n";
    for series in series {
        let ways = [Way::Model, Way::Previous, Way::OnDemand, Way::Wrong, Way::Plain].map(|way| details(series, way));
        let _ = writeln!(text, "| {} | {} | {} |", series.app, series.link, ways.join(" | "));
    }
    text
}

fn plain(seconds: f64) -> String {
    if seconds.is_nan() { "–".to_owned() } else { format!("{seconds:.1}") }
}

fn with_target(seconds: f64, base: f64, target: f64) -> String {
    let ratio = seconds / base;
    match ratio.is_nan() {
        true => plain(seconds),
        // As it is printed, so that nobody wonders.
        false => format!("{seconds:.1} ({ratio:.2}, {})", if (ratio * 100.0).round() <= target * 100.0 { "reached" } else { "not reached" }),
    }
}

fn details(series: &Series, way: Way) -> String {
    let of = |figure: fn(&crate::turbo::RunStats) -> f64| series.median(way, |launch: &Launch| launch.stats.map_or(f64::NAN, |stats| figure(&stats)));
    let received = series.median(way, |launch| launch.received_bytes as f64) / 1e6;
    if received.is_nan() {
        return "–".to_owned();
    }
    format!(
        "{received:.1} MB, {:.1} s, {:.1} %, {:.0} %, {:.0} ms",
        of(|stats| stats.stall_us as f64) / 1e6,
        100.0 * of(|stats| stats.hit_rate),
        100.0 * of(|stats| stats.waste()),
        of(|stats| stats.demand_p99_us as f64) / 1e3
    )
}

#[cfg(test)]
mod tests {
    use super::super::Floor;
    use super::*;
    use crate::turbo::RunStats;

    #[test]
    fn a_ratio_is_of_the_floor_of_its_version_and_says_whether_it_is_reached() {
        let stats = RunStats { stall_us: 500_000, hit_rate: 0.97, bytes_fetched: 120, bytes_wasted: 20, demand_p99_us: 61_000, ..RunStats::default() };
        let launch = |way, seconds| (way, Launch { seconds, received_bytes: 24_500_000, stats: Some(stats) });
        let floor = |seconds| Floor { seconds, ..Floor::default() };
        let launches = vec![launch(Way::Model, 2.4), launch(Way::Previous, 3.0), launch(Way::OnDemand, 4.0), launch(Way::Wrong, 4.2), launch(Way::Warm, 0.7)];
        let series = Series { app: "a", link: "l".into(), floor: [floor(2.0), floor(2.05)], launches };
        let text = markdown(&Setting::default(), &[series]);
        let row = "| a | l | 2.0 | 2.4 (1.20, reached) | 3.0 (1.46, not reached) | 4.0 | 4.2 (1.05, reached) | – | – | – | 0.7 |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| a | l | 24.5 MB, 0.5 s, 97.0 %, 20 %, 61 ms |"), "{text}");
    }
}
