//! Manifests: what an image, an index or an artifact refers to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{OciDigest, media};
use crate::codec::FormatError;

/// Most descriptors of one manifest.
const MAX_DESCRIPTORS: usize = 10_000;

/// A reference to content: what it is, its digest and its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: OciDigest,
    /// Its length in bytes.
    pub size: u64,
    /// Where else it can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<String>>,
    /// Notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// The platform that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The kind of artifact that it refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor that says no more than it must.
    pub fn new(media_type: impl Into<String>, digest: OciDigest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, urls: None, annotations: None, platform: None, artifact_type: None }
    }
}

/// What a program runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As Go names it: `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v8`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// What a manifest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestKind {
    /// An image, or another artifact in the form of one.
    Image,
    /// A list of manifests.
    Index,
    /// The artifact manifest of release candidates of OCI 1.1.
    Artifact,
}

impl ManifestKind {
    /// By media type.
    pub fn of(media_type: &str) -> Option<Self> {
        match media_type {
            media::MANIFEST | media::DOCKER_MANIFEST => Some(Self::Image),
            media::INDEX | media::DOCKER_LIST => Some(Self::Index),
            media::ARTIFACT => Some(Self::Artifact),
            _ => None,
        }
    }
}

/// A manifest or index. What it does not name here is passed over, and stays in the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciManifest {
    /// Always 2; artifact manifests have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<u32>,
    /// Media type; OCI's may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// An image's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    /// An image's layers, lowest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<Descriptor>>,
    /// An index's manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Vec<Descriptor>>,
    /// The blobs of an artifact manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs: Option<Vec<Descriptor>>,
    /// What this one is about, as a signature is about an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl OciManifest {
    /// Longest manifest that is taken, in bytes: the least that the specification asks of a registry.
    pub const MAX_LEN: usize = 4 << 20;

    /// Parses a manifest that was sent with this media type (without parameters), or with none. Returns its media type.
    ///
    /// # Errors
    /// If it is not JSON of this form, is of a kind that is not known, or says of itself that it is another.
    pub fn decode(bytes: &[u8], stated: Option<&str>) -> Result<(Self, String, ManifestKind), FormatError> {
        let what = "manifest";
        if bytes.len() > Self::MAX_LEN {
            return Err(FormatError::TooLarge { what: "bytes of a manifest", value: bytes.len() as u64, max: Self::MAX_LEN as u64 });
        }
        let invalid = FormatError::invalid(what, "it is JSON in the form of an OCI or docker manifest");
        if !super::is_object(bytes) {
            return Err(invalid);
        }
        // serde_json refuses what is nested more than 128 deep.
        let manifest: Self = serde_json::from_slice(bytes).map_err(|_| invalid)?;
        let media_type = match (stated, manifest.media_type.as_deref()) {
            (Some(stated), Some(own)) if stated != own => return Err(FormatError::invalid(what, "its media type is the one that it was sent with")),
            (Some(stated), _) => stated,
            (None, Some(own)) => own,
            (None, None) if manifest.manifests.is_some() => media::INDEX,
            (None, None) => media::MANIFEST,
        };
        let kind = ManifestKind::of(media_type).ok_or(FormatError::invalid(what, "it is an image manifest or index of OCI or of docker's schema 2"))?;
        let media_type = media_type.to_owned();
        manifest.check(kind)?;
        Ok((manifest, media_type, kind))
    }

    fn check(&self, kind: ManifestKind) -> Result<(), FormatError> {
        let what = "manifest";
        let version_fits = self.schema_version == Some(2) || (kind == ManifestKind::Artifact && self.schema_version.is_none());
        if !version_fits {
            return Err(FormatError::invalid(what, "its schemaVersion is 2"));
        }
        // What is read as one thing by one client and as another by the next one hides content from whoever checks.
        let is_image = self.config.is_some() || self.layers.as_ref().is_some_and(|layers| !layers.is_empty());
        let is_index = self.manifests.as_ref().is_some_and(|manifests| !manifests.is_empty());
        let fits = match kind {
            ManifestKind::Image => !is_index && self.config.is_some(),
            ManifestKind::Index => !is_image,
            ManifestKind::Artifact => !is_index && !is_image,
        };
        if !fits {
            return Err(FormatError::invalid(what, "an image has a config and layers, an index has manifests, and neither has the other's"));
        }
        let count = self.layers().len() + self.manifests().len() + self.blobs.as_ref().map_or(0, Vec::len);
        if count > MAX_DESCRIPTORS {
            return Err(FormatError::TooLarge { what: "descriptors of a manifest", value: count as u64, max: MAX_DESCRIPTORS as u64 });
        }
        Ok(())
    }

    /// An image's layers, lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        self.layers.as_deref().unwrap_or_default()
    }

    /// An index's manifests.
    pub fn manifests(&self) -> &[Descriptor] {
        self.manifests.as_deref().unwrap_or_default()
    }

    /// The blobs that it needs to be complete: not those that are kept elsewhere.
    pub fn needed_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let all = self.config.iter().chain(self.layers()).chain(self.blobs.iter().flatten());
        all.filter(|blob| !media::is_foreign(&blob.media_type))
    }

    /// The kind of artifact: what it says, else the configuration's media type.
    pub fn artifact_type(&self) -> Option<&str> {
        let stated = self.artifact_type.as_deref().filter(|kind| !kind.is_empty());
        stated.or(self.config.as_ref().map(|config| config.media_type.as_str()))
    }

    /// Whether it is an image that can be run: a container's configuration, and layers that are tars.
    pub fn is_container_image(&self) -> bool {
        self.config.as_ref().is_some_and(|config| media::is_config(&config.media_type))
            && !self.layers().is_empty()
            && self.layers().iter().all(|layer| media::is_layer(&layer.media_type))
    }

    /// Of an index, the manifest for this architecture (as Go names it) of Linux; without one, the first for Linux, else
    /// the first.
    pub fn choose(&self, architecture: &str) -> Option<&Descriptor> {
        let linux = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|platform| platform.os == "linux");
        let right = |entry: &&Descriptor| linux(entry) && entry.platform.as_ref().is_some_and(|platform| platform.architecture == architecture);
        let entries = self.manifests();
        entries.iter().find(right).or_else(|| entries.iter().find(linux)).or_else(|| entries.first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest() -> String {
        OciDigest::new(Algorithm::Sha256, &[7; 32]).unwrap().to_string()
    }

    fn image(more: &str) -> String {
        format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"{}","digest":"{}","size":2}},"layers":[]{more}}}"#, media::CONFIG, digest())
    }

    #[test]
    fn a_manifest_is_what_it_was_sent_as() {
        let decode = |text: &str, stated: Option<&str>| OciManifest::decode(text.as_bytes(), stated).map(|(_, media_type, kind)| (media_type, kind));
        assert_eq!(decode(&image(""), Some(media::MANIFEST)), Ok((media::MANIFEST.into(), ManifestKind::Image)));
        assert_eq!(decode(&image(""), Some(media::DOCKER_MANIFEST)), Ok((media::DOCKER_MANIFEST.into(), ManifestKind::Image)));
        assert_eq!(decode(r#"{"schemaVersion":2,"manifests":null}"#, Some(media::INDEX)), Ok((media::INDEX.into(), ManifestKind::Index)));
        let said = image(&format!(r#","mediaType":"{}""#, media::MANIFEST));
        assert!(decode(&said, None).is_ok());
        for (text, stated) in [
            (said, Some(media::DOCKER_MANIFEST)),
            (image(""), Some("text/html")),
            (image(r#","manifests":[{"mediaType":"x","digest":"sha256:00","size":1}]"#), Some(media::MANIFEST)),
            (image(""), Some(media::INDEX)),
            (r#"{"schemaVersion":1}"#.to_owned(), Some(media::MANIFEST)),
            (r#"{"schemaVersion":2}"#.to_owned(), Some(media::MANIFEST)),
            ("[".repeat(100_000), None),
            ("[]".to_owned(), Some(media::ARTIFACT)),
            (format!(r#"{{"a":{}"#, "[".repeat(100_000)), None),
            (image(r#","annotations":{"a":1}"#), None),
        ] {
            assert!(decode(&text, stated).is_err(), "{text:.200} as {stated:?}");
        }
    }

    #[test]
    fn an_index_has_one_manifest_for_a_platform() {
        let entry = |architecture: &str, os: &str| {
            let platform = Platform { architecture: architecture.into(), os: os.into(), variant: None };
            Descriptor { platform: Some(platform), ..Descriptor::new(media::MANIFEST, digest().parse().unwrap(), 1) }
        };
        let index =
            OciManifest { manifests: Some(vec![entry("amd64", "windows"), entry("arm64", "linux"), entry("amd64", "linux")]), ..OciManifest::default() };
        let of = |wanted: &str| index.choose(wanted).and_then(|entry| entry.platform.clone()).unwrap();
        assert_eq!((of("amd64").os.as_str(), of("amd64").architecture.as_str()), ("linux", "amd64"));
        assert_eq!(of("s390x").architecture, "arm64");
        assert!(OciManifest::default().choose("amd64").is_none());
    }
}
