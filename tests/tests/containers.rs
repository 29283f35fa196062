//! Containers, as an ordinary user handles them: started, joined, stopped, suspended, copied, compared, and killed in every
//! phase.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use integration_tests::turbo::{can_run, eventually, own};
use integration_tests::{Home, Outcome, Pty};
use serde_json::Value;

/// A home with an image whose startup file is a shell.
struct Place {
    home: Home,
}

impl Place {
    fn new() -> Option<Self> {
        if !can_run() {
            return None;
        }
        let home = Home::offline();
        home.file("app/seed", "from the image\n");
        home.file("app/folder/inner", "inner\n");
        let folder = home.path().join("app");
        home.turbo(["import", "dir", folder.to_str().unwrap(), "--at", "/opt/app", "--name", "c/test", "--startup-file", "/bin/sh"]).ok();
        Some(Self { home })
    }

    fn turbo(&self, arguments: &[&str]) -> Outcome {
        self.home.turbo(arguments)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let value = self.turbo(&[&["--format", "json"], arguments].concat()).ok().json();
        assert_eq!((&value["version"], &value["command"]), (&1.into(), &arguments[0].into()), "{value}");
        value["result"].clone()
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], says: &str) {
        let outcome = self.turbo(arguments);
        assert_eq!(outcome.code, Some(125), "{arguments:?}: {} {}", outcome.stdout, outcome.stderr);
        assert!(outcome.stderr.contains(says), "{arguments:?} does not say `{says}`: {}", outcome.stderr);
    }

    fn session(&self, name: &str) -> Value {
        let all = self.json(&["sessions"]);
        all.as_array().unwrap().iter().find(|session| session["name"] == name).cloned().unwrap_or(Value::Null)
    }

    fn status(&self, name: &str) -> String {
        self.session(name)["status"].as_str().unwrap_or("none").to_owned()
    }

    /// Starts a script in a container in the background of this test, its input and output piped.
    fn spawn(&self, arguments: &[&str]) -> Child {
        self.home.command(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A detached container that runs until it is ended.
    fn detached(&self, name: &str, script: &str) {
        self.turbo(&["run", "-d", "--name", name, "c/test", "--", "-c", script]).ok();
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.home.store().join("containers").join(self.session(name)["id"].as_str().unwrap())
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.folder(name).join("sandbox/upper")
    }

    fn processes(&self, name: &str) -> Vec<i32> {
        self.json(&["ps", name]).as_array().unwrap().iter().map(|row| row["pid"].as_i64().unwrap() as i32).collect()
    }
}

fn output(child: Child) -> Outcome {
    child.wait_with_output().unwrap().into()
}

fn state_of(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

#[test]
fn a_whole_life_in_json() {
    let Some(place) = Place::new() else { return };
    let made = place.json(&["new", "--no-run", "--name", "life", "-e", "WHO=life", "c/test"]);
    assert_eq!(made["container"].as_str().unwrap().len(), 32);
    assert_eq!(place.status("life"), "created");
    let started = place.turbo(&["start", "life", "--", "-c", "echo $WHO > /opt/app/written; exit 7"]);
    assert_eq!((started.code, place.status("life").as_str()), (Some(7), "exited"), "{}", started.stderr);
    assert_eq!(place.session("life")["exit_code"], 7);
    let detached = place.json(&["start", "-d", "life", "--", "-c", "cat /opt/app/written; trap 'exit 9' TERM; while :; do sleep 0.05; done"]);
    assert_eq!(detached["container"], made["container"]);
    assert_eq!((place.status("life").as_str(), place.session("life")["running"].as_bool()), ("running", Some(true)));
    let processes = place.json(&["ps", "life", "-l"]);
    let shell = processes.as_array().unwrap().iter().find(|row| row["name"] == "sh").unwrap_or_else(|| panic!("{processes}")).clone();
    assert!(shell["container"] == made["container"] && shell["command"][1] == "-c" && shell["inner_pid"].as_i64().unwrap() > 1, "{shell}");
    assert_eq!(place.json(&["suspend", "life"])[0]["container"], made["container"]);
    assert_eq!(place.status("life"), "suspended");
    assert_eq!(place.json(&["resume", "life"])[0]["container"], made["container"]);
    assert_eq!(place.status("life"), "running");
    let stopped = place.json(&["stop", "life"]);
    assert_eq!((&stopped[0]["container"], &stopped[0]["exit_code"], &stopped[0]["deleted"]), (&made["container"], &9.into(), &false.into()), "{stopped}");
    assert_eq!(place.session("life")["running"], false);
    assert_eq!(place.json(&["logs", "life"])["stdout"], "life\n");
    let diff = place.json(&["diff", "life", "--path", "/opt"]);
    assert_eq!(diff[2], serde_json::json!({"change": "A", "path": "/opt/app/written"}), "{diff}");
    let forked = place.json(&["fork", "life", "copy"]);
    assert_eq!(place.turbo(&["start", "copy", "--", "-c", "cat /opt/app/written"]).ok().stdout, "life\n");
    assert_ne!(forked["container"], made["container"]);
    place.json(&["cp", "life:/opt/app/written", "out"]);
    assert_eq!(std::fs::read_to_string(place.home.path().join("out")).unwrap(), "life\n");
    place.json(&["revert", "life"]);
    assert_eq!(place.json(&["diff", "life"]), serde_json::json!([]));
    assert_eq!(place.json(&["history"])[0]["image"], "c/test");
    assert_eq!(place.json(&["rm", "life", "copy"]).as_array().unwrap().len(), 2);
    assert_eq!(place.json(&["sessions"]), serde_json::json!([]));
}

#[test]
fn names_that_mean_nothing_or_too_much() {
    let Some(place) = Place::new() else { return };
    for command in ["start", "stop", "kill", "suspend", "resume", "rm", "fork", "revert", "diff", "logs", "ps"] {
        place.refused(&[command, "nobody"], "nobody");
    }
    place.refused(&["cp", "nobody:/x", "y"], "nobody");
    for command in ["stop", "kill", "suspend", "resume", "revert", "rm"] {
        assert_eq!(place.turbo(&[command]).code, Some(2), "{command} without a name is wrong usage");
    }
    for arguments in [vec!["cp", "a", "b"], vec!["cp", "x:rel", "b"], vec!["new", "--name", "a/b", "c/test"], vec!["kill", "-s", "NOPE", "x"]] {
        assert_eq!(place.turbo(&arguments).code, Some(2), "{arguments:?}");
    }
    for digit in ["0", "1"] {
        let id = format!("abcd{}", digit.repeat(28));
        let json = serde_json::json!({"id": id, "name": format!("n{digit}"), "images": ["c/test"], "created_s": 1, "started_s": 1});
        place.home.file(&format!("home/containers/{id}/container.json"), json.to_string());
    }
    place.refused(&["start", "abcd"], "more than one");
    place.turbo(&["revert", "abcd0"]).ok();
    place.refused(&["new", "--name", "n0", "--no-run", "c/test"], "already");
    place.refused(&["run", "--name", "n0", "c/other"], "other images");
}

#[test]
fn what_runs_and_what_does_not_are_told_apart() {
    let Some(place) = Place::new() else { return };
    place.turbo(&["new", "--no-run", "--name", "still", "c/test"]).ok();
    for command in ["stop", "kill", "suspend", "resume"] {
        place.refused(&[command, "still"], "does not run");
    }
    place.detached("busy", "while :; do sleep 0.05; done");
    for command in ["rm", "revert"] {
        place.refused(&[command, "busy"], "turbo stop busy");
    }
    // All are looked at before anything is done.
    place.refused(&["stop", "busy", "still"], "still");
    place.refused(&["rm", "still", "busy"], "busy");
    assert_eq!((place.status("busy").as_str(), place.status("still").as_str()), ("running", "created"));
    place.turbo(&["rm", "--all"]).ok();
    assert_eq!((place.status("busy").as_str(), place.status("still").as_str()), ("running", "none"));
    let folder = place.folder("busy");
    place.turbo(&["rm", "--force", "busy"]).ok();
    assert!(!folder.exists());
}

#[test]
fn a_container_remembers_what_it_should_and_nothing_else() {
    let Some(place) = Place::new() else { return };
    let shared = place.home.file("shared/file", "shared\n");
    let mount = format!("{}=/mnt/here", shared.parent().unwrap().display());
    let script = "-c 'echo $A,$B; pwd; cat /mnt/here/file 2>/dev/null || echo none'";
    let set = format!("/bin/sh {script}");
    place.turbo(&["new", "--no-run", "--name", "s", "-e", "A=1", "--mount", &mount, "--set-startup-file", &set, "c/test"]).ok();
    let start = |options: &[&str]| place.turbo(&[&["start", "s"], options].concat()).ok().stdout;
    let here = place.home.path().display().to_string();
    assert_eq!(start(&[]), format!("1,\n{here}\nshared\n"));
    assert_eq!(start(&["-e", "B=2", "-w", "/opt"]), "1,2\n/opt\nshared\n");
    assert_eq!(start(&["--startup-file", "/bin/sh -c 'echo once'"]), "once\n");
    assert_eq!(start(&["--mount", ""]), format!("1,2\n{here}\nnone\n"), "variables last, directory and startup file do not");
    assert_eq!(start(&[]), format!("1,2\n{here}\nnone\n"), "an empty mount clears the others");
    let again = place.turbo(&["run", "--name", "s", "-e", "A=3", "c/test"]).ok().stdout;
    assert_eq!(again, format!("3,2\n{here}\nnone\n"), "`run` of the same name and images is the same container");
    start(&["--set-startup-file", "/bin/sh -c 'echo new'"]);
    assert_eq!(start(&[]), "new\n");
    assert_eq!(start(&["--set-startup-file", "", "--", "-c", "echo image"]), "image\n");
}

#[test]
fn a_program_joins_what_runs() {
    let Some(place) = Place::new() else { return };
    place.detached(
        "j",
        "readlink /proc/self/ns/pid > /opt/app/namespace; echo first > /opt/app/first; while [ ! -e /opt/app/end ]; do sleep 0.05; done; exit 3",
    );
    let join = |options: &[&str], script: &str| place.turbo(&[&["start", "j"], options, &["--", "-c", script]].concat());
    eventually("the file is there", || join(&[], "cat /opt/app/first").stdout == "first\n");
    let joined = join(&["-e", "X=joined", "-w", "/opt/app"], "echo $X; pwd; echo second > /opt/app/second; exit 42");
    assert_eq!((joined.code, joined.stdout.as_str()), (Some(42), "joined\n/opt/app\n"), "{}", joined.stderr);
    assert!(place.upper("j").join("opt/app/second").exists(), "one sandbox");
    assert_eq!(join(&[], "kill -9 $$").code, Some(137));
    assert_eq!(join(&["--startup-file", "/no/such"], "x").code, Some(127));
    assert_eq!(join(&["-w", "/no/such"], "exit").code, Some(125));
    assert_eq!(join(&[], "readlink /proc/self/ns/pid").stdout, join(&[], "cat /opt/app/namespace").stdout, "it is inside");
    let run = place.turbo(&["run", "--name", "j", "c/test", "--", "-c", "cat /opt/app/second"]).ok();
    assert_eq!(run.stdout, "second\n", "`run` joins as well");
    let warned = join(&["--admin"], "exit");
    assert!(warned.stderr.contains("--admin"), "{}", warned.stderr);
    // Joined and detached: the log goes on.
    place.turbo(&["start", "-d", "j", "--", "-c", "echo from a second program"]).ok();
    eventually("it is in the log", || place.turbo(&["logs", "j"]).stdout.contains("from a second program"));
    let code = join(&[], "touch /opt/app/end").code;
    assert_eq!(code, Some(0));
    eventually("it ends", || place.session("j")["running"] == false);
    assert_eq!(place.session("j")["exit_code"], 3, "the exit code is the first program's");
    let names = place.json(&["sessions"]);
    assert_eq!(names.as_array().unwrap().len(), 1, "joining makes no container: {names}");
}

#[test]
fn a_container_lives_as_long_as_someone_uses_it() {
    let Some(place) = Place::new() else { return };
    let first = place.spawn(&["run", "--name", "l", "c/test", "--", "-c", "while [ ! -e /opt/app/go ]; do sleep 0.05; done; exit 5"]);
    eventually("it runs", || place.status("l") == "running");
    let second = place.spawn(&["start", "l", "--", "-c", "touch /opt/app/go; while [ ! -e /opt/app/end ]; do sleep 0.05; done; exit 6"]);
    eventually("the first program ended", || place.processes("l").len() == 2 || place.upper("l").join("opt/app/go").exists());
    // A third joins although the application has ended; it ends the second.
    let third = place.turbo(&["start", "l", "--", "-c", "sleep 0.3; touch /opt/app/end; exit 7"]);
    assert_eq!(third.code, Some(7), "{}", third.stderr);
    assert_eq!(output(second).code, Some(6));
    assert_eq!(output(first).code, Some(5));
    assert_eq!((place.status("l").as_str(), place.session("l")["exit_code"].as_i64()), ("exited", Some(5)));
}

#[test]
fn stop_ends_all_and_returns_when_it_is_over() {
    let Some(place) = Place::new() else { return };
    let patient = "trap 'echo bye > /opt/app/bye; exit 4' TERM; touch /opt/app/ready; while :; do sleep 0.05; done";
    place.detached("p", patient);
    eventually("the trap is set", || place.upper("p").join("opt/app/ready").exists());
    let joined = place.spawn(&["start", "p", "--", "-c", "trap 'exit 8' TERM; touch /opt/app/joined; while :; do sleep 0.05; done"]);
    eventually("the other trap is set", || place.upper("p").join("opt/app/joined").exists());
    let stopped = place.json(&["stop", "p"]);
    assert_eq!(stopped[0]["exit_code"], 4, "{stopped}");
    place.turbo(&["rm", "p"]).ok();
    assert_eq!(output(joined).code, Some(8));
    // Deaf programs, two at once, one of them suspended.
    let deaf = "trap '' TERM; touch /opt/app/ready; while :; do sleep 0.05; done";
    for name in ["d1", "d2"] {
        place.detached(name, deaf);
        eventually("the trap is set", || place.upper(name).join("opt/app/ready").exists());
    }
    place.turbo(&["suspend", "d2"]).ok();
    let stopped = place.json(&["stop", "--all", "--time", "1"]);
    assert_eq!((stopped.as_array().unwrap().len(), &stopped[0]["exit_code"], &stopped[1]["exit_code"]), (2, &137.into(), &137.into()), "{stopped}");
    assert!(place.json(&["sessions"]).as_array().unwrap().iter().all(|session| session["running"] == false));
    // A temporary container is gone when it is over.
    place.turbo(&["try", "-d", "--name", "t", "c/test", "--", "-c", "sleep 1000"]).ok();
    let folder = place.folder("t");
    assert_eq!(place.json(&["stop", "t"])[0]["deleted"], true);
    assert!(!folder.exists());
    // At once.
    place.detached("k", deaf);
    assert_eq!(place.json(&["kill", "k"])[0]["exit_code"], 137);
    place.detached("u", "trap 'exit 11' USR1; touch /opt/app/ready; while :; do sleep 0.05; done");
    eventually("the trap is set", || place.upper("u").join("opt/app/ready").exists());
    place.turbo(&["kill", "-s", "usr1", "u"]).ok();
    eventually("it ends", || place.session("u")["exit_code"] == 11);
}

#[test]
fn suspended_processes_stand_still() {
    let Some(place) = Place::new() else { return };
    place.detached("s", "(while :; do :; done) & (while :; do sh -c :; done) & while :; do sleep 0.01; done");
    let mut joined = place.spawn(&["start", "s", "--", "-c", "while :; do :; done"]);
    eventually("all run", || place.processes("s").len() >= 4);
    place.turbo(&["suspend", "s"]).ok();
    let processes = place.processes("s");
    assert!(processes.len() >= 4, "{processes:?}");
    let states: Vec<_> = processes.iter().map(|pid| state_of(*pid)).collect();
    assert!(states.iter().all(|state| matches!(state, Some('T' | 'Z' | 'D'))), "D is who waits for a stopped child: {states:?}");
    let times = || place.json(&["ps", "s"]).as_array().unwrap().iter().map(|row| (row["pid"].clone(), row["user_ms"].clone())).collect::<Vec<_>>();
    let before = times();
    place.refused(&["start", "s", "--", "-c", "exit"], "turbo resume s");
    place.turbo(&["suspend", "s"]).ok();
    assert_eq!(times(), before, "not one took a step, and none was added");
    assert!(joined.try_wait().unwrap().is_none());
    place.turbo(&["resume", "s"]).ok();
    eventually("they go on", || place.processes("s").iter().any(|pid| state_of(*pid) == Some('R')));
    let own_stop = place.spawn(&["start", "s", "--", "-c", "sh -c 'kill -STOP $$; echo awake' & wait"]);
    let stopped = || place.json(&["ps", "s"]).as_array().unwrap().iter().filter(|row| row["state"] == "T").count();
    eventually("one is stopped by itself", || stopped() == 1);
    place.turbo(&["suspend", "s"]).ok();
    place.turbo(&["resume", "s"]).ok();
    eventually("the others go on", || stopped() == 1);
    place.turbo(&["kill", "s"]).ok();
    assert_eq!(output(joined).code, Some(137));
    assert_eq!(output(own_stop).stdout, "", "it was never woken");
}

#[test]
fn starts_at_once_share_one_sandbox() {
    let Some(place) = Place::new() else { return };
    place.turbo(&["new", "--no-run", "--name", "x", "c/test"]).ok();
    let all: Vec<Child> = (0..8).map(|n| place.spawn(&["start", "x", "--", "-c", &format!("echo {n} > /opt/app/by-{n}; sleep 0.2; exit {n}")])).collect();
    for (n, child) in all.into_iter().enumerate() {
        let outcome = output(child);
        assert_eq!(outcome.code, Some(n as i32), "{}", outcome.stderr);
    }
    let listed = place.turbo(&["start", "x", "--", "-c", "cat /opt/app/by-*"]).ok().stdout;
    assert_eq!(listed, (0..8).map(|n| format!("{n}\n")).collect::<String>());
    assert_eq!(place.json(&["sessions"]).as_array().unwrap().len(), 1);
}

#[test]
fn kill_9_in_every_phase_leaves_a_container_that_starts() {
    let Some(place) = Place::new() else { return };
    place.turbo(&["run", "--name", "k", "c/test", "--", "-c", "echo kept > /opt/app/kept"]).ok();
    // While it runs.
    let child = place.spawn(&["start", "k", "--", "-c", "echo more > /opt/app/more; while :; do sleep 0.05; done"]);
    eventually("it has written", || place.upper("k").join("opt/app/more").exists());
    let processes = place.processes("k");
    let joined = place.spawn(&["start", "k", "--", "-c", "touch /opt/app/joined; while :; do sleep 0.05; done"]);
    eventually("it joined", || place.upper("k").join("opt/app/joined").exists());
    kill(child.id(), rustix::process::Signal::KILL);
    output(child);
    assert_eq!(output(joined).code, Some(137), "the program that joined dies with the container");
    eventually("nothing of it is left", || processes.iter().all(|pid| state_of(*pid).is_none()));
    assert_eq!(place.status("k"), "stopped");
    assert!(place.folder("k").join("control").exists(), "a crash cleans nothing up");
    assert_eq!(place.turbo(&["start", "k", "--", "-c", "cat /opt/app/kept /opt/app/more"]).ok().stdout, "kept\nmore\n");
    let left = |folder: PathBuf| {
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(
        (left(place.folder("k")), left(place.folder("k").join("sandbox"))),
        (vec!["capture.index".into(), "container.json".into(), "lock".into(), "sandbox".into()], vec!["upper".to_owned()])
    );
    // Whoever joined is killed: the container goes on.
    place.detached("g", "while :; do sleep 0.05; done");
    let joined = place.spawn(&["start", "g", "--", "-c", "exec sleep 1000"]);
    let has_sleep = || place.json(&["ps", "g"]).as_array().unwrap().iter().any(|row| row["command"][1] == "1000");
    eventually("it joined", has_sleep);
    kill(joined.id(), rustix::process::Signal::KILL);
    output(joined);
    eventually("its program is gone", || !has_sleep());
    assert_eq!(place.status("g"), "running");
    place.turbo(&["stop", "g"]).ok();
    // While it starts and ends.
    for step in 0..24u64 {
        let child = place.spawn(&["start", "k", "--", "-c", "echo x >> /opt/app/again"]);
        std::thread::sleep(std::time::Duration::from_millis(step * 4));
        let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(child.id() as i32).unwrap(), rustix::process::Signal::KILL);
        output(child);
        let outcome = place.turbo(&["start", "k", "--", "-c", "cat /opt/app/kept"]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), "kept\n"), "after {} ms: {}", step * 4, outcome.stderr);
    }
    place.turbo(&["rm", "k"]).ok();
}

