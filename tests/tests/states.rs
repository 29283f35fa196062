//! States: taken at each start and stop, saved, and gone on from on another machine. Real binaries, a real registry, an ordinary
//! user; two homes stand for two machines.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::turbo::{can_run, eventually};
use integration_tests::{Home, Outcome, Proxy, TestRegistry};
use serde_json::Value;

/// Imports an image that runs the shell command that it is given, and pushes it.
fn publish(home: &Home) {
    home.file("app/main.sh", "#!/bin/sh\ncd /opt/app/data\neval \"$1\"\n");
    home.file("app/data/0", "from the image\n");
    let folder = home.path().join("app");
    let folder = folder.to_str().unwrap();
    home.turbo(["import", "dir", folder, "--at", "/opt/app", "--name", "tools/app:1.0", "--startup-file", "/bin/sh /opt/app/main.sh"]).ok();
    home.turbo(["push", "tools/app:1.0"]).ok();
}

fn run(home: &Home, name: &str, command: &str) -> Outcome {
    home.turbo(["run", "--name", name, "tools/app", "--", command])
}

fn proceed(home: &Home, state: &str, command: &str) -> Outcome {
    home.turbo(["continue", state, "--", command])
}

fn save(home: &Home, container: &str) -> String {
    let saved = home.turbo(["save", container]).ok();
    assert!(saved.stderr.contains("turbo continue "), "{}", saved.stderr);
    saved.stdout.trim().to_owned()
}

/// Ids of the states that a container lists, oldest first.
fn states(home: &Home, container: &str) -> Vec<String> {
    let found = sessions(home).into_iter().find(|row| row["name"] == container).unwrap_or_else(|| panic!("no {container}"));
    found["states"].as_array().unwrap().iter().map(|state| state["id"].as_str().unwrap().to_owned()).collect()
}

fn sessions(home: &Home) -> Vec<Value> {
    home.turbo(["sessions", "--format", "json"]).ok().json()["result"].as_array().unwrap().clone()
}

fn names(home: &Home) -> Vec<String> {
    let mut names: Vec<String> = sessions(home).iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn container_folder(home: &Home, name: &str) -> std::path::PathBuf {
    let found = sessions(home).into_iter().find(|row| row["name"] == name).unwrap();
    home.store().join("containers").join(found["id"].as_str().unwrap())
}

#[test]
fn a_session_goes_on_on_another_machine_and_comes_back() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let proxy = Proxy::to(registry.address());
    let laptop = Home::new(registry.url());
    let desktop = Home::new(proxy.url());
    publish(&laptop);
    run(&laptop, "notes", "echo one > 1; rm 0; mkdir sub; ln 1 sub/linked; chmod 600 1; touch -d @1000 1; head -c 3000000 /dev/urandom > large").ok();
    let early = save(&laptop, "notes");
    assert!(early.starts_with("b3:") && early.len() == 67, "{early}");
    let first = laptop.turbo(["save", "notes", "--format", "json"]).ok().json();
    assert_eq!((first["result"]["state"].as_str(), first["result"]["objects"].as_u64()), (Some(&*early), Some(0)), "nothing new to send: {first}");
    run(&laptop, "notes", "echo two > 2").ok();
    let later = laptop.turbo(["save", "notes", "--format", "json"]).ok().json();
    assert!((1..=8).contains(&later["result"]["objects"].as_u64().unwrap()), "a small change sends few objects: {later}");
    let late = later["result"]["state"].as_str().unwrap().to_owned();
    assert_ne!(early, late);

    // The desktop has never seen any of it. By eight digits, without the prefix.
    let before = proxy.down_bytes();
    let digits = &early[3..11];
    let went = proceed(&desktop, digits, "cat 1; ls; stat -c '%a %h %Y' 1; sha256sum < large > sum; echo three > 3").ok();
    assert_eq!(went.stdout, "one\n1\nlarge\nsub\n600 2 1000\n");
    let whole = proxy.down_bytes() - before;
    assert!(whole > 3_000_000);
    let before = proxy.down_bytes();
    assert_eq!(proceed(&desktop, &late, "cat 1 2; ls").ok().stdout, "one\ntwo\n1\n2\nlarge\nsub\n");
    let delta = proxy.down_bytes() - before;
    assert!(delta < 200_000, "only what is new travels: {delta} bytes");
    assert_eq!(names(&desktop), ["notes", "notes-2"], "a new container each time, named like the original");
    assert_eq!(states(&desktop, "notes")[0], early, "it begins in the very state");

    let back = save(&desktop, "notes");
    assert_eq!(proceed(&laptop, &back, "cat 3; sha256sum < large | cmp - sum && echo whole").ok().stdout, "three\nwhole\n");
    assert_eq!(names(&laptop), ["notes", "notes-2"]);
}

