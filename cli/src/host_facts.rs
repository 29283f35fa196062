//! What requirements and conditions ask of the host.
//!
//! | key | holds where |
//! |---|---|
//! | `architecture:x86_64` | the processor is of this kind, as `uname -m` names it (`amd64` and `arm64` are understood) |
//! | `kernel:>=6.1` | the kernel's version lies in the range |
//! | `glibc:>=2.36` | the host's C library is glibc, and its version lies in the range |
//! | `distro:debian` | the distribution is this one, or is derived from it |
//! | `os:debian12` | the distribution with its version; `os:linux` always |
//! | `feature:userns` | the host has it: see [`FEATURES`]; `feature:cpu-avx2` for what `/proc/cpuinfo` lists |
//! | `privilege:root` | turbo runs as root; `privilege:user` where it does not |
//! | `file:/path` | the host has it |
//! | `env:NAME`, `env:NAME=VALUE` | turbo's own environment has it |
//!
//! A key or feature that is not known here does not hold.

use std::path::Path;

use layer_format::manifest::Condition;

use crate::releases::Range;

/// Names that `feature:` knows, besides those of the processor.
pub const FEATURES: [&str; 11] = ["userns", "fuse", "overlayfs", "landlock", "seccomp", "cgroup2", "kvm", "dri", "x11", "wayland", "systemd"];

/// How the host is looked at: a fake one in tests.
pub trait Look {
    /// The content of a small file.
    fn read(&self, path: &str) -> Option<String>;
    /// Whether there is something at a path.
    fn exists(&self, path: &str) -> bool;
    /// A variable of turbo's environment.
    fn variable(&self, name: &str) -> Option<String>;
    /// `uname -m` and `uname -r`.
    fn system(&self) -> (String, String);
    /// The version of the host's glibc.
    fn glibc(&self) -> Option<String>;
    /// Whether turbo runs as root.
    fn is_root(&self) -> bool;
}

/// The host that turbo runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

impl Look for Host {
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn exists(&self, path: &str) -> bool {
        Path::new(path).symlink_metadata().is_ok()
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn system(&self) -> (String, String) {
        let names = rustix::system::uname();
        (names.machine().to_string_lossy().into_owned(), names.release().to_string_lossy().into_owned())
    }

    /// Read from the library itself: turbo need not be linked with it.
    fn glibc(&self) -> Option<String> {
        let machine = self.system().0;
        let triplet = format!("/lib/{machine}-linux-gnu/libc.so.6");
        let places = [triplet.as_str(), "/lib64/libc.so.6", "/usr/lib64/libc.so.6", "/usr/lib/libc.so.6", "/lib/libc.so.6"];
        glibc_version(&places.iter().find_map(|path| std::fs::read(path).ok())?)
    }

    fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }
}

/// What the library prints when it is executed: `GNU C Library (…) stable release version 2.36.`
fn glibc_version(library: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b"release version ";
    let banner = find(library, b"GNU C Library")?;
    let text = library.get(banner..(banner + 256).min(library.len()))?;
    let version = text.get(find(text, BEFORE)? + BEFORE.len()..)?;
    let version: String = version.iter().map(|b| char::from(*b)).take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    Some(version.trim_end_matches('.').to_owned()).filter(|version| !version.is_empty())
}

fn find(within: &[u8], wanted: &[u8]) -> Option<usize> {
    within.windows(wanted.len()).position(|window| window == wanted)
}

/// A requirement as the host meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether it holds.
    pub holds: bool,
    /// What the host has instead, for people.
    pub found: String,
}

fn answer(holds: bool, found: impl Into<String>) -> Answer {
    Answer { holds, found: found.into() }
}

