//! Settings: what `serve` needs to know, with defaults that need no configuration.
//!
//! A setting comes from the command line, else from the variable `TURBO_REGISTRY_*`, else from the TOML file, else
//! from the default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::service::gc::GcSettings;

/// Where the server listens if nothing is said.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:5000";

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Options of `serve`, each also a variable and a key of the configuration file.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
pub struct Options {
    /// Address and port; port 0 picks a free one [default: 127.0.0.1:5000]
    #[arg(long, env = "TURBO_REGISTRY_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Folder for the database and packs [default: turbo-registry in the XDG data folder]
    #[arg(long, env = "TURBO_REGISTRY_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Database, such as sqlite:/srv/turbo/registry.db [default: a file in the data folder]
    #[arg(long, env = "TURBO_REGISTRY_DATABASE_URL", value_name = "URL")]
    pub database_url: Option<String>,
    /// Where packs are kept, such as file:///srv/turbo or s3://bucket/prefix [default: the data folder]
    #[arg(long, env = "TURBO_REGISTRY_STORAGE_URL", value_name = "URL")]
    pub storage_url: Option<String>,
    /// Serve on an address that others can reach although there is no authentication yet
    #[arg(long, env = "TURBO_REGISTRY_INSECURE_NO_AUTH", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub insecure_no_auth: Option<bool>,
    /// Form of log lines on stderr; RUST_LOG says how much is logged
    #[arg(long, env = "TURBO_REGISTRY_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Whether traces of runs are taken and learned from [default: true]
    #[arg(long, env = "TURBO_REGISTRY_TRACES", value_name = "BOOL")]
    pub traces: Option<bool>,
    /// File of the certificate chain, PEM; read again when it changes. With it the server speaks TLS
    #[arg(long, env = "TURBO_REGISTRY_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// File of the certificate's private key, PEM
    #[arg(long, env = "TURBO_REGISTRY_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// zstd level of object streams, -7 to 19 [default: by the client's link and the load]
    #[arg(long, env = "TURBO_REGISTRY_COMPRESSION_LEVEL", value_name = "LEVEL", allow_hyphen_values = true)]
    pub compression_level: Option<i32>,
    /// Memory for decompressed frames that several clients may ask for, in bytes [default: 128 MiB]
    #[arg(long, env = "TURBO_REGISTRY_FRAME_CACHE_BYTES", value_name = "BYTES")]
    pub frame_cache_bytes: Option<u64>,
    /// Memory for parsed tree objects, in bytes [default: 64 MiB]
    #[arg(long, env = "TURBO_REGISTRY_NODE_CACHE_BYTES", value_name = "BYTES")]
    pub node_cache_bytes: Option<u64>,
    /// Most connections at a time [default: 4096]
    #[arg(long, env = "TURBO_REGISTRY_MAX_CONNECTIONS", value_name = "COUNT")]
    pub max_connections: Option<usize>,
    /// Most object streams at a time; each takes some MiB [default: 256]
    #[arg(long, env = "TURBO_REGISTRY_MAX_STREAMS", value_name = "COUNT")]
    pub max_streams: Option<usize>,
    /// Most packs received at a time [default: 16]
    #[arg(long, env = "TURBO_REGISTRY_MAX_UPLOADS", value_name = "COUNT")]
    pub max_uploads: Option<usize>,
    /// Fewest bytes a second of a request body after its first seconds [default: 1024]
    #[arg(long, env = "TURBO_REGISTRY_MIN_BODY_RATE", value_name = "BYTES")]
    pub min_body_rate: Option<u64>,
    /// Time between two garbage collections, in seconds; 0 never collects by itself [default: 3600]
    #[arg(long, env = "TURBO_REGISTRY_GC_INTERVAL", value_name = "SECONDS")]
    pub gc_interval: Option<u64>,
    /// How long nothing must have led to an object before it is removed, in seconds; at least 4200 [default: 86400]
    #[arg(long, env = "TURBO_REGISTRY_GC_DELAY", value_name = "SECONDS")]
    pub gc_delay: Option<u64>,
    /// How long what was deleted can be brought back, in seconds [default: 86400]
    #[arg(long, env = "TURBO_REGISTRY_UNDO_WINDOW", value_name = "SECONDS")]
    pub undo_window: Option<u64>,
}