#[test]
fn a_state_is_its_content_and_nothing_else() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (one, other) = (Home::new(registry.url()), Home::new(registry.url()));
    publish(&one);
    let write = "umask 022; echo same > file; mkdir dir; touch -d @5 file dir .";
    run(&one, "a", write).ok();
    run(&other, "b", write).ok();
    let taken = states(&one, "a");
    assert_eq!(taken.len(), 2, "at the start and at the end");
    assert_eq!(taken, states(&other, "b"), "equal containers have equal states, whatever they are called");
    // A run that changes nothing ends in the state in which it began, and a start adds none.
    run(&one, "a", "cat file > /dev/null").ok();
    assert_eq!(states(&one, "a"), taken);
    run(&one, "a", "echo more > more; rm more; touch -d @5 .").ok();
    assert_eq!(states(&one, "a"), taken);
    // Gone on from and ended without a change: the same state again.
    proceed(&other, &taken[1][3..], "true").ok();
    assert_eq!(states(&other, "b-2"), [taken[1].clone()]);
    run(&one, "a", "chmod 600 file").ok();
    assert_eq!(states(&one, "a").len(), 3);
    // Temporary containers have no states, and cost none.
    one.turbo(["try", "tools/app", "--", "echo x > x"]).ok();
    assert_eq!(one.turbo(["states", "--local", "--format", "json"]).ok().json()["result"].as_array().unwrap().len(), 3);
}

#[test]
fn any_state_can_be_gone_on_from_and_forks_diverge() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    publish(&home);
    for day in 1..=3 {
        run(&home, "diary", &format!("echo day {day} > {day}")).ok();
    }
    let taken = states(&home, "diary");
    assert_eq!(taken.len(), 4);
    let (left, right) = (home.turbo(["continue", &taken[2], "--name", "left", "--", "echo left > x; ls"]), proceed(&home, &taken[2], "echo right > x; ls"));
    assert_eq!((&*left.ok().stdout, &*right.ok().stdout), ("0\n1\n2\nx\n", "0\n1\n2\nx\n"));
    assert_eq!(run(&home, "diary", "ls; cat x").stdout, "0\n1\n2\n3\n", "the original stays as it is");
    assert_eq!(home.turbo(["start", "left", "--", "cat x"]).ok().stdout, "left\n");
    assert_eq!(home.turbo(["start", "diary-2", "--", "cat x"]).ok().stdout, "right\n");
    let (left, right) = (states(&home, "left"), states(&home, "diary-2"));
    assert_eq!(left[0], right[0]);
    assert_ne!(left.last(), right.last());
    // A container stands for its newest state.
    assert_eq!(home.turbo(["continue", "left", "--name", "third", "--", "cat x"]).ok().stdout, "left\n");
    assert_eq!(states(&home, "third"), [left.last().unwrap().clone()]);
    // A name that is taken is not replaced, and a failed launch leaves no container.
    let taken_name = home.turbo(["continue", "left", "--name", "third", "--", "true"]);
    assert_eq!(taken_name.code, Some(125));
    let before = names(&home);
    assert_eq!(home.turbo(["continue", "left", "--startup-file", "/no/such/program"]).code, Some(127));
    assert_eq!(names(&home), before);
}

#[test]
fn what_a_state_does_not_have() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (laptop, desktop) = (Home::new(registry.url()), Home::new(registry.url()));
    publish(&laptop);
    let shared = laptop.file("shared/inside", "host").parent().unwrap().to_owned();
    let home = laptop.path().to_str().unwrap();
    let command = format!("echo on the host > /opt/shared/new; mkdir -p {home}/.cache/x; echo local > {home}/.cache/x/y; echo kept > {home}/kept");
    let mount = format!("{}=/opt/shared", shared.display());
    laptop.turbo(["run", "--name", "c", "--mount", &mount, "tools/app", "--", &command]).ok();
    assert_eq!(std::fs::read_to_string(shared.join("new")).unwrap(), "on the host\n");
    assert_eq!(run(&laptop, "c", &format!("cat {home}/.cache/x/y")).ok().stdout, "local\n", "it lasts here");
    let state = save(&laptop, "c");
    let look = format!("test -e /opt/shared || echo no mount; ls -a {home} | grep -c cache; cat {home}/kept");
    assert_eq!(proceed(&desktop, &state, &look).stdout, "no mount\n0\nkept\n");
}

