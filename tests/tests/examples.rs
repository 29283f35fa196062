//! The scripts in `examples/` do what they say, as an ordinary user.

use std::path::Path;
use std::process::Command;

use integration_tests::binaries::{open_to_all, test_user};
use integration_tests::turbo::can_run;
use integration_tests::{Home, Outcome, binary};

/// Runs an example, in which every part of `says` must be printed, in that order.
#[track_caller]
fn example(name: &str, says: &[&str]) {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples").join(name);
    let script = home.file(name, std::fs::read(source).unwrap());
    open_to_all(&script);
    // Any free port: the script's own choice may be taken.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(&script);
    let tools = binary("turbo").parent().unwrap().display().to_string();
    command.env_clear().env("PATH", format!("{tools}:/usr/bin:/bin")).env("HOME", home.path()).env("TMPDIR", home.path()).env("PORT", port.to_string());
    command.current_dir(home.path());
    if let Some((uid, gid)) = test_user() {
        use std::os::unix::process::CommandExt;
        command.uid(uid).gid(gid);
    }
    let outcome: Outcome = command.output().unwrap().into();
    let outcome = outcome.ok();
    let mut rest = outcome.stdout.as_str();
    for text in says {
        let at = rest.find(text).unwrap_or_else(|| panic!("`{text}` is missing here:\n{rest}\nof:\n{}\n{}", outcome.stdout, outcome.stderr));
        rest = &rest[at + text.len()..];
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("tmp.")).count(), 0);
}

#[test]
fn two_versions() {
    let says = [
        "greet 1.0, run 1",
        "greet 2.0, run 1",
        "greet 1.0, run 2",
        "/opt/greet/var/runs",
        "the host has no /opt/greet",
        "greet 2.0, run 3",
        "greet 1.0, run 1",
    ];
    example("two-versions.sh", &says);
}

#[test]
fn group_settings() {
    let says =
        ["about:blank", "accounting.example", "proxy.accounting.example", "research.example", "/opt/browser/policy", "three profiles", "examples/browser"];
    example("group-settings.sh", &says);
}

#[test]
fn continue_elsewhere() {
    let says = [
        "page 1: written on the laptop",
        "page 2: written on the laptop, later",
        "# on the desktop",
        "page 0: the first page comes with the image",
        "page 2: written on the laptop, later",
        "page 3: written on the desktop",
        "# an earlier state",
        "page 1: written on the laptop",
        "page 2: another history",
        "# and what",
        "page 3: written on the desktop",
    ];
    example("continue-elsewhere.sh", &says);
}
