//! Disks that are full or cannot be read: system calls of the real `turbo` fail on request. A clear error, no panic, nothing
//! lost, and the same again ends well.

use std::path::{Path, PathBuf};
use std::process::Command;

use client_store::store::Repair;
use client_store::{Store, StoreOptions};
use integration_tests::crash::disk::Dice;
use integration_tests::crash::{User, can_trace, traced};
use integration_tests::{Home, Outcome, TestRegistry};

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed + 1);
    (0..len).map(|_| dice.below(256) as u8).collect()
}

fn application(home: &Home, version: u64) -> PathBuf {
    for number in 0..9u64 {
        home.file(&format!("app/lib/f{number}"), noise(if number % 3 == 0 { number } else { number + 100 * version }, 9000));
    }
    home.path().join("app")
}

fn import(home: &Home, version: u64) -> Command {
    let folder = application(home, version);
    home.command(["import", "dir", folder.to_str().unwrap(), "--name", &format!("tools/app:{version}")])
}

#[track_caller]
fn check(home: &Path, images: &[&str], context: &str) {
    let store = Store::open(home, StoreOptions::default()).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    let report = store.verify(Repair::No, |_, _| {}).unwrap();
    assert!(report.is_clean(), "{context}: {report:?}");
    for name in images {
        let image = store.image_get(&name.parse().unwrap()).unwrap().unwrap_or_else(|| panic!("{context}: {name} is lost"));
        assert!(!report.incomplete_images.contains(&image.digest), "{context}: {name} is not whole");
    }
}

/// Runs a command of which calls of this kind fail, from the `first` of a thread on.
fn failing(command: &Command, calls: &str, error: &str, first: usize) -> Outcome {
    let inject = format!("inject={calls}:error={error}:when={first}+");
    traced(command, User::Ordinary, ["-f", "-qqq", "--seccomp-bpf", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject]).output().unwrap().into()
}

/// It ended well, or said what is wrong; where nothing can be written nothing can be said.
#[track_caller]
fn is_civil(outcome: &Outcome, context: &str) {
    assert!(matches!(outcome.code, Some(0 | 125)), "{context}: {outcome:?}");
    assert!(!outcome.stderr.contains("panicked"), "{context}: {outcome:?}");
    assert!(
        outcome.code == Some(0) || outcome.stderr.len() + outcome.stdout.len() > 30 || context.contains("write number"),
        "{context}: nothing was said: {outcome:?}"
    );
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => _ = std::fs::copy(entry.path(), &target).unwrap(),
        }
        integration_tests::turbo::own(&target);
    }
    integration_tests::turbo::own(to);
}

/// Whatever fails from whichever call on: what was there is there, and the same again works.
fn whatever_fails(home: &Home, command: &Command, sure: &[&str], afterwards: &[&str], faults: &[(&str, &str, usize)]) {
    let (mut failed, before) = (0, tempfile::tempdir().unwrap());
    if home.store().exists() {
        copy(&home.store(), before.path());
    }
    for (calls, error, first) in faults {
        let context = format!("{error} from {calls} number {first} on");
        let outcome = failing(command, calls, error, *first);
        is_civil(&outcome, &context);
        failed += usize::from(outcome.code != Some(0));
        check(&home.store(), sure, &context);
        let again = Outcome::from(
            Command::new(command.get_program())
                .args(command.get_args())
                .env_clear()
                .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
                .output()
                .unwrap(),
        );
        assert_eq!(again.code, Some(0), "{context}, then again: {again:?}");
        check(&home.store(), afterwards, &context);
        std::fs::remove_dir_all(home.store()).unwrap();
        copy(before.path(), &home.store());
    }
    assert!(failed >= faults.len() / 3, "{failed} of {} failed: the faults did not hit", faults.len());
}

#[test]
fn a_disk_that_fills_up_or_fails_loses_nothing() {
    if !can_trace() {
        return;
    }
    let home = Home::offline();
    assert!(import(&home, 1).status().unwrap().success());
    let mut faults = Vec::new();
    for first in 1..3 {
        faults.push(("pwrite64,writev,pwritev", "ENOSPC", first));
        faults.push(("fdatasync,fsync", "EIO", first));
        faults.push(("rename,renameat2", "ENOSPC", first));
        faults.push(("write", "ENOSPC", first));
    }
    whatever_fails(&home, &import(&home, 2), &["tools/app:1"], &["tools/app:1", "tools/app:2"], &faults);
    assert!(import(&home, 2).status().unwrap().success());
    assert!(home.command(["rmi", "tools/app:1", "--force"]).status().unwrap().success());
    let faults: Vec<_> = faults.into_iter().chain([("unlink,unlinkat", "EROFS", 1)]).collect();
    whatever_fails(&home, &home.command(["gc", "--repack"]), &["tools/app:2"], &["tools/app:2"], &faults);
}

#[test]
fn a_pull_onto_a_disk_that_fails_goes_on_from_there() {
    if !can_trace() {
        return;
    }
    let registry = TestRegistry::start();
    let builder = Home::new(registry.url());
    assert!(import(&builder, 1).status().unwrap().success());
    assert!(builder.command(["push", "tools/app:1"]).status().unwrap().success());
    let user = Home::new(registry.url());
    assert!(user.command(["images"]).status().unwrap().success(), "the store is made");
    let faults = [
        ("pwrite64,writev,pwritev", "ENOSPC", 1),
        ("pwrite64,writev,pwritev", "ENOSPC", 2),
        ("fdatasync,fsync", "EIO", 1),
        ("fdatasync,fsync", "EIO", 2),
        ("rename", "ENOSPC", 1),
    ];
    whatever_fails(&user, &user.command(["pull", "tools/app:1"]), &[], &["tools/app:1"], &faults);
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_wrong() {
    if !can_trace() {
        return;
    }
    let home = Home::offline();
    assert!(import(&home, 1).status().unwrap().success());
    let (app, out) = (home.path().join("app"), home.path().join("out"));
    let mut failed = 0;
    // The loader of programs reads with the same call before.
    for first in [8, 14, 24] {
        let verify = failing(&home.command(["verify"]), "pread64", "EIO", first);
        is_civil(&verify, "verify");
        let checkout = failing(&home.command(["pull", "tools/app:1", "--offline", "--checkout", out.to_str().unwrap()]), "pread64", "EIO", first);
        is_civil(&checkout, "checkout");
        failed += usize::from(verify.code != Some(0)) + usize::from(checkout.code != Some(0));
        if checkout.code == Some(0) {
            for number in 0..9 {
                let file = format!("lib/f{number}");
                assert_eq!(std::fs::read(app.join(&file)).unwrap(), std::fs::read(out.join(&file)).unwrap());
            }
            std::fs::remove_dir_all(&out).unwrap();
        }
        assert!(!out.exists(), "a checkout that failed leaves nothing");
        // What could not be read for a while is not lost.
        home.turbo(["verify", "--repair"]).ok();
        home.turbo(["verify"]).ok();
    }
    assert!(failed >= 2, "the faults did not hit");
}