#[test]
fn a_silent_turbo_can_be_killed_and_says_who_it_is() {
    let Some(place) = Place::new() else { return };
    place.detached("q", "while :; do sleep 0.05; done");
    let owner: u32 = std::fs::read_to_string(place.folder("q").join("lock")).unwrap().trim().parse().unwrap();
    // Without its socket it does not answer.
    std::fs::remove_file(place.folder("q").join("control")).unwrap();
    assert_eq!(place.status("q"), "busy");
    place.turbo(&["kill", "q"]).ok();
    eventually("it is gone", || state_of(owner as i32).is_none_or(|state| state == 'Z'));
    assert_eq!(place.turbo(&["start", "q", "--", "-c", "echo back"]).ok().stdout, "back\n");
}

#[test]
fn logs_are_followed_to_the_end_and_cut_to_their_tail() {
    let Some(place) = Place::new() else { return };
    place.detached("l", "for n in 1 2 3; do echo out $n; echo err $n >&2; done; while [ ! -e /opt/app/end ]; do sleep 0.05; done; echo last; exit 2");
    let follow = place.spawn(&["logs", "-f", "--tail", "1", "l"]);
    eventually("three lines", || place.turbo(&["logs", "l"]).ok().stdout.ends_with("out 3\n"));
    let tail = place.turbo(&["logs", "--tail", "2", "l"]).ok();
    assert_eq!((tail.stdout.as_str(), tail.stderr.as_str()), ("out 2\nout 3\n", "err 2\nerr 3\n"));
    assert_eq!(place.turbo(&["logs", "--stderr", "l"]).ok().stdout, "");
    place.turbo(&["start", "l", "--", "-c", "touch /opt/app/end"]).ok();
    assert!(output(follow).ok().stdout.ends_with("last\n"));
    assert_eq!(place.session("l")["exit_code"], 2);
    assert!(place.turbo(&["logs", "l"]).ok().stdout.ends_with("last\n"), "they outlive the run");
    place.turbo(&["start", "-d", "l", "--", "-c", "echo anew"]).ok();
    eventually("the next run begins them anew", || place.turbo(&["logs", "l"]).ok().stdout == "anew\n");
    eventually("it ends", || place.session("l")["running"] == false);
    place.turbo(&["start", "l", "--", "-c", "exit"]).ok();
    place.refused(&["logs", "l"], "not detached");
}

