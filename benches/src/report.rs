//! What benchmarks print has in common: the machine and the day, a place in the README for a table, and every single
//! measurement as JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

/// When and where something was measured.
#[derive(Debug, Default, Serialize)]
pub struct Setting {
    /// Version of the shape of the file with all measurements.
    version: u32,
    /// Day of the measurement, UTC.
    pub date: String,
    /// Processor, cores, memory and kernel.
    pub machine: String,
    /// Type of the filesystem that was worked on.
    pub filesystem: String,
    /// Rounds of which the median counts.
    pub rounds: u32,
}

impl Setting {
    /// This machine, today. `work` is the folder that was worked in.
    ///
    /// # Errors
    /// If the filesystem of `work` cannot be asked for its type.
    pub fn here(work: &Path, rounds: u32) -> Result<Self> {
        Ok(Self { version: 2, date: today()?, machine: machine(), filesystem: filesystem(work)?, rounds })
    }
}

/// Writes all measurements to a file, as JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, measured: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(measured).context("cannot print the report")?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// Puts the table of the benchmark `name` into the place for it in the repository's README.md.
///
/// # Errors
/// If README.md has no such place.
pub fn write_readme(name: &str, table: &str) -> Result<()> {
    // Of the checkout that cargo runs this from, which need not be the one it was built in.
    let own = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let path = own.parent().unwrap_or(&own).join("README.md");
    let readme = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let changed = replaced(&readme, name, table).with_context(|| format!("{} has no place for the table `{name}`", path.display()))?;
    fs::write(&path, changed).with_context(|| format!("cannot write {}", path.display()))
}

fn replaced(readme: &str, name: &str, table: &str) -> Option<String> {
    let (start, end) = (format!("<!-- bench:{name} -->"), format!("<!-- /bench:{name} -->"));
    let (before, rest) = readme.split_once(&start)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{start}\n{table}{end}{after}"))
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |text: &str, name: &str| text.lines().find(|line| line.starts_with(name)).and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()));
    let processor = field(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_kib = field(&read("/proc/meminfo"), "MemTotal").and_then(|size| size.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{processor}, {cores} cores, {} GiB, Linux {}", (memory_kib + (1 << 19)) >> 20, kernel.trim())
}

fn filesystem(path: &Path) -> Result<String> {
    let kind = rustix::fs::statfs(path).with_context(|| format!("cannot ask for the filesystem of {}", path.display()))?.f_type as u64;
    let known = [(0x0102_1994, "tmpfs"), (0xef53, "ext4"), (0x5846_5342, "xfs"), (0x9123_683e, "btrfs"), (0x794c_7630, "overlayfs")];
    Ok(known.into_iter().find(|(magic, _)| *magic == kind).map_or_else(|| format!("a filesystem of type {kind:#x}"), |(_, name)| name.to_owned()))
}

fn today() -> Result<String> {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs() / 86_400;
    let (year, month, day) = civil(days as i64);
    Ok(format!("{year}-{month:02}-{day:02}"))
}

/// Year, month and day of a day counted from 1970-01-01. Counts in years that begin in March, so that
/// the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, of_year - (153 * march_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        for (days, date) in [(0, (1970, 1, 1)), (59, (1970, 3, 1)), (11_016, (2000, 2, 29)), (20_513, (2026, 3, 1)), (20_512, (2026, 2, 28))] {
            assert_eq!(civil(days), date);
        }
    }

    #[test]
    fn only_the_block_is_replaced() {
        let readme = |content: &str| format!("a\n<!-- bench:vm -->\n{content}<!-- /bench:vm -->\nb\n");
        assert_eq!(replaced(&readme("old\n"), "vm", "new\n"), Some(readme("new\n")));
        assert_eq!(replaced(&readme(""), "launch", "new\n"), None);
    }
}
