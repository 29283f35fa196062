//! Learning as users meet it: the next version of an application, opting out, and `turbo profile`.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use integration_tests::turbo::{can_run, eventually};
use integration_tests::{Home, TestRegistry};
use serde_json::Value;

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 56) as u8
    };
    (0..len).map(|_| next(&mut state)).collect()
}

/// What a run starts: it waits until what is predicted had time to come, and reads a part of what there is.
const MAIN: &str = "#!/bin/sh
sleep 2
cat /opt/app/lib/mod-*/m* /opt/*/data/d1* /opt/app/data/d1* 2>/dev/null | wc -c
tail -c 1500000 /opt/app/lib/libx-*.so | head -c 400000 | wc -c
";

fn version_1(home: &Home) {
    home.file("one/main.sh", MAIN);
    for n in 0..60 {
        home.file(&format!("one/lib/mod-1.2.3.dist-info/m{n}"), noise(100 + n, 3000));
        home.file(&format!("one/data/d{n}"), noise(200 + n, 9000));
        home.file(&format!("one/unused/u{n}"), noise(300 + n, 20_000));
    }
    home.file("one/lib/libx-6cdc3b4a.so", noise(1, 3_000_000));
    home.file("one/lib/mod-1.2.3.dist-info/m-gone", noise(2, 3000));
}

/// A folder has another version in its name, and half of its files other content; the library another hash, with bytes put in at
/// its start; all data moved; a file is gone, one is new.
fn version_2(home: &Home) {
    home.file("two/main.sh", MAIN);
    for n in 0..60u64 {
        home.file(&format!("two/lib/mod-1.3.0.dist-info/m{n}"), noise(if n.is_multiple_of(2) { 100 } else { 900 } + n, 3000));
        home.file(&format!("two/share/data/d{n}"), noise(200 + n, 9000));
        home.file(&format!("two/unused/u{n}"), noise(300 + n, 20_000));
    }
    let mut library = noise(1, 3_000_000);
    library.splice(70_000..70_000, noise(3, 123_457));
    home.file("two/lib/libx-a1b2c3d4.so", library);
    home.file("two/lib/mod-1.3.0.dist-info/m-new", noise(4, 3000));
}

fn import(home: &Home, folder: &str, name: &str, more: &[&str]) {
    let folder = home.path().join(folder);
    let mut arguments = vec!["import", "dir", folder.to_str().unwrap(), "--at", "/opt/app", "--name", name, "--startup-file", "/bin/sh /opt/app/main.sh"];
    arguments.extend(more);
    home.turbo(arguments).ok();
    home.turbo(["push", name]).ok();
}

/// A run on a machine that has nothing, and what it cost.
fn run(registry: &TestRegistry, name: &str, more: &[&str]) -> Value {
    let home = Home::new(registry.url());
    let stats = home.path().join("stats.json");
    let mut arguments = vec!["run", "--temp", "--stats", stats.to_str().unwrap()];
    arguments.extend(more);
    arguments.push(name);
    home.turbo(arguments).ok();
    serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap()
}

fn metric(registry: &TestRegistry, name: &str) -> u64 {
    let mut stream = std::net::TcpStream::connect(registry.address()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let name = format!("turbo_registry_{name}");
    text.lines().filter_map(|line| line.strip_prefix(&name)?.rsplit_once(' ')).map(|(_, value)| value.parse::<u64>().unwrap()).sum()
}

#[test]
fn the_first_launch_of_the_next_version_is_predicted() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    version_1(&developer);
    version_2(&developer);
    import(&developer, "one", "tools/app:1.0", &[]);
    for learned in 1..=2 {
        run(&registry, "tools/app:1.0", &[]);
        eventually("the trace is taken", || metric(&registry, "traces_merged_total") + metric(&registry, "traces_held_total") >= learned);
    }
    let same = run(&registry, "tools/app:1.0", &["--no-trace-upload"]);
    import(&developer, "two", "tools/app:2.0", &[]);
    eventually("the model is carried over", || metric(&registry, "models_carried_total") == 1);
    let next = run(&registry, "tools/app:2.0", &["--no-trace-upload"]);
    let unknown = run(&registry, "tools/app:2.0", &["--no-trace-upload", "--no-model"]);
    let rate = |stats: &Value| stats["hit_rate"].as_f64().unwrap();
    eprintln!("hit rate: {} of 1.0, {} of the first launch of 2.0, {} without a model", rate(&same), rate(&next), rate(&unknown));
    assert!(rate(&same) > 0.9 && rate(&next) >= 0.9 * rate(&same), "same: {same}\nnext: {next}");
    assert!(rate(&unknown) < rate(&next), "without: {unknown}\nnext: {next}");
    let wasted = next["bytes_wasted"].as_u64().unwrap();
    assert!(wasted * 4 <= next["bytes_needed"].as_u64().unwrap(), "{next}");
}

#[test]
fn nothing_is_sent_by_who_does_not_want_it() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    developer.file("one/main.sh", "#!/bin/sh\ncat /opt/app/main.sh\n");
    import(&developer, "one", "tools/app:1.0", &[]);
    import(&developer, "one", "tools/private:1.0", &["--no-profiling"]);
    run(&registry, "tools/app:1.0", &["--no-trace-upload"]);
    run(&registry, "tools/private:1.0", &[]);
    let by_variable = Home::new(registry.url());
    assert_eq!(by_variable.command(["run", "--temp", "tools/app:1.0"]).env("TURBO_TRACES", "false").output().unwrap().status.code(), Some(0));
    let by_file = Home::new(registry.url());
    let config = by_file.path().join("config.toml");
    let with_file = |arguments: &[&str]| by_file.command(arguments).env("TURBO_CONFIG", &config).output().unwrap();
    assert_eq!(with_file(&["config", "--traces=false"]).status.code(), Some(0));
    assert!(std::fs::read_to_string(&config).unwrap().contains("traces = false"));
    assert_eq!(with_file(&["run", "--temp", "tools/app:1.0"]).status.code(), Some(0));
    // Each of these runs has ended, and waited for what it sent.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!((metric(&registry, "traces_accepted_total"), metric(&registry, "traces_refused_total{")), (0, 0));
    run(&registry, "tools/app:1.0", &[]);
    eventually("one that does not mind is heard", || metric(&registry, "traces_accepted_total") == 1);
}

#[test]
fn a_profile_is_exported_brought_pinned_and_forgotten() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    let home = Home::new(registry.url());
    home.file("one/main.sh", "#!/bin/sh\ncat /opt/app/main.sh\n");
    import(&home, "one", "tools/app:1.0", &[]);
    let turbo = |arguments: &[&str]| home.turbo([arguments, &["--format", "json"]].concat());
    assert_eq!(turbo(&["profile", "pin", "tools/app:1.0"]).code, Some(125), "there is nothing to pin");
    run(&registry, "tools/app:1.0", &[]);
    eventually("the trace is learned", || metric(&registry, "traces_merged_total") == 1);
    let file = home.path().join("app.model");
    let file = file.to_str().unwrap();
    let exported = turbo(&["profile", "export", "tools/app:1.0", file]).ok().json();
    let digest = exported["result"]["model"].as_str().unwrap().to_owned();
    assert!(Path::new(file).exists());
    let pinned = turbo(&["profile", "pin", "tools/app:1.0"]).ok().json();
    assert_eq!(pinned["result"]["model"], digest.as_str());
    for learned in 1..=2 {
        run(&registry, "tools/app:1.0", &[]);
        eventually("traces are learned", || metric(&registry, "traces_merged_total") + metric(&registry, "traces_held_total") > learned);
    }
    let model_now = || turbo(&["profile", "export", "tools/app:1.0", file]).ok().json()["result"]["model"].as_str().unwrap().to_owned();
    assert_eq!(model_now(), digest);
    turbo(&["profile", "pin", "tools/app:1.0", "--unpin"]).ok();
    assert_ne!(model_now(), digest, "what was learned since");
    assert_eq!(turbo(&["profile", "pin", "tools/app:1.0", "--unpin"]).code, Some(125));
    turbo(&["profile", "pin", "tools/app:1.0", "--model", &digest]).ok();
    assert_eq!(model_now(), digest);
    turbo(&["profile", "pin", "tools/app:1.0", "--unpin"]).ok();
    turbo(&["profile", "reset", "tools/app:1.0"]).ok();
    assert_eq!(turbo(&["profile", "show", "tools/app:1.0"]).code, Some(125));
    let brought = turbo(&["profile", "import", "tools/app:1.0", file, "--pin"]).ok().json();
    assert_eq!((brought["result"]["model"].as_str(), brought["result"]["pinned"].as_bool()), (Some(digest.as_str()), Some(true)));
    let nonsense = home.file("nonsense", "no model");
    let refused = turbo(&["profile", "import", "tools/app:1.0", nonsense.to_str().unwrap()]);
    assert!(refused.code == Some(125) && refused.stdout.contains("not a model"), "{refused:?}");
}
