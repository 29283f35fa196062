//! The manifest of an image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::condition::check_requirement;
use super::{MAX_LAYERS, Manifest, check_absolute, is_default};
use crate::codec::FormatError;
use crate::digest::Digest;

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
    /// Image reference. A release such as `8` is met by `8`, and else by the newest of `8.1`, `8.1.2` and the like.
    pub reference: String,
    /// Which releases will do, as comparisons that must all hold, such as `>=8 <12`; what the reference says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub releases: Option<String>,
    /// The image that it was built against: used where no release is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// Programs that run in the container besides the startup file, once for each start and stop of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scripts {
    /// Program and arguments to run before the startup file, in order. One that fails ends the launch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub startup: Vec<Vec<String>>,
    /// Program and arguments to run after the last process, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shutdown: Vec<Vec<String>>,
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
    /// What runs before and after the startup file. Feature `scripts`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scripts: Scripts,
    /// A model that launches use in place of the learned one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Digest>,
    /// Runs of the image are not learned from: clients send no trace, and registries take none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_profiling: bool,
}

impl Manifest for ImageManifest {
    const FORMAT: &'static str = "turbo-image/1";
    const FEATURES: &'static [&'static str] = &["scripts"];

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
        self.requirements.iter().try_for_each(|text| check_requirement(text))?;
        let scripts = self.scripts.startup.iter().chain(&self.scripts.shutdown);
        if scripts.clone().any(|command| command.is_empty() || command.iter().any(|part| part.contains('\0'))) {
            return Err(FormatError::invalid(what, "a script names a program"));
        }
        if scripts.count() > 0 && !self.requires.iter().any(|feature| feature == "scripts") {
            return Err(FormatError::invalid(what, "what a reader must not ignore is named in `requires`"));
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
            scripts: Scripts::default(),
            model: None,
            no_profiling: false,
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
    use crate::manifest::LayerManifest;

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
