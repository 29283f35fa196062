//! A small root filesystem made of the machine's own programs and the libraries that they need.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Fills `root` with these programs (found on PATH) under `usr/bin`, their libraries, and what a shell needs to feel at
/// home: `/bin`, `/lib` and `/lib64` as links, `/etc/passwd`, `/tmp`.
pub fn build(root: &Path, programs: &[&str]) {
    for folder in ["usr/bin", "usr/lib", "usr/lib64", "etc", "tmp", "root", "var/tmp"] {
        std::fs::create_dir_all(root.join(folder)).expect("a folder of ours");
    }
    for link in ["bin", "lib", "lib64"] {
        let _ = symlink(format!("usr/{link}"), root.join(link));
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("a file of ours");
    for program in programs {
        let source = find(program);
        copy(&source, &root.join("usr/bin").join(program));
        for library in libraries(&source) {
            // /lib and /lib64 are links to usr/lib and usr/lib64 here, whatever they are on the machine.
            let inside = library.strip_prefix("/").expect("ldd prints absolute paths");
            let inside = if inside.starts_with("usr") { inside.to_owned() } else { Path::new("usr").join(inside) };
            copy(&library, &root.join(inside));
        }
    }
}

fn copy(source: &Path, target: &Path) {
    std::fs::create_dir_all(target.parent().expect("a folder")).expect("a folder of ours");
    if !target.exists() {
        std::fs::copy(source, target).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    }
}

fn find(program: &str) -> PathBuf {
    let folders = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    let found = folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("this machine has no {program}"))
}

fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}
