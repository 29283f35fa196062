//! Settings: what `serve` needs to know, with defaults that need no configuration.
//!
//! A setting comes from the command line, else from the variable `TURBO_REGISTRY_*`, else from the TOML file, else
//! from the default.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod docs;
mod file;
mod numbers;
mod show;

pub(crate) use show::redacted;

pub use crate::service::access::limiter::{LoginLimit, LoginLimits};
use crate::service::gc::GcSettings;

/// Where the server listens if nothing is said.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:5000";

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Options of `serve`, each also a variable and a key of the configuration file.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
pub struct Options {
    /// Address and port; port 0 picks a free one [default: 127.0.0.1:5000]
    #[arg(long, env = "TURBO_REGISTRY_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Folder for the database and packs [default: turbo-registry in the XDG data folder]
    #[arg(long, env = "TURBO_REGISTRY_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Database, such as sqlite:/srv/turbo/registry.db or postgres://turbo@host/turbo [default: a file in the data folder]
    #[arg(long, env = "TURBO_REGISTRY_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Most connections to PostgreSQL; half of them write [default: 16]
    #[arg(long, env = "TURBO_REGISTRY_DATABASE_CONNECTIONS", value_name = "COUNT")]
    pub database_connections: Option<u64>,
    /// Where packs are kept, such as file:///srv/turbo or s3://bucket/prefix [default: the data folder]
    #[arg(long, env = "TURBO_REGISTRY_STORAGE_URL", value_name = "URL")]
    pub storage_url: Option<String>,
    /// URL of an S3-compatible service [default: as AWS_ENDPOINT says, else AWS]
    #[arg(long, env = "TURBO_REGISTRY_S3_ENDPOINT", value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket [default: as AWS_REGION says, else us-east-1]
    #[arg(long, env = "TURBO_REGISTRY_S3_REGION", value_name = "REGION")]
    pub s3_region: Option<String>,
    /// Whether the bucket is named in the path rather than in the host's name [default: with an endpoint]
    #[arg(long, env = "TURBO_REGISTRY_S3_PATH_STYLE", value_name = "BOOL")]
    pub s3_path_style: Option<bool>,
    /// Name of the access key [default: as AWS_ACCESS_KEY_ID says, else the machine's role]
    #[arg(long, env = "TURBO_REGISTRY_S3_ACCESS_KEY_ID", value_name = "ID")]
    pub s3_access_key_id: Option<String>,
    /// The access key: better a variable or the file, since others see options [default: as AWS_SECRET_ACCESS_KEY says]
    #[arg(long, env = "TURBO_REGISTRY_S3_SECRET_ACCESS_KEY", hide_env_values = true, value_name = "KEY")]
    pub s3_secret_access_key: Option<String>,
    /// Ask no one who they are: everyone who can reach the server may read and write everything
    #[arg(long, env = "TURBO_REGISTRY_INSECURE_NO_AUTH", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub insecure_no_auth: Option<bool>,
    /// Serve on an address that others can reach without TLS: for a server behind a proxy that speaks it
    #[arg(long, env = "TURBO_REGISTRY_INSECURE_NO_TLS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub insecure_no_tls: Option<bool>,
    /// Whether credentials are asked for [default: on an address of this machine alone, once there is a user; else always]
    #[arg(long, env = "TURBO_REGISTRY_AUTH", value_name = "BOOL")]
    pub auth: Option<bool>,
    /// Whether everyone may read all but private states, without credentials [default: false]
    #[arg(long, env = "TURBO_REGISTRY_ANONYMOUS_READ", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub anonymous_read: Option<bool>,
    /// Whether anything can be deleted through the API [default: true]
    #[arg(long, env = "TURBO_REGISTRY_ALLOW_DELETE", value_name = "BOOL")]
    pub allow_delete: Option<bool>,
    /// File with the password of the first administrator, `admin` [default: a random one, told once]
    #[arg(long, env = "TURBO_REGISTRY_ADMIN_PASSWORD_FILE", value_name = "FILE")]
    pub admin_password_file: Option<PathBuf>,
    /// How clients reach the server, such as `https://registry.example.org`: where they get tokens [default: as they called it]
    #[arg(long, env = "TURBO_REGISTRY_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// How many days entries of the audit log are kept [default: 365]
    #[arg(long, env = "TURBO_REGISTRY_AUDIT_DAYS", value_name = "DAYS")]
    pub audit_days: Option<u64>,
    /// Most connections at a time from one address [default: 512, and any number from this machine]
    #[arg(long, env = "TURBO_REGISTRY_MAX_CONNECTIONS_PER_ADDRESS", value_name = "COUNT")]
    pub max_connections_per_address: Option<u64>,
    /// Form of log lines on stderr; RUST_LOG says how much is logged
    #[arg(long, env = "TURBO_REGISTRY_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Whether traces of runs are taken and learned from [default: true]
    #[arg(long, env = "TURBO_REGISTRY_TRACES", value_name = "BOOL")]
    pub traces: Option<bool>,
    /// Seconds after its push when a compressed layer is stored by what is in it, so that it shares its content with other
    /// builds, and made again when it is pulled; negative for never [default: 5]
    #[arg(long, env = "TURBO_REGISTRY_REBUILD_AFTER", value_name = "SECONDS", allow_hyphen_values = true)]
    pub rebuild_after: Option<i64>,
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
    /// Room in the data folder for copies of what is read from an object store, in bytes; 0 for none [default: 1 GiB]
    #[arg(long, env = "TURBO_REGISTRY_STORAGE_COPIES_BYTES", value_name = "BYTES")]
    pub storage_copies_bytes: Option<u64>,
    /// Most connections at a time [default: 4096]
    #[arg(long, env = "TURBO_REGISTRY_MAX_CONNECTIONS", value_name = "COUNT")]
    pub max_connections: Option<u64>,
    /// Most object streams at a time; each takes some MiB [default: 256]
    #[arg(long, env = "TURBO_REGISTRY_MAX_STREAMS", value_name = "COUNT")]
    pub max_streams: Option<u64>,
    /// Most packs received at a time [default: 16]
    #[arg(long, env = "TURBO_REGISTRY_MAX_UPLOADS", value_name = "COUNT")]
    pub max_uploads: Option<u64>,
    /// Most requests at a time; more are answered with 503 [default: 1024]
    #[arg(long, env = "TURBO_REGISTRY_MAX_REQUESTS", value_name = "COUNT")]
    pub max_requests: Option<u64>,
    /// Most blobs of container tools received at a time, each with a thread and some MiB; more wait [default: 40]
    #[arg(long, env = "TURBO_REGISTRY_MAX_BLOB_UPLOADS", value_name = "COUNT")]
    pub max_blob_uploads: Option<u64>,
    /// Most blobs of container tools sent at a time, each with about 1 MiB; more wait [default: 256]
    #[arg(long, env = "TURBO_REGISTRY_MAX_BLOB_DOWNLOADS", value_name = "COUNT")]
    pub max_blob_downloads: Option<u64>,
    /// Most images of container tools taken apart or written at a time [default: 2]
    #[arg(long, env = "TURBO_REGISTRY_MAX_CONVERSIONS", value_name = "COUNT")]
    pub max_conversions: Option<u64>,
    /// Most uploads of one repository that were begun and not ended [default: 1000]
    #[arg(long, env = "TURBO_REGISTRY_MAX_OPEN_UPLOADS", value_name = "COUNT")]
    pub max_open_uploads: Option<u64>,
    /// Longest blob of container tools, in bytes [default: 1 TiB]
    #[arg(long, env = "TURBO_REGISTRY_MAX_BLOB_BYTES", value_name = "BYTES")]
    pub max_blob_bytes: Option<u64>,
    /// Longest manifest of container tools, in bytes [default: 4 MiB]
    #[arg(long, env = "TURBO_REGISTRY_MAX_MANIFEST_BYTES", value_name = "BYTES")]
    pub max_manifest_bytes: Option<u64>,
    /// Most traces of one repository that wait to be learned; more are answered with 429 [default: 4]
    #[arg(long, env = "TURBO_REGISTRY_MAX_WAITING_TRACES", value_name = "COUNT")]
    pub max_waiting_traces: Option<u64>,
    /// Fewest bytes a second of a request body after its first seconds [default: 1024]
    #[arg(long, env = "TURBO_REGISTRY_MIN_BODY_RATE", value_name = "BYTES")]
    pub min_body_rate: Option<u64>,
    /// Time between two garbage collections, 0 never collects by itself [default: 3600]
    #[arg(long, env = "TURBO_REGISTRY_GC_INTERVAL_SECONDS", value_name = "SECONDS")]
    pub gc_interval_seconds: Option<u64>,
    /// How long nothing must have led to an object before it is removed [default: 86400]
    #[arg(long, env = "TURBO_REGISTRY_GC_DELAY_SECONDS", value_name = "SECONDS")]
    pub gc_delay_seconds: Option<u64>,
    /// How long what was deleted can be brought back [default: 86400]
    #[arg(long, env = "TURBO_REGISTRY_UNDO_WINDOW_SECONDS", value_name = "SECONDS")]
    pub undo_window_seconds: Option<u64>,
    /// How long a request's head may take, and a connection may idle between requests [default: 60]
    #[arg(long, env = "TURBO_REGISTRY_HEAD_TIMEOUT_SECONDS", value_name = "SECONDS")]
    pub head_timeout_seconds: Option<u64>,
    /// How long a request body may pause [default: 30]
    #[arg(long, env = "TURBO_REGISTRY_BODY_IDLE_TIMEOUT_SECONDS", value_name = "SECONDS")]
    pub body_idle_timeout_seconds: Option<u64>,
    /// How long a client may take nothing of its answer [default: 120]
    #[arg(long, env = "TURBO_REGISTRY_WRITE_STALL_TIMEOUT_SECONDS", value_name = "SECONDS")]
    pub write_stall_timeout_seconds: Option<u64>,
    /// How long requests are still taken once the server is told to stop and /readyz says no: as long as a load balancer
    /// needs to notice [default: 0]
    #[arg(long, env = "TURBO_REGISTRY_SHUTDOWN_DELAY_SECONDS", value_name = "SECONDS")]
    pub shutdown_delay_seconds: Option<u64>,
    /// How long requests in progress may go on after that [default: 25]
    #[arg(long, env = "TURBO_REGISTRY_SHUTDOWN_GRACE_SECONDS", value_name = "SECONDS")]
    pub shutdown_grace_seconds: Option<u64>,
}

