//! The manifest of a state: all of a container at one moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{MAX_LAYERS, Manifest, check_absolute, is_default};
use crate::codec::FormatError;
use crate::digest::Digest;

/// A container at one moment: images, sandbox and settings. Its digest is the state's id.
///
/// It holds nothing but content: no time, no name of a container, no earlier state. So equal containers have equal states,
/// on whatever machine, and a run that changes nothing ends in the state in which it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateManifest {
    /// Always [`StateManifest::FORMAT`].
    pub format: String,
    /// Features that a reader must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Every image of the stack, dependencies included, lowest first.
    pub images: Vec<StateImage>,
    /// Digest of the layer manifest whose tree is the sandbox: what was written, and whiteouts for what was deleted.
    pub sandbox: Digest,
    /// What the container remembers besides files.
    #[serde(default, skip_serializing_if = "is_default")]
    pub settings: StateSettings,
}

/// An image that a container consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateImage {
    /// The reference by which it was asked for.
    pub reference: String,
    /// The image manifest that it meant.
    pub digest: Digest,
    /// Whether it is here because another image depends on it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dependency: bool,
}

/// What a container remembers of how it is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateSettings {
    /// Variables set with `--env`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The value of `--isolate`, such as `full+merge-user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// Program and arguments in place of the images' startup file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub startup_file: Vec<String>,
    /// Absolute path of the working directory, in place of the images'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
}

impl Manifest for StateManifest {
    const FORMAT: &'static str = "turbo-state/1";

    fn format(&self) -> &str {
        &self.format
    }

    fn requires(&self) -> &[String] {
        &self.requires
    }

    fn check(&self) -> Result<(), FormatError> {
        let what = "state";
        if self.images.len() > MAX_LAYERS {
            return Err(FormatError::TooLarge { what: "images of a state", value: self.images.len() as u64, max: MAX_LAYERS as u64 });
        }
        for image in &self.images {
            image.reference.parse::<crate::reference::ImageReference>().map_err(|_| FormatError::invalid(what, "an image has a reference"))?;
        }
        let settings = &self.settings;
        if settings.environment.iter().any(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')) {
            return Err(FormatError::invalid(what, "a variable has a name without `=`, and no NUL"));
        }
        if settings.startup_file.iter().any(|part| part.contains('\0')) {
            return Err(FormatError::invalid(what, "a startup file has no NUL"));
        }
        settings.working_directory.as_deref().map_or(Ok(()), check_absolute)
    }
}

impl StateManifest {
    /// A state of these images with this sandbox and no settings.
    pub fn new(images: Vec<StateImage>, sandbox: Digest) -> Self {
        Self { format: Self::FORMAT.into(), requires: vec![], images, sandbox, settings: StateSettings::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_state() {
        let image = StateImage { reference: "tools/app:1".into(), digest: Digest::of(b"image"), dependency: false };
        let mut state = StateManifest::new(vec![image], Digest::of(b"sandbox"));
        state.settings.environment.insert("A".into(), "é".into());
        let bytes = state.encode().unwrap();
        let expected = format!(
            r#"{{"format":"turbo-state/1","images":[{{"digest":"{}","reference":"tools/app:1"}}],"sandbox":"{}","settings":{{"environment":{{"A":"é"}}}}}}"#,
            Digest::of(b"image"),
            Digest::of(b"sandbox")
        );
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        assert_eq!(StateManifest::decode(&bytes), Ok(state.clone()));
        state.images[0].reference = "A B".into();
        assert!(state.encode().is_err());
    }
}
