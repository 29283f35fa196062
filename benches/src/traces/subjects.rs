//! The applications whose runs are recorded: of different kinds, each in several different runs.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::app::{App, Version, compile_java, java_home, write};
use crate::rootfs::{self, Recipe, in_root, run};

/// What runs are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A model learns from it.
    Train,
    /// A model is scored on it.
    Score,
}

impl Role {
    /// Part of the name of a trace's file.
    pub fn name(self) -> &'static str {
        if self == Self::Train { "train" } else { "score" }
    }
}

/// One run of a subject.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// A short name.
    pub name: &'static str,
    /// What it is for.
    pub role: Role,
    /// Arguments after the program.
    pub args: &'static [&'static str],
}

/// What a root filesystem is made from.
#[derive(Debug, Clone, Copy)]
enum Base {
    Packages(&'static [&'static str]),
    App(App, Version),
}

/// An application to record.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// A short name, also that of its image.
    pub name: &'static str,
    base: Base,
    /// Only a dataset has it.
    pub needs_dataset: bool,
    program: &'static str,
    /// Files that it gets in `/app`.
    files: &'static [(&'static str, &'static str)],
    /// All runs.
    pub runs: &'static [Run],
}

const fn train(name: &'static str, args: &'static [&'static str]) -> Run {
    Run { name, role: Role::Train, args }
}

const fn score(name: &'static str, args: &'static [&'static str]) -> Run {
    Run { name, role: Role::Score, args }
}

macro_rules! programs {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("programs/", $name)))),*]
    };
}

const SCIPY_RUNS: &[Run] = &[
    train("solve", &["/app/main.py"]),
    train("optimize", &["/app/try_optimize.py"]),
    train("sparse", &["/app/try_sparse.py"]),
    score("signal", &["/app/try_signal.py"]),
    score("stats", &["/app/try_stats.py"]),
];
const JAVA_RUNS: &[Run] = &[
    train("words", &["-cp", "/app", "Modes", "words"]),
    train("time", &["-cp", "/app", "Modes", "time"]),
    train("digest", &["-cp", "/app", "Modes", "digest"]),
    score("zip", &["-cp", "/app", "Modes", "zip"]),
    score("server", &["-cp", "/app", "Modes", "server"]),
];

const SCIPY_FILES: &[(&str, &str)] = programs!["try_optimize.py", "try_sparse.py", "try_signal.py", "try_stats.py"];
const NODE: Base = Base::Packages(&["nodejs"]);

