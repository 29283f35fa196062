//! The picture: rows against time, their names beside it, the axis above.

use layer_format::recording::{CLASSES, Class, MarkKind, Recording, SLOT_US, Timeline};

use super::lanes;
use super::scale::{Scale, WIDTH};
use super::{escape, put};
use crate::output::bytes;
use crate::traces::summary::{Summary, merged, seconds};

/// Heights, in pixels.
const RATE_HEIGHT: f64 = 84.0;
const WAIT_HEIGHT: f64 = 30.0;
const GAP: f64 = 10.0;
/// Most columns of the area of received bytes.
const MAX_COLUMNS: u64 = 300;
/// Most spans of the row of waits.
const MAX_SPANS: usize = 2000;
/// Marks nearer to each other than this share of the width, in percent, share a label.
const MARK_DISTANCE: f64 = 16.0;

/// The picture, made.
#[derive(Debug)]
pub struct Chart {
    /// Names, axis and SVG.
    pub html: String,
}

/// Rows that are being drawn.
#[derive(Debug)]
pub struct Rows {
    pub scale: Scale,
    /// Where the next row begins, in pixels from the top.
    pub top: f64,
    /// What is in the SVG.
    pub svg: String,
    /// What is beside it.
    pub names: String,
}

impl Rows {
    /// Ends a row of this height, with this name and what is said below it.
    pub fn row(&mut self, class: &str, height: f64, name: &str, detail: &str) {
        let detail = if detail.is_empty() { String::new() } else { format!("<small>{}</small>", escape(detail)) };
        put(
            &mut self.names,
            format_args!("<div class=\"name {class}\" style=\"height:{height}px\"><span title=\"{0}\">{0}</span>{detail}</div>\n", escape(name)),
        );
        self.top += height;
    }

    /// Space between groups of rows.
    fn gap(&mut self) {
        put(&mut self.names, format_args!("<div style=\"height:{GAP}px\"></div>\n"));
        self.top += GAP;
    }
}

/// How a moment is called in the picture; `None` if it is only of use to the numbers.
pub fn mark_name(kind: MarkKind) -> Option<&'static str> {
    match kind {
        MarkKind::Manifest => None,
        MarkKind::Mounted => Some("mounted"),
        MarkKind::Started => Some("first process"),
        MarkKind::Exited => Some("exit"),
    }
}

impl Chart {
    /// Draws a recording.
    pub fn new(recording: &Recording, summary: &Summary) -> Self {
        let mut rows = Rows { scale: Scale::new(summary.total_us), top: 0.0, svg: String::new(), names: String::new() };
        if let Some(timeline) = &recording.timeline {
            if !timeline.arrivals.is_empty() {
                received(&mut rows, timeline);
                rows.gap();
            }
            waiting(&mut rows, timeline, summary);
            rows.gap();
        }
        lanes::processes(&mut rows, recording, summary);
        if let Some(timeline) = recording.timeline.as_ref().filter(|timeline| !timeline.requests.is_empty()) {
            rows.gap();
            lanes::requests(&mut rows, timeline);
        }
        Self { html: assemble(&rows, recording, summary) }
    }
}

fn assemble(rows: &Rows, recording: &Recording, summary: &Summary) -> String {
    let (scale, height) = (rows.scale, rows.top);
    let mut grid = String::new();
    let mut axis = String::new();
    for tick in scale.ticks() {
        let class = if tick.is_fine { "fine" } else { "tick" };
        put(&mut axis, format_args!("<span class=\"{class}\" style=\"left:{:.2}%\">{}</span>", scale.percent(tick.time_us), scale.label(tick.time_us)));
        put(&mut grid, format_args!("<path class=\"{class}\" d=\"M{:.1} 0v{height}\"/>", scale.x(tick.time_us)));
    }
    let (labels, lines) = marks(recording, scale, height);
    let mut html = String::new();
    put(
        &mut html,
        format_args!(
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Waterfall against time; scrolls sideways\">\n<div class=\"chart\">\n\
             <div class=\"names\" aria-hidden=\"true\">\n<div class=\"corner\"></div>\n{}</div>\n\
             <div class=\"plot\" data-total=\"{}\">\n<div class=\"axis\" aria-hidden=\"true\">{axis}{labels}</div>\n\
             <svg role=\"img\" aria-labelledby=\"picture-title picture-text\" viewBox=\"0 0 {WIDTH} {height}\" preserveAspectRatio=\"none\" style=\"height:{height}px\">\n\
             <title id=\"picture-title\">Waterfall of the launch</title>\n<desc id=\"picture-text\">{}</desc>\n<g class=\"grid\">{grid}</g>\n{}<g class=\"marks\">{lines}</g>\n</svg>\n\
             <div class=\"cursor\" hidden=\"\"></div>\n</div>\n</div>\n</div>\n",
            rows.names,
            summary.total_us,
            escape(&in_words(summary)),
            rows.svg,
        ),
    );
    html
}

/// What the picture shows, for those who do not see it.
fn in_words(summary: &Summary) -> String {
    let mut text = format!("{}; {}.", summary.headline(), summary.lead());
    for phase in &summary.phases {
        let waiting = if phase.waiting_us == 0 { String::new() } else { format!(", {} of it waiting", seconds(phase.waiting_us)) };
        text.push_str(&format!(" {} from {} to {}{waiting}.", super::sentence(phase.name), seconds(phase.start_us), seconds(phase.end_us)));
    }
    text
}