#[test]
fn states_are_taken_and_saved_whatever_the_exit_code() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (laptop, desktop) = (Home::new(registry.url()), Home::new(registry.url()));
    publish(&laptop);
    let failed = laptop.turbo(["run", "--name", "c", "--enable-sync", "tools/app", "--", "echo crashed > log; exit 7"]);
    assert_eq!((failed.code, &*failed.stderr), (Some(7), ""));
    let state = states(&laptop, "c").pop().unwrap();
    assert_eq!(proceed(&desktop, &state, "cat log").ok().stdout, "crashed\n");
    let killed = laptop.turbo(["run", "--name", "c", "--enable-sync", "tools/app", "--", "echo more >> log; kill -9 $$"]);
    assert_eq!(killed.code, Some(137));
    assert_eq!(proceed(&desktop, &states(&laptop, "c").pop().unwrap(), "cat log").ok().stdout, "crashed\nmore\n");
    // Not asked for: not saved.
    run(&laptop, "c", "echo private >> log").ok();
    assert_eq!(proceed(&desktop, &states(&laptop, "c").pop().unwrap(), "cat log").code, Some(125));
    let listed = laptop.turbo(["states", "c", "--format", "json"]).ok().json();
    let saved: Vec<bool> = listed["result"].as_array().unwrap().iter().map(|row| row["visibility"] == "private").collect();
    assert_eq!(saved.iter().filter(|saved| **saved).count(), 2, "{listed}");
    // A registry that is gone, a store that takes nothing: warnings; the exit code comes through, and nothing is lost.
    drop(registry);
    let unsaved = laptop.turbo(["run", "--name", "c", "--enable-sync", "tools/app", "--", "echo alone >> log; exit 3"]);
    assert_eq!(unsaved.code, Some(3));
    assert!(unsaved.stderr.contains("turbo save c"), "{}", unsaved.stderr);
    let packs = laptop.store().join("packs");
    let set = |mode| std::fs::set_permissions(laptop.store().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    set(0o500);
    let full = run(&laptop, "c", "echo kept >> log; exit 4");
    set(0o700);
    assert_eq!(full.code, Some(4), "{} {}", packs.display(), full.stderr);
    assert!(full.stderr.contains("captured at the next start"), "{}", full.stderr);
    let count = states(&laptop, "c").len();
    assert_eq!(run(&laptop, "c", "tail -n 1 log").ok().stdout, "kept\n");
    assert_eq!(states(&laptop, "c").len(), count + 1, "caught up with at the start");
}

#[test]
fn a_container_that_runs_is_saved_as_it_is() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (laptop, desktop) = (Home::new(registry.url()), Home::new(registry.url()));
    publish(&laptop);
    // Each file is always whole: what a state has of them tells whether it is of one moment.
    let command = "n=0; while true; do n=$((n+1)); echo $n > t; mv t count; echo $n > t; mv t again; done";
    laptop.turbo(["run", "--name", "busy", "-d", "tools/app", "--", command]).ok();
    eventually("it writes", || container_folder(&laptop, "busy").join("sandbox/upper/opt/app/data/again").exists());
    let mut last = 0;
    for _ in 0..3 {
        let state = save(&laptop, "busy");
        let found = proceed(&desktop, &state, "cat count again").ok().stdout;
        let numbers: Vec<u64> = found.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers.len() == 2 && (numbers[0] == numbers[1] || numbers[0] == numbers[1] + 1), "one moment: {found}");
        assert!(numbers[0] > last, "it went on in between");
        last = numbers[0];
    }
    assert_eq!(laptop.turbo(["continue", "busy"]).code, Some(125), "what runs is saved first");
    let stopped = laptop.turbo(["stop", "busy", "--time", "1"]).ok();
    let taken = states(&laptop, "busy");
    assert_eq!(taken.len(), 5, "start, three saves, stop");
    assert!(stopped.stdout.contains(taken.last().unwrap()) && stopped.stderr.contains("turbo continue"), "{stopped:?}");
}

