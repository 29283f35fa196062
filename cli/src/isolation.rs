//! Isolation of a run: what images state and what `--isolate` asks for, made one set of rules.
//!
//! Of two images that state a mode for one path the first of the list wins; those of `--using` come after all others.
//! `--isolate` never weakens what an image states: the stricter of the two holds. Where no image states anything,
//! `--isolate` holds, and without it write-copy. With `merge-user` the user's folders are Merge, whatever the level, unless
//! an image states something stricter for a place inside them.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use layer_format::LayerPath;
use layer_format::manifest::{FileMode, LayerManifest, Mode};
use serde::Serialize;

use crate::exit::UsageError;
use crate::stack::{Role, Stack};
use crate::user_folders::user_folders;

/// What `--isolate` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// The mode of all that no image states, and the least that holds everywhere; `None` if it was not given.
    pub mode: Option<Mode>,
    /// Whether the user's folders are Merge.
    pub merge_user: bool,
}

impl FromStr for Level {
    type Err = UsageError;

    /// `full`, `write-copy`, `merge`, `merge-user`, or one of them `+merge-user`.
    fn from_str(text: &str) -> Result<Self, UsageError> {
        let mut level = Self::default();
        for part in text.split('+') {
            match part {
                "merge-user" if !level.merge_user => level.merge_user = true,
                "merge-user" | "hide" => return Err(wrong_level(text)),
                mode if level.mode.is_none() => level.mode = Some(mode.parse().map_err(|_| wrong_level(text))?),
                _ => return Err(wrong_level(text)),
            }
        }
        if level.merge_user {
            level.mode.get_or_insert(Mode::WriteCopy);
        }
        Ok(level)
    }
}

fn wrong_level(text: &str) -> UsageError {
    UsageError(format!("`{text}` is not a level of isolation: full, write-copy, merge, merge-user, full+merge-user or write-copy+merge-user"))
}

impl fmt::Display for Level {
    /// As `--isolate` takes it; empty if it was not given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.mode, self.merge_user) {
            (None, false) => Ok(()),
            (None, true) => f.write_str("merge-user"),
            (Some(mode), false) => mode.fmt(f),
            (Some(mode), true) => write!(f, "{mode}+merge-user"),
        }
    }
}

/// A layer that states rules.
#[derive(Clone, Copy, Debug)]
pub struct Stated<'a> {
    /// Name of its image.
    pub by: &'a str,
    /// The layer.
    pub layer: &'a LayerManifest,
    /// Its place among the layers of the run, 0 is the lowest.
    pub place: usize,
}

/// What holds where, besides the layers.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// What `--isolate` asks for.
    pub level: Level,
    /// Whether Merge is allowed at all; if not, write-copy stands in its place.
    pub allow_merge: bool,
    /// The user's folders, absolute.
    pub user_folders: Vec<PathBuf>,
}

/// A mode that holds for a path, and who stated it, or others in vain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// Absolute.
    pub path: String,
    /// What holds.
    pub mode: Mode,
    /// The image that states it; `--isolate` if no image does.
    pub stated_by: String,
    /// What others state: `MODE (from IMAGE)`.
    pub overridden: Vec<String>,
}

/// The rules of a run, and what is worth telling about them.
#[derive(Clone, Debug)]
pub struct Composed {
    /// For the VM.
    pub rules: vm::Rules,
    /// Every path that states a mode, in order.
    pub effective: Vec<Effective>,
    /// Paths that an image opens for writing on the host though nobody asked for it, and the image.
    pub opened: Vec<(String, String)>,
}

