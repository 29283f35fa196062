//! From (layer, path, what is touched) to the objects that answer for it, with the tree objects that lead there.

use std::collections::VecDeque;
use std::sync::Arc;

use layer_format::entry::{Entry, Kind};
use layer_format::recipe::{Extent, RangeStep, RangeWalk};
use layer_format::trace::{BUCKET_LEN, Touch};
use layer_format::tree::{Lookup, Step};
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

    /// Whether the touch can have happened: file content is read from a file that is there, within its length. That a
    /// path is *not* there is a touch like any other.
    pub(crate) async fn is_plausible(&self, layer: u8, path: &LayerPath, touch: Touch) -> Result<bool, ReadError> {
        let Some(root) = self.roots.get(usize::from(layer)) else { return Ok(false) };
        let Touch::Data { bucket } = touch else { return Ok(true) };
        match self.lookup(*root, path, &mut Vec::new()).await {
            Ok(Some(entry)) => Ok(matches!(entry.kind, Kind::File(_)) && u64::from(bucket) * BUCKET_LEN < entry.len()),
            Ok(None) => Ok(false),
            Err(error) => error.into_outage().map_or(Ok(false), Err),
        }
    }

    /// The tree objects that lead to a program and to the folders above it, through symbolic links. A name without a
    /// path is looked for where programs usually are.
    pub(crate) async fn program(&self, program: &str) -> Result<Vec<Digest>, ReadError> {
        let mut way = Vec::new();
        let candidates: Vec<String> = match program.contains('/') {
            true => vec![program.to_owned()],
            false => PROGRAM_FOLDERS.iter().map(|folder| format!("{folder}/{program}")).collect(),
        };
        for candidate in candidates {
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

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}
