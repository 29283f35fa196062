//! The promises of docs/durability.md, for every moment at which a process may die or the power may go.
//!
//! Each operation of the real `turbo` is recorded once; then the folder of the store is made as it may be after any number
//! of its system calls (see [`integration_tests::crash`]), and asked whether it opens, whether what was promised is there,
//! and whether the operation can be done again.

use std::path::{Path, PathBuf};
use std::process::Command;

use client_store::store::Repair;
use client_store::{ObjectCache, Store, StoreOptions};
use integration_tests::crash::disk::{Dice, Folder, History, Unsynced};
use integration_tests::crash::{can_trace, record};
use integration_tests::{Home, TestRegistry, binary};
use layer_format::Digest;

/// Of so many crash states one is also asked to do the operation again: that costs a process each.
const REPEAT_EVERY: usize = 23;

/// How many times each moment is tried with another choice of what survives: `TURBO_TEST_CRASH_SEEDS`, for long runs.
fn seeds() -> u64 {
    std::env::var("TURBO_TEST_CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// What may survive at the moment `after`.
fn choices(after: usize) -> Vec<Unsynced> {
    let random = |seed: u64| [Unsynced::InOrder(Dice::new(after as u64 + 7919 * seed)), Unsynced::Any(Dice::new(after as u64 ^ (0xABCD + 7919 * seed)))];
    [Unsynced::All, Unsynced::Nothing].into_iter().chain((0..seeds()).flat_map(random)).collect()
}

/// Bytes that do not compress and are the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed + 1);
    (0..len).map(|_| dice.below(256) as u8).collect()
}

/// A folder to import: with the version a third of it is other content, and a third changes a little, so that it is kept as
/// what differs.
fn application(home: &Home, version: u64) -> PathBuf {
    for number in 0..9u64 {
        let mut content = noise(if number % 3 == 1 { number + 100 * version } else { number }, 9000);
        if number % 3 == 2 {
            content[4000..4100].copy_from_slice(&noise(number + 1000 * version, 100));
        }
        home.file(&format!("app/lib/f{number}"), content);
    }
    // Older than a tick of the clock of any file system here.
    std::thread::sleep(std::time::Duration::from_millis(30));
    home.path().join("app")
}

fn import(home: &Home, version: u64) -> Command {
    let folder = application(home, version);
    home.command(["import", "dir", folder.to_str().unwrap(), "--name", &format!("tools/app:{version}")])
}

#[track_caller]
fn ok(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

/// The same command on another store, as whoever runs the test.
fn elsewhere(command: &Command, home: &Path) -> Command {
    let mut other = Command::new(command.get_program());
    other.args(command.get_args()).env_clear();
    for (name, value) in command.get_envs() {
        other.env(name, value.unwrap_or_default());
    }
    other.env("TURBO_HOME", home);
    other
}

/// The store opens, nothing in it is damaged, and these images are here with all that they need.
#[track_caller]
fn check(home: &Path, images: &[&str], context: &str) {
    let store = Store::open(home, StoreOptions::default()).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    let report = store.verify(Repair::No, |_, _| {}).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    assert!(report.is_clean(), "{context}: {report:?}");
    for name in images {
        let image = store.image_get(&name.parse().unwrap()).unwrap().unwrap_or_else(|| panic!("{context}: {name} is lost"));
        assert!(!report.incomplete_images.contains(&image.digest), "{context}: {name} is not whole");
    }
}

/// What an operation promises.
struct Promise<'a> {
    /// Images that are whole before, meanwhile and after.
    throughout: &'a [&'a str],
    /// Images that are whole when it has returned.
    afterwards: &'a [&'a str],
}

/// Records `command`, and checks every state in which a crash can leave the store of `home`.
#[track_caller]
fn every_crash(what: &str, home: &Home, command: &Command, promise: &Promise<'_>) {
    let before = Folder::read(&home.store());
    let calls = record(command, &home.store());
    let history = History::new(before, &calls);
    let mut states = 0;
    for after in 0..=history.len() {
        for unsynced in choices(after) {
            let context = format!("{what}: crash after {after} of {} steps, {unsynced:?}", history.len());
            let folder = tempfile::tempdir().unwrap();
            history.crash(after, &unsynced).write(folder.path());
            check(folder.path(), promise.throughout, &context);
            if after == history.len() {
                check(folder.path(), promise.afterwards, &context);
            }
            states += 1;
            if states % REPEAT_EVERY == 0 || after == history.len() {
                ok(elsewhere(command, folder.path()));
                check(folder.path(), promise.throughout, &context);
                check(folder.path(), promise.afterwards, &context);
                let left: Vec<_> = std::fs::read_dir(folder.path().join("tmp")).unwrap().flatten().map(|entry| entry.path()).collect();
                assert!(left.is_empty(), "{context}: {left:?} is left");
            }
        }
    }
    assert!(history.len() > 5, "{what}: {} steps are too few to be true", history.len());
    eprintln!("{what}: {} steps, {states} states", history.len());
}

