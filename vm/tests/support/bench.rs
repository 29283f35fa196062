//! A test program in three parts: `[FILTER]` is the test; `child FIXTURE OPTIONS -- COMMAND` is a `turbo` that runs a
//! command over a fixture's layers; `inside CASE ARGS` is the application.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use client_store::LayerView;
use layer_format::manifest::{Attributes, FileMode};
use vm::{BindMount, Launcher, Mode, RunSpec, VmError};

use crate::layer::MemoryLayer;

/// An ordinary user, if the tests run as root.
const USER: u32 = 12345;

pub(crate) type Case = fn(&Bench);
pub(crate) type Fixtures = fn(&str) -> Vec<Arc<dyn LayerView>>;

/// Plays the part that the arguments ask for.
pub(crate) fn main(cases: &[(&str, Case)], fixtures: Fixtures, inside: fn(&str, &[String])) {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    match args.first().map(String::as_str) {
        Some("child") => child(&fixtures, &args[1], &args[2..]),
        Some("inside") => inside(&args[1], &args[2..]),
        filter => test(cases, filter.filter(|filter| !filter.starts_with('-')).unwrap_or_default()),
    }
}

fn test(cases: &[(&str, Case)], filter: &str) {
    let is_root = rustix::process::getuid().is_root();
    if is_root && fs::metadata("/dev/fuse").is_ok_and(|meta| meta.permissions().mode() & 0o666 != 0o666) {
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    }
    let failed: Vec<String> = vm::probe(&std::env::temp_dir()).into_iter().filter_map(|check| check.remedy).collect();
    if !failed.is_empty() {
        eprintln!("skipped: this machine cannot run VMs: {}", failed.join("; "));
        return;
    }
    let users = if is_root { &[Some(USER), None][..] } else { &[None] };
    let mut failures = Vec::new();
    for user in users {
        for (name, case) in cases.iter().filter(|(name, _)| name.contains(filter)) {
            let bench = Bench::new(*user);
            let start = Instant::now();
            let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&bench))).is_ok();
            let who = user.map_or("self".to_owned(), |uid| format!("uid {uid}"));
            println!("test {name} ({who}) ... {} in {} ms", if passed { "ok" } else { "FAILED" }, start.elapsed().as_millis());
            if !passed {
                failures.push(format!("{name} ({who})"));
            }
        }
    }
    assert!(failures.is_empty(), "failed: {failures:?}");
}

/// Plays `turbo`.
fn child(fixtures: &Fixtures, fixture: &str, options: &[String]) {
    let launcher = Launcher::fork().unwrap();
    let mut spec = RunSpec::new("unset", Vec::<OsString>::new());
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut value = || options.next().unwrap().clone();
        let mut pair = || {
            let text = value();
            let (path, name) = text.rsplit_once('=').unwrap();
            (path.to_owned(), name.to_owned())
        };
        match option.as_str() {
            "--sandbox" => spec.sandbox = value().into(),
            "--mode" => spec.rules = vm::Rules::new(value().parse::<Mode>().unwrap()),
            "--path" => {
                let (path, mode) = pair();
                spec.rules.state(MemoryLayer::path(path), mode.parse().unwrap());
            }
            "--file" => {
                let (path, mode) = pair();
                let mode = [FileMode::Full, FileMode::Hide, FileMode::Defaulted].into_iter().find(|found| format!("{found:?}").eq_ignore_ascii_case(&mode));
                spec.rules.state_file(MemoryLayer::path(path), mode.unwrap());
            }
            "--attribute" => {
                let (path, name) = pair();
                let attributes = Attributes { hidden: name == "hidden", read_only: name == "read-only", ..Attributes::default() };
                spec.rules.add_attributes(MemoryLayer::path(path), attributes);
            }
            "--hidden" => spec.hidden.push(value().into()),
            "--root" => spec.map_root = true,
            "--cwd" => (spec.working_dir, spec.working_dir_required) = (value().into(), true),
            "--mount" => {
                let (source, target) = pair();
                spec.mounts.push(BindMount { source: source.into(), target: Some(target.into()) });
            }
            _ => spec.command = options.by_ref().map(OsString::from).collect(),
        }
    }
    let outcome = launcher.start(spec, fixtures(fixture)).and_then(|mut running| running.wait());
    std::process::exit(match outcome {
        Ok(status) => status.shell_code(),
        Err(error) => {
            eprintln!("{error}");
            match error {
                VmError::NotFound { .. } => 127,
                VmError::NotExecutable { .. } => 126,
                _ => 125,
            }
        }
    })
}