/// What a tree is, as far as a user can see.
fn tree(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            String::new()
        } else if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().display().to_string()
        } else if meta.is_file() {
            String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
        } else {
            format!("device {}", meta.rdev())
        };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        found.insert(path.strip_prefix(folder).unwrap().to_owned(), format!("{:o} {} {links} {content}", meta.mode(), meta.mtime()));
    }
    found
}

const CHANGES: &str = "cd /opt/app; echo more >> seed; rm -r folder; mkdir folder new; echo x > folder/other; ln -s nowhere new/link; \
    echo data > new/a; ln new/a new/b; mkfifo new/fifo; chmod 4750 new/a; touch -d @1000000 new/a; rm /opt/app/gone; mkdir -m 555 closed";

#[test]
fn a_fork_is_the_same_and_goes_its_own_way() {
    let Some(place) = Place::new() else { return };
    place.turbo(&["run", "--name", "o", "-e", "A=kept", "c/test", "--", "-c", &format!("echo > /opt/app/gone; {CHANGES}")]).ok();
    place.turbo(&["fork", "o", "f"]).ok();
    assert_eq!(tree(&place.upper("f")), tree(&place.upper("o")));
    let list =
        |name: &str| place.turbo(&["start", name, "--", "-c", "echo $A; cd /opt/app; find . | sort | xargs ls -ld --time-style=+%s; cat seed"]).ok().stdout;
    assert_eq!(list("f"), list("o"));
    place.turbo(&["start", "f", "--", "-c", "echo mine > /opt/app/mine; rm /opt/app/seed"]).ok();
    assert!(list("o").contains("from the image") && !list("o").contains("mine"));
    place.refused(&["fork", "o", "f"], "already");
    let unnamed = place.json(&["fork", "o"]);
    assert_eq!(unnamed["name"], "o-2");
    // Of what runs: everything stands still meanwhile, and then goes on.
    place.detached("r", "n=0; while :; do n=$((n+1)); echo $n > /opt/app/n; cp /opt/app/n /opt/app/m; done");
    eventually("it counts", || place.upper("r").join("opt/app/m").exists());
    place.turbo(&["fork", "r", "r2"]).ok();
    assert_eq!(place.status("r"), "running");
    let read = |name: &str| std::fs::read_to_string(place.upper(name).join("opt/app/n")).unwrap_or_default();
    let then = read("r");
    eventually("it goes on", || read("r") != then && !read("r").is_empty());
    assert_eq!(place.turbo(&["start", "r2", "--", "-c", "echo here"]).ok().stdout, "here\n");
    place.turbo(&["kill", "r"]).ok();
    // Other images, the same files.
    let other = place.home.file("other/thing", "thing\n");
    place.turbo(&["import", "dir", other.parent().unwrap().to_str().unwrap(), "--at", "/opt/other", "--name", "c/other", "--startup-file", "/bin/sh"]).ok();
    place.turbo(&["fork", "o", "i", "--images", "c/other"]).ok();
    assert_eq!(place.turbo(&["start", "i", "--", "-c", "cat /opt/other/thing /opt/app/folder/other; ls /opt/app/gone"]).stdout, "thing\nx\n");
}

