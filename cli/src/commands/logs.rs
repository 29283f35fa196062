//! `turbo logs`.

use std::io::Write;

use anyhow::{Context, Result};

use crate::app::App;
use crate::exit::Exit;

/// Print what a detached container printed.
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// Name, or first digits of the id.
    container: String,
    /// Only what it wrote to stderr.
    #[arg(long, conflicts_with = "stdout")]
    stderr: bool,
    /// Only what it wrote to stdout.
    #[arg(long)]
    stdout: bool,
}

impl Logs {
    /// Prints stdout to stdout, and stderr to stderr.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let container =
            containers.find(&self.container)?.with_context(|| format!("there is no container `{}`; `turbo sessions` lists them", self.container))?;
        let folder = containers.folder(&container);
        let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| format!("{} was not detached: it has no logs", container.shown()));
        if app.output.format == crate::output::Format::Json {
            let text = |name| read(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            app.output.result(&serde_json::json!({"stdout": text("stdout")?, "stderr": text("stderr")?}), |_| Ok(()))?;
            return Ok(Exit::Success);
        }
        if !self.stderr {
            crate::output::write_to_stdout(&read("stdout")?)?;
        }
        if !self.stdout {
            std::io::stderr().write_all(&read("stderr")?).context("writing to stderr")?;
        }
        Ok(Exit::Success)
    }
}
