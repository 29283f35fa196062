//! Which images were used, and when: `history` in the home folder, one line of JSON for each image of each launch, newest
//! last. Lines are appended at once; when the file is long the older half goes. A damaged line is passed over.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use layer_format::Digest;
use serde::{Deserialize, Serialize};

use crate::containers::now_s;
use crate::stack::Stack;

/// From this length on, in bytes, the file is cut in half.
const MAX_LEN: u64 = 512 << 10;

/// One use of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// When, in seconds since 1970.
    pub used_s: u64,
    /// The reference by which it was asked for.
    pub image: String,
    /// Digest of its manifest.
    pub digest: Digest,
}

fn path(home: &Path) -> PathBuf {
    home.join("history")
}

/// Notes that these images are used now.
pub fn record(home: &Path, stack: &Stack) -> Result<()> {
    let uses = stack.members.iter().map(|member| Use { used_s: now_s(), image: member.reference.to_string(), digest: member.session.digest() });
    append(home, uses)
}

fn append(home: &Path, uses: impl Iterator<Item = Use>) -> Result<()> {
    let path = path(home);
    let mut lines = Vec::new();
    for used in uses {
        serde_json::to_writer(&mut lines, &used)?;
        lines.push(b'\n');
    }
    let write = || {
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        // In one call, so that lines of launches at once do not mix.
        file.write_all(&lines)?;
        file.metadata().map(|meta| meta.len())
    };
    if write().with_context(|| format!("writing {}", path.display()))? > MAX_LEN {
        halve(&path).with_context(|| format!("shortening {}", path.display()))?;
    }
    Ok(())
}

/// A line that another launch appends meanwhile may be lost.
fn halve(path: &Path) -> std::io::Result<()> {
    let bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    let start = bytes[middle..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| middle + at + 1);
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, &bytes[start..])?;
    std::fs::rename(temporary, path)
}

/// The last use of each image, newest first.
pub fn read(home: &Path) -> Result<Vec<Use>> {
    let path = path(home);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("reading {}", path.display()))?,
    };
    let mut found: Vec<Use> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for used in bytes.split(|byte| *byte == b'\n').rev().filter_map(|line| serde_json::from_slice::<Use>(line).ok()) {
        if seen.insert((used.image.clone(), used.digest)) {
            found.push(used);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(at: u64, image: &str) -> Use {
        Use { used_s: at, image: image.into(), digest: Digest::of(image.as_bytes()) }
    }

    #[test]
    fn the_last_use_of_each_newest_first_and_damage_passed_over() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(read(home.path()).unwrap(), []);
        append(home.path(), [used(1, "a"), used(2, "b")].into_iter()).unwrap();
        std::fs::write(path(home.path()), [std::fs::read(path(home.path())).unwrap(), b"{\"cut\":\n\xff\n".to_vec()].concat()).unwrap();
        append(home.path(), std::iter::once(used(3, "a"))).unwrap();
        assert_eq!(read(home.path()).unwrap(), [used(3, "a"), used(2, "b")]);
    }

    #[test]
    fn it_does_not_grow_without_bound_and_keeps_the_newest() {
        let home = tempfile::tempdir().unwrap();
        for at in 0..8000 {
            append(home.path(), std::iter::once(used(at, "tools/app:1.0"))).unwrap();
        }
        assert!(std::fs::metadata(path(home.path())).unwrap().len() <= MAX_LEN);
        assert_eq!(read(home.path()).unwrap(), [used(7999, "tools/app:1.0")]);
    }
}
