//! Stacks of images as a user runs them: dependencies, images on top for one run, groups, conditions, environment, rules.

use std::path::Path;

use integration_tests::turbo::can_run;
use integration_tests::{Home, Outcome, TestRegistry};
use serde_json::Value;

/// Imports a folder with these files, placed at `/opt/NAME` of the image, with further options.
fn import(home: &Home, image: &str, files: &[(&str, &str)], options: &[&str]) -> Value {
    let folder = format!("source/{}", image.replace(['/', ':'], "-"));
    for (name, content) in files {
        home.file(&format!("{folder}/{name}"), content);
    }
    let source = home.path().join(&folder);
    std::fs::create_dir_all(&source).unwrap();
    home.give_away(&source);
    let at = format!("/opt/{}", image.rsplit('/').next().unwrap().split(':').next().unwrap());
    let at = if options.contains(&"--at") { Vec::new() } else { vec!["--at", at.as_str()] };
    let fixed = ["import", "dir", source.to_str().unwrap(), "--name", image, "--format", "json"];
    home.turbo([&fixed[..], &at, options].concat()).ok().json()
}

fn run(home: &Home, arguments: &[&str]) -> Outcome {
    home.turbo([&["run"], arguments].concat())
}

fn inspect(home: &Home, images: &str) -> Value {
    home.turbo(["inspect", images, "--format", "json"]).ok().json()["result"].clone()
}

fn isolation_of<'a>(report: &'a Value, path: &str) -> &'a Value {
    report["isolation"].as_array().unwrap().iter().find(|rule| rule["path"] == path).unwrap_or(&Value::Null)
}

/// Whether an outcome is the VM's refusal of a mode that it cannot do.
fn is_refused(outcome: &Outcome) -> bool {
    let refused = outcome.code == Some(125) && outcome.stderr.contains("merge") && outcome.stderr.contains("not");
    if refused {
        eprintln!("skipped: this VM does not know the mode merge: {}", outcome.stderr);
    }
    refused
}

const SHOW: &str = "/bin/sh -c 'cat /opt/*/version; echo \"$PATH\"'";

#[test]
fn dependencies_are_stacked_below_streamed_and_kept_until_asked_otherwise() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    import(&developer, "tools/base:1", &[("version", "base 1\n")], &[]);
    for release in ["1.0", "1.2", "2.0"] {
        import(&developer, &format!("tools/lib:{release}"), &[("version", &format!("lib {release}\n"))], &["--dependency", "tools/base"]);
    }
    let options = ["--dependency", "tools/lib >=1 <2", "--env", "PATH=/opt/app", "--startup-file", SHOW];
    import(&developer, "tools/app:1", &[("version", "app 1\n")], &options);
    let refused = developer.turbo(["push", "tools/app:1"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("tools/lib (>=1 <2)") && refused.stderr.contains("--with-dependencies"), "{}", refused.stderr);
    let refused = developer.turbo(["push", "tools/lib:1.0"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("tools/base"), "{}", refused.stderr);
    let pushed = developer.turbo(["push", "tools/app:1", "--with-dependencies", "--format", "json"]).ok().json();
    let names: Vec<&str> = pushed["result"]["dependencies"].as_array().unwrap().iter().map(|image| image["image"].as_str().unwrap()).collect();
    assert_eq!(names, ["tools/base", "tools/lib:1.2"], "lowest first, and no more than is needed: {pushed}");
    developer.turbo(["push", "tools/lib:1.0"]).ok();
    developer.turbo(["push", "tools/app:1"]).ok();

    let user = Home::new(registry.url());
    let stats = user.path().join("stats.json");
    let shown = run(&user, &["--stats", stats.to_str().unwrap(), "tools/app:1"]).ok();
    assert!(shown.stdout.starts_with("app 1\nbase 1\nlib 1.2\n/opt/app:"), "{}", shown.stdout);
    let stats: Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
    let images: Vec<&str> = stats["images"].as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap()).collect();
    assert_eq!(images, ["tools/base", "tools/lib:1.2", "tools/app:1"], "lowest first");

    import(&developer, "tools/lib:1.3", &[("version", "lib 1.3\n")], &["--dependency", "tools/base"]);
    developer.turbo(["push", "tools/lib:1.3"]).ok();
    user.turbo(["pull", "tools/lib:1.3"]).ok();
    assert!(run(&user, &["tools/app:1"]).ok().stdout.contains("lib 1.2"), "a container keeps what it was started with");
    assert!(run(&user, &["--temp", "--name", "other", "tools/app:1"]).ok().stdout.contains("lib 1.3"), "a new one takes the newest");
    assert!(run(&user, &["--pull", "tools/app:1"]).ok().stdout.contains("lib 1.3"));
    assert!(run(&user, &["tools/app:1"]).ok().stdout.contains("lib 1.3"), "and that is kept from then on");

    let offline = Home::new(registry.url());
    let pulled = offline.turbo(["pull", "tools/app:1", "--format", "json"]).ok().json();
    let pulled: Vec<(&str, bool)> =
        pulled["result"].as_array().unwrap().iter().map(|image| (image["image"].as_str().unwrap(), image["dependency"].as_bool().unwrap())).collect();
    assert_eq!(pulled, [("tools/app:1", false), ("tools/base", true), ("tools/lib:1.3", true)]);
    assert!(run(&offline, &["--offline", "tools/app:1"]).ok().stdout.contains("lib 1.3"));
    let alone = Home::new(registry.url());
    alone.turbo(["pull", "--no-dependencies", "tools/app:1"]).ok();
    let outcome = run(&alone, &["--offline", "tools/app:1"]);
    assert!(outcome.code == Some(125) && outcome.stderr.contains("tools/lib (>=1 <2)"), "{}", outcome.stderr);
    assert_eq!(alone.turbo(["sessions", "--format", "json"]).ok().json()["result"], Value::Array(vec![]), "a launch that failed leaves no container");
}

