//! Which crate of the workspace may use which. The table is the architecture: a new edge is a
//! decision, taken here and in the documentation, never a side effect.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace;

/// What each crate may use. Development dependencies follow the same table.
const ALLOWED: &[(&str, &[&str])] = &[
    ("layer-format", &[]),
    ("chunker", &["layer-format"]),
    ("predictor", &["layer-format"]),
    ("client-store", &["layer-format", "predictor"]),
    ("vm", &["layer-format", "client-store"]),
    ("registry", &["layer-format", "predictor", "chunker"]),
    ("cli", &["layer-format", "chunker", "predictor", "client-store", "vm"]),
    ("xtask", &[]),
];

/// These may use anything but xtask, and only these may use each other.
const TOP: &[&str] = &["integration-tests", "benchmarks"];

/// Fails if a crate uses another that it must not know, and prints each such edge.
pub(crate) fn check() -> Result<()> {
    let output = workspace::cargo("metadata").args(["--no-deps", "--format-version", "1"]).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let edges = edges(&metadata)?;
    let wrong: Vec<_> = edges.iter().filter(|(from, to)| !allowed(from, to)).collect();
    for (from, to) in &wrong {
        println!("{from} must not use {to}");
    }
    if !wrong.is_empty() {
        bail!("{} of {} edges between crates are not allowed", wrong.len(), edges.len());
    }
    println!("{} edges between crates, all allowed", edges.len());
    Ok(())
}

fn allowed(from: &str, to: &str) -> bool {
    if TOP.contains(&from) {
        return to != "xtask";
    }
    ALLOWED.iter().any(|(name, uses)| *name == from && uses.contains(&to))
}

/// Every dependency of a member of the workspace on another: normal, development or build.
fn edges(metadata: &Value) -> Result<Vec<(String, String)>> {
    let mut edges = Vec::new();
    for package in metadata["packages"].as_array().context("cargo metadata lists no packages")? {
        let from = package["name"].as_str().context("a package has no name")?;
        for dependency in package["dependencies"].as_array().context("a package has no list of dependencies")? {
            // Only members of the workspace are referred to by path.
            if dependency["path"].is_string() {
                let to = dependency["name"].as_str().context("a dependency has no name")?;
                edges.push((from.to_owned(), to.to_owned()));
            }
        }
    }
    edges.sort();
    edges.dedup();
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_drawing() {
        for (from, to) in [("vm", "client-store"), ("registry", "chunker"), ("integration-tests", "registry"), ("benchmarks", "integration-tests")] {
            assert!(allowed(from, to), "{from} -> {to}");
        }
        for (from, to) in [
            ("vm", "registry"),
            ("cli", "registry"),
            ("predictor", "client-store"),
            ("vm", "integration-tests"),
            ("cli", "benchmarks"),
            ("benchmarks", "xtask"),
            ("new-crate", "layer-format"),
        ] {
            assert!(!allowed(from, to), "{from} -> {to}");
        }
    }

    #[test]
    fn every_kind_of_dependency_counts_and_foreign_crates_do_not() {
        let metadata = serde_json::json!({"packages": [{"name": "vm", "dependencies": [
            {"name": "registry", "path": "/somewhere/registry", "kind": "dev"},
            {"name": "libc", "kind": null},
        ]}]});
        assert_eq!(edges(&metadata).unwrap(), [("vm".to_owned(), "registry".to_owned())]);
        assert!(edges(&serde_json::json!({})).is_err());
    }
}
