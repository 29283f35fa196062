//! Images by name: manifests, the names that point at them, and what is known of each.
//!
//! The index is what is asked. Each image also has a file in `images/` with its manifest and names, so that nothing
//! but time is lost when the index has to be built again.

use std::collections::HashSet;

use bytes::Bytes;
use heed::RoTxn;
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::reference::{HEAD, ImageReference, Repository, Revision};
use layer_format::{Digest, FormatError};
use serde::{Deserialize, Serialize};

use super::Store;
use super::index::{decode, encode};
use super::layout::{io_error, write_durably};
use crate::cache::ObjectCache;
use crate::error::StoreError;

/// How an image came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageOrigin {
    /// Made here. `head` of its repository follows it.
    Imported,
    /// Pulled: all of it was here at that time.
    Pulled,
    /// Started from a registry: its data comes as it is used.
    Streamed,
}

/// An image found by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Digest of the manifest.
    pub digest: Digest,
    /// The manifest's bytes, as pushed or received.
    pub bytes: Bytes,
    /// Where it was looked for.
    pub repository: Repository,
    /// The name that was asked for, unless it was a digest.
    pub release: Option<String>,
}

impl StoredImage {
    /// The manifest, parsed.
    ///
    /// # Errors
    /// [`StoreError::InvalidImage`], if it needs a newer version.
    pub fn manifest(&self) -> Result<ImageManifest, StoreError> {
        ImageManifest::decode(&self.bytes).map_err(|source| StoreError::InvalidImage { reference: format!("{}@{}", self.repository, self.digest), source })
    }
}

/// What lists show of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Names, such as `tools/scipy:1.0`; by digest if it has no release.
    pub names: Vec<String>,
    /// How it came here.
    pub origin: ImageOrigin,
    /// When: seconds since 1970.
    pub created_s: u64,
    /// Bytes of all files, each name counted once; `None` while a layer manifest is not here.
    pub bytes: Option<u64>,
    /// Whether all of it was here when that was last known; an eviction or damage found since makes it `false`.
    pub complete: bool,
    /// Whether it was pushed to or came from a registry.
    pub on_registry: bool,
    /// Whether it is protected from eviction.
    pub pinned: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ImageRow {
    pub(super) origin: ImageOrigin,
    pub(super) created_s: u64,
    pub(super) complete: bool,
    pub(super) on_registry: bool,
    #[serde(default)]
    pub(super) pinned: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RefRow {
    pub(super) digest: Digest,
    /// Seconds since 1970.
    pub(super) set_s: u64,
}

/// The file of an image in `images/`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ImageFile {
    pub(super) manifest: String,
    pub(super) row: ImageRow,
    pub(super) names: Vec<(Repository, String, RefRow)>,
}

fn ref_key(repository: &Repository, release: &str) -> Vec<u8> {
    [repository.as_str().as_bytes(), b"\0", release.as_bytes()].concat()
}

/// The release that stands for an image that was asked for by digest.
fn digest_release(digest: &Digest) -> String {
    format!("@{}", digest.to_hex())
}

fn show(repository: &Repository, release: &str) -> String {
    match release.strip_prefix('@') {
        Some(hex) => format!("{repository}@b3:{hex}"),
        None => format!("{repository}:{release}"),
    }
}

