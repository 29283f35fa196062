//! Learning, in the background: the queue of what there is to learn, and the one worker that takes from it.
//!
//! So the models of a repository are changed by one trace at a time. Replicas that share a database are kept apart by
//! compare-and-set. What waits in the queue when the server is killed is lost: a trace is advice, and what was not carried
//! over to a new image then is when the image's first trace comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use layer_format::Digest;
use layer_format::reference::Repository;
use layer_format::trace::Trace;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::image::Image;
use super::learn::Learner;
use super::sources::{Refused, Source, Sources};
use crate::config::Limits;
use crate::metrics::Metrics;

/// Jobs that wait, of all repositories; a trace is some MiB at most.
const QUEUE: usize = 64;

enum Work {
    Trace(Box<(Image, Trace, Source)>),
    /// This image is new: carry what is known over to it.
    Carry(Digest),
}

struct Job {
    repository: Repository,
    work: Work,
}

/// Why a trace was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    /// Too many wait.
    #[error("too many traces are waiting to be merged")]
    Busy,
    /// Too many of one source.
    #[error(transparent)]
    Source(#[from] Refused),
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Trainer {
    sender: mpsc::Sender<Job>,
    waiting: Arc<Mutex<HashMap<Repository, usize>>>,
    max_waiting: usize,
    sources: Arc<Sources>,
}

impl Trainer {
    /// Starts the worker; it ends when the trainer is dropped and the queue is empty.
    pub(crate) fn start(learner: Learner, limits: &Limits) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(HashMap::new()));
        let sources = Arc::clone(&learner.sources);
        let worker = tokio::spawn(work(receiver, Arc::clone(&waiting), learner));
        (Self { sender, waiting, max_waiting: limits.max_waiting_traces, sources }, worker)
    }

    /// Who sends from this address.
    pub(crate) fn source(&self, address: std::net::IpAddr) -> Source {
        self.sources.source(address)
    }

    /// Queues a trace of an image of the repository.
    pub(crate) fn accept(&self, repository: Repository, image: Image, trace: Trace, source: Source) -> Result<(), NotTaken> {
        let mut waiting = self.waiting.lock();
        let count = waiting.get(&repository).copied().unwrap_or(0);
        if count >= self.max_waiting {
            return Err(NotTaken::Busy);
        }
        let permit = self.sender.try_reserve().map_err(|_| NotTaken::Busy)?;
        self.sources.admit(&repository, source, Instant::now())?;
        permit.send(Job { repository: repository.clone(), work: Work::Trace(Box::new((image, trace, source))) });
        waiting.insert(repository, count + 1);
        Ok(())
    }

    /// An image was put: what was learned about the repository is carried over to it. If the queue is full, that is done
    /// with its first trace.
    pub(crate) fn carry(&self, repository: Repository, image: Digest) {
        let mut waiting = self.waiting.lock();
        if self.sender.try_send(Job { repository: repository.clone(), work: Work::Carry(image) }).is_ok() {
            *waiting.entry(repository).or_default() += 1;
        }
    }

    /// Jobs that wait or are being done.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.lock().values().sum()
    }
}

async fn work(mut jobs: mpsc::Receiver<Job>, waiting: Arc<Mutex<HashMap<Repository, usize>>>, learner: Learner) {
    while let Some(Job { repository, work }) = jobs.recv().await {
        let (result, doing) = match work {
            Work::Trace(job) => {
                let (image, trace, source) = *job;
                (Box::pin(learner.take(&repository, &image, &trace, source)).await, "learn from a trace")
            }
            Work::Carry(image) => (Box::pin(learner.carry(&repository, &image)).await, "carry a model over to a new image"),
        };
        if let Err(error) = result {
            tracing::error!(repository = repository.as_str(), error = crate::chain(&error), "could not {doing} of {repository}");
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

/// Counts a trace that was refused.
pub(crate) fn refused(metrics: &Metrics, error: NotTaken) {
    metrics.trace_refused(match error {
        NotTaken::Busy => "busy",
        NotTaken::Source(Refused::Rate) => "rate",
        NotTaken::Source(Refused::Share) => "share",
    });
}
