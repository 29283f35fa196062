//! What keeps objects alive. One line a table: whoever adds a table that refers to objects of a namespace adds it here, or
//! collections remove what it needs.
//!
//! | root | keeps |
//! |---|---|
//! | images | their layers, and a model that they pin |
//! | states | the layer of the sandbox |
//! | blobs of container tools | the chunks of the recipe (of the blob, or of what it is made of again), or the tree that it is written from |
//! | uploads of such blobs in progress | recipe nodes and chunks so far |
//! | layers that were taken apart | their tree, as long as the namespace has the blob |
//! | what was deleted and can be brought back | the same as before |
//! | packs with delta frames, until their bytes are gone | what those are compressed against |
//!
//! Not roots: `verified` and `oci_tar`, which remember something about objects and go before them; learned models, which are
//! in the database itself; candidates for removal. Pushes in progress are not roots either but leases, `service/lease.rs`.

use std::io;
use std::path::Path;

use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest, StateManifest};
use layer_format::recipe::Recipe;
use serde::Serialize;

use super::GcError;
use super::runs::Runs;
use crate::db::Connection;
use crate::db::namespace::NamespaceId;
use crate::db::root::{root_bases, root_blobs, root_layers, root_manifests, root_states, root_trash, root_uploads};
use crate::service::oci::chunks_of_row;
use crate::service::trash::{self, BlobKind};

/// What a reference says that an object is. Part of a record, so its values stay within one collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A layer manifest.
    Layer,
    /// A tree object.
    Tree,
    /// A recipe node.
    Recipe,
    /// Something that refers to nothing.
    Leaf,
}

/// Length of a record of what is to be followed: kind and digest.
pub(super) const RECORD_LEN: usize = 1 + Digest::LEN;

/// Objects to be followed, and the first error.
pub(super) struct Frontier {
    runs: Runs<RECORD_LEN>,
    failure: Option<io::Error>,
}

impl Frontier {
    pub(super) fn new(folder: &Path) -> Self {
        Self { runs: Runs::new(folder), failure: None }
    }

    pub(super) fn add(&mut self, kind: Kind, digest: &Digest) {
        let mut record = [0; RECORD_LEN];
        let (head, rest) = record.split_at_mut(1);
        head.copy_from_slice(&[kind as u8]);
        rest.copy_from_slice(digest.as_bytes());
        if let Err(error) = self.runs.push(record) {
            self.failure.get_or_insert(error);
        }
    }

    pub(super) fn add_recipe(&mut self, recipe: &Recipe) {
        super::mark::recipe_references(recipe, &mut |kind, digest| self.add(kind, digest));
    }

    pub(super) fn into_runs(self) -> io::Result<Runs<RECORD_LEN>> {
        match self.failure {
            Some(error) => Err(error),
            None => Ok(self.runs),
        }
    }
}

/// What a record says.
pub(super) fn decode(record: &[u8; RECORD_LEN]) -> (Kind, Digest) {
    let kind = match record[0] {
        0 => Kind::Layer,
        1 => Kind::Tree,
        2 => Kind::Recipe,
        _ => Kind::Leaf,
    };
    let mut digest = [0; Digest::LEN];
    digest.copy_from_slice(&record[1..]);
    (kind, Digest(digest))
}

/// How many roots there were.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RootCounts {
    /// Images.
    pub images: u64,
    /// States.
    pub states: u64,
    /// Blobs of container tools that are in the namespace's chunks or trees.
    pub blobs: u64,
    /// Uploads in progress.
    pub uploads: u64,
    /// Layers that were taken apart.
    pub layers: u64,
    /// Things that can be brought back.
    pub trash: u64,
    /// What delta frames are compressed against.
    pub bases: u64,
}

/// All roots of the namespace. In one snapshot, or what moves from one table to another meanwhile would be missed.
pub(super) async fn roots(snapshot: &mut Connection, namespace: NamespaceId, folder: &Path) -> Result<(Runs<RECORD_LEN>, RootCounts), GcError> {
    let mut found = Frontier::new(folder);
    // A row that cannot be read may need anything: nothing may be removed then.
    let mut unreadable: Option<String> = None;
    let mut image = |bytes: &[u8], found: &mut Frontier| match ImageManifest::decode(bytes) {
        Ok(image) => {
            image.layers.iter().for_each(|layer| found.add(Kind::Layer, layer));
            image.model.iter().for_each(|model| found.add(Kind::Leaf, model));
        }
        Err(error) => drop(unreadable.get_or_insert(format!("the manifest of image {}: {error}", Digest::of(bytes)))),
    };
    let mut bad_recipes = 0u64;
    let counts = RootCounts {
        images: root_manifests(&mut *snapshot, namespace, |bytes| image(bytes, &mut found)).await?,
        states: root_states(&mut *snapshot, namespace, |sandbox| found.add(Kind::Layer, &sandbox)).await?,
        blobs: root_blobs(&mut *snapshot, namespace, |recipe, root| {
            root.iter().for_each(|root| found.add(Kind::Tree, root));
            match recipe.map(Recipe::decode_node) {
                Some(Ok(recipe)) => found.add_recipe(&recipe),
                Some(Err(_)) => bad_recipes += 1,
                None => {}
            }
        })
        .await?,
        uploads: root_uploads(&mut *snapshot, namespace, |nodes, chunks| {
            chunks_of_row(nodes).for_each(|node| found.add(Kind::Recipe, &node));
            chunks_of_row(chunks).for_each(|chunk| found.add(Kind::Leaf, &chunk));
        })
        .await?,
        layers: root_layers(&mut *snapshot, namespace, |root| found.add(Kind::Tree, &root)).await?,
        trash: root_trash(&mut *snapshot, namespace, |kind, content, detail| match kind {
            trash::IMAGE => image(content, &mut found),
            trash::STATE => match (StateManifest::decode(content), trash::state_sandbox(detail)) {
                (Ok(state), _) => found.add(Kind::Layer, &state.sandbox),
                (Err(_), Some(sandbox)) => found.add(Kind::Layer, &sandbox),
                (Err(_), None) => bad_recipes += 1,
            },
            trash::OCI_BLOB => match trash::blob_kind(detail) {
                Some(BlobKind::Inline) => {}
                Some(BlobKind::Recipe | BlobKind::Rebuilt) => match Recipe::decode_node(content) {
                    Ok(recipe) => found.add_recipe(&recipe),
                    Err(_) => bad_recipes += 1,
                },
                Some(BlobKind::Tar) => match <[u8; Digest::LEN]>::try_from(content) {
                    Ok(root) => found.add(Kind::Tree, &Digest(root)),
                    Err(_) => bad_recipes += 1,
                },
                None => bad_recipes += 1,
            },
            _ => {}
        })
        .await?,
        bases: root_bases(&mut *snapshot, namespace, |base| found.add(Kind::Leaf, &base)).await?,
    };
    if let Some(what) = unreadable {
        return Err(GcError::Unreadable { what });
    }
    if bad_recipes > 0 {
        return Err(GcError::Unreadable { what: format!("{bad_recipes} rows of blobs or states") });
    }
    let runs = found.into_runs().map_err(GcError::Scratch)?;
    Ok((runs, counts))
}