#[test]
fn diff_says_what_changed_against_images_and_host() {
    let Some(place) = Place::new() else { return };
    let on_host = place.home.file("host/changed", "host\n");
    place.home.file("host/deleted", "host\n");
    place.home.file("host/kept", "host\n");
    let host = on_host.parent().unwrap().display().to_string();
    let script = format!(
        "{CHANGES} 2>/dev/null; cd {host}; echo x >> changed; rm deleted; echo y > added; touch /tmp/only; rm /tmp/only; rm -r /opt/app/folder; mkdir /opt/app/folder"
    );
    place.turbo(&["run", "--name", "d", "c/test", "--", "-c", &script]).ok();
    let diff = |path: &str| place.turbo(&["diff", "d", "--path", path]).ok().stdout;
    let expected = ["C /opt", "C /opt/app", "A /opt/app/closed", "C /opt/app/folder", "D /opt/app/folder/inner", "A /opt/app/new", "A /opt/app/new/a"];
    let expected = [&expected[..], &["A /opt/app/new/b", "A /opt/app/new/fifo", "A /opt/app/new/link", "C /opt/app/seed"]].concat();
    // Whether /opt is new depends on the machine.
    let shown = diff("/opt").replace("A /opt\n", "C /opt\n");
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    assert_eq!(diff(&host), format!("C {host}\nA {host}/added\nC {host}/changed\nD {host}/deleted\n"));
    assert!(!diff("/tmp").contains("only"), "what came and went is no change");
    assert_eq!(diff("/op"), "", "a path is not a prefix of letters");
    assert_eq!(place.turbo(&["diff", "d", "--path", "rel"]).code, Some(2));
    let whole = place.turbo(&["diff", "d"]).ok().stdout;
    assert!(whole.contains("D ") && whole.lines().count() > expected.len(), "{whole}");
    place.turbo(&["revert", "d"]).ok();
    assert_eq!(place.turbo(&["diff", "d"]).ok().stdout, "");
    assert_eq!(
        place.turbo(&["start", "d", "--", "-c", &format!("cat /opt/app/seed {host}/changed {host}/deleted")]).ok().stdout,
        "from the image\nhost\nhost\n"
    );
}

