//! In which order the newest image is read: layer, tree objects, and each file's chunks, one layer after the other.

use std::collections::{HashMap, HashSet};

use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest};

use super::GcError;
use super::mark::references;
use super::pace::Pace;
use super::roots::Kind;
use crate::db::manifest::manifest_newest_of;
use crate::db::namespace::NamespaceId;
use crate::service::objects::Objects;

/// Nodes that are read at most: beyond, the order of the old packs is good enough.
const MAX_NODES: usize = 50_000;

/// The place of each of these objects in that order; those that the newest image does not need have none.
pub(super) async fn read_order(
    objects: &Objects,
    namespace: NamespaceId,
    wanted: &HashSet<Digest>,
    pace: &mut Pace<'_>,
) -> Result<HashMap<Digest, u32>, GcError> {
    let newest = {
        let mut db = objects.db.read().await?;
        manifest_newest_of(&mut db, namespace).await?
    };
    let mut order = HashMap::new();
    let Some(image) = newest.and_then(|bytes| ImageManifest::decode(&bytes).ok()) else { return Ok(order) };
    let mut stack: Vec<(Kind, Digest)> = image.layers.iter().rev().map(|layer| (Kind::Layer, *layer)).collect();
    let mut seen: HashSet<Digest> = HashSet::new();
    while let Some((kind, digest)) = stack.pop() {
        if wanted.contains(&digest) {
            let place = order.len() as u32;
            order.entry(digest).or_insert(place);
        }
        if kind == Kind::Leaf || !seen.insert(digest) || seen.len() > MAX_NODES || order.len() == wanted.len() {
            continue;
        }
        let Some(place) = objects.locate(namespace, &[digest]).await?.remove(&digest) else { continue };
        let bytes = match objects.read(&digest, &place).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_loss() => continue,
            Err(error) => return Err(error.into()),
        };
        let first = stack.len();
        if references(kind, &bytes, &mut |kind, digest| stack.push((kind, *digest))).is_some()
            && let Some(children) = stack.get_mut(first..)
        {
            children.reverse();
        }
        pace.rest().await?;
    }
    Ok(order)
}
