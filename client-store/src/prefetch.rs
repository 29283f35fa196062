//! Which objects to fetch ahead of use: policy, apart from the mechanism in [`crate::fetch`].
//!
//! A model speaks of (layer, path, bucket). [`Prefetcher`] turns that into digests by walking the layers' trees, as far
//! as their nodes are on this machine; a node that is not is fetched first, and the prediction is looked at again when
//! it is there. At a miss the model's state is set to it, and what follows goes along in the same request; when the
//! launch stream breaks, or there is none, the model's launch list is fetched in its order.
//!
//! What is queued is planned anew when the model finds the launch to be of another kind than it assumed. How well the
//! model knows what is touched is watched ([`course`]): where it does not, guesses take over ([`crate::guess`]), and a
//! launch stream that brings what nobody needs is left.

mod course;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layer_format::entry::{Entry, Kind};
use layer_format::model::{Model, State};
use layer_format::trace::{BUCKET_LEN, Touch};
use layer_format::{Digest, LayerPath};
use parking_lot::{Condvar, Mutex};
use predictor::{Predicted, Predictor};

use crate::fetch::{Candidate, Room, SURE};
use crate::guess::Guess;
use crate::reader::{Look, Nodes};
use course::{Course, Turn};

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
    /// Only more of the file that was missed: the measure for all else.
    OnDemand,
    /// What the shape of the image and of its files tells: no model is used or asked for.
    Guessed,
    /// What the model predicts, and where it knows nothing the same as `Guessed`.
    #[default]
    Predicted,
    /// Nothing: the network is not used at all.
    Offline,
}

/// What the model holds for less likely than this does not keep a launch stream open.
const PROBABLE: f32 = 0.25;
/// The stream is left if less than this share of what it still has to bring is probable.
const WORTH_ITS_WHILE: f64 = 0.4;

struct Deferred {
    predicted: Predicted,
    /// When it is needed.
    due: Instant,
    until: Instant,
}

impl Deferred {
    fn new(predicted: Predicted, now: Instant) -> Self {
        let due = now + Duration::from_micros(predicted.time_us.into());
        Self { predicted, due, until: due + PATIENCE }
    }

    fn within_us(&self, now: Instant) -> u32 {
        u32::try_from(self.due.saturating_duration_since(now).as_micros()).unwrap_or(u32::MAX)
    }
}

#[derive(Default)]
struct Inner {
    model: Option<Arc<Model>>,
    predictor: Option<Predictor>,
    /// Predictions to turn into digests, in order.
    waiting: VecDeque<Deferred>,
    course: Course,
    /// The predictor's generation that was planned for.
    generation: u64,
    /// What is queued is to be planned anew.
    replan: bool,
    closing: bool,
}

/// Turns predictions into objects to fetch, for the layers of one image.
pub struct Prefetcher {
    nodes: Arc<Nodes>,
    guess: Arc<Guess>,
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

impl Prefetcher {
    /// For the layers with these roots, lowest first, and a launch of `entry_point`.
    pub fn new(nodes: Arc<Nodes>, guess: Arc<Guess>, roots: Vec<Digest>, entry_point: Option<String>, architecture: String) -> Self {
        Self { nodes, guess, roots, entry_point, architecture, inner: Mutex::default(), work: Condvar::new() }
    }

    /// Predicts with this model from now on.
    pub fn set_model(&self, model: Arc<Model>) {
        let predictor = Predictor::for_launch(model.clone(), self.entry_point.as_deref(), &self.architecture);
        let mut inner = self.inner.lock();
        inner.generation = predictor.generation();
        inner.predictor = Some(predictor);
        inner.model = Some(model);
        inner.course = Course::default();
        drop(inner);
        self.guess.set_active(false);
    }

    /// No model will come any more: if there is none, guesses alone are left.
    pub fn set_alone(&self) {
        if !self.has_model() {
            self.guess.set_active(true);
        }
    }

    /// Whether there is a model.
    pub fn has_model(&self) -> bool {
        self.inner.lock().model.is_some()
    }

    /// Fetches the model's launch list, in its order, as far as the link and the waste budget allow.
    pub fn fetch_launch_list(&self) {
        let Some(model) = self.inner.lock().model.clone() else { return };
        let list = predictor::launch_list(&model, self.entry_point.as_deref(), &self.architecture);
        let now = Instant::now();
        let mut inner = self.inner.lock();
        inner.waiting = list.into_iter().map(|predicted| Deferred::new(predicted, now)).collect();
        self.work.notify_one();
    }

