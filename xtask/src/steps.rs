//! Named steps, timed, ended by the first that fails, with a table at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How a step that did not fail ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It ran.
    Done,
    /// It could not or need not run, for this reason.
    Skipped(String),
}

/// The steps so far.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    rows: Vec<(String, Duration, String)>,
}

impl Steps {
    /// Runs a step. After a failure it prints the table and returns an error that names the step.
    pub(crate) fn run(&mut self, name: &str, step: impl FnOnce() -> Result<Outcome>) -> Result<()> {
        println!("\n==> {name}");
        let start = Instant::now();
        let outcome = step();
        let took = start.elapsed();
        let result = match &outcome {
            Ok(Outcome::Done) => "ok".to_owned(),
            Ok(Outcome::Skipped(reason)) => format!("skipped: {reason}"),
            Err(_) => "FAILED".to_owned(),
        };
        println!("<== {name}: {result} ({:.1} s)", took.as_secs_f64());
        self.rows.push((name.to_owned(), took, result));
        if let Err(error) = outcome {
            self.print();
            bail!("step `{name}` failed: {error:#}");
        }
        Ok(())
    }

    /// Prints the table of all steps so far.
    pub(crate) fn print(&self) {
        let width = self.rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
        println!("\n{:<width$}  {:>8}  result", "step", "time");
        for (name, took, result) in &self.rows {
            println!("{name:<width$}  {:>6.1} s  {result}", took.as_secs_f64());
        }
    }
}
