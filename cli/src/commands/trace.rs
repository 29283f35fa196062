//! `turbo trace`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use layer_format::reference::ImageReference;
use layer_format::trace::{BUCKET_LEN, Source, Touch};

use crate::app::App;
use crate::exit::Exit;
use crate::traces;

/// Recorded first touches of runs. Every run records one; `turbo run --trace FILE` writes it to a file as well.
#[derive(Debug, clap::Subcommand)]
pub enum Trace {
    /// Show what the newest run of an image touched first, in order.
    Show(Show),
    Send(super::trace_send::Send),
}

/// Which trace.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The image.
    #[arg(required_unless_present = "file")]
    image: Option<ImageReference>,
    /// A file that `turbo run --trace` wrote.
    #[arg(long, conflicts_with = "image")]
    file: Option<PathBuf>,
}

impl Trace {
    /// Prints the events.
    pub fn run(self, app: &App) -> Result<Exit> {
        let show = match self {
            Self::Show(show) => show,
            Self::Send(send) => return send.run(app),
        };
        let trace = match (&show.file, &show.image) {
            (Some(file), _) => {
                let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
                layer_format::trace::Trace::decode(&bytes).with_context(|| format!("{} is not a trace", file.display()))?
            }
            (None, Some(image)) => traces::load(&app.settings.home, &image.repository)?,
            (None, None) => return Ok(Exit::Usage),
        };
        let source = |source| match source {
            Source::Local => "local",
            Source::Prefetched => "prefetched",
            Source::Missed => "missed",
        };
        let path = |index: u32| trace.paths.get(index as usize).map(ToString::to_string).unwrap_or_default();
        let events: Vec<_> = trace
            .events
            .iter()
            .map(|event| {
                let (touch, bucket) = match event.touch {
                    Touch::Meta => ("meta", None),
                    Touch::Data { bucket } => ("data", Some(bucket)),
                };
                serde_json::json!({"time_us": event.time_us, "process": event.process, "layer": event.layer, "path": path(event.path), "touch": touch, "bucket": bucket, "source": source(event.source)})
            })
            .collect();
        let value = serde_json::json!({"image": trace.image, "entry_point": trace.entry_point, "architecture": trace.architecture, "duration_us": trace.duration_us, "bucket_bytes": BUCKET_LEN, "events": events});
        app.output.result(&value, |out| {
            writeln!(
                out,
                "{} started in {}, {:.3} s, {} first touches",
                if trace.entry_point.is_empty() { "the startup file" } else { &trace.entry_point },
                trace.image.short(),
                trace.duration_us as f64 / 1e6,
                trace.events.len()
            )?;
            trace.events.iter().try_for_each(|event| {
                let what = match event.touch {
                    Touch::Meta => "entry".to_owned(),
                    Touch::Data { bucket } => format!("{} KiB", u64::from(bucket) * BUCKET_LEN / 1024),
                };
                writeln!(out, "{:9.3} ms  {:>2}  {:10}  {} {what}", event.time_us as f64 / 1e3, event.process, source(event.source), path(event.path))
            })
        })?;
        Ok(Exit::Success)
    }
}
