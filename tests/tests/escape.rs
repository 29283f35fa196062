//! A hostile image and the real `turbo`: what a developer gets from a registry, run as an ordinary user would.
//!
//! `vm/tests/escape.rs` has the attacks one by one; here is that the product puts them off as it stands.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use integration_tests::binaries::test_user;
use integration_tests::turbo::{can_run, own};
use integration_tests::{Home, rootfs};

/// An archive with a root filesystem, device nodes, links that lead out, and a setuid shell.
fn hostile_archive(home: &Home) -> PathBuf {
    let root = home.path().join("root");
    rootfs::build(&root, &["sh", "cat", "ls", "mkdir", "umount", "chroot", "id"]);
    let path = home.path().join("hostile.tar");
    let mut archive = tar::Builder::new(std::fs::File::create(&path).unwrap());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", &root).unwrap();
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, device: (u32, u32), link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(0);
        header.set_device_major(device.0).unwrap();
        header.set_device_minor(device.1).unwrap();
        match link {
            Some(target) => archive.append_link(&mut header, name, target).unwrap(),
            None => archive.append_data(&mut header, name, std::io::empty()).unwrap(),
        }
    };
    add("evil-zero", tar::EntryType::Char, 0o666, (1, 5), None);
    add("evil-root", tar::EntryType::Symlink, 0o777, (0, 0), Some("/"));
    add("evil-up", tar::EntryType::Symlink, 0o777, (0, 0), Some("../../../../../.."));
    archive.finish().unwrap();
    own(&path);
    path
}

#[test]
fn a_hostile_image_stays_inside() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    let archive = hostile_archive(&home);
    home.turbo(["import", "tar", archive.to_str().unwrap(), "--name", "evil/image:1", "--isolate", "/=full"]).ok();
    let secret = home.file("secret", "SECRET");
    let secret = secret.to_str().unwrap();
    let mut victim = Command::new("/bin/sleep");
    victim.arg("1000").stdin(Stdio::null());
    if let Some((uid, gid)) = test_user() {
        victim.uid(uid).gid(gid);
    }
    let mut victim = victim.spawn().unwrap();
    // Each line is an attack; what one of them reads or does would show on stdout.
    let script = format!(
        "cat {secret} /evil-root{secret} /evil-up{secret} /proc/1/root{secret} /proc/self/root{secret} /proc/*/cwd{secret}
         cat /proc/1/environ && echo environ
         kill {victim} && echo killed
         cat </evil-zero && echo device
         (: </dev/fuse) && echo fuse
         (: >>/proc/sys/kernel/core_pattern) && echo sysctl
         umount -l /proc && echo umount
         umount -l /dev && echo umount
         ls /dev/pts",
        victim = victim.id()
    );
    // The words of the script mean something: outside they reach the secret.
    let outside = Command::new("/bin/sh").args(["-c", &format!("cat {secret}")]).output().unwrap();
    assert_eq!(outside.stdout, b"SECRET");
    for admin in [&[][..], &["--admin"]] {
        let arguments = [&["try", "--offline"], admin, &["--startup-file", "/bin/sh -c", "evil/image:1", "--", &script]].concat();
        let outcome = home.turbo(arguments);
        assert_eq!(outcome.stdout, "ptmx\n", "{}", outcome.stderr);
    }
    assert!(victim.try_wait().unwrap().is_none(), "the process outside lives");
    victim.kill().unwrap();
    victim.wait().unwrap();
}

#[test]
fn names_with_escape_sequences_are_shown_not_obeyed() {
    let home = Home::offline();
    home.file("tree/file", "x");
    let tree = home.path().join("tree");
    home.turbo(["import", "dir", tree.to_str().unwrap(), "--name", "evil/name:1", "--startup-file", "\u{1b}]0;owned\u{7}"]).ok();
    if !can_run() {
        return;
    }
    let outcome = home.turbo(["try", "--offline", "evil/name:1"]);
    assert!(outcome.stderr.contains("owned") && !outcome.stderr.contains('\u{1b}') && !outcome.stderr.contains('\u{7}'), "{:?}", outcome.stderr);
}
