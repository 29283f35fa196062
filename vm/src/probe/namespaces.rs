//! User namespaces: if they cannot be made, why, and what to do about it.

use std::path::{Path, PathBuf};

use super::{Finding, Status};
use crate::error::VmError;

/// What surrounds this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    Docker,
    Podman,
    Other,
}

impl Container {
    fn namespaces(self) -> &'static str {
        match self {
            Self::Docker => {
                "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined --device /dev/fuse ..."
            }
            Self::Podman => "podman run --security-opt seccomp=unconfined --security-opt unmask=ALL --device /dev/fuse ...",
            Self::Other => "start the container without a system call filter that forbids unshare(2) and mount(2)",
        }
    }
}

/// The container that this process runs in, as far as it can be told.
pub(super) fn container() -> Option<Container> {
    if Path::new("/.dockerenv").exists() {
        return Some(Container::Docker);
    }
    if Path::new("/run/.containerenv").exists() {
        return Some(Container::Podman);
    }
    std::env::var_os("container").filter(|kind| !kind.is_empty()).map(|kind| if kind == "podman" { Container::Podman } else { Container::Other })
}

/// What the system says about user namespaces.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// `user.max_user_namespaces` of the namespace that this process is in.
    most: Option<u64>,
    /// `kernel.unprivileged_userns_clone`: Debian's switch, gone in newer versions.
    debian: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`: Ubuntu's, since 23.10.
    ubuntu: Option<u64>,
    container: Option<Container>,
    /// Whether system calls of this process are filtered.
    filtered: bool,
    executable: PathBuf,
}

impl Facts {
    fn gather(executable: &Path) -> Self {
        let number = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            most: number("user/max_user_namespaces"),
            debian: number("kernel/unprivileged_userns_clone"),
            ubuntu: number("kernel/apparmor_restrict_unprivileged_userns"),
            container: container(),
            filtered: status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2")),
            executable: executable.to_owned(),
        }
    }
}

pub(super) fn finding(tried: &Result<(), VmError>, executable: &Path) -> Finding {
    let finding =
        Finding::ok("user-namespaces", "lets an ordinary user make a filesystem and processes of its own", "they can be made, with rights inside").needed();
    let Err(error) = tried else { return finding };
    let (errno, detail) = match error {
        VmError::Namespace { source } => (source.raw_os_error(), source.to_string()),
        other => (None, other.to_string()),
    };
    Finding { detail: format!("they cannot be made: {detail}"), ..finding }.but(Status::Missing, remedy(&Facts::gather(executable), errno))
}

fn remedy(facts: &Facts, errno: Option<i32>) -> String {
    if facts.most == Some(0) {
        return lasting("user.max_user_namespaces", 15000);
    }
    if facts.debian == Some(0) {
        return lasting("kernel.unprivileged_userns_clone", 1);
    }
    match (errno, facts.container) {
        (Some(libc::ENOSPC | libc::EUSERS), _) => {
            return format!(
                "{}\nif that is not the cause: an outer sandbox forbids it (a turbo run whose root is full does); run turbo outside of it",
                lasting("user.max_user_namespaces", 15000)
            );
        }
        (Some(libc::EINVAL), _) => return "a kernel with CONFIG_USER_NS is needed".to_owned(),
        (_, Some(container)) if facts.filtered => return container.namespaces().to_owned(),
        _ => {}
    }
    if facts.ubuntu == Some(1) {
        return apparmor(&facts.executable);
    }
    match facts.container {
        Some(container) => container.namespaces().to_owned(),
        None if facts.filtered => {
            "a system call filter of whatever started this process forbids unshare(2) (see `grep Seccomp /proc/self/status`); start turbo outside of it"
                .to_owned()
        }
        None => "a security module forbids it: see the kernel's log (sudo dmesg | tail)".to_owned(),
    }
}

fn lasting(key: &str, value: u64) -> String {
    format!("sudo sysctl -w {key}={value}\nand for every boot: echo '{key}={value}' | sudo tee /etc/sysctl.d/60-turbo.conf")
}

/// A profile that allows this program alone, and the switch that allows all programs.
fn apparmor(executable: &Path) -> String {
    let path = executable.display();
    format!(
        "sudo tee /etc/apparmor.d/turbo <<'EOF'\nabi <abi/4.0>,\ninclude <tunables/global>\n\nprofile turbo \"{path}\" flags=(unconfined) {{\n  userns,\n\n  \
         include if exists <local/turbo>\n}}\nEOF\nsudo apparmor_parser -r /etc/apparmor.d/turbo\n\
         or, for all programs: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_remedy() {
        let facts = Facts { most: Some(1000), executable: "/opt/turbo/bin/turbo".into(), ..Facts::default() };
        let docker = Some(Container::Docker);
        for (facts, errno, says) in [
            (Facts { most: Some(0), ..facts.clone() }, libc::ENOSPC, "sysctl -w user.max_user_namespaces=15000"),
            (Facts { most: Some(0), ubuntu: Some(1), ..facts.clone() }, libc::ENOSPC, "user.max_user_namespaces"),
            (facts.clone(), libc::ENOSPC, "outer sandbox"),
            (Facts { debian: Some(0), ..facts.clone() }, libc::EPERM, "kernel.unprivileged_userns_clone=1"),
            (Facts { ubuntu: Some(1), debian: Some(1), ..facts.clone() }, libc::EACCES, "profile turbo \"/opt/turbo/bin/turbo\" flags=(unconfined)"),
            (Facts { ubuntu: Some(1), ..facts.clone() }, libc::EPERM, "apparmor_parser -r"),
            (Facts { ubuntu: Some(0), filtered: true, container: docker, ..facts.clone() }, libc::EPERM, "docker run --security-opt seccomp=unconfined"),
            (Facts { ubuntu: Some(1), filtered: true, container: docker, ..facts.clone() }, libc::EPERM, "docker run"),
            (Facts { container: Some(Container::Podman), ..facts.clone() }, libc::EPERM, "podman run"),
            (Facts { filtered: true, ..facts.clone() }, libc::EPERM, "system call filter"),
            (facts.clone(), libc::EINVAL, "CONFIG_USER_NS"),
            (facts.clone(), libc::EPERM, "security module"),
        ] {
            let remedy = remedy(&facts, Some(errno));
            assert!(remedy.contains(says), "{facts:?}: {remedy}");
        }
    }
}