impl Store {
    /// Keeps an image's manifest and lets `reference` name it; an imported one becomes `head` of its repository as well.
    /// Durable on return. The caller has made sure that what it promises (all of an imported or pulled image) is here.
    ///
    /// # Errors
    /// [`StoreError::InvalidImage`] if the bytes are not a manifest, or not the one whose digest the reference gives.
    pub fn image_put(&self, reference: &ImageReference, manifest: &[u8], origin: ImageOrigin) -> Result<Digest, StoreError> {
        let invalid = |source| StoreError::InvalidImage { reference: reference.to_string(), source };
        ImageManifest::decode(manifest).map_err(invalid)?;
        let digest = Digest::of(manifest);
        let release = match &reference.revision {
            Revision::Head => HEAD.to_owned(),
            Revision::Release(release) => release.clone(),
            Revision::Digest(wanted) if *wanted != digest => return Err(invalid(FormatError::DigestMismatch { what: "image" })),
            Revision::Prefix(prefix) if !digest.to_hex().starts_with(prefix.as_str()) => return Err(invalid(FormatError::DigestMismatch { what: "image" })),
            Revision::Digest(_) | Revision::Prefix(_) => digest_release(&digest),
        };
        let inner = &*self.inner;
        let index = &inner.index;
        let now = inner.now();
        let replaced = index.write(|txn| {
            let old: Option<ImageRow> = index.images.get(txn, digest.as_bytes())?.map(decode).transpose()?;
            let row = match old {
                // A run of an image that is here already does not make it less here.
                Some(old) if origin == ImageOrigin::Streamed => old,
                Some(old) => ImageRow { complete: true, on_registry: old.on_registry || origin == ImageOrigin::Pulled, ..old },
                None => {
                    let (complete, on_registry) = (origin != ImageOrigin::Streamed, origin != ImageOrigin::Imported);
                    ImageRow { origin, created_s: now, complete, on_registry, pinned: false }
                }
            };
            index.manifests.put(txn, digest.as_bytes(), manifest)?;
            index.images.put(txn, digest.as_bytes(), &encode(&row)?)?;
            let mut names = vec![release.as_str()];
            if origin == ImageOrigin::Imported && release != HEAD {
                names.push(HEAD);
            }
            let mut replaced = Vec::new();
            for name in names {
                let key = ref_key(&reference.repository, name);
                let old: Option<RefRow> = index.refs.get(txn, &key)?.map(decode).transpose()?;
                replaced.extend(old.map(|old| old.digest).filter(|old| *old != digest));
                index.refs.put(txn, &key, &encode(&RefRow { digest, set_s: now })?)?;
            }
            Ok(replaced)
        })?;
        for digest in std::iter::once(digest).chain(replaced) {
            self.write_image_file(&digest)?;
        }
        Ok(digest)
    }

    /// The image that `reference` names, if it is known here. Looks at the index only; its data may not be here.
    ///
    /// # Errors
    /// [`StoreError::Ambiguous`] if a prefix matches more than one.
    pub fn image_get(&self, reference: &ImageReference) -> Result<Option<StoredImage>, StoreError> {
        let index = &self.inner.index;
        let repository = &reference.repository;
        let release = reference.release().map(str::to_owned);
        let digest = match (&reference.revision, &release) {
            (_, Some(release)) => {
                index.read(|txn| index.refs.get(txn, &ref_key(repository, release))?.map(decode::<RefRow>).transpose())?.map(|row| row.digest)
            }
            (Revision::Digest(digest), _) => Some(*digest),
            (Revision::Prefix(prefix), _) => {
                let mut matches: Vec<_> = self.refs_of(Some(repository))?.into_iter().map(|(.., row)| row.digest).collect();
                matches.retain(|digest| digest.to_hex().starts_with(prefix.as_str()));
                matches.sort_unstable();
                matches.dedup();
                if matches.len() > 1 {
                    let matches = matches.iter().map(|digest| format!("{repository}#{}", digest.short())).collect();
                    return Err(StoreError::Ambiguous { reference: reference.to_string(), matches });
                }
                matches.pop()
            }
            _ => None,
        };
        let Some(digest) = digest else { return Ok(None) };
        let bytes = index.read(|txn| Ok(index.manifests.get(txn, digest.as_bytes())?.map(Bytes::copy_from_slice)))?;
        // A manifest that the disk damaged is as good as none.
        let bytes = bytes.filter(|bytes| Digest::of(bytes) == digest);
        Ok(bytes.map(|bytes| StoredImage { digest, bytes, repository: repository.clone(), release }))
    }

