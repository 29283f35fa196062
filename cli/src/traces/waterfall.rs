//! A launch drawn against time, as one HTML page that needs nothing else.
//!
//! The page is a static picture: inline SVG whose horizontal axis is time, with all text beside it in HTML, so that it
//! stretches to any width without distortion. A little script adds zoom and a readout. Nothing is loaded from anywhere,
//! and the page's own policy forbids it. What comes from the image (paths, names of programs) is escaped. However long
//! the launch, the page stays below [`MAX_LEN`]: what is too dense to be seen apart is drawn together.

mod chart;
mod lanes;
mod scale;
mod tables;

use std::fmt::Write;

use layer_format::recording::{CLASSES, Class, MarkKind, Recording};

use super::summary::{Summary, class_name, seconds};
use crate::output::bytes;
use chart::Chart;

/// Most bytes of a page.
pub const MAX_LEN: usize = 1 << 20;

const STYLE: &str = include_str!("waterfall/page.css");
const SCRIPT: &str = include_str!("waterfall/page.js");
/// SHA-256 of [`SCRIPT`], in base64: the page allows this script alone.
const SCRIPT_HASH: &str = "KhczDgWB7GcQsQw8rPNJa+X0hpi90RE/tsgoyIzh7AQ=";

/// The page of a recording; `name` says of what.
pub fn page(recording: &Recording, name: &str) -> String {
    let summary = Summary::new(recording);
    let chart = Chart::new(recording, &summary);
    let trace = &recording.trace;
    let entry_point = if trace.entry_point.is_empty() { "the startup file" } else { &trace.entry_point };
    let title = escape(&format!("{name}: {}", summary.headline()));
    let mut out = String::with_capacity(64 << 10);
    put(
        &mut out,
        format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<meta name=\"color-scheme\" content=\"light dark\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'\"/>\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <header>\n<p class=\"what\">Launch of <b>{}</b> <span>{}</span> <span>{}</span> <code>{}</code></p>\n<h1>{}</h1>\n<p class=\"lead\">{}.</p>\n</header>\n",
            escape(name),
            escape(entry_point),
            escape(&trace.architecture),
            escape(&trace.image.short()),
            headline(&summary),
            escape(&sentence(&summary.lead())),
        ),
    );
    numbers(&mut out, recording, &summary);
    figure(&mut out, recording, &chart);
    tables::all(&mut out, recording, &summary);
    put(&mut out, format_args!("<footer><p>{}</p></footer>\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n", footer(recording)));
    debug_assert!(out.len() <= MAX_LEN, "what is too dense is drawn together");
    out
}

fn footer(recording: &Recording) -> &'static str {
    match recording.timeline {
        Some(_) => {
            "Drawn by <code>turbo trace show --html</code>. Bytes are uncompressed; times count from the start of turbo. The waits and requests stay on this machine."
        }
        None => {
            "Drawn by <code>turbo trace show --html</code> from a bare trace, which has no waits and no requests: <code>turbo trace record</code> keeps them."
        }
    }
}

/// The headline, with the waiting set apart.
fn headline(summary: &Summary) -> String {
    let total = seconds(summary.total_us);
    match summary.waiting_us {
        Some(0) => format!("{total}, none of it waiting"),
        Some(waiting) => format!("{total}, <em>{} of it waiting</em>", seconds(waiting)),
        None => total,
    }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn numbers(out: &mut String, recording: &Recording, summary: &Summary) {
    let mut cells: Vec<(&str, String)> = Vec::new();
    if let Some(timeline) = &recording.timeline {
        // The end is in the headline.
        let marks = timeline.marks.iter().filter(|mark| mark.kind != MarkKind::Exited);
        cells.extend(marks.filter_map(|mark| Some((chart::mark_name(mark.kind)?, seconds(mark.time_us)))));
        for class in CLASSES {
            let sum: u64 = timeline.arrivals.iter().filter(|arrival| arrival.class == class).map(|arrival| arrival.bytes).sum();
            if sum > 0 {
                cells.push((class_name(class), bytes(sum)));
            }
        }
        if let Some(link) = timeline.estimates.iter().rev().find(|estimate| estimate.bytes_per_s > 0) {
            cells.push(("round trip", seconds(link.round_trip_us)));
            cells.push(("rate of the link", format!("{}/s", bytes(link.bytes_per_s))));
        }
    }
    let local = recording.trace.events.iter().filter(|event| event.source == layer_format::trace::Source::Local).count();
    cells.push((
        "first touches",
        match local {
            0 => summary.touches.to_string(),
            _ => format!("{}, {local} local", summary.touches),
        },
    ));
    put(out, format_args!("<dl class=\"numbers\">\n"));
    for (name, value) in cells {
        put(out, format_args!("<div><dt>{name}</dt><dd>{}</dd></div>\n", escape(&value)));
    }
    put(out, format_args!("</dl>\n"));
}

fn figure(out: &mut String, recording: &Recording, chart: &Chart) {
    put(out, format_args!("<figure>\n<figcaption>\n<ul class=\"legend\">\n"));
    if let Some(timeline) = &recording.timeline {
        let has = |class: Class| timeline.arrivals.iter().any(|arrival| arrival.class == class);
        put(out, format_args!("<li class=\"stall\">waiting, and what was asked for because of it</li>\n"));
        let names = [(Class::Launch, "launch", "launch stream"), (Class::Prefetch, "prefetch", "prefetch"), (Class::Background, "background", "background")];
        for (class, style, name) in names {
            if has(class) {
                put(out, format_args!("<li class=\"{style}\">{name}</li>\n"));
            }
        }
        if timeline.estimates.iter().any(|estimate| estimate.bytes_per_s > 0) {
            put(out, format_args!("<li class=\"rate\">rate of the link</li>\n"));
        }
    }
    put(out, format_args!("<li class=\"touch\">touch, there in time</li>\n<li class=\"life\">process</li>\n</ul>\n</figcaption>\n"));
    put(
        out,
        format_args!(
            "<div class=\"tools\" hidden=\"\"><button type=\"button\" data-zoom=\"-1\" aria-label=\"Zoom out\">\u{2212}</button>\
             <button type=\"button\" data-zoom=\"1\" aria-label=\"Zoom in\">+</button><button type=\"button\" data-zoom=\"0\">All</button>\
             <output class=\"readout\"></output></div>\n"
        ),
    );
    out.push_str(&chart.html);
    put(out, format_args!("</figure>\n"));
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = out.write_fmt(text);
}

/// Text for HTML: also in attributes. Control characters are shown, not obeyed.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in vm::printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// The end of a text that is too long, which tells more of a path than its start.
fn end_of(text: &str, max: usize) -> String {
    let count = text.chars().count();
    if count <= max { text.to_owned() } else { std::iter::once('\u{2026}').chain(text.chars().skip(count - max + 1)).collect() }
}

#[cfg(test)]
mod tests;
