//! Learning from traces, in the background.
//!
//! A trace is accepted into a short queue and merged by one worker: so the model of a repository is changed by one
//! trace at a time. Replicas that share a database are kept apart by a compare-and-set on the repository's model. What
//! waits in the queue when the server is killed is lost: a trace is advice.

use std::collections::HashMap;
use std::sync::Arc;

use layer_format::Digest;
use layer_format::manifest::{ImageManifest, Manifest};
use layer_format::reference::Repository;
use layer_format::trace::Trace;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::frames::ReadError;
use super::image::{Image, Reference, image_get};
use super::nodes::{NodeError, Nodes};
use super::objects::Objects;
use super::predict;
use super::resolve::Layers;
use crate::db::model::{model_get, model_put};
use crate::db::repository::{repository_find, repository_set_model};
use crate::db::trace_statistics::{trace_statistics_add, trace_statistics_clear};
use crate::db::{Db, DbError, commit};
use crate::metrics::Metrics;

/// Traces that wait, of all repositories; each is some MiB at most.
const QUEUE: usize = 64;
/// How often a merge is tried when another replica was faster.
const ATTEMPTS: usize = 5;

struct Job {
    repository: Repository,
    image: Image,
    trace: Trace,
}

/// Why a trace was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many traces are waiting to be merged")]
pub(crate) struct Busy;

/// The queue of traces.
#[derive(Debug)]
pub(crate) struct Trainer {
    sender: mpsc::Sender<Job>,
    waiting: Arc<Mutex<HashMap<Repository, usize>>>,
    max_waiting: usize,
}

impl Trainer {
    /// Starts the worker; it ends when the trainer is dropped and the queue is empty.
    pub(crate) fn start(objects: Objects, nodes: Arc<Nodes>, metrics: Arc<Metrics>, max_waiting: usize) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(HashMap::new()));
        let worker = tokio::spawn(work(receiver, Arc::clone(&waiting), objects, nodes, metrics));
        (Self { sender, waiting, max_waiting }, worker)
    }

    /// Queues a trace of an image of the repository.
    pub(crate) fn accept(&self, repository: Repository, image: Image, trace: Trace) -> Result<(), Busy> {
        let mut waiting = self.waiting.lock();
        let count = waiting.get(&repository).copied().unwrap_or(0);
        if count >= self.max_waiting {
            return Err(Busy);
        }
        self.sender.try_send(Job { repository: repository.clone(), image, trace }).map_err(|_| Busy)?;
        waiting.insert(repository, count + 1);
        Ok(())
    }

    /// Traces that wait or are being merged.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.lock().values().sum()
    }
}

async fn work(mut jobs: mpsc::Receiver<Job>, waiting: Arc<Mutex<HashMap<Repository, usize>>>, objects: Objects, nodes: Arc<Nodes>, metrics: Arc<Metrics>) {
    while let Some(job) = jobs.recv().await {
        let repository = job.repository.clone();
        match merge(&objects, &nodes, job).await {
            Ok(()) => drop(metrics.traces_merged.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
            Err(error) => {
                tracing::error!(repository = repository.as_str(), error = crate::chain(&error), "could not merge a trace into the model of {repository}")
            }
        }
        let mut waiting = waiting.lock();
        if let Some(count) = waiting.get_mut(&repository) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&repository);
            }
        }
    }
}

/// Merges one trace. The new model and its being the repository's become visible together.
async fn merge(objects: &Objects, nodes: &Arc<Nodes>, job: Job) -> Result<(), ReadError> {
    let trace = Arc::new(plausible(nodes, &job.image, job.trace).await?);
    for _ in 0..ATTEMPTS {
        let (row, old) = {
            let mut db = objects.db.read().await?;
            let Some(row) = repository_find(&mut db, &job.repository).await? else { return Ok(()) };
            let old = match &row.model {
                Some(digest) => model_get(&mut db, row.id, digest).await?,
                None => None,
            };
            (row, old)
        };
        let learned = {
            let trace = Arc::clone(&trace);
            tokio::task::spawn_blocking(move || predict::learn(old.as_deref(), &trace)).await.map_err(|_| ReadError::Cancelled)?
        };
        let digest = Digest::of(&learned);
        let mut transaction = objects.db.begin().await?;
        model_put(&mut transaction, row.id, &digest, &learned).await?;
        if repository_set_model(&mut transaction, row.id, row.model, Some(digest)).await? {
            trace_statistics_add(&mut transaction, row.id, &trace.entry_point, &trace.architecture, trace.events.len()).await?;
            commit(transaction).await?;
            tracing::debug!(repository = job.repository.as_str(), model.digest = %digest, events = trace.events.len(), "merged a trace");
            return Ok(());
        }
    }
    tracing::warn!(repository = job.repository.as_str(), "gave up merging a trace: others change the model all the time");
    Ok(())
}

/// The trace without events that cannot have happened in this image.
async fn plausible(nodes: &Arc<Nodes>, image: &Image, mut trace: Trace) -> Result<Trace, ReadError> {
    let Ok(manifest) = ImageManifest::decode(&image.bytes) else { return Ok(trace) };
    let mut roots = Vec::new();
    for layer in &manifest.layers {
        match nodes.layer(image.repository.namespace, *layer, None).await {
            Ok(layer) => roots.push(layer.root),
            Err(NodeError::Read(error)) if !error.is_loss() => return Err(error),
            Err(_) => break,
        }
    }
    let layers = Layers { nodes: Arc::clone(nodes), namespace: image.repository.namespace, roots };
    let mut kept = Vec::with_capacity(trace.events.len());
    for event in &trace.events {
        if let Some(path) = trace.paths.get(event.path as usize)
            && layers.is_plausible(event.layer, path, event.touch).await?
        {
            kept.push(*event);
        }
    }
    trace.events = kept;
    Ok(trace)
}

/// The repository's model, or an earlier one by digest.
pub(crate) async fn model_find(db: &Db, repository: &Repository, wanted: Option<Digest>) -> Result<Option<(Digest, Vec<u8>)>, DbError> {
    let mut db = db.read().await?;
    let Some(row) = repository_find(&mut db, repository).await? else { return Ok(None) };
    let Some(digest) = wanted.or(row.model) else { return Ok(None) };
    Ok(model_get(&mut db, row.id, &digest).await?.map(|bytes| (digest, bytes)))
}

/// Forgets what was learned; pinned models stay. Says whether there was a model.
pub(crate) async fn model_forget(db: &Db, repository: &Repository) -> Result<bool, DbError> {
    let mut transaction = db.begin().await?;
    let Some(row) = repository_find(&mut transaction, repository).await? else { return Ok(false) };
    trace_statistics_clear(&mut transaction, row.id).await?;
    let forgotten = row.model.is_some() && repository_set_model(&mut transaction, row.id, row.model, None).await?;
    commit(transaction).await?;
    Ok(forgotten)
}

/// The image that a trace is of, if this repository has it.
pub(crate) async fn traced_image(db: &Db, repository: &Repository, trace: &Trace) -> Result<Option<Image>, DbError> {
    image_get(db, repository, &Reference::Digest(trace.image)).await
}