#[test]
fn states_are_private_unless_public() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (alice, bob) = (Home::new(registry.url()), Home::new(registry.url()));
    publish(&alice);
    run(&alice, "c", "echo secret > s").ok();
    let as_user = |home: &Home, token: &str, args: &[&str]| Outcome::from(home.command(args).env("TURBO_TOKEN", token).output().unwrap());
    let state = as_user(&alice, "alice", &["save", "c"]).ok().stdout.trim().to_owned();
    for prefix in [&state[..], &state[3..], &state[3..11]] {
        for other in ["bob", ""] {
            let refused = as_user(&bob, other, &["continue", prefix, "--", "cat s"]);
            assert_eq!((refused.code, &*refused.stdout), (Some(125), ""), "{other:?} {prefix}");
        }
    }
    let listed = |token: &str, args: &[&str]| as_user(&bob, token, &[&["states", "--format", "json"], args].concat()).ok().json()["result"].clone();
    assert_eq!(listed("bob", &["--public"]), serde_json::json!([]));
    assert_eq!(listed("alice", &[])[0]["state"], *state);
    assert!(!std::fs::read_dir(bob.store().join("states")).unwrap().any(|_| true), "nothing of it came here");
    assert_eq!(as_user(&bob, "alice", &["continue", &state[3..11], "--", "cat s"]).ok().stdout, "secret\n", "another machine of the same user");

    as_user(&alice, "alice", &["save", "c", "--public"]).ok();
    let carol = Home::new(registry.url());
    assert_eq!(as_user(&carol, "carol", &["continue", &state[3..11], "--", "cat s"]).ok().stdout, "secret\n");
    assert_eq!(listed("bob", &["--public"])[0]["visibility"], "public");
}

#[test]
fn without_a_network_what_is_here_goes_on() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    publish(&home);
    run(&home, "c", "echo here > s").ok();
    let state = states(&home, "c").pop().unwrap();
    // Whoever continues finds it in the store, also if its container is gone.
    home.turbo(["rm", "c"]).ok();
    drop(registry);
    let began = Instant::now();
    assert_eq!(home.turbo(["continue", "--offline", &state[3..9], "--", "cat s"]).ok().stdout, "here\n");
    assert!(began.elapsed() < Duration::from_secs(15), "nothing waited for the registry");
    assert_eq!(proceed(&home, &state, "cat s").ok().stdout, "here\n");
    let unknown = home.turbo(["continue", "--offline", "0123456789"]);
    assert!(unknown.code == Some(125) && unknown.stderr.contains("--offline"), "{unknown:?}");
    for (text, said) in [("01234", "digits"), ("no-such", "turbo states"), ("zzzzzzzz", "no container")] {
        let refused = home.turbo(["continue", text]);
        assert!(refused.code == Some(125) && refused.stderr.contains(said), "{refused:?}");
    }
    // With its containers goes what only they needed.
    home.turbo(["rm", "--all"]).ok();
    let gone = home.turbo(["gc", "--format", "json"]).ok().json();
    assert!(gone["result"]["forgotten_states"].as_u64().unwrap() >= 2, "{gone}");
    assert_eq!(home.turbo(["continue", "--offline", &state]).code, Some(125));
    home.turbo(["verify"]).ok();
}

#[test]
fn a_save_without_its_images_on_the_registry_says_what_to_push() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    publish(&home);
    home.file("app/data/0", "a new version\n");
    let folder = home.path().join("app");
    let import = ["import", "dir", folder.to_str().unwrap(), "--at", "/opt/app", "--name", "tools/app:1.0", "--startup-file", "/bin/sh /opt/app/main.sh"];
    home.turbo(import).ok();
    home.turbo(["run", "--name", "c", "tools/app:1.0", "--", "echo x > x"]).ok();
    let refused = home.turbo(["save", "c"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("turbo push tools/app:1.0"), "{refused:?}");
    home.turbo(["push", "tools/app:1.0"]).ok();
    let state = save(&home, "c");
    assert_eq!(proceed(&Home::new(registry.url()), &state, "cat 0 x").ok().stdout, "a new version\nx\n");
}

