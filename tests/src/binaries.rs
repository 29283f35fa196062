//! The binaries under test.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Path of `turbo` or `turbo-registry`, built from this checkout, in a folder that any user can enter.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let built = build();
        let folder = tempfile::Builder::new().prefix("turbo-bin-").tempdir().expect("a temporary folder");
        for name in ["turbo", "turbo-registry"] {
            let target = folder.path().join(name);
            // The folder outlives the test, since statics are not dropped: a link takes no room.
            let source = built.join(name);
            std::fs::hard_link(&source, &target).or_else(|_| std::fs::copy(&source, &target).map(drop)).expect("the binary is built");
            open_to_all(&target);
        }
        open_to_all(folder.path());
        folder
    });
    folder.path().join(name)
}

/// Builds both binaries, with the profile of this test, and returns their folder. Nearly free when they are up to date.
fn build() -> PathBuf {
    let mut cargo = cargo("build");
    cargo.args(["-p", "cli", "-p", "registry", "--bins"]);
    assert!(cargo.status().expect("cargo runs").success(), "the binaries build");
    folder()
}

/// `target/<profile>`, where this test was built.
pub(crate) fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    test.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>").to_owned()
}

/// A cargo that builds what this test was built with.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let folder = folder();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([subcommand, "--quiet"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.arg("--target-dir").arg(folder.parent().expect("a target folder"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    cargo
}

/// Lets any user read and enter.
pub fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("a path of ours");
}

/// User and group that the client runs as when the test is root.
pub fn test_user() -> Option<(u32, u32)> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    rustix::process::getuid().is_root().then(|| (number("TURBO_TEST_UID").unwrap_or(65533), number("TURBO_TEST_GID").unwrap_or(65533)))
}