impl Options {
    /// These options, and where they say nothing those of `file`.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            listen: self.listen.or(file.listen),
            data: self.data.or(file.data),
            database_url: self.database_url.or(file.database_url),
            database_connections: self.database_connections.or(file.database_connections),
            storage_url: self.storage_url.or(file.storage_url),
            s3_endpoint: self.s3_endpoint.or(file.s3_endpoint),
            s3_region: self.s3_region.or(file.s3_region),
            s3_path_style: self.s3_path_style.or(file.s3_path_style),
            s3_access_key_id: self.s3_access_key_id.or(file.s3_access_key_id),
            s3_secret_access_key: self.s3_secret_access_key.or(file.s3_secret_access_key),
            insecure_no_auth: self.insecure_no_auth.or(file.insecure_no_auth),
            insecure_no_tls: self.insecure_no_tls.or(file.insecure_no_tls),
            auth: self.auth.or(file.auth),
            anonymous_read: self.anonymous_read.or(file.anonymous_read),
            allow_delete: self.allow_delete.or(file.allow_delete),
            admin_password_file: self.admin_password_file.or(file.admin_password_file),
            public_url: self.public_url.or(file.public_url),
            audit_days: self.audit_days.or(file.audit_days),
            max_connections_per_address: self.max_connections_per_address.or(file.max_connections_per_address),
            log_format: self.log_format.or(file.log_format),
            traces: self.traces.or(file.traces),
            rebuild_after: self.rebuild_after.or(file.rebuild_after),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            compression_level: self.compression_level.or(file.compression_level),
            frame_cache_bytes: self.frame_cache_bytes.or(file.frame_cache_bytes),
            node_cache_bytes: self.node_cache_bytes.or(file.node_cache_bytes),
            storage_copies_bytes: self.storage_copies_bytes.or(file.storage_copies_bytes),
            max_connections: self.max_connections.or(file.max_connections),
            max_streams: self.max_streams.or(file.max_streams),
            max_uploads: self.max_uploads.or(file.max_uploads),
            max_requests: self.max_requests.or(file.max_requests),
            max_blob_uploads: self.max_blob_uploads.or(file.max_blob_uploads),
            max_blob_downloads: self.max_blob_downloads.or(file.max_blob_downloads),
            max_conversions: self.max_conversions.or(file.max_conversions),
            max_open_uploads: self.max_open_uploads.or(file.max_open_uploads),
            max_blob_bytes: self.max_blob_bytes.or(file.max_blob_bytes),
            max_manifest_bytes: self.max_manifest_bytes.or(file.max_manifest_bytes),
            max_waiting_traces: self.max_waiting_traces.or(file.max_waiting_traces),
            min_body_rate: self.min_body_rate.or(file.min_body_rate),
            gc_interval_seconds: self.gc_interval_seconds.or(file.gc_interval_seconds),
            gc_delay_seconds: self.gc_delay_seconds.or(file.gc_delay_seconds),
            undo_window_seconds: self.undo_window_seconds.or(file.undo_window_seconds),
            head_timeout_seconds: self.head_timeout_seconds.or(file.head_timeout_seconds),
            body_idle_timeout_seconds: self.body_idle_timeout_seconds.or(file.body_idle_timeout_seconds),
            write_stall_timeout_seconds: self.write_stall_timeout_seconds.or(file.write_stall_timeout_seconds),
            shutdown_delay_seconds: self.shutdown_delay_seconds.or(file.shutdown_delay_seconds),
            shutdown_grace_seconds: self.shutdown_grace_seconds.or(file.shutdown_grace_seconds),
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
        self.check()?;
        let said = self.clone();
        let data = match self.data {
            Some(data) => data,
            None => default_data().ok_or(ConfigError::NoData)?,
        };
        let mut config = Config::new(data);
        numbers::apply(&said, &mut config);
        config.database_url = self.database_url;
        config.storage_url = self.storage_url;
        config.insecure_no_auth = self.insecure_no_auth.unwrap_or(false);
        config.insecure_no_tls = self.insecure_no_tls.unwrap_or(false);
        config.auth = self.auth;
        if config.auth == Some(false) {
            return Err(ConfigError::AuthOff);
        }
        config.anonymous_read = self.anonymous_read.unwrap_or(false);
        config.allow_delete = self.allow_delete.unwrap_or(true);
        config.admin_password_file = self.admin_password_file;
        config.public_url = self.public_url.map(|url| check_public_url(&url)).transpose()?;
        config.traces = self.traces.unwrap_or(config.traces);
        if let Some(seconds) = self.rebuild_after {
            config.rebuild_after = u64::try_from(seconds).ok().map(Duration::from_secs);
        }
        config.tls = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            _ => return Err(ConfigError::TlsHalf),
        };
        config.compression_level = self.compression_level;
        config.s3 = S3Options {
            endpoint: self.s3_endpoint,
            region: self.s3_region,
            path_style: self.s3_path_style,
            access_key_id: self.s3_access_key_id,
            secret_access_key: self.s3_secret_access_key,
        };
        Ok(config)
    }

    /// Checks what can be told of a value by itself.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if let Some(level) = self.compression_level.filter(|level| !(-7..=19).contains(level)) {
            return Err(ConfigError::Level(level));
        }
        numbers::check(self)
    }
}

