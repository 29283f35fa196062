//! Several processes on one store, and processes that are killed. The children are this test binary, run again.

mod store_support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client_store::ObjectCache;
use client_store::store::{PackOrigin, Repair};
use store_support::*;

const HOME: &str = "TURBO_TEST_CHILD_HOME";
const ROLE: &str = "TURBO_TEST_CHILD_ROLE";

fn spawn(home: &Path, role: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(HOME, home)
        .env(ROLE, role)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Does nothing unless it is started by another test.
#[test]
fn child() {
    let (Ok(home), Ok(role)) = (std::env::var(HOME), std::env::var(ROLE)) else { return };
    let store = open(Path::new(&home));
    let (kind, seed) = role.split_once('-').unwrap();
    let base: u64 = seed.parse().unwrap();
    let rounds = if kind == "forever" { u64::MAX } else { 20 };
    for round in 0..rounds {
        let objects: Vec<_> = (0..8).map(|n| object(base + (round * 8 + n) % 2000, 6000)).collect();
        store.insert(&objects).unwrap();
        store.flush().unwrap();
        if round % 4 == 0 {
            add_pack(&store, &(0..4).map(|n| noise(base + 5000 + round % 300 + n, 6000)).collect::<Vec<_>>(), PackOrigin::Pulled);
        }
        // What the parent may now rely on.
        std::fs::write(Path::new(&home).join(format!("done-{role}")), (round + 1).to_string()).unwrap();
    }
}

#[test]
fn two_processes_write_and_see_each_other() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path());
    let mut children = [spawn(home.path(), "some-0"), spawn(home.path(), "some-100000")];
    for n in 0..20u64 {
        store.insert(&[object(200_000 + n, 6000)]).unwrap();
        store.flush().unwrap();
    }
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    for base in [0, 100_000] {
        assert!((0..160).all(|n| store.get(&object(base + n, 6000).0).unwrap().is_some()));
    }
    assert!((0..20).all(|n| store.get(&object(200_000 + n, 6000).0).unwrap().is_some()));
    assert_eq!(store.verify(Repair::No, |_, _| {}).unwrap().damaged, []);
}

#[test]
fn a_killed_process_loses_at_most_what_was_not_flushed() {
    let home = tempfile::tempdir().unwrap();
    for round in 0..8u64 {
        let role = format!("forever-{}", round * 10_000);
        let mut child = spawn(home.path(), &role);
        let done = home.path().join(format!("done-{role}"));
        let rounds = || std::fs::read_to_string(&done).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut sure = 0;
        while sure < 2 + round % 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1 + round));
            sure = sure.max(rounds());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // The kill may hit the writing of the number itself, and leave none.
        sure = sure.max(rounds());
        assert!(sure >= 2, "the child did not get going");
        let store = open(home.path());
        for n in 0..(sure * 8).min(2000) {
            let (digest, bytes) = object(round * 10_000 + n, 6000);
            assert_eq!(store.get(&digest).unwrap(), Some(bytes), "round {round}, object {n} of {}", sure * 8);
        }
        let report = store.verify(Repair::No, |_, _| {}).unwrap();
        assert!(report.damaged.is_empty() && report.missing_packs.is_empty(), "{report:?}");
        assert_eq!(std::fs::read_dir(home.path().join("tmp")).unwrap().count(), 0, "leftovers are removed");
    }
    let store = open(home.path());
    assert!(store.stats().unwrap().packs < 8 * 200, "stream packs are shared");
    assert!(!store.gc(false).unwrap().busy, "the dead hold nothing");
}