/// Joins what layers state, in the order in which they win.
pub fn compose(layers: &[Stated<'_>], circumstances: &Circumstances) -> Result<Composed> {
    let Circumstances { level, allow_merge, user_folders } = circumstances;
    let mut stated: BTreeMap<LayerPath, Effective> = BTreeMap::new();
    for Stated { by, layer, .. } in layers {
        for rule in &layer.isolation {
            let path = parse(&rule.path)?;
            match stated.get_mut(&path) {
                None => {
                    let first = Effective { path: shown(&path), mode: rule.mode, stated_by: (*by).into(), overridden: Vec::new() };
                    stated.insert(path, first);
                }
                Some(first) if first.mode != rule.mode => first.overridden.push(format!("{} (from {by})", rule.mode)),
                Some(_) => {}
            }
        }
    }
    let within = |path: &LayerPath, folders: &[LayerPath]| folders.iter().any(|folder| path.starts_with(folder));
    let mut folders = Vec::new();
    for folder in user_folders.iter().filter(|_| level.merge_user && *allow_merge) {
        folders.push(LayerPath::from_absolute(folder.as_os_str().as_bytes()).with_context(|| format!("the user's folder {}", folder.display()))?);
    }
    let mut opened = Vec::new();
    for (path, effective) in &mut stated {
        // Inside a user folder the image alone decides: the level does not reach there.
        let least = level.mode.filter(|_| !within(path, &folders));
        let floor = least.into_iter().chain((!allow_merge).then_some(Mode::WriteCopy)).max();
        if let Some(floor) = floor.filter(|floor| *floor > effective.mode) {
            effective.overridden.insert(0, format!("{} (from {})", effective.mode, effective.stated_by));
            effective.stated_by = if least == Some(floor) { "--isolate".into() } else { "the configuration".into() };
            effective.mode = floor;
        } else if effective.mode == Mode::Merge && level.mode.is_none() {
            opened.push((effective.path.clone(), effective.stated_by.clone()));
        }
    }
    for folder in folders {
        let merged = || Effective { path: shown(&folder), mode: Mode::Merge, stated_by: "--isolate".into(), overridden: Vec::new() };
        stated.entry(folder.clone()).or_insert_with(merged);
    }
    let default = level.mode.unwrap_or_default();
    let default = if *allow_merge { default } else { default.max(Mode::WriteCopy) };
    let mut rules = vm::Rules::new(stated.get(&LayerPath::root()).map_or(default, |root| root.mode));
    for (path, effective) in stated.iter().filter(|(path, _)| !path.is_root()) {
        rules.state(path.clone(), effective.mode);
    }
    single_paths(&mut rules, layers, circumstances, &mut opened)?;
    Ok(Composed { rules, effective: stated.into_values().collect(), opened })
}

/// Modes of single files, and attributes.
fn single_paths(rules: &mut vm::Rules, layers: &[Stated<'_>], circumstances: &Circumstances, opened: &mut Vec<(String, String)>) -> Result<()> {
    let mut files: BTreeMap<LayerPath, (FileMode, &str)> = BTreeMap::new();
    for Stated { by, layer, place } in layers {
        for rule in &layer.files {
            files.entry(parse(&rule.path)?).or_insert((rule.mode, by));
        }
        for rule in &layer.attributes {
            let path = parse(&rule.path)?;
            if rule.attributes.no_upgrade {
                rules.keep(path.clone(), *place);
            }
            rules.add_attributes(path, rule.attributes);
        }
    }
    for (path, (mode, by)) in files {
        if mode == FileMode::Defaulted {
            // The file is the host's, also to write: what keeps the host from being written takes it away.
            let host_is_kept = circumstances.level.mode >= Some(Mode::WriteCopy) || !circumstances.allow_merge || rules.mode(&path) >= Mode::Full;
            if host_is_kept {
                continue;
            }
            if circumstances.level.mode.is_none() {
                opened.push((shown(&path), by.to_owned()));
            }
        }
        rules.state_file(path, mode);
    }
    Ok(())
}

fn parse(path: &str) -> Result<LayerPath> {
    LayerPath::from_absolute(path.as_bytes()).with_context(|| format!("the path {path} of an isolation rule"))
}

fn shown(path: &LayerPath) -> String {
    format!("/{}", String::from_utf8_lossy(path.as_bytes()))
}

/// The layers of a stack in the order in which their rules win: all but those of `--using`, lowest first, then those.
pub fn stated(stack: &Stack) -> Vec<(String, usize, &LayerManifest)> {
    let mut all = Vec::new();
    let mut place = 0;
    for member in &stack.members {
        for layer in member.layer_manifests() {
            all.push((member.role == Role::Using, (member.reference.to_string(), place, layer)));
            place += 1;
        }
    }
    all.sort_by_key(|(using, _)| *using);
    all.into_iter().map(|(_, stated)| stated).collect()
}

/// The rules of a run over these images.
pub fn rules(stack: &Stack, level: &Level, allow_merge: bool) -> Result<Composed> {
    let stated = stated(stack);
    let layers: Vec<Stated<'_>> = stated.iter().map(|(by, place, layer)| Stated { by, layer, place: *place }).collect();
    let user_folders = if level.merge_user { user_folders() } else { Vec::new() };
    compose(&layers, &Circumstances { level: level.clone(), allow_merge, user_folders })
}

#[cfg(test)]
#[path = "isolation_tests.rs"]
mod tests;
