//! The configuration of a container image, and what it means for an image of ours.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::OciDigest;
use crate::codec::FormatError;
use crate::digest::Digest;
use crate::manifest::{EnvVar, ImageManifest, IsolationRule, LayerManifest, Mode, StartupFile};

/// Names of a processor: Go's, and that of `uname -m`.
const ARCHITECTURES: [(&str, &str); 8] = [
    ("amd64", "x86_64"),
    ("arm64", "aarch64"),
    ("386", "i686"),
    ("arm", "armv7l"),
    ("ppc64le", "ppc64le"),
    ("s390x", "s390x"),
    ("riscv64", "riscv64"),
    ("loong64", "loongarch64"),
];

/// The architecture that container tools call so, as `uname -m` names it.
pub fn architecture_of(oci: &str) -> &str {
    ARCHITECTURES.iter().find(|(name, _)| *name == oci).map_or(oci, |(_, own)| own)
}

/// The architecture that `uname -m` calls so, as container tools name it; `any` is this machine's.
pub fn oci_architecture(own: &str) -> &str {
    let own = if own == "any" { std::env::consts::ARCH } else { own };
    ARCHITECTURES.iter().find(|(_, name)| *name == own).map_or(own, |(oci, _)| oci)
}

/// How to run an image. Empty lists and texts mean that nothing is stated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User and group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `NAME=VALUE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Program and first arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments, or the program if there is no entry point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Notes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// The layers, uncompressed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Digests of the uncompressed layers, lowest first.
    #[serde(default)]
    pub diff_ids: Option<Vec<OciDigest>>,
}

/// The configuration of a container image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// As Go names it.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// How to run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<RunConfig>,
    /// Its layers.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// Key of an image's metadata under which the user that an OCI image wants is kept.
const USER: &str = "oci.user";

impl ImageConfig {
    /// Longest configuration that is read, in bytes.
    pub const MAX_LEN: usize = 4 << 20;

    /// Parses it.
    ///
    /// # Errors
    /// If it is not JSON of this form.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let invalid = FormatError::invalid("image configuration", "it is JSON in the form of an OCI image configuration");
        match super::is_object(bytes) {
            true => serde_json::from_slice(bytes).map_err(|_| invalid),
            false => Err(invalid),
        }
    }

    /// What it states, for an image of ours with these layers (root, entries and bytes of each tree, lowest first): the
    /// host is hidden, and variables, startup file, working directory and labels are those of the configuration. `origin`
    /// says where it comes from.
    pub fn stated(&self, trees: &[(Digest, u64, u64)], origin: &str) -> (ImageManifest, Vec<LayerManifest>) {
        let run = self.config.clone().unwrap_or_default();
        let mut layers: Vec<LayerManifest> = trees.iter().map(|(root, entries, bytes)| LayerManifest::new(*root, *entries, *bytes)).collect();
        if let Some(lowest) = layers.first_mut() {
            lowest.isolation.push(IsolationRule { path: "/".into(), mode: Mode::Full });
        }
        if let Some(highest) = layers.last_mut() {
            highest.environment = run.env.iter().flatten().filter_map(|text| variable(text)).collect();
        }
        let architecture = if self.architecture.is_empty() { std::env::consts::ARCH } else { architecture_of(&self.architecture) };
        let mut image = ImageManifest::new(architecture, Vec::new());
        let command: Vec<String> = run.entrypoint.into_iter().flatten().chain(run.cmd.into_iter().flatten()).collect();
        if !command.is_empty() && !command.iter().any(|part| part.contains('\0')) {
            image.startup_files.push(StartupFile { command, trigger: None });
        }
        image.working_directory = run.working_dir.filter(|path| is_plain_absolute(path)).map(|path| match path.trim_end_matches('/') {
            "" => "/".to_owned(),
            plain => plain.to_owned(),
        });
        let labels = run.labels.into_iter().flatten();
        image.metadata = labels.filter_map(|(name, value)| name.strip_prefix("org.opencontainers.image.").map(|name| (name.to_owned(), value))).collect();
        image.metadata.insert("oci.source".into(), origin.to_owned());
        if let Some(user) = run.user.filter(|user| !user.is_empty()) {
            image.metadata.insert(USER.into(), user);
        }
        (image, layers)
    }

    /// The other way: the configuration of an image of ours with these layers, lowest first.
    pub fn of(image: &ImageManifest, layers: &[LayerManifest], diff_ids: Vec<OciDigest>) -> Self {
        let variables = layers.iter().flat_map(|layer| &layer.environment);
        let mut env: BTreeMap<&str, &str> = BTreeMap::from([("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")]);
        env.extend(variables.map(|variable| (variable.name.as_str(), variable.value.as_str())));
        let labels: BTreeMap<String, String> = image.metadata.iter().filter(|(name, _)| !name.starts_with("oci.")).map(label).collect();
        let run = RunConfig {
            user: image.metadata.get(USER).cloned(),
            env: Some(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
            entrypoint: image.startup(None).next().map(|file| file.command.clone()),
            cmd: None,
            working_dir: image.working_directory.clone(),
            labels: (!labels.is_empty()).then_some(labels),
        };
        let rootfs = RootFs { kind: "layers".into(), diff_ids: Some(diff_ids) };
        Self { architecture: oci_architecture(&image.architecture).into(), os: "linux".into(), config: Some(run), rootfs }
    }
}

