use layer_format::recording::{Arrival, Estimate, Mark, MarkKind, Process, Request, SLOT_US, Timeline, Totals, Wait};
use layer_format::trace::{Event, Source, Touch, Trace};
use layer_format::{Digest, LayerPath};

use super::*;

/// A launch with so many of everything, whose names want to be markup.
fn recording(count: usize, processes: u16) -> Recording {
    let path = |number: usize| LayerPath::new(format!("usr/<script>alert({number})<\\script>&\"'\u{1b}[2J\u{202e}\n{number}")).unwrap();
    let total_us = 3_000_000;
    let time = |number: usize| (number as u64 * 2_900_000) / count.max(1) as u64;
    let event = |number: usize| Event {
        time_us: time(number),
        process: number as u16 % processes,
        layer: 0,
        path: (number % 50) as u32,
        touch: Touch::Data { bucket: number as u32 },
        source: [Source::Local, Source::Prefetched, Source::Missed][number % 3],
    };
    let wait = |number: usize| Wait {
        start_us: time(number),
        duration_us: 20 + (number as u64 % 977) * 100,
        process: Some(number as u16 % processes),
        path: Some((number % 50) as u32),
        touch: Touch::Meta,
        objects: 1,
        is_promoted: number.is_multiple_of(2),
    };
    let request = |number: usize| Request {
        start_us: time(number),
        first_byte_us: (!number.is_multiple_of(7)).then_some(100_000),
        duration_us: 150_000,
        class: CLASSES[number % 4],
        bytes: 10_000,
        objects: 3,
    };
    let slots = (total_us / SLOT_US) as usize;
    let arrivals = (0..slots.min(count) * 4).map(|number| Arrival { slot: number as u32 / 4, class: CLASSES[number % 4], bytes: 50_000 });
    let process = |number: u16| Process { start_us: u64::from(number) * 700, parent: number.checked_sub(1), is_thread: number % 5 == 4, name: "<b>sh".into() };
    let trace = Trace {
        image: Digest::of(b"image"),
        entry_point: "</title><script>".into(),
        architecture: "x86_64".into(),
        duration_us: total_us,
        paths: (0..50).map(path).collect(),
        events: (0..count).map(event).collect(),
    };
    let timeline = Timeline {
        total_us,
        trace_start_us: 100_000,
        totals: Totals { received_bytes: 12_300_000, wasted_bytes: 492_000, local_bytes: 5 },
        marks: [(90_000, MarkKind::Manifest), (150_000, MarkKind::Mounted), (160_000, MarkKind::Started), (total_us, MarkKind::Exited)]
            .map(|(time_us, kind)| Mark { time_us, kind })
            .to_vec(),
        processes: (0..processes).map(process).collect(),
        trace_processes: (0..processes).collect(),
        sizes: Vec::new(),
        paths: (0..50).map(path).collect(),
        waits: (0..count).map(wait).collect(),
        requests: (0..count).map(request).collect(),
        arrivals: arrivals.collect(),
        estimates: (0..count.min(5000)).map(|number| Estimate { time_us: time(number), round_trip_us: 100_000, bytes_per_s: 11_900_000 }).collect(),
    };
    Recording { trace, timeline: Some(timeline) }
}

/// Fails unless every element that is opened is closed, in order. Returns all text, and all attributes.
fn parse(page: &str) -> (String, Vec<(String, String)>) {
    let body = page.strip_prefix("<!doctype html>").unwrap();
    let (mut open, mut text, mut attributes) = (Vec::<String>::new(), String::new(), Vec::new());
    let mut rest = body;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        let raw = open.last().is_some_and(|name| name == "script" || name == "style");
        if raw && !tag.starts_with('/') {
            text.push('<');
            rest = tag;
            continue;
        }
        let (tag, after) = tag.split_once('>').expect("a tag ends");
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "elements nest");
            continue;
        }
        let (tag, is_empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut given) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "`{name}` is no element");
        while let Some((attribute, value)) = given.split_once("=\"") {
            let (value, more) = value.split_once('"').expect("a value ends");
            attributes.push((attribute.trim().to_owned(), value.to_owned()));
            given = more;
        }
        assert_eq!(given.trim(), "", "attributes have values in {tag}");
        if !is_empty {
            open.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "{open:?} stays open");
    (text, attributes)
}

#[test]
fn a_page_is_well_formed_needs_nothing_and_obeys_no_name() {
    for (count, processes) in [(0, 1), (1, 1), (300, 7), (5000, 90)] {
        let recording = recording(count, processes);
        let page = page(&recording, "tools/<i>app");
        let (text, attributes) = parse(&page);
        assert_eq!(page.matches("<script").count(), 1, "no script but ours");
        for (name, value) in &attributes {
            assert!(!matches!(name.as_str(), "src" | "href" | "srcset" | "action" | "data") && !name.starts_with("on"), "{name}={value}");
            assert!(!value.contains("http:") && !value.contains("https:") && !value.contains("javascript:"), "{name}={value}");
        }
        assert!(!page.contains("url(") && !page.contains("@import"), "styles load nothing");
        assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}'), "control characters are shown");
        assert!(text.contains("tools/&lt;i&gt;app") && text.contains("3.00 s"), "{}", &text[..500]);
        if count == 300 {
            assert!(text.contains("66 % of touches were there in time; 12.3 MB received, 4 % of no use"), "what the reader should know is said");
            assert!(text.contains("&lt;script&gt;alert(") && text.contains("first process") && text.contains("11.9 MB"));
        }
    }
}

#[test]
fn a_page_of_a_bare_trace_says_what_it_lacks() {
    let bare = Recording { timeline: None, ..recording(300, 4) };
    let (text, _) = parse(&page(&bare, "app"));
    assert!(text.contains("turbo trace record") && text.contains("66 % of touches") && !text.contains("Longest waits"));
}

#[test]
fn a_page_stays_small_however_much_happened() {
    let page = page(&recording(100_000, 4000), "app");
    assert!(page.len() <= MAX_LEN, "{} bytes", page.len());
    parse(&page);
}

#[test]
fn the_page_allows_its_own_script() {
    use std::io::Write;
    let mut command = std::process::Command::new("sha256sum");
    let Ok(mut child) = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn() else {
        eprintln!("skipped: there is no sha256sum");
        return;
    };
    child.stdin.take().unwrap().write_all(SCRIPT.as_bytes()).unwrap();
    let hex = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let bytes: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let value = group.iter().chain([&0; 2]).take(3).fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        let digits = (0..4).map(|at| if at <= group.len() { char::from(DIGITS[(value >> (18 - 6 * at)) as usize & 63]) } else { '=' });
        text.extend(digits);
    }
    assert_eq!(text, SCRIPT_HASH, "page.js was changed: this is its hash");
}