/// Whether a requirement `KEY:VALUE` holds, and what was found.
pub fn ask(host: &impl Look, requirement: &str) -> Answer {
    let Some((key, value)) = requirement.split_once(':') else { return answer(false, "this is not KEY:VALUE") };
    let value = value.trim();
    match key {
        "architecture" => {
            let (machine, _) = host.system();
            let wanted = match value {
                "amd64" | "x64" | "x86-64" => "x86_64",
                "arm64" => "aarch64",
                other => other,
            };
            answer(wanted == machine || wanted == "any", format!("this machine is {machine}"))
        }
        "kernel" => {
            // `6.1.0-13-amd64`: what follows the numbers is the distribution's, and no pre-release.
            let release = host.system().1;
            let numbers: String = release.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            version(value, Some(numbers.trim_end_matches('.')), "kernel")
        }
        "glibc" => version(value, host.glibc().as_deref(), "glibc"),
        "distro" | "os" => distribution(host, key, value),
        "feature" => answer(has_feature(host, value), if is_known_feature(value) { "this machine lacks it" } else { "turbo does not know this feature" }),
        "privilege" => {
            let who = if host.is_root() { "root" } else { "user" };
            answer(value == who, format!("turbo runs as {}", if who == "root" { "root" } else { "an ordinary user" }))
        }
        "file" => answer(value.starts_with('/') && host.exists(value), "there is no such file on this machine"),
        "env" => match value.split_once('=') {
            Some((name, wanted)) => {
                let found = host.variable(name);
                let holds = found.as_deref() == Some(wanted);
                answer(holds, if found.is_some() { "the variable has another value" } else { "the variable is not set" })
            }
            None => answer(host.variable(value).is_some(), "the variable is not set"),
        },
        _ => answer(false, "turbo does not know this key"),
    }
}

fn version(range: &str, found: Option<&str>, what: &str) -> Answer {
    match (Range::parse(range), found.filter(|found| !found.is_empty())) {
        (Err(_), _) => answer(false, "the range is not valid: expected one such as >=6.1"),
        (_, None) => answer(false, format!("this machine has no {what}")),
        (Ok(range), Some(found)) => answer(range.admits(found), format!("this machine has {found}")),
    }
}

fn distribution(host: &impl Look, key: &str, value: &str) -> Answer {
    let text = host.read("/etc/os-release").or_else(|| host.read("/usr/lib/os-release")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim().trim_matches(['"', '\'']).to_ascii_lowercase()).unwrap_or_default()
    };
    let (id, version, value) = (field("ID"), field("VERSION_ID"), value.to_ascii_lowercase());
    let found = match id.as_str() {
        "" => "the distribution is not known".to_owned(),
        _ => format!("this is {id}{version}"),
    };
    let holds = match key {
        "distro" if value.is_empty() => false,
        "distro" => id == value || field("ID_LIKE").split_whitespace().any(|like| like == value),
        _ => value == "linux" || (!id.is_empty() && !version.is_empty() && format!("{id}{version}") == value),
    };
    answer(holds, found)
}

fn is_known_feature(name: &str) -> bool {
    FEATURES.contains(&name) || name.strip_prefix("cpu-").is_some_and(|flag| !flag.is_empty())
}

fn has_feature(host: &impl Look, name: &str) -> bool {
    let set = |variable: &str| host.variable(variable).is_some_and(|value| !value.is_empty());
    match name {
        "userns" => host.read("/proc/sys/user/max_user_namespaces").and_then(|text| text.trim().parse::<u64>().ok()).is_some_and(|most| most > 0),
        "fuse" => host.exists("/dev/fuse"),
        "overlayfs" => host.read("/proc/filesystems").is_some_and(|text| text.split_whitespace().any(|word| word == "overlay")),
        "landlock" => host.read("/sys/kernel/security/lsm").is_some_and(|text| text.trim().split(',').any(|name| name == "landlock")),
        "seccomp" => host.read("/proc/self/status").is_some_and(|text| text.lines().any(|line| line.starts_with("Seccomp:"))),
        "cgroup2" => host.exists("/sys/fs/cgroup/cgroup.controllers"),
        "kvm" => host.exists("/dev/kvm"),
        "dri" => host.exists("/dev/dri"),
        "x11" => set("DISPLAY"),
        "wayland" => set("WAYLAND_DISPLAY"),
        "systemd" => host.exists("/run/systemd/system"),
        _ => name.strip_prefix("cpu-").is_some_and(|flag| {
            let text = host.read("/proc/cpuinfo").unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
            line.and_then(|line| line.split_once(':')).is_some_and(|(_, flags)| flags.split_whitespace().any(|found| found == flag))
        }),
    }
}

