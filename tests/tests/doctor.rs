//! `turbo doctor`: on this machine, and on machines that lack something, which are made for real.

use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::binaries::test_user;
use integration_tests::turbo::can_run;
use integration_tests::{Home, Outcome, TestRegistry};
use serde_json::Value;

/// A `turbo` of the ordinary user's in surroundings that a shell script, run by root, has made. `"$@"` is the command.
fn in_surroundings(home: &Home, script: &str, args: &[&str]) -> Outcome {
    let (uid, gid) = test_user().expect("the caller has asked");
    let inner = home.command(args);
    let mut command = Command::new("/usr/bin/unshare");
    let script = format!("{script}\nexec setpriv --reuid {uid} --regid {gid} --clear-groups \"$@\"");
    command.args(["--mount", "/bin/sh", "-ec", &script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).env_remove("TURBO_HUB").current_dir(home.path());
    command.output().expect("unshare runs").into()
}

fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["result"]["findings"].as_array().unwrap().iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// Doctor names the remedy and ends with 125, and what needs no namespaces goes on working.
fn check(what: &str, name: &str, remedy: &str, run: impl Fn(&[&str]) -> Outcome, tree: &Path) {
    let outcome = run(&["doctor", "--format", "json"]);
    assert_eq!(outcome.code, Some(125), "{what}: {} {}", outcome.stdout, outcome.stderr);
    let report = outcome.json();
    let found = finding(&report, name);
    assert_eq!((&found["status"], &report["result"]["ok"]), (&"missing".into(), &false.into()), "{what}: {found}");
    assert!(found["remedy"].as_str().unwrap().contains(remedy), "{what}: {found}");
    assert!(report["result"]["fails"].to_string().contains("run and try"), "{what}: {report}");
    assert!(report["result"]["works"].to_string().contains("import, export, images"), "{what}: {report}");
    let text = run(&["doctor"]);
    assert!(text.stdout.contains(remedy) && text.stdout.contains("works: import"), "{what}: {}", text.stdout);
    run(&["import", "dir", tree.to_str().unwrap(), "--name", "a/b:1"]).ok();
    assert!(run(&["images"]).ok().stdout.contains("a/b"));
    run(&["inspect", "a/b:1"]).ok();
    let refused = run(&["run", "--temp", "a/b:1"]);
    assert!(refused.code == Some(125), "{what}: {}", refused.stderr);
}

fn tree(home: &Home) -> PathBuf {
    home.file("tree/file", "x").parent().unwrap().to_owned()
}

fn without_hub(home: &Home, args: &[&str]) -> Outcome {
    home.command(args).env_remove("TURBO_HUB").output().unwrap().into()
}

#[test]
fn a_healthy_machine_is_found_healthy() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    let outcome = without_hub(&home, &["doctor", "--format", "json"]).ok();
    let report = outcome.json();
    assert_eq!(report["result"]["ok"], true);
    for name in ["kernel", "user-namespaces", "fuse", "overlayfs", "seccomp", "home"] {
        let found = finding(&report, name);
        assert!(found["needed"] == true && found["status"] != "missing", "{found}");
    }
    assert!(without_hub(&home, &["doctor"]).ok().stdout.contains("works: run and try"));
}

#[test]
fn a_registry_that_is_configured_must_answer() {
    if !can_run() {
        return;
    }
    // None is configured: worth a word, no failure.
    let home = Home::offline();
    let report = without_hub(&home, &["doctor", "--format", "json"]).ok().json();
    assert_ne!(finding(&report, "registry")["status"], "missing");
    // Home::offline names one that does not exist.
    let outcome = home.turbo(["doctor", "--format", "json"]);
    let report = outcome.json();
    assert_eq!((outcome.code, &finding(&report, "registry")["status"]), (Some(125), &"missing".into()), "{report}");
    assert!(report["result"]["works"].to_string().contains("run and try --offline"), "{report}");
    let registry = TestRegistry::start();
    let report = Home::new(registry.url()).turbo(["doctor", "--format", "json"]).ok().json();
    assert_eq!(finding(&report, "registry")["status"], "ok");
}

#[test]
fn a_fuse_device_of_roots_alone_and_none_at_all() {
    if !can_run() || test_user().is_none() {
        eprintln!("skipped: only root can take /dev/fuse away");
        return;
    }
    let home = Home::offline();
    let tree = tree(&home);
    let node = home.path().join("node");
    let forbidden = format!("mknod -m 600 {0} c 10 229 2>/dev/null || true; mount --bind {0} /dev/fuse", node.display());
    check("0600", "fuse", "chmod 666 /dev/fuse", |args| in_surroundings(&home, &forbidden, args), &tree);
    let absent = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9";
    check("absent", "fuse", "modprobe fuse", |args| in_surroundings(&home, absent, args), &tree);
}

#[test]
fn no_user_namespaces() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    let tree = tree(&home);
    let run = |args: &[&str]| {
        let inner = home.command(args);
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--map-root-user", "/bin/sh", "-ec", "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"", "sh"]);
        command.arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).env_remove("TURBO_HUB").current_dir(home.path());
        if let Some((uid, gid)) = test_user() {
            std::os::unix::process::CommandExt::uid(&mut command, uid);
            std::os::unix::process::CommandExt::gid(&mut command, gid);
        }
        command.output().unwrap().into()
    };
    check("none", "user-namespaces", "sysctl -w user.max_user_namespaces=15000", run, &tree);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_filter_around_turbo_that_forbids_unshare() {
    if !can_run() || !Path::new("/usr/bin/bwrap").exists() || test_user().is_none() {
        eprintln!("skipped: the filter is installed by bubblewrap, as an ordinary user");
        return;
    }
    let home = Home::offline();
    let tree = tree(&home);
    // if nr == unshare { EPERM } else { allow }
    let filter: Vec<u8> = [(0x20u16, 0u8, 0u8, 0u32), (0x15, 0, 1, 272), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7fff_0000)]
        .into_iter()
        .flat_map(|(code, yes, no, k)| [code.to_le_bytes().as_slice(), &[yes, no], &k.to_le_bytes()].concat())
        .collect();
    let filter = home.file("filter", filter);
    let run = |args: &[&str]| {
        let inner = home.command(args);
        let mut command = Command::new("/bin/sh");
        let script = format!("exec bwrap --dev-bind / / --seccomp 9 \"$@\" 9<{}", filter.display());
        command.args(["-ec", &script, "sh"]).arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).env_remove("TURBO_HUB").current_dir(home.path());
        if let Some((uid, gid)) = test_user() {
            std::os::unix::process::CommandExt::uid(&mut command, uid);
            std::os::unix::process::CommandExt::gid(&mut command, gid);
        }
        command.output().unwrap().into()
    };
    // In a container the remedy is how to start that.
    let container = Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists();
    check("filtered", "user-namespaces", if container { "seccomp=unconfined" } else { "system call filter" }, run, &tree);
}
