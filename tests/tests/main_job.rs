//! The main job, end to end, as an ordinary user types it: real binaries, a real registry, real programs.

use std::path::Path;

use integration_tests::turbo::{can_run, own};
use integration_tests::{Home, TestRegistry, rootfs};
use serde_json::Value;

/// A folder with a script and data, as a developer would have it.
fn application(home: &Home) -> std::path::PathBuf {
    home.file("app/main.sh", "#!/bin/sh\necho \"hello $1\"\ncat /opt/app/lib/*.py /opt/app/data.bin | wc -c\n");
    let data: Vec<u8> = (0..600_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    home.file("app/data.bin", data);
    for n in 0..200 {
        home.file(&format!("app/lib/module{n}.py"), format!("# module {n}\n").repeat(n + 1));
    }
    home.path().join("app")
}

fn import_app(home: &Home, folder: &Path) -> Value {
    let arguments = [
        "import",
        "dir",
        folder.to_str().unwrap(),
        "--at",
        "/opt/app",
        "--name",
        "tools/app:1.0",
        "--startup-file",
        "/bin/sh /opt/app/main.sh",
        "--format",
        "json",
    ];
    home.turbo(arguments).ok().json()
}

/// A root filesystem of this machine's own programs, owned by the ordinary user.
fn root(home: &Home) -> std::path::PathBuf {
    let root = home.path().join("root");
    rootfs::build(&root, &["sh", "cat", "ls", "wc", "sleep", "touch", "id", "mkdir", "rm"]);
    for path in walk(&root) {
        own(&path);
    }
    home.give_away(&root);
    root
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut at = 0;
    while at < found.len() {
        if found[at].is_dir() && !found[at].is_symlink() {
            let inside: Vec<_> = std::fs::read_dir(&found[at]).unwrap().map(|entry| entry.unwrap().path()).filter(|path| !path.is_symlink()).collect();
            found.extend(inside);
        }
        at += 1;
    }
    found
}

#[test]
fn push_sends_what_the_registry_lacks_and_pull_fetches_what_is_not_here() {
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    let folder = application(&developer);
    let first = import_app(&developer, &folder);
    let again = import_app(&developer, &folder);
    assert_eq!(first["result"]["digest"], again["result"]["digest"], "the same tree gives the same digest");
    assert_eq!(again["result"]["stored_bytes"], 0, "and stores nothing");

    let pushed = developer.turbo(["push", "tools/app:1.0", "--format", "json"]).ok().json();
    assert!(pushed["result"]["objects"].as_u64().unwrap() > 100, "{pushed}");
    let again = developer.turbo(["push", "tools/app:1.0", "--format", "json"]).ok().json();
    assert_eq!(again["result"]["objects"], 0, "{again}");

    developer.file("app/lib/module7.py", "changed = True\n");
    let changed = import_app(&developer, &folder);
    assert_ne!(first["result"]["digest"], changed["result"]["digest"]);
    let pushed = developer.turbo(["push", "tools/app:1.0", "--format", "json"]).ok().json();
    assert!((1..=8).contains(&pushed["result"]["objects"].as_u64().unwrap()), "a small change sends few objects: {pushed}");

    let user = Home::new(registry.url());
    let pulled = user.turbo(["pull", "tools/app:1.0", "--format", "json"]).ok().json();
    assert!(pulled["result"][0]["objects"].as_u64().unwrap() > 100, "{pulled}");
    let again = user.turbo(["pull", "tools/app:1.0", "--format", "json"]).ok().json();
    assert_eq!(again["result"][0]["objects"], 0, "{again}");
    let images = user.turbo(["images", "--format", "json"]).ok().json();
    assert_eq!(images["result"][0]["name"], "tools/app:1.0");
    assert_eq!(images["result"][0]["digest"], changed["result"]["digest"]);

    let archive = user.path().join("out.tar");
    user.turbo(["export", "tools/app:1.0", archive.to_str().unwrap()]).ok();
    let copy = Home::new(registry.url());
    let imported = copy.turbo(["import", "tar", archive.to_str().unwrap(), "--name", "copy/app:1.0", "--format", "json"]).ok().json();
    assert_eq!(imported["result"]["entries"], changed["result"]["entries"]);
    let root_of = |home: &Home, name: &str| home.turbo(["inspect", name, "--format", "json"]).ok().json()["result"]["layers"][0]["root"].clone();
    assert_eq!(root_of(&copy, "copy/app:1.0"), root_of(&developer, "tools/app:1.0"), "export gives back what went in");
    user.turbo(["verify"]).ok();
}

#[test]
fn an_image_that_was_never_pulled_starts_learns_and_starts_better() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    let folder = application(&developer);
    import_app(&developer, &folder);
    developer.turbo(["push", "tools/app:1.0"]).ok();

    let run = |home: &Home| {
        let stats = home.path().join("stats.json");
        let outcome = home.turbo(["run", "--temp", "--stats", stats.to_str().unwrap(), "tools/app", "--", "world"]).ok();
        assert_eq!(outcome.stdout, "hello world\n2656195\n");
        serde_json::from_slice::<Value>(&std::fs::read(stats).unwrap()).unwrap()
    };
    let first = Home::new(registry.url());
    let without = run(&first);
    assert!(without["demand_misses"].as_u64().unwrap() > 0, "{without}");
    let images = first.turbo(["images", "--format", "json"]).ok().json();
    assert_eq!(images["result"][0]["complete"], false, "not all of it travelled: {images}");

    // The registry merges traces in the background; the model is there soon.
    integration_tests::turbo::eventually("the model is there", || first.turbo(["profile", "show", "tools/app", "--format", "json"]).code == Some(0));
    let other = Home::new(registry.url());
    let with = run(&other);
    assert!(with["bytes_prefetched"].as_u64().unwrap() > 0, "{with}");
    assert!(with["demand_requests"].as_u64().unwrap() < without["demand_requests"].as_u64().unwrap(), "without: {without}\nwith: {with}");

    let warm = run(&other);
    assert_eq!(warm["bytes_fetched"], 0, "all is local: {warm}");
}

