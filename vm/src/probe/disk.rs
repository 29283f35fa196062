//! Where sandboxes are to be: the filesystem, the folder's owner, the room.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, StatFs, access, statfs, statvfs};
use rustix::process::geteuid;

use super::attempt::Attempts;
use super::{Finding, Status};
use crate::error::VmError;

/// Under this a launch may not have room for what it fetches and writes, in bytes.
const LITTLE: u64 = 1 << 30;

/// Filesystems by their magic number: the name, and whether overlayfs can keep a sandbox there.
const KNOWN: [(u64, &str, bool); 14] = [
    (0xEF53, "ext4", true),
    (0x5846_5342, "xfs", true),
    (0x9123_683E, "btrfs", true),
    (0xF2F5_2010, "f2fs", true),
    (0xCA45_1A4E, "bcachefs", true),
    (0x0102_1994, "tmpfs", true),
    (0x2FC1_2FC1, "zfs", true),
    (0x794C_7630, "overlayfs", false),
    (0x6969, "nfs", false),
    (0x6573_5546, "a FUSE filesystem", false),
    (0xFF53_4D42, "cifs", false),
    (0xFE53_4D42, "smb", false),
    (0x0102_1997, "9p", false),
    (0xF15F, "ecryptfs", false),
];

fn kind(found: &StatFs) -> Option<&'static (u64, &'static str, bool)> {
    // Only the lower half is the magic number on every architecture.
    let magic = found.f_type as u64 & 0xFFFF_FFFF;
    KNOWN.iter().find(|(known, ..)| *known == magic)
}

/// The nearest folder that exists.
fn existing(directory: &Path) -> &Path {
    directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

pub(super) fn overlay(tried: &Attempts, directory: &Path) -> Finding {
    let found = statfs(existing(directory)).ok();
    let known = found.as_ref().and_then(kind);
    let name = known.map_or("a filesystem that is not known here", |(_, name, _)| name);
    let finding =
        Finding::ok("overlayfs", "keeps what programs write in the container's sandbox", format!("works on {name} ({})", directory.display())).needed();
    let move_home = "put the home folder on a local filesystem (ext4, xfs, btrfs): turbo config --home /path/on/it, or TURBO_HOME";
    match &tried.overlay {
        Ok(()) if name == "tmpfs" => finding.but(Status::Degraded, format!("what is kept here is lost when the machine stops; {move_home}")),
        Ok(()) => finding,
        Err(VmError::NotTried) => Finding { detail: format!("not tried, since there are no user namespaces; {} is on {name}", directory.display()), ..finding },
        Err(VmError::Overlay { source, .. }) => {
            let finding = Finding { detail: format!("{source}, on {name} ({})", directory.display()), ..finding };
            match known {
                Some((.., true)) => {
                    finding.but(Status::Missing, "sudo modprobe overlay\nLinux 5.11 or later is needed, and no security module that forbids the mount")
                }
                _ => finding.but(Status::Missing, move_home),
            }
        }
        Err(error) => Finding { detail: error.to_string(), ..finding }.but(Status::Missing, move_home),
    }
}

pub(super) fn folder(directory: &Path) -> Finding {
    let home = directory.parent().unwrap_or(directory);
    let finding = Finding::ok("home", "keeps images and containers", home.display().to_string()).needed();
    let found = existing(home);
    let me = geteuid().as_raw();
    let chown = format!("sudo chown -R {me} {}\nor choose another: turbo config --home DIR, or TURBO_HOME", home.display());
    let Ok(meta) = found.metadata() else { return finding.but(Status::Missing, chown) };
    if access(found, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return Finding { detail: format!("{} cannot be written by this user ({me})", found.display()), ..finding }.but(Status::Missing, chown);
    }
    if found == home && meta.uid() != me {
        return Finding { detail: format!("{} belongs to user {}, not to {me}", home.display(), meta.uid()), ..finding }.but(Status::Degraded, chown);
    }
    if found == home && meta.mode() & 0o022 != 0 {
        let detail = format!("others may write to {} (mode {:o}), and could change what runs", home.display(), meta.mode() & 0o7777);
        return Finding { detail, ..finding }.but(Status::Degraded, format!("chmod go-w {}", home.display()));
    }
    finding
}

pub(super) fn space(directory: &Path) -> Finding {
    let finding = Finding::ok("disk-space", "keeps what is fetched and written", "");
    let Ok(found) = statvfs(existing(directory)) else {
        return Finding { detail: "it could not be found out".to_owned(), ..finding };
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let finding = Finding { detail: format!("{} MB are free", free / 1_000_000), ..finding };
    if free >= LITTLE {
        finding
    } else {
        finding.but(Status::Degraded, "turbo gc, turbo rm and turbo rmi free space; turbo config --cache-size 5G limits what is kept")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(overlay: Result<(), VmError>) -> Attempts {
        Attempts { namespaces: Ok(()), overlay, fuse: Ok(()), terminals: Ok(()) }
    }

    #[test]
    fn a_folder_that_others_may_write_is_noted() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let at = |mode| {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            folder(&dir.path().join("containers"))
        };
        assert_eq!(at(0o700).status, Status::Ok);
        let open = at(0o777);
        assert_eq!((open.status, open.remedy.unwrap()), (Status::Degraded, format!("chmod go-w {}", dir.path().display())));
        assert_eq!(folder(&dir.path().join("not/yet/containers")).status, Status::Ok, "it will be made");
    }

    #[test]
    fn a_refused_sandbox_says_where_to_put_it() {
        let refused = VmError::Overlay { sandbox: "/x".into(), source: std::io::Error::from_raw_os_error(libc::EINVAL) };
        // /proc is no filesystem for sandboxes, and not in the list.
        let finding = overlay(&tried(Err(refused)), Path::new("/proc/nowhere"));
        assert!(finding.prevents_runs() && finding.remedy.unwrap().contains("TURBO_HOME"));
        let not_tried = overlay(&tried(Err(VmError::NotTried)), Path::new("/"));
        assert!(!not_tried.prevents_runs(), "another finding says what is wrong");
    }
}
