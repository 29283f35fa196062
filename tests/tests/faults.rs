//! Damage, cuts, crashes, full disks and hostile input: a clear error or no effect at all, and nothing lost.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use integration_tests::turbo::{can_run, eventually};
use integration_tests::{Home, Outcome, Proxy, TestRegistry};

/// Distinct content that compresses badly, so that cuts and damage hit data.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Pushes an image whose program prints a checksum of a file of `len` bytes of noise.
fn publish(registry: &TestRegistry, len: usize) -> (Home, String) {
    let developer = Home::new(registry.url());
    developer.file("app/data", noise(len, 7));
    developer.file("app/slow.sh", "for n in 0 1 2 3 4 5 6 7 8 9; do dd if=/opt/data bs=65536 skip=$((n * 8)) count=1 2>/dev/null | cksum; sleep 0.2; done\n");
    let folder = developer.path().join("app");
    developer.turbo(["import", "dir", folder.to_str().unwrap(), "--at", "/opt", "--name", "fault/app:1", "--startup-file", "/usr/bin/cksum /opt/data"]).ok();
    developer.turbo(["push", "fault/app:1"]).ok();
    let expected = developer.command(["run", "--temp", "fault/app:1"]).output().map(Outcome::from).unwrap();
    (developer, expected.stdout)
}

fn packs(home: &Home) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => walk(&path, found),
                false if path.extension().is_some_and(|extension| extension == "pack") => found.push(path),
                false => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(&home.store(), &mut found);
    found
}

/// Flips a bit in the middle of each file.
fn damage(files: &[PathBuf]) {
    assert!(!files.is_empty());
    for path in files {
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let len = file.metadata().unwrap().len();
        for at in [len / 4, len / 2, len / 4 * 3] {
            let mut byte = [0];
            file.seek(SeekFrom::Start(at)).unwrap();
            file.read_exact(&mut byte).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&[byte[0] ^ 4]).unwrap();
        }
    }
}

#[test]
fn damage_in_the_store_is_noticed_fetched_again_and_never_shown() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (_developer, expected) = publish(&registry, 3_000_000);
    let user = Home::new(registry.url());
    user.turbo(["pull", "fault/app:1"]).ok();
    damage(&packs(&user));
    let verify = user.turbo(["verify", "--format", "json"]);
    assert_eq!(verify.code, Some(125), "{}", verify.stdout);
    assert!(verify.stdout.contains("fault/app:1"), "the images that need it are named: {}", verify.stdout);
    let outcome = user.turbo(["run", "--temp", "fault/app:1"]).ok();
    assert_eq!(outcome.stdout, expected);
    user.turbo(["pull", "fault/app:1"]).ok();
    assert_eq!(user.turbo(["run", "--temp", "fault/app:1"]).ok().stdout, expected);
}

#[test]
fn damage_on_the_wire_is_noticed_and_fetched_again() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (_developer, expected) = publish(&registry, 3_000_000);
    for at in [5_000, 100_000, 1_000_000, 2_500_000] {
        let proxy = Proxy::to(registry.address());
        proxy.damage_after(at);
        let user = Home::new(proxy.url());
        let outcome = user.turbo(["run", "--temp", "fault/app:1"]).ok();
        assert_eq!(outcome.stdout, expected, "damage after {at} bytes");
        proxy.damage_after(at);
        let puller = Home::new(proxy.url());
        puller.turbo(["pull", "fault/app:1"]).ok();
        puller.turbo(["verify"]).ok();
    }
}

#[test]
fn a_registry_that_goes_away_and_comes_back_in_the_middle_of_a_run() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (developer, _) = publish(&registry, 6_000_000);
    let slow = |home: &Home| home.command(["run", "--temp", "--startup-file", "/bin/sh /opt/slow.sh", "fault/app:1"]);
    let expected = Outcome::from(slow(&developer).output().unwrap()).ok().stdout;
    let proxy = Proxy::to(registry.address());
    let user = Home::new(proxy.url());
    let child = slow(&user).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the run fetches", || proxy.down_bytes() > 50_000);
    proxy.cut();
    std::thread::sleep(Duration::from_secs(2));
    proxy.mend();
    let outcome = Outcome::from(child.wait_with_output().unwrap()).ok();
    assert_eq!(outcome.stdout, expected);
}

