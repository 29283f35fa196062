//! States: the manifests of containers at one moment. What their sandboxes need is kept until they are removed.
//!
//! Each is a file that holds the manifest's bytes and is named by their digest. So there is no table that could be lost, and
//! nothing to be brought in line after a crash: a state is there once its file is, and then all that it needs was stored
//! before. Images are not part of it: a state names them.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use layer_format::Digest;
use layer_format::manifest::{Manifest, StateManifest};

use super::gc::GcOptions;
use super::layout::{io_error, write_durably};
use super::walk::Visit;
use super::{Store, Walk, WalkError};
use crate::error::StoreError;

/// Fewest hex digits of a prefix that stands for a state.
pub const MIN_STATE_PREFIX_LEN: usize = 6;

/// A state found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredState {
    /// Its id.
    pub digest: Digest,
    /// The manifest's bytes, as taken or received.
    pub bytes: Bytes,
    /// The manifest, parsed.
    pub manifest: StateManifest,
}

impl Store {
    /// Keeps a state. Durable on return. The caller has made sure that its sandbox is here, and holds the content
    /// ([`Store::hold`]) since before it looked.
    ///
    /// # Errors
    /// [`StoreError::InvalidState`] if the bytes are not the manifest of a state.
    pub fn state_put(&self, manifest: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(manifest);
        StateManifest::decode(manifest).map_err(|source| StoreError::InvalidState { digest, source })?;
        let layout = &self.inner.layout;
        let path = layout.states().join(file_name(&digest));
        if std::fs::read(&path).is_ok_and(|bytes| bytes == manifest) {
            return Ok(digest);
        }
        write_durably(&path, &layout.tmp_name("state"), manifest)?;
        Ok(digest)
    }

    /// The state with this id. One that the disk damaged is as good as none.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be read, [`StoreError::InvalidState`] if it needs a newer version.
    pub fn state_get(&self, digest: &Digest) -> Result<Option<StoredState>, StoreError> {
        let path = self.inner.layout.states().join(file_name(digest));
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error("reading", &path))?,
        };
        if Digest::of(&bytes) != *digest {
            return Ok(None);
        }
        let manifest = StateManifest::decode(&bytes).map_err(|source| StoreError::InvalidState { digest: *digest, source })?;
        Ok(Some(StoredState { digest: *digest, bytes: bytes.into(), manifest }))
    }

    /// The ids that start with these hex digits, in order. None for a prefix that is not of at least
    /// [`MIN_STATE_PREFIX_LEN`] lower-case hex digits.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be read.
    pub fn state_find(&self, prefix: &str) -> Result<Vec<Digest>, StoreError> {
        if prefix.len() < MIN_STATE_PREFIX_LEN || !prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Vec::new());
        }
        let mut found: Vec<Digest> = self.states()?.into_iter().map(|(digest, _)| digest).filter(|digest| digest.to_hex().starts_with(prefix)).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// All states, and when each was first kept here, in seconds since 1970; newest first.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be read.
    pub fn states(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let folder = self.inner.layout.states();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(io_error("reading", &folder))? {
            let entry = entry.map_err(io_error("reading", &folder))?;
            let name = entry.file_name();
            let Some(digest) = Path::new(&name).file_stem().and_then(|stem| Digest::from_hex(stem.to_str()?).ok()) else { continue };
            let kept = entry.metadata().ok().and_then(|meta| meta.modified().ok()).and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            found.push((digest, kept.map_or(0, |since| since.as_secs())));
        }
        found.sort_unstable_by_key(|(digest, kept)| (std::cmp::Reverse(*kept), *digest));
        Ok(found)
    }

    /// Forgets a state; what it needed stays until the next gc. Returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be removed.
    pub fn state_remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.inner.layout.states().join(file_name(digest));
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io_error("removing", &path)(error)),
        }
    }

    /// Forgets the states that `listed` does not name; with `dry_run` only counts them. `None` if for as long as is waited an
    /// import, pull, push or capture is going on, which may have made a state that is not listed yet.
    ///
    /// # Errors
    /// [`StoreError`] if the folder cannot be read, and what `listed` returns.
    pub fn gc_states<E: From<StoreError>>(&self, options: &GcOptions, listed: impl FnOnce() -> Result<HashSet<Digest>, E>) -> Result<Option<u64>, E> {
        let wait = if options.dry_run { Duration::ZERO } else { options.wait };
        let Some(_content) = self.inner.layout.content_lock_within(wait)? else { return Ok(None) };
        let keep = listed()?;
        let mut forgotten = 0;
        for (digest, _) in self.states()? {
            if !keep.contains(&digest) && (options.dry_run || self.state_remove(&digest)?) {
                forgotten += 1;
            }
        }
        Ok(Some(forgotten))
    }

    /// Walks what the sandboxes of all states need, of what `walk` has not seen. A state that is damaged is passed over.
    pub(super) fn walk_states(&self, walk: &mut Walk, mut visit: impl FnMut(&Digest, &Visit<'_>) -> Result<(), StoreError>) -> Result<(), StoreError> {
        for (digest, _) in self.states()? {
            let Some(state) = self.state_get(&digest).ok().flatten() else { continue };
            let walked = walk.layers(self, &[state.manifest.sandbox], &mut |found| visit(&digest, &found).map_err(WalkError::Store));
            match walked {
                Err(WalkError::Store(error)) => return Err(error),
                Err(error @ WalkError::Format { .. }) => tracing::warn!(%error, state = %digest, "a state is not valid: what it needs is not known"),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

fn file_name(digest: &Digest) -> String {
    format!("{}.json", digest.to_hex())
}
