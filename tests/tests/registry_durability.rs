//! What a registry promises when it has answered, for moments at which it may die or the power may go: the server is recorded
//! while an image is pushed, and started over what a crash may leave of its folder.

use std::path::{Path, PathBuf};

use integration_tests::crash::disk::{Dice, Folder, History, Unsynced};
use integration_tests::crash::{Recorder, User, can_trace};
use integration_tests::{Home, TestRegistry};

/// Moments that are tried, of some hundred.
const MOMENTS: usize = 10;

fn application(home: &Home, version: u64) -> PathBuf {
    for number in 0..9u64 {
        let mut dice = Dice::new(if number % 3 == 0 { number } else { number + 100 * version } + 1);
        home.file(&format!("app/lib/f{number}"), (0..9000).map(|_| dice.below(256) as u8).collect::<Vec<_>>());
    }
    home.path().join("app")
}

fn import(home: &Home, version: u64) {
    let folder = application(home, version);
    home.turbo(["import", "dir", folder.to_str().unwrap(), "--name", &format!("tools/app:{version}")]).ok();
}

/// A new home pulls the image and finds all of it right.
#[track_caller]
fn pulls(registry: &TestRegistry, image: &str, context: &str) {
    let user = Home::new(registry.url());
    let pulled = user.turbo(["pull", image]);
    assert_eq!(pulled.code, Some(0), "{context}: {pulled:?}");
    let verified = user.turbo(["verify"]);
    assert_eq!(verified.code, Some(0), "{context}: {verified:?}");
}

fn child_of(pid: u32) -> Option<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks.flatten().find_map(|task| std::fs::read_to_string(task.path().join("children")).ok()?.split_whitespace().next()?.parse().ok())
}

fn run_on(folder: &Path, test: impl FnOnce(&TestRegistry)) {
    let registry = TestRegistry::start_at(folder, "127.0.0.1:0");
    test(&registry);
}

#[test]
fn a_registry_keeps_what_it_has_answered_for() {
    if !can_trace() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let builder = Home::offline();
    import(&builder, 1);
    import(&builder, 2);
    let push = |registry: &TestRegistry, image: &str| {
        let mut command = builder.command(["push", image]);
        command.env("TURBO_HUB", registry.url());
        let outcome = integration_tests::Outcome::from(command.output().unwrap());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    };
    run_on(data.path(), |registry| push(registry, "tools/app:1"));
    let before = Folder::read(data.path());
    let recorder = Recorder::new(data.path());
    {
        let command = recorder.command(&TestRegistry::command(data.path(), "127.0.0.1:0"), User::Same);
        let registry = TestRegistry::start_with(command, data.path());
        push(&registry, "tools/app:2");
        // strace ends with what it watches; killed first, it would leave it running.
        let server = child_of(registry.pid()).expect("strace has a child");
        rustix::process::kill_process(rustix::process::Pid::from_raw(server as i32).unwrap(), rustix::process::Signal::KILL).unwrap();
        integration_tests::turbo::eventually("the server is dead", || !Path::new(&format!("/proc/{server}/fd")).exists() || child_of(registry.pid()).is_none());
    }
    let history = History::new(before, &recorder.calls());
    assert!(history.len() > 20, "{} steps are too few to be true", history.len());
    let mut moments: Vec<usize> = (1..=MOMENTS).map(|part| history.len() * part / MOMENTS).collect();
    moments.dedup();
    for after in moments {
        for unsynced in [Unsynced::Nothing, Unsynced::Any(Dice::new(after as u64))] {
            let context = format!("crash after {after} of {} steps, {unsynced:?}", history.len());
            let folder = tempfile::tempdir().unwrap();
            history.crash(after, &unsynced).write(folder.path());
            run_on(folder.path(), |registry| {
                pulls(registry, "tools/app:1", &context);
                if after == history.len() {
                    pulls(registry, "tools/app:2", &context);
                }
                push(registry, "tools/app:2");
                pulls(registry, "tools/app:2", &context);
            });
        }
    }
}
