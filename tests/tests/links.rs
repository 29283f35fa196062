//! Launches over links that fail: cut, lossy, slowed down, truncated, refused; and with models that are no models. The
//! launch goes on, or ends with a clear error, and what the application reads is right.

use std::process::{Command, Stdio};
use std::time::Duration;

use integration_tests::taught::{FILE_LEN, FILES, RUN, publish};
use integration_tests::turbo::{can_run, eventually};
use integration_tests::{Home, Outcome, Proxy};

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
    for _ in 0..2 {
        std::fs::remove_dir_all(user.store()).ok();
        assert_eq!(user.turbo(RUN).ok().stdout, published.expected);
    }
    // And some run teaches a new one: every fourth is held out, and a store that goes at once takes its trace with it.
    eventually("there is a model again", || {
        user.turbo(RUN).ok();
        user.turbo(["profile", "show", "links/app", "--format", "json"]).code == Some(0)
    });
}
