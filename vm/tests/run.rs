//! Real runs: namespaces, FUSE, overlayfs; as root (if the tests run as root) and as an ordinary user.
//!
//! This program plays three parts: `run [FILTER]` is the test; `run child FIXTURE OPTIONS -- COMMAND` is a `turbo` that runs
//! a command over a fixture's layers; `run inside CASE` is the application.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vm::{BindMount, Launcher, Mode, RunSpec, VmError};

#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/inside.rs"]
mod inside;
#[path = "support/layer.rs"]
mod layer;

/// An ordinary user, if the tests run as root.
const USER: u32 = 12345;

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as Case)),*] };
}

type Case = fn(&Bench);

const CASES: &[(&str, Case)] = cases![
    exit_codes_and_signals,
    commands_that_cannot_run,
    environment_and_directory,
    metadata_survives,
    writes_land_in_the_sandbox_and_last,
    changes_of_image_files_last,
    layers_hide_lower_ones_and_the_host,
    the_host_is_visible_and_live_in_write_copy,
    full_shows_no_host,
    modes_of_paths,
    root_inside,
    mounts_pass_through,
    orphans_are_reaped,
    signals_are_forwarded,
    nothing_survives_kill_9,
    slow_reads_do_not_hold_up_others,
    failed_reads_are_io_errors,
    processes_that_wait_for_data_can_be_killed,
    a_hidden_root_is_refused,
];

fn main() {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    match args.first().map(String::as_str) {
        Some("child") => child(&args[1], &args[2..]),
        Some("inside") => inside::run(&args[1]),
        filter => test(filter.filter(|filter| !filter.starts_with('-')).unwrap_or_default()),
    }
}

