//! `cargo xtask test`: all checks and tests, in the order of what fails fastest.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::steps::{Outcome, Steps};
use crate::workspace::{self, cargo};
use crate::{deps, setup};

/// Everything that a change must pass, from set-up to tests.
#[derive(Debug, clap::Args)]
pub(crate) struct Test {
    /// Only formatting, lints and tests; no set-up.
    #[arg(long)]
    quick: bool,
}

impl Test {
    /// Runs the steps up to the first that fails.
    pub(crate) fn run(&self) -> Result<()> {
        let mut steps = Steps::default();
        let mut test_ids = None;
        let mut has_servers = false;
        if !self.quick {
            steps.run("set-up: programs", || Ok(setup::programs()))?;
            steps.run("set-up: filesystem test suites", || Ok(setup::suites()))?;
            steps.run("set-up: nginx", || Ok(setup::nginx()))?;
            let others = [setup::postgresql(), setup::seaweedfs()];
            has_servers = others.iter().all(|outcome| matches!(outcome, Outcome::Done));
            for (name, outcome) in ["set-up: PostgreSQL", "set-up: SeaweedFS"].into_iter().zip(others) {
                steps.run(name, || Ok(outcome))?;
            }
            steps.run("set-up: /dev/fuse", setup::fuse)?;
            steps.run("set-up: test user", || {
                test_ids = setup::test_user();
                Ok(if test_ids.is_some() { Outcome::Done } else { Outcome::Skipped("not root".to_owned()) })
            })?;
        }
        steps.run("format", || command(cargo("fmt").args(["--all", "--check"])))?;
        steps.run("lints", || command(cargo("clippy").args(["--workspace", "--all-targets", "--", "-D", "warnings"])))?;
        if !self.quick {
            steps.run("documentation", || command(cargo("doc").args(["--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-Dwarnings")))?;
            steps.run("edges between crates", || deps::check().map(|()| Outcome::Done))?;
            deny(&mut steps)?;
        }
        steps.run("tests", || {
            let mut tests = cargo("test");
            tests.args(["--workspace", "--no-fail-fast"]);
            if let Some((uid, gid)) = test_ids {
                tests.env("TURBO_TEST_UID", uid.to_string()).env("TURBO_TEST_GID", gid.to_string());
            }
            command(&mut tests)
        })?;
        if !self.quick {
            steps.run("the registry's tests on PostgreSQL and S3", || match has_servers {
                true => on_servers(),
                false => Ok(Outcome::Skipped("PostgreSQL or SeaweedFS is missing".to_owned())),
            })?;
        }
        steps.print();
        Ok(())
    }
}

/// Suites of the registry that run a second time, on PostgreSQL and S3 in place of SQLite and a folder.
const SUITES: &[&str] = &["push_pull", "oci_protocol", "oci_images", "launch", "states", "access"];

fn on_servers() -> Result<Outcome> {
    let mut tests = cargo("test");
    tests.args(["--package", "registry"]).env("TURBO_TEST_BACKEND", "postgres-s3");
    for suite in SUITES {
        tests.args(["--test", suite]);
    }
    command(&mut tests)?;
    // Of the long suite, what reads and writes most.
    let mut learning = cargo("test");
    learning.args(["--package", "registry", "--test", "learning", "--", "pins_stay", "the_next_version"]).env("TURBO_TEST_BACKEND", "postgres-s3");
    command(&mut learning)
}

/// Licences, sources and duplicates of what we depend on, and what is known to be wrong with it.
fn deny(steps: &mut Steps) -> Result<()> {
    let mut path = None;
    steps.run("set-up: cargo-deny", || {
        path = Some(setup::cargo_deny()?);
        Ok(Outcome::Done)
    })?;
    let path = path.context("cargo-deny has no path")?;
    steps.run("licences, bans, sources", || command(cargo_deny(&path).args(["check", "--hide-inclusion-graph", "licenses", "bans", "sources"])))?;
    steps.run("advisories", || {
        // Without a network there is no database; that says nothing about our dependencies.
        let fetched = cargo_deny(&path).args(["fetch", "db"]).stdin(Stdio::null()).output().context("cannot start cargo-deny")?;
        if !fetched.status.success() {
            return Ok(Outcome::Skipped("the advisory database could not be fetched".to_owned()));
        }
        command(cargo_deny(&path).args(["check", "--disable-fetch", "advisories"]))
    })
}

fn cargo_deny(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.current_dir(workspace::root());
    command
}

fn command(command: &mut Command) -> Result<Outcome> {
    workspace::run(command).map(|()| Outcome::Done)
}
