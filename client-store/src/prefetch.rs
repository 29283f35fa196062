//! Which objects to fetch ahead of use: policy, apart from the mechanism in [`crate::fetch`].
//!
//! A model speaks of (layer, path, bucket). [`Prefetcher`] turns that into digests by walking the layers' trees, as far
//! as their nodes are on this machine; a node that is not is fetched first, and the prediction is looked at again when
//! it is there. At a miss the model's state is set to it, and what follows goes along in the same request; when the
//! launch stream breaks, or there is none, the model's launch list is fetched in its order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layer_format::entry::Kind;
use layer_format::model::{Model, State};
use layer_format::recipe::{Extent, RangeStep, RangeWalk};
use layer_format::trace::{BUCKET_LEN, Touch};
use layer_format::tree::{Lookup, Step};
use layer_format::{Digest, LayerPath};
use parking_lot::{Condvar, Mutex};
use predictor::{Predicted, Predictor};

use crate::fetch::{Candidate, Room, SURE};
use crate::reader::Nodes;

/// Length assumed of a tree or recipe node, in bytes.
pub(crate) const NODE_LEN: u32 = 6 << 10;
/// Most predictions looked at for one miss.
const MAX_SUCCESSORS: usize = 256;
/// Most predictions that wait for a node.
const MAX_DEFERRED: usize = 4096;
/// Predictions mapped at a time in the background.
const STEP: usize = 64;
/// How long a prediction waits for the nodes that lead to it, and how often they are looked for.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What may be fetched ahead of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// Only a little of what lies beside what was missed: no model is used or asked for.
    OnDemand,
    /// What the model predicts; without a model, the same as `OnDemand`.
    #[default]
    Predicted,
    /// Nothing: the network is not used at all.
    Offline,
}

struct Deferred {
    predicted: Predicted,
    until: Instant,
}

#[derive(Default)]
struct Inner {
    model: Option<Arc<Model>>,
    predictor: Option<Predictor>,
    /// Predictions to turn into digests, in order.
    waiting: VecDeque<Deferred>,
    closing: bool,
}

/// Turns predictions into objects to fetch, for the layers of one image.
pub struct Prefetcher {
    nodes: Arc<Nodes>,
    /// Roots of the layers' trees, lowest first.
    roots: Vec<Digest>,
    entry_point: Option<String>,
    architecture: String,
    inner: Mutex<Inner>,
    work: Condvar,
}

impl std::fmt::Debug for Prefetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.inner.lock();
        f.debug_struct("Prefetcher").field("has_model", &inner.model.is_some()).field("waiting", &inner.waiting.len()).finish_non_exhaustive()
    }
}

/// Where a prediction leads.
enum Located {
    /// These objects, of which some may be here. None: the prediction is about something that does not exist.
    Objects(Vec<(Digest, u32)>),
    /// This node is needed to tell.
    Needs(Digest),
}

impl Prefetcher {
    /// For the layers with these roots, lowest first, and a launch of `entry_point`.
    pub fn new(nodes: Arc<Nodes>, roots: Vec<Digest>, entry_point: Option<String>, architecture: String) -> Self {
        Self { nodes, roots, entry_point, architecture, inner: Mutex::default(), work: Condvar::new() }
    }

    /// Predicts with this model from now on.
    pub fn set_model(&self, model: Arc<Model>) {
        let predictor = Predictor::for_launch(model.clone(), self.entry_point.as_deref(), &self.architecture);
        let mut inner = self.inner.lock();
        inner.predictor = Some(predictor);
        inner.model = Some(model);
    }

    /// Whether there is a model.
    pub fn has_model(&self) -> bool {
        self.inner.lock().model.is_some()
    }

    /// Fetches the model's launch list, in its order, as far as the link and the waste budget allow.
    pub fn fetch_launch_list(&self) {
        let Some(model) = self.inner.lock().model.clone() else { return };
        let list = predictor::launch_list(&model, self.entry_point.as_deref(), &self.architecture);
        let until = Instant::now() + PATIENCE;
        let mut inner = self.inner.lock();
        inner.waiting = list.into_iter().map(|predicted| Deferred { predicted, until }).collect();
        self.work.notify_one();
    }

    /// The application touched this for the first time.
    pub fn observe(&self, layer: u8, path: &LayerPath, touch: Touch) {
        if let Some(predictor) = &mut self.inner.lock().predictor {
            predictor.observe(layer, path, touch);
        }
    }

