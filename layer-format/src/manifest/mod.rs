//! Layer, image and state manifests: canonical JSON (RFC 8785), named by the digest of their bytes.
//!
//! A reader ignores fields that it does not know, so that fields can be added; what an older reader must not ignore
//! is named in `requires`, and a reader refuses a name it does not know. The bytes as received are what the digest
//! covers: they are kept, and never encoded again.

mod condition;
mod environment;
mod image;
mod layer;
mod rules;
mod state;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::FormatError;

pub use condition::{Condition, MAX_CONDITION_DEPTH};
pub use environment::{EnvIsolation, EnvMerge, EnvMode, EnvVar};
pub use image::{Dependency, ImageManifest, Scripts, StartupFile};
pub use layer::LayerManifest;
pub use rules::{AttributeRule, Attributes, FileMode, FileRule, IsolationRule, Mode};
pub use state::{StateImage, StateManifest, StateSettings};

/// Most bytes of a manifest.
pub const MAX_MANIFEST_LEN: usize = 4 << 20;
/// Most layers of an image.
pub const MAX_LAYERS: usize = 250;

/// What all kinds of manifest have in common.
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
