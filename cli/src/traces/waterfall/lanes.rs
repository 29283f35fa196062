//! Rows of processes and of requests.

use std::collections::{BTreeSet, HashMap};

use layer_format::recording::{Recording, Request, Timeline, Wait};
use layer_format::trace::Source;

use super::chart::{Rows, style};
use super::scale::WIDTH;
use super::{end_of, escape, put};
use crate::traces::summary::{Lane, Summary, event_us, lane_of, request_text, seconds, target, waiter};

const LANE_HEIGHT: f64 = 30.0;
const REQUEST_HEIGHT: f64 = 9.0;
/// Most processes with a row of their own; the others share one.
const MAX_LANES: usize = 24;
/// Most rows of requests.
const MAX_REQUEST_ROWS: usize = 10;
/// Most waits and requests that are drawn by themselves, with a text.
const MAX_WAITS: usize = 800;
const MAX_REQUESTS: usize = 400;
/// Touches nearer than this, in units of the picture, are one line.
const TOUCH_STEP: f64 = 1.6;
/// Longest part of a path in a text.
const MAX_TARGET: usize = 100;

/// A row for each process, with its touches and waits.
pub fn processes(rows: &mut Rows, recording: &Recording, summary: &Summary) {
    // Those that waited longest, else touched most, deserve a row.
    let mut order: Vec<&Lane> = summary.processes.iter().collect();
    order.sort_by_key(|lane| std::cmp::Reverse((lane.waiting_us, lane.touches)));
    let chosen: BTreeSet<u16> = order.iter().take(if order.len() > MAX_LANES { MAX_LANES - 1 } else { MAX_LANES }).map(|lane| lane.number).collect();
    let mut row_of: HashMap<u16, usize> = HashMap::new();
    let own: Vec<&Lane> = summary.processes.iter().filter(|lane| chosen.contains(&lane.number)).collect();
    row_of.extend(own.iter().enumerate().map(|(row, lane)| (lane.number, row)));
    let others: Vec<&Lane> = summary.processes.iter().filter(|lane| !chosen.contains(&lane.number)).collect();
    let count = own.len() + usize::from(!others.is_empty());
    let top = rows.top;
    let y = |row: usize| top + LANE_HEIGHT * row as f64;
    for (row, lane) in own.iter().enumerate() {
        life(rows, lane, y(row));
    }
    for lane in &others {
        life(rows, lane, y(own.len()));
    }
    touches(rows, recording, &row_of, count, y);
    if let Some(timeline) = &recording.timeline {
        waits(rows, recording, timeline, &row_of, own.len(), y);
    }
    for lane in own {
        let detail = match (lane.waiting_us, lane.missed) {
            (0, _) if lane.touches == 1 => "1 touch".into(),
            (0, _) => format!("{} touches", lane.touches),
            (waiting, _) => format!("waits {}", seconds(waiting)),
        };
        rows.row("", LANE_HEIGHT, &lane.name, &detail);
    }
    if !others.is_empty() {
        rows.row("", LANE_HEIGHT, &format!("{} others", others.len()), "");
    }
}

fn life(rows: &mut Rows, lane: &Lane, y: f64) {
    let (x, width) = rows.scale.span(lane.start_us, lane.last_us, 1.0);
    put(&mut rows.svg, format_args!("<path class=\"life\" d=\"M{x:.1} {:.0}h{width:.1}v16h-{width:.1}z\"/>", y + 7.0));
}

/// Short lines for touches: above the middle what was there in time, the whole height what was not.
fn touches(rows: &mut Rows, recording: &Recording, row_of: &HashMap<u16, usize>, count: usize, y: impl Fn(usize) -> f64) {
    let (of_trace, _) = lane_of(recording);
    let mut last = vec![[f64::NEG_INFINITY; 2]; count];
    let mut paths = [String::new(), String::new()];
    for event in &recording.trace.events {
        let row = row_of.get(&of_trace(event.process)).copied().unwrap_or(count.saturating_sub(1));
        let is_missed = event.source == Source::Missed;
        let x = rows.scale.x(event_us(recording, event.time_us)).min(WIDTH - 0.5);
        let Some(before) = last.get_mut(row).map(|last| &mut last[usize::from(is_missed)]) else { continue };
        if x - *before < TOUCH_STEP {
            continue;
        }
        *before = x;
        put(&mut paths[usize::from(is_missed)], format_args!("M{x:.1} {:.0}v{}", y(row) + 10.0, 10));
    }
    let [in_time, missed] = paths;
    put(&mut rows.svg, format_args!("<path class=\"touch\" d=\"{in_time}\"/>\n<path class=\"missed\" d=\"{missed}\"/>\n"));
}

