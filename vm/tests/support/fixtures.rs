//! The layers that the cases run over, by name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use client_store::view::Caller;
use client_store::{FetchError, LayerView};
use layer_format::entry::{Entry, Kind};
use layer_format::{Digest, LayerPath};

use crate::layer::MemoryLayer;

/// How long a slow read or lookup takes.
pub(crate) const SLOW: Duration = Duration::from_secs(4);

pub(crate) fn by_name(name: &str) -> Vec<Arc<dyn LayerView>> {
    match name {
        "none" => vec![Arc::new(MemoryLayer::new())],
        "plain" => vec![Arc::new(plain())],
        "stacked" => stacked(),
        "rootfs" => vec![Arc::new(rootfs())],
        "slow" => vec![Arc::new(Troubled(plain(), Duration::from_secs(0)))],
        "stuck" => vec![Arc::new(Troubled(plain(), Duration::from_secs(600)))],
        _ => panic!("no fixture {name}"),
    }
}

fn plain() -> MemoryLayer {
    let mut layer = MemoryLayer::new();
    layer.file("img/file", "from the image\n");
    layer.file("img/dir/one", "1");
    layer.file("img/dir/two", "2");
    layer.file("img/keep/me", "3");
    layer.program("img/no-interpreter", "#!/nowhere/sh\n");
    layer.program("img/garbage", "\x01\x02\x03");
    layer.program("img/script", "#!/bin/sh\necho script $1\n");
    layer.hard_links(&["img/link-a", "img/link-b"], b"linked");
    layer.symlink("img/symlink", "dir/one");
    layer.add("img/fifo", 0o600, Kind::Fifo, Vec::new());
    layer.sparse("img/sparse", 65536, 1 << 20);
    layer.file("img/xattr", "x").meta.xattrs = vec![(b"user.colour".to_vec(), b"red".to_vec())];
    layer.file(b"img/caf\xe9", "latin");
    layer.program("img/setuid", "").meta.mode = 0o4755;
    layer.file("img/bad", "never read").meta.mode = 0o644;
    for n in 0..20 {
        layer.file(format!("img/slow{n}"), vec![b's'; 8192]);
        layer.file(format!("img/quick{n}"), format!("{n}"));
    }
    for n in 0..10_000 {
        layer.file(format!("img/many/{n:05}"), "");
    }
    layer
}

/// Deletions and opaque directories, over lower layers and over the host.
fn stacked() -> Vec<Arc<dyn LayerView>> {
    let mut low = plain();
    low.file("img/opaque/low", "");
    low.file("img/merged/low", "");
    let mut high = MemoryLayer::new();
    high.whiteout("img/file");
    high.opaque("img/opaque");
    high.file("img/opaque/high", "");
    high.file("img/merged/high", "");
    high.whiteout("etc/hostname");
    high.opaque("usr/share");
    high.file("usr/share/only", "");
    vec![Arc::new(low), Arc::new(high)]
}

/// This program with its libraries, and a static one if there is a compiler: enough to run without the host.
fn rootfs() -> MemoryLayer {
    let mut layer = plain();
    let exe = std::env::current_exe().unwrap();
    layer.program("bin/inside", std::fs::read(&exe).unwrap());
    for library in libraries(&exe) {
        layer.add_host_file(&library);
    }
    if let Some(program) = static_program() {
        layer.program("bin/static", program);
    }
    layer
}

fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn static_program() -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("p.c"), dir.path().join("p"));
    std::fs::write(&source, "#include <stdio.h>\nint main(void) { puts(\"static\"); return 5; }\n").unwrap();
    let built = Command::new("cc").arg("-static").arg(&source).arg("-o").arg(&program).status().is_ok_and(|status| status.success());
    built.then(|| std::fs::read(&program).unwrap())
}

/// Reads of `slow*` take [`SLOW`] or longer; reads of `bad` fail.
struct Troubled(MemoryLayer, Duration);

impl LayerView for Troubled {
    fn lookup(&self, path: &LayerPath, caller: Caller) -> Result<Option<Entry>, FetchError> {
        self.0.lookup(path, caller)
    }

    fn list(&self, directory: &LayerPath, after: Option<&[u8]>, max: usize, caller: Caller) -> Result<Vec<Entry>, FetchError> {
        self.0.list(directory, after, max, caller)
    }

    fn read(&self, entry: &Entry, offset: u64, len: usize, caller: Caller) -> Result<Vec<u8>, FetchError> {
        if entry.path.name().starts_with(b"slow") {
            std::thread::sleep(SLOW.max(self.1));
        }
        if entry.path.name() == b"bad" {
            return Err(FetchError::NotFound { digest: Digest::of(b"bad") });
        }
        self.0.read(entry, offset, len, caller)
    }

    fn seek(&self, entry: &Entry, offset: u64, hole: bool, caller: Caller) -> Result<Option<u64>, FetchError> {
        self.0.seek(entry, offset, hole, caller)
    }
}
