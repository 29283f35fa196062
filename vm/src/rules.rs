//! What holds for which path: isolation modes, modes of single files, attributes.

use std::collections::BTreeMap;

use layer_format::LayerPath;
use layer_format::manifest::{Attributes, FileMode, Mode};

/// The rules of one run, all conflicts between layers and the command line already decided.
///
/// A path takes the mode of its nearest ancestor or itself that states one. The mode of a file beats that of its directory.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    default: Mode,
    modes: BTreeMap<LayerPath, Mode>,
    files: BTreeMap<LayerPath, FileMode>,
    attributes: BTreeMap<LayerPath, Attributes>,
    kept: BTreeMap<LayerPath, usize>,
}

impl Rules {
    /// Rules by which every path has the mode `default`.
    pub fn new(default: Mode) -> Self {
        Self { default, ..Self::default() }
    }

    /// States a mode for a path and what is below; the first statement for a path wins. Of the root it replaces the default.
    pub fn state(&mut self, path: LayerPath, mode: Mode) {
        self.modes.entry(path).or_insert(mode);
    }

    /// States a mode for a single file; the first statement wins.
    pub fn state_file(&mut self, path: LayerPath, mode: FileMode) {
        self.files.entry(path).or_insert(mode);
    }

    /// Adds attributes of a path to those it has.
    pub fn add_attributes(&mut self, path: LayerPath, more: Attributes) {
        let have = self.attributes.entry(path).or_default();
        have.hidden |= more.hidden;
        have.read_only |= more.read_only;
        have.no_sync |= more.no_sync;
        have.no_upgrade |= more.no_upgrade;
    }

    /// Keeps what `layer` (0 is the lowest) has at a path from being replaced by higher layers; the lowest such layer wins.
    pub fn keep(&mut self, path: LayerPath, layer: usize) {
        let kept = self.kept.entry(path).or_insert(layer);
        *kept = layer.min(*kept);
    }

    /// The mode of a path.
    pub fn mode(&self, path: &LayerPath) -> Mode {
        nearest(path, |path| self.modes.get(path).copied()).unwrap_or(self.default)
    }

    /// The mode that is stated for a single file.
    pub fn file_mode(&self, path: &LayerPath) -> Option<FileMode> {
        self.files.get(path).copied()
    }

    /// Whether listings leave the path out though opening it works.
    pub fn is_hidden(&self, path: &LayerPath) -> bool {
        self.attributes.get(path).is_some_and(|found| found.hidden) || self.files.get(path) == Some(&FileMode::Hide)
    }

    /// Whether the path itself has the attribute `hidden`, which forbids copying it to the sandbox.
    pub fn may_not_be_copied(&self, path: &LayerPath) -> bool {
        self.attributes.get(path).is_some_and(|found| found.hidden)
    }

    /// Whether writes to the path are refused.
    pub fn is_read_only(&self, path: &LayerPath) -> bool {
        !self.attributes.is_empty() && nearest(path, |path| self.attributes.get(path).filter(|found| found.read_only)).is_some()
    }

    /// Whether what is written to the path is left out of states.
    pub fn is_local(&self, path: &LayerPath) -> bool {
        !self.attributes.is_empty() && nearest(path, |path| self.attributes.get(path).filter(|found| found.no_sync)).is_some()
    }

    /// The layer (0 is the lowest) whose file at this path no higher layer replaces.
    pub fn kept_by(&self, path: &LayerPath) -> Option<usize> {
        self.kept.get(path).copied()
    }

    /// Whether the host shows through at a path.
    pub fn shows_host(&self, path: &LayerPath) -> bool {
        match self.file_mode(path) {
            Some(FileMode::Full | FileMode::Hide) => false,
            Some(FileMode::Defaulted) => true,
            None => matches!(self.mode(path), Mode::WriteCopy | Mode::Merge),
        }
    }

    /// Whether the host shows through somewhere below a path, so that the path must exist.
    pub fn leads_to_host(&self, path: &LayerPath) -> bool {
        self.modes.iter().any(|(stated, mode)| *mode < Mode::Full && stated != path && stated.starts_with(path))
    }

    /// Whether the host shows through anywhere.
    pub fn show_host_anywhere(&self) -> bool {
        self.shows_host(&LayerPath::root()) || self.leads_to_host(&LayerPath::root()) || self.files.values().any(|mode| *mode == FileMode::Defaulted)
    }

    /// All paths that state a mode, with it, in order; the root's is [`Rules::mode`] of it.
    pub fn stated(&self) -> impl Iterator<Item = (&LayerPath, Mode)> {
        self.modes.iter().map(|(path, mode)| (path, *mode))
    }

    /// Whether a mode is stated for exactly this path.
    pub fn states(&self, path: &LayerPath) -> bool {
        self.modes.contains_key(path) || self.files.contains_key(path)
    }

    /// All single files that state a mode, in order.
    pub fn stated_files(&self) -> impl Iterator<Item = (&LayerPath, FileMode)> {
        self.files.iter().map(|(path, mode)| (path, *mode))
    }

    /// All paths with attributes, in order.
    pub fn stated_attributes(&self) -> impl Iterator<Item = (&LayerPath, Attributes)> {
        self.attributes.iter().map(|(path, attributes)| (path, *attributes))
    }
}

/// What the nearest ancestor of a path, or itself, gives.
fn nearest<T>(path: &LayerPath, get: impl Fn(&LayerPath) -> Option<T>) -> Option<T> {
    std::iter::successors(Some(path.clone()), LayerPath::parent).find_map(|path| get(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> LayerPath {
        LayerPath::new(text).unwrap()
    }

    #[test]
    fn the_nearest_statement_wins() {
        let mut rules = Rules::new(Mode::Full);
        for (at, mode) in [("usr", Mode::WriteCopy), ("usr", Mode::Full), ("usr/local", Mode::Full)] {
            rules.state(path(at), mode);
        }
        for (at, mode) in [("", Mode::Full), ("usr", Mode::WriteCopy), ("usr/lib/x", Mode::WriteCopy), ("usr/local/x", Mode::Full), ("usrx", Mode::Full)] {
            assert_eq!(rules.mode(&path(at)), mode, "{at}");
        }
        assert!(rules.leads_to_host(&path("")) && rules.show_host_anywhere());
        assert!(!rules.leads_to_host(&path("usr/local")));
        rules.state_file(path("usr/lib/x"), FileMode::Full);
        assert!(!rules.shows_host(&path("usr/lib/x")) && rules.shows_host(&path("usr/lib/y")));
    }

    #[test]
    fn attributes_of_directories_cover_what_is_below_but_hidden_does_not() {
        let mut rules = Rules::default();
        rules.add_attributes(path("a"), Attributes { read_only: true, ..Attributes::default() });
        rules.add_attributes(path("a"), Attributes { hidden: true, ..Attributes::default() });
        rules.add_attributes(path("a/b"), Attributes { no_sync: true, ..Attributes::default() });
        assert!(rules.is_read_only(&path("a/b/c")) && rules.is_local(&path("a/b/c")) && !rules.is_local(&path("a")));
        assert!(rules.is_hidden(&path("a")) && !rules.is_hidden(&path("a/b")));
        rules.keep(path("f"), 2);
        rules.keep(path("f"), 1);
        assert_eq!(rules.kept_by(&path("f")), Some(1));
    }
}
