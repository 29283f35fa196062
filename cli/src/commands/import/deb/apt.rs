//! Packages that apt knows: which are needed, and fetched into a folder, as an ordinary user.
//!
//! Nothing is installed: `apt-get --simulate install` says what the host lacks, `apt-get download` fetches it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Package;

/// Most packages of one import.
const MAX_PACKAGES: usize = 2000;

/// A package as apt names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// `name` or `name:architecture`.
    pub(super) name: String,
    /// The version; apt's choice if `None`.
    pub(super) version: Option<String>,
}

impl Wanted {
    fn argument(&self) -> String {
        self.version.as_ref().map_or_else(|| self.name.clone(), |version| format!("{}={version}", self.name))
    }
}

/// Whether a text can be a package's name, perhaps with an architecture or a version: nothing that apt takes for an option
/// or a pattern.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".+-:=~".contains(c);
    text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) && text.chars().all(allowed) && !text.ends_with(['+', '-'])
        || ["g++", "libstdc++", "c++"].contains(&text)
}

/// What an installation of these would bring that the host lacks, in the order in which it would be configured:
/// `packages` are names, or absolute paths of package files.
pub(super) fn needed(packages: &[String]) -> Result<Vec<Wanted>> {
    let mut arguments = vec!["--simulate".to_owned(), "--no-install-recommends".into(), "-q".into(), "install".into(), "--".into()];
    arguments.extend(packages.iter().cloned());
    let text = run(&arguments, Path::new("/")).with_context(|| format!("apt cannot say what {} needs", packages.join(", ")))?;
    let wanted = parse(&text);
    if wanted.len() > MAX_PACKAGES {
        bail!("{} packages are needed; an image takes at most {MAX_PACKAGES}", wanted.len());
    }
    Ok(wanted)
}

/// Lines such as `Inst libfoo:amd64 [1.0] (1.2-3 Debian:12.5/stable [amd64]) []`.
fn parse(text: &str) -> Vec<Wanted> {
    let line = |line: &str| {
        let mut words = line.strip_prefix("Inst ")?.split_whitespace();
        let name = words.next()?.to_owned();
        let version = words.find_map(|word| word.strip_prefix('(')).map(|version| version.trim_end_matches(')').to_owned());
        Some(Wanted { name, version })
    };
    text.lines().filter_map(line).collect()
}

/// Fetches these into the folder, and opens them, in their order.
pub(super) fn download(wanted: &[Wanted], folder: &Path) -> Result<Vec<Package>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let before: Vec<PathBuf> = files(folder)?;
    let mut arguments = vec!["-qq".to_owned(), "download".into(), "--".into()];
    arguments.extend(wanted.iter().map(Wanted::argument));
    run(&arguments, folder).with_context(|| format!("apt cannot fetch {}", arguments[3..].join(", ")))?;
    let mut found: BTreeMap<String, Vec<Package>> = BTreeMap::new();
    for path in files(folder)?.into_iter().filter(|path| !before.contains(path)) {
        let package = Package::open(&path)?;
        found.entry(package.control.package().to_owned()).or_default().push(package);
    }
    let mut packages = Vec::new();
    for wanted in wanted {
        let (name, architecture) = wanted.name.split_once(':').map_or((wanted.name.as_str(), None), |(name, architecture)| (name, Some(architecture)));
        let name = name.split_once('=').map_or(name, |(name, _)| name);
        let of_name = found.get_mut(name).with_context(|| format!("apt fetched no package {name}"))?;
        let suits =
            |package: &Package| architecture.is_none_or(|architecture| [Some(architecture), Some("all")].contains(&package.control.get("architecture")));
        let at = of_name.iter().position(suits).with_context(|| format!("apt fetched no package {}", wanted.name))?;
        packages.push(of_name.remove(at));
    }
    Ok(packages)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

/// Runs apt-get, and returns what it prints.
fn run(arguments: &[String], folder: &Path) -> Result<String> {
    let output = Command::new("apt-get").args(arguments).current_dir(folder).env("LC_ALL", "C").stdin(std::process::Stdio::null()).output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("this machine has no apt-get; give .deb files, without --with-dependencies"),
        other => other.context("starting apt-get")?,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // What cannot be had is on stdout, and explains the rest.
        let told = String::from_utf8_lossy(&output.stdout);
        let unmet = told.lines().map(str::trim).filter(|line| line.contains("Depends: ") && line.contains(" but "));
        let errors: Vec<&str> = unmet.chain(said.lines().filter_map(|line| line.trim().strip_prefix("E: "))).collect();
        bail!("{}", if errors.is_empty() { said.trim().to_owned() } else { errors.join("; ") });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_install_is_read_in_its_order() {
        let text = "NOTE: This is only a simulation!\nRemv old [1]\nInst libfoo1 (1.2-3 Debian:12.5/stable [amd64])\n\
                    Inst libc6:i386 [2.36-9] (2.36-9+deb12u4 Debian:12.5/stable [i386]) []\nInst local (1)\nConf libfoo1 (1.2-3 Debian:12.5/stable [amd64])\n";
        let wanted: Vec<(String, Option<String>)> = parse(text).into_iter().map(|wanted| (wanted.name, wanted.version)).collect();
        let expected =
            [("libfoo1", "1.2-3"), ("libc6:i386", "2.36-9+deb12u4"), ("local", "1")].map(|(name, version)| (name.to_owned(), Some(version.to_owned())));
        assert_eq!(wanted, expected);
    }

    #[test]
    fn names_are_no_options_and_no_patterns() {
        for good in ["hello", "g++", "libstdc++6", "libc6:i386", "hello=2.10-3", "0ad"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-o", "--config-file=x", "hello-", "hello+", "a*", "?all", "~nx", "a/b", "a b", "^x"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