fn test(filter: &str) {
    let is_root = rustix::process::getuid().is_root();
    if is_root && fs::metadata("/dev/fuse").is_ok_and(|meta| meta.permissions().mode() & 0o666 != 0o666) {
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    }
    let failed: Vec<String> = vm::probe(&std::env::temp_dir()).into_iter().filter_map(|check| check.remedy).collect();
    if !failed.is_empty() {
        eprintln!("skipped: this machine cannot run VMs: {}", failed.join("; "));
        return;
    }
    let users = if is_root { &[None, Some(USER)][..] } else { &[None] };
    let mut failures = Vec::new();
    for user in users {
        for (name, case) in CASES.iter().filter(|(name, _)| name.contains(filter)) {
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
fn child(fixture: &str, options: &[String]) {
    let launcher = Launcher::fork().unwrap();
    let mut spec = RunSpec::new("unset", Vec::<OsString>::new());
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut value = || options.next().unwrap().clone();
        match option.as_str() {
            "--sandbox" => spec.sandbox = value().into(),
            "--mode" => spec.rules = vm::Rules::new(mode(&value())),
            "--path" => {
                let text = value();
                let (path, name) = text.split_once('=').unwrap();
                spec.rules.state(layer::MemoryLayer::path(path), mode(name));
            }
            "--root" => spec.map_root = true,
            "--cwd" => (spec.working_dir, spec.working_dir_required) = (value().into(), true),
            "--env" => {
                let text = value();
                let (name, value) = text.split_once('=').unwrap();
                spec.env.push((name.into(), value.into()));
            }
            "--mount" => {
                let text = value();
                let (source, target) = text.split_once('=').map_or((text.as_str(), None), |(source, target)| (source, Some(target)));
                spec.mounts.push(BindMount { source: source.into(), target: target.map(PathBuf::from) });
            }
            _ => spec.command = options.by_ref().map(OsString::from).collect(),
        }
    }
    let outcome = launcher.start(spec, fixtures::by_name(fixture)).and_then(|mut running| running.wait());
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

fn mode(name: &str) -> Mode {
    [Mode::Full, Mode::WriteCopy, Mode::Merge, Mode::Hide].into_iter().find(|mode| mode.to_string() == name).unwrap()
}

/// A place for one case: a copy of this program and a sandbox that the user may use.
struct Bench {
    user: Option<u32>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(user: Option<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::hard_link(std::env::current_exe().unwrap(), dir.path().join("run"))
            .or_else(|_| fs::copy(std::env::current_exe().unwrap(), dir.path().join("run")).map(drop))
            .unwrap();
        let bench = Self { user, dir };
        bench.make_dir("sandbox");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        chown(&path, self.user, self.user).unwrap();
        path
    }

    fn upper(&self) -> PathBuf {
        self.path("sandbox/upper")
    }

    fn command(&self, fixture: &str, options: &[&str], command: &[&str]) -> Command {
        let mut all = Command::new(self.path("run"));
        all.args(["child", fixture, "--sandbox"]).arg(self.path("sandbox")).args(options).arg("--").args(command);
        if let Some(user) = self.user {
            all.uid(user).gid(user);
        }
        all
    }

    fn run(&self, fixture: &str, options: &[&str], command: &[&str]) -> Output {
        let output = self.command(fixture, options, command).stdin(Stdio::null()).output().unwrap();
        let left = fs::read_dir(self.path("sandbox")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = left.filter(|name| name != "upper").collect();
        assert_eq!(left, Vec::<String>::new(), "left in the sandbox");
        output
    }

    fn code(&self, fixture: &str, options: &[&str], command: &[&str]) -> (i32, String) {
        let output = self.run(fixture, options, command);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Runs a case of [`inside`], which must pass.
    fn inside(&self, fixture: &str, options: &[&str], case: &str) {
        let exe = self.path("run").to_str().unwrap().to_owned();
        let output = self.run(fixture, options, &[&exe, "inside", case]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// All that is in the sandbox.
    fn written(&self) -> Vec<String> {
        fn walk(dir: &Path, base: &Path, out: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                out.push(path.strip_prefix(base).unwrap().to_str().unwrap().to_owned());
                if fs::symlink_metadata(&path).unwrap().is_dir() {
                    walk(&path, base, out);
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.upper(), &self.upper(), &mut out);
        out.sort();
        out
    }
}

fn exit_codes_and_signals(bench: &Bench) {
    for code in [0, 1, 7, 255] {
        assert_eq!(bench.code("none", &[], &["/bin/sh", "-c", &format!("exit {code}")]).0, code);
    }
    assert_eq!(bench.code("none", &[], &["/bin/sh", "-c", "kill -9 $$"]).0, 137);
    assert_eq!(bench.code("none", &[], &["/bin/sh", "-c", "kill -TERM $$"]).0, 143);
    assert_eq!(bench.run("none", &[], &["/bin/echo", "out"]).stdout, b"out\n");
    assert_eq!(bench.written(), Vec::<String>::new());
}

fn commands_that_cannot_run(bench: &Bench) {
    let cases = [
        ("/nowhere", 127, "not found"),
        ("nowhere", 127, "not found"),
        ("/img/file/x", 127, "not found"),
        ("/img/no-interpreter", 127, "not the interpreter"),
        ("/img/file", 126, "Permission denied"),
        ("/img/garbage", 126, "Exec format error"),
        ("/img", 126, "Permission denied"),
    ];
    for (command, code, text) in cases {
        let (got, stderr) = bench.code("plain", &[], &[command]);
        assert_eq!(got, code, "{command}: {stderr}");
        assert!(stderr.contains(text), "{command}: {stderr}");
    }
    let (code, stderr) = bench.code("plain", &["--cwd", "/nowhere"], &["/bin/true"]);
    assert!(code == 125 && stderr.contains("/nowhere"), "{stderr}");
}

fn environment_and_directory(bench: &Bench) {
    bench.inside("plain", &["--env", "A=b c", "--env", "PATH=/bin:/usr/bin", "--cwd", "/img/dir"], "env");
    assert_eq!(bench.run("plain", &["--env", "PATH=/nowhere:/img"], &["script", "found"]).stdout, b"script found\n");
}

fn metadata_survives(bench: &Bench) {
    bench.inside("plain", &[], "metadata");
    bench.inside("plain", &["--root"], "metadata");
    assert_eq!(bench.written(), Vec::<String>::new());
}

fn writes_land_in_the_sandbox_and_last(bench: &Bench) {
    let outside = bench.path("outside");
    fs::write(&outside, "host").unwrap();
    let passwd = fs::read("/etc/passwd").unwrap();
    let script =
        format!("echo new > /etc/turbo-new && echo x >> /etc/passwd && rm /etc/hostname && echo vm > {0} && mkdir /turbo && : > $HOME/f", outside.display());
    let (code, stderr) = bench.code("none", &["--env", "HOME=/tmp"], &["/bin/sh", "-c", &script]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(fs::read(&outside).unwrap(), b"host");
    assert_eq!(fs::read("/etc/passwd").unwrap(), passwd);
    assert!(fs::metadata("/etc/hostname").is_ok() && fs::metadata("/etc/turbo-new").is_err() && fs::metadata("/turbo").is_err());
    let written = bench.written();
    for name in ["etc/turbo-new", "etc/passwd", "etc/hostname", "turbo", "tmp/f"] {
        assert!(written.iter().any(|path| path == name), "{name} is not in {written:?}");
    }
    let script = format!("grep -q x /etc/passwd && test $(cat {}) = vm && test ! -e /etc/hostname && test -d /turbo", outside.display());
    let (code, stderr) = bench.code("none", &[], &["/bin/sh", "-c", &script]);
    assert_eq!(code, 0, "{stderr}");
}

fn changes_of_image_files_last(bench: &Bench) {
    bench.inside("plain", &[], "change");
    bench.inside("plain", &[], "changed");
}

fn layers_hide_lower_ones_and_the_host(bench: &Bench) {
    bench.inside("stacked", &[], "stacked");
    assert_eq!(bench.written(), Vec::<String>::new());
}

fn the_host_is_visible_and_live_in_write_copy(bench: &Bench) {
    let file = bench.path("live");
    fs::write(&file, "before").unwrap();
    let script = format!("cat {0}; echo; read line; sleep 1.2; cat {0}; echo", file.display());
    let mut child = bench.command("none", &[], &["/bin/sh", "-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "before");
    fs::write(&file, "after, and longer").unwrap();
    drop(child.stdin.take());
    assert_eq!(lines.next().unwrap().unwrap(), "after, and longer");
    assert!(child.wait().unwrap().success());
    // Of two users' files only what the user may read.
    if bench.user.is_some() {
        assert_ne!(bench.code("none", &["--root"], &["/bin/cat", "/etc/shadow"]).0, 0);
    }
}

fn full_shows_no_host(bench: &Bench) {
    let output = bench.run("rootfs", &["--mode", "full"], &["/bin/inside", "inside", "full"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(bench.written(), Vec::<String>::new());
    assert_eq!(bench.code("rootfs", &["--mode", "full"], &["/bin/sh"]).0, 127);
}

fn modes_of_paths(bench: &Bench) {
    let script = "test ! -e /etc/passwd && test -d /usr/bin && test -e /img/file";
    let (code, stderr) = bench.code("plain", &["--path", "/etc=full"], &["/bin/sh", "-c", script]);
    assert_eq!(code, 0, "{stderr}");
    let options = ["--mode", "full", "--path", "/bin=write-copy", "--path", "/usr=write-copy", "--path", "/lib=write-copy", "--path", "/lib64=write-copy"];
    let (code, stderr) = bench.code("plain", &options, &["/bin/sh", "-c", "test ! -e /etc/passwd && test ! -e /var"]);
    assert_eq!(code, 0, "{stderr}");
}

fn root_inside(bench: &Bench) {
    assert_eq!(bench.run("none", &["--root"], &["/usr/bin/id", "-u"]).stdout, b"0\n");
    let uid = bench.user.unwrap_or_else(|| rustix::process::getuid().as_raw());
    assert_eq!(bench.run("none", &[], &["/usr/bin/id", "-u"]).stdout, format!("{uid}\n").as_bytes());
}

fn mounts_pass_through(bench: &Bench) {
    let source = bench.make_dir("source");
    let source = source.to_str().unwrap();
    let options = ["--mount", "/nowhere/at/all", "--mount", source, "--mount", &format!("{source}=/new/place"), "--mount", "/etc/passwd=/new/file"];
    let script = format!("echo a > {source}/one && echo b > /new/place/two && test -s /new/file && test ! -e /nowhere");
    let (code, stderr) = bench.code("none", &options, &["/bin/sh", "-c", &script]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!((fs::read(bench.path("source/one")).unwrap(), fs::read(bench.path("source/two")).unwrap()), (b"a\n".to_vec(), b"b\n".to_vec()));
    assert_eq!(bench.written(), Vec::<String>::new());
    let output = bench.run("rootfs", &["--mode", "full", "--mount", &format!("{source}=/data")], &["/bin/inside", "inside", "full"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(bench.written(), Vec::<String>::new());
}

fn orphans_are_reaped(bench: &Bench) {
    let start = Instant::now();
    bench.inside("none", &[], "orphans");
    assert!(start.elapsed() < Duration::from_secs(10));
}

fn signals_are_forwarded(bench: &Bench) {
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1")] {
        let script = format!("trap 'exit 9' {name}; echo ready; while :; do sleep 0.02; done");
        let mut child = bench.command("none", &[], &["/bin/sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9), "{name}");
    }
}

fn nothing_survives_kill_9(bench: &Bench) {
    let marker = format!("TURBO_TEST={}", bench.dir.path().display());
    let script = "sleep 1000 & echo ready; sleep 1000";
    let mut child = bench.command("none", &["--env", &marker], &["/bin/sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    // The application and its child have the marker in their environment; pid 1 and its parent are found by the program.
    let run = bench.path("run");
    let mine = |dir: &Path| {
        fs::read(dir.join("environ")).is_ok_and(|env| env.split(|b| *b == 0).any(|pair| pair == marker.as_bytes()))
            || fs::read_link(dir.join("exe")).is_ok_and(|exe| exe == run)
    };
    let count = || fs::read_dir("/proc").unwrap().filter(|entry| mine(&entry.as_ref().unwrap().path())).count();
    let before = count();
    child.kill().unwrap();
    child.wait().unwrap();
    // An ordinary user's test sees it, too, though not all of them.
    assert!(before >= if rustix::process::getuid().is_root() { 5 } else { 2 }, "turbo, its child, pid 1, the application and its child: {before}");
    let start = Instant::now();
    while count() > 0 {
        assert!(start.elapsed() < Duration::from_secs(3), "{} processes are left", count());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn slow_reads_do_not_hold_up_others(bench: &Bench) {
    bench.inside("slow", &[], "slow");
}

fn failed_reads_are_io_errors(bench: &Bench) {
    bench.inside("slow", &[], "failing");
}

fn processes_that_wait_for_data_can_be_killed(bench: &Bench) {
    let start = Instant::now();
    let script = "cat /img/slow0 & sleep 0.3; kill $!; wait $!; test $? = 143 || exit 1; cat /img/slow1 & sleep 0.3; exit 3";
    let (code, stderr) = bench.code("stuck", &[], &["/bin/sh", "-c", script]);
    assert_eq!(code, 3, "{stderr}");
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
}

fn a_hidden_root_is_refused(bench: &Bench) {
    let output = bench.command("none", &["--mode", "hide"], &["/bin/true"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && stderr.contains("use `full`"), "{stderr}");
}
