//! Settings: option, else variable, else configuration file, else default.
//!
//! The file is TOML, `turbo/config.toml` in the XDG configuration folder (`TURBO_CONFIG` names another). A key that is
//! not known is an error that lists the known ones, so that a slip does not go unnoticed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::credentials::{Credential, Credentials};

/// The registry that is used when none is configured: one that runs on this machine.
pub const DEFAULT_HUB: &str = "http://127.0.0.1:5000";
/// How long a read waits for a registry that cannot be reached, in seconds, unless configured.
pub const DEFAULT_WAIT_S: u64 = 60;

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct File {
    /// URL of the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Folder of the store and the containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home: Option<PathBuf>,
    /// Most bytes of fetched data to keep, 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_size: Option<u64>,
    /// Seconds that a read waits for a registry that cannot be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
    /// File of certificates that are trusted besides those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Whether launches are asked for in the form that caches between may keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_launch: Option<bool>,
    /// Whether traces of runs are sent to the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<bool>,
    /// Whether every byte of the network costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metered: Option<bool>,
    /// Whether a run brings the rest of its images here when it needs nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<bool>,
    /// Whether images and `--isolate` may let the application write to the host (`merge`); if not, write-copy holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_merge: Option<bool>,
}

/// Options that every command has.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Folder of the store and the containers [default: the XDG data folder].
    #[arg(long, env = "TURBO_HOME", global = true, hide_short_help = true, value_name = "DIR", help_heading = "Settings")]
    pub home: Option<PathBuf>,
    /// URL of the registry [default: http://127.0.0.1:5000].
    #[arg(long, env = "TURBO_HUB", global = true, hide_short_help = true, value_name = "URL", help_heading = "Settings")]
    pub hub: Option<String>,
    /// Most bytes of fetched data to keep, such as 20G; 0 for no limit [default: 0].
    #[arg(long, env = "TURBO_CACHE_SIZE", global = true, hide_short_help = true, value_name = "BYTES", value_parser = parse_size, help_heading = "Settings")]
    pub cache_size: Option<u64>,
    /// Seconds that a read waits for a registry that cannot be reached [default: 60].
    #[arg(long, env = "TURBO_WAIT", global = true, hide_short_help = true, value_name = "SECONDS", help_heading = "Settings")]
    pub wait: Option<u64>,
    /// File of certificates, PEM, that are trusted besides those of the system: for a registry with a certificate of your own.
    #[arg(long, env = "TURBO_CA", global = true, hide_short_help = true, value_name = "FILE", help_heading = "Settings")]
    pub ca_file: Option<PathBuf>,
    /// Whether to launch what was never here in the form that a caching HTTP proxy may keep: for sites where many machines
    /// start the same applications [default: false].
    #[arg(long, env = "TURBO_CACHED_LAUNCH", global = true, hide_short_help = true, value_name = "BOOL", help_heading = "Settings")]
    pub cached_launch: Option<bool>,
    /// Connections beside that of a launch request that carry parts of its answer [default: 0].
    #[arg(long, env = "TURBO_LANES", global = true, hide = true, value_name = "COUNT")]
    pub lanes: Option<u8>,
    /// Whether traces of runs are sent to the registry, to learn from [default: true].
    #[arg(long, env = "TURBO_TRACES", global = true, hide_short_help = true, value_name = "BOOL", help_heading = "Settings")]
    pub traces: Option<bool>,
    /// Whether every byte of the network costs: then only what is nearly sure to be used is fetched ahead, and nothing in the
    /// background [default: false].
    #[arg(long, env = "TURBO_METERED", global = true, hide_short_help = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Settings")]
    pub metered: Option<bool>,
    /// Whether a run brings the rest of its images here when it needs nothing else, so that the next start needs no network
    /// [default: true].
    #[arg(long, env = "TURBO_BACKGROUND", global = true, hide_short_help = true, value_name = "BOOL", value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Settings")]
    pub background: Option<bool>,
    /// Whether applications may write to folders of the host (isolation mode merge); where the configuration file forbids it
    /// no option allows it [default: true].
    #[arg(long, env = "TURBO_ALLOW_MERGE", global = true, hide_short_help = true, value_name = "BOOL", help_heading = "Settings")]
    pub allow_merge: Option<bool>,
    /// Configuration file [default: turbo/config.toml in the XDG configuration folder].
    #[arg(long, env = "TURBO_CONFIG", global = true, hide_short_help = true, value_name = "FILE", help_heading = "Settings")]
    pub config: Option<PathBuf>,
}

/// What holds for this command.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Folder of the store and the containers.
    pub home: PathBuf,
    /// URL of the registry, without a trailing slash.
    pub hub: String,
    /// Whether it was stated, rather than being the default.
    #[serde(skip)]
    pub hub_configured: bool,
    /// Most bytes of fetched data to keep; 0 for no limit.
    pub cache_size: u64,
    /// Seconds that a read waits.
    pub wait: u64,
    /// File of certificates that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether launches are asked for in the form that caches between may keep.
    pub cached_launch: bool,
    /// Lanes of a launch, if they were stated.
    #[serde(skip)]
    pub lanes: Option<u8>,
    /// Whether traces are sent.
    pub traces: bool,
    /// Whether every byte of the network costs.
    pub metered: bool,
    /// Whether runs bring the rest of their images here.
    pub background: bool,
    /// Whether the isolation mode merge is allowed.
    pub allow_merge: bool,
    /// The configuration file, which need not exist.
    pub config: PathBuf,
}