/// Says that a container's sandbox may differ from its newest state, as a crash leaves it.
fn soil(home: &Home, name: &str) {
    let path = container_folder(home, name).join("container.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"dirty\": false"));
    std::fs::write(&path, text.replace("\"dirty\": false", "\"dirty\": true")).unwrap();
}

fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_capture_that_is_killed_anywhere_loses_nothing() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    publish(&home);
    run(&home, "c", "echo old > old").ok();
    let old = states(&home, "c").pop().unwrap();
    // Enough work for a capture to be met at many points, with files and folders that it has to open up.
    let many = "for d in $(seq 40); do mkdir d$d; for n in $(seq 25); do echo $d $n > d$d/$n; done; done; head -c 8000000 /dev/urandom > large; \
                echo locked > locked; chmod 0 locked; chmod 300 d7; chmod 0 d8; chmod 200 d9/9";
    run(&home, "c", many).ok();
    let newest = states(&home, "c").pop().unwrap();
    let index = container_folder(&home, "c").join("capture.index");
    let capture = || home.command(["commit", "c", "scratch/c", "--no-base", "--overwrite"]);
    soil(&home, "c");
    std::fs::remove_file(&index).unwrap();
    let began = Instant::now();
    assert!(spawn(capture()).wait().unwrap().success());
    let whole = began.elapsed();
    for round in 0..30u32 {
        soil(&home, "c");
        let _ = std::fs::remove_file(&index);
        let mut child = spawn(capture());
        std::thread::sleep(whole * round / 28);
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever it left: the next one finds the same content, bits included, and the old state is whole.
        if round % 5 == 0 {
            assert_eq!(proceed(&home, &old, "cat old; ls").ok().stdout, "old\n0\nold\n");
        }
        let done = std::fs::read_to_string(container_folder(&home, "c").join("container.json")).unwrap().contains("\"dirty\": false");
        if !done {
            home.turbo(["commit", "c", "scratch/c", "--no-base", "--overwrite"]).ok();
        }
        assert_eq!(states(&home, "c").pop().unwrap(), newest, "round {round}");
    }
    assert_eq!(run(&home, "c", "stat -c %a locked d7 d8 d9/9").ok().stdout, "0\n300\n0\n200\n");
    home.turbo(["verify"]).ok();
}

#[test]
fn a_turbo_that_is_killed_loses_neither_sandbox_nor_states() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    publish(&home);
    run(&home, "c", "echo old > old").ok();
    let before = states(&home, "c");
    let mut child = spawn(home.command(["run", "--name", "c", "tools/app", "--", "echo new > new; sync; sleep 1000"]));
    let written = container_folder(&home, "c").join("sandbox/upper/opt/app/data/new");
    eventually("it writes", || std::fs::read_to_string(&written).is_ok_and(|text| text == "new\n"));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the VM is over", || home.turbo(["start", "c", "--", "cat old new"]).stdout == "old\nnew\n");
    let after = states(&home, "c");
    assert_eq!(after[..before.len()], before, "older states are as they were");
    assert_eq!(after.len(), before.len() + 1, "the crash's state was taken at the start");
    assert_eq!(proceed(&home, before.last().unwrap(), "ls").ok().stdout, "0\nold\n");
}