impl Options {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// If it cannot be read, is not TOML, or has an unknown key.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.into(), source })
    }

    /// These options, and where they say nothing those of `file`.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            listen: self.listen.or(file.listen),
            data: self.data.or(file.data),
            database_url: self.database_url.or(file.database_url),
            storage_url: self.storage_url.or(file.storage_url),
            insecure_no_auth: self.insecure_no_auth.or(file.insecure_no_auth),
            log_format: self.log_format.or(file.log_format),
            traces: self.traces.or(file.traces),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            compression_level: self.compression_level.or(file.compression_level),
            frame_cache_bytes: self.frame_cache_bytes.or(file.frame_cache_bytes),
            node_cache_bytes: self.node_cache_bytes.or(file.node_cache_bytes),
            max_connections: self.max_connections.or(file.max_connections),
            max_streams: self.max_streams.or(file.max_streams),
            max_uploads: self.max_uploads.or(file.max_uploads),
            min_body_rate: self.min_body_rate.or(file.min_body_rate),
            gc_interval: self.gc_interval.or(file.gc_interval),
            gc_delay: self.gc_delay.or(file.gc_delay),
            undo_window: self.undo_window.or(file.undo_window),
        }
    }

    /// The address to listen on.
    pub fn listen(&self) -> &str {
        self.listen.as_deref().unwrap_or(DEFAULT_LISTEN)
    }

    /// The settings, with defaults for what was not said.
    ///
    /// # Errors
    /// If there is neither `--data` nor a home folder, or a value is out of its range.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let data = match self.data {
            Some(data) => data,
            None => default_data().ok_or(ConfigError::NoData)?,
        };
        let mut config = Config::new(data);
        config.database_url = self.database_url;
        config.storage_url = self.storage_url;
        config.insecure_no_auth = self.insecure_no_auth.unwrap_or(false);
        config.traces = self.traces.unwrap_or(config.traces);
        config.tls = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            _ => return Err(ConfigError::TlsHalf),
        };
        config.compression_level = self.compression_level;
        if let Some(level) = config.compression_level.filter(|level| !(-7..=19).contains(level)) {
            return Err(ConfigError::Level(level));
        }
        config.frame_cache_bytes = self.frame_cache_bytes.unwrap_or(config.frame_cache_bytes);
        config.node_cache_bytes = self.node_cache_bytes.unwrap_or(config.node_cache_bytes);
        config.gc.interval = match self.gc_interval {
            Some(0) => None,
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None => config.gc.interval,
        };
        config.gc.delay = self.gc_delay.map_or(config.gc.delay, Duration::from_secs);
        config.gc.undo_window = self.undo_window.map_or(config.gc.undo_window, Duration::from_secs);
        let limits = &mut config.limits;
        limits.max_connections = self.max_connections.unwrap_or(limits.max_connections).max(1);
        limits.max_streams = self.max_streams.unwrap_or(limits.max_streams).max(1);
        limits.max_uploads = self.max_uploads.unwrap_or(limits.max_uploads).max(1);
        limits.min_body_rate = self.min_body_rate.unwrap_or(limits.min_body_rate);
        Ok(config)
    }
}

fn default_data() -> Option<PathBuf> {
    let from = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = from("XDG_DATA_HOME").or_else(|| from("HOME").map(|home| home.join(".local/share")))?;
    Some(base.join("turbo-registry"))
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("could not read the configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration file {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: toml::de::Error,
    },
    /// No data folder.
    #[error("neither XDG_DATA_HOME nor HOME is set: say where to keep data with --data DIR")]
    NoData,
    /// A level that zstd does not have.
    #[error("compression level {0} is not between -7 and 19")]
    Level(i32),
    /// A certificate without its key, or the reverse.
    #[error("TLS needs both --tls-cert and --tls-key")]
    TlsHalf,
    /// Others could reach a server that lets everyone write.
    #[error(
        "refusing to listen on {0}: others can reach it, and this server has no authentication yet. Listen on 127.0.0.1, or give --insecure-no-auth if everyone who can reach it may read and write everything"
    )]
    Unprotected(SocketAddr),
}

