//! Layer and image manifests: canonical JSON (RFC 8785), named by the digest of their bytes.
//!
//! A reader ignores fields that it does not know, so that fields can be added; what an older reader must not ignore
//! is named in `requires`, and a reader refuses a name it does not know. The bytes as received are what the digest
//! covers: they are kept, and never encoded again.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec::FormatError;
use crate::digest::Digest;

/// Most bytes of a manifest.
pub const MAX_MANIFEST_LEN: usize = 4 << 20;
/// Most layers of an image.
pub const MAX_LAYERS: usize = 250;

/// How much of the host an application sees and touches, per folder. In order of strictness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Virtual and host content united; what is not virtual is read and written on the host.
    Merge,
    /// The host is visible below the layers, and never written.
    #[default]
    WriteCopy,
    /// The host is not visible.
    Full,
    /// Nothing is visible.
    Hide,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Merge => "merge",
            Self::WriteCopy => "write-copy",
            Self::Full => "full",
            Self::Hide => "hide",
        })
    }
}

/// An isolation mode stated for a path and what is below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationRule {
    /// Absolute path.
    pub path: String,
    /// The mode.
    pub mode: Mode,
}

/// How a variable joins what the host or an earlier image set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnvMerge {
    /// This value wins.
    #[default]
    Replace,
    /// This value, `:`, the earlier one.
    Prepend,
    /// The earlier one, `:`, this value.
    Append,
}

/// A variable that a layer sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
    /// How it joins earlier values.
    #[serde(default, skip_serializing_if = "is_default")]
    pub merge: EnvMerge,
}

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
}

/// A program that a launch of the image starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartupFile {
    /// Program and arguments, at least one.
    pub command: Vec<String>,
    /// Name of the group it belongs to; the default group if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
}

/// An image that this one needs at run time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Image reference.
    pub reference: String,
}

/// An image: layers, lowest first, and how to start it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageManifest {
    /// Always [`ImageManifest::FORMAT`].
    pub format: String,
    /// Features that a reader must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Processor architecture as `uname -m` names it, or `any`.
    pub architecture: String,
    /// Digests of layer manifests, lowest first, at most [`MAX_LAYERS`].
    pub layers: Vec<Digest>,
    /// What to start. An image without one is a modifier layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub startup_files: Vec<StartupFile>,
    /// Absolute path of the working directory; the host's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// Title, description, publisher and the like.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Images stacked below this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Dependency>,
    /// Conditions on the host, such as `kernel:>=6.1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<String>,
    /// A model that launches use in place of the learned one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Digest>,
}

/// What both kinds of manifest have in common.
pub trait Manifest: Serialize + DeserializeOwned {
    /// The value of `format`: kind and major version.
    const FORMAT: &'static str;
    /// Features known here.
    const FEATURES: &'static [&'static str] = &[];

    /// The value of `format` that this manifest has.
    fn format(&self) -> &str;
    /// What it requires of a reader.
    fn requires(&self) -> &[String];
    /// Checks the rules that the types do not express.
    ///
    /// # Errors
    /// The first rule that does not hold.
    fn check(&self) -> Result<(), FormatError>;

    /// The canonical bytes.
    ///
    /// # Errors
    /// Only if the manifest breaks its own rules.
    fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        serde_json_canonicalizer::to_vec(self).map_err(|error| json(Self::FORMAT, &error))
    }

    /// Parses a manifest.
    ///
    /// # Errors
    /// If it is too long, not the JSON of this kind, requires an unknown feature, or breaks a rule.
    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() > MAX_MANIFEST_LEN {
            return Err(FormatError::TooLarge { what: Self::FORMAT, value: bytes.len() as u64, max: MAX_MANIFEST_LEN as u64 });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| json(Self::FORMAT, &error))?;
        if manifest.format() != Self::FORMAT {
            return Err(FormatError::Json { what: Self::FORMAT, message: format!("`format` is `{}`", manifest.format().chars().take(80).collect::<String>()) });
        }
        if let Some(unknown) = manifest.requires().iter().find(|name| !Self::FEATURES.contains(&name.as_str())) {
            let unknown: String = unknown.chars().take(80).collect();
            return Err(FormatError::Json { what: Self::FORMAT, message: format!("it requires `{unknown}`, which a newer turbo knows") });
        }
        manifest.check()?;
        Ok(manifest)
    }
}

