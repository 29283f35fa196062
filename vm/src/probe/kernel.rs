//! What the kernel is and has.

use super::{Finding, Status};
use crate::guard::LANDLOCK_SCOPES;
use crate::sys::confine::{has_filters, landlock_abi};

/// overlayfs in a user namespace.
const OLDEST: (u32, u32) = (5, 11);
/// What later versions add.
const ADDED: [((u32, u32), &str); 4] = [
    ((5, 12), "/sys in runs whose root is full"),
    ((6, 12), "abstract sockets and signals kept inside (Landlock)"),
    ((6, 13), "timestamps fine enough to tell any two changes apart"),
    ((6, 16), "native reads of local files (data-only overlay layers)"),
];

/// The kernel's version.
pub(super) fn version() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    judge(&release)
}

fn judge(release: &str) -> Finding {
    let finding = Finding::ok("kernel", "namespaces, FUSE and overlayfs for ordinary users", format!("Linux {release}")).needed();
    let Some(version) = parse(release) else { return finding };
    if version < OLDEST {
        return finding.but(Status::Missing, format!("install Linux {}.{} or later", OLDEST.0, OLDEST.1));
    }
    let later: Vec<String> = ADDED.iter().filter(|(since, _)| version < *since).map(|((major, minor), what)| format!("{major}.{minor}: {what}")).collect();
    if later.is_empty() { finding } else { Finding { detail: format!("Linux {release}; later ones add {}", later.join("; ")), ..finding } }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// System call filters.
pub(super) fn filters() -> Finding {
    let finding = Finding::ok("seccomp", "keeps programs inside from system calls that reach out", "filters can be installed").needed();
    if has_filters() {
        return finding;
    }
    Finding { detail: "the kernel takes no system call filters".to_owned(), ..finding }.but(Status::Missing, "a kernel with CONFIG_SECCOMP_FILTER is needed")
}

/// Landlock.
pub(super) fn landlock() -> Finding {
    landlock_of(landlock_abi())
}

fn landlock_of(abi: u32) -> Finding {
    let finding = Finding::ok("landlock", "keeps runs whose root is full from abstract sockets and from signals to outside", format!("version {abi}"));
    match abi {
        LANDLOCK_SCOPES.. => finding,
        0 => Finding { detail: "the kernel has none, or it is switched off".to_owned(), ..finding }
            .but(Status::Degraded, "install Linux 6.12 or later, and boot it with `landlock` in the list `lsm=` (cat /sys/kernel/security/lsm)"),
        _ => finding.but(Status::Degraded, "install Linux 6.12 or later"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (release, status, says) in [
            ("6.18.44-fc-v657", Status::Ok, "Linux 6.18.44-fc-v657"),
            ("6.12.0-1-amd64", Status::Ok, "6.16: native reads"),
            ("5.11.0", Status::Ok, "5.12: /sys"),
            ("5.10.0-28-amd64", Status::Missing, "5.10"),
            ("4.18.0-553.el8.x86_64", Status::Missing, "4.18"),
            ("unknown", Status::Ok, "unknown"),
        ] {
            let finding = judge(release);
            assert_eq!(finding.status, status, "{release}");
            assert!(finding.detail.contains(says), "{release}: {}", finding.detail);
        }
        assert!(!judge("6.12.0").detail.contains("6.12:"));
    }

    #[test]
    fn landlock_needs_scopes() {
        assert_eq!([0, 1, 5, 6, 7].map(|abi| landlock_of(abi).status), [Status::Degraded, Status::Degraded, Status::Degraded, Status::Ok, Status::Ok]);
    }
}