#[test]
fn what_is_missing_or_not_met_is_listed_as_a_whole() {
    let home = Home::offline();
    import(&home, "a/app:1", &[], &["--dependency", "a/gone", "--dependency", "a/lib >=2", "--require", "kernel:>=2"]);
    import(&home, "a/lib:1", &[], &[]);
    let outcome = run(&home, &["--offline", "a/app:1"]);
    assert_eq!(outcome.code, Some(125));
    for part in ["a/gone, which a/app:1 needs", "a/lib (>=2), which a/app:1 needs", "there are: 1"] {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
    import(&home, "a/one:1", &[], &["--dependency", "a/two"]);
    import(&home, "a/two:1", &[], &["--dependency", "a/one"]);
    let outcome = run(&home, &["--offline", "a/one"]);
    assert!(outcome.code == Some(125) && outcome.stderr.contains("a/one → a/two → a/one"), "{}", outcome.stderr);
    import(&home, "a/needy:1", &[], &["--require", "kernel:>=99", "--require", "file:/no/such", "--require", "os:linux", "--require", "hair:brown"]);
    let outcome = run(&home, &["--offline", "a/needy"]);
    assert_eq!(outcome.code, Some(125));
    for part in ["kernel:>=99: this machine has ", "file:/no/such", "hair:brown: turbo does not know this key"] {
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
    }
    assert!(!outcome.stderr.contains("os:linux"), "{}", outcome.stderr);
}

#[test]
fn what_lies_on_top_for_one_run_is_gone_in_the_next() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    let command = "/bin/sh -c 'cat /opt/app/version /opt/tool/version 2>/dev/null; echo \"$TOOL\"; echo x >> /opt/tool-was-here'";
    import(&home, "a/app:1", &[("version", "app\n")], &["--startup-file", command]);
    import(&home, "a/tool:1", &[("version", "tool\n")], &["--env", "TOOL=yes", "--dependency", "a/debugger", "--startup-file", "/bin/false"]);
    import(&home, "a/debugger:1", &[("version", "debugger\n")], &[]);
    import(&home, "a/over:1", &[("version", "over\n")], &["--at", "/opt/app"]);
    let with = run(&home, &["--offline", "--using", "a/tool,a/over", "a/app"]).ok();
    assert_eq!(with.stdout, "over\ntool\nyes\n", "the last image wins, and the one that was named starts");
    let container = std::fs::read_dir(home.store().join("containers")).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let noted: Value = serde_json::from_slice(&std::fs::read(container.join("container.json")).unwrap()).unwrap();
    let stack: Vec<&str> = noted["stack"].as_array().unwrap().iter().map(|image| image["reference"].as_str().unwrap()).collect();
    assert_eq!(stack, ["a/app"], "neither --using nor what it needs is recorded");
    assert!(noted["stack"][0]["digest"].as_str().unwrap().starts_with("b3:"), "{noted}");
    let without = run(&home, &["--offline", "a/app"]);
    assert_eq!((without.stdout.as_str(), without.code), ("app\n\n", Some(0)), "{}", without.stderr);
}

