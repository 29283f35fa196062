//! What a run tells at its end: statistics and traces, in files that the command line names.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use client_store::{RunStats, Timeline};
use layer_format::Digest;
use layer_format::recording::{Recording, Totals};
use layer_format::trace::Trace;
use serde::Serialize;

use super::warn;
use crate::stack::Stack;
use crate::traces::summary::Summary;

/// What `--stats` writes; `docs/json.md` explains the fields.
#[derive(Debug, Serialize)]
pub struct StatsFile {
    pub version: u32,
    pub images: Vec<ImageUsed>,
    pub entry_point: String,
    pub mount_us: u64,
    pub first_process_us: u64,
    pub exit_us: u64,
    pub total_us: u64,
    pub exit_code: u8,
    #[serde(flatten)]
    pub run: RunStats,
}

/// An image of the run.
#[derive(Debug, Serialize)]
pub struct ImageUsed {
    pub name: String,
    pub digest: Digest,
}

/// A file that the end of a run writes, opened before it: so that a name that cannot be written is known at once.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    file: std::fs::File,
}

impl Report {
    /// Opens it, if one was asked for.
    pub fn open(path: &Option<PathBuf>) -> Result<Option<Self>> {
        let open =
            |path: &PathBuf| std::fs::File::create(path).map(|file| Self { path: path.clone(), file }).with_context(|| format!("writing {}", path.display()));
        path.as_ref().map(open).transpose()
    }

    /// What the application did counts, not what is told of it: a failure is a warning.
    pub fn write(mut self, content: &[u8]) {
        let written = self.file.write_all(content).with_context(|| format!("writing {}", self.path.display()));
        warn("a report is lost", written);
    }
}

/// The trace of the image `which`, with how the run of all images went.
pub fn recording(timeline: &Timeline, stack: &Stack, which: usize, trace: Trace) -> Recording {
    let run = total(stack.members.iter().map(|member| member.session.stats()));
    let totals = Totals { received_bytes: run.bytes_fetched, wasted_bytes: run.bytes_wasted, local_bytes: run.local_bytes };
    let details = stack.members.get(which).map(|member| member.session.trace_details());
    let timeline = details.map(|mut details| {
        // Something may have been touched since the trace was taken.
        details.sizes.truncate(trace.events.len());
        timeline.finish(details.started, details.processes, details.sizes, totals)
    });
    Recording { trace, timeline }
}

/// The last line of `--verbose`.
pub fn summed_up(recording: &Recording) -> String {
    let summary = Summary::new(recording);
    format!("turbo: {}; {}", summary.headline(), summary.lead())
}

/// The sum of several images' statistics; the hit rate weighted by what each needed.
pub fn total(all: impl IntoIterator<Item = RunStats>) -> RunStats {
    let mut sum = RunStats::default();
    let mut weighted = (0.0, 0.0);
    for mut one in all {
        if one.requests == 0 {
            // Nothing was measured; these are what a fetcher starts from.
            (one.round_trip_us, one.rate_bytes_per_s) = (0, 0);
        }
        sum.demand_misses += one.demand_misses;
        sum.demand_requests += one.demand_requests;
        sum.requests += one.requests;
        sum.stall_us += one.stall_us;
        // Of several images the slower one: the waits themselves are not kept.
        sum.demand_p50_us = sum.demand_p50_us.max(one.demand_p50_us);
        sum.demand_p99_us = sum.demand_p99_us.max(one.demand_p99_us);
        sum.demand_max_us = sum.demand_max_us.max(one.demand_max_us);
        sum.bytes_fetched += one.bytes_fetched;
        sum.bytes_received += one.bytes_received;
        sum.bytes_needed += one.bytes_needed;
        sum.bytes_prefetched += one.bytes_prefetched;
        sum.bytes_prefetched_used += one.bytes_prefetched_used;
        sum.bytes_background += one.bytes_background;
        sum.bytes_wasted += one.bytes_wasted;
        sum.local_bytes += one.local_bytes;
        sum.damaged_objects += one.damaged_objects;
        sum.retries += one.retries;
        sum.promotions += one.promotions;
        sum.store_error = sum.store_error.or(one.store_error);
        sum.round_trip_us = sum.round_trip_us.max(one.round_trip_us);
        sum.rate_bytes_per_s = sum.rate_bytes_per_s.max(one.rate_bytes_per_s);
        let weight = one.bytes_needed as f64;
        weighted = (weighted.0 + weight * one.hit_rate, weighted.1 + weight);
    }
    sum.hit_rate = if weighted.1 > 0.0 { weighted.0 / weighted.1 } else { 1.0 };
    sum
}
