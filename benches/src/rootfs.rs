//! Root filesystems from Debian packages, built by an ordinary user.
//!
//! apt-get runs with lists, status and cache of its own: it sees an empty machine, takes the sources
//! of this one and changes nothing of it. The packages are unpacked, not installed: no script of
//! theirs runs, and what a launch misses of that is made good here and in the `finish` of who builds one.
//! A finished root filesystem is kept, with a note of what it was made from, and used again.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use crate::sys;

/// Part of the note on a root filesystem: raised when one built before is no longer good enough.
const RECIPE_VERSION: u32 = 2;
/// Package lists older than this are renewed before use.
const LISTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Alternatives that packages choose at installation: name of the link, and the folders that may provide it, best first.
const ALTERNATIVES: &[(&str, &[&str])] =
    &[("libblas.so.3", &["openblas-pthread", "blas"]), ("liblapack.so.3", &["openblas-pthread", "lapack"]), ("libopenblas.so.0", &["openblas-pthread"])];

/// What a root filesystem is made of.
#[derive(Debug)]
pub struct Recipe<'a> {
    /// Its name: the folder it is built in.
    pub name: &'a str,
    /// A tree that it begins with, copied.
    pub base: Option<PathBuf>,
    /// Debian packages, unpacked with all that they depend on.
    pub packages: &'a [&'a str],
    /// What else it is made from, for the note that tells whether one built before is still the same.
    pub made_from: String,
}

/// Builds a root filesystem below `cache`, or finds it there. `finish` brings the unpacked packages into the state in
/// which their installation scripts would leave them, and adds what is launched.
///
/// # Errors
/// If there is no apt-get or dpkg-deb, a package cannot be had, or `finish` fails.
pub fn build(recipe: &Recipe<'_>, cache: &Path, finish: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let Recipe { name, base, packages, made_from } = recipe;
    let (root, note_path) = (cache.join(name), cache.join(format!("{name}.note")));
    let note = format!("version {RECIPE_VERSION}\nbase {base:?}\npackages {packages:?}\n{made_from}\n");
    if fs::read_to_string(&note_path).is_ok_and(|kept| kept == note) {
        return Ok(root);
    }
    eprintln!("building the root filesystem {}", root.display());
    let _ = fs::remove_file(&note_path);
    let partial = cache.join(format!("{name}.partial"));
    for old in [&root, &partial] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    match base {
        Some(tree) => copy_entries(tree, &partial)?,
        None => skeleton(&partial)?,
    }
    if !packages.is_empty() {
        let apt = Apt::new(cache)?;
        apt.update()?;
        apt.unpack(packages, name, &partial)?;
        alternatives(&partial)?;
    }
    for scratch in ["tmp", "var/tmp"] {
        let path = partial.join(scratch);
        fs::create_dir_all(&path)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)))
            .with_context(|| format!("cannot make {}", path.display()))?;
    }
    finish(&partial)?;
    fs::rename(&partial, &root).with_context(|| format!("cannot rename {}", partial.display()))?;
    fs::write(&note_path, note).with_context(|| format!("cannot write {}", note_path.display()))?;
    Ok(root)
}

/// Copies all entries of a folder into another, with their times and modes.
///
/// # Errors
/// If there is no such folder, or it cannot be copied.
pub(crate) fn copy_entries(from: &Path, to: &Path) -> Result<()> {
    ensure!(from.is_dir(), "there is no {}", from.display());
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(from.join(".")).arg(to);
    run(copy)
}

