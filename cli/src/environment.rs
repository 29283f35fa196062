//! The application's environment: the host's, the images', and what the command line adds.
//!
//! Across images the last value wins, except for lists of folders such as PATH, where the last image's value comes
//! first, then earlier images', then the host's. Where the host is not visible (`full`) its variables are not either,
//! but for those that describe the user, the terminal and the language.

use std::collections::BTreeMap;
use std::ffi::OsString;

use anyhow::{Context, Result, bail};
use layer_format::manifest::{EnvMerge, EnvVar};

/// Variables whose values are lists of folders, joined by `:`.
const LISTS: [&str; 5] = ["PATH", "LD_LIBRARY_PATH", "XDG_DATA_DIRS", "MANPATH", "PKG_CONFIG_PATH"];
/// What an application without the host's variables still gets from it.
const ALWAYS: [&str; 12] = ["TERM", "COLORTERM", "NO_COLOR", "LANG", "LANGUAGE", "TZ", "HOME", "USER", "LOGNAME", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY"];
/// PATH where the host's is not visible.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment of a launch, as a sorted list.
///
/// `host` is turbo's own environment, `layers` the variables of all layers, lowest first, `extra` those of the command
/// line; `host_visible` says whether the application sees the host.
pub fn compose(
    host: impl IntoIterator<Item = (OsString, OsString)>,
    layers: &[Vec<EnvVar>],
    extra: &[(String, String)],
    host_visible: bool,
) -> Vec<(OsString, OsString)> {
    let mut env: BTreeMap<OsString, OsString> = BTreeMap::new();
    for (name, value) in host {
        let text = name.to_string_lossy();
        if text.starts_with("TURBO_") {
            continue;
        }
        if host_visible || ALWAYS.contains(&&*text) || text.starts_with("LC_") {
            env.insert(name, value);
        }
    }
    if !host_visible {
        env.insert("PATH".into(), DEFAULT_PATH.into());
    }
    for var in layers.iter().flatten() {
        let name = OsString::from(&var.name);
        let value = OsString::from(&var.value);
        let merge = if LISTS.contains(&var.name.as_str()) && var.merge == EnvMerge::Replace { EnvMerge::Prepend } else { var.merge };
        let earlier = env.get(&name).filter(|earlier| !earlier.is_empty()).cloned();
        let joined = match (merge, earlier) {
            (EnvMerge::Replace, _) | (_, None) => value,
            (EnvMerge::Prepend, Some(earlier)) => join(&value, &earlier),
            (EnvMerge::Append, Some(earlier)) => join(&earlier, &value),
        };
        env.insert(name, joined);
    }
    for (name, value) in extra {
        env.insert(name.into(), value.into());
    }
    env.into_iter().collect()
}

fn join(first: &OsString, second: &OsString) -> OsString {
    let mut joined = first.clone();
    joined.push(":");
    joined.push(second);
    joined
}

/// Parses `NAME=VALUE`; `NAME` alone takes the host's value.
pub fn parse_assignment(text: &str) -> Result<(String, String)> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => match std::env::var(text) {
            Ok(value) => (text, value),
            Err(_) => bail!(crate::exit::UsageError(format!("{text} is not set here; write {text}=VALUE"))),
        },
    };
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        bail!(crate::exit::UsageError(format!("`{text}` is not NAME=VALUE")));
    }
    Ok((name.into(), value))
}

/// Reads a file of `NAME=VALUE` lines; empty lines and those that start with `#` are passed over.
pub fn read_file(path: &std::path::Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| parse_assignment(line).with_context(|| format!("{}, line {}", path.display(), number + 1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn var(name: &str, value: &str, merge: EnvMerge) -> EnvVar {
        EnvVar { name: name.into(), value: value.into(), merge }
    }

    fn get<'a>(env: &'a [(OsString, OsString)], name: &str) -> Option<&'a str> {
        env.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.to_str())
    }

    #[test]
    fn the_last_image_wins_and_paths_concatenate() {
        let host = [("PATH", "/bin"), ("A", "host"), ("TURBO_TOKEN", "secret")].map(|(k, v)| (k.into(), v.into()));
        let layers = [
            vec![var("PATH", "/one", EnvMerge::Replace), var("A", "1", EnvMerge::Replace), var("B", "x", EnvMerge::Append)],
            vec![var("PATH", "/two", EnvMerge::Replace), var("A", "2", EnvMerge::Replace), var("B", "y", EnvMerge::Append)],
        ];
        let env = compose(host, &layers, &[("C".into(), "cli".into())], true);
        assert_eq!(get(&env, "PATH"), Some("/two:/one:/bin"));
        assert_eq!((get(&env, "A"), get(&env, "B"), get(&env, "C")), (Some("2"), Some("x:y"), Some("cli")));
        assert_eq!(get(&env, "TURBO_TOKEN"), None);
    }

    #[test]
    fn a_hidden_host_hides_its_variables() {
        let host = [("PATH", "/home/me/bin"), ("PYTHONHOME", "/x"), ("LC_ALL", "C"), ("TERM", "xterm")].map(|(k, v)| (k.into(), v.into()));
        let env = compose(host, &[], &[], false);
        assert_eq!(get(&env, "PATH"), Some(DEFAULT_PATH));
        assert_eq!((get(&env, "PYTHONHOME"), get(&env, "LC_ALL"), get(&env, "TERM")), (None, Some("C"), Some("xterm")));
    }

    #[test]
    fn assignments() {
        assert_eq!(parse_assignment("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert!(parse_assignment("=x").is_err());
        assert!(parse_assignment("SURELY_NOT_SET_ANYWHERE").is_err());
    }
}