fn label((name, value): (&String, &String)) -> (String, String) {
    (format!("org.opencontainers.image.{name}"), value.clone())
}

fn variable(text: &str) -> Option<EnvVar> {
    let (name, value) = text.split_once('=')?;
    let fits = !name.is_empty() && !text.contains('\0');
    fits.then(|| EnvVar { name: name.into(), value: value.into(), merge: crate::manifest::EnvMerge::Replace })
}

fn is_plain_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == ".." || part == ".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn a_configuration_becomes_manifests_and_comes_back() {
        let text = r#"{"architecture":"arm64","os":"linux","config":{"User":"1000:1000","Env":["PATH=/a:/b","EMPTY=","=x","none"],
            "Entrypoint":["/entry","-v"],"Cmd":["serve"],"WorkingDir":"/srv/","Labels":{"org.opencontainers.image.title":"T","other":"x"}},
            "rootfs":{"type":"layers","diff_ids":[]},"history":[]}"#;
        let config = ImageConfig::decode(text.as_bytes()).unwrap();
        let trees = [(Digest::of(b"one"), 3, 10), (Digest::of(b"two"), 1, 0)];
        let (mut image, layers) = config.stated(&trees, "docker");
        assert_eq!(image.startup_files[0].command, ["/entry", "-v", "serve"]);
        assert_eq!((image.architecture.as_str(), image.working_directory.as_deref()), ("aarch64", Some("/srv")));
        assert_eq!((image.metadata["title"].as_str(), image.metadata["oci.user"].as_str()), ("T", "1000:1000"));
        assert_eq!(layers[0].isolation, [IsolationRule { path: "/".into(), mode: Mode::Full }]);
        assert_eq!(layers[1].environment.iter().map(|variable| variable.name.as_str()).collect::<Vec<_>>(), ["PATH", "EMPTY"]);
        image.layers = layers.iter().map(|layer| Digest::of(&layer.encode().unwrap())).collect();
        assert!(ImageManifest::decode(&image.encode().unwrap()).is_ok());
        let back = ImageConfig::of(&image, &layers, vec![]).config.unwrap();
        assert_eq!(back.entrypoint.unwrap(), ["/entry", "-v", "serve"]);
        assert_eq!(back.env.unwrap(), ["EMPTY=", "PATH=/a:/b"]);
        assert_eq!((back.user.as_deref(), back.working_dir.as_deref()), (Some("1000:1000"), Some("/srv")));
    }

    #[test]
    fn hostile_and_empty_configurations_state_nothing() {
        for text in ["{}", r#"{"config":null}"#, r#"{"config":{"Env":null,"Cmd":null,"WorkingDir":"../../x","Entrypoint":["a\u0000b"]}}"#] {
            let (image, layers) = ImageConfig::decode(text.as_bytes()).unwrap().stated(&[(Digest::of(b"root"), 1, 0)], "x");
            assert!(image.startup_files.is_empty() && image.working_directory.is_none(), "{text}");
            assert!(image.encode().is_ok() && layers[0].encode().is_ok());
        }
        assert!(ImageConfig::decode(b"[]").is_err());
    }
}