#[test]
fn files_are_copied_out_of_in_to_and_between_containers() {
    let Some(place) = Place::new() else { return };
    place.turbo(&["run", "--name", "a", "c/test", "--", "-c", &format!("echo > /opt/app/gone; {CHANGES}")]).ok();
    let here = |name: &str| place.home.path().join(name);
    // Out of one that does not run: images and sandbox together.
    place.turbo(&["cp", "a:/opt/app", "out"]).ok();
    let upper = tree(&place.upper("a").join("opt/app"));
    let out = tree(&here("out"));
    assert_eq!(out[Path::new("new/b")], upper[Path::new("new/b")], "mode, time and links are kept");
    assert_eq!(
        out.keys().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        ["", "closed", "folder", "folder/other", "new", "new/a", "new/b", "new/fifo", "new/link", "seed"]
    );
    assert!(out[Path::new("seed")].ends_with("from the image\nmore\n"));
    // Into it, and a file over a file.
    place.home.file("tree/deep/er/file", "in\n");
    place.turbo(&["cp", "tree", "a:/opt/app/tree"]).ok();
    place.turbo(&["cp", "tree", "a:/opt/app/tree"]).ok();
    place.turbo(&["cp", "tree/deep/er/file", "a:/opt/app/seed"]).ok();
    place.turbo(&["cp", "tree/.", "a:/opt/app/new"]).ok();
    let listed = place.turbo(&["start", "a", "--", "-c", "cd /opt/app; find tree new/deep | sort; cat seed; id -u; ls -ln seed | cut -d' ' -f3"]).ok().stdout;
    let expected = "new/deep\nnew/deep/er\nnew/deep/er/file\ntree\ntree/deep\ntree/deep/er\ntree/deep/er/file\ntree/tree\ntree/tree/deep\ntree/tree/deep/er\ntree/tree/deep/er/file\nin\n";
    let rest = listed.strip_prefix(expected).unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(rest.lines().next(), rest.lines().nth(1), "it belongs to the user: {rest}");
    // To and from one that runs, and between two.
    place.detached("b", "while [ ! -e /opt/app/arrived/deep/er/file ]; do sleep 0.05; done; cp -r /opt/app/arrived /opt/app/back; sleep 1000");
    place.turbo(&["cp", "a:/opt/app/tree", "b:/opt/app/arrived"]).ok();
    eventually("the program sees it", || place.turbo(&["cp", "b:/opt/app/back/deep/er/file", "back"]).code == Some(0));
    assert_eq!(std::fs::read_to_string(here("back")).unwrap(), "in\n");
    place.turbo(&["run", "--name", "e", "c/test", "--", "-c", "exit"]).ok();
    place.turbo(&["cp", "a:/opt/app/tree/deep/.", "e:/opt/app/folder"]).ok();
    assert_eq!(place.turbo(&["start", "e", "--", "-c", "cat /opt/app/folder/er/file /opt/app/folder/inner"]).ok().stdout, "in\ninner\n");
    place.turbo(&["kill", "b"]).ok();
    // What cannot be.
    for (arguments, says) in [
        (["cp", "a:/no/such", "x"], "/no"),
        (["cp", "a:/opt/none", "x"], "/opt/none"),
        (["cp", "no-such-file", "a:/opt"], "no-such-file"),
        (["cp", "tree", "a:/opt/app/seed"], "not a folder"),
        (["cp", "back", "a:/no/folder/file"], "/no/folder"),
        (["cp", "back", "a:/opt/app/nothing/"], "no folder"),
        (["cp", "a:/opt/app/seed/", "x"], "not a folder"),
    ] {
        place.refused(&arguments, says);
    }
}

