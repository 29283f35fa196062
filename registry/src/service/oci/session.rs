//! A blob being pushed, between two requests: what its row holds.

use chunker::blob::BlobState;
use layer_format::Digest;
use layer_format::chunk::ChunkRef;
use layer_format::oci::Algorithm;
use layer_format::recipe::NodeRef;

use super::hash::{Hasher, InvalidHash};
use crate::db::oci_upload::UploadRow;

/// A digest and its length, in a row.
const ITEM_LEN: usize = Digest::LEN + 8;

/// An upload that is gone on with.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) hasher: Hasher,
    pub(super) state: BlobState,
}

impl Session {
    /// A new one, which expects a digest of this kind.
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self { hasher: Hasher::new(algorithm), state: BlobState::default() }
    }

    /// Its row.
    pub(super) fn to_row(&self) -> UploadRow {
        let algorithm = match self.hasher {
            Hasher::Sha256(_) => Algorithm::Sha256,
            Hasher::Sha512(_) => Algorithm::Sha512,
        };
        UploadRow {
            algorithm,
            received: self.state.len(),
            nodes: encode(self.state.nodes.iter().map(|node| (node.digest, node.len))),
            chunks: encode(self.state.open.iter().map(|chunk| (chunk.digest, u64::from(chunk.len)))),
            tail: self.state.tail.clone(),
            hash: self.hasher.save(),
        }
    }

    /// From its row.
    pub(super) fn from_row(row: UploadRow) -> Result<Self, InvalidHash> {
        let hasher = Hasher::restore(row.algorithm, &row.hash)?;
        let nodes = decode(&row.nodes).map(|(digest, len)| NodeRef { digest, len }).collect();
        let open = decode(&row.chunks).map(|(digest, len)| ChunkRef { digest, len: len as u32 }).collect();
        let state = BlobState { nodes, open, tail: row.tail };
        if state.len() == row.received { Ok(Self { hasher, state }) } else { Err(InvalidHash) }
    }
}

/// The digests in a column of an upload's row.
pub(crate) fn chunks_of_row(column: &[u8]) -> impl Iterator<Item = Digest> {
    decode(column).map(|(digest, _)| digest)
}

fn encode(items: impl Iterator<Item = (Digest, u64)>) -> Vec<u8> {
    items.flat_map(|(digest, len)| digest.as_bytes().iter().copied().chain(len.to_le_bytes()).collect::<Vec<_>>()).collect()
}

fn decode(bytes: &[u8]) -> impl Iterator<Item = (Digest, u64)> {
    bytes.as_chunks::<ITEM_LEN>().0.iter().map(|item| {
        let (mut digest, mut len) = ([0; Digest::LEN], [0; 8]);
        digest.copy_from_slice(&item[..Digest::LEN]);
        len.copy_from_slice(&item[Digest::LEN..]);
        (Digest(digest), u64::from_le_bytes(len))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_survives_its_row() {
        let mut session = Session::new(Algorithm::Sha512);
        session.state.nodes = (0..3u64).map(|at| NodeRef { digest: Digest::of(&at.to_le_bytes()), len: 1 << (20 + at) }).collect();
        session.state.open = vec![ChunkRef { digest: Digest::of(b"chunk"), len: 65_536 }];
        session.state.tail = b"tail".to_vec();
        session.hasher.update(b"some");
        let row = session.to_row();
        assert_eq!(row.received, (7 << 20) + 65_536 + 4);
        let back = Session::from_row(row.clone()).unwrap();
        assert_eq!(back.state, session.state);
        assert_eq!(back.to_row(), row);
        assert!(Session::from_row(UploadRow { received: 1, ..row }).is_err());
    }
}
