//! From (layer, path, what is touched) to the objects that answer for it, with the tree objects that lead there.

use std::collections::VecDeque;
use std::sync::Arc;

use layer_format::entry::{Entry, Kind};
use layer_format::recipe::{Extent, RangeStep, RangeWalk, Recipe};
use layer_format::trace::{BUCKET_LEN, Touch};
use layer_format::tree::{Lookup, Scan, Step};
use layer_format::{Digest, LayerPath};

use super::frames::ReadError;
use super::nodes::{NodeError, Nodes};
use crate::db::namespace::NamespaceId;

/// Symbolic links that are followed to find a program.
const MAX_LINKS: usize = 8;
/// Where a program without a path is looked for.
const PROGRAM_FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The layers of an image, as the server looks into them.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) namespace: NamespaceId,
    /// Root of each layer's tree, lowest layer first.
    pub(crate) roots: Vec<Digest>,
}

impl Layers {
    /// Looks a path up in a layer, and adds the tree objects on the way to `way`.
    async fn lookup(&self, root: Digest, path: &LayerPath, way: &mut Vec<Digest>) -> Result<Option<Entry>, NodeError> {
        let mut lookup = Lookup::new(root, path.clone());
        loop {
            let digest = match lookup.step() {
                Step::Done(entry) => return Ok(entry.clone()),
                Step::Need(digest) => *digest,
            };
            let node = self.nodes.tree(self.namespace, digest, None).await?;
            way.push(digest);
            lookup.feed(&node).map_err(|source| NodeError::Invalid { digest, source })?;
        }
    }

    /// The objects of a touch, tree objects before what they lead to. What cannot be resolved (a model of another
    /// version names it, or an object is damaged) gives the objects up to there.
    pub(crate) async fn touch(&self, layer: u8, path: &LayerPath, touch: Touch) -> Result<Vec<Digest>, ReadError> {
        let mut way = Vec::new();
        match self.touch_into(layer, path, touch, &mut way).await.map_err(NodeError::into_outage) {
            Err(Some(outage)) => Err(outage),
            Ok(()) | Err(None) => Ok(way),
        }
    }

    async fn touch_into(&self, layer: u8, path: &LayerPath, touch: Touch, way: &mut Vec<Digest>) -> Result<(), NodeError> {
        let Some(root) = self.roots.get(usize::from(layer)) else { return Ok(()) };
        let entry = self.lookup(*root, path, way).await?;
        let (Some(entry), Touch::Data { bucket }) = (entry, touch) else { return Ok(()) };
        let Kind::File(recipe) = &entry.kind else { return Ok(()) };
        let start = u64::from(bucket) * BUCKET_LEN;
        let mut walk = RangeWalk::new(recipe, start..start + BUCKET_LEN);
        loop {
            match walk.step() {
                RangeStep::Done => return Ok(()),
                RangeStep::Extent { extent: Extent::Data(chunk), .. } => way.push(chunk.digest),
                RangeStep::Extent { extent: Extent::Hole(_), .. } => {}
                RangeStep::Need(digest) => {
                    way.push(digest);
                    let node = self.nodes.recipe(self.namespace, digest, None).await?;
                    walk.feed((*node).clone()).map_err(|source| NodeError::Invalid { digest, source })?;
                }
            }
        }
    }

    /// What stands in a layer at `path`, and the entry that stands for it if there is nothing: see
    /// [`Node::stand_in`](layer_format::tree::Node::stand_in).
    pub(crate) async fn look(&self, layer: usize, path: &LayerPath) -> Result<(Option<Entry>, Option<LayerPath>), NodeError> {
        let Some(root) = self.roots.get(layer) else { return Ok((None, None)) };
        let mut way = Vec::new();
        let entry = self.lookup(*root, path, &mut way).await?;
        let stand_in = match (&entry, way.last()) {
            (Some(entry), _) => Some(entry.path.clone()),
            (None, Some(leaf)) => self.nodes.tree(self.namespace, *leaf, None).await?.stand_in(path).cloned(),
            (None, None) => None,
        };
        Ok((entry, stand_in))
    }