    /// The application has to wait for this: what should come along? `None` if the model does not know the place.
    pub fn at_miss(&self, layer: u8, path: &LayerPath, touch: Touch, room: Room) -> Option<Vec<Candidate>> {
        let predictions = {
            let mut inner = self.inner.lock();
            let known = inner.model.as_ref().is_some_and(|model| knows(model, layer, path, touch));
            let predictor = inner.predictor.as_mut()?;
            predictor.observe(layer, path, touch);
            if !known {
                return None;
            }
            predictor.successors(MAX_SUCCESSORS)
        };
        let mut candidates = Vec::new();
        let mut deferred = Vec::new();
        let mut bytes = 0;
        for predicted in predictions {
            // Some of it is here already, and does not count in the end.
            if bytes >= 4 * room.predicted {
                break;
            }
            if !self.add(&predicted, &mut candidates, &mut bytes) {
                deferred.push(predicted);
            }
        }
        if !deferred.is_empty() {
            let until = Instant::now() + PATIENCE;
            let mut inner = self.inner.lock();
            for predicted in deferred.into_iter().rev() {
                inner.waiting.push_front(Deferred { predicted, until });
            }
            inner.waiting.truncate(MAX_DEFERRED.max(layer_format::model::MAX_STATES));
            self.work.notify_one();
        }
        // A model never claims what only the shape of a file may: the waste budget binds it.
        candidates.iter_mut().for_each(|candidate| candidate.probability = candidate.probability.min(SURE - 0.01));
        Some(candidates)
    }

    /// Adds what a prediction leads to. `false` if it has to be looked at again when a node is here.
    fn add(&self, predicted: &Predicted, candidates: &mut Vec<Candidate>, bytes: &mut u64) -> bool {
        let probability = predicted.probability;
        let objects = match self.locate(predicted) {
            Located::Objects(objects) => objects,
            Located::Needs(node) => {
                candidates.push(Candidate { digest: node, len: NODE_LEN, probability });
                *bytes += u64::from(NODE_LEN);
                return false;
            }
        };
        for (digest, len) in objects {
            candidates.push(Candidate { digest, len, probability });
            *bytes += u64::from(len);
        }
        true
    }

    /// Looks at what is on this machine only.
    fn locate(&self, predicted: &Predicted) -> Located {
        let nothing = Located::Objects(Vec::new());
        let Some(root) = self.roots.get(usize::from(predicted.layer)) else { return nothing };
        let mut search = Lookup::new(*root, predicted.path.clone());
        let entry = loop {
            match search.step() {
                Step::Done(entry) => break entry.clone(),
                Step::Need(digest) => {
                    let Some(node) = self.nodes.local_tree(digest) else { return Located::Needs(*digest) };
                    if search.feed(&node).is_err() {
                        return nothing;
                    }
                }
            }
        };
        let Touch::Data { bucket } = predicted.touch else { return nothing };
        let Some(Kind::File(recipe)) = entry.map(|entry| entry.kind) else { return nothing };
        let start = u64::from(bucket) * BUCKET_LEN;
        let mut walk = RangeWalk::new(&recipe, start..start + BUCKET_LEN);
        let mut objects = Vec::new();
        loop {
            match walk.step() {
                RangeStep::Done => return Located::Objects(objects),
                RangeStep::Extent { extent: Extent::Data(chunk), .. } => objects.push((chunk.digest, chunk.len)),
                RangeStep::Extent { .. } => {}
                RangeStep::Need(digest) => {
                    let Some(node) = self.nodes.local_recipe(&digest) else { return Located::Needs(digest) };
                    if walk.feed((*node).clone()).is_err() {
                        return nothing;
                    }
                }
            }
        }
    }

    /// Ends [`Prefetcher::run`].
    pub fn close(&self) {
        self.inner.lock().closing = true;
        self.work.notify_one();
    }

    /// Turns waiting predictions into prefetches until closed. To be called on a thread of its own.
    pub fn run(&self) {
        loop {
            let step = {
                let mut inner = self.inner.lock();
                while inner.waiting.is_empty() && !inner.closing {
                    self.work.wait(&mut inner);
                }
                if inner.closing {
                    return;
                }
                let count = inner.waiting.len().min(STEP);
                inner.waiting.drain(..count).collect::<Vec<_>>()
            };
            let mut candidates = Vec::new();
            let mut bytes = 0;
            let now = Instant::now();
            let done = step.len();
            let again: Vec<Deferred> = step.into_iter().filter(|item| !self.add(&item.predicted, &mut candidates, &mut bytes) && item.until > now).collect();
            let stuck = again.len() == done;
            self.nodes.fetcher().prefetch(candidates, false);
            let mut inner = self.inner.lock();
            for item in again {
                inner.waiting.push_back(item);
            }
            if stuck && !inner.closing {
                // Woken early by new predictions, which is fine.
                self.work.wait_for(&mut inner, LOOK_AGAIN);
            }
        }
    }
}

/// Whether the model has this state.
fn knows(model: &Model, layer: u8, path: &LayerPath, touch: Touch) -> bool {
    let Ok(path) = model.paths.binary_search(path) else { return false };
    model.states.binary_search(&State { layer, path: path as u32, touch }).is_ok()
}
