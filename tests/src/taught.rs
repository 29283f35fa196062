//! An application on a registry that has learned from one run of it: for launches that something goes wrong with.

use crate::turbo::eventually;
use crate::{Home, TestRegistry};

/// Bytes of each of the application's files: badly compressible.
pub const FILE_LEN: usize = 300_000;
/// How many of them.
pub const FILES: usize = 24;

/// Reads one file after the other, with work in between, and prints their checksums.
const PROGRAM: &str = "cd /opt/links; for file in data/*; do cksum < $file; sleep 0.02; done\n";

fn noise(len: usize, seed: usize) -> Vec<u8> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// An application on a registry, which has learned from one run of it; and what it prints.
#[derive(Debug)]
pub struct Published {
    /// Where it is.
    pub registry: TestRegistry,
    _developer: Home,
    /// What it prints.
    pub expected: String,
}

/// Arguments of a launch of it.
pub const RUN: [&str; 3] = ["run", "--temp", "links/app:1"];

/// Publishes it, and runs it once.
pub fn publish() -> Published {
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    for n in 0..FILES {
        developer.file(&format!("app/data/{n:02}"), noise(FILE_LEN, n));
    }
    developer.file("app/main.sh", PROGRAM);
    let folder = developer.path().join("app");
    developer
        .turbo(["import", "dir", folder.to_str().unwrap(), "--at", "/opt/links", "--name", "links/app:1", "--startup-file", "/bin/sh /opt/links/main.sh"])
        .ok();
    developer.turbo(["push", "links/app:1"]).ok();
    let expected = developer.turbo(RUN).ok().stdout;
    assert_eq!(expected.lines().count(), FILES);
    eventually("the model is there", || developer.turbo(["profile", "show", "links/app", "--format", "json"]).code == Some(0));
    Published { registry, _developer: developer, expected }
}