impl Settings {
    /// Joins options, variables (clap has read them), file and defaults.
    pub fn load(options: &Options) -> Result<Self> {
        let config = match &options.config {
            Some(path) => path.clone(),
            None => base_folder("XDG_CONFIG_HOME", ".config")?.join("turbo/config.toml"),
        };
        let file = read(&config)?;
        let home = match options.home.clone().or(file.home) {
            Some(home) => std::path::absolute(&home).with_context(|| format!("{} is not a folder's name", home.display()))?,
            None => base_folder("XDG_DATA_HOME", ".local/share")?.join("turbo"),
        };
        let hub = options.hub.clone().or(file.hub);
        let hub_configured = hub.is_some();
        let hub = hub.unwrap_or_else(|| DEFAULT_HUB.into());
        Ok(Self {
            home,
            hub: check_hub(&hub)?,
            hub_configured,
            cache_size: options.cache_size.or(file.cache_size).unwrap_or(0),
            wait: options.wait.or(file.wait).unwrap_or(DEFAULT_WAIT_S),
            ca_file: options.ca_file.clone().or(file.ca_file).map(std::path::absolute).transpose().context("the file of certificates has no name")?,
            cached_launch: options.cached_launch.or(file.cached_launch).unwrap_or(false),
            lanes: options.lanes,
            traces: options.traces.or(file.traces).unwrap_or(true),
            metered: options.metered.or(file.metered).unwrap_or(false),
            background: options.background.or(file.background).unwrap_or(true),
            // The stricter holds: what an administrator forbids stays forbidden.
            allow_merge: options.allow_merge.unwrap_or(true) && file.allow_merge.unwrap_or(true),
            config,
        })
    }

    /// Where this machine's programs keep what they can make again: it stays here when a state goes elsewhere.
    pub fn cache_folder(&self) -> Option<PathBuf> {
        base_folder("XDG_CACHE_HOME", ".cache").ok()
    }

    /// Where logins are kept.
    pub fn credentials_file() -> Result<PathBuf> {
        Ok(base_folder("XDG_CONFIG_HOME", ".config")?.join("turbo/credentials.toml"))
    }

    /// What requests to the registry are authorised with: a token that the environment gives, else the login at this registry.
    pub fn authority(&self) -> Result<Authority> {
        if let Some(token) = Self::token() {
            return Ok(Authority::Token(token));
        }
        Ok(match Credentials::read(&Self::credentials_file()?)?.get(&self.hub) {
            Some(Credential::Login { name, secret }) => Authority::Login { name: name.clone(), secret: secret.clone() },
            Some(Credential::Key { secret, .. }) => Authority::Token(secret.clone()),
            None => Authority::None,
        })
    }

    /// The bearer token for the registry, if there is one: that of `TURBO_TOKEN`, or what is in the file that
    /// `TURBO_TOKEN_FILE` names.
    pub fn token() -> Option<String> {
        std::env::var("TURBO_TOKEN").ok().filter(|token| !token.is_empty()).or_else(Self::token_of_file)
    }

    /// What is in the file that `TURBO_TOKEN_FILE` names, as it is now.
    pub fn token_of_file() -> Option<String> {
        let path = std::env::var_os("TURBO_TOKEN_FILE").filter(|path| !path.is_empty())?;
        let text = std::fs::read_to_string(&path).inspect_err(|error| tracing::warn!("the token cannot be read from {}: {error}", path.display())).ok()?;
        Some(text.trim().to_owned()).filter(|token| !token.is_empty())
    }
}

/// With what requests are authorised.
#[derive(Clone, PartialEq, Eq)]
pub enum Authority {
    /// With nothing.
    None,
    /// With a token, or a key.
    Token(String),
    /// With tokens that are got for a login.
    Login {
        /// The user.
        name: String,
        /// Not to be shown.
        secret: String,
    },
}

/// Reads the configuration file; one that does not exist is empty.
pub fn read(path: &Path) -> Result<File> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("the configuration file {} is not valid", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Replaces the configuration file as a whole, so that a crash leaves the old one or the new one.
pub fn write(path: &Path, file: &File) -> Result<()> {
    let folder = path.parent().context("the configuration file has no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, toml::to_string(file)?).with_context(|| format!("writing {}", temporary.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("writing {}", path.display()))
}

/// A number of bytes: plain, or with K, M, G or T (powers of 1000), or KiB, MiB, GiB or TiB.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = unit.trim().to_ascii_lowercase();
    let base: u64 = if unit.ends_with("ib") { 1024 } else { 1000 };
    let power = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err("expected a number of bytes, such as 500M or 20GiB".into()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number of bytes, such as 500M or 20GiB")?;
    number.checked_mul(base.pow(power)).ok_or_else(|| "that is more bytes than can be counted".into())
}

/// A registry's URL, without a trailing slash.
pub fn check_hub(url: &str) -> Result<String> {
    let url = url.trim_end_matches('/');
    match url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) {
        Some(rest) if !rest.is_empty() && !rest.contains(char::is_whitespace) => Ok(url.into()),
        _ => bail!(crate::exit::UsageError(format!("`{url}` is not the URL of a registry; it starts with http:// or https://, such as {DEFAULT_HUB}"))),
    }
}

fn base_folder(variable: &str, below_home: &str) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(variable).map(PathBuf::from).filter(|folder| folder.is_absolute()) {
        return Ok(folder);
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    Ok(home.context("there is no home folder: set TURBO_HOME, or HOME")?.join(below_home))
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes() {
        for (text, size) in [("0", Ok(0)), ("12", Ok(12)), ("10M", Ok(10_000_000)), ("2GiB", Ok(2 << 30)), ("1kb", Ok(1000)), ("3 T", Ok(3_000_000_000_000))] {
            assert_eq!(parse_size(text), size, "{text}");
        }
        for bad in ["", "M", "1.5G", "-1", "10X", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