#[test]
fn links_of_a_container_do_not_lead_a_copy_out_of_it() {
    let Some(place) = Place::new() else { return };
    let secret = place.home.file("secret", "of the host\n");
    let outside = place.home.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    own(&outside);
    let name = outside.display();
    // Hidden from the container by a folder of its own: only a copy that leaves the container would find the host's.
    let script = format!(
        "rm -r {name} {0}; mkdir {name}; echo inside > {0}; ln -s {0} /opt/app/file; ln -s {name} /opt/app/folder2; ln -s ../../../../../../../.. /opt/app/up",
        secret.display()
    );
    place.turbo(&["run", "--name", "h", "c/test", "--", "-c", &script]).ok();
    place.turbo(&["cp", &format!("h:/opt/app/up{}", secret.display()), "got"]).ok();
    assert_eq!(std::fs::read_to_string(place.home.path().join("got")).unwrap(), "inside\n");
    place.turbo(&["cp", "got", "h:/opt/app/folder2/new"]).ok();
    place.turbo(&["cp", "got", "h:/opt/app/file"]).ok();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "nothing came to the host");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of the host\n");
    assert_eq!(place.turbo(&["start", "h", "--", "-c", &format!("cat {name}/new")]).ok().stdout, "inside\n");
}

#[test]
fn nobody_inside_controls_containers() {
    let Some(place) = Place::new() else { return };
    place.detached("victim", "while :; do sleep 0.05; done");
    let turbo = integration_tests::binary("turbo");
    let store = place.home.store().display().to_string();
    let variable = format!("TURBO_HOME={store}");
    // Given the whole home on purpose, it still is refused: by the socket, not by a missing file.
    let script = format!("{} stop victim", turbo.display());
    let outcome = place.turbo(&["run", "--name", "attacker", "--mount", &store, "-e", &variable, "c/test", "--", "-c", &script]);
    assert_eq!(outcome.code, Some(125), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("inside a container"), "{}", outcome.stderr);
    assert_eq!(place.status("victim"), "running");
    let mode = place.folder("victim").join("control").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Nor does it see other containers' files in write-copy.
    let folder = place.folder("victim").display().to_string();
    assert_ne!(place.turbo(&["run", "--name", "curious", "c/test", "--", "-c", &format!("ls {folder}")]).code, Some(0));
    place.turbo(&["stop", "victim"]).ok();
}

