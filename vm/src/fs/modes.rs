//! Which mode a path has.

use std::collections::BTreeMap;

use crate::spec::Mode;
use layer_format::LayerPath;

/// Modes of subtrees: a path takes that of its nearest ancestor or itself that states one.
#[derive(Clone, Debug)]
pub struct ModeMap {
    default: Mode,
    modes: BTreeMap<LayerPath, Mode>,
}

impl ModeMap {
    /// Of paths stated twice the first statement wins.
    pub fn new(default: Mode, modes: &[(LayerPath, Mode)]) -> Self {
        let mut map = BTreeMap::new();
        for (path, mode) in modes {
            map.entry(path.clone()).or_insert(*mode);
        }
        Self { default, modes: map }
    }

    /// The mode of a path.
    pub fn of(&self, path: &LayerPath) -> Mode {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            if let Some(mode) = self.modes.get(&path) {
                return *mode;
            }
            at = path.parent();
        }
        self.default
    }

    /// Whether the host shows through at a path.
    pub fn shows_host(&self, path: &LayerPath) -> bool {
        matches!(self.of(path), Mode::WriteCopy | Mode::Merge)
    }

    /// Whether the host shows through somewhere below a path, so that the path must exist.
    pub fn leads_to_host(&self, path: &LayerPath) -> bool {
        self.modes.iter().any(|(stated, mode)| *mode != Mode::Full && *mode != Mode::Hide && stated != path && stated.starts_with(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_statement_wins() {
        let path = |text: &str| LayerPath::new(text).unwrap();
        let map = ModeMap::new(Mode::Full, &[(path("usr"), Mode::WriteCopy), (path("usr"), Mode::Full), (path("usr/local"), Mode::Full)]);
        for (at, mode) in [("", Mode::Full), ("usr", Mode::WriteCopy), ("usr/lib/x", Mode::WriteCopy), ("usr/local/x", Mode::Full), ("usrx", Mode::Full)] {
            assert_eq!(map.of(&path(at)), mode, "{at}");
        }
        assert!(map.leads_to_host(&path("")));
        assert!(!map.leads_to_host(&path("usr/local")));
    }
}
