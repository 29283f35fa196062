//! Progress bars: on stderr, and only if that is a terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client_store::transfer::{Phase, Progress as Transfer, TransferOptions};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::shows_progress;

/// A progress bar, or nothing where nobody looks. Dropping it clears its line.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    what: &'static str,
    entries: AtomicU64,
}

impl Bar {
    /// A bar for work whose total is not known yet.
    pub fn spinner(what: &'static str) -> Self {
        Self::new(what, "{spinner} {msg}: {prefix}{bytes} ({bytes_per_sec})")
    }

    /// A bar for a transfer.
    pub fn transfer(what: &'static str) -> Self {
        Self::new(what, "{msg} {wide_bar} {bytes}/{total_bytes} ({bytes_per_sec}, {eta})")
    }

    fn new(what: &'static str, template: &str) -> Self {
        let bar = if shows_progress() { ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, what, entries: AtomicU64::new(0) }
    }

    /// The whole work has this many bytes.
    pub fn set_total(&self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    /// So many bytes are done.
    pub fn set_done(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }
}

impl chunker::Progress for Bar {
    fn advance(&self, entries: u64, bytes: u64) {
        let entries = self.entries.fetch_add(entries, Ordering::Relaxed) + entries;
        self.bar.set_prefix(format!("{entries} entries, "));
        self.bar.inc(bytes);
    }
}

impl Transfer for Bar {
    fn phase(&self, phase: Phase, total_bytes: Option<u64>) {
        self.bar.set_message(match phase {
            Phase::Manifest => "asking for the manifest",
            Phase::Trees => "fetching the file list",
            Phase::Compare => "asking what is missing",
            Phase::Data => self.what,
            Phase::Commit => "finishing",
            _ => "working",
        });
        self.bar.set_position(0);
        self.bar.set_length(total_bytes.unwrap_or(0));
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

/// How pushes and pulls are done: with a progress bar.
pub fn options(what: &'static str) -> TransferOptions {
    TransferOptions { progress: Arc::new(Bar::transfer(what)), ..TransferOptions::default() }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
