//! The mounts of the VM, in the order in which they must be made.
//!
//! A tmpfs over `<sandbox>/mnt`, seen by nobody else, has the mount points: `img`, `host`, `union` and `hide` for FUSE,
//! `overlay` for the overlay where it is not the root or lies below something else, and `root` for what becomes `/`. It is
//! unbindable, so that no bind mount of a host directory that contains the sandbox shows it. Sandbox directories are named through `/proc/self/fd`, so that no character of the
//! sandbox's path has to be quoted in mount options. Targets inside the new root are resolved with `RESOLVE_IN_ROOT`:
//! a symbolic link of an image cannot lead a mount out of it.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, unmount};

use super::protocol::{Failure, Plan, Served, Step};
use super::regions;
use crate::guard::dev;
use crate::guard::place::{path_of, place};
use crate::regions::Kind;

/// Maps one user and one group into the user namespace.
pub(crate) fn write_maps(uid: u32, gid: u32, inner_uid: u32, inner_gid: u32) -> Result<(), Failure> {
    let write = |path: &str, text: String| {
        let failed = |error: std::io::Error| Failure::new(Step::WriteMaps, Errno::from_io_error(&error).unwrap_or(Errno::IO));
        std::fs::write(path, text).map_err(failed)
    };
    // Without giving up setgroups(2) first, an unprivileged user may not write a group map.
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{inner_uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{inner_gid} {gid} 1"))
}

/// Keeps later mounts of ours from the host, and the host's from us.
pub(crate) fn leave_host_mounts() -> Result<(), Failure> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    // The first call that needs a right in the new namespace: on Ubuntu it is this one that AppArmor refuses.
    mount_change("/", flags).map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => Failure::new(Step::Unshare, errno),
        _ => Failure::at("make mounts private", "/", errno),
    })
}

/// Opens the FUSE device. It must happen inside the user namespace: the kernel refuses a descriptor from outside.
pub(crate) fn open_fuse() -> Result<OwnedFd, Failure> {
    openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| Failure::new(Step::OpenFuse, errno))
}

/// Where the mounts are put together before they become the root.
pub(crate) struct Staging {
    upper: OwnedFd,
    work: OwnedFd,
    /// The tmpfs.
    stage: OwnedFd,
}

impl Staging {
    /// Opens the sandbox's directories and covers its `mnt`.
    pub(crate) fn new(sandbox: &[u8]) -> Result<Self, Failure> {
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: Vec<u8>| openat(CWD, &path[..], directory, Mode::empty()).map_err(|errno| Failure::at("open", &path, errno));
        let below = |name: &str| [sandbox, b"/", name.as_bytes()].concat();
        let (upper, work) = (open(below("upper"))?, open(below("work"))?);
        let mnt = below("mnt");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("turbo", &mnt[..], "tmpfs", flags, c"mode=0755,size=1m").map_err(|errno| Failure::at("mount a tmpfs on", &mnt, errno))?;
        let stage = open(mnt)?;
        for name in ["img", "host", "union", "hide", "overlay", "root"] {
            mkdirat(&stage, name, Mode::from_raw_mode(0o755)).map_err(|errno| Failure::at("make the mount point", name, errno))?;
        }
        rustix::process::fchdir(&stage).map_err(|errno| Failure::at("enter", "mnt", errno))?;
        Ok(Self { upper, work, stage })
    }

    /// Mounts the filesystems that the parent will serve.
    pub(crate) fn mount_fuse(&self, plan: &Plan) -> Result<Vec<OwnedFd>, Failure> {
        let (uid, gid) = (plan.inner_uid, plan.inner_gid);
        let mount = |served: &Served| match served {
            Served::Images => mount_fuse("img", MountFlags::RDONLY, uid, gid),
            Served::Host => mount_fuse("host", MountFlags::RDONLY, uid, gid),
            Served::Union => mount_fuse("union", MountFlags::empty(), uid, gid),
            Served::Hide => mount_fuse("hide", MountFlags::RDONLY, uid, gid),
        };
        plan.fuse.iter().map(mount).collect()
    }

    /// Puts the sandbox over the FUSE mounts, and the overlay or the union where the root will be.
    pub(crate) fn mount_root(&self, plan: &Plan) -> Result<(), Failure> {
        mount_change(".", MountPropagationFlags::UNBINDABLE).map_err(|errno| Failure::at("make unbindable", "mnt", errno))?;
        let lower = if plan.fuse.contains(&Served::Host) { "img:host" } else { "img" };
        let root = plan.regions.first().map_or(Kind::Overlay, |(_, kind)| *kind);
        let again = |source: &str, target: &str| mount_bind(source, target).map_err(|errno| Failure::at("bind", source, errno));
        if root == Kind::Union {
            again("union", "root")?;
            return if plan.fuse.contains(&Served::Images) { self.overlay(lower, "overlay") } else { Ok(()) };
        }
        self.overlay(lower, "root")?;
        // A union above part of it may have more of the overlay above itself.
        let is_needed = plan.regions.iter().skip(1).any(|(_, kind)| *kind == Kind::Overlay);
        if is_needed { again("root", "overlay") } else { Ok(()) }
    }

    /// Mounts an overlay over empty directories.
    pub(crate) fn try_overlay(&self) -> Result<(), Failure> {
        self.overlay("img:host", "root")
    }

