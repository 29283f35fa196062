//! Building the index from packs and image files: what happens when its folder is missing.

use std::collections::HashSet;
use std::fs::File;

use heed::RwTxn;
use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest};

use super::Store;
use super::bases::may_hold_deltas;
use super::images::ImageFile;
use super::index::{PackOrigin, PackRow, encode};
use super::layout::io_error;
use super::pack_file::{read_index, scan_frames_with};
use crate::error::StoreError;

impl Store {
    /// Names what the packs and image files hold. Objects are not verified now; they are when they are read.
    pub(super) fn rebuild_index(&self) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        let dir = layout.packs();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(io_error("reading", &dir))?.flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let file = File::open(&path).map_err(io_error("opening", &path))?;
            // What delta frames need first: of an object that is in both, the plain copy counts.
            let rank = may_hold_deltas(&file);
            found.push((rank, name, path));
        }
        found.sort_unstable();
        let count = found.len();
        // Without their index packs say what they hold only when the bases of their frames are known.
        let mut scanned = Vec::new();
        for (_, name, path) in found {
            let file = File::open(&path).map_err(io_error("opening", &path))?;
            let len = file.metadata().map_err(io_error("reading", &path))?.len();
            match read_index(&file, &path)? {
                Ok(index) => _ = self.add_pack(PackRow::finished(name.clone(), origin_of(&name), len), &index, &HashSet::new())?,
                Err(_) => scanned.push((name, path, len)),
            }
        }
        for (name, path, len) in scanned {
            // A pack that grew when the index was lost, or is damaged: what its frames say.
            let file = File::open(&path).map_err(io_error("opening", &path))?;
            let origin = origin_of(&name);
            let scanned = scan_frames_with(&file, len, |encoded| self.inner.decode_frame(encoded).ok());
            let streamed = origin == PackOrigin::Streamed;
            let len = if streamed { scanned.len() } else { len };
            let row = PackRow { finished: !streamed, ..PackRow::finished(name, origin, len) };
            self.add_pack(row, &scanned.finish().1, &HashSet::new())?;
        }
        self.rebuild_images()?;
        self.inner.index.set_built()?;
        if count > 0 {
            tracing::warn!("the index of the store was missing and has been built again from {count} packs");
        }
        Ok(())
    }

    fn rebuild_images(&self) -> Result<(), StoreError> {
        let (layout, index) = (&self.inner.layout, &self.inner.index);
        let dir = layout.images();
        for entry in std::fs::read_dir(&dir).map_err(io_error("reading", &dir))?.flatten() {
            let file = std::fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice::<ImageFile>(&bytes).ok());
            let Some(mut file) = file.filter(|file| ImageManifest::decode(file.manifest.as_bytes()).is_ok()) else {
                tracing::warn!(path = %entry.path().display(), "an image's file is damaged and was left out");
                continue;
            };
            file.row.complete = false;
            index.write(|txn| self.put_image_file(txn, &file))?;
        }
        Ok(())
    }

    fn put_image_file(&self, txn: &mut RwTxn<'_>, file: &ImageFile) -> heed::Result<()> {
        let index = &self.inner.index;
        let digest = Digest::of(file.manifest.as_bytes());
        index.manifests.put(txn, digest.as_bytes(), file.manifest.as_bytes())?;
        index.images.put(txn, digest.as_bytes(), &encode(&file.row)?)?;
        for (repository, release, row) in &file.names {
            index.refs.put(txn, &[repository.as_str().as_bytes(), b"\0", release.as_bytes()].concat(), &encode(row)?)?;
        }
        Ok(())
    }
}

/// How a pack came here is not known any more but for streams: an imported pack is kept until a push or a gc knows better.
fn origin_of(name: &str) -> PackOrigin {
    if name.starts_with("stream-") { PackOrigin::Streamed } else { PackOrigin::Imported }
}
