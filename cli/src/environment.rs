//! The application's environment: the host's, the images', what the container remembers, and what the command line adds.
//!
//! Across images the last value wins, except for lists of folders such as PATH, where the last image's value comes
//! first, then earlier images', then the host's. Of a host variable's visibility the first layer that says something other
//! than `inherit` decides, by name before in general; without any, the isolation of `/` does. Where the host's variables are
//! not visible (`full`), those that describe the user, the terminal and the language still are; those that point to the
//! host's session (its D-Bus, its agents, its runtime folder) are not.

use std::collections::BTreeMap;
use std::ffi::OsString;

use anyhow::{Context, Result, bail};
use layer_format::manifest::{EnvIsolation, EnvMerge, EnvMode, EnvVar, LayerManifest};

/// Variables whose values are lists of folders, joined by `:`.
const LISTS: [&str; 6] = ["PATH", "LD_LIBRARY_PATH", "XDG_DATA_DIRS", "XDG_CONFIG_DIRS", "MANPATH", "PKG_CONFIG_PATH"];
/// What a list that is not set stands for: an image that adds to it must not take that away. An empty item of MANPATH
/// is the system's own list.
const UNSET_LISTS: [(&str, &str); 3] = [("XDG_DATA_DIRS", "/usr/local/share:/usr/share"), ("XDG_CONFIG_DIRS", "/etc/xdg"), ("MANPATH", "")];
/// What an application without the host's variables still gets from it.
const ALWAYS: [&str; 11] = ["TERM", "COLORTERM", "NO_COLOR", "LANG", "LANGUAGE", "TZ", "HOME", "USER", "LOGNAME", "DISPLAY", "XAUTHORITY"];
/// PATH where the host's is not visible.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What layers state about the environment, lowest first.
#[derive(Clone, Copy, Debug)]
pub struct Stated<'a> {
    /// Variables that the layer sets.
    pub variables: &'a [EnvVar],
    /// Which of the host's it keeps out.
    pub isolation: &'a EnvIsolation,
}

impl<'a> From<&'a LayerManifest> for Stated<'a> {
    fn from(layer: &'a LayerManifest) -> Self {
        Self { variables: &layer.environment, isolation: &layer.environment_isolation }
    }
}

/// How much of the host's environment there is without any layer's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Host {
    /// Whether the host is visible at `/`.
    pub visible: bool,
    /// Whether the command line hides it (`--isolate full`): no layer opens it then.
    pub forced: bool,
}

/// The environment of a launch, as a sorted list.
///
/// `own` is turbo's own environment, `layers` all layers, lowest first, `more` what the container remembers and what the
/// command line says, later ones winning.
pub fn compose<'a>(
    own: impl IntoIterator<Item = (OsString, OsString)>,
    layers: &[Stated<'_>],
    more: impl IntoIterator<Item = (&'a String, &'a String)>,
    host: Host,
) -> Vec<(OsString, OsString)> {
    let mut env: BTreeMap<OsString, OsString> = BTreeMap::new();
    for (name, value) in own {
        let text = name.to_string_lossy();
        if !text.starts_with("TURBO_") && is_visible(&text, layers, host) {
            env.insert(name, value);
        }
    }
    if !env.contains_key(std::ffi::OsStr::new("PATH")) {
        env.insert("PATH".into(), DEFAULT_PATH.into());
    }
    for var in layers.iter().flat_map(|layer| layer.variables) {
        let name = OsString::from(&var.name);
        let value = OsString::from(&var.value);
        let is_list = LISTS.contains(&var.name.as_str());
        let merge = if is_list && var.merge == EnvMerge::Replace { EnvMerge::Prepend } else { var.merge };
        let unset = || UNSET_LISTS.iter().find(|(name, _)| *name == var.name).map(|(_, value)| OsString::from(value));
        let earlier = env.get(&name).filter(|earlier| !earlier.is_empty()).cloned().or_else(unset);
        let joined = match (merge, earlier) {
            (EnvMerge::Replace, _) | (_, None) => value,
            (EnvMerge::Prepend, Some(earlier)) => join(&value, &earlier),
            (EnvMerge::Append, Some(earlier)) => join(&earlier, &value),
        };
        env.insert(name, joined);
    }
    for (name, value) in more {
        env.insert(name.into(), value.into());
    }
    env.into_iter().collect()
}

