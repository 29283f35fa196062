//! Consecutive builds of one application, as archives that docker loads and as OCI layouts that skopeo and podman read. The layer
//! is plain tar: each client compresses it with its own encoder when it pushes.
//!
//! A build differs from the one before as builds do: one file in fifty has a few other bytes and a later time, and there is a new
//! stamp. The base of a real image would be shared by whole blobs with any registry, and is left out.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// One file in so many changes from build to build.
const CHANGED_ONE_IN: usize = 50;
/// Of 2026-01-01.
const TIME: u64 = 1_767_225_600;
const BUILD_SECONDS: u64 = 3600;

/// Writes build `number` of the tree into an OCI layout that docker loads, too, once it is an archive. The same number makes the
/// same bytes.
pub(crate) fn layout(tree: &Path, number: u32, folder: &Path) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
    let partial = folder.join("layer");
    let file = fs::File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let mut hashed = Hashed { inner: std::io::BufWriter::with_capacity(1 << 20, file), hasher: Sha256::new(), len: 0 };
    layer(tree, number, &mut hashed)?;
    hashed.inner.flush().context("cannot write a layer")?;
    let (digest, len) = (hex(&hashed.hasher.finalize()), hashed.len);
    fs::rename(&partial, blobs.join(&digest)).context("cannot name a layer")?;

    let put = |value: &Value| -> Result<(String, usize)> {
        let bytes = serde_json::to_vec(value)?;
        let digest = hex(&Sha256::digest(&bytes));
        fs::write(blobs.join(&digest), &bytes).context("cannot write a blob")?;
        Ok((digest, bytes.len()))
    };
    let (config, config_len) = put(&json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/stamp"] }, "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    }))?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let (manifest, manifest_len) = put(&json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": format!("sha256:{config}"), "size": config_len },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{digest}"), "size": len }],
    }))?;
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": manifest_type, "digest": format!("sha256:{manifest}"), "size": manifest_len, "annotations": { "org.opencontainers.image.ref.name": "app" },
    }] });
    let contents = json!([{ "Config": format!("blobs/sha256/{config}"), "RepoTags": ["app:latest"], "Layers": [format!("blobs/sha256/{digest}")] }]);
    for (name, value) in [("index.json", index), ("manifest.json", contents), ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }))] {
        fs::write(folder.join(name), serde_json::to_vec(&value)?).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

fn layer(tree: &Path, number: u32, out: &mut impl Write) -> Result<()> {
    let mut tar = tar::Builder::new(out);
    let mut header = tar::Header::new_gnu();
    for (position, relative) in entries(tree)?.iter().enumerate() {
        let path = tree.join(relative);
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("cannot see {}", path.display()))?;
        let name = Path::new("app").join(relative);
        header.set_mode(metadata.permissions().mode() & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(TIME);
        header.set_size(0);
        if metadata.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            let target = fs::read_link(&path).with_context(|| format!("cannot read {}", path.display()))?;
            tar.append_link(&mut header, &name, &target).with_context(|| format!("cannot add {}", name.display()))?;
        } else if metadata.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, &name, std::io::empty()).with_context(|| format!("cannot add {}", name.display()))?;
        } else if metadata.is_file() {
            let mut content = Vec::new();
            fs::File::open(&path).and_then(|mut file| file.read_to_end(&mut content)).with_context(|| format!("cannot read {}", path.display()))?;
            let last = last_change(position, number);
            if last > 0 {
                change(&mut content, last);
                header.set_mtime(TIME + BUILD_SECONDS * u64::from(last));
            }
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, &name, content.as_slice()).with_context(|| format!("cannot add {}", name.display()))?;
        }
    }
    let stamp = format!("build {number}\n");
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o755);
    header.set_mtime(TIME + BUILD_SECONDS * u64::from(number));
    header.set_size(stamp.len() as u64);
    tar.append_data(&mut header, "stamp", stamp.as_bytes()).context("cannot add the stamp")?;
    tar.finish().context("cannot end a layer")
}

/// The last build up to this one in which a file was changed; 0 if never.
fn last_change(position: usize, number: u32) -> u32 {
    let start = position.wrapping_mul(2_654_435_761) >> 7;
    let changes = |build: &u32| start.wrapping_add(*build as usize * 7919).is_multiple_of(CHANGED_ONE_IN);
    (1..=number).rev().find(changes).unwrap_or(0)
}

/// Other bytes in the middle, and some more of them.
fn change(content: &mut Vec<u8>, build: u32) {
    let middle = content.len() / 2;
    let insert = format!("changed in build {build}\n");
    content.splice(middle..middle, insert.bytes());
}

/// All entries below a folder, in order.
fn entries(tree: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let folder = tree.join(&relative);
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
            let path = relative.join(entry.file_name());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path.clone());
            }
            found.insert(path);
        }
    }
    Ok(found)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    len: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        self.len += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_changes_one_file_in_fifty() {
        let files = 10_000;
        for number in 1..10 {
            let changed = (0..files).filter(|position| last_change(*position, number) == number).count();
            assert!((files / 80..files / 35).contains(&changed), "build {number}: {changed}");
        }
        assert!((0..files).all(|position| last_change(position, 0) == 0));
    }
}
