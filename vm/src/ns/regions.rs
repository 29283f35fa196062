//! The regions of the new root: each directory that is served by something else than its parent is mounted over.
//!
//! A region is a bind mount, so it costs no more than finding its place: of the same path in the overlay or the union, of
//! the host's directory, or of the filesystem in which nothing exists. Places are found without following symbolic links:
//! a path of the plan means that path.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_bind, mount_bind_recursive, mount_remount};

use super::mounts::make_inside;
use super::protocol::{Failure, Plan};
use crate::regions::Kind;

/// Mounts all regions but the root's below `root`. The current directory is where the filesystems are mounted.
pub(super) fn mount_all(root: &OwnedFd, plan: &Plan, warnings: &mut Vec<String>) -> Result<(), Failure> {
    let sources = Sources::open(plan)?;
    for (at, (path, kind)) in plan.regions.iter().enumerate().skip(1) {
        match sources.mount(root, path, *kind, plan.private_tmp) {
            Ok(true) => {}
            // The union does what any other would have done.
            Ok(false) | Err(_) if above(&plan.regions[..at], path) == Kind::Union => {}
            // What is not there need not be hidden.
            Ok(false) if *kind == Kind::Hide => {}
            Ok(false) => warnings.push(format!("the isolation mode of /{} has no effect, since it is no directory", String::from_utf8_lossy(path))),
            Err(errno) => return Err(Failure::at("set the isolation mode of", [b"/", &path[..]].concat(), errno)),
        }
    }
    Ok(())
}

/// Remounts the overlay as it is. The kernel then drops the names that it remembers of it and that are not in use.
pub(super) fn refresh(plan: &Plan) {
    if let Some((path, _)) = plan.regions.iter().find(|(_, kind)| *kind == Kind::Overlay) {
        // If it fails, names stay as they were.
        let _ = mount_remount([b"/", &path[..]].concat(), MountFlags::NOSUID | MountFlags::NODEV, c"");
    }
}

/// What serves the parent of a path, given the regions before it.
fn above(regions: &[(Vec<u8>, Kind)], path: &[u8]) -> Kind {
    let contains = |found: &[u8]| found.is_empty() || path.strip_prefix(found).is_some_and(|rest| rest.starts_with(b"/"));
    regions.iter().filter(|(found, _)| contains(found)).max_by_key(|(found, _)| found.len()).map_or(Kind::Overlay, |(_, kind)| *kind)
}

/// Where regions are bound from.
struct Sources {
    overlay: Option<OwnedFd>,
    union: Option<OwnedFd>,
    hide: Option<OwnedFd>,
}

impl Sources {
    fn open(plan: &Plan) -> Result<Self, Failure> {
        let open = |name: &str, kind: Kind| {
            let used = plan.regions.iter().skip(1).any(|(_, found)| *found == kind);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            used.then(|| openat(CWD, name, flags, Mode::empty()).map_err(|errno| Failure::at("open", name, errno))).transpose()
        };
        Ok(Self { overlay: open("overlay", Kind::Overlay)?, union: open("union", Kind::Union)?, hide: open("hide", Kind::Hide)? })
    }

    /// Whether there is a place for the region, which is then mounted.
    fn mount(&self, root: &OwnedFd, path: &[u8], kind: Kind, private_tmp: bool) -> Result<bool, Errno> {
        let target = match open_exactly(root, path) {
            // Nobody but the application sees what is made in its own `/tmp`.
            Err(Errno::NOENT) if private_tmp && path.starts_with(b"tmp/") => {
                make_inside(root, path, true)?;
                open_exactly(root, path)?
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            other => other?,
        };
        let source = |root: &Option<OwnedFd>| open_exactly(root.as_ref().ok_or(Errno::NOENT)?, path);
        match kind {
            Kind::Overlay => mount_bind(by_fd(&source(&self.overlay)?), by_fd(&target))?,
            Kind::Union => mount_bind(by_fd(&source(&self.union)?), by_fd(&target))?,
            Kind::Hide => mount_bind(by_fd(self.hide.as_ref().ok_or(Errno::NOENT)?), by_fd(&target))?,
            Kind::Bind => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let source = openat2(CWD, [b"/", path].concat(), flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
                mount_bind_recursive(by_fd(&source), by_fd(&target))?;
            }
        }
        Ok(true)
    }
}

fn open_exactly(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS)
}

fn by_fd(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_region_is_above() {
        let regions = [(b"".to_vec(), Kind::Overlay), (b"home".to_vec(), Kind::Union), (b"home/u".to_vec(), Kind::Bind)];
        for (path, kind) in [("homestead", Kind::Overlay), ("home/v", Kind::Union), ("home/u/x", Kind::Bind), ("home", Kind::Overlay)] {
            assert_eq!(above(&regions, path.as_bytes()), kind, "{path}");
        }
    }
}