#[test]
fn imports_survive_a_crash_anywhere() {
    if !can_trace() {
        return;
    }
    let home = Home::offline();
    every_crash("first import", &home, &import(&home, 1), &Promise { throughout: &[], afterwards: &["tools/app:1", "tools/app"] });
    every_crash("second import", &home, &import(&home, 2), &Promise { throughout: &["tools/app:1"], afterwards: &["tools/app:2"] });
}

#[test]
fn gc_and_repack_lose_nothing_wherever_they_are_killed() {
    if !can_trace() {
        return;
    }
    let home = Home::offline();
    for version in 1..4 {
        ok(import(&home, version));
    }
    let rmi = home.command(["rmi", "tools/app:1", "--force"]);
    let before = Folder::read(&home.store());
    let calls = record(&rmi, &home.store());
    let history = History::new(before, &calls);
    for after in 0..=history.len() {
        let folder = tempfile::tempdir().unwrap();
        history.crash(after, &Unsynced::Any(Dice::new(after as u64))).write(folder.path());
        check(folder.path(), &["tools/app:2", "tools/app:3"], &format!("rmi: crash after {after}"));
    }
    ok(home.command(["rmi", "tools/app:2", "--force"]));
    let promise = Promise { throughout: &["tools/app:3"], afterwards: &["tools/app:3"] };
    every_crash("repack", &home, &home.command(["gc", "--repack"]), &promise);
    ok(import(&home, 4));
    ok(home.command(["rmi", "tools/app:3", "--force"]));
    every_crash("gc", &home, &home.command(["gc"]), &Promise { throughout: &["tools/app:4"], afterwards: &["tools/app:4"] });
}

#[test]
fn pushes_and_pulls_survive_a_crash_anywhere() {
    if !can_trace() {
        return;
    }
    let registry = TestRegistry::start();
    let builder = Home::new(registry.url());
    ok(import(&builder, 1));
    ok(import(&builder, 2));
    ok(builder.command(["push", "tools/app:1"]));
    let both: &[&str] = &["tools/app:1", "tools/app:2"];
    every_crash("push", &builder, &builder.command(["push", "tools/app:2"]), &Promise { throughout: both, afterwards: both });
    let user = Home::new(registry.url());
    every_crash("first pull", &user, &user.command(["pull", "tools/app:1"]), &Promise { throughout: &[], afterwards: &["tools/app:1"] });
    every_crash("second pull", &user, &user.command(["pull", "tools/app:2"]), &Promise { throughout: &["tools/app:1"], afterwards: both });
}

const CHILD_HOME: &str = "TURBO_TEST_CHILD_HOME";

fn streamed(number: u64) -> (Digest, bytes::Bytes) {
    let bytes = bytes::Bytes::from(noise(1000 + number, 3000));
    (Digest::of(&bytes), bytes)
}

/// Does nothing unless it is started by the test below: streams as a run does.
#[test]
fn child() {
    let Ok(home) = std::env::var(CHILD_HOME) else { return };
    let store = Store::open(Path::new(&home), StoreOptions::default()).unwrap();
    for round in 0..4 {
        store.insert(&(0..3).map(|number| streamed(round * 3 + number)).collect::<Vec<_>>()).unwrap();
        store.flush().unwrap();
    }
}

#[test]
fn what_was_flushed_survives_a_power_cut() {
    if !can_trace() {
        return;
    }
    let home = Home::offline();
    // The test itself, where the ordinary user may run it.
    let program = binary("turbo").with_file_name("durability-child");
    let source = std::env::current_exe().unwrap();
    std::fs::hard_link(&source, &program).or_else(|_| std::fs::copy(&source, &program).map(drop)).unwrap();
    integration_tests::binaries::open_to_all(&program);
    let mut command = Command::new(&program);
    command.args(["child", "--exact"]).env(CHILD_HOME, home.store()).current_dir(home.path());
    ok(import(&home, 1));
    let before = Folder::read(&home.store());
    let history = History::new(before, &record(&command, &home.store()));
    let count = |folder: &Path| {
        let store = Store::open(folder, StoreOptions::default()).unwrap();
        (0..12).take_while(|number| store.get(&streamed(*number).0).unwrap().is_some()).count()
    };
    let mut least = 0;
    for after in 0..=history.len() {
        // What was there once at least that much was synced is there in every later state.
        let folder = tempfile::tempdir().unwrap();
        history.crash(after, &Unsynced::Nothing).write(folder.path());
        let context = format!("crash after {after} of {} steps", history.len());
        check(folder.path(), &["tools/app:1"], &context);
        let sure = count(folder.path());
        assert!(sure >= least && sure % 3 == 0, "{context}: {sure} objects, and there were {least}");
        least = sure;
        for unsynced in choices(after) {
            let folder = tempfile::tempdir().unwrap();
            history.crash(after, &unsynced).write(folder.path());
            check(folder.path(), &["tools/app:1"], &context);
            assert!(count(folder.path()) >= sure, "{context}: what was synced is lost");
        }
    }
    assert_eq!(least, 12, "all was flushed");
}
