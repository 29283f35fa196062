//! The programs that are packed: built in release, and the server once more as a static program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace;

/// Builds the programs into this folder, the static server below `static/`. The static one is only linked again: nothing but the
/// last step depends on it.
pub(super) fn build(folder: &Path, static_too: bool) -> Result<PathBuf> {
    let release = workspace::target_dir().join("release");
    workspace::run(workspace::cargo("build").args(["--release", "-p", "cli", "-p", "registry", "--bins"]))?;
    for name in ["turbo", "turbo-registry"] {
        copy(&release.join(name), &folder.join(name))?;
    }
    if static_too {
        let mut link = workspace::cargo("rustc");
        link.args(["--release", "-p", "registry", "--bin", "turbo-registry", "--", "-C", "target-feature=+crt-static"]);
        workspace::run(&mut link)?;
        copy(&release.join("turbo-registry"), &folder.join("static/turbo-registry"))?;
    }
    Ok(folder.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Copies a program without what only debuggers need.
pub(super) fn strip(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let mut strip = Command::new("strip");
    strip.args(["--strip-all", "--remove-section=.comment", "--remove-section=.note", "-o"]).arg(to).arg(from);
    super::output(&mut strip).map(drop).with_context(|| format!("cannot strip {}: it takes binutils", from.display()))
}
