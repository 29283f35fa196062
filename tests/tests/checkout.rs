//! Importing a folder again and checking images out as plain folders, as an ordinary user types it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use integration_tests::{Home, TestRegistry};
use serde_json::Value;

/// A folder to import: `version` differs in one file, and in the times of all.
fn application(home: &Home, version: u64) -> PathBuf {
    for number in 0..120 {
        let file = home.file(&format!("app/lib/module{number}.py"), format!("# module {number}\n").repeat(number + 1));
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + version);
        fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
    }
    home.file("app/version", format!("version {version}"));
    let tool = home.file("app/tool", "#!/bin/sh\n");
    fs::set_permissions(tool, fs::Permissions::from_mode(0o4755)).unwrap();
    let data: Vec<u8> = (0..900_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    home.file("app/data.bin", data);
    // Older than a tick of the clock of any file system here.
    std::thread::sleep(std::time::Duration::from_millis(30));
    home.path().join("app")
}

fn import(home: &Home, folder: &Path, name: &str, more: &[&str]) -> Value {
    let words = ["import", "dir", folder.to_str().unwrap(), "--name", name, "--format", "json"];
    home.turbo(words.iter().chain(more)).ok().json()["result"].clone()
}

fn checkout(home: &Home, name: &str, folder: &Path, more: &[&str]) -> Value {
    let words = ["pull", name, "--checkout", folder.to_str().unwrap(), "--format", "json"];
    home.turbo(words.iter().chain(more)).ok().json()["result"].clone()
}

fn same(one: &Path, other: &Path) {
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let names = |root: &Path| {
            let mut names: Vec<_> = fs::read_dir(root.join(&path)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(one), names(other), "{}", path.display());
        for name in names(one) {
            let path = path.join(name);
            let (left, right) = (fs::symlink_metadata(one.join(&path)).unwrap(), fs::symlink_metadata(other.join(&path)).unwrap());
            assert_eq!((left.mode() & 0o777, left.mtime(), left.mtime_nsec()), (right.mode() & 0o777, right.mtime(), right.mtime_nsec()), "{}", path.display());
            match left.is_dir() {
                true => pending.push(path),
                false => assert!(fs::read(one.join(&path)).unwrap() == fs::read(other.join(&path)).unwrap(), "{}", path.display()),
            }
        }
    }
}

#[test]
fn a_new_version_is_checked_out_over_the_old_one() {
    let registry = TestRegistry::start();
    let builder = Home::new(registry.url());
    let app = application(&builder, 1);
    import(&builder, &app, "tools/app:1", &[]);
    builder.turbo(["push", "tools/app:1"]).ok();
    let user = Home::new(registry.url());
    let out = user.path().join("out");
    let first = checkout(&user, "tools/app:1", &out, &[]);
    same(&app, &out);
    assert_eq!((first["written_files"].as_u64(), first["kept_files"].as_u64()), (Some(123), Some(0)));
    // Only a superuser gives files away: whoever checks out owns them, and none runs with the rights of its owner.
    let tool = fs::metadata(out.join("tool")).unwrap();
    assert!(tool.mode() & 0o7777 == 0o755 || tool.uid() == 0 || first["skipped"] == serde_json::json!([]), "{:o} {first}", tool.mode());
    application(&builder, 2);
    import(&builder, &app, "tools/app:2", &[]);
    builder.turbo(["push", "tools/app:2"]).ok();
    let second = checkout(&user, "tools/app:2", &out, &[]);
    same(&app, &out);
    assert!(second["kept_files"].as_u64().unwrap() >= 121 && second["written_files"].as_u64().unwrap() <= 2, "{second}");
    // Without a registry, from what is here; and as text.
    let text = user.turbo(["pull", "tools/app:1", "--offline", "--checkout", out.to_str().unwrap()]).ok().stdout;
    assert!(text.contains("kept: "), "{text}");
    assert_eq!(fs::read(out.join("version")).unwrap(), b"version 1");
    let left: Vec<_> =
        fs::read_dir(user.path()).unwrap().map(|entry| entry.unwrap().file_name()).filter(|name| name.to_string_lossy().contains(".turbo-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_cannot_be_checked_out_is_said_and_nothing_is_touched() {
    let home = Home::offline();
    let app = application(&home, 1);
    import(&home, &app, "tools/app:1", &[]);
    let mine = home.file("mine/file", "mine");
    let folder = mine.parent().unwrap();
    let refused = home.turbo(["pull", "tools/app:1", "--offline", "--checkout", folder.to_str().unwrap()]);
    assert!(refused.code == Some(125) && refused.stderr.contains("--overwrite"), "{refused:?}");
    assert_eq!(fs::read(&mine).unwrap(), b"mine");
    for words in [&["pull", "tools/app:1,tools/other", "--checkout", "x"][..], &["pull", "tools/app:1", "--overwrite"], &["pull", "tools/app:1", "--offline"]] {
        assert_eq!(home.turbo(words).code, Some(2), "{words:?}");
    }
    let missing = home.turbo(["pull", "tools/none:1", "--offline", "--checkout", home.path().join("x").to_str().unwrap()]);
    assert!(missing.code == Some(125) && missing.stderr.contains("tools/none"), "{missing:?}");
    checkout(&home, "tools/app:1", folder, &["--offline", "--overwrite"]);
    same(&app, folder);
}

#[test]
fn an_import_reads_only_what_changed() {
    let home = Home::offline();
    let app = application(&home, 1);
    assert_eq!(import(&home, &app, "tools/app:1", &[])["files_read"], 123);
    let digest = import(&home, &app, "tools/app:1", &[])["digest"].clone();
    assert_eq!(import(&home, &app, "tools/app:2", &[])["files_read"], 0);
    let all = import(&home, &app, "tools/app:2", &["--verify-content"]);
    assert_eq!((all["files_read"].as_u64(), &all["digest"]), (Some(123), &digest));
    // Content, behind the back of size and time.
    let version = home.path().join("app/version");
    let modified = fs::metadata(&version).unwrap().modified().unwrap();
    fs::write(&version, "VERSION 1").unwrap();
    fs::File::options().write(true).open(&version).unwrap().set_modified(modified).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    let changed = import(&home, &app, "tools/app:3", &[]);
    assert_eq!(changed["files_read"], 1);
    assert_ne!(changed["digest"], digest);
    // The store forgets all of it: what is remembered of files is worth nothing.
    for name in ["tools/app:1", "tools/app:2", "tools/app:3"] {
        home.turbo(["rmi", name]).ok();
    }
    home.turbo(["gc"]).ok();
    assert_eq!(import(&home, &app, "tools/app:4", &[])["files_read"], 123);
    home.turbo(["verify"]).ok();
    let out = home.path().join("out");
    checkout(&home, "tools/app:4", &out, &["--offline"]);
    same(&app, &out);
}