/// All subjects. An interpreter with many files, a virtual machine, one large binary, a compiler written for it, a
/// compiler of many programs, a database, a shell session, a server with its client, a batch job over data; and the
/// next versions of the first two.
pub const SUBJECTS: &[Subject] = &[
    Subject {
        name: "scipy",
        base: Base::App(App::Scipy, Version::First),
        needs_dataset: false,
        program: "/usr/bin/python3",
        files: SCIPY_FILES,
        runs: SCIPY_RUNS,
    },
    Subject {
        name: "scipy-2",
        base: Base::App(App::Scipy, Version::Second),
        needs_dataset: true,
        program: "/usr/bin/python3",
        files: SCIPY_FILES,
        runs: SCIPY_RUNS,
    },
    Subject { name: "java", base: Base::App(App::Java, Version::First), needs_dataset: false, program: "java", files: &[], runs: JAVA_RUNS },
    Subject { name: "java-2", base: Base::App(App::Java, Version::Second), needs_dataset: true, program: "java", files: &[], runs: JAVA_RUNS },
    Subject {
        name: "node",
        base: NODE,
        needs_dataset: false,
        program: "/usr/bin/node",
        files: programs!["modes.js"],
        runs: &[
            train("hash", &["/app/modes.js", "hash"]),
            train("server", &["/app/modes.js", "server"]),
            train("text", &["/app/modes.js", "text"]),
            score("zip", &["/app/modes.js", "zip"]),
            score("worker", &["/app/modes.js", "worker"]),
        ],
    },
    Subject {
        name: "tsc",
        base: Base::Packages(&["nodejs", "node-typescript"]),
        needs_dataset: false,
        program: "/usr/bin/node",
        files: programs!["hello.ts", "generics.ts", "async.ts"],
        runs: &[
            train("hello", &["/usr/share/nodejs/typescript/bin/tsc", "--outDir", "/tmp/out", "/app/hello.ts"]),
            train("check", &["/usr/share/nodejs/typescript/bin/tsc", "--noEmit", "--strict", "--target", "es2020", "/app/generics.ts"]),
            train("help", &["/usr/share/nodejs/typescript/bin/tsc", "--help"]),
            score("async", &["/usr/share/nodejs/typescript/bin/tsc", "--declaration", "--target", "es2022", "--outDir", "/tmp/out", "/app/async.ts"]),
            score("both", &["/usr/share/nodejs/typescript/bin/tsc", "--lib", "es2022,dom", "--outDir", "/tmp/out", "/app/hello.ts", "/app/generics.ts"]),
        ],
    },
    Subject {
        name: "gcc",
        base: Base::Packages(&["gcc", "libc6-dev"]),
        needs_dataset: false,
        program: "/usr/bin/gcc",
        files: programs!["hello.c", "numbers.c", "threads.c", "sockets.c"],
        runs: &[
            train("hello", &["-o", "/tmp/a", "/app/hello.c"]),
            train("numbers", &["-O2", "-o", "/tmp/a", "/app/numbers.c", "-lm"]),
            train("threads", &["-O2", "-g", "-c", "-o", "/tmp/a.o", "/app/threads.c"]),
            score("sockets", &["-O1", "-o", "/tmp/a", "/app/sockets.c"]),
            score("threads-link", &["-O2", "-pthread", "-o", "/tmp/a", "/app/threads.c"]),
        ],
    },
    Subject {
        name: "postgres",
        base: Base::Packages(&["postgresql-15", "postgresql-client-15", "dash", "coreutils"]),
        needs_dataset: false,
        program: "/bin/dash",
        files: programs!["postgres.sh", "tables.sql", "json.sql", "plpgsql.sql", "windows.sql", "vacuum.sql"],
        runs: &[
            train("tables", &["/app/postgres.sh", "/app/tables.sql"]),
            train("json", &["/app/postgres.sh", "/app/json.sql"]),
            train("plpgsql", &["/app/postgres.sh", "/app/plpgsql.sql"]),
            score("windows", &["/app/postgres.sh", "/app/windows.sql"]),
            score("vacuum", &["/app/postgres.sh", "/app/vacuum.sql"]),
        ],
    },
    Subject {
        name: "shell",
        base: Base::Packages(&["bash", "coreutils", "git", "grep", "sed", "gawk", "less", "findutils", "diffutils"]),
        needs_dataset: false,
        program: "/bin/bash",
        files: programs!["session-commit.sh", "session-look.sh", "session-branch.sh", "session-text.sh", "session-search.sh"],
        runs: &[
            train("commit", &["/app/session-commit.sh"]),
            train("look", &["/app/session-look.sh"]),
            train("text", &["/app/session-text.sh"]),
            score("branch", &["/app/session-branch.sh"]),
            score("search", &["/app/session-search.sh"]),
        ],
    },
    Subject {
        name: "nginx",
        base: Base::Packages(&["nginx-light", "curl", "dash", "coreutils"]),
        needs_dataset: false,
        program: "/bin/dash",
        files: programs!["serve.sh", "nginx.conf"],
        runs: &[
            train("few", &["/app/serve.sh", "1.txt", "2.txt", "3.txt"]),
            train("some", &["/app/serve.sh", "1.txt", "11.txt", "12.txt", "13.txt", "14.txt", "2.txt"]),
            train("many", &["/app/serve.sh", "1.txt", "2.txt", "21.txt", "22.txt", "23.txt", "24.txt", "25.txt", "26.txt", "27.txt", "28.txt"]),
            score("mixed", &["/app/serve.sh", "1.txt", "3.txt", "13.txt", "25.txt", "35.txt"]),
            score("order", &["/app/serve.sh", "28.txt", "26.txt", "12.txt", "1.txt", "2.txt"]),
        ],
    },
    Subject {
        name: "batch",
        base: Base::Packages(&["sqlite3", "gawk", "gzip", "dash", "coreutils"]),
        needs_dataset: false,
        program: "/bin/dash",
        files: programs!["batch-days.sh", "batch-customers.sh", "batch-all.sh", "batch-notes.sh", "batch-recent.sh", "shop.sql"],
        runs: &[
            train("days", &["/app/batch-days.sh"]),
            train("customers", &["/app/batch-customers.sh"]),
            train("all", &["/app/batch-all.sh"]),
            score("notes", &["/app/batch-notes.sh"]),
            score("recent", &["/app/batch-recent.sh"]),
        ],
    },
];

