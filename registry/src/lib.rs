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
pub mod console;
mod db;
mod http;
mod maintenance;
mod metrics;
mod probe;
mod service;

pub use app::{App, StartError};
pub use blob_storage::StorageError;
pub use config::{
    CONNECTIONS_PER_ADDRESS, Config, ConfigError, DEFAULT_LISTEN, Limits, LogFormat, LoginLimit, LoginLimits, OciLimits, Options, S3Options, TlsFiles,
    TraceLimits,
};
pub use db::DbError;
pub use http::router;
pub use http::server::{serve, serve_app};
pub use http::tls::TlsError;
pub use maintenance::{Maintenance, MaintenanceError, Restored, TrashEntry};
pub use probe::{ProbeError, probe};
pub use service::access::manage::ManageError;
pub use service::access::rights::{ParseAccessError, Right, Rights, Scope, Subject, Target};
pub use service::access::setup::{FirstAdministrator, SetupError};

/// A time, in milliseconds since 1970, as RFC 3339 in UTC: `2026-11-26T04:00:00Z`.
pub(crate) fn time_text(ms: i64) -> String {
    let (days, seconds) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000) / 1000);
    // Days since 1 March of year 0, so that a leap day is the last of its year (H. Hinnant, "chrono-compatible low-level date
    // algorithms", civil_from_days).
    let since_march = days + 719_468;
    let (era, day_of_era) = (since_march.div_euclid(146_097), since_march.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
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

#[cfg(test)]
mod tests {
    use super::time_text;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time_text(seconds * 1000), text);
        }
    }
}