#[test]
fn a_registry_that_stays_away_gives_an_error_and_no_hang() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    publish(&registry, 6_000_000);
    let proxy = Proxy::to(registry.address());
    let user = Home::new(proxy.url());
    let mut command = user.command([
        "run",
        "--temp",
        "--wait",
        "2",
        "--startup-file",
        "/bin/sh -c 'head -c 1000 /opt/data | cksum; sleep 3; cat /opt/data > /dev/null'",
        "fault/app:1",
    ]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the run fetches", || proxy.down_bytes() > 5_000);
    proxy.cut();
    let outcome = Outcome::from(child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(1), "cat fails: {outcome:?}");
    assert!(outcome.stderr.contains("Input/output error"), "{}", outcome.stderr);
}

#[test]
fn a_cut_push_shows_nothing_and_resumes() {
    let registry = TestRegistry::start();
    let proxy = Proxy::to(registry.address());
    let developer = Home::new(proxy.url());
    developer.file("app/data", noise(8_000_000, 3));
    let folder = developer.path().join("app");
    developer.turbo(["import", "dir", folder.to_str().unwrap(), "--name", "cut/app:1"]).ok();
    let mut child = developer.command(["push", "cut/app:1"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the push sends", || proxy.up_bytes() > 1_000_000 || child.try_wait().unwrap().is_some());
    child.kill().unwrap();
    child.wait().unwrap();
    let user = Home::new(registry.url());
    if user.turbo(["pull", "cut/app:1"]).code != Some(0) {
        assert!(user.turbo(["images", "--format", "json"]).ok().json()["result"].as_array().unwrap().is_empty());
    }
    developer.turbo(["push", "cut/app:1"]).ok();
    user.turbo(["pull", "cut/app:1"]).ok();
    user.turbo(["verify"]).ok();
}

#[test]
fn kill_of_the_registry_in_the_middle_of_a_push_loses_nothing_that_was_acknowledged() {
    let mut registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    for round in 0..4u64 {
        developer.file("app/data", noise(4_000_000, 100 + round));
        let name = format!("crash/app:{round}");
        let folder = developer.path().join("app");
        developer.turbo(["import", "dir", folder.to_str().unwrap(), "--name", &name]).ok();
        let child = developer.command(["push", &name]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(60 * round));
        registry.crash_and_restart();
        // The push may have survived, by trying again, or not.
        let _ = child.wait_with_output();
        developer.turbo(["push", &name]).ok();
    }
    let user = Home::new(registry.url());
    for round in 0..4 {
        user.turbo(["pull", &format!("crash/app:{round}")]).ok();
    }
    user.turbo(["verify"]).ok();
}

#[test]
fn kill_of_the_client_at_any_moment_leaves_a_store_that_works() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (_developer, expected) = publish(&registry, 4_000_000);
    let user = Home::new(registry.url());
    for round in 0..8u64 {
        let arguments: &[&str] = if round % 2 == 0 { &["run", "--temp", "fault/app:1"] } else { &["pull", "fault/app:1"] };
        let mut child = user.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20 + 40 * round));
        let _ = child.kill();
        child.wait().unwrap();
        user.turbo(["stats"]).ok();
    }
    assert_eq!(user.turbo(["run", "--temp", "fault/app:1"]).ok().stdout, expected);
    user.turbo(["pull", "fault/app:1"]).ok();
    user.turbo(["verify"]).ok();
}

