//! The Turbo registry: native API, storage, metadata, models.
//!
//! | folder | knows |
//! |---|---|
//! | `http/` | routes, bodies, limits, status codes |
//! | `service/` | what happens: packs, closures, object streams, launches, learning. No HTTP types, no SQL |
//! | `db/` | all SQL, one file a table |
//! | `blob_storage/` | where packs are kept: a folder, or an object store |
//!
//! An object is visible to a caller only through packs of the repository's own namespace: every query for objects takes
//! a namespace's id, and packs are recorded under the namespace that they were pushed to.
//!
//! Integration tests start it in process: [`serve`] on a listener of port 0.

mod app;
mod blob_storage;
mod config;
mod db;
mod http;
mod maintenance;
mod metrics;
mod probe;
mod service;

pub use app::{App, StartError};
pub use blob_storage::StorageError;
pub use config::{Config, ConfigError, DEFAULT_LISTEN, Limits, LogFormat, OciLimits, Options, S3Options, TlsFiles, TraceLimits};
pub use db::DbError;
pub use http::router;
pub use http::server::{serve, serve_app};
pub use http::tls::TlsError;
pub use maintenance::{Maintenance, MaintenanceError, Restored, TrashEntry};
pub use probe::{ProbeError, probe};
pub use service::gc::{
    DamagedPack, GcOptions, GcReport, GcSettings, LostPack, Mended, ObjectReason, Orphan, PackReason, ReconcileOptions, ReconcileReport, RootCounts,
    ScrubOptions, ScrubReport,
};

/// An error and its causes, in one line, for logs.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // A transparent error shows its source's text already.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
