//! The files that warm work is done on, and the work.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::runner::{Work, check, program};
use crate::app::{App, Version};

/// Where the files are in the container.
pub(super) const INSIDE: &str = "/opt/bench";

const FILES: usize = 20_000;
const FILES_PER_FOLDER: usize = 100;
const SOURCES: usize = 24;
const LARGE_FILE_BYTES: usize = 256 << 20;

/// What is done, in the folder with the files.
pub(super) fn works() -> Vec<Work> {
    let work = |name: &str, before: &str, script: &str| Work { name: name.into(), script: script.into(), before: before.into() };
    // What the packages of scipy need to find each other outside of their own root filesystem.
    let libraries = "L=$PWD/scipy/usr/lib/x86_64-linux-gnu; export LD_LIBRARY_PATH=$L:$L/blas:$L/lapack PYTHONPATH=$PWD/scipy/usr/lib/python3/dist-packages PYTHONDONTWRITEBYTECODE=1";
    vec![
        work("git status, 5 000 files", "", "cd repository && git status --porcelain"),
        work("python3 -c 'import scipy'", "", &format!("{libraries}; exec /usr/bin/python3 -c 'import scipy.linalg, scipy.optimize'")),
        work("find | xargs stat, 20 000 files", "", "find many -type f -print0 | xargs -0 stat -c %s"),
        work(
            "C build, 24 files",
            "rm -rf project/out",
            "mkdir project/out && cd project && for f in *.c; do gcc -O1 -c $f -o out/${f%.c}.o || exit 1; done && gcc -o out/all out/*.o",
        ),
        work("sequential read, 256 MiB", "", "cat large"),
    ]
}

/// Makes the files that the works need below `tree`.
pub(super) fn build(tree: &Path, cache: &Path, works: &[Work]) -> Result<()> {
    let needed = |folder: &str| works.iter().any(|work| work.script.contains(folder));
    fs::create_dir_all(tree).with_context(|| format!("cannot create {}", tree.display()))?;
    if needed("many") {
        files(&tree.join("many"), FILES)?;
    }
    if needed("repository") {
        repository(&tree.join("repository"))?;
    }
    if needed("project") {
        project(&tree.join("project"))?;
    }
    if needed("large") {
        large(&tree.join("large"))?;
    }
    if needed("scipy") {
        let root = App::Scipy.root(Version::First, None, cache)?;
        for part in ["usr/lib/python3/dist-packages", "usr/lib/x86_64-linux-gnu"] {
            let target = tree.join("scipy").join(part);
            fs::create_dir_all(target.parent().context("a path has a parent")?)?;
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(root.join(part)).arg(&target);
            check(copy, "copy scipy")?;
        }
    }
    Ok(())
}

fn files(folder: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let folder = folder.join(format!("{:03}", number / FILES_PER_FOLDER));
        if number % FILES_PER_FOLDER == 0 {
            fs::create_dir_all(&folder)?;
        }
        fs::write(folder.join(format!("file-{number}")), format!("content of file {number}\n").repeat(number % 40 + 1))?;
    }
    Ok(())
}

fn repository(folder: &Path) -> Result<()> {
    files(folder, FILES / 4)?;
    let git = program("git", "git")?;
    for args in [&["init", "-q"][..], &["add", "."], &["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qm", "all"]] {
        let mut command = Command::new(&git);
        command.args(args).current_dir(folder);
        check(command, "make a repository")?;
    }
    Ok(())
}

fn project(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut calls = String::new();
    for number in 0..SOURCES {
        let mut source = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <math.h>\n#include <time.h>\n");
        for function in 0..20 {
            // Writing to a string does not fail.
            let _ = writeln!(
                source,
                "int part_{number}_{function}(int n) {{ int s = 0; for (int i = 0; i < n; i++) s += i * {function} % ({number} + 7); return s; }}"
            );
        }
        fs::write(folder.join(format!("part{number}.c")), source)?;
        let _ = writeln!(calls, "int part_{number}_0(int);");
    }
    let sum: Vec<String> = (0..SOURCES).map(|number| format!("part_{number}_0(3)")).collect();
    fs::write(folder.join("main.c"), format!("{calls}int main(void) {{ return {} == 12345; }}\n", sum.join(" + ")))?;
    Ok(())
}

/// Bytes that do not compress and do not repeat, so that no store makes them cheaper to read.
fn large(path: &Path) -> Result<()> {
    let mut file = fs::File::create(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut block = vec![0u8; 1 << 20];
    for _ in 0..LARGE_FILE_BYTES / block.len() {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(())
}