/// Labels and lines of the marks.
fn marks(recording: &Recording, scale: Scale, height: f64) -> (String, String) {
    let (mut labels, mut lines) = (String::new(), String::new());
    let marks = recording.timeline.as_ref().map(|timeline| timeline.marks.as_slice()).unwrap_or_default();
    let mut groups: Vec<(f64, String)> = Vec::new();
    for (mark, name) in marks.iter().filter_map(|mark| Some((mark, mark_name(mark.kind)?))) {
        put(&mut lines, format_args!("<path d=\"M{:.1} 0v{height}\"/>", scale.x(mark.time_us).min(WIDTH - 0.5)));
        let at = scale.percent(mark.time_us);
        match groups.last_mut() {
            Some((first, text)) if at - *first < MARK_DISTANCE && mark.kind != MarkKind::Exited => text.push_str(&format!(", {name}")),
            _ => groups.push((at, name.to_owned())),
        }
    }
    for (at, text) in groups {
        let class = if at > 80.0 { "mark left" } else { "mark" };
        put(&mut labels, format_args!("<span class=\"{class}\" style=\"left:{at:.2}%\">{text}</span>"));
    }
    (labels, lines)
}

/// The area of bytes received, by class, with the rate of the link.
fn received(rows: &mut Rows, timeline: &Timeline) {
    let columns = (timeline.total_us / SLOT_US + 1).min(MAX_COLUMNS);
    let column_us = timeline.total_us.max(1).div_ceil(columns).max(SLOT_US);
    let mut sums = vec![[0u64; CLASSES.len()]; columns as usize + 1];
    for arrival in &timeline.arrivals {
        // What came after the end is not part of the picture.
        if let Some(column) = sums.get_mut((u64::from(arrival.slot) * SLOT_US / column_us) as usize) {
            column[arrival.class as usize] += arrival.bytes;
        }
    }
    let rate = |sum: u64| sum as f64 * 1e6 / column_us as f64;
    let peak = sums.iter().map(|column| rate(column.iter().sum())).fold(0.0, f64::max);
    let link = timeline.estimates.iter().map(|estimate| estimate.bytes_per_s as f64).fold(0.0, f64::max);
    // A burst out of a buffer must not flatten the rest.
    let top = if link > 0.0 { peak.min(link * 1.6).max(link) } else { peak } * 1.08;
    let height = |value: f64| (RATE_HEIGHT * value / top.max(1.0)).min(RATE_HEIGHT);
    let base = rows.top + RATE_HEIGHT;
    let mut paths = [const { String::new() }; CLASSES.len()];
    for (number, column) in (0u64..).zip(&sums) {
        let (x, width) = rows.scale.span(number * column_us, (number + 1) * column_us, 0.0);
        let mut below = 0u64;
        for class in [Class::Launch, Class::Prefetch, Class::Background, Class::Demand] {
            let sum = column[class as usize];
            if sum == 0 || width <= 0.0 {
                continue;
            }
            let (low, high) = (height(rate(below)), height(rate(below + sum)));
            below += sum;
            put(&mut paths[class as usize], format_args!("M{x:.1} {:.1}h{width:.2}v-{:.1}h-{width:.2}z", base - low, high - low));
        }
    }
    put(&mut rows.svg, format_args!("<path class=\"base\" d=\"M0 {base}h{WIDTH}\"/>"));
    for class in CLASSES {
        let path = &paths[class as usize];
        if !path.is_empty() {
            put(&mut rows.svg, format_args!("<path class=\"{}\" d=\"{path}\"/>\n", style(class)));
        }
    }
    rate_line(rows, timeline, base, height);
    rows.row("tall", RATE_HEIGHT, "received", &format!("≤ {}/s", bytes(peak as u64)));
}

fn rate_line(rows: &mut Rows, timeline: &Timeline, base: f64, height: impl Fn(f64) -> f64) {
    let mut line = String::new();
    let measured = timeline.estimates.iter().filter(|estimate| estimate.bytes_per_s > 0);
    let every = (timeline.estimates.len() / MAX_COLUMNS as usize).max(1);
    for estimate in measured.step_by(every) {
        let (x, y) = (rows.scale.x(estimate.time_us), base - height(estimate.bytes_per_s as f64));
        match line.is_empty() {
            true => put(&mut line, format_args!("M{x:.1} {y:.1}")),
            false => put(&mut line, format_args!("H{x:.1}V{y:.1}")),
        }
    }
    if !line.is_empty() {
        put(&mut rows.svg, format_args!("<path class=\"rate\" d=\"{line}H{WIDTH}\"/>\n"));
    }
}

/// When anyone waited.
fn waiting(rows: &mut Rows, timeline: &Timeline, summary: &Summary) {
    let y = rows.top + 7.0;
    let mut spans = merged(&timeline.waits);
    // Spans that cannot be told apart are one.
    let least = timeline.total_us / MAX_SPANS as u64;
    spans.dedup_by(|next, kept| {
        let is_near = next.0.saturating_sub(kept.1) < least;
        if is_near {
            kept.1 = kept.1.max(next.1);
        }
        is_near
    });
    let mut path = String::new();
    for (start, end) in spans {
        let (x, width) = rows.scale.span(start, end, 0.8);
        put(&mut path, format_args!("M{x:.1} {y}h{width:.1}v16h-{width:.1}z"));
    }
    put(&mut rows.svg, format_args!("<path class=\"stall\" d=\"{path}\"/>\n"));
    rows.row("", WAIT_HEIGHT, "waiting", &summary.waiting_us.map(seconds).unwrap_or_default());
}

/// The style of a class of bytes: what someone waited for is drawn like the waiting.
pub fn style(class: Class) -> &'static str {
    match class {
        Class::Launch => "launch",
        Class::Demand => "demand",
        Class::Prefetch => "prefetch",
        Class::Background => "background",
    }
}
