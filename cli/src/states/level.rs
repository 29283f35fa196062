//! The level of isolation that a container remembers, made a part of an image.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use layer_format::manifest::{IsolationRule, Mode};

use crate::isolation::Level;

/// The mode of all that no image states, of a level such as `full+merge-user`. Folders of the user are those of each machine,
/// so an image does not state them.
pub fn of(level: Option<&str>) -> Result<Option<Mode>> {
    let Some(text) = level else { return Ok(None) };
    let level: Level = text.parse().with_context(|| format!("the container's level of isolation `{text}`"))?;
    Ok(level.mode)
}

/// What has to be stated before these rules, lowest layer first, so that each path has what it had under that level: the
/// stricter of the two.
pub fn stricter<'a>(level: Mode, stated: impl Iterator<Item = &'a IsolationRule>) -> Vec<IsolationRule> {
    let mut modes: BTreeMap<String, Mode> = BTreeMap::new();
    for rule in stated {
        let path = rule.path.trim_end_matches('/');
        modes.entry(if path.is_empty() { "/".into() } else { path.to_owned() }).or_insert(rule.mode);
    }
    modes.entry("/".into()).or_insert(level);
    modes.into_iter().map(|(path, mode)| IsolationRule { path, mode: mode.max(level) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_never_weakens_and_the_first_statement_counts() {
        let rule = |path: &str, mode| IsolationRule { path: path.into(), mode };
        let stated = [rule("/opt/git/", Mode::Merge), rule("/opt/git", Mode::Full), rule("/srv", Mode::Hide)];
        let rules = stricter(Mode::Full, stated.iter());
        assert_eq!(rules, [rule("/", Mode::Full), rule("/opt/git", Mode::Full), rule("/srv", Mode::Hide)]);
        assert_eq!(stricter(Mode::Merge, stated.iter())[1], rule("/opt/git", Mode::Merge));
        assert_eq!((of(None).unwrap(), of(Some("full+merge-user")).unwrap(), of(Some("merge-user")).unwrap()), (None, Some(Mode::Full), Some(Mode::WriteCopy)));
        assert!(of(Some("nonsense")).is_err());
    }
}
