//! The Debian packages: trees of files that `dpkg-deb` packs. The maintainer scripts and units are files in `deploy/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::Tree;
use super::{elf, output};
use crate::workspace;

/// Number of the packaging of one version.
const REVISION: u32 = 1;
const MAINTAINER: &str = "The Turbo authors <turbo@example.org>";

/// What the two packages differ in, besides their files.
struct Debian {
    name: &'static str,
    section: &'static str,
    /// Fields after `Depends`, and what `Depends` has beside the libraries.
    depends: &'static str,
    fields: &'static str,
    description: &'static str,
}

const CLIENT: Debian = Debian {
    name: "turbo",
    section: "utils",
    depends: "",
    fields: "Recommends: ca-certificates\nSuggests: turbo-registry\n",
    description: "applications as stacks of layers, streamed and run in a user-mode VM\n \
        Turbo runs applications from images without installing them: an image's layers\n \
        are put together over the host by a virtual machine in user mode, and what a\n \
        program touches is streamed from a registry as it is touched. It needs no\n \
        daemon and no privilege.\n",
};

const SERVER: Debian = Debian {
    name: "turbo-registry",
    section: "net",
    depends: "systemd | systemd-standalone-sysusers | systemd-sysusers, init-system-helpers (>= 1.54)",
    fields: "Recommends: ca-certificates\nSuggests: postgresql, turbo\n",
    description: "registry of Turbo, and of every container tool\n \
        Keeps application images and container images by chunk, so that builds share\n \
        what they have in common, streams them to the clients of Turbo, and speaks the\n \
        OCI distribution API to docker, podman and all others.\n",
};

/// How and where packages are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing<'a> {
    pub(super) out: &'a Path,
    /// Of all that is in them, in seconds since 1970.
    pub(super) time: u64,
    pub(super) compression: &'a str,
}

/// Makes both packages; their paths.
pub(super) fn make(binaries: &Path, packing: &Packing<'_>) -> Result<Vec<PathBuf>> {
    Ok(vec![client(binaries, packing)?, server(binaries, packing)?])
}

fn client(binaries: &Path, packing: &Packing<'_>) -> Result<PathBuf> {
    let tree = Tree::create(packing.out.join("deb/turbo"))?;
    let program = binaries.join("turbo");
    tree.program("usr/bin/turbo", &program)?;
    manual(&tree, &program, &packing.out.join("man/turbo"))?;
    completions(&tree, &program, "turbo")?;
    pack(&tree, &CLIENT, packing, "usr/bin/turbo")
}

fn server(binaries: &Path, packing: &Packing<'_>) -> Result<PathBuf> {
    let tree = Tree::create(packing.out.join("deb/turbo-registry"))?;
    let program = binaries.join("turbo-registry");
    tree.program("usr/bin/turbo-registry", &program)?;
    manual(&tree, &program, &packing.out.join("man/turbo-registry"))?;
    completions(&tree, &program, "turbo-registry")?;
    for unit in UNITS {
        tree.file(&format!("usr/lib/systemd/system/{unit}"), 0o644, part(&format!("systemd/{unit}"))?)?;
    }
    for (from, to) in [
        ("debian/turbo-registry.sysusers", "usr/lib/sysusers.d/turbo-registry.conf"),
        ("debian/turbo-registry.tmpfiles", "usr/lib/tmpfiles.d/turbo-registry.conf"),
        ("registry.toml", "etc/turbo/registry.toml"),
        ("prometheus-rules.yml", "usr/share/doc/turbo-registry/examples/prometheus-rules.yml"),
        ("systemd/postgres.conf", "usr/share/doc/turbo-registry/examples/postgres.conf"),
    ] {
        tree.file(to, 0o644, part(from)?)?;
    }
    tree.file("DEBIAN/conffiles", 0o644, "/etc/turbo/registry.toml\n")?;
    for script in ["postinst", "prerm", "postrm"] {
        tree.file(&format!("DEBIAN/{script}"), 0o755, part(&format!("debian/turbo-registry.{script}"))?)?;
    }
    pack(&tree, &SERVER, packing, "usr/bin/turbo-registry")
}