#[test]
fn a_container_becomes_an_image() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    publish(&home);
    home.turbo(["run", "--name", "c", "-e", "FLAVOUR=sweet", "--isolate", "write-copy", "tools/app", "--", "echo new > new; rm 0; chmod +x new"]).ok();
    home.turbo(["commit", "c", "mine/app:2", "-e", "SIZE=large", "--meta", "title=Mine", "--trigger", "list=/bin/ls /opt/app/data"]).ok();
    let other = Home::new(registry.url());
    home.turbo(["push", "mine/app:2"]).ok();
    let ran = other.turbo(["run", "mine/app:2", "--", "ls; cat new; echo $FLAVOUR $SIZE"]).ok();
    assert_eq!(ran.stdout, "new\nnew\nsweet large\n", "self-contained: images, what was written, variables");
    assert_eq!(other.turbo(["try", "--trigger", "list", "mine/app:2"]).ok().stdout, "new\n");
    let inspect = |name: &str| home.turbo(["inspect", name, "--format", "json"]).ok().json()["result"]["manifest"].clone();
    let manifest = inspect("mine/app:2");
    assert!(manifest["metadata"]["title"] == "Mine" && manifest["metadata"]["bases"].as_str().unwrap().contains("tools/app@b3:"), "{manifest}");
    assert_eq!(manifest["dependencies"], Value::Null);

    let exists = home.turbo(["commit", "c", "mine/app:2"]);
    assert!(exists.code == Some(125) && exists.stderr.contains("--overwrite"), "{exists:?}");
    home.turbo(["commit", "c", "mine/app:2", "--overwrite", "--startup-file", "/bin/cat /opt/app/data/new"]).ok();
    assert_eq!(home.turbo(["try", "mine/app:2"]).ok().stdout, "new\n");

    home.turbo(["commit", "c", "mine/delta:1", "--no-base"]).ok();
    let delta = inspect("mine/delta:1");
    assert_eq!(delta["layers"].as_array().unwrap().len(), 1, "only what was written");
    let base = home.turbo(["images", "--format", "json"]).ok().json()["result"]
        .as_array()
        .unwrap()
        .iter()
        .find(|image| image["name"].as_str().unwrap().starts_with("tools/app"))
        .unwrap()["digest"]
        .clone();
    assert_eq!(
        delta["dependencies"],
        serde_json::json!([{"reference": "tools/app:head", "digest": base}]).as_array().map_or(Value::Null, |list| {
            let mut list = list.clone();
            list[0]["reference"] = delta["dependencies"][0]["reference"].clone();
            Value::Array(list)
        })
    );
    assert!(delta["dependencies"][0]["reference"].as_str().unwrap().starts_with("tools/app"));

    home.turbo(["start", "-d", "c", "--", "sleep 1000"]).ok();
    let running = home.turbo(["commit", "c", "mine/app:3"]);
    assert!(running.code == Some(125) && running.stderr.contains("turbo stop c"), "{running:?}");
    home.turbo(["stop", "c", "--time", "1"]).ok();
    for bad in [&["--working-dir", "relative"][..], &["--trigger", "x"], &["--meta", "=x"], &["-e", "=x"], &["--startup-file", "'open"]] {
        assert_eq!(home.turbo([&["commit", "c", "mine/bad"], bad].concat()).code, Some(2), "{bad:?}");
    }
}

#[test]
fn no_sync_paths_and_images_on_top_stay_behind_and_a_delta_finds_its_base() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let (laptop, desktop) = (Home::new(registry.url()), Home::new(registry.url()));
    publish(&laptop);
    let settings = laptop.file("settings/keep", "").parent().unwrap().to_owned();
    let import = ["import", "dir", settings.to_str().unwrap(), "--at", "/opt/app/local", "--name", "tools/local:1"];
    laptop.turbo([&import[..], &["--attribute", "/opt/app/local=no-sync"]].concat()).ok();
    laptop.turbo(["push", "tools/local:1"]).ok();
    let tool = laptop.file("tool/tool", "on top").parent().unwrap().to_owned();
    laptop.turbo(["import", "dir", tool.to_str().unwrap(), "--at", "/opt/tool", "--name", "tools/tool:1"]).ok();
    let write = "cat /opt/tool/tool; echo here > ../local/mine; echo everywhere > ours";
    let images = "tools/app,tools/local";
    assert_eq!(laptop.turbo(["run", "--name", "c", "--using", "tools/tool", images, "--", write]).ok().stdout, "on top");
    // The registry has never seen the image on top, and does not need to.
    let state = save(&laptop, "c");
    let look = "cat ours; ls ../local; test -e /opt/tool || echo no tool";
    assert_eq!(proceed(&desktop, &state, look).stdout, "everywhere\nkeep\nno tool\n");
    assert_eq!(laptop.turbo(["start", "c", "--", "cat ../local/mine"]).ok().stdout, "here\n", "it lasts here");
    laptop.turbo(["commit", "c", "tools/delta:1", "--no-base"]).ok();
    laptop.turbo(["push", "tools/delta:1"]).ok();
    let elsewhere = Home::new(registry.url());
    let outcome = elsewhere.turbo(["run", "tools/delta:1", "--", look]);
    assert_eq!(outcome.stdout, "everywhere\nkeep\nno tool\n", "{}", outcome.stderr);
}