/// What an empty root filesystem has before any package.
fn skeleton(root: &Path) -> Result<()> {
    for folder in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "proc", "sys", "dev", "tmp", "run", "root", "home", "var/tmp"] {
        let path = root.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    for merged in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{merged}"), root.join(merged)).with_context(|| format!("cannot create the link {merged}"))?;
    }
    for (file, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ] {
        fs::write(root.join(file), text).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

/// Links what `update-alternatives` would link, in every folder of libraries.
fn alternatives(root: &Path) -> Result<()> {
    let libraries = root.join("usr/lib");
    let folders = fs::read_dir(&libraries).with_context(|| format!("cannot list {}", libraries.display()))?;
    for folder in folders.flatten().filter(|entry| entry.file_name().to_string_lossy().contains("-linux-gnu")) {
        for (link, providers) in ALTERNATIVES {
            let path = folder.path().join(link);
            let provider = providers.iter().map(|provider| Path::new(provider).join(link)).find(|file| folder.path().join(file).exists());
            if let Some(provider) = provider.filter(|_| path.symlink_metadata().is_err()) {
                symlink(provider, &path).with_context(|| format!("cannot create the link {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// apt-get with a state of its own.
struct Apt {
    home: PathBuf,
}

impl Apt {
    fn new(cache: &Path) -> Result<Self> {
        for tool in ["apt-get", "dpkg-deb"] {
            let present = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            ensure!(
                present.is_ok_and(|status| status.success()),
                "{tool} is not on this machine: give a root filesystem or a dataset instead (--root or --dataset)"
            );
        }
        // apt-get takes relative paths to be below others of its folders.
        let home = std::path::absolute(cache.join("apt")).context("there is no current folder")?;
        for folder in ["state/lists/partial", "cache"] {
            fs::create_dir_all(home.join(folder)).with_context(|| format!("cannot create {folder} in {}", home.display()))?;
        }
        fs::write(home.join("status"), "").with_context(|| format!("cannot write in {}", home.display()))?;
        Ok(Self { home })
    }

    fn get(&self) -> Command {
        let option = |name: &str, path: &str| format!("{name}={}", self.home.join(path).display());
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
        for option in [option("Dir::State", "state"), option("Dir::State::status", "status"), option("Dir::Cache", "cache")] {
            command.arg("-o").arg(option);
        }
        command
    }

    fn update(&self) -> Result<()> {
        let stamp = self.home.join("updated");
        let updated = fs::metadata(&stamp).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        if updated.elapsed().is_ok_and(|age| age < LISTS_MAX_AGE) {
            return Ok(());
        }
        let mut update = self.get();
        update.arg("update");
        run(update)?;
        fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))
    }

    /// Downloads the packages with all that they depend on, and unpacks them into `root`.
    fn unpack(&self, packages: &[&str], name: &str, root: &Path) -> Result<()> {
        let archives = self.home.join("archives").join(name);
        fs::create_dir_all(archives.join("partial")).with_context(|| format!("cannot create {}", archives.display()))?;
        let mut download = self.get();
        download.arg("-o").arg(format!("Dir::Cache::archives={}", archives.display()));
        download.args(["--download-only", "--no-install-recommends", "install"]).args(packages);
        run(download)?;
        let entries = fs::read_dir(&archives).with_context(|| format!("cannot list {}", archives.display()))?;
        for package in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension() == Some(OsStr::new("deb"))) {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(package).arg(root);
            run(unpack)?;
        }
        fs::remove_dir_all(&archives).with_context(|| format!("cannot remove {}", archives.display()))
    }
}

/// Runs a command quietly; what it printed is part of the error if it fails.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let program = Path::new(command.get_program()).display().to_string();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        let tail = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().rev().take(8).map(str::to_owned).collect::<Vec<_>>();
        let mut said = [tail(&output.stderr), tail(&output.stdout)].concat();
        said.reverse();
        bail!("{program} {}: {}\n{}", words.join(" "), output.status, said.join("\n"));
    }
    Ok(())
}

/// Runs an application inside a root filesystem, by its whole command, and empties `/tmp` there after.
///
/// # Errors
/// If it fails, with what it printed last.
pub fn run_once(root: &Path, command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("an application without a program")?;
    run(in_root(root, program, &arguments.iter().map(String::as_str).collect::<Vec<_>>())?)?;
    let tmp = root.join("tmp");
    let empty = || fs::remove_dir_all(&tmp).and_then(|()| fs::create_dir(&tmp)).and_then(|()| fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)));
    empty().with_context(|| format!("cannot empty {}", tmp.display()))
}

/// A command inside a root filesystem, with this machine's `/dev` and `/proc`, and nothing of its
/// environment. As an ordinary user it has a user namespace of its own, in which it keeps its id.
pub(crate) fn in_root(root: &Path, program: &str, arguments: &[&str]) -> Result<Command> {
    let path = |name: &str| CString::new(root.join(name).as_os_str().as_bytes()).context("a path holds a NUL");
    let (root_path, dev, proc) = (path("")?, path("dev")?, path("proc")?);
    let ids = (rustix::process::geteuid(), rustix::process::getegid());
    let maps = [format!("{0} {0} 1", ids.0.as_raw()), format!("{0} {0} 1", ids.1.as_raw())];
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/tmp").env("LANG", "C.UTF-8");
    sys::before_exec(&mut command, move || {
        let mut flags = UnshareFlags::NEWNS;
        if !ids.0.is_root() {
            flags |= UnshareFlags::NEWUSER;
        }
        sys::unshare(flags)?;
        if !ids.0.is_root() {
            for (file, text) in [(c"/proc/self/setgroups", "deny"), (c"/proc/self/gid_map", &*maps[1]), (c"/proc/self/uid_map", &*maps[0])] {
                rustix::io::write(rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?, text.as_bytes())?;
            }
        }
        rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        rustix::mount::mount_bind_recursive(c"/dev", &dev)?;
        rustix::mount::mount_bind_recursive(c"/proc", &proc)?;
        rustix::process::chroot(&root_path)?;
        rustix::process::chdir(c"/").map_err(io::Error::from)
    });
    Ok(command)
}
