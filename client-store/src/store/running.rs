//! Which images living processes use: what they may need is not evicted.
//!
//! Each process writes one file and keeps it locked. A file whose lock is free belongs to a dead process.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use layer_format::Digest;

use super::Store;
use super::layout::{create_locked, io_error, remove_if_free};
use crate::error::StoreError;

/// Protects images from eviction and gc until it is dropped.
#[derive(Debug)]
pub struct RunningGuard {
    path: PathBuf,
    _file: File,
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Store {
    /// Says that this process uses these images. Forgotten when the guard is dropped or the process dies.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be written.
    pub fn running(&self, images: &[Digest]) -> Result<RunningGuard, StoreError> {
        let layout = &self.inner.layout;
        let (path, mut file) = create_locked(|| layout.running().join(format!("{}-{:08x}", std::process::id(), rand::random::<u32>())))?;
        let text: String = images.iter().map(|digest| format!("{digest}\n")).collect();
        let guard = RunningGuard { path: path.clone(), _file: file.try_clone().map_err(io_error("opening", &path))? };
        file.write_all(text.as_bytes()).map_err(io_error("writing", &path))?;
        Ok(guard)
    }

    /// Images that living processes use. Removes the files of dead ones.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be read.
    pub fn running_images(&self) -> Result<Vec<Digest>, StoreError> {
        let dir = self.inner.layout.running();
        let mut images = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(io_error("reading", &dir))?.flatten() {
            if !remove_if_free(&entry.path()) {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                images.extend(text.lines().filter_map(|line| line.parse::<Digest>().ok()));
            }
        }
        images.sort_unstable();
        images.dedup();
        Ok(images)
    }
}