#[test]
fn a_group_starts_together_and_ends_with_its_last() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    // Each waits for the other: neither can be the only one.
    let main = "both=/bin/sh -c 'echo main; while ! test -e /opt/app/beside; do sleep 0.01; done; touch /opt/app/main; exit 7'";
    let beside = "both=/bin/sh -c 'touch /opt/app/beside; while ! test -e /opt/app/main; do sleep 0.01; done; echo beside'";
    let options = [
        "--startup-file",
        "/bin/echo default",
        "--trigger",
        main,
        "--trigger",
        beside,
        "--trigger",
        "bad=/bin/true",
        "--trigger",
        "bad=/no/such",
        "--trigger",
        "short=/bin/true",
        "--trigger",
        "short=/bin/true",
    ];
    import(&home, "a/app:1", &[("file", "")], &options);
    import(&home, "a/settings:1", &[("file", "")], &[]);
    assert_eq!(run(&home, &["--offline", "a/settings,a/app"]).ok().stdout, "default\n");
    let group = run(&home, &["--offline", "--trigger", "both", "a/settings,a/app"]);
    assert_eq!((group.code, group.stdout.as_str()), (Some(7), "main\nbeside\n"), "{}", group.stderr);
    let bad = run(&home, &["--offline", "--trigger", "bad", "a/app"]);
    assert!(bad.code == Some(0) && bad.stderr.contains("/no/such cannot be started"), "{}", bad.stderr);
    // Two that end in the same moment.
    for _ in 0..30 {
        assert_eq!(run(&home, &["--offline", "--trigger", "short", "a/app"]).code, Some(0));
    }
    let none = run(&home, &["--offline", "--trigger", "none", "a/app"]);
    assert!(none.code == Some(125) && none.stderr.contains("both"), "{}", none.stderr);
    let told = run(&home, &["--offline", "-v", "a/settings,a/app"]).ok();
    assert!(told.stderr.contains("a/app decides"), "{}", told.stderr);
}

#[test]
fn layers_take_part_where_their_condition_holds() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    let always = ["--startup-file", "/bin/sh -c 'ls /opt; echo \"$FROM\"'"];
    import(&home, "a/app:1", &[("file", "")], &always);
    import(&home, "a/here:1", &[("file", "")], &["--condition", "os:linux and not file:/no/such", "--env", "FROM=here"]);
    let elsewhere = ["--condition", "not os:linux or kernel:>=99", "--env", "FROM=elsewhere", "--isolate", "/opt=hide"];
    import(&home, "a/elsewhere:1", &[("file", "")], &elsewhere);
    let outcome = run(&home, &["--offline", "a/app,a/here,a/elsewhere"]).ok();
    assert!(outcome.stdout.contains("here\n") && !outcome.stdout.contains("elsewhere"), "{}", outcome.stdout);
    let report = inspect(&home, "a/app,a/here,a/elsewhere");
    let takes_part: Vec<bool> = report["images"].as_array().unwrap().iter().map(|image| image["layers"][0]["takes_part"].as_bool().unwrap()).collect();
    assert_eq!(takes_part, [true, true, false]);
    assert_eq!(isolation_of(&report, "/opt"), &Value::Null, "its rules take no part either");
}

