//! The settings that are numbers: where each goes, and its bounds. What is out of bounds is refused rather than bent, since
//! whoever wrote it meant something.

use std::time::Duration;

use super::{Config, ConfigError, Options};

const MIB: u64 = 1 << 20;
const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;
/// As many as there can be sockets or threads, and then some.
const MANY: u64 = 1 << 20;

/// A bounded setting, for the documentation.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) key: &'static str,
    pub(super) min: u64,
    pub(super) max: u64,
}

/// What a number becomes in [`Config`].
trait Number: Copy {
    fn of(number: u64) -> Self;
    /// The other way, if there is one.
    fn number(self) -> Option<u64>;
}

impl Number for u64 {
    fn of(number: u64) -> Self {
        number
    }

    fn number(self) -> Option<u64> {
        Some(self)
    }
}

impl Number for u32 {
    fn of(number: u64) -> Self {
        Self::try_from(number).unwrap_or(Self::MAX)
    }

    fn number(self) -> Option<u64> {
        Some(self.into())
    }
}

impl Number for usize {
    fn of(number: u64) -> Self {
        Self::try_from(number).unwrap_or(Self::MAX)
    }

    fn number(self) -> Option<u64> {
        Some(self as u64)
    }
}

/// One whose default is not a number.
impl<N: Number> Number for Option<N> {
    fn of(number: u64) -> Self {
        Some(N::of(number))
    }

    fn number(self) -> Option<u64> {
        self.and_then(N::number)
    }
}

/// In seconds.
impl Number for Duration {
    fn of(number: u64) -> Self {
        Self::from_secs(number)
    }

    fn number(self) -> Option<u64> {
        Some(self.as_secs())
    }
}

macro_rules! numbers {
    ($($key:ident => $($path:ident).+, $min:expr, $max:expr;)*) => {
        /// All of them.
        #[cfg(test)]
        pub(super) const BOUNDS: &[Bounds] = &[$(Bounds { key: stringify!($key), min: $min, max: $max }),*];

        /// Checks what is said.
        pub(super) fn check(options: &Options) -> Result<(), ConfigError> {
            $(if let Some(value) = options.$key && !($min..=$max).contains(&value) {
                return Err(ConfigError::OutOfBounds { key: stringify!($key), value, min: $min, max: $max });
            })*
            Ok(())
        }

        /// Takes over what is said.
        pub(super) fn apply(options: &Options, config: &mut Config) {
            $(if let Some(value) = options.$key {
                config.$($path).+ = Number::of(value);
            })*
        }

        /// The other way.
        pub(super) fn describe(config: &Config, options: &mut Options) {
            $(options.$key = config.$($path).+.number();)*
        }
    };
}

numbers! {
    database_connections => database_connections, 2, 1000;
    frame_cache_bytes => frame_cache_bytes, MIB, 1 << 40;
    node_cache_bytes => node_cache_bytes, MIB, 1 << 40;
    storage_copies_bytes => storage_copies_bytes, 0, 1 << 44;
    max_connections => limits.max_connections, 1, MANY;
    max_connections_per_address => limits.max_connections_per_address, 1, MANY;
    audit_days => audit_days, 1, 36_500;
    max_requests => limits.max_requests, 1, MANY;
    max_streams => limits.max_streams, 1, MANY;
    max_uploads => limits.max_uploads, 1, 4096;
    max_blob_uploads => limits.oci.max_blob_uploads, 1, 4096;
    max_blob_downloads => limits.oci.max_blob_downloads, 1, 65536;
    max_conversions => limits.oci.max_conversions, 1, 64;
    max_open_uploads => limits.oci.max_open_uploads, 1, MANY;
    max_blob_bytes => limits.oci.max_blob_bytes, MIB, 1 << 40;
    max_manifest_bytes => limits.oci.max_manifest_bytes, 64 << 10, layer_format::oci::OciManifest::MAX_LEN as u64;
    max_waiting_traces => limits.max_waiting_traces, 1, 1024;
    min_body_rate => limits.min_body_rate, 0, 1 << 30;
    head_timeout_seconds => limits.header_timeout, 1, HOUR;
    body_idle_timeout_seconds => limits.body_idle_timeout, 1, HOUR;
    write_stall_timeout_seconds => limits.write_stall_timeout, 1, HOUR;
    shutdown_delay_seconds => limits.shutdown_delay, 0, 600;
    shutdown_grace_seconds => limits.shutdown_grace, 0, HOUR;
    gc_interval_seconds => gc.interval, 0, 30 * DAY;
    gc_delay_seconds => gc.delay, 4200, 90 * DAY;
    undo_window_seconds => gc.undo_window, 0, 365 * DAY;
}