#[test]
fn two_images_stack_and_a_root_filesystem_hides_the_host() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    let folder = application(&developer);
    import_app(&developer, &folder);
    let base = root(&developer);
    developer.turbo(["import", "dir", base.to_str().unwrap(), "--name", "base/small:12"]).ok();
    developer.turbo(["push", "tools/app:1.0"]).ok();
    developer.turbo(["push", "base/small:12"]).ok();

    let user = Home::new(registry.url());
    let outcome = user.turbo(["run", "base/small:12,tools/app", "--", "both"]).ok();
    assert_eq!(outcome.stdout, "hello both\n2656195\n");
    let inside = user.turbo(["run", "--temp", "base/small:12", "--", "-c", "ls /; ls /home /sys/fuse 2>/dev/null; echo done"]).ok();
    assert!(inside.stdout.contains("usr") && !inside.stdout.contains("home"), "the host is hidden: {}", inside.stdout);
    assert!(inside.stdout.ends_with("done\n"));
}

#[test]
fn writes_stay_in_the_sandbox_of_the_container() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    home.file("app/seed", "from the image\n");
    let folder = home.path().join("app");
    home.turbo(["import", "dir", folder.to_str().unwrap(), "--at", "/opt/app", "--name", "write/test", "--startup-file", "/bin/sh"]).ok();
    let on_host = home.file("host.txt", "host\n");
    let path = on_host.to_str().unwrap();
    let run = |name: &str, script: &str| home.turbo(["run", "--name", name, "write/test", "--", "-c", script]).ok().stdout;
    assert_eq!(run("one", &format!("echo changed > {path}; rm /opt/app/seed; echo new > /opt/app/new; cat {path}")), "changed\n");
    assert_eq!(std::fs::read_to_string(&on_host).unwrap(), "host\n", "write-copy never writes the host");
    assert_eq!(run("one", &format!("cat {path} /opt/app/new; ls /opt/app")), "changed\nnew\nnew\n", "the container remembers");
    assert_eq!(run("two", &format!("cat {path} /opt/app/seed")), "host\nfrom the image\n", "another container does not");
    let sessions = home.turbo(["sessions", "--format", "json"]).ok().json();
    assert_eq!(sessions["result"].as_array().unwrap().len(), 2);
    home.turbo(["rm", "one", "two"]).ok();
    assert_eq!(home.turbo(["sessions", "--format", "json"]).ok().json()["result"].as_array().unwrap().len(), 0);
}