    /// At most `max` entries of a folder of a layer, in order of their names.
    pub(crate) async fn list(&self, layer: usize, folder: &LayerPath, max: usize) -> Result<Vec<Entry>, NodeError> {
        let Some(root) = self.roots.get(layer) else { return Ok(Vec::new()) };
        let mut scan = Scan::directory(*root, folder.clone(), None);
        let mut entries = Vec::new();
        while entries.len() < max {
            let digest = match scan.step() {
                Step::Done(None) => break,
                Step::Done(Some(entry)) => {
                    entries.push(entry);
                    continue;
                }
                Step::Need(digest) => digest,
            };
            let node = self.nodes.tree(self.namespace, digest, None).await?;
            scan.feed(&node).map_err(|source| NodeError::Invalid { digest, source })?;
        }
        Ok(entries)
    }

    /// All extents of a file, in order; `None` if there are more than `max`.
    pub(crate) async fn extents(&self, recipe: &Recipe, max: usize) -> Result<Option<Vec<Extent>>, NodeError> {
        let mut walk = RangeWalk::new(recipe, 0..recipe.len());
        let mut extents = Vec::new();
        loop {
            match walk.step() {
                RangeStep::Done => return Ok(Some(extents)),
                RangeStep::Extent { .. } if extents.len() >= max => return Ok(None),
                RangeStep::Extent { extent, .. } => extents.push(extent),
                RangeStep::Need(digest) => {
                    let node = self.nodes.recipe(self.namespace, digest, None).await?;
                    walk.feed((*node).clone()).map_err(|source| NodeError::Invalid { digest, source })?;
                }
            }
        }
    }

    /// Whether the image has this program. A name without a path is looked for where programs usually are.
    pub(crate) async fn has_program(&self, program: &str) -> Result<bool, ReadError> {
        for candidate in candidates(program) {
            match self.follow(candidate.as_bytes(), &mut Vec::new()).await.map_err(NodeError::into_outage) {
                Ok(true) => return Ok(true),
                Ok(false) | Err(None) => {}
                Err(Some(outage)) => return Err(outage),
            }
        }
        Ok(false)
    }

    /// The tree objects that lead to a program and to the folders above it, through symbolic links. A name without a
    /// path is looked for where programs usually are.
    pub(crate) async fn program(&self, program: &str) -> Result<Vec<Digest>, ReadError> {
        let mut way = Vec::new();
        for candidate in candidates(program) {
            match self.follow(candidate.as_bytes(), &mut way).await.map_err(NodeError::into_outage) {
                Ok(true) => break,
                Ok(false) | Err(None) => {}
                Err(Some(outage)) => return Err(outage),
            }
        }
        Ok(way)
    }

    /// Walks a path from the root, component by component; says whether a file is at its end.
    async fn follow(&self, path: &[u8], way: &mut Vec<Digest>) -> Result<bool, NodeError> {
        let mut rest: VecDeque<Vec<u8>> = components(path).collect();
        let mut at = LayerPath::root();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                at = at.parent().unwrap_or_default();
                continue;
            }
            let Ok(next) = at.join(&name) else { return Ok(false) };
            match self.topmost(&next, way).await? {
                None => return Ok(false),
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(false);
                    }
                    if target.starts_with(b"/") {
                        at = LayerPath::root();
                    }
                    components(&target).collect::<Vec<_>>().into_iter().rev().for_each(|part| rest.push_front(part));
                }
                Some(_) => at = next,
            }
        }
        Ok(true)
    }

    /// What the topmost layer that has the path says it is.
    async fn topmost(&self, path: &LayerPath, way: &mut Vec<Digest>) -> Result<Option<Kind>, NodeError> {
        for root in self.roots.iter().rev() {
            if let Some(entry) = self.lookup(*root, path, way).await? {
                return Ok((entry.kind != Kind::Whiteout).then_some(entry.kind));
            }
        }
        Ok(None)
    }
}

/// Where a program may be.
fn candidates(program: &str) -> Vec<String> {
    match program.contains('/') {
        true => vec![program.to_owned()],
        false => PROGRAM_FOLDERS.iter().map(|folder| format!("{folder}/{program}")).collect(),
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}
