//! What commands print: data on stdout, all else on stderr, progress bars only on a terminal.
//!
//! With `--format json` a command prints exactly one JSON value: `{"version": 1, "command": ..., "result": ...}`, or
//! `"error": {"message": ..., "causes": [...]}` in place of the result. `docs/json.md` has the shapes.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use serde::Serialize;

/// Version of the JSON that commands print. Fields may be added within a version.
pub const JSON_VERSION: u32 = 1;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON value.
    Json,
}

/// Where and how a command prints.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// The format asked for.
    pub format: Format,
    /// The command's name.
    pub command: &'static str,
}

impl Output {
    /// Prints a result: as JSON, or with `text` for people.
    pub fn result<T: Serialize>(self, result: &T, text: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let written = match self.format {
            Format::Text => text(&mut out),
            Format::Json => {
                let value = serde_json::json!({"version": JSON_VERSION, "command": self.command, "result": result});
                writeln!(out, "{value}")
            }
        };
        ignore_closed_pipe(written.and_then(|()| out.flush()))?;
        Ok(())
    }

    /// Prints an error and its causes, each once.
    pub fn error(self, error: &anyhow::Error) {
        let mut said = error.to_string();
        let mut causes: Vec<String> = Vec::new();
        for cause in error.chain().skip(1).map(ToString::to_string) {
            if !said.contains(&cause) {
                said = format!("{said}: {cause}");
                causes.push(cause);
            }
        }
        if self.format == Format::Json {
            let value = serde_json::json!({"version": JSON_VERSION, "command": self.command, "error": {"message": error.to_string(), "causes": causes}});
            let _ = writeln!(std::io::stdout(), "{value}");
        } else {
            // Names in it may come from images.
            let said: Vec<String> = said.lines().map(vm::printable).collect();
            let _ = writeln!(std::io::stderr(), "turbo: {}", said.join("\n"));
        }
    }
}

/// Tells people something on stderr.
pub fn note(message: impl std::fmt::Display) {
    // Log messages are written like this, too: nothing gets into a line that is drawn.
    let _ = writeln!(crate::live::LogWriter, "{message}");
}

/// Whether stderr is a terminal: then progress is shown.
pub fn shows_progress() -> bool {
    std::io::stderr().is_terminal()
}

/// Prints bytes as they are. A closed pipe is not an error.
pub fn write_to_stdout(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    ignore_closed_pipe(out.write_all(bytes).and_then(|()| out.flush()))?;
    Ok(())
}

/// `turbo images | head -1` is not an error.
fn ignore_closed_pipe(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A number of bytes for people: `12.3 MB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// Rows with space-aligned columns; the last one is not padded. With `full` nothing is cut.
pub fn table(out: &mut dyn Write, header: &[&str], rows: &[Vec<String>]) -> std::io::Result<()> {
    let mut widths: Vec<usize> = header.iter().map(|title| title.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&header).chain(rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_for_people() {
        for (count, shown) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1536, "1.54 kB"), (99_950, "100 kB"), (999_600, "1.00 MB"), (120_478_059, "120 MB")]
        {
            assert_eq!(bytes(count), shown, "{count}");
        }
    }
}
