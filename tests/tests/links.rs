//! Launches over links that fail: cut, lossy, slowed down, truncated, refused; and with models that are no models. The
//! launch goes on, or ends with a clear error, and what the application reads is right.

use std::process::{Command, Stdio};
use std::time::Duration;

use benchmarks::link::{Link, LinkSpec, Side};
use integration_tests::binaries::test_user;
use integration_tests::turbo::{can_run, eventually};
use integration_tests::{Home, Outcome, Proxy, TestRegistry};

/// Bytes of each of the application's files: badly compressible.
const FILE_LEN: usize = 300_000;
const FILES: usize = 24;

/// Reads one file after the other, with work in between, and prints their checksums.
const PROGRAM: &str = "cd /opt/links; for file in data/*; do cksum < $file; sleep 0.02; done\n";

fn noise(len: usize, seed: usize) -> Vec<u8> {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// An application on a registry, which has learned from one run of it; and what it prints.
struct Published {
    registry: TestRegistry,
    _developer: Home,
    expected: String,
}

const RUN: [&str; 3] = ["run", "--temp", "links/app:1"];

fn publish() -> Published {
    let registry = TestRegistry::start();
    let developer = Home::new(registry.url());
    for n in 0..FILES {
        developer.file(&format!("app/data/{n:02}"), noise(FILE_LEN, n));
    }
    developer.file("app/main.sh", PROGRAM);
    let folder = developer.path().join("app");
    developer
        .turbo(["import", "dir", folder.to_str().unwrap(), "--at", "/opt/links", "--name", "links/app:1", "--startup-file", "/bin/sh /opt/links/main.sh"])
        .ok();
    developer.turbo(["push", "links/app:1"]).ok();
    let expected = developer.turbo(RUN).ok().stdout;
    assert_eq!(expected.lines().count(), FILES);
    eventually("the model is there", || developer.turbo(["profile", "show", "links/app", "--format", "json"]).code == Some(0));
    Published { registry, _developer: developer, expected }
}

/// Starts a launch from an empty store.
fn start(home: &Home) -> std::process::Child {
    home.command(RUN).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_link_that_is_cut_for_ten_seconds_in_the_middle_of_a_launch() {
    if !can_run() {
        return;
    }
    let published = publish();
    let proxy = Proxy::to(published.registry.address());
    proxy.limit_rate(4_000_000);
    let user = Home::new(proxy.url());
    let launch = start(&user);
    eventually("the launch is in its middle", || proxy.down_bytes() > 2_000_000);
    proxy.cut();
    std::thread::sleep(Duration::from_secs(10));
    proxy.mend();
    let outcome = Outcome::from(launch.wait_with_output().unwrap()).ok();
    assert_eq!(outcome.stdout, published.expected);
}

#[test]
fn a_link_that_loses_packets() {
    if !can_run() {
        return;
    }
    let mut spec = LinkSpec::symmetric(50_000_000, Duration::from_millis(10));
    (spec.down.loss, spec.up.loss) = (0.01, 0.01);
    let link = match Link::up(&spec) {
        Ok(link) => link,
        Err(error) => {
            eprintln!("skipped: {error:#}");
            return;
        }
    };
    let published = publish();
    let proxy = Proxy::between(link.listen(Side::Server, 0).unwrap(), published.registry.address());
    let user = Home::new(proxy.url());
    let outcome = Outcome::from(at_the_client(&link, user.command(RUN)).output().unwrap()).ok();
    assert_eq!(outcome.stdout, published.expected);
    assert!(link.stats().down.loss_drops > 0, "{:?}", link.stats());
}

/// The same command at the client's end of the link. Its user changes only there: entering needs a privilege.
fn at_the_client(link: &Link, command: Command) -> Command {
    let mut inner = match test_user() {
        Some((uid, gid)) => {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups", "--"]).arg(command.get_program());
            setpriv
        }
        None => Command::new(command.get_program()),
    };
    inner.args(command.get_args()).env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inner.current_dir(command.get_current_dir().unwrap()).stdin(Stdio::null());
    link.command(Side::Client, inner).unwrap()
}

#[test]
fn a_rate_that_drops_to_a_tenth() {
    if !can_run() {
        return;
    }
    let published = publish();
    let proxy = Proxy::to(published.registry.address());
    proxy.limit_rate(10_000_000);
    let user = Home::new(proxy.url());
    let launch = start(&user);
    eventually("the launch is in its middle", || proxy.down_bytes() > 1_000_000);
    proxy.limit_rate(1_000_000);
    let outcome = Outcome::from(launch.wait_with_output().unwrap()).ok();
    assert_eq!(outcome.stdout, published.expected);
}

#[test]
fn a_proxy_that_truncates_every_answer() {
    if !can_run() {
        return;
    }
    let published = publish();
    let proxy = Proxy::to(published.registry.address());
    proxy.truncate_answers_at(400_000);
    let user = Home::new(proxy.url());
    let outcome = user.turbo(RUN).ok();
    assert_eq!(outcome.stdout, published.expected);
    assert!(proxy.connections() as usize > FILES * FILE_LEN / 400_000, "{} connections", proxy.connections());
}

#[test]
fn a_registry_that_answers_503_before_and_in_the_middle_of_a_launch() {
    if !can_run() {
        return;
    }
    let published = publish();
    let proxy = Proxy::to(published.registry.address());
    proxy.limit_rate(4_000_000);
    proxy.refuse(6);
    let user = Home::new(proxy.url());
    let launch = start(&user);
    eventually("the launch is in its middle", || proxy.down_bytes() > 2_000_000);
    assert_eq!(proxy.refusals_left(), 0);
    proxy.refuse(6);
    let outcome = Outcome::from(launch.wait_with_output().unwrap()).ok();
    assert_eq!(outcome.stdout, published.expected);
    assert_eq!(proxy.refusals_left(), 0);
}

#[test]
fn a_registry_that_answers_503_for_ever_is_said() {
    if !can_run() {
        return;
    }
    let published = publish();
    let proxy = Proxy::to(published.registry.address());
    proxy.refuse(u64::MAX);
    let user = Home::new(proxy.url());
    let outcome = Outcome::from(user.command(RUN).env("TURBO_WAIT", "3").output().unwrap());
    assert_eq!(outcome.code, Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("links/app:1") && outcome.stderr.contains("busy"), "{}", outcome.stderr);
}

#[test]
fn a_model_that_does_not_parse_costs_the_prediction_and_nothing_else() {
    if !can_run() {
        return;
    }
    let published = publish();
    let database = published.registry.data().join("registry.db");
    let damage = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], timeout=20); \
                  print(db.execute(\"update model set bytes = substr(bytes, 1, length(bytes) / 2)\").rowcount); db.commit()";
    let damaged = Command::new("python3").args(["-c", damage]).arg(&database).output().unwrap();
    assert!(String::from_utf8_lossy(&damaged.stdout).trim().parse::<u32>().is_ok_and(|rows| rows > 0), "{damaged:?}");
    let user = Home::new(published.registry.url());
    assert_eq!(user.turbo(RUN).ok().stdout, published.expected);
    // And the run taught a new one.
    eventually("there is a model again", || user.turbo(["profile", "show", "links/app", "--format", "json"]).code == Some(0));
}