fn check_public_url(text: &str) -> Result<String, ConfigError> {
    let url = url::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none());
    match url {
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err(ConfigError::PublicUrl(text.to_owned())),
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
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<Self>,
    },
    /// No TOML, or a value of the wrong kind.
    #[error("it is not TOML with the settings of this server")]
    Parse(#[source] toml::de::Error),
    /// There is no such setting.
    #[error("there is no setting `{key}`{}", .nearest.as_ref().map_or_else(|| ": `turbo-registry config check` shows all".to_owned(), |nearest| format!(": did you mean `{nearest}`?")))]
    UnknownKey {
        /// As it is in the file.
        key: String,
        /// What is spelt almost like it.
        nearest: Option<String>,
    },
    /// A number that makes no sense.
    #[error("`{key}` is {value}, and must be between {min} and {max} (it is an option, a variable TURBO_REGISTRY_{}, and a key of the file)", .key.to_ascii_uppercase())]
    OutOfBounds {
        /// The setting.
        key: &'static str,
        /// What it is.
        value: u64,
        /// Least.
        min: u64,
        /// Most.
        max: u64,
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
    /// `--auth false` would be easy to overlook.
    #[error("credentials cannot be switched off with --auth false: give --insecure-no-auth if everyone who can reach the server may read and write everything")]
    AuthOff,
    /// No URL.
    #[error("`{0}` is not a URL that clients can reach the server by, such as https://registry.example.org")]
    PublicUrl(String),
    /// Passwords and images would be read along by others.
    #[error(
        "refusing to listen on {0}: others can reach it, and passwords, tokens and images would go over the network in plain text. Give --tls-cert and --tls-key; or listen on 127.0.0.1; or give --insecure-no-tls if a proxy in front speaks TLS, or --insecure-no-auth if everyone who can reach it may read and write everything"
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

/// How an S3-compatible storage is reached. What is not said comes from the variables `AWS_*`, from the machine's role, or
/// is the default of AWS.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    /// URL of the service; AWS if `None`.
    pub endpoint: Option<String>,
    /// Region; `us-east-1` if nothing is said, which stores of one's own ignore.
    pub region: Option<String>,
    /// Whether the bucket is the first part of the path rather than of the host's name; with an endpoint if `None`.
    pub path_style: Option<bool>,
    /// Name of the key.
    pub access_key_id: Option<String>,
    /// The key.
    pub secret_access_key: Option<String>,
}

impl std::fmt::Debug for S3Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secret = self.secret_access_key.as_ref().map(|_| "(not shown)");
        let Self { endpoint, region, path_style, access_key_id, secret_access_key: _ } = self;
        f.debug_struct("S3Options")
            .field("endpoint", endpoint)
            .field("region", region)
            .field("path_style", path_style)
            .field("access_key_id", access_key_id)
            .field("secret_access_key", &secret)
            .finish()
    }
}

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder for the database and packs, unless the URLs say otherwise.
    pub data: PathBuf,
    /// `sqlite:PATH` or `postgres://USER@HOST/DATABASE`.
    pub database_url: Option<String>,
    /// Most connections to PostgreSQL.
    pub database_connections: u32,
    /// Where packs are kept.
    pub storage_url: Option<String>,
    /// How an S3-compatible storage is reached.
    pub s3: S3Options,
    /// Ask no one who they are.
    pub insecure_no_auth: bool,
    /// Serve without TLS on an address that is not loopback.
    pub insecure_no_tls: bool,
    /// Whether credentials are asked for; once there is a user, if `None` and only this machine can reach the server.
    pub auth: Option<bool>,
    /// Whether everyone may read what is not private.
    pub anonymous_read: bool,
    /// Whether anything can be deleted.
    pub allow_delete: bool,
    /// File with the password of the first administrator.
    pub admin_password_file: Option<PathBuf>,
    /// How clients reach the server, without a slash at the end; as they called it if `None`.
    pub public_url: Option<String>,
    /// How many days audit entries are kept.
    pub audit_days: u32,
    /// How long a token is good.
    pub token_life: Duration,
    /// Whether traces are taken.
    pub traces: bool,
    /// How long after its push a compressed layer is stored by what is in it; never if `None`.
    pub rebuild_after: Option<Duration>,
    /// Certificate and key, if the server speaks TLS.
    pub tls: Option<TlsFiles>,
    /// zstd level of object streams; by the link if `None`.
    pub compression_level: Option<i32>,
    /// Bound of the cache of decompressed frames, in bytes.
    pub frame_cache_bytes: u64,
    /// Bound of the cache of parsed tree objects, in bytes.
    pub node_cache_bytes: u64,
    /// Bound of the copies in the data folder of what is read from an object store, in bytes; 0 for none.
    pub storage_copies_bytes: u64,
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
            database_connections: crate::db::DEFAULT_CONNECTIONS,
            storage_url: None,
            s3: S3Options::default(),
            insecure_no_auth: false,
            insecure_no_tls: false,
            auth: None,
            anonymous_read: false,
            allow_delete: true,
            admin_password_file: None,
            public_url: None,
            audit_days: 365,
            token_life: Duration::from_secs(300),
            traces: true,
            rebuild_after: Some(Duration::from_secs(5)),
            tls: None,
            compression_level: None,
            frame_cache_bytes: 128 << 20,
            node_cache_bytes: 64 << 20,
            storage_copies_bytes: 1 << 30,
            gc: GcSettings::default(),
            limits: Limits::default(),
        }
    }

    /// Checks that the server may listen on `address`.
    ///
    /// # Errors
    /// [`ConfigError::Unprotected`] if others can reach it and what is sent is not protected.
    pub fn check_listen(&self, address: SocketAddr) -> Result<(), ConfigError> {
        match address.ip().is_loopback() || self.tls.is_some() || self.insecure_no_tls || self.insecure_no_auth {
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
    /// Connections at a time from one address; more are closed. If `None`, [`CONNECTIONS_PER_ADDRESS`], and any number from
    /// this machine, where a proxy may stand for everyone.
    pub max_connections_per_address: Option<usize>,
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
    /// How long the server still takes requests, but is not ready any more (`/readyz`), once it is told to stop.
    pub shutdown_delay: Duration,
    /// How long requests in progress may go on after that.
    pub shutdown_grace: Duration,
    /// Traces of one repository that wait to be merged; more are answered with 429.
    pub max_waiting_traces: usize,
    /// What container tools may do.
    pub oci: OciLimits,
    /// Traces of one client.
    pub traces: TraceLimits,
    /// Logins that fail.
    pub logins: LoginLimits,
}

/// Limits of the OCI side.
#[derive(Clone, Copy, Debug)]
pub struct OciLimits {
    /// Blobs received at a time, each with a thread and some MiB; more wait.
    pub max_blob_uploads: usize,
    /// Blobs sent at a time, each with about 1 MiB; more wait.
    pub max_blob_downloads: usize,
    /// Images taken apart or written at a time.
    pub max_conversions: usize,
    /// Uploads of one repository that were begun and not ended.
    pub max_open_uploads: u64,
    /// Longest blob, in bytes.
    pub max_blob_bytes: u64,
    /// Longest manifest, in bytes.
    pub max_manifest_bytes: usize,
}

impl Default for OciLimits {
    fn default() -> Self {
        Self {
            max_blob_uploads: 40,
            max_blob_downloads: 256,
            max_conversions: 2,
            max_open_uploads: 1000,
            max_blob_bytes: 1 << 40,
            max_manifest_bytes: layer_format::oci::OciManifest::MAX_LEN,
        }
    }
}

/// Connections from one address, unless stated.
pub const CONNECTIONS_PER_ADDRESS: usize = 512;

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
            max_connections_per_address: None,
            max_requests: 1024,
            max_streams: 256,
            max_uploads: 16,
            header_timeout: Duration::from_secs(60),
            body_idle_timeout: Duration::from_secs(30),
            min_body_rate: 1024,
            body_grace: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(120),
            shutdown_delay: Duration::ZERO,
            shutdown_grace: Duration::from_secs(25),
            max_waiting_traces: 4,
            oci: OciLimits::default(),
            traces: TraceLimits::default(),
            logins: LoginLimits::default(),
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
    }

    #[test]
    fn only_loopback_is_served_without_protection() {
        let config = Config::new("/d");
        assert!(config.check_listen("127.0.0.1:5000".parse().unwrap()).is_ok());
        assert!(config.check_listen("[::1]:5000".parse().unwrap()).is_ok());
        assert!(config.check_listen("0.0.0.0:5000".parse().unwrap()).is_err());
        for change in [
            |config: &mut Config| config.insecure_no_auth = true,
            |config: &mut Config| config.insecure_no_tls = true,
            |config: &mut Config| {
                config.tls = Some(TlsFiles { cert: "/c".into(), key: "/k".into() });
            },
        ] {
            let mut config = Config::new("/d");
            change(&mut config);
            assert!(config.check_listen("0.0.0.0:5000".parse().unwrap()).is_ok());
        }
        let refused = |options: Options| Options { data: Some("/d".into()), ..options }.into_config().unwrap_err();
        assert!(matches!(refused(Options { auth: Some(false), ..Options::default() }), ConfigError::AuthOff));
        assert!(matches!(refused(Options { public_url: Some("registry".into()), ..Options::default() }), ConfigError::PublicUrl(_)));
    }
}