#[test]
fn a_full_disk_is_said_and_the_run_goes_on() {
    if !can_run() {
        return;
    }
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: only root can mount a small filesystem");
        return;
    }
    let registry = TestRegistry::start();
    let (_developer, expected) = publish(&registry, 12_000_000);
    let user = Home::new(registry.url());
    std::fs::create_dir(user.store()).unwrap();
    let mount = |arguments: &[&str]| std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(user.store()).status().unwrap().success();
    assert!(mount(&["mount", "-t", "tmpfs", "-o", "size=4m,mode=777", "turbo-test"]));
    let pulled = user.turbo(["pull", "fault/app:1"]);
    let ran = user.turbo(["run", "--temp", "fault/app:1"]);
    let stats = user.turbo(["stats"]);
    assert!(mount(&["umount", "-l"]));
    assert_eq!(pulled.code, Some(125), "{}", pulled.stderr);
    assert!(pulled.stderr.contains("space"), "{}", pulled.stderr);
    assert_eq!((ran.code, ran.stdout), (Some(0), expected), "the run goes on without a cache: {}", ran.stderr);
    stats.ok();
}

#[test]
fn a_name_that_is_not_utf_8_survives_push_pull_and_run() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    developer.file("app/plain", "x");
    let folder = developer.path().join("app");
    let odd = folder.join(std::ffi::OsString::from_vec(b"caf\xe9 \xff\n".to_vec()));
    std::fs::write(&odd, "odd name\n").unwrap();
    developer
        .turbo(["import", "dir", folder.to_str().unwrap(), "--at", "/opt/odd", "--name", "odd/name", "--startup-file", "/bin/sh -c 'cat /opt/odd/caf*'"])
        .ok();
    developer.turbo(["push", "odd/name"]).ok();
    let user = Home::new(registry.url());
    assert_eq!(user.turbo(["run", "odd/name"]).ok().stdout, "odd name\n");
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let home = Home::offline();
    let link = |builder: &mut tar::Builder<Vec<u8>>, name: &str, target: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    };
    let file = |builder: &mut tar::Builder<Vec<u8>>, name: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(3);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, &b"abc"[..]).unwrap();
    };
    let archive = |build: &dyn Fn(&mut tar::Builder<Vec<u8>>)| {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    };
    let whole = archive(&|builder| file(builder, b"fine"));
    for (what, bytes) in [
        ("dotdot", archive(&|builder| file(builder, b"a/../../etc/passwd"))),
        (
            "through a link",
            archive(&|builder| {
                link(builder, "a", "/etc");
                file(builder, b"a/passwd");
            }),
        ),
        ("cut", whole[..600].to_vec()),
        ("noise", noise(5000, 9)),
    ] {
        let path = home.file("bad.tar", bytes);
        let outcome = home.turbo(["import", "tar", path.to_str().unwrap(), "--name", "bad/image"]);
        assert_eq!(outcome.code, Some(125), "{what}: {} {}", outcome.stdout, outcome.stderr);
        assert!(outcome.stderr.contains("bad.tar"), "{what}: {}", outcome.stderr);
        assert!(home.turbo(["images", "--format", "json"]).ok().json()["result"].as_array().unwrap().is_empty(), "{what}");
    }
    // Device nodes are metadata of the layer; an ordinary user imports them, and nobody opens them.
    let device = archive(&|builder| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Char);
        header.set_path("dev/null").unwrap();
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        file(builder, b"/absolute");
    });
    let path = home.file("device.tar", device);
    home.turbo(["import", "tar", path.to_str().unwrap(), "--name", "device/node"]).ok();
    // From a pipe, too.
    let mut child = home.command(["import", "tar", "-", "--name", "pipe/image"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&whole).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn a_manifest_that_names_what_does_not_exist_is_refused() {
    use layer_format::Digest;
    use layer_format::manifest::{ImageManifest, Manifest};
    let registry = TestRegistry::start();
    let missing = Digest::of(b"never pushed");
    let bytes = ImageManifest::new("any", vec![missing]).encode().unwrap();
    let client = reqwest::Client::new();
    let url = format!("{}/v1/repositories/bad/image/-/manifests/1.0", registry.url());
    let answer = client.put(&url).body(bytes).send().await.unwrap();
    assert_eq!(answer.status(), 422);
    let body: layer_format::api::ErrorBody = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(body.errors[0].code, "OBJECTS_MISSING");
    assert!(body.errors[0].detail.to_string().contains(&missing.to_string()));
    assert_eq!(client.get(&url).send().await.unwrap().status(), 404, "nothing became visible");
}
