//! `turbo trace show`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use layer_format::recording::{Recording, Timeline};
use layer_format::reference::ImageReference;
use layer_format::trace::{BUCKET_LEN, Source, Touch};
use serde_json::{Value, json};

use crate::app::App;
use crate::exit::Exit;
use crate::output::{bytes, table, write_to_stdout};
use crate::traces;
use crate::traces::summary::{Summary, class_name, longest, seconds, target, waiter};
use crate::traces::waterfall;

/// Most processes that are listed.
const MAX_PROCESSES: usize = 20;

/// Which recording, and how.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// A file that `turbo trace record` or `turbo run --trace` wrote, or an image: the trace of its newest run here.
    #[arg(value_name = "FILE|IMAGE", required_unless_present = "file")]
    what: Option<String>,
    /// The file, if its name could be an image's.
    #[arg(long, conflicts_with = "what", value_name = "FILE")]
    file: Option<PathBuf>,
    /// List every first touch, in order.
    #[arg(long)]
    events: bool,
    /// Draw the launch against time, as a page of HTML [default: the recording's name with .html; `-`: stdout].
    #[arg(long, value_name = "OUT", num_args = 0..=1)]
    html: Option<Option<PathBuf>>,
}

impl Show {
    /// Shows it.
    pub fn run(self, app: &App) -> Result<Exit> {
        let (recording, name, file) = self.open(app)?;
        if let Some(out) = &self.html {
            return draw(app, &recording, &name, out.clone().unwrap_or_else(|| file.with_extension("html")));
        }
        let summary = Summary::new(&recording);
        app.output.result(&in_json(&recording, &summary), |out| {
            in_words(out, &recording, &summary)?;
            if self.events { events(out, &recording) } else { Ok(()) }
        })?;
        Ok(Exit::Success)
    }

    /// The recording, how it is called, and the file that it is, or would be, in.
    fn open(&self, app: &App) -> Result<(Recording, String, PathBuf)> {
        let of_file = |file: &Path| {
            let recording = traces::open(file)?;
            let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let name = name_of(app, &recording).unwrap_or_else(stem);
            Ok((recording, name, file.to_owned()))
        };
        let what = match (&self.file, &self.what) {
            (Some(file), _) => return of_file(file),
            (None, what) => what.as_deref().unwrap_or_default(),
        };
        if Path::new(what).is_file() {
            return of_file(Path::new(what));
        }
        let Ok(image) = what.parse::<ImageReference>() else { bail!("there is no file `{what}`, and no image has such a name") };
        let trace = traces::load(&app.settings.home, &image.repository).with_context(|| format!("there is no file `{what}`"))?;
        let file = PathBuf::from(crate::place::default_name(std::slice::from_ref(&image)));
        Ok((Recording { trace, timeline: None }, image.to_string(), file))
    }
}

/// How the image of a recording is called here, if it is known.
fn name_of(app: &App, recording: &Recording) -> Option<String> {
    // Nobody gets a store for looking at a file.
    let store = app.settings.home.exists().then(|| app.store().ok()).flatten()?;
    let known = store.images().ok()?.into_iter().find(|known| known.digest == recording.trace.image)?;
    known.names.into_iter().next()
}

fn draw(app: &App, recording: &Recording, name: &str, out: PathBuf) -> Result<Exit> {
    let page = waterfall::page(recording, name);
    if out == Path::new("-") {
        write_to_stdout(page.as_bytes())?;
        return Ok(Exit::Success);
    }
    std::fs::write(&out, &page).with_context(|| format!("writing {}", out.display()))?;
    app.output.result(&json!({"file": out, "bytes": page.len()}), |to| writeln!(to, "{}", vm::printable(&out.display().to_string())))?;
    Ok(Exit::Success)
}

fn source_name(source: Source) -> &'static str {
    match source {
        Source::Local => "local",
        Source::Prefetched => "prefetched",
        Source::Missed => "missed",
    }
}

fn in_json(recording: &Recording, summary: &Summary) -> Value {
    let trace = &recording.trace;
    let path = |index: u32| trace.paths.get(index as usize).map(ToString::to_string).unwrap_or_default();
    let sizes = recording.timeline.as_ref().map(|timeline| timeline.sizes.as_slice()).unwrap_or_default();
    let event = |(at, event): (usize, &layer_format::trace::Event)| {
        let (touch, bucket) = match event.touch {
            Touch::Meta => ("meta", None),
            Touch::Data { bucket } => ("data", Some(bucket)),
        };
        json!({"time_us": event.time_us, "process": event.process, "layer": event.layer, "path": path(event.path), "touch": touch, "bucket": bucket,
            "source": source_name(event.source), "bytes": sizes.get(at)})
    };
    let events: Vec<_> = trace.events.iter().enumerate().map(event).collect();
    json!({"image": trace.image, "entry_point": trace.entry_point, "architecture": trace.architecture, "duration_us": trace.duration_us, "bucket_bytes": BUCKET_LEN,
        "summary": summary, "timeline": recording.timeline.as_ref().map(timeline), "events": events})
}