impl Subject {
    /// Builds its root filesystem below `cache`, or finds it there.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn root(&self, dataset: Option<&Path>, cache: &Path) -> Result<PathBuf> {
        ensure!(!self.needs_dataset || dataset.is_some(), "{} is only in the dataset: name its folder with --dataset", self.name);
        let (base, packages): (_, &[_]) = match self.base {
            Base::Packages(packages) => (None, packages),
            Base::App(app, version) => (Some(app.root(version, dataset, cache)?), &[]),
        };
        let made_from = format!("dataset {dataset:?}\n{:?}", self.files);
        let recipe = Recipe { name: &format!("traces-{}", self.name), base, packages, made_from };
        rootfs::build(&recipe, cache, |root| self.finish(root))
    }

    /// The program that is started, as the image names it.
    ///
    /// # Errors
    /// If the root filesystem does not hold it.
    pub fn program(&self, root: &Path) -> Result<String> {
        if self.program == "java" {
            return Ok(format!("{}/bin/java", java_home(root)?));
        }
        Ok(self.program.to_owned())
    }

    fn finish(&self, root: &Path) -> Result<()> {
        let app = root.join("app");
        fs::create_dir_all(&app).with_context(|| format!("cannot create {}", app.display()))?;
        for (name, text) in self.files {
            write(&app.join(name), text)?;
        }
        match self.name {
            "java" | "java-2" => {
                ensure!(compile_java(&app, "Modes", include_str!("programs/Modes.java"))?, "recording Java needs javac on this machine");
            }
            "postgres" => {
                // A database refuses to be root, and wants to know its user's name.
                let names = (0..3).map(|at| [65533, 1000, 1001][at]).fold(String::new(), |mut names, id| {
                    let _ = writeln!(names, "user{id}:x:{id}:{id}::/tmp:/bin/sh");
                    names
                });
                let passwd = root.join("etc/passwd");
                let known = fs::read_to_string(&passwd).with_context(|| format!("cannot read {}", passwd.display()))?;
                write(&passwd, &(known + &names))?;
            }
            "shell" => texts(&app.join("text"), 12)?,
            "nginx" => texts(&app.join("site"), 40)?,
            "batch" => batch_data(root, &app)?,
            _ => {}
        }
        Ok(())
    }
}

/// Files of text of different lengths, the same on every machine.
fn texts(folder: &Path, count: u64) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let words = ["a", "launch", "of", "programs", "is", "walking", "through", "files", "and", "folders", "again", "each", "time", "reading", "some"];
    for file in 1..=count {
        let mut random = Random(file);
        let mut text = String::new();
        for at in 0..500 + 1500 * (file % 7) {
            text += words[(random.next() % words.len() as u64) as usize];
            text += if at % 12 == 11 { "\n" } else { " " };
        }
        write(&folder.join(format!("{file}.txt")), &text)?;
    }
    Ok(())
}

/// Logs and a database.
fn batch_data(root: &Path, app: &Path) -> Result<()> {
    for log in 1..=2 {
        let mut random = Random(100 + log);
        let mut text = String::new();
        for _ in 0..60_000 {
            let (client, name, code, bytes) =
                (random.next() % 5000, random.next() % 40, [200, 200, 200, 304, 404, 500][(random.next() % 6) as usize], random.next() % 90_000);
            let _ = writeln!(text, "10.0.{}.{} page-{name} {code} {bytes}", client / 250, client % 250);
        }
        write(&app.join(format!("log-{log}")), &text)?;
        run(in_root(root, "/bin/gzip", &["-n", &format!("/app/log-{log}")])?)?;
    }
    run(in_root(root, "/usr/bin/sqlite3", &["/app/shop.db", ".read /app/shop.sql"])?)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_trains_and_scores() {
        for subject in SUBJECTS {
            let of = |role| subject.runs.iter().filter(|run| run.role == role).count();
            assert!(of(Role::Train) >= 2 && of(Role::Score) >= 2, "{}", subject.name);
        }
    }
}
