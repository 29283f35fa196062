//! Collects garbage from time to time while the server runs. Of several servers on one database, one collects in a namespace at
//! a time, and not again before most of the interval is over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::gc::{Collector, GcError, GcOptions, GcReport};
use super::lease::ms;
use crate::db::gc::gc_finished_at;
use crate::db::root::namespace_list;
use crate::metrics::Metrics;

/// The task.
#[derive(Debug)]
pub(crate) struct Janitor(Option<JoinHandle<()>>);

impl Janitor {
    /// Starts it, unless the settings say never.
    pub(crate) fn start(collector: Collector, metrics: Arc<Metrics>) -> Self {
        let interval = collector.settings.interval;
        if interval.is_zero() {
            return Self(None);
        }
        Self(Some(tokio::spawn(async move {
            loop {
                // Servers that were started at the same time do not come at the same time.
                tokio::time::sleep(interval.mul_f64(rand::random_range(0.75..1.25))).await;
                if let Err(error) = round(&collector, interval, &metrics).await {
                    metrics.gc_held_back.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(error = crate::chain(&error), "a garbage collection did not end; the next one goes on");
                }
            }
        })))
    }

    /// Stops it, wherever it is: the next collection goes on.
    pub(crate) fn stop(&self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn round(collector: &Collector, interval: Duration, metrics: &Metrics) -> Result<(), GcError> {
    let db = &collector.objects.db;
    let namespaces = {
        let mut db = db.read().await?;
        namespace_list(&mut db).await?
    };
    for (namespace, name) in namespaces {
        let finished = {
            let mut db = db.read().await?;
            gc_finished_at(&mut db, namespace).await?
        };
        if finished.is_some_and(|at| at > db.now() - ms(interval) / 2) {
            continue;
        }
        let report = collector.namespace(namespace, &name, GcOptions::default()).await?;
        note(&report, metrics);
    }
    Ok(())
}

fn note(report: &GcReport, metrics: &Metrics) {
    metrics.gc_objects_removed.fetch_add(report.objects_removed, Ordering::Relaxed);
    metrics.gc_freed_bytes.fetch_add(report.bytes_freed, Ordering::Relaxed);
    let name = &report.namespace;
    match &report.held_back {
        Some(why) if !why.contains("another collector") => {
            metrics.gc_held_back.fetch_add(1, Ordering::Relaxed);
            tracing::error!(namespace = name, "garbage of namespace {name} is not removed: {why}");
        }
        Some(_) => {}
        None if report.is_quiet() => tracing::debug!(namespace = name, "no garbage in namespace {name}"),
        None => tracing::info!(
            namespace = name,
            objects_removed = report.objects_removed,
            candidates = report.candidates_new + report.candidates_waiting,
            packs_rewritten = report.packs_rewritten,
            freed_bytes = report.bytes_freed,
            "collected garbage in namespace {name}"
        ),
    }
}
