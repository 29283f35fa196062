//! The same in words and numbers, below the picture.

use layer_format::recording::{Recording, Timeline};

use super::{end_of, escape, put};
use crate::output::bytes;
use crate::traces::summary::{Lane, Summary, longest, seconds, target, waiter};

/// Most processes of the table.
const MAX_PROCESSES: usize = 40;
/// Longest path.
const MAX_TARGET: usize = 300;

/// All tables.
pub fn all(out: &mut String, recording: &Recording, summary: &Summary) {
    if let Some(timeline) = &recording.timeline {
        waits(out, timeline);
        phases(out, summary);
    }
    processes(out, summary);
}

fn waits(out: &mut String, timeline: &Timeline) {
    let longest = longest(timeline);
    if longest.is_empty() {
        put(out, format_args!("<section>\n<h2>Longest waits</h2>\n<p>Nothing was waited for.</p>\n</section>\n"));
        return;
    }
    let all = timeline.waits.len();
    let of = if all > longest.len() { format!("The {} longest of {all} waits", longest.len()) } else { "Longest waits".into() };
    put(
        out,
        format_args!(
            "<section>\n<h2>{of}</h2>\n<div class=\"wide\"><table class=\"waits\">\n<thead><tr><th>waited</th><th>at</th><th>process</th><th>for</th></tr></thead>\n<tbody>\n"
        ),
    );
    for wait in longest {
        let how = if wait.is_promoted { " <i>was on its way</i>" } else { "" };
        put(
            out,
            format_args!(
                "<tr><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td class=\"path\">{}{how}</td></tr>\n",
                seconds(wait.duration_us),
                seconds(wait.start_us),
                escape(&waiter(timeline, wait)),
                escape(&end_of(&target(timeline, wait), MAX_TARGET))
            ),
        );
    }
    put(out, format_args!("</tbody>\n</table></div>\n</section>\n"));
}

fn phases(out: &mut String, summary: &Summary) {
    put(
        out,
        format_args!(
            "<section>\n<h2>Phases</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>phase</th><th>took</th><th>waiting</th><th>touches</th><th>missed</th><th>received</th></tr></thead>\n<tbody>\n"
        ),
    );
    for phase in &summary.phases {
        put(
            out,
            format_args!(
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n",
                phase.name,
                seconds(phase.end_us - phase.start_us),
                seconds(phase.waiting_us),
                phase.touches,
                phase.missed,
                bytes(phase.received_bytes)
            ),
        );
    }
    put(out, format_args!("</tbody>\n</table></div>\n</section>\n"));
}

fn processes(out: &mut String, summary: &Summary) {
    let mut lanes: Vec<&Lane> = summary.processes.iter().collect();
    lanes.sort_by_key(|lane| std::cmp::Reverse((lane.waiting_us, lane.touches)));
    let left = lanes.len().saturating_sub(MAX_PROCESSES);
    lanes.truncate(MAX_PROCESSES);
    if lanes.is_empty() {
        return;
    }
    put(
        out,
        format_args!(
            "<section>\n<h2>Processes</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>process</th><th>first seen</th><th>waited</th><th>touches</th><th>missed</th></tr></thead>\n<tbody>\n"
        ),
    );
    for lane in lanes {
        put(
            out,
            format_args!(
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n",
                escape(&lane.name),
                seconds(lane.start_us),
                seconds(lane.waiting_us),
                lane.touches,
                lane.missed
            ),
        );
    }
    let more = if left > 0 { format!("<p>And {left} more.</p>\n") } else { String::new() };
    put(out, format_args!("</tbody>\n</table></div>\n{more}</section>\n"));
}
