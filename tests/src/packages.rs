//! What `cargo xtask package` makes, of the binaries under test: nothing is built in release for a test.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::binaries::{cargo, folder};

/// Debian packages and image.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
    binaries: PathBuf,
}

impl Packages {
    /// Made once a test program; `None`, with the reason on stderr, where there are no tools for it.
    pub fn get() -> Option<&'static Self> {
        static PACKAGES: OnceLock<Option<Packages>> = OnceLock::new();
        let get = || {
            for tool in ["dpkg-deb", "strip", "objdump"] {
                if !std::process::Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success()) {
                    eprintln!("skipped: this machine has no {tool}");
                    return None;
                }
            }
            // Beside what cargo builds: it would be in the way in a temporary folder, which is not removed as a static.
            let folder = folder().join("package");
            let binaries = folder.join("bin");
            build(&binaries);
            let packages = Self { folder: folder.join("first"), binaries };
            packages.make(&packages.folder);
            Some(packages)
        };
        PACKAGES.get_or_init(get).as_ref()
    }

    /// Packs once more, into this folder.
    pub fn make(&self, out: &Path) {
        let mut xtask = cargo("run");
        xtask.args(["-p", "xtask", "--", "package", "--compression", "none", "--binaries"]).arg(&self.binaries).arg("--out").arg(out);
        let made = xtask.output().expect("cargo runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The Debian package of this name.
    pub fn deb(&self, name: &str) -> PathBuf {
        let start = format!("{name}_");
        let entries = std::fs::read_dir(&self.folder).expect("the packages' folder");
        let is_it = |path: &PathBuf| {
            path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&start)) && path.extension().is_some_and(|end| end == "deb")
        };
        entries.flatten().map(|entry| entry.path()).find(is_it).expect("the package was made")
    }
}

/// Both programs, and the server once more as a static one: only the last step of its build is done again.
fn build(binaries: &Path) {
    let built = folder();
    let place = |name: &str, to: &str| {
        let to = binaries.join(to);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder of ours");
        let _ = std::fs::remove_file(&to);
        std::fs::hard_link(built.join(name), &to).or_else(|_| std::fs::copy(built.join(name), &to).map(drop)).expect("the binary is built");
    };
    let mut link = cargo("rustc");
    link.args(["-p", "registry", "--bin", "turbo-registry", "--", "-C", "target-feature=+crt-static"]);
    assert!(link.status().expect("cargo runs").success(), "the static server builds");
    place("turbo-registry", "static/turbo-registry");
    // And cargo's own place has the other one again.
    let both = cargo("build").args(["-p", "cli", "-p", "registry", "--bins"]).status();
    assert!(both.expect("cargo runs").success(), "the binaries build");
    for name in ["turbo", "turbo-registry"] {
        place(name, name);
    }
}