#[test]
fn a_socket_answers_sense_alone() {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    let Some(place) = Place::new() else { return };
    place.detached("v", "while :; do sleep 0.05; done");
    let path = place.folder("v").join("control");
    let ask = |text: &[u8]| {
        let mut stream = UnixStream::connect(&path).unwrap();
        let _ = stream.write_all(text);
        let mut line = String::new();
        let _ = BufReader::new(stream).read_line(&mut line);
        line
    };
    for bad in [&b"\n"[..], b"{}\n", b"{\"version\":1,\"op\":\"fly\"}\n", b"\xff\xfe\n", &[b'['; 200_000], b"{\"version\":1"] {
        if bad.ends_with(b"\n") || bad.len() > 100_000 {
            assert_eq!(ask(bad), "", "{}", String::from_utf8_lossy(&bad[..bad.len().min(40)]));
        }
    }
    assert!(ask(b"{\"version\":99,\"op\":\"status\"}\n").contains("version"));
    assert!(ask(b"{\"version\":1,\"op\":\"status\"}\n").contains("\"running\""));
    assert!(ask(b"{\"version\":1,\"op\":\"capture\"}\n").contains("error") || ask(b"{\"version\":1,\"op\":\"capture\"}\n").contains("ok"));
    // Whoever connects and says nothing does not keep others out.
    let idle: Vec<_> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    place.turbo(&["stop", "v"]).ok();
    drop(idle);
}

#[test]
fn a_shell_on_a_terminal() {
    let Some(place) = Place::new() else { return };
    let mut pty = Pty::start(&place.home.command(["run", "--name", "t", "c/test"]));
    pty.resize(40, 100);
    pty.send("echo on-a-$((40+2)); stty size; test -t 0 && test -t 1 && echo a terminal\n");
    pty.expect("on-a-42");
    pty.expect("40 100");
    pty.expect("a terminal");
    pty.send("sleep 1000\n");
    eventually("it sleeps", || place.json(&["ps", "t"]).as_array().unwrap().iter().any(|row| row["command"][1] == "1000"));
    pty.send("\x03");
    pty.send("echo still-$((1+1))\n");
    pty.expect("still-2");
    pty.send("trap 'stty size' WINCH; echo set-$((1+1))\n");
    pty.expect("set-2");
    pty.resize(33, 77);
    pty.send("\n");
    pty.expect("33 77");
    pty.send("exit 5\n");
    assert_eq!(pty.wait().code(), Some(5));
    // A program that joins has its own terminal.
    place.detached("d", "while :; do sleep 0.05; done");
    let mut pty = Pty::start(&place.home.command(["start", "d"]));
    pty.send("tty; echo joined-$((40+2))\n");
    pty.expect("/dev/pts/");
    pty.expect("joined-42");
    pty.send("sleep 1000\n");
    eventually("it sleeps", || place.json(&["ps", "d"]).as_array().unwrap().iter().any(|row| row["command"][1] == "1000"));
    pty.send("\x03");
    pty.send("exit 6\n");
    assert_eq!(pty.wait().code(), Some(6));
    place.turbo(&["stop", "d"]).ok();
}

