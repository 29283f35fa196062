//! SHA-2 of a stream, which can be put aside and gone on with by another process.

use layer_format::oci::{Algorithm, OciDigest};
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256, Sha512};

/// A hash in the making.
#[derive(Clone, Debug)]
pub(super) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

/// A state that is none: written by another version, or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a kept hash is damaged, or was written by another version of the registry")]
pub(crate) struct InvalidHash;

impl Hasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Option<OciDigest> {
        match self {
            Self::Sha256(hash) => OciDigest::new(Algorithm::Sha256, &hash.finalize()),
            Self::Sha512(hash) => OciDigest::new(Algorithm::Sha512, &hash.finalize()),
        }
    }

    /// What [`Self::restore`] takes.
    pub(super) fn save(&self) -> Vec<u8> {
        match self {
            Self::Sha256(hash) => hash.serialize().to_vec(),
            Self::Sha512(hash) => hash.serialize().to_vec(),
        }
    }

    /// Goes on where [`Self::save`] ended.
    pub(super) fn restore(algorithm: Algorithm, state: &[u8]) -> Result<Self, InvalidHash> {
        match algorithm {
            Algorithm::Sha256 => restore(state).map(Self::Sha256),
            Algorithm::Sha512 => restore(state).map(Self::Sha512),
        }
    }
}

fn restore<T: SerializableState>(state: &[u8]) -> Result<T, InvalidHash> {
    let state: &SerializedState<T> = state.try_into().map_err(|_| InvalidHash)?;
    T::deserialize(state).map_err(|_| InvalidHash)
}

/// The digest of some bytes.
pub(super) fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Option<OciDigest> {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_goes_on_wherever_it_was_put_aside() {
        let content: Vec<u8> = (0..1000u32).map(|at| at as u8).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for at in [0, 1, 63, 64, 65, 127, 128, 129, 999, 1000] {
                let mut hasher = Hasher::new(algorithm);
                hasher.update(&content[..at]);
                let mut restored = Hasher::restore(algorithm, &hasher.save()).unwrap();
                restored.update(&content[at..]);
                assert_eq!(restored.finish(), digest_of(algorithm, &content), "at {at}");
            }
            assert!(Hasher::restore(algorithm, b"short").is_err());
        }
        let empty = digest_of(Algorithm::Sha256, b"").unwrap();
        assert_eq!(empty.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
