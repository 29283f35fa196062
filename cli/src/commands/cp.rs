//! `turbo cp`.

use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};
use serde_json::json;

use crate::app::App;
use crate::exit::{Exit, UsageError};
use crate::forks::Forks;
use crate::output::note;
use crate::side::{Side, copy};

/// Copy files between the host and containers.
///
/// A path in a container is written CONTAINER:/PATH. Files keep mode, times, extended attributes, links and holes. A folder
/// is copied with all that is in it; FOLDER/. stands for what is in it. Of a container that does not run, files are read and
/// written as its application would.
#[derive(Debug, clap::Args)]
pub struct Cp {
    /// What is copied: PATH on the host, or CONTAINER:/PATH.
    source: String,
    /// Where to: into a folder that exists, or under this name.
    target: String,
}

/// A path as it was given.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the container; `None` for the host.
    pub container: Option<String>,
    /// Absolute in a container; as given on the host.
    pub path: PathBuf,
    /// Whether it ends in `/`: it must be a folder.
    pub is_folder: bool,
    /// Whether it ends in `/.`: what is in the folder.
    pub is_content: bool,
}

impl Place {
    fn parse(text: &str) -> Result<Self, UsageError> {
        let (container, path) = match text.split_once(":") {
            Some((name, path)) if !name.is_empty() && !name.contains('/') && !name.starts_with('.') => (Some(name.to_owned()), path),
            _ => (None, text),
        };
        if container.is_some() && (!path.starts_with('/') || Path::new(path).components().any(|part| part == Component::ParentDir)) {
            return Err(UsageError(format!("`{text}`: a path in a container is absolute, without `..`, as in NAME:/folder/file")));
        }
        if path.is_empty() || path.contains('\0') {
            return Err(UsageError(format!("`{text}` is not a path")));
        }
        let is_content = path.ends_with("/.") || path == ".";
        Ok(Self { container, is_folder: is_content || path.ends_with('/'), is_content, path: path.into() })
    }
}

impl Cp {
    /// Copies.
    pub fn run(self, app: &App, mut forks: Forks) -> Result<Exit> {
        let (from, to) = (Place::parse(&self.source)?, Place::parse(&self.target)?);
        if from.container.is_none() && to.container.is_none() {
            bail!(UsageError("one of the two is a path in a container, as in NAME:/folder/file; `cp` copies on the host".into()));
        }
        let containers = app.containers();
        let find = |place: &Place| place.container.as_ref().map(|name| containers.get(name)).transpose();
        let (source, target) = (find(&from)?, find(&to)?);
        let is_same = source.as_ref().zip(target.as_ref()).is_some_and(|(one, other)| one.id == other.id);
        let source = Side::open(app, &mut forks, source, is_same)?;
        let target = if is_same { None } else { Some(Side::open(app, &mut forks, target, true)?) };
        drop(forks);
        let skipped = copy(&source, &from, target.as_ref().unwrap_or(&source), &to)?;
        skipped.iter().for_each(note);
        app.output.result(&json!({"source": self.source, "target": self.target, "skipped": skipped}), |_| Ok(()))?;
        Ok(Exit::Success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_containers_are_told_apart() {
        let place = |text: &str| Place::parse(text).unwrap();
        assert_eq!((place("app:/etc/x").container.as_deref(), place("app:/etc/x").path), (Some("app"), "/etc/x".into()));
        for host in ["a/b", "./a:b", "/x:y", "a", ".", "../a:/b"] {
            assert_eq!(place(host).container, None, "{host}");
        }
        assert!(place("app:/etc/.").is_content && place("app:/etc/").is_folder && !place("app:/etc").is_folder);
        for bad in ["app:etc", "app:", "", "app:/a/../../b"] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }
}