#[test]
fn variables_join_last_and_are_kept_out() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    let show = "/bin/sh -c 'echo \"$PATH|$LIST|$A|$SECRET|$PLAIN\"'";
    import(&home, "a/one:1", &[], &["--env", "PATH=/one", "--env-append", "LIST=1", "--env", "A=one", "--startup-file", show]);
    import(&home, "a/two:1", &[], &["--env", "PATH=/two", "--env-append", "LIST=2", "--env", "A=two", "--env-mode", "SECRET=full"]);
    import(&home, "a/three:1", &[], &["--env", "PATH=/three", "--env-prepend", "LIST=3"]);
    let run = |arguments: &[&str]| {
        let mut command = home.command([&["run", "--offline", "a/one,a/two,a/three"], arguments].concat());
        command.env("PATH", "/usr/bin:/bin").env("SECRET", "s").env("PLAIN", "p").env("LIST", "0");
        Outcome::from(command.output().unwrap()).ok().stdout
    };
    assert_eq!(run(&[]), "/three:/two:/one:/usr/bin:/bin|3:0:1:2|two||p\n");
    let file = home.file("variables", "# comment\nA=file\nPLAIN=file\n");
    let given = run(&["--env-file", file.to_str().unwrap(), "--env", "A=option"]);
    assert_eq!(given, "/three:/two:/one:/usr/bin:/bin|3:0:1:2|option||file\n", "the file first, then --env");
    assert_eq!(run(&[]), given, "and the container remembers both");
    assert_eq!(run(&["--env", "A=newer"]), "/three:/two:/one:/usr/bin:/bin|3:0:1:2|newer||file\n");
}

#[test]
fn a_container_remembers_its_startup_file_and_its_level() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    import(&home, "a/app:1", &[("file", "")], &["--startup-file", "/bin/echo image", "--trigger", "t=/bin/echo trigger"]);
    assert_eq!(run(&home, &["--offline", "--set-startup-file", "/bin/echo 'set by' hand", "a/app"]).ok().stdout, "set by hand\n");
    assert_eq!(run(&home, &["--offline", "a/app"]).ok().stdout, "set by hand\n");
    assert_eq!(run(&home, &["--offline", "--startup-file", "/bin/echo once", "a/app"]).ok().stdout, "once\n");
    assert_eq!(run(&home, &["--offline", "--trigger", "t", "a/app"]).ok().stdout, "trigger\n");
    assert_eq!(run(&home, &["--offline", "a/app", "--", "more"]).ok().stdout, "set by hand more\n");
    // Nothing of the host is there in full: its /bin/echo cannot be found.
    let full = run(&home, &["--offline", "--isolate", "full", "a/app"]);
    assert_eq!(full.code, Some(127), "{}", full.stderr);
    assert_eq!(run(&home, &["--offline", "a/app"]).code, Some(127), "the level is remembered");
    assert_eq!(run(&home, &["--offline", "--isolate", "write-copy", "a/app"]).ok().stdout, "set by hand\n");
    for wrong in ["hide", "full+write-copy", "nothing"] {
        let outcome = run(&home, &["--offline", "--isolate", wrong, "a/app"]);
        assert!(outcome.code == Some(2) && outcome.stderr.contains("full+merge-user"), "{wrong}: {}", outcome.stderr);
    }
}

#[test]
fn a_modifier_layer_never_starts_and_a_shell_does_where_nothing_is_stated() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    import(&home, "a/settings:1", &[("file", "x")], &["--env", "SETTINGS=yes"]);
    let outcome = run(&home, &["--offline", "a/settings", "--", "-c", "echo $SETTINGS from a shell"]).ok();
    assert_eq!(outcome.stdout, "yes from a shell\n");
    import(&home, "a/app:1", &[], &["--startup-file", "/bin/echo app"]);
    import(&home, "a/extension:1", &[("file", "x")], &["--dependency", "a/app"]);
    assert_eq!(run(&home, &["--offline", "a/extension"]).ok().stdout, "app\n", "a modifier layer starts what it modifies");
    assert_eq!(inspect(&home, "a/extension")["startup"]["image"], "a/app");
}