    /// The application touched this for the first time.
    pub fn observe(&self, layer: u8, path: &LayerPath, touch: Touch) {
        let mut inner = self.inner.lock();
        let Inner { model: Some(model), predictor: Some(predictor), course, .. } = &mut *inner else { return };
        let turn = course.touched(knows(model, layer, path, touch));
        predictor.observe(layer, path, touch);
        let generation = predictor.generation();
        if std::mem::replace(&mut inner.generation, generation) != generation {
            inner.replan = true;
            self.work.notify_one();
        }
        drop(inner);
        match turn {
            None => {}
            Some(Turn::Lost) => self.guess.set_active(true),
            Some(Turn::Elsewhere) => {
                tracing::debug!("the model does not know this launch; what it predicted is left");
                self.nodes.fetcher().leave_stream();
                self.nodes.fetcher().stop_prefetch();
                self.nodes.fetcher().forgive();
                self.inner.lock().waiting.clear();
            }
            Some(Turn::Back) => self.guess.set_active(false),
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
        let now = Instant::now();
        let mut candidates = Vec::new();
        let mut deferred = Vec::new();
        let mut bytes = 0;
        for predicted in predictions {
            // Some of it is here already, and does not count in the end.
            if bytes >= 4 * room.predicted {
                break;
            }
            let deferral = Deferred::new(predicted, now);
            if !self.add(&deferral, now, &mut candidates, &mut bytes) {
                deferred.push(deferral);
            }
        }
        if !deferred.is_empty() {
            let mut inner = self.inner.lock();
            deferred.into_iter().rev().for_each(|deferral| inner.waiting.push_front(deferral));
            inner.waiting.truncate(MAX_DEFERRED.max(layer_format::model::MAX_STATES));
            self.work.notify_one();
        }
        // A model never claims what only the shape of a file may: the waste budget binds it.
        if !self.nodes.fetcher().is_strict() {
            candidates.iter_mut().for_each(|candidate| candidate.probability = candidate.probability.min(SURE - 0.01));
        }
        Some(candidates)
    }

    /// Adds what a prediction leads to. `false` if it has to be looked at again when a node is here.
    fn add(&self, deferral: &Deferred, now: Instant, candidates: &mut Vec<Candidate>, bytes: &mut u64) -> bool {
        let (probability, within_us) = (deferral.predicted.probability, deferral.within_us(now));
        let (objects, needs) = self.locate(&deferral.predicted);
        for (digest, len) in objects.into_iter().chain(needs.map(|node| (node, NODE_LEN))) {
            candidates.push(Candidate { digest, len, probability, within_us });
            *bytes += u64::from(len);
        }
        needs.is_none()
    }

    /// The objects that a prediction leads to, and the node that is needed to tell more. Looks at what is on this machine
    /// only. Nothing: the prediction is about something that does not exist.
    fn locate(&self, predicted: &Predicted) -> (Vec<(Digest, u32)>, Option<Digest>) {
        let Some(root) = self.roots.get(usize::from(predicted.layer)) else { return (Vec::new(), None) };
        let entry = match self.nodes.local_entry(root, &predicted.path) {
            Look::Found(entry) => entry,
            Look::Absent => return (Vec::new(), None),
            Look::Needs(digest) => return (Vec::new(), Some(digest)),
        };
        let (Touch::Data { bucket }, Entry { kind: Kind::File(recipe), .. }) = (predicted.touch, entry) else { return (Vec::new(), None) };
        let start = u64::from(bucket) * BUCKET_LEN;
        let found = self.nodes.local_chunks(&recipe, start..start + BUCKET_LEN);
        (found.chunks.iter().map(|(_, chunk)| (chunk.digest, chunk.len)).collect(), found.needs)
    }

    /// Plans anew what is queued, by what is still to come of the launch as it now looks; and leaves the launch stream if
    /// most of what it would bring is not.
    fn replan(&self) {
        let Some(remaining) = self.inner.lock().predictor.as_ref().map(Predictor::remaining) else { return };
        let fetcher = self.nodes.fetcher();
        let planned = fetcher.planned();
        if !planned.is_empty() {
            // By what is predicted, not by where it leads: much of the way there is not on this machine yet.
            let worth = remaining.iter().filter(|predicted| predicted.probability >= PROBABLE).count();
            if worth as f64 >= WORTH_ITS_WHILE * remaining.len() as f64 {
                // It brings what is probable, in good order, and as one compression stream.
                return;
            }
            tracing::debug!(left = remaining.len(), worth, "the launch took another way; the launch stream is left");
            fetcher.leave_stream();
        }
        fetcher.stop_prefetch();
        let now = Instant::now();
        self.inner.lock().waiting = remaining.into_iter().map(|predicted| Deferred::new(predicted, now)).collect();
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
                while inner.waiting.is_empty() && !inner.closing && !inner.replan {
                    self.work.wait(&mut inner);
                }
                if inner.closing {
                    return;
                }
                if std::mem::take(&mut inner.replan) {
                    drop(inner);
                    self.replan();
                    continue;
                }
                let count = inner.waiting.len().min(STEP);
                inner.waiting.drain(..count).collect::<Vec<_>>()
            };
            let mut candidates = Vec::new();
            let mut bytes = 0;
            let now = Instant::now();
            let done = step.len();
            let again: Vec<Deferred> = step.into_iter().filter(|item| !self.add(item, now, &mut candidates, &mut bytes) && item.until > now).collect();
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
