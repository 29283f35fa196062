//! Which image a source holds: its configuration and its layers.

use anyhow::{Context, Result, bail};
use layer_format::oci::{Descriptor, ImageConfig, ManifestKind, OciDigest, OciManifest};
use serde::Deserialize;

use super::Form;
use super::source::Source;

/// Longest list of images.
const MAX_LIST_LEN: usize = 16 << 20;
/// Lists within lists.
const MAX_DEPTH: usize = 4;
/// Annotation with the name of an image in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layer: the member that it is, and its digest if it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) digest: Option<OciDigest>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) config: ImageConfig,
    /// Lowest first.
    pub(super) layers: Vec<Layer>,
    /// What names the image in the source.
    pub(super) origin: String,
}

/// One image of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Layout {
    /// Finds the image; `wanted` is its name in the source, `architecture` as Go names it.
    pub(super) fn find(source: &Source, form: Form, wanted: Option<&str>, architecture: &str) -> Result<Self> {
        let (index, saved) = (source.read("index.json", MAX_LIST_LEN)?, source.read("manifest.json", MAX_LIST_LEN)?);
        match (form, index, saved) {
            (Form::Docker, _, Some(saved)) | (_, None, Some(saved)) => Self::of_docker(source, &saved, wanted),
            (_, Some(index), _) => Self::of_oci(source, &index, wanted, architecture),
            (_, None, None) => bail!("it has neither index.json nor manifest.json: it is no OCI layout, and not the output of `docker save`"),
        }
    }

    fn of_docker(source: &Source, list: &[u8], wanted: Option<&str>) -> Result<Self> {
        let list: Vec<Saved> = serde_json::from_slice(list).context("manifest.json is not valid")?;
        let has = |saved: &Saved, name: &str| saved.repo_tags.iter().flatten().any(|tag| tag == name || tag.strip_suffix(":latest") == Some(name));
        let names: Vec<&str> = list.iter().filter_map(|saved| saved.repo_tags.as_ref()?.first().map(String::as_str)).collect();
        let saved = match wanted {
            Some(name) => list.iter().find(|saved| has(saved, name)).with_context(|| format!("it has no image `{name}`, but {}", names.join(", ")))?,
            None if list.len() == 1 => &list[0],
            None => bail!("it has {} images: say which with --image: {}", list.len(), names.join(", ")),
        };
        let config = source.read(&saved.config, ImageConfig::MAX_LEN)?.with_context(|| format!("it lacks {}", saved.config))?;
        let layers = saved.layers.iter().map(|name| Layer { name: name.clone(), digest: digest_in(name) }).collect();
        let origin = saved.repo_tags.iter().flatten().next().unwrap_or(&saved.config).clone();
        Ok(Self { config: ImageConfig::decode(&config)?, layers, origin })
    }

    fn of_oci(source: &Source, index: &[u8], wanted: Option<&str>, architecture: &str) -> Result<Self> {
        let index: OciManifest = serde_json::from_slice(index).context("index.json is not valid")?;
        let name = |entry: &Descriptor| entry.annotations.as_ref().and_then(|notes| notes.get(REF_NAME)).cloned().unwrap_or_default();
        let names: Vec<String> = index.manifests().iter().map(name).filter(|name| !name.is_empty()).collect();
        let several = names.len() > 1;
        let mut entry = match wanted {
            Some(wanted) => index.manifests().iter().find(|entry| name(entry) == wanted),
            None if several => bail!("it has several images: say which with --image: {}", names.join(", ")),
            None => index.choose(architecture),
        }
        .with_context(|| format!("it has no such image, but {}", names.join(", ")))?
        .clone();
        for _ in 0..MAX_DEPTH {
            let bytes = source.read(&blob(&entry.digest), OciManifest::MAX_LEN)?.with_context(|| format!("it lacks blob {}", entry.digest))?;
            let (manifest, _, kind) = OciManifest::decode(&bytes, Some(&entry.media_type))?;
            if kind == ManifestKind::Index {
                entry = manifest.choose(architecture).context("its index is empty")?.clone();
                continue;
            }
            let config = manifest.config.as_ref().filter(|_| manifest.is_container_image()).context("it is not a container image: nothing in it can be run")?;
            let config = source.read(&blob(&config.digest), ImageConfig::MAX_LEN)?.with_context(|| format!("it lacks blob {}", config.digest))?;
            let layers = manifest.layers().iter().map(|layer| Layer { name: blob(&layer.digest), digest: Some(layer.digest.clone()) }).collect();
            return Ok(Self { config: ImageConfig::decode(&config)?, layers, origin: entry.digest.to_string() });
        }
        bail!("its indexes are nested too deep")
    }
}

/// The member that holds a blob.
fn blob(digest: &OciDigest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// The digest that a member is named by: newer versions of docker do so.
fn digest_in(name: &str) -> Option<OciDigest> {
    let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}
