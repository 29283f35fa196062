//! Looking after the store as a user does: verify and repair, gc and repack, what images take.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use client_store::{Store, StoreOptions};
use integration_tests::{Home, TestRegistry};
use serde_json::Value;

fn application(home: &Home, version: u64) -> PathBuf {
    for number in 0..60u64 {
        let seed = if number % 3 == 0 { number } else { number + 1000 * version };
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        home.file(&format!("app/lib/f{number}"), std::iter::repeat_with(next).take(12_000).collect::<Vec<_>>());
    }
    home.path().join("app")
}

fn import(home: &Home, version: u64) {
    let folder = application(home, version);
    home.turbo(["import", "dir", folder.to_str().unwrap(), "--name", &format!("tools/app:{version}")]).ok();
}

fn json(home: &Home, words: &[&str]) -> (Option<i32>, Value) {
    let outcome = home.turbo(words.iter().copied().chain(["--format", "json"]));
    (outcome.code, outcome.json()["result"].clone())
}

fn largest_pack(home: &Home) -> PathBuf {
    let packs = std::fs::read_dir(home.store().join("packs")).unwrap().flatten();
    packs.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap().path()
}

fn damage(path: &Path) {
    std::fs::File::options().write(true).open(path).unwrap().write_all_at(&[0x55; 300], 100_000).unwrap();
}

#[test]
fn what_is_damaged_is_named_and_fetched_again() {
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    import(&home, 1);
    home.turbo(["push", "tools/app:1"]).ok();
    damage(&largest_pack(&home));
    let (code, found) = json(&home, &["verify"]);
    assert_eq!(code, Some(125), "{found}");
    let damaged = found["damaged"].as_array().unwrap();
    assert!(!damaged.is_empty() && damaged.iter().all(|object| object["images"][0] == "tools/app:1"), "{found}");
    assert_eq!(found["damaged_packs"].as_array().unwrap().len(), 1);
    let (code, mended) = json(&home, &["verify", "--repair"]);
    assert_eq!(code, Some(0), "{mended}");
    assert_eq!(mended["fetched"][0]["objects"].as_u64(), Some(damaged.len() as u64), "{mended}");
    let (code, clean) = json(&home, &["verify", "--bandwidth", "1000000000"]);
    assert_eq!((code, clean["damaged"].as_array().unwrap().len(), clean["damaged_packs"].as_array().unwrap().len()), (Some(0), 0, 0), "{clean}");
    let images: Value = home.turbo(["images", "--format", "json"]).ok().json()["result"].clone();
    assert!(images.as_array().unwrap().iter().all(|image| image["complete"] == true), "{images}");
}

#[test]
fn what_no_registry_has_stays_damaged_and_is_said_to() {
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    import(&home, 1);
    damage(&largest_pack(&home));
    let outcome = home.turbo(["verify", "--repair"]);
    assert_eq!(outcome.code, Some(125));
    assert!(outcome.stdout.contains("tools/app:1: not whole:"), "{}", outcome.stdout);
    // Importing it again puts it right.
    let folder = home.path().join("app");
    home.turbo(["import", "dir", folder.to_str().unwrap(), "--name", "tools/app:1"]).ok();
    assert_eq!(json(&home, &["verify", "--repair"]).0, Some(0));
    assert_eq!(json(&home, &["verify"]).0, Some(0));
}

#[test]
fn removed_images_give_their_space_back_and_are_counted_before() {
    let home = Home::offline();
    (1..=4).for_each(|version| import(&home, version));
    let usage = |home: &Home| json(home, &["stats", "--images"]).1;
    let before = usage(&home);
    let all = before["usage"].as_array().unwrap();
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|one| one["plain_bytes"].as_u64() > one["unique_plain_bytes"].as_u64() && one["unique_plain_bytes"].as_u64() > Some(0)), "{before}");
    for version in 1..=3 {
        let outcome = home.turbo(["rmi", &format!("tools/app:{version}")]).ok();
        assert!(outcome.stderr.contains("turbo gc"), "{}", outcome.stderr);
    }
    let (_, dry) = json(&home, &["gc", "--repack", "--dry-run"]);
    assert!(dry["dry_run"].is_null() && dry["repack"]["dead_packs"].as_u64() > Some(0) && dry["repack"]["written_packs"] == 0, "{dry}");
    // Someone relies on what no image names yet: gc says so, and who.
    let hold = Store::open(&home.store(), StoreOptions::default()).unwrap().hold().unwrap();
    let (code, busy) = json(&home, &["gc", "--wait-for-others", "0"]);
    assert_eq!((code, &busy["busy"], busy["removed_packs"].as_u64() > Some(0)), (Some(125), &Value::Bool(true), true), "{busy}");
    assert_eq!(busy["holders"][0].as_u64(), Some(u64::from(std::process::id())), "{busy}");
    drop(hold);
    let (code, done) = json(&home, &["gc", "--repack"]);
    assert_eq!((code, &done["busy"], &done["dead_bytes"]), (Some(0), &Value::Bool(false), &Value::from(0)), "{done}");
    let after = usage(&home);
    assert!(after["stored_bytes"].as_u64().unwrap() * 2 < before["stored_bytes"].as_u64().unwrap(), "{before} {after}");
    assert_eq!(after["usage"][0]["missing_objects"], 0);
    assert_eq!(json(&home, &["verify"]).0, Some(0));
    let text = home.turbo(["stats", "--images"]).ok().stdout;
    assert!(text.contains("REMOVAL FREES") && text.contains("tools/app:4"), "{text}");
    // A limit that the only copies are above of.
    let outcome = home.turbo(["gc", "--cache-size", "1000"]).ok();
    assert!(outcome.stderr.contains("above its limit") && outcome.stderr.contains("turbo push"), "{}", outcome.stderr);
}