/// Whether a condition holds.
pub fn holds(host: &impl Look, condition: &Condition) -> bool {
    condition.holds(&|requirement| ask(host, requirement).holds)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A machine as a test describes it.
    #[derive(Clone, Debug, Default)]
    pub struct Fake {
        pub files: BTreeMap<&'static str, &'static str>,
        pub variables: BTreeMap<&'static str, &'static str>,
        pub machine: &'static str,
        pub kernel: &'static str,
        pub glibc: Option<&'static str>,
        pub root: bool,
    }

    impl Look for Fake {
        fn read(&self, path: &str) -> Option<String> {
            self.files.get(path).map(ToString::to_string)
        }
        fn exists(&self, path: &str) -> bool {
            self.files.contains_key(path)
        }
        fn variable(&self, name: &str) -> Option<String> {
            self.variables.get(name).map(ToString::to_string)
        }
        fn system(&self) -> (String, String) {
            (self.machine.into(), self.kernel.into())
        }
        fn glibc(&self) -> Option<String> {
            self.glibc.map(Into::into)
        }
        fn is_root(&self) -> bool {
            self.root
        }
    }

    pub fn ubuntu() -> Fake {
        Fake {
            files: [
                ("/etc/os-release", "NAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\nID=ubuntu\nID_LIKE=debian\n"),
                ("/proc/sys/user/max_user_namespaces", "15000\n"),
                ("/proc/filesystems", "nodev\tsysfs\nnodev\toverlay\n\text4\n"),
                ("/proc/cpuinfo", "processor : 0\nflags\t\t: fpu sse4_2 avx2\n"),
                ("/dev/fuse", ""),
                ("/etc/ssl", ""),
            ]
            .into(),
            variables: [("DISPLAY", ":0"), ("EMPTY", "")].into(),
            machine: "x86_64",
            kernel: "6.8.0-31-generic",
            glibc: Some("2.39"),
            root: false,
        }
    }

    #[test]
    fn requirements_are_asked_of_the_host() {
        let host = ubuntu();
        for holds in [
            "architecture:x86_64",
            "architecture:amd64",
            "kernel:>=6.1",
            "kernel:>=6.8 <7",
            "kernel:6.8",
            "glibc:>=2.36",
            "distro:ubuntu",
            "distro:debian",
            "distro:Ubuntu",
            "os:ubuntu24.04",
            "os:linux",
            "feature:userns",
            "feature:fuse",
            "feature:overlayfs",
            "feature:cpu-avx2",
            "feature:x11",
            "privilege:user",
            "file:/etc/ssl",
            "env:DISPLAY",
            "env:DISPLAY=:0",
            "env:EMPTY",
            "env:EMPTY=",
        ] {
            assert!(ask(&host, holds).holds, "{holds}: {:?}", ask(&host, holds));
        }
        for fails in [
            "architecture:aarch64",
            "kernel:>=6.9",
            "kernel:<6.8",
            "kernel:6.80",
            "kernel:new",
            "glibc:<2.39",
            "distro:fedora",
            "os:debian12",
            "os:ubuntu",
            "feature:cgroup2",
            "feature:cpu-avx512f",
            "feature:cpu-avx",
            "feature:teleport",
            "feature:wayland",
            "privilege:root",
            "privilege:admin",
            "file:/etc/none",
            "file:etc/ssl",
            "env:NONE",
            "env:DISPLAY=:1",
            "hair:brown",
            "nothing",
        ] {
            assert!(!ask(&host, fails).holds, "{fails}");
        }
        assert_eq!(ask(&host, "kernel:>=99").found, "this machine has 6.8.0");
        let bare = Fake { machine: "aarch64", kernel: "5.4", root: true, ..Fake::default() };
        assert!(ask(&bare, "privilege:root").holds && ask(&bare, "architecture:arm64").holds);
        assert!(!ask(&bare, "glibc:>=2").holds && !ask(&bare, "distro:").holds && !ask(&bare, "os:").holds);
    }

    #[test]
    fn conditions_nest_over_the_host() {
        let host = |text: &str| Condition::Host(text.into());
        let condition = Condition::All(vec![host("architecture:x86_64"), Condition::Any(vec![host("distro:fedora"), host("env:DISPLAY")])]);
        assert!(holds(&ubuntu(), &condition));
        assert!(!holds(&ubuntu(), &Condition::Not(Box::new(condition))));
        assert!(holds(&ubuntu(), &Condition::Not(Box::new(host("unknown:key")))));
    }

    #[test]
    fn the_library_tells_its_version() {
        let banner = b"\0\x7fELF..GNU C Library (Debian GLIBC 2.36-9+deb12u4) stable release version 2.36.\nCopyright";
        assert_eq!(glibc_version(banner).as_deref(), Some("2.36"));
        for none in [&b"musl libc"[..], b"GNU C Library", b"GNU C Library release version x", b""] {
            assert_eq!(glibc_version(none), None);
        }
    }

    #[test]
    fn this_machine_is_some_machine() {
        assert!(ask(&Host, &format!("architecture:{}", std::env::consts::ARCH)).holds);
        assert!(ask(&Host, "kernel:>=2").holds && ask(&Host, "os:linux").holds && ask(&Host, "file:/proc").holds);
    }
}