fn json(what: &'static str, error: &serde_json::Error) -> FormatError {
    FormatError::Json { what, message: error.to_string() }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn check_absolute(path: &str) -> Result<(), FormatError> {
    match path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..") {
        true => Ok(()),
        false => Err(FormatError::invalid("manifest", "a path is absolute, without `..`")),
    }
}

impl Manifest for LayerManifest {
    const FORMAT: &'static str = "turbo-layer/1";

    fn format(&self) -> &str {
        &self.format
    }

    fn requires(&self) -> &[String] {
        &self.requires
    }

    fn check(&self) -> Result<(), FormatError> {
        let mut seen = std::collections::BTreeSet::new();
        for rule in &self.isolation {
            check_absolute(&rule.path)?;
            if !seen.insert(&rule.path) {
                return Err(FormatError::invalid("layer", "a path has one isolation mode"));
            }
        }
        match self.environment.iter().any(|var| var.name.is_empty() || var.name.contains(['=', '\0']) || var.value.contains('\0')) {
            true => Err(FormatError::invalid("layer", "a variable has a name without `=`, and no NUL")),
            false => Ok(()),
        }
    }
}

impl LayerManifest {
    /// A layer that states nothing but its tree.
    pub fn new(root: Digest, entries: u64, bytes: u64) -> Self {
        Self { format: Self::FORMAT.into(), requires: vec![], root, entries, bytes, isolation: vec![], environment: vec![] }
    }
}

impl Manifest for ImageManifest {
    const FORMAT: &'static str = "turbo-image/1";

    fn format(&self) -> &str {
        &self.format
    }

    fn requires(&self) -> &[String] {
        &self.requires
    }

    fn check(&self) -> Result<(), FormatError> {
        let what = "image";
        if self.layers.len() > MAX_LAYERS {
            return Err(FormatError::TooLarge { what: "layers of an image", value: self.layers.len() as u64, max: MAX_LAYERS as u64 });
        }
        if self.startup_files.iter().any(|file| file.command.is_empty() || file.command.iter().any(|part| part.contains('\0'))) {
            return Err(FormatError::invalid(what, "a startup file names a program"));
        }
        if let Some(path) = &self.working_directory {
            check_absolute(path)?;
        }
        for dependency in &self.dependencies {
            dependency.reference.parse::<crate::reference::ImageReference>().map_err(|_| FormatError::invalid(what, "a dependency is an image reference"))?;
        }
        Ok(())
    }
}

impl ImageManifest {
    /// An image of these layers, lowest first, that states nothing else.
    pub fn new(architecture: impl Into<String>, layers: Vec<Digest>) -> Self {
        Self {
            format: Self::FORMAT.into(),
            requires: vec![],
            architecture: architecture.into(),
            layers,
            startup_files: vec![],
            working_directory: None,
            metadata: BTreeMap::new(),
            dependencies: vec![],
            requirements: vec![],
            model: None,
        }
    }

    /// The startup files of the default group, or of the group `trigger`.
    pub fn startup(&self, trigger: Option<&str>) -> impl Iterator<Item = &StartupFile> {
        self.startup_files.iter().filter(move |file| file.trigger.as_deref() == trigger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_image() {
        let mut image = ImageManifest::new("x86_64", vec![Digest::of(b"layer")]);
        image.startup_files.push(StartupFile { command: vec!["/bin/sh".into(), "-c".into(), "é".into()], trigger: None });
        let bytes = image.encode().unwrap();
        let expected = format!(
            r#"{{"architecture":"x86_64","format":"turbo-image/1","layers":["{}"],"startup_files":[{{"command":["/bin/sh","-c","é"]}}]}}"#,
            Digest::of(b"layer")
        );
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        assert_eq!(ImageManifest::decode(&bytes), Ok(image));
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_requirements_refused() {
        let image = |more: &str| format!(r#"{{"format":"turbo-image/1","architecture":"any","layers":[]{more}}}"#);
        assert!(ImageManifest::decode(image("").as_bytes()).is_ok());
        assert!(ImageManifest::decode(image(r#","colour":"blue""#).as_bytes()).is_ok());
        for bad in [
            r#","requires":["teleport"]"#,
            r#","working_directory":"../x""#,
            r#","startup_files":[{"command":[]}]"#,
            r#","dependencies":[{"reference":"A B"}]"#,
        ] {
            assert!(ImageManifest::decode(image(bad).as_bytes()).is_err(), "{bad}");
        }
        assert!(LayerManifest::decode(image("").as_bytes()).is_err());
    }
}