#[test]
fn options_of_a_run() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    home.file("app/seed", "x");
    let folder = home.path().join("app");
    home.turbo([
        "import",
        "dir",
        folder.to_str().unwrap(),
        "--at",
        "/opt/app",
        "--name",
        "opt/test",
        "--startup-file",
        "/bin/sh",
        "--env",
        "FROM_IMAGE=yes",
        "--working-dir",
        "/opt/app",
    ])
    .ok();
    let run = |options: &[&str], script: &str| home.turbo([&["run", "--temp"], options, &["opt/test", "--", "-c", script]].concat());
    assert_eq!(run(&[], "echo $FROM_IMAGE; pwd").ok().stdout, "yes\n/opt/app\n");
    assert_eq!(run(&["-e", "FROM_IMAGE=cli", "-w", "/tmp"], "echo $FROM_IMAGE; pwd").ok().stdout, "cli\n/tmp\n");
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
        assert_eq!(run(&[], script).code, Some(code), "{script}");
    }
    assert_eq!(home.turbo(["run", "--temp", "--startup-file", "/no/such/program", "opt/test"]).code, Some(127));
    assert_eq!(home.turbo(["run", "--temp", "--startup-file", "/opt/app/seed", "opt/test"]).code, Some(126));
    let shared = home.file("shared/file", "shared\n");
    let mount = format!("{}=/mnt/here", shared.parent().unwrap().display());
    assert_eq!(run(&["--mount", &mount], "cat /mnt/here/file; echo back > /mnt/here/file").ok().stdout, "shared\n");
    assert_eq!(std::fs::read_to_string(&shared).unwrap(), "back\n", "a mount is a hole to the host");

    let detached = home.turbo(["run", "-d", "--name", "background", "opt/test", "--", "-c", "echo out; echo err >&2; exit 3"]).ok();
    assert_eq!(detached.stdout.trim().len(), 32, "{}", detached.stdout);
    integration_tests::turbo::eventually("the detached container ends", || {
        let sessions = home.turbo(["sessions", "--format", "json"]).ok().json();
        sessions["result"].as_array().unwrap().iter().any(|session| session["name"] == "background" && session["exit_code"] == 3)
    });
    let logs = home.turbo(["logs", "background"]).ok();
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn a_complete_image_needs_no_registry() {
    if !can_run() {
        return;
    }
    let mut registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    let folder = application(&developer);
    import_app(&developer, &folder);
    developer.turbo(["push", "tools/app:1.0"]).ok();
    let user = Home::new(registry.url());
    user.turbo(["pull", "tools/app:1.0"]).ok();
    registry.kill();
    let outcome = user.turbo(["run", "tools/app:1.0", "--", "offline"]).ok();
    assert_eq!(outcome.stdout, "hello offline\n2656195\n");
}