/// Units of the server's package.
const UNITS: [&str; 5] =
    ["turbo-registry.service", "turbo-registry-scrub.service", "turbo-registry-scrub.timer", "turbo-registry-backup.service", "turbo-registry-backup.timer"];

/// A file of `deploy/`.
fn part(name: &str) -> Result<Vec<u8>> {
    let path = workspace::root().join("deploy").join(name);
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn manual(tree: &Tree, program: &Path, work: &Path) -> Result<()> {
    let pages = Tree::create(work.to_owned())?;
    output(Command::new(program).arg("man").arg(pages.root()))?;
    for page in pages.files("")? {
        let content = fs::read(pages.root().join(&page)).with_context(|| format!("cannot read the page {}", page.display()))?;
        tree.gzipped(&format!("usr/share/man/man1/{}.gz", page.display()), &content)?;
    }
    Ok(())
}

fn completions(tree: &Tree, program: &Path, name: &str) -> Result<()> {
    for (shell, path) in [
        ("bash", format!("usr/share/bash-completion/completions/{name}")),
        ("zsh", format!("usr/share/zsh/vendor-completions/_{name}")),
        ("fish", format!("usr/share/fish/vendor_completions.d/{name}.fish")),
    ] {
        tree.file(&path, 0o644, output(Command::new(program).args(["completions", shell]))?)?;
    }
    Ok(())
}

/// Adds what every package has, and packs it.
fn pack(tree: &Tree, package: &Debian, packing: &Packing<'_>, program: &str) -> Result<PathBuf> {
    let name = package.name;
    let version = format!("{}-{REVISION}", env!("CARGO_PKG_VERSION"));
    let architecture = String::from_utf8_lossy(&output(Command::new("dpkg").arg("--print-architecture"))?).trim().to_owned();
    let doc = format!("usr/share/doc/{name}");
    tree.file(&format!("{doc}/copyright"), 0o644, part("debian/copyright")?)?;
    let date = output(Command::new("date").args(["-u", "-R", "-d", &format!("@{}", packing.time)]))?;
    let changes = format!(
        "{name} ({version}) unstable; urgency=medium\n\n  * Packaged from the source tree; its changes are in CHANGELOG.md.\n\n -- {MAINTAINER}  {}",
        String::from_utf8_lossy(&date)
    );
    tree.gzipped(&format!("{doc}/changelog.Debian.gz"), changes.as_bytes())?;

    // The archive of Debian has no such bug reports for what is not in it.
    tree.file(&format!("usr/share/lintian/overrides/{name}"), 0o644, format!("{name}: initial-upload-closes-no-bugs *\n"))?;

    let libraries = elf::depends(&tree.root().join(program))?;
    let depends = [libraries.as_str(), package.depends].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
    let size = tree.size()?.div_ceil(1024);
    let depends = if depends.is_empty() { String::new() } else { format!("Depends: {depends}\n") };
    tree.file(
        "DEBIAN/control",
        0o644,
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {MAINTAINER}\nInstalled-Size: {size}\n{depends}{}Section: {}\nPriority: optional\nDescription: {}",
            package.fields, package.section, package.description
        ),
    )?;
    let files = tree.files("DEBIAN")?;
    tree.file("DEBIAN/md5sums", 0o644, output(Command::new("md5sum").args(&files).current_dir(tree.root()))?)?;

    let path = packing.out.join(format!("{name}_{version}_{architecture}.deb"));
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--root-owner-group", &format!("-Z{}", packing.compression), "--build"])
        .arg(tree.root())
        .arg(&path)
        .env("SOURCE_DATE_EPOCH", packing.time.to_string());
    output(&mut dpkg)?;
    Ok(path)
}
