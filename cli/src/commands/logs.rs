//! `turbo logs`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::app::App;
use crate::containers::{Container, Containers};
use crate::exit::{Exit, UsageError};
use crate::output::Format;

/// How often a log is looked at for more.
const PAUSE: Duration = Duration::from_millis(100);

/// Print what a detached container printed, in its last run.
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// Name, or first digits of the id.
    container: String,
    /// Go on until the container ends.
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines, of each stream.
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
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
        let container = containers.get(&self.container)?;
        let folder = containers.folder(&container);
        let open = |name: &str| {
            let Ok(mut file) = File::open(folder.join(name)) else { bail!("{} was not detached: it has no logs", container.shown()) };
            if let Some(lines) = self.tail {
                let start = start_of_tail(&mut file, lines).context("reading a log")?;
                file.seek(SeekFrom::Start(start)).context("reading a log")?;
            }
            Ok::<_, anyhow::Error>(file)
        };
        let (mut stdout, mut stderr) = (open("stdout")?, open("stderr")?);
        if app.output.format == Format::Json {
            if self.follow {
                bail!(UsageError("--follow prints no JSON".into()));
            }
            let text = |file: &mut File| {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).context("reading a log").map(|_| String::from_utf8_lossy(&bytes).into_owned())
            };
            app.output.result(&serde_json::json!({"stdout": text(&mut stdout)?, "stderr": text(&mut stderr)?}), |_| Ok(()))?;
            return Ok(Exit::Success);
        }
        loop {
            // Looked at before the logs are read: what was printed before the end is printed.
            let goes_on = self.follow && still_written(&containers, &container, &folder, &stdout);
            if !self.stderr && !pass_on(&mut stdout, &mut std::io::stdout().lock())? || !self.stdout && !pass_on(&mut stderr, &mut std::io::stderr().lock())? {
                return Ok(Exit::Success);
            }
            if !goes_on {
                return Ok(Exit::Success);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Whether the container still runs, and is the run that the log is of.
fn still_written(containers: &Containers, container: &Container, folder: &Path, log: &File) -> bool {
    let same = || Some(folder.join("stdout").metadata().ok()?.ino() == log.metadata().ok()?.ino());
    containers.is_running(container) && same() == Some(true)
}

/// Prints what is there; whether someone still reads it.
fn pass_on(log: &mut File, out: &mut impl Write) -> Result<bool> {
    match std::io::copy(log, out).and_then(|_| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("printing a log"),
    }
}

/// Where the last lines of a file begin.
fn start_of_tail(file: &mut File, lines: usize) -> std::io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let len = file.metadata()?.len();
    let (mut at, mut found) = (len, 0);
    let mut block = Vec::new();
    if lines == 0 {
        return Ok(len);
    }
    while at > 0 {
        let start = at.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.take(at - start).read_to_end(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = start + index as u64 + 1;
            // The end of the last line does not begin another one.
            if after < len {
                found += 1;
                if found == lines {
                    return Ok(after);
                }
            }
        }
        at = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails() {
        let long = format!("{}\n", "x".repeat(100_000));
        let text = format!("one\ntwo\n{long}last");
        for (text, lines, tail) in [
            ("a\nb\nc\n", 0, ""),
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("", 3, ""),
            ("\n\n", 1, "\n"),
            (&text, 1, "last"),
            (&text, 2, &text[8..]),
            (&text, 3, &text[4..]),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let start = start_of_tail(&mut file, lines).unwrap() as usize;
            assert!(&text[start..] == tail, "{lines} of {} bytes", text.len());
        }
    }
}