#[test]
fn a_detached_run_returns_at_once_and_leaks_nothing() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    home.file("app/seed", "x");
    let folder = home.path().join("app");
    home.turbo(["import", "dir", folder.to_str().unwrap(), "--at", "/opt/app", "--name", "d/test", "--startup-file", "/bin/sh"]).ok();
    let gate = home.path().join("gate");
    std::fs::create_dir(&gate).unwrap();
    home.give_away(&gate);
    let mount = gate.display().to_string();
    let script = format!("ls -l /proc/self/fd; while [ ! -e {mount}/open ]; do sleep 0.05; done");
    home.turbo(["run", "-dn", "waits", "--mount", &mount, "d/test", "--", "-c", &script]).ok();
    let session = || home.turbo(["sessions", "--format", "json"]).ok().json()["result"][0].clone();
    assert_eq!(session()["running"], true, "it waits for us, so it must still run");
    std::fs::write(gate.join("open"), "").unwrap();
    integration_tests::turbo::eventually("it ends", || session()["running"] == false);
    let logs = home.turbo(["logs", "waits"]).ok();
    // What this test itself was given, say by a build tool, is inherited all the way; a pipe of turbo's is not.
    let own: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|link| link.display().to_string())
        .collect();
    let leaked: Vec<&str> = logs
        .stdout
        .lines()
        .filter_map(|line| line.split_once("-> "))
        .map(|(_, link)| link)
        .filter(|link| link.starts_with("pipe:") && !own.iter().any(|known| known == link))
        .collect();
    assert!(leaked.is_empty(), "{leaked:?} of {}", logs.stdout);
}

#[test]
fn launches_at_once_have_containers_of_their_own() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    home.file("app/seed", "x");
    let folder = home.path().join("app");
    home.turbo(["import", "dir", folder.to_str().unwrap(), "--at", "/opt/app", "--name", "many/test", "--startup-file", "/bin/sh -c 'sleep 0.5'"]).ok();
    let children: Vec<_> = (0..6).map(|_| home.command(["run", "many/test"]).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let sessions = home.turbo(["sessions", "--format", "json"]).ok().json();
    let mut names: Vec<_> = sessions["result"].as_array().unwrap().iter().map(|session| session["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "{names:?}");
}

#[test]
fn the_applications_exit_code_comes_through_and_a_bad_stats_file_is_known_before() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    home.file("app/seed", "x");
    let folder = home.path().join("app");
    home.turbo(["import", "dir", folder.to_str().unwrap(), "--at", "/opt/app", "--name", "code/test", "--startup-file", "/bin/sh -c 'echo ran; exit 7'"]).ok();
    let bad = home.turbo(["run", "--stats", "/no/such/folder/stats.json", "code/test"]);
    assert_eq!((bad.code, bad.stdout.as_str()), (Some(125), ""), "{}", bad.stderr);
    let traces = home.store().join("traces");
    std::fs::write(&traces, "in the way").unwrap();
    assert_eq!(home.turbo(["run", "code/test"]).code, Some(7));
}

#[test]
fn a_complete_image_does_not_wait_for_a_registry_that_is_silent() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    let folder = application(&developer);
    import_app(&developer, &folder);
    // Accepts connections and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    let stats = developer.path().join("silent.json");
    let mut command = developer.command(["run", "--temp", "--stats", stats.to_str().unwrap(), "tools/app:1.0", "--", "alone"]);
    let outcome = integration_tests::Outcome::from(command.env("TURBO_HUB", silent).output().unwrap()).ok();
    assert_eq!(outcome.stdout, "hello alone\n2656195\n");
    let stats: Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    assert_eq!(stats["requests"], 0, "{stats}");
    // Nobody waited until its trace was taken; it is sent when the registry can be reached.
    let waiting = || std::fs::read_dir(developer.store().join("traces/outbox")).unwrap().flatten().filter(|entry| entry.path().extension().is_some()).count();
    assert_eq!(waiting(), 1);
    let learned = || developer.turbo(["profile", "show", "tools/app", "--format", "json"]).code == Some(0);
    assert!(!learned());
    drop(listener);
    developer.turbo(["push", "tools/app:1.0"]).ok();
    let address =
        std::fs::read_dir(developer.store().join("traces/outbox")).unwrap().flatten().find(|entry| entry.path().extension().is_some()).unwrap().path();
    let content = std::fs::read(&address).unwrap();
    let line = content.iter().position(|byte| *byte == b'\n').unwrap();
    assert!(String::from_utf8_lossy(&content[..line]).contains("tools/app"));
    developer.turbo(["run", "--temp", "tools/app:1.0", "--", "alone"]).ok();
    integration_tests::turbo::eventually("the model is there", learned);
    assert_eq!(waiting(), 1, "what is meant for another registry waits");
}
