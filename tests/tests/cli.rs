//! What a person sees: messages, exit codes, JSON.

use integration_tests::{Home, TestRegistry};

#[test]
fn wrong_usage_is_2_and_says_what_is_right() {
    let home = Home::offline();
    for (arguments, says) in [
        (vec!["run"], "required"),
        (vec!["run", "Not A Name"], "lower case"),
        (vec!["pull", "a//b"], "lower case"),
        (vec!["nonsense"], "unrecognized"),
        (vec!["import", "dir", ".", "--name", "UPPER"], "lower case"),
        (vec!["import", "dir", ".", "--name", "x", "--isolate", "/=maybe"], "full, write-copy"),
        (vec!["import", "dir", ".", "--name", "x", "--isolate", "rel=full"], "absolute"),
        (vec!["import", "dir", ".", "--name", "x", "--meta", "title"], "NAME=VALUE"),
        (vec!["import", "dir", ".", "--name", "x", "--working-dir", "rel"], "absolute"),
        (vec!["import", "dir", ".", "--name", "x", "--at", "rel"], "absolute"),
        (vec!["import", "dir", ".", "--name", "x", "--level", "99"], "1..=22"),
        (vec!["--cache-size", "10X", "images"], "500M"),
        (vec!["rm"], "turbo sessions"),
        (vec!["--hub", "ftp://x", "images"], "http://"),
    ] {
        let outcome = home.turbo(&arguments);
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{arguments:?}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "");
    }
}

#[test]
fn errors_are_125_name_the_thing_and_the_remedy() {
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    for (arguments, says) in [
        (vec!["pull", "no/such:1"], "no/such:1"),
        (vec!["push", "not/here"], "turbo images"),
        (vec!["export", "not/here", "x.tar"], "not/here"),
        (vec!["inspect", "not/here"], "not/here"),
        (vec!["rmi", "not/here"], "not/here"),
        (vec!["rm", "nobody"], "nobody"),
        (vec!["import", "dir", "/no/such/dir", "--name", "a/b"], "/no/such/dir"),
        (vec!["import", "tar", "/no/such.tar", "--name", "a/b"], "/no/such.tar"),
        (vec!["run", "no/such"], "no/such"),
    ] {
        let outcome = home.turbo(&arguments);
        assert_eq!(outcome.code, Some(125), "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(says), "{arguments:?}: {}", outcome.stderr);
        let json = home.turbo([&arguments[..], &["--format", "json"]].concat());
        assert!(json.json()["error"]["message"].is_string(), "{}", json.stdout);
    }
    let nobody = Home::offline();
    let outcome = nobody.turbo(["pull", "a/b"]);
    assert!(outcome.code == Some(125) && outcome.stderr.contains("127.0.0.1:1"), "the registry is named: {}", outcome.stderr);
}

#[test]
fn json_has_one_shape_everywhere() {
    let home = Home::offline();
    home.file("tree/file", "x");
    let tree = home.path().join("tree");
    home.turbo(["import", "dir", tree.to_str().unwrap(), "--name", "a/b:1"]).ok();
    for arguments in [
        vec!["images"],
        vec!["inspect", "a/b:1"],
        vec!["sessions"],
        vec!["stats"],
        vec!["verify"],
        vec!["gc"],
        vec!["config"],
        vec!["version"],
        vec!["rmi", "a/b:1"],
    ] {
        let value = home.turbo([&arguments[..], &["--format", "json"]].concat()).ok().json();
        assert_eq!((value["version"].clone(), value["command"].clone()), (1.into(), arguments[0].into()), "{value}");
        assert!(!value["result"].is_null(), "{value}");
    }
}

#[test]
fn completions_and_manual_pages_come_from_the_definitions() {
    let home = Home::offline();
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.turbo(["completions", shell]).ok().stdout.contains("startup-file"), "{shell}");
    }
    let pages = home.path().join("man");
    home.turbo(["man", pages.to_str().unwrap()]).ok();
    assert!(std::fs::read_to_string(pages.join("turbo-run.1")).unwrap().contains("mount"));
    assert!(home.turbo(["run", "--help"]).ok().stdout.contains("--mount"));
}

#[test]
fn configuration_option_variable_file() {
    let home = Home::offline();
    let file = home.path().join("config.toml");
    let run = |arguments: &[&str], hub: Option<&str>| {
        let mut command = home.command(arguments);
        command.env("TURBO_CONFIG", &file).env_remove("TURBO_HUB");
        if let Some(hub) = hub {
            command.env("TURBO_HUB", hub);
        }
        integration_tests::Outcome::from(command.output().unwrap())
    };
    let hub =
        |arguments: &[&str], variable| run(&[arguments, &["config", "--format", "json"]].concat(), variable).ok().json()["result"]["settings"]["hub"].clone();
    assert_eq!(hub(&[], None), "http://127.0.0.1:5000");
    run(&["config", "--hub", "http://file:1/", "--no-verify"], None).ok();
    assert_eq!(hub(&[], None), "http://file:1");
    assert_eq!(hub(&[], Some("http://variable:2")), "http://variable:2");
    assert_eq!(hub(&["--hub", "http://option:3"], Some("http://variable:2")), "http://option:3");
    std::fs::write(&file, "hubb = 1\n").unwrap();
    let outcome = run(&["images"], None);
    assert!(outcome.code == Some(125) && outcome.stderr.contains("hubb"), "{}", outcome.stderr);
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    use std::process::Stdio;
    let home = Home::offline();
    let mut child = home.command(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}