fn waits(rows: &mut Rows, recording: &Recording, timeline: &Timeline, row_of: &HashMap<u16, usize>, other: usize, y: impl Fn(usize) -> f64) {
    let (_, of_wait) = lane_of(recording);
    let mut sorted: Vec<&Wait> = timeline.waits.iter().filter(|wait| wait.start_us < timeline.total_us).collect();
    sorted.sort_by_key(|wait| std::cmp::Reverse(wait.duration_us));
    let mut rest = String::new();
    let mut drawn: HashMap<(usize, i64), ()> = HashMap::new();
    for (number, wait) in sorted.into_iter().enumerate() {
        // Before there is a process, it is turbo itself that waits: the row above shows it.
        let Some(lane) = of_wait(wait) else { continue };
        let row = row_of.get(&lane).copied().unwrap_or(other);
        let (x, width) = rows.scale.span(wait.start_us, wait.start_us.saturating_add(wait.duration_us), 0.8);
        let top = y(row) + 7.0;
        if number < MAX_WAITS {
            put(
                &mut rows.svg,
                format_args!(
                    "<path class=\"stall\" d=\"M{x:.1} {top:.0}h{width:.1}v16h-{width:.1}z\"><title>{}</title></path>\n",
                    escape(&wait_text(timeline, wait))
                ),
            );
        } else if drawn.insert((row, x as i64), ()).is_none() {
            put(&mut rest, format_args!("M{x:.0} {top:.0}h1v16h-1z"));
        }
    }
    if !rest.is_empty() {
        put(&mut rows.svg, format_args!("<path class=\"stall\" d=\"{rest}\"/>\n"));
    }
}

fn wait_text(timeline: &Timeline, wait: &Wait) -> String {
    let how = if wait.is_promoted { "; it was on its way" } else { "" };
    format!(
        "at {}: {} waited {} for {}{how}",
        seconds(wait.start_us),
        waiter(timeline, wait),
        seconds(wait.duration_us),
        end_of(&target(timeline, wait), MAX_TARGET)
    )
}

/// Requests, packed into rows: a thin line until the first byte, a bar from there.
pub fn requests(rows: &mut Rows, timeline: &Timeline) {
    let mut chosen: Vec<&Request> = timeline.requests.iter().filter(|request| request.start_us < timeline.total_us).collect();
    let all = chosen.len();
    chosen.sort_by_key(|request| std::cmp::Reverse(request.duration_us));
    chosen.truncate(MAX_REQUESTS);
    chosen.sort_by_key(|request| request.start_us);
    let mut ends: Vec<f64> = Vec::new();
    let top = rows.top;
    for request in chosen {
        let end_us = request.start_us.saturating_add(request.duration_us);
        let (x, width) = rows.scale.span(request.start_us, end_us, 1.0);
        let row = match ends.iter().position(|end| *end <= x) {
            Some(row) => row,
            None if ends.len() < MAX_REQUEST_ROWS => {
                ends.push(0.0);
                ends.len() - 1
            }
            // All rows are taken: over the one that is free first.
            None => (0..ends.len()).min_by(|one, other| ends[*one].total_cmp(&ends[*other])).unwrap_or(0),
        };
        ends[row] = ends[row].max(x + width + 1.0);
        let y = top + REQUEST_HEIGHT * row as f64;
        let first = request.first_byte_us.map_or(x + width, |time| rows.scale.x(request.start_us.saturating_add(time)).max(x));
        let bar = (x + width - first).max(0.0);
        put(
            &mut rows.svg,
            format_args!(
                "<path class=\"{}\" d=\"M{x:.1} {:.1}h{:.1}v1.4h-{:.1}zM{first:.1} {:.1}h{bar:.1}v6h-{bar:.1}z\"><title>{}</title></path>\n",
                style(request.class),
                y + 3.8,
                first - x,
                first - x,
                y + 1.5,
                escape(&request_text(request))
            ),
        );
    }
    rows.row("", (REQUEST_HEIGHT * ends.len() as f64).max(30.0), "requests", &format!("{all} in all"));
}
