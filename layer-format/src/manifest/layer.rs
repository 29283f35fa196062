//! The manifest of a layer.

use serde::{Deserialize, Serialize};

use super::{AttributeRule, Condition, EnvIsolation, EnvVar, FileMode, FileRule, IsolationRule, Manifest, Mode, check_absolute, is_default};
use crate::codec::FormatError;
use crate::digest::Digest;

/// A layer: the root of its tree, and what it states besides files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerManifest {
    /// Always [`LayerManifest::FORMAT`].
    pub format: String,
    /// Features that a reader must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Root node of the tree.
    pub root: Digest,
    /// Number of entries.
    pub entries: u64,
    /// Bytes of all files, each name counted once.
    pub bytes: u64,
    /// Isolation modes, any order, no path twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolation: Vec<IsolationRule>,
    /// Variables, applied in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<EnvVar>,
    /// Which of the host's variables are visible. Feature `environment-isolation`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub environment_isolation: EnvIsolation,
    /// Modes of single files, no path twice. Feature `file-modes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileRule>,
    /// Attributes of paths, no path twice. Feature `attributes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<AttributeRule>,
    /// Where the layer takes part; everywhere if absent. Feature `condition`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
}

impl Manifest for LayerManifest {
    const FORMAT: &'static str = "turbo-layer/1";
    const FEATURES: &'static [&'static str] = &["attributes", "condition", "environment-isolation", "file-modes"];

    fn format(&self) -> &str {
        &self.format
    }

    fn requires(&self) -> &[String] {
        &self.requires
    }

    fn check(&self) -> Result<(), FormatError> {
        check_paths(self.isolation.iter().map(|rule| &rule.path))?;
        check_paths(self.files.iter().map(|rule| &rule.path))?;
        check_paths(self.attributes.iter().map(|rule| &rule.path))?;
        // A file that the host owns under a directory that hides the host is a contradiction.
        let full = |path: &str| self.stated_mode(path) >= Some(Mode::Full);
        if self.files.iter().any(|rule| rule.mode == FileMode::Defaulted && full(&rule.path)) {
            return Err(FormatError::invalid("layer", "a defaulted file is not below a directory that is full or hidden"));
        }
        let variables = self.environment.iter().map(|var| (&var.name, var.value.as_str()));
        let isolated = self.environment_isolation.variables.keys().map(|name| (name, ""));
        if variables.chain(isolated).any(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')) {
            return Err(FormatError::invalid("layer", "a variable has a name without `=`, and no NUL"));
        }
        if let Some(condition) = &self.condition {
            condition.check(0)?;
        }
        match self.features().into_iter().find(|feature| !self.requires.iter().any(|known| known == feature)) {
            Some(_) => Err(FormatError::invalid("layer", "what a reader must not ignore is named in `requires`")),
            None => Ok(()),
        }
    }
}

fn check_paths<'a>(paths: impl Iterator<Item = &'a String>) -> Result<(), FormatError> {
    let mut seen = std::collections::BTreeSet::new();
    for path in paths {
        check_absolute(path)?;
        if !seen.insert(path) {
            return Err(FormatError::invalid("layer", "a path has one rule of a kind"));
        }
    }
    Ok(())
}

impl LayerManifest {
    /// A layer that states nothing but its tree.
    pub fn new(root: Digest, entries: u64, bytes: u64) -> Self {
        Self {
            format: Self::FORMAT.into(),
            requires: vec![],
            root,
            entries,
            bytes,
            isolation: vec![],
            environment: vec![],
            environment_isolation: EnvIsolation::default(),
            files: vec![],
            attributes: vec![],
            condition: None,
        }
    }

    /// Names in `requires` all features that the layer uses.
    #[must_use]
    pub fn with_features(mut self) -> Self {
        self.requires = self.features().into_iter().map(Into::into).collect();
        self
    }

    /// What a reader must know to do justice to this layer.
    fn features(&self) -> Vec<&'static str> {
        let used = [!self.attributes.is_empty(), self.condition.is_some(), !is_default(&self.environment_isolation), !self.files.is_empty()];
        Self::FEATURES.iter().zip(used).filter(|(_, used)| *used).map(|(name, _)| *name).collect()
    }

    /// The mode that this layer states for a path or its nearest ancestor.
    fn stated_mode(&self, path: &str) -> Option<Mode> {
        let within = |rule: &&IsolationRule| {
            let stated = rule.path.trim_end_matches('/');
            path.strip_prefix(stated).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.isolation.iter().filter(within).max_by_key(|rule| rule.path.trim_end_matches('/').len()).map(|rule| rule.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_be_ignored_is_required() {
        let mut layer = LayerManifest::new(Digest::of(b"root"), 1, 0);
        assert_eq!(layer.clone().with_features(), layer);
        layer.files.push(FileRule { path: "/etc/app.conf".into(), mode: FileMode::Defaulted });
        layer.condition = Some(Condition::Host("kernel:>=6.1".into()));
        assert!(layer.encode().is_err());
        let layer = layer.with_features();
        assert_eq!(layer.requires, ["condition", "file-modes"]);
        assert_eq!(LayerManifest::decode(&layer.encode().unwrap()), Ok(layer.clone()));
        let mut contradiction = layer;
        contradiction.isolation = vec![IsolationRule { path: "/".into(), mode: Mode::Merge }, IsolationRule { path: "/etc".into(), mode: Mode::Full }];
        assert!(contradiction.encode().is_err());
        contradiction.isolation.swap(0, 1);
        contradiction.isolation[0].path = "/et".into();
        assert!(contradiction.encode().is_ok());
    }
}
