//! Public filesystem test suites, run natively and in the VM: what holds on the host's own filesystem holds there, too.
//!
//! `fsx` does random reads, writes, truncations and mappings of one file and checks every byte; `pjdfstest` asks system
//! call by system call what POSIX says; the filesystem stressors of `stress-ng` do many operations at once and verify
//! them. `cargo xtask test` installs the first two below `target/tools`, and the third as a package.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::binaries::open_to_all;
use integration_tests::turbo::can_run;
use integration_tests::{Home, Outcome};

/// Cases of pjdfstest that fail in the VM and pass natively: name, and why.
const KNOWN: &[(&str, &str)] = &[
    ("link::link_count_max", "overlayfs and FUSE do not tell how many links the filesystem below can hold"),
    (
        "rename::updates_link_parent",
        "a directory of the union has one link, as merged ones of overlayfs have: counting its subdirectories would mean listing it",
    ),
];

/// The stressors of `stress-ng` that verify what a filesystem does.
const STRESSORS: &[&str] = &[
    "access",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "fallocate",
    "fcntl",
    "filename",
    "flock",
    "fstat",
    "getdent",
    "hdd",
    "inotify",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "rename",
    "seek",
    "sendfile",
    "splice",
    "sync-file",
    "touch",
    "utime",
    "xattr",
];

/// What pjdfstest has to know. Two users, though an ordinary user cannot become them: it wants the names.
const SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// A tool of `cargo xtask test`, copied to where any user can run it; says so if it is missing.
fn tool(home: &Home, name: &str) -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("target/tools/bin").join(name);
    let Ok(bytes) = std::fs::read(&installed) else {
        eprintln!("skipped: there is no {}; `cargo xtask test` installs it", installed.display());
        return None;
    };
    let copy = home.file(name, bytes);
    open_to_all(&copy);
    Some(copy)
}

/// Where the suites run: natively, over an image in write-copy, and merged with a host folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Native,
    WriteCopy,
    Merge,
}

/// Runs a shell script in a folder of a place: a new one that holds a file of an image.
fn run(home: &Home, place: Place, script: &str) -> Outcome {
    let folder = home.path().join(format!("{place:?}").to_lowercase());
    home.file(&format!("{}/host-file", folder.file_name().unwrap().to_string_lossy()), "host");
    home.file("tree/image-file", "image");
    let folder = folder.to_str().unwrap();
    let script = format!("cd {folder} && mkdir work && cd work && {script}");
    if place == Place::Native {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script]).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        if let Some((uid, gid)) = integration_tests::binaries::test_user() {
            use std::os::unix::process::CommandExt;
            shell.uid(uid).gid(gid);
        }
        return shell.output().unwrap().into();
    }
    let mode = if place == Place::Merge { "merge" } else { "write-copy" };
    let tree = home.path().join("tree");
    home.turbo(["import", "dir", tree.to_str().unwrap(), "--at", folder, "--name", &format!("fs/{mode}:1"), "--isolate", &format!("{folder}={mode}")]).ok();
    home.turbo(["try", &format!("fs/{mode}:1"), "--isolate", mode, "--startup-file", "/bin/sh -c", "--", &script])
}

#[test]
fn random_operations_on_a_file_agree_with_memory() {
    let home = Home::offline();
    let Some(fsx) = tool(&home, "fsx") else { return };
    if !can_run() {
        return;
    }
    for place in [Place::Native, Place::WriteCopy, Place::Merge] {
        // Once on a new file, and once on one that comes from the image and is copied up meanwhile.
        let script = format!("{0} -N 3000 -S 7 -q new && {0} -N 1000 -S 8 -q ../image-file", fsx.display());
        let script = if place == Place::Native { format!("{} -N 3000 -S 7 -q new", fsx.display()) } else { script };
        let outcome = run(&home, place, &script);
        assert_eq!(outcome.code, Some(0), "{place:?}: {}\n{}", outcome.stdout, outcome.stderr);
    }
}

#[test]
fn what_posix_says_holds_as_it_does_natively() {
    let home = Home::offline();
    let Some(suite) = tool(&home, "pjdfstest") else { return };
    if !can_run() {
        return;
    }
    let settings = home.file("pjdfstest.toml", SETTINGS);
    let script = format!("{} -c {} -p . || true", suite.display(), settings.display());
    let results = |place| {
        let outcome = run(&home, place, &script);
        let with = |word: &str| -> BTreeSet<String> {
            let ends = |line: &&str| line.trim_end().ends_with(word);
            outcome.stdout.lines().filter(ends).filter_map(|line| line.split_whitespace().next()).map(Into::into).collect()
        };
        (with(" ok"), with("FAILED"), outcome)
    };
    let (native, _, outcome) = results(Place::Native);
    assert!(native.len() > 200, "{}\n{}", outcome.stdout, outcome.stderr);
    for place in [Place::WriteCopy, Place::Merge] {
        let (passed, failed, outcome) = results(place);
        let known = |name: &&String| !KNOWN.iter().any(|(known, _)| known == name);
        let worse: Vec<_> = native.difference(&passed).filter(known).collect();
        assert!(worse.is_empty(), "{place:?}: {worse:#?} of {} passed, {} failed\n{}", passed.len(), failed.len(), outcome.stderr);
    }
}

#[test]
fn stressors_find_in_the_vm_what_they_find_natively() {
    let home = Home::offline();
    if !Path::new("/usr/bin/stress-ng").exists() {
        eprintln!("skipped: there is no stress-ng; `cargo xtask test` installs it");
        return;
    }
    if !can_run() {
        return;
    }
    let results = |place, names: &BTreeSet<&'static str>| {
        let one = |name: &&'static str| format!("timeout 60 stress-ng --quiet --verify --temp-path . --{name} 2 --{name}-ops 10 && echo {name}");
        let script = names.iter().map(one).collect::<Vec<_>>().join("; ");
        let outcome = run(&home, place, &format!("{script}; cd ..; rm -r work"));
        let passed: BTreeSet<&'static str> = names.iter().copied().filter(|name| outcome.stdout.lines().any(|line| line == *name)).collect();
        (passed, outcome)
    };
    let (native, outcome) = results(Place::Native, &STRESSORS.iter().copied().collect());
    assert!(native.len() > STRESSORS.len() / 2, "{}\n{}", outcome.stdout, outcome.stderr);
    for place in [Place::WriteCopy, Place::Merge] {
        let (passed, _) = results(place, &native);
        // They race against the clock and each other: what fails must fail twice.
        let again: BTreeSet<&'static str> = native.difference(&passed).copied().collect();
        if again.is_empty() {
            continue;
        }
        let (passed, outcome) = results(place, &again);
        let worse: Vec<_> = again.difference(&passed).collect();
        assert!(worse.is_empty(), "{place:?}: {worse:?}\n{}", outcome.stderr);
    }
}