#[test]
fn job_control_of_the_hosts_shell() {
    let Some(place) = Place::new() else { return };
    if !Path::new("/bin/bash").exists() {
        eprintln!("skipped: this machine has no bash");
        return;
    }
    place.detached("d", "while :; do sleep 0.05; done");
    let turbo = integration_tests::binary("turbo");
    let shell = || {
        let mut command = std::process::Command::new("/bin/bash");
        let like = place.home.command(["x"]);
        command.args(["--norc", "--noprofile", "-i"]).envs(like.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PS1", "> ");
        command.current_dir(place.home.path());
        Pty::start(&command)
    };
    for start in [
        format!("{} run --name j c/test -- -c 'echo up-$((1+1)); exec sleep 1000'", turbo.display()),
        format!("{} start d -- -c 'echo up-$((1+1)); exec sleep 1000'", turbo.display()),
    ] {
        let mut pty = shell();
        pty.send(&format!("{start}\n"));
        pty.expect("up-2");
        pty.send("\x1a");
        pty.expect("Stopped");
        pty.send("echo shell-$((1+1))\n");
        pty.expect("shell-2");
        pty.send("fg\n");
        pty.expect("sleep 1000");
        eventually("it goes on", || {
            let rows = place.json(&["ps"]);
            rows.as_array().unwrap().iter().any(|row| row["command"][1] == "1000" && row["state"] == "S")
        });
        pty.send("\x03");
        pty.send("echo code-$?\n");
        pty.expect("code-130");
        // The terminal is the shell's again.
        pty.send("stty -a | grep -c isig; exit 0\n");
        pty.expect("1");
        assert_eq!(pty.wait().code(), Some(0));
    }
    place.turbo(&["stop", "d"]).ok();
}

/// Gives the image `c/test` scripts, as one with such a manifest would come from a registry.
fn with_scripts(place: &Place, name: &str, startup: &[&str], shutdown: &[&str]) {
    use client_store::store::ImageOrigin;
    use layer_format::manifest::{ImageManifest, Manifest};
    let store = client_store::Store::open(&place.home.store(), client_store::StoreOptions::default()).unwrap();
    let image = store.image_get(&"c/test".parse().unwrap()).unwrap().unwrap();
    let mut manifest = ImageManifest::decode(&image.bytes).unwrap();
    let commands = |scripts: &[&str]| scripts.iter().map(|script| vec!["/bin/sh".to_owned(), "-c".to_owned(), (*script).to_owned()]).collect();
    (manifest.scripts.startup, manifest.scripts.shutdown) = (commands(startup), commands(shutdown));
    manifest.requires.push("scripts".into());
    store.image_put(&name.parse().unwrap(), &manifest.encode().unwrap(), ImageOrigin::Imported).unwrap();
    drop(store);
    let mut pending = vec![place.home.store()];
    while let Some(path) = pending.pop() {
        own(&path);
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[test]
fn scripts_run_once_around_the_container() {
    let Some(place) = Place::new() else { return };
    let log = "/opt/app/log";
    with_scripts(
        &place,
        "c/one",
        &[&format!("echo start-1 >> {log}; echo visible; read line; echo read:$line >> {log}"), &format!("echo start-2 >> {log}")],
        &[&format!("echo stop-1:$TURBO_EXIT_CODE >> {log}"), "exit 9"],
    );
    with_scripts(
        &place,
        "c/two",
        &[&format!("echo start-3 >> {log}")],
        &[&format!("echo stop-2:$TURBO_EXIT_CODE >> {log}; ls /proc | grep -c '^[0-9]' >> {log}")],
    );
    let app = format!("echo app >> {log}; (sleep 1000 &) ; exit 3");
    let outcome = place.turbo(&["run", "--name", "s", "c/one,c/two", "--", "-c", &app]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(3), ""), "what scripts print is not the application's: {}", outcome.stderr);
    assert!(outcome.stderr.contains("visible") && outcome.stderr.contains("exit 9` ended with code 9"), "{}", outcome.stderr);
    let read = || std::fs::read_to_string(place.upper("s").join("opt/app/log")).unwrap();
    // The last script counts itself, its two helpers and pid 1: nothing of the application is left.
    let expected = "start-1\nread:\nstart-2\nstart-3\napp\nstop-2:3\n4\nstop-1:3\n";
    assert_eq!(read(), expected);
    // By a signal, and with a program that joins: still once.
    let child = place.spawn(&["start", "s", "--", "-c", &format!("echo app-2 >> {log}; sleep 1000")]);
    eventually("it runs", || read().contains("app-2"));
    place.turbo(&["start", "s", "--", "-c", &format!("echo joined >> {log}")]).ok();
    let stopped = place.json(&["stop", "s"]);
    assert_eq!(stopped[0]["exit_code"], 143, "{stopped}");
    assert_eq!(output(child).code, Some(143));
    assert_eq!(read(), format!("{expected}start-1\nread:\nstart-2\nstart-3\napp-2\njoined\nstop-2:143\n4\nstop-1:143\n"));
}

#[test]
fn a_startup_script_that_fails_ends_the_launch() {
    let Some(place) = Place::new() else { return };
    with_scripts(&place, "c/fails", &["echo before > /opt/app/before", "exit 6", "touch /opt/app/after"], &["touch /opt/app/shutdown"]);
    for detach in [&[][..], &["-d"]] {
        let outcome = place.turbo(&[&["run"], detach, &["--name", "f", "c/fails", "--", "-c", "touch /opt/app/ran"]].concat());
        assert_eq!(outcome.code, Some(125), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("exit 6") && outcome.stderr.contains("code 6"), "{}", outcome.stderr);
    }
    let upper = place.upper("f").join("opt/app");
    let left: Vec<_> = ["before", "after", "ran", "shutdown"].iter().filter(|name| upper.join(name).exists()).collect();
    assert_eq!(left, [&"before"]);
    assert_eq!(place.session("f")["running"], false);
    // One that does not end is ended with the container.
    with_scripts(&place, "c/hangs", &["test -e /opt/app/begun || { touch /opt/app/begun; sleep 1000; }"], &[]);
    let child = place.spawn(&["run", "--name", "h", "c/hangs"]);
    eventually("it hangs", || place.status("h") == "starting" && place.upper("h").join("opt/app/begun").exists());
    place.turbo(&["stop", "h"]).ok();
    assert!(output(child).stderr.contains("signal 15"));
    assert_eq!(place.status("h"), "stopped");
}