    /// Mounts a FUSE filesystem that nobody serves.
    pub(crate) fn try_fuse(&self, uid: u32, gid: u32) -> Result<(), Failure> {
        mount_fuse("img", MountFlags::RDONLY, uid, gid).map(drop)
    }

    /// Mounts a new instance of devpts.
    pub(crate) fn try_terminals(&self) -> Result<(), Failure> {
        dev::mount_terminals("host")
    }

    fn overlay(&self, lower: &str, target: &str) -> Result<(), Failure> {
        let (upper, work) = (self.upper.as_raw_fd(), self.work.as_raw_fd());
        let options = format!("lowerdir={lower},upperdir=/proc/self/fd/{upper},workdir=/proc/self/fd/{work},userxattr");
        let options = CString::new(options).map_err(|_| Failure::new(Step::Overlay, Errno::INVAL))?;
        mount("turbo", target, "overlay", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str()).map_err(|errno| Failure::new(Step::Overlay, errno))
    }

    /// Adds what an application expects around the overlay and makes it the root. Runs as pid 1, since `/proc` shows the pid
    /// namespace of whoever mounts it. Returns warnings.
    pub(crate) fn enter(&self, plan: &Plan) -> Result<Vec<String>, Failure> {
        let root = openat(&self.stage, "root", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Failure::at("open", "root", errno))?;
        let mut warnings = Vec::new();
        mount_proc(&root)?;
        if let Err(errno) = mount_bind_recursive("/sys", path_of(&place(&root, "sys")?)) {
            warnings.push(format!("/sys is not available in the VM: {errno}"));
        }
        if plan.guard.has_private_dev() {
            dev::mount_private(&root, plan.guard.strict)?;
        } else {
            mount_bind_recursive("/dev", path_of(&place(&root, "dev")?)).map_err(|errno| Failure::at("bind", "/dev", errno))?;
            if !plan.host_shm {
                // Not the host's: write-copy never writes to the host.
                let _ = place(&root, "dev").and_then(|dev| place(&dev, "shm")).and_then(|shm| dev::tmpfs(&shm, c"mode=1777"));
            }
        }
        if plan.private_tmp {
            dev::tmpfs(&place(&root, "tmp")?, c"mode=1777")?;
        }
        regions::mount_all(&root, plan, &mut warnings)?;
        for (source, target) in &plan.binds {
            if let Err(errno) = bind(&root, source, target) {
                let (source, target) = (String::from_utf8_lossy(source), String::from_utf8_lossy(target));
                warnings.push(format!("{source} could not be mounted on {target}: {errno}"));
            }
        }
        pivot(&root)?;
        Ok(warnings)
    }
}

fn mount_fuse(target: &str, flags: MountFlags, uid: u32, gid: u32) -> Result<OwnedFd, Failure> {
    let device = open_fuse()?;
    let options = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions", device.as_raw_fd());
    let options = CString::new(options).map_err(|_| Failure::at("mount FUSE on", target, Errno::INVAL))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | flags;
    mount("turbo", target, "fuse.turbo", flags, options.as_c_str()).map_err(|errno| Failure::at("mount FUSE on", target, errno))?;
    Ok(device)
}

fn mount_proc(root: &OwnedFd) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let place = place(root, "proc")?;
    let target = path_of(&place);
    mount("proc", &target, "proc", flags, None)
        // Where parts of /proc are covered (containers) a new one is refused; the host's shows more processes, but works.
        .or_else(|_| mount_bind_recursive("/proc", &target))
        .map_err(|errno| Failure::at("mount", "/proc", errno))
}

/// Makes a file or folder of the host visible in the new root.
fn bind(root: &OwnedFd, source: &[u8], target: &[u8]) -> Result<(), Errno> {
    let is_dir = FileType::from_raw_mode(statat(CWD, source, AtFlags::empty())?.st_mode) == FileType::Directory;
    let place = match open_inside(root, target) {
        Err(Errno::NOENT) => {
            make_inside(root, target, is_dir)?;
            open_inside(root, target)?
        }
        other => other?,
    };
    mount_bind_recursive(source, format!("/proc/self/fd/{}", place.as_raw_fd()))
}

fn open_inside(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// Makes `path` and its missing parents. Only reached if the filesystems below do not already show a stub there, because the
/// sandbox or a layer deleted it.
pub(super) fn make_inside(root: &OwnedFd, path: &[u8], is_dir: bool) -> Result<(), Errno> {
    let mut parent = open_inside(root, b"/")?;
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
    for (at, part) in parts.iter().enumerate() {
        let so_far = parts[..=at].join(&b'/');
        parent = match open_inside(root, &so_far) {
            Err(Errno::NOENT) if at + 1 == parts.len() && !is_dir => {
                return openat(&parent, *part, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o644)).map(drop);
            }
            Err(Errno::NOENT) => {
                mkdirat(&parent, *part, Mode::from_raw_mode(0o755))?;
                open_inside(root, &so_far)?
            }
            other => other?,
        };
    }
    Ok(())
}

/// Makes `root` the root of this mount namespace, and takes the host's away.
fn pivot(root: &OwnedFd) -> Result<(), Failure> {
    let step = |what: &'static str| move |errno| Failure::at(what, "", errno);
    rustix::process::fchdir(root).map_err(step("enter the new root"))?;
    rustix::process::pivot_root(".", ".").map_err(step("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("unmount the old root"))?;
    rustix::process::chdir("/").map_err(step("enter the new root"))
}