    /// The releases of a repository that are known here, `head` among them, and the image that each names.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn releases(&self, repository: &Repository) -> Result<Vec<(String, Digest)>, StoreError> {
        let refs = self.refs_of(Some(repository))?;
        Ok(refs.into_iter().filter(|(_, release, _)| !release.starts_with('@')).map(|(_, release, row)| (release, row.digest)).collect())
    }

    /// All images, newest first.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn images(&self) -> Result<Vec<ImageInfo>, StoreError> {
        let names = self.refs_of(None)?;
        let mut images = Vec::new();
        for (digest, row) in self.image_rows()? {
            let names = names.iter().filter(|(.., name)| name.digest == digest).map(|(repository, release, _)| show(repository, release)).collect();
            let bytes = self.image_bytes(&digest)?;
            let ImageRow { origin, created_s, complete, on_registry, pinned } = row;
            images.push(ImageInfo { digest, names, origin, created_s, bytes, complete, on_registry, pinned });
        }
        images.sort_by(|a, b| (b.created_s, &a.names).cmp(&(a.created_s, &b.names)));
        Ok(images)
    }

    fn image_bytes(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let Some(manifest) = self.manifest_of(digest)? else { return Ok(None) };
        let mut bytes = 0u64;
        for layer in &manifest.layers {
            match self.get(layer)?.and_then(|object| LayerManifest::decode(&object).ok()) {
                Some(layer) => bytes = bytes.saturating_add(layer.bytes),
                None => return Ok(None),
            }
        }
        Ok(Some(bytes))
    }

    /// Takes the name `reference` away; by digest or prefix, all names that the image has in that repository. The image is
    /// forgotten with its last name; its data stays until the next gc. Returns the names taken away, none if there was
    /// no such image.
    ///
    /// # Errors
    /// [`StoreError::Ambiguous`] if a prefix matches more than one image; then nothing is removed.
    pub fn image_remove(&self, reference: &ImageReference) -> Result<Vec<String>, StoreError> {
        let Some(image) = self.image_get(reference)? else { return Ok(Vec::new()) };
        let (repository, index) = (&reference.repository, &self.inner.index);
        let refs = self.refs_of(Some(repository))?;
        let of_image = |release: &str| refs.iter().any(|(_, name, row)| name == release && row.digest == image.digest);
        let mut gone: Vec<String> = match &image.release {
            Some(release) => vec![release.clone()],
            None => refs.iter().filter(|(.., row)| row.digest == image.digest).map(|(_, release, _)| release.clone()).collect(),
        };
        // `head` is a name that no one gave: it goes with the last real one, to the newest image that is left.
        let others = refs.iter().any(|(_, release, row)| row.digest == image.digest && release != HEAD && !gone.contains(release));
        if !others && of_image(HEAD) && !gone.iter().any(|release| release == HEAD) {
            gone.push(HEAD.to_owned());
        }
        // A container that runs it may not have read all of it yet: then the next gc after that forgets it.
        let is_running = self.running_images()?.contains(&image.digest);
        let next_head = refs.iter().filter(|(_, release, row)| row.digest != image.digest && !release.starts_with('@')).max_by_key(|(.., row)| row.set_s);
        index.write(|txn| {
            for release in &gone {
                index.refs.delete(txn, &ref_key(repository, release))?;
            }
            if let Some((.., row)) = next_head.filter(|_| gone.iter().any(|release| release == HEAD)) {
                index.refs.put(txn, &ref_key(repository, HEAD), &encode(row)?)?;
            }
            if !is_running && !refs_in(index, txn, None)?.iter().any(|(.., row)| row.digest == image.digest) {
                index.images.delete(txn, image.digest.as_bytes())?;
                index.manifests.delete(txn, image.digest.as_bytes())?;
            }
            Ok(())
        })?;
        self.write_image_file(&image.digest)?;
        if let Some((.., row)) = next_head {
            self.write_image_file(&row.digest)?;
        }
        Ok(gone.iter().map(|release| show(repository, release)).collect())
    }

    /// Protects an image from eviction, or no longer. Returns whether there is such an image.
    ///
    /// # Errors
    /// [`StoreError::Ambiguous`] if a prefix matches more than one.
    pub fn image_pin(&self, reference: &ImageReference, pinned: bool) -> Result<bool, StoreError> {
        let Some(image) = self.image_get(reference)? else { return Ok(false) };
        self.image_update(&image.digest, |row| row.pinned = pinned)?;
        Ok(true)
    }

    /// Changes what is known of an image, if there is one.
    pub(super) fn image_update(&self, digest: &Digest, change: impl FnOnce(&mut ImageRow)) -> Result<(), StoreError> {
        let index = &self.inner.index;
        index.write(|txn| {
            let Some(mut row) = index.images.get(txn, digest.as_bytes())?.map(decode::<ImageRow>).transpose()? else { return Ok(()) };
            change(&mut row);
            index.images.put(txn, digest.as_bytes(), &encode(&row)?)
        })?;
        self.write_image_file(digest)
    }

    /// Notes that all of an image is on a registry and may be evicted here.
    pub(crate) fn image_is_on_registry(&self, digest: &Digest) -> Result<(), StoreError> {
        self.image_update(digest, |row| row.on_registry = true)
    }

    /// Notes that all of an image is here, brought from a registry. The caller has made sure that it is, and durable.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be written.
    pub fn image_is_here(&self, digest: &Digest) -> Result<(), StoreError> {
        self.image_update(digest, |row| (row.complete, row.on_registry) = (true, true))
    }

    /// Notes that all of an image is here; where else it is is not known from that.
    pub(crate) fn image_is_whole(&self, digest: &Digest) -> Result<(), StoreError> {
        self.image_update(digest, |row| row.complete = true)
    }

    /// Whether all of an image was here when that was last known.
    ///
    /// # Errors
    /// [`StoreError`] if the index cannot be read.
    pub fn image_is_complete(&self, digest: &Digest) -> Result<bool, StoreError> {
        let index = &self.inner.index;
        let row = index.read(|txn| index.images.get(txn, digest.as_bytes())?.map(decode::<ImageRow>).transpose())?;
        Ok(row.is_some_and(|row| row.complete))
    }

    pub(super) fn image_rows(&self) -> Result<Vec<(Digest, ImageRow)>, StoreError> {
        let index = &self.inner.index;
        index.read(|txn| {
            let mut rows = Vec::new();
            for item in index.images.iter(txn)? {
                let (key, row) = item?;
                if let Ok(digest) = key.try_into().map(Digest) {
                    rows.push((digest, decode(row)?));
                }
            }
            Ok(rows)
        })
    }

    pub(super) fn manifest_of(&self, digest: &Digest) -> Result<Option<ImageManifest>, StoreError> {
        let index = &self.inner.index;
        index.read(|txn| Ok(index.manifests.get(txn, digest.as_bytes())?.and_then(|bytes| ImageManifest::decode(bytes).ok())))
    }

    /// Images that have a name.
    pub(super) fn named_images(&self) -> Result<HashSet<Digest>, StoreError> {
        Ok(self.refs_of(None)?.into_iter().map(|(.., row)| row.digest).collect())
    }

    /// Forgets an image that no name points at.
    pub(super) fn image_forget(&self, digest: &Digest) -> Result<(), StoreError> {
        let index = &self.inner.index;
        index.write(|txn| {
            index.manifests.delete(txn, digest.as_bytes())?;
            index.images.delete(txn, digest.as_bytes())
        })?;
        self.write_image_file(digest)
    }

    pub(super) fn refs_of(&self, repository: Option<&Repository>) -> Result<Vec<(Repository, String, RefRow)>, StoreError> {
        let index = &self.inner.index;
        index.read(|txn| refs_in(index, txn, repository))
    }

    /// Brings the file in `images/` in line with the index.
    fn write_image_file(&self, digest: &Digest) -> Result<(), StoreError> {
        let (index, layout) = (&self.inner.index, &self.inner.layout);
        let path = layout.images().join(format!("{}.json", digest.to_hex()));
        let file = index.read(|txn| {
            let Some(row) = index.images.get(txn, digest.as_bytes())? else { return Ok(None) };
            let manifest = index.manifests.get(txn, digest.as_bytes())?.map(String::from_utf8_lossy).unwrap_or_default().into_owned();
            let names = refs_in(index, txn, None)?.into_iter().filter(|(.., name)| name.digest == *digest).collect();
            encode(&ImageFile { manifest, row: decode(row)?, names }).map(Some)
        })?;
        match file {
            Some(bytes) => write_durably(&path, &layout.tmp_name("image"), &bytes),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("removing", &path)(error)),
                _ => Ok(()),
            },
        }
    }
}

/// All names, or those of a repository.
fn refs_in(index: &super::index::Index, txn: &RoTxn<'_>, repository: Option<&Repository>) -> heed::Result<Vec<(Repository, String, RefRow)>> {
    let prefix = repository.map_or_else(Vec::new, |repository| ref_key(repository, ""));
    let mut refs = Vec::new();
    // LMDB has no empty keys, also not as a prefix.
    for item in index.refs.iter(txn)? {
        let (key, row) = item?;
        if !key.starts_with(&prefix) {
            continue;
        }
        let Ok(text) = std::str::from_utf8(key) else { continue };
        if let Some((repository, release)) = text.split_once('\0')
            && let Ok(repository) = repository.parse()
        {
            refs.push((repository, release.to_owned(), decode(row)?));
        }
    }
    Ok(refs)
}