#[test]
fn inspect_tells_who_wins() {
    let home = Home::offline();
    let git = ["--at", "/opt/git", "--isolate", "/opt/git=full", "--startup-file", "/opt/git/git", "--env", "PATH=/opt/git"];
    import(&home, "git:2", &[("git", "#!/bin/sh\n"), ("shared", "of git"), ("same", "same")], &git);
    let nodejs =
        ["--at", "/opt/git", "--isolate", "/opt/git=merge", "--startup-file", "/opt/git/node", "--env", "PATH=/opt/nodejs", "--require", "kernel:>=99"];
    import(&home, "nodejs:20", &[("node", "#!/bin/sh\n"), ("shared", "of nodejs"), ("same", "same")], &nodejs);
    for (images, mode, other, first, last) in [("git,nodejs", "full", "merge", "git", "nodejs"), ("nodejs,git", "merge", "full", "nodejs", "git")] {
        let report = inspect(&home, images);
        let rule = isolation_of(&report, "/opt/git");
        assert_eq!((rule["mode"].as_str(), rule["stated_by"].as_str()), (Some(mode), Some(first)), "{images}: {report}");
        assert_eq!(rule["overridden"][0], format!("{other} (from {last})"));
        assert_eq!(report["startup"]["image"], first);
        let conflicts = &report["conflicts"];
        assert_eq!((conflicts["count"].as_u64(), conflicts["identical"].as_u64()), (Some(2), Some(1)), "{conflicts}");
        let shared = conflicts["files"].as_array().unwrap().iter().find(|file| file["path"] == "/opt/git/shared").unwrap();
        assert_eq!((shared["images"][1].as_str(), shared["identical"].as_bool()), (Some(last), Some(false)));
        let path = if first == "git" { "/opt/nodejs:/opt/git:$PATH" } else { "/opt/git:/opt/nodejs:$PATH" };
        assert_eq!(report["environment"], serde_json::json!([{"name": "PATH", "value": path}]));
        assert_eq!((report["requirements"][0]["holds"].as_bool(), report["requirements"][0]["image"].as_str()), (Some(false), Some("nodejs")));
        let text = home.turbo(["inspect", images]).ok().stdout;
        for line in [
            format!("isolation  /opt/git {mode} (from {first})"),
            format!("           not {other} (from {last})"),
            format!("file       /opt/git/shared of {last}"),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
    let many: Vec<(String, &str)> = (0..50).map(|n| (format!("f{n}"), "x")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    import(&home, "a/one:1", &many, &["--at", "/opt/x"]);
    import(&home, "a/two:1", &many, &["--at", "/opt/x", "--dependency", "a/gone"]);
    let report = inspect(&home, "a/one,a/two");
    assert_eq!((report["conflicts"]["count"].as_u64(), report["conflicts"]["files"].as_array().unwrap().len()), (Some(50), 20));
    assert!(report["missing_dependencies"][0].as_str().unwrap().contains("a/gone"));
    let all = home.turbo(["inspect", "a/one,a/two", "--conflicts", "--format", "json"]).ok().json();
    assert_eq!(all["result"]["conflicts"]["files"].as_array().unwrap().len(), 50);
}

#[test]
fn rules_are_checked_against_what_is_imported() {
    let home = Home::offline();
    home.file("tree/folder/file", "x");
    let tree = home.path().join("tree");
    for (option, says) in [
        ("--file-mode=/folder=full", "folder of the image"),
        ("--isolate=/folder/file=full", "not a folder"),
        ("--attribute=/folder=no-upgrade", "not a file"),
        ("--attribute=/folder=bright", "no-upgrade"),
        ("--file-mode=/folder/file=merge", "defaulted"),
        ("--dependency=Not A Name", "lower case"),
        ("--condition=os:linux or", "KEY:VALUE"),
        ("--require=linux", "KEY:VALUE"),
        ("--env-isolation=merge", "inherit"),
    ] {
        let outcome = home.turbo(["import", "dir", tree.to_str().unwrap(), "--name", "a/b", option]);
        assert!(outcome.code == Some(2) && outcome.stderr.contains(says), "{option}: {}", outcome.stderr);
        assert_eq!(home.turbo(["images", "--format", "json"]).ok().json()["result"], Value::Array(vec![]), "{option} leaves no image behind");
    }
    let options = ["--file-mode=/folder/file=hide", "--isolate=/folder=full", "--attribute=/folder=read-only,no-sync", "--attribute=/folder/file=no-upgrade"];
    home.turbo([&["import", "dir", tree.to_str().unwrap(), "--name", "a/b"], &options[..]].concat()).ok();
    let layer = &inspect(&home, "a/b")["layers"][0];
    assert_eq!(layer["files"], serde_json::json!([{"path": "/folder/file", "mode": "hide"}]));
    assert_eq!(layer["requires"], serde_json::json!(["attributes", "file-modes"]));
}

#[test]
fn the_same_image_twice_is_the_image_once() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    import(&home, "a/app:1", &[], &["--startup-file", "/bin/echo once", "--env", "PATH=/opt/app"]);
    assert_eq!(run(&home, &["--offline", "a/app,a/app,a/app:1"]).ok().stdout, "once\n");
    let report = inspect(&home, "a/app,a/app:1");
    assert_eq!(report["environment"][0]["value"], "/opt/app:$PATH");
}

/// Waits for the VM to honour merge; says so until then.
#[test]
fn merge_writes_to_the_host_and_the_command_line_can_only_be_stricter() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    let shared = home.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    home.give_away(&shared);
    let write = format!("/bin/sh -c 'echo written > {}/file'", shared.display());
    let rule = format!("{}=merge", shared.display());
    import(&home, "a/app:1", &[], &["--isolate", &rule, "--startup-file", &write]);
    let written = || std::fs::read_to_string(Path::new(&shared).join("file")).ok();
    for options in [&["--isolate", "write-copy"][..], &["--allow-merge", "false"]] {
        run(&home, &[&["--offline", "--temp"], options, &["a/app"]].concat()).ok();
        assert_eq!(written(), None, "{options:?}");
    }
    let config = home.file("config.toml", "allow-merge = false\n");
    run(&home, &["--offline", "--temp", "--config", config.to_str().unwrap(), "--allow-merge", "true", "a/app"]).ok();
    assert_eq!(written(), None, "what the configuration forbids no option allows");
    let outcome = run(&home, &["--offline", "--temp", "a/app"]);
    if is_refused(&outcome) {
        return;
    }
    let told = outcome.ok().stderr;
    assert!(told.contains("open places of the host for writing") && told.contains(shared.to_str().unwrap()), "{told}");
    assert_eq!(written().as_deref(), Some("written\n"));
    std::fs::remove_file(shared.join("file")).unwrap();
    let asked = run(&home, &["--offline", "--temp", "--isolate", "merge", "a/app"]).ok();
    assert!(!asked.stderr.contains("open places"), "who asked is not told: {}", asked.stderr);
    assert_eq!(written().as_deref(), Some("written\n"));
}

/// Waits for the VM to honour merge; says so until then.
#[test]
fn merge_user_opens_the_documents_and_nothing_else() {
    if !can_run() {
        return;
    }
    let home = Home::offline();
    for folder in ["Documents", "Elsewhere"] {
        let folder = home.path().join(folder);
        std::fs::create_dir(&folder).unwrap();
        home.give_away(&folder);
    }
    let write = "/bin/sh -c 'for folder in Documents Elsewhere; do echo x > \"$HOME/$folder/file\"; done'";
    import(&home, "a/app:1", &[], &["--startup-file", write]);
    let outcome = run(&home, &["--offline", "--temp", "--isolate", "merge-user", "a/app"]);
    if is_refused(&outcome) {
        return;
    }
    outcome.ok();
    assert!(home.path().join("Documents/file").exists() && !home.path().join("Elsewhere/file").exists());
}