/// Files of the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that lead to its authority, PEM.
    pub cert: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder for the database and packs, unless the URLs say otherwise.
    pub data: PathBuf,
    /// `sqlite:PATH`.
    pub database_url: Option<String>,
    /// Where packs are kept.
    pub storage_url: Option<String>,
    /// Serve on an address that is not loopback.
    pub insecure_no_auth: bool,
    /// Whether traces are taken.
    pub traces: bool,
    /// Certificate and key, if the server speaks TLS.
    pub tls: Option<TlsFiles>,
    /// zstd level of object streams; by the link if `None`.
    pub compression_level: Option<i32>,
    /// Bound of the cache of decompressed frames, in bytes.
    pub frame_cache_bytes: u64,
    /// Bound of the cache of parsed tree objects, in bytes.
    pub node_cache_bytes: u64,
    /// Garbage collection, and the window in which deletes can be undone.
    pub gc: GcSettings,
    /// Limits against abuse.
    pub limits: Limits,
}

impl Config {
    /// The defaults, with everything below `data`.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            database_url: None,
            storage_url: None,
            insecure_no_auth: false,
            traces: true,
            tls: None,
            compression_level: None,
            frame_cache_bytes: 128 << 20,
            node_cache_bytes: 64 << 20,
            gc: GcSettings::default(),
            limits: Limits::default(),
        }
    }

    /// Checks that the server may listen on `address`.
    ///
    /// # Errors
    /// [`ConfigError::Unprotected`] if others can reach it and nothing protects it.
    pub fn check_listen(&self, address: SocketAddr) -> Result<(), ConfigError> {
        match address.ip().is_loopback() || self.insecure_no_auth {
            true => Ok(()),
            false => Err(ConfigError::Unprotected(address)),
        }
    }
}

/// Limits against abuse and accidents. Lengths of bodies are part of the API and not settings.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; more wait in the listen queue.
    pub max_connections: usize,
    /// Requests at a time; more are answered with 503.
    pub max_requests: usize,
    /// Object streams at a time; more are answered with 503.
    pub max_streams: usize,
    /// Packs received at a time; more are answered with 503.
    pub max_uploads: usize,
    /// How long a request's head may take, and a connection may idle between requests.
    pub header_timeout: Duration,
    /// How long a request body may pause.
    pub body_idle_timeout: Duration,
    /// Fewest bytes a second of a body, averaged over it, once `body_grace` is over.
    pub min_body_rate: u64,
    /// When the rate begins to count.
    pub body_grace: Duration,
    /// How long a client may take nothing of its answer.
    pub write_stall_timeout: Duration,
    /// How long requests in progress may go on once the server is told to stop.
    pub shutdown_grace: Duration,
    /// Traces of one repository that wait to be merged; more are answered with 429.
    pub max_waiting_traces: usize,
    /// Traces of one client.
    pub traces: TraceLimits,
}

/// How many traces of one repository a client may send; more are answered with 429.
#[derive(Clone, Copy, Debug)]
pub struct TraceLimits {
    /// At once.
    pub burst: u32,
    /// After which time one more.
    pub interval: Duration,
}

impl Default for TraceLimits {
    fn default() -> Self {
        Self { burst: 32, interval: Duration::from_secs(10) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_requests: 1024,
            max_streams: 256,
            max_uploads: 16,
            header_timeout: Duration::from_secs(60),
            body_idle_timeout: Duration::from_secs(30),
            min_body_rate: 1024,
            body_grace: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(120),
            shutdown_grace: Duration::from_secs(25),
            max_waiting_traces: 4,
            traces: TraceLimits::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file: Options = toml::from_str("listen = '127.0.0.1:1'\nmax_streams = 7\nlog_format = 'json'").unwrap();
        let options = Options { listen: Some("127.0.0.1:2".into()), data: Some("/d".into()), ..Options::default() }.or(file);
        assert_eq!(options.listen(), "127.0.0.1:2");
        assert_eq!(options.log_format, Some(LogFormat::Json));
        assert_eq!(options.into_config().unwrap().limits.max_streams, 7);
        let half = Options { tls_cert: Some("/c".into()), data: Some("/d".into()), ..Options::default() };
        assert!(matches!(half.into_config(), Err(ConfigError::TlsHalf)));
        assert!(toml::from_str::<Options>("liste = 'x'").is_err());
    }

    #[test]
    fn only_loopback_is_served_without_protection() {
        let mut config = Config::new("/d");
        assert!(config.check_listen("127.0.0.1:5000".parse().unwrap()).is_ok());
        assert!(config.check_listen("[::1]:5000".parse().unwrap()).is_ok());
        assert!(config.check_listen("0.0.0.0:5000".parse().unwrap()).is_err());
        config.insecure_no_auth = true;
        assert!(config.check_listen("0.0.0.0:5000".parse().unwrap()).is_ok());
    }
}
