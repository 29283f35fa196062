//! An image as one file that container tools load: an OCI layout, with docker's own list of contents beside it for those that know
//! no layouts. The layers are plain tar.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// A layer that is being made, in memory: it has a program and little else.
pub(super) struct Layer {
    tar: Builder<Vec<u8>>,
    time: u64,
}

impl Layer {
    /// An empty one, whose entries are all of this time.
    pub(super) fn new(time: u64) -> Self {
        Self { tar: Builder::new(Vec::new()), time }
    }

    /// Adds a folder of the disk, with all that is below it, in order of names.
    pub(super) fn add(&mut self, folder: &Path, to: &str, owner: (u64, u64)) -> Result<()> {
        let metadata = fs::metadata(folder).with_context(|| format!("cannot see {}", folder.display()))?;
        if !to.is_empty() {
            self.entry(&format!("{to}/"), EntryType::Directory, mode(&metadata), owner, &[])?;
        }
        let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let mut paths: Vec<_> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?;
        paths.sort();
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str()).context("names here are text")?;
            let to = if to.is_empty() { name.to_owned() } else { format!("{to}/{name}") };
            let metadata = fs::metadata(&path)?;
            if metadata.is_dir() {
                self.add(&path, &to, owner)?;
            } else {
                let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                self.entry(&to, EntryType::Regular, mode(&metadata), owner, &content)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, owner: (u64, u64), content: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(self.time);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content).with_context(|| format!("cannot add {path}"))
    }

    /// The bytes.
    pub(super) fn finish(self) -> Result<Vec<u8>> {
        self.tar.into_inner().context("a layer does not end")
    }
}

fn mode(metadata: &fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o7777
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the file. `config` is the image's configuration without its `rootfs`; `name` is what it is called once loaded.
pub(super) fn write(path: &Path, name: &str, mut config: Value, layers: &[Vec<u8>], time: u64) -> Result<()> {
    let ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    config["rootfs"] = json!({ "type": "layers", "diff_ids": ids });
    let config = serde_json::to_vec(&config)?;
    let described = |media: &str, bytes: &[u8]| json!({ "mediaType": media, "digest": format!("sha256:{}", hex(bytes)), "size": bytes.len() });
    let layer_list: Vec<Value> = layers.iter().map(|layer| described("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": manifest_type, "config": described("application/vnd.oci.image.config.v1+json", &config), "layers": layer_list,
    }))?;
    let mut described_manifest = described(manifest_type, &manifest);
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    described_manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag, "io.containerd.image.name": format!("docker.io/library/{name}") });
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [described_manifest] }))?;
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", hex(bytes));
    let contents = serde_json::to_vec(&json!([{
        "Config": blob(&config), "RepoTags": [name], "Layers": layers.iter().map(|layer| blob(layer)).collect::<Vec<_>>(),
    }]))?;

    let mut files: Vec<(String, &[u8])> = layers.iter().map(|layer| (blob(layer), layer.as_slice())).collect();
    files.extend([(blob(&config), config.as_slice()), (blob(&manifest), &manifest)]);
    files.sort();
    files.dedup();
    let mut all = Layer::new(time);
    for folder in ["blobs/", "blobs/sha256/"] {
        all.entry(folder, EntryType::Directory, 0o755, (0, 0), &[])?;
    }
    files.extend([("index.json".into(), index.as_slice()), ("manifest.json".into(), &contents), ("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#)]);
    for (name, content) in files {
        all.entry(&name, EntryType::Regular, 0o644, (0, 0), content)?;
    }
    let mut file = fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(&all.finish()?).with_context(|| format!("cannot write {}", path.display()))
}