/// A place for one case: a copy of this program and a sandbox that the user may use.
pub(crate) struct Bench {
    pub(crate) user: Option<u32>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(user: Option<u32>) -> Self {
        // Not in /tmp, which is private where the root is full.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let exe = std::env::current_exe().unwrap();
        fs::hard_link(&exe, dir.path().join("run")).or_else(|_| fs::copy(&exe, dir.path().join("run")).map(drop)).unwrap();
        let bench = Self { user, dir };
        bench.make_dir("sandbox");
        bench
    }

    /// A path in the bench's directory, as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a directory that belongs to the user, with its parents.
    pub(crate) fn make_dir(&self, name: &str) -> PathBuf {
        let missing = Path::new(name).ancestors().map(|dir| self.dir.path().join(dir)).take_while(|dir| !dir.exists());
        let mut missing: Vec<PathBuf> = missing.collect();
        while let Some(path) = missing.pop() {
            fs::create_dir(&path).unwrap();
            chown(&path, self.user, self.user).unwrap();
        }
        self.path(name)
    }

    /// Makes a file that belongs to the user, as its directory does.
    pub(crate) fn make_file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        if let Some(parent) = Path::new(name).parent().filter(|parent| !self.path(parent.to_str().unwrap()).exists()) {
            self.make_dir(parent.to_str().unwrap());
        }
        fs::write(&path, content).unwrap();
        chown(&path, self.user, self.user).unwrap();
        path
    }

    /// The sandbox of this run is a new one.
    pub(crate) fn fresh_sandbox(&self) {
        fs::remove_dir_all(self.path("sandbox")).unwrap();
        self.make_dir("sandbox");
    }

    pub(crate) fn command(&self, fixture: &str, options: &[&str], command: &[&str]) -> Command {
        let mut all = Command::new(self.path("run"));
        all.args(["child", fixture, "--sandbox"]).arg(self.path("sandbox")).args(options).arg("--").args(command);
        if let Some(user) = self.user {
            all.uid(user).gid(user);
        }
        all
    }

    pub(crate) fn run(&self, fixture: &str, options: &[&str], command: &[&str]) -> Output {
        let output = self.command(fixture, options, command).stdin(Stdio::null()).output().unwrap();
        let left = fs::read_dir(self.path("sandbox")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = left.filter(|name| name != "upper").collect();
        assert_eq!(left, Vec::<String>::new(), "left in the sandbox");
        output
    }

    /// Runs a shell script, which must succeed and say nothing; its output.
    #[track_caller]
    pub(crate) fn shell(&self, fixture: &str, options: &[&str], script: &str) -> String {
        let output = self.run(fixture, options, &["/bin/sh", "-ec", script]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{options:?}: {script}: {} {stderr}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a case inside, which must pass.
    #[track_caller]
    pub(crate) fn inside(&self, fixture: &str, options: &[&str], case: &str, args: &[&str]) {
        let exe = self.text("run");
        let output = self.run(fixture, options, &[&[&exe, "inside", case], args].concat());
        assert!(output.status.success(), "{case} {args:?} with {options:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// All that is below a directory of the host: name to a line that describes it. Tombstones are `-`.
    pub(crate) fn tree(&self, name: &str) -> Vec<(String, String)> {
        let mut out = Vec::new();
        walk(&self.path(name), &self.path(name), &mut out);
        out.sort();
        out
    }

    /// What the sandbox has below a directory of the bench.
    pub(crate) fn upper(&self, name: &str) -> Vec<(String, String)> {
        let place = format!("sandbox/upper{}", self.text(name));
        if self.path(&place).exists() { self.tree(&place) } else { Vec::new() }
    }
}

fn walk(dir: &Path, base: &Path, out: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(base).unwrap().to_str().unwrap().to_owned();
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        if kind.is_dir() {
            out.push((name, format!("dir {:o}", meta.mode() & 0o7777)));
            walk(&path, base, out);
        } else if kind.is_file() {
            out.push((name, fs::read_to_string(&path).unwrap_or_else(|_| "binary".to_owned())));
        } else if kind.is_symlink() {
            out.push((name, format!("-> {}", fs::read_link(&path).unwrap().display())));
        } else {
            out.push((name, if meta.rdev() == 0 && meta.mode() & libc::S_IFMT == libc::S_IFCHR { "-".to_owned() } else { "special".to_owned() }));
        }
    }
}