/// Whether the application sees the host's value of a variable.
fn is_visible(name: &str, layers: &[Stated<'_>], host: Host) -> bool {
    let by_name = layers.iter().filter_map(|layer| layer.isolation.variables.get(name)).find(|mode| **mode != EnvMode::Inherit);
    let general = || layers.iter().map(|layer| layer.isolation.mode).find(|mode| *mode != EnvMode::Inherit);
    let always = ALWAYS.contains(&name) || name.starts_with("LC_");
    match by_name {
        Some(EnvMode::Full) => return false,
        Some(_) if !host.forced => return true,
        _ => {}
    }
    match general() {
        _ if always => true,
        _ if host.forced => false,
        Some(mode) => mode == EnvMode::WriteCopy,
        None => host.visible,
    }
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

    const VISIBLE: Host = Host { visible: true, forced: false };
    const HIDDEN: Host = Host { visible: false, forced: false };
    const FORCED: Host = Host { visible: false, forced: true };

    #[derive(Default)]
    struct Layer(Vec<EnvVar>, EnvIsolation);

    fn layer(variables: &[(&str, &str, EnvMerge)]) -> Layer {
        let var = |(name, value, merge): &(&str, &str, EnvMerge)| EnvVar { name: (*name).into(), value: (*value).into(), merge: *merge };
        Layer(variables.iter().map(var).collect(), EnvIsolation::default())
    }

    fn isolated(mode: EnvMode, variables: &[(&str, EnvMode)]) -> Layer {
        Layer(Vec::new(), EnvIsolation { mode, variables: variables.iter().map(|(name, mode)| ((*name).to_owned(), *mode)).collect() })
    }

    fn run(own: &[(&str, &str)], layers: &[Layer], more: &[(&str, &str)], host: Host) -> BTreeMap<String, String> {
        let own = own.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let layers: Vec<Stated<'_>> = layers.iter().map(|layer| Stated { variables: &layer.0, isolation: &layer.1 }).collect();
        let more: Vec<(String, String)> = more.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let env = compose(own, &layers, more.iter().map(|(name, value)| (name, value)), host);
        env.into_iter().map(|(name, value)| (name.into_string().unwrap(), value.into_string().unwrap())).collect()
    }

    fn get<'a>(env: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
        env.get(name).map(String::as_str)
    }

    #[test]
    fn the_last_image_wins_and_paths_concatenate() {
        use EnvMerge::*;
        let layers = [
            layer(&[("PATH", "/one", Replace), ("A", "1", Replace), ("B", "x", Append), ("P", "x", Prepend)]),
            layer(&[("PATH", "/two", Replace), ("A", "2", Replace), ("B", "y", Append), ("P", "y", Prepend)]),
            layer(&[("PATH", "/three", Replace), ("PATH", "/last", Append)]),
        ];
        let own = [("PATH", "/bin"), ("A", "host"), ("TURBO_TOKEN", "secret"), ("D", "host")];
        let env = run(&own, &layers, &[("C", "remembered"), ("D", "remembered"), ("C", "cli")], VISIBLE);
        assert_eq!(get(&env, "PATH"), Some("/three:/two:/one:/bin:/last"));
        assert_eq!((get(&env, "A"), get(&env, "B"), get(&env, "P")), (Some("2"), Some("x:y"), Some("y:x")));
        assert_eq!((get(&env, "C"), get(&env, "D")), (Some("cli"), Some("remembered")));
        assert_eq!(get(&env, "TURBO_TOKEN"), None);
    }

    #[test]
    fn a_list_that_is_not_set_keeps_what_it_stands_for() {
        use EnvMerge::*;
        let layers = [layer(&[("XDG_DATA_DIRS", "/opt/share", Replace), ("MANPATH", "/opt/man", Replace), ("LD_LIBRARY_PATH", "/opt/lib", Replace)])];
        let env = run(&[], &layers, &[], VISIBLE);
        assert_eq!(get(&env, "XDG_DATA_DIRS"), Some("/opt/share:/usr/local/share:/usr/share"));
        assert_eq!((get(&env, "MANPATH"), get(&env, "LD_LIBRARY_PATH")), (Some("/opt/man:"), Some("/opt/lib")));
        assert_eq!(get(&run(&[("XDG_DATA_DIRS", "/h")], &layers, &[], VISIBLE), "XDG_DATA_DIRS"), Some("/opt/share:/h"));
    }

    #[test]
    fn a_hidden_host_hides_its_variables_and_its_session() {
        let own = [
            ("PATH", "/home/me/bin"),
            ("PYTHONHOME", "/x"),
            ("LC_ALL", "C"),
            ("TERM", "xterm"),
            ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/1/bus"),
            ("SSH_AUTH_SOCK", "/tmp/agent"),
            ("XDG_RUNTIME_DIR", "/run/user/1"),
            ("WAYLAND_DISPLAY", "wayland-0"),
        ];
        for host in [HIDDEN, FORCED] {
            let env = run(&own, &[], &[], host);
            assert_eq!(get(&env, "PATH"), Some(DEFAULT_PATH));
            assert_eq!(env.keys().collect::<Vec<_>>(), ["LC_ALL", "PATH", "TERM"]);
        }
        assert_eq!(run(&own, &[], &[], VISIBLE).len(), own.len());
    }

    #[test]
    fn layers_keep_variables_out_and_the_first_word_counts() {
        use EnvMode::*;
        let own = [("PATH", "/host"), ("SECRET", "s"), ("PLAIN", "p"), ("TERM", "xterm")];
        let keeps = |layers: &[Layer], host| run(&own, layers, &[], host);
        let env = keeps(&[isolated(Inherit, &[("SECRET", Full), ("TERM", Full)])], VISIBLE);
        assert_eq!((get(&env, "SECRET"), get(&env, "PLAIN"), get(&env, "TERM")), (None, Some("p"), None));
        let env = keeps(&[isolated(Full, &[("SECRET", WriteCopy)])], VISIBLE);
        assert_eq!((get(&env, "SECRET"), get(&env, "PLAIN"), get(&env, "TERM"), get(&env, "PATH")), (Some("s"), None, Some("xterm"), Some(DEFAULT_PATH)));
        let env = keeps(&[isolated(WriteCopy, &[("SECRET", Full)])], HIDDEN);
        assert_eq!((get(&env, "SECRET"), get(&env, "PLAIN")), (None, Some("p")), "an image that shows `/` in full may show variables");
        let env = keeps(&[isolated(WriteCopy, &[("SECRET", WriteCopy)])], FORCED);
        assert_eq!((get(&env, "SECRET"), get(&env, "PLAIN")), (None, None), "--isolate full stands");
        let env = keeps(&[isolated(Inherit, &[("SECRET", Inherit)]), isolated(WriteCopy, &[]), isolated(Full, &[("SECRET", Full)])], VISIBLE);
        assert_eq!((get(&env, "SECRET"), get(&env, "PLAIN")), (None, Some("p")));
        let mut own_value = isolated(Inherit, &[("SECRET", Full)]);
        own_value.0 = layer(&[("SECRET", "image's", EnvMerge::Replace)]).0;
        assert_eq!(get(&keeps(&[own_value], VISIBLE), "SECRET"), Some("image's"));
    }

    #[test]
    fn assignments() {
        assert_eq!(parse_assignment("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert!(parse_assignment("=x").is_err());
        assert!(parse_assignment("SURELY_NOT_SET_ANYWHERE").is_err());
    }
}
