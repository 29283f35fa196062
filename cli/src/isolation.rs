//! Isolation of a run: what images state and what `--isolate` asks for, made one set of rules.
//!
//! Of two images that state a mode for one path the first of the list wins. `--isolate` never weakens what an image states:
//! the stricter of the two holds. Where no image states anything, `--isolate` holds, and without it write-copy.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use layer_format::LayerPath;
use layer_format::manifest::Mode;

use crate::stack::Stack;

/// What `--isolate` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// The mode of all that no image states, and the least that holds everywhere; `None` if it was not given.
    pub mode: Option<Mode>,
}

/// The rules of a run over these images.
pub fn rules(stack: &Stack, level: &Level) -> Result<vm::Rules> {
    let mut stated: BTreeMap<LayerPath, Mode> = BTreeMap::new();
    for rule in stack.layer_manifests().flat_map(|layer| &layer.isolation) {
        let path = LayerPath::from_absolute(rule.path.as_bytes()).with_context(|| format!("the path {} of an isolation rule", rule.path))?;
        stated.entry(path).or_insert(rule.mode);
    }
    let strict = |mode: Mode| level.mode.map_or(mode, |level| mode.max(level));
    let root = stated.remove(&LayerPath::root()).map_or(level.mode.unwrap_or_default(), strict);
    let mut rules = vm::Rules::new(root);
    for (path, mode) in stated {
        rules.state(path, strict(mode));
    }
    Ok(rules)
}