fn timeline(timeline: &Timeline) -> Value {
    let mark = |mark: &layer_format::recording::Mark| json!({"time_us": mark.time_us, "what": format!("{:?}", mark.kind).to_lowercase()});
    let process = |process: &layer_format::recording::Process| json!({"name": process.name, "start_us": process.start_us, "parent": process.parent, "thread": process.is_thread});
    let wait = |wait: &layer_format::recording::Wait| {
        json!({"start_us": wait.start_us, "duration_us": wait.duration_us, "process": wait.process, "objects": wait.objects, "promoted": wait.is_promoted,
        "path": wait.path.and_then(|path| timeline.paths.get(path as usize)).map(ToString::to_string), "bucket": match wait.touch {
            Touch::Meta => None,
            Touch::Data { bucket } => Some(bucket),
        }})
    };
    let request = |request: &layer_format::recording::Request| {
        json!({"start_us": request.start_us, "first_byte_us": request.first_byte_us, "duration_us": request.duration_us, "class": class_name(request.class),
            "bytes": request.bytes, "objects": request.objects})
    };
    let arrival = |arrival: &layer_format::recording::Arrival| json!({"time_us": u64::from(arrival.slot) * layer_format::recording::SLOT_US, "class": class_name(arrival.class), "bytes": arrival.bytes});
    let link =
        |link: &layer_format::recording::Estimate| json!({"time_us": link.time_us, "round_trip_us": link.round_trip_us, "rate_bytes_per_s": link.bytes_per_s});
    json!({"trace_start_us": timeline.trace_start_us, "marks": list(&timeline.marks, mark), "processes": list(&timeline.processes, process),
        "waits": list(&timeline.waits, wait), "requests": list(&timeline.requests, request), "arrivals": list(&timeline.arrivals, arrival),
        "link": list(&timeline.estimates, link)})
}

fn list<T>(items: &[T], each: impl Fn(&T) -> Value) -> Vec<Value> {
    items.iter().map(each).collect()
}

fn in_words(out: &mut dyn Write, recording: &Recording, summary: &Summary) -> std::io::Result<()> {
    let trace = &recording.trace;
    let started = if trace.entry_point.is_empty() { "the startup file".into() } else { vm::printable(&trace.entry_point) };
    writeln!(out, "{started} started in {}, {} first touches", trace.image.short(), trace.events.len())?;
    writeln!(out, "{}; {}", summary.headline(), summary.lead())?;
    if !summary.phases.is_empty() {
        writeln!(out)?;
        let row = |phase: &traces::summary::Phase| {
            vec![
                phase.name.to_owned(),
                seconds(phase.end_us - phase.start_us),
                seconds(phase.waiting_us),
                phase.touches.to_string(),
                phase.missed.to_string(),
                bytes(phase.received_bytes),
            ]
        };
        table(out, &["PHASE", "TOOK", "WAITING", "TOUCHES", "MISSED", "RECEIVED"], &summary.phases.iter().map(row).collect::<Vec<_>>())?;
    }
    writeln!(out)?;
    let mut lanes: Vec<_> = summary.processes.iter().collect();
    lanes.sort_by_key(|lane| std::cmp::Reverse((lane.waiting_us, lane.touches)));
    let row = |lane: &&traces::summary::Lane| {
        vec![vm::printable(&lane.name), seconds(lane.start_us), seconds(lane.waiting_us), lane.touches.to_string(), lane.missed.to_string()]
    };
    let rows: Vec<_> = lanes.iter().take(MAX_PROCESSES).map(row).collect();
    table(out, &["PROCESS", "FIRST SEEN", "WAITED", "TOUCHES", "MISSED"], &rows)?;
    if lanes.len() > MAX_PROCESSES {
        writeln!(out, "and {} more", lanes.len() - MAX_PROCESSES)?;
    }
    match &recording.timeline {
        None => writeln!(out, "\nNo waits were recorded: `turbo trace record` keeps them. --events lists the touches."),
        Some(timeline) if timeline.waits.is_empty() => Ok(()),
        Some(timeline) => {
            writeln!(out)?;
            let row = |wait: &&layer_format::recording::Wait| {
                vec![seconds(wait.duration_us), seconds(wait.start_us), vm::printable(&waiter(timeline, wait)), vm::printable(&target(timeline, wait))]
            };
            table(out, &["WAITED", "AT", "PROCESS", "FOR"], &longest(timeline).iter().map(row).collect::<Vec<_>>())
        }
    }
}

fn events(out: &mut dyn Write, recording: &Recording) -> std::io::Result<()> {
    let trace = &recording.trace;
    writeln!(out)?;
    trace.events.iter().try_for_each(|event| {
        let what = match event.touch {
            Touch::Meta => "entry".to_owned(),
            Touch::Data { bucket } => format!("{} KiB", u64::from(bucket) * BUCKET_LEN / 1024),
        };
        let path = trace.paths.get(event.path as usize).map(|path| vm::printable(&path.to_string())).unwrap_or_default();
        writeln!(out, "{:9.3} ms  {:>2}  {:10}  {path} {what}", event.time_us as f64 / 1e3, event.process, source_name(event.source))
    })
}
