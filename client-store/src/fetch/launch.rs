//! The launch stream: one answer with the manifests, the trees, the model and the objects of a launch, in the order in
//! which they will be needed.
//!
//! What it announces is *planned*: a demand for it waits if the stream will bring it sooner than a request of its own
//! would, and takes it out of the stream otherwise. If the stream stalls or breaks, nobody waits for it: planned
//! objects become plain demands. It is repeated only until the image manifest has arrived; what it would have brought
//! later is fetched as needed, or as the model says. Reading pauses when too much arrived that no one used.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use layer_format::Digest;
use layer_format::api::LaunchRequest;
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::model::Model;
use layer_format::recording::Class;
use layer_format::reference::{ImageReference, Revision};
use layer_format::tree::Node;
use parking_lot::{Condvar, Mutex};
use tokio::time::timeout;

use super::Shared;
use super::pump::MAX_BACKLOG_BYTES;
use super::request::{Answer, backoff, payload_len, silence};
use crate::origin::{OriginError, Received};

/// How often a paused stream looks whether it can go on.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// After this long without room the rest of the stream is given up: the prediction was wrong.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Called once with the model that the stream brought, and its digest.
pub type OnModel = Box<dyn Fn(Digest, Model) + Send + Sync>;

/// Called once when the stream ends, with whether it brought all that the registry had to say (or that there was room
/// for).
pub type OnEnd = Box<dyn Fn(bool) + Send + Sync>;

/// What to launch.
pub struct LaunchOptions {
    /// The image.
    pub image: ImageReference,
    /// Its digest, if it is known: any other manifest is not accepted.
    pub digest: Option<Digest>,
    /// The request's body.
    pub request: LaunchRequest,
    /// Told of the model.
    pub on_model: Option<OnModel>,
    /// Told of the end.
    pub on_end: Option<OnEnd>,
}

impl fmt::Debug for LaunchOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaunchOptions").field("image", &self.image).field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// Why the image manifest could not be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The registry has no such image, or not for this user.
    #[error("{image} is not on the registry")]
    NotFound {
        /// The image.
        image: String,
    },
    /// The registry could not be reached in time.
    #[error("{image} could not be asked for within {waited_s} s: {reason}")]
    Unreachable {
        /// The image.
        image: String,
        /// How long was tried, in seconds.
        waited_s: u64,
        /// The last failure.
        reason: String,
    },
    /// The registry answered, but refused.
    #[error("{image} cannot be launched: {message}")]
    Refused {
        /// The image.
        image: String,
        /// Its error code and message.
        message: String,
    },
}

#[derive(Default)]
struct Progress {
    image: Option<(Digest, Bytes)>,
    failure: Option<LaunchError>,
    ended: bool,
}

#[derive(Default)]
struct State {
    progress: Mutex<Progress>,
    changed: Condvar,
}

/// A launch that is being received. Dropping it does not end it: closing the fetcher does.
pub struct LaunchStream {
    image: ImageReference,
    state: Arc<State>,
    shared: Arc<Shared>,
    task: Option<tokio::task::AbortHandle>,
}

impl fmt::Debug for LaunchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaunchStream").field("ended", &self.has_ended()).finish()
    }
}

impl LaunchStream {
    pub(super) fn start(shared: Arc<Shared>, options: LaunchOptions) -> Self {
        let state = Arc::new(State::default());
        let image = options.image.clone();
        let reader = Reader { state: state.clone(), shared: shared.clone(), options, layers: Vec::new(), whole: false };
        let task = (!shared.is_offline()).then(|| shared.options.runtime.spawn(reader.run()).abort_handle());
        if task.is_none() {
            state.progress.lock().ended = true;
        }
        Self { image, state, shared, task }
    }

    /// Waits for the image manifest: its digest and bytes.
    ///
    /// # Errors
    /// [`LaunchError`]: at once if there is no such image or the registry refuses, else after the wait limit.
    pub fn wait_image(&self) -> Result<(Digest, Bytes), LaunchError> {
        let started = Instant::now();
        let deadline = started + self.shared.options.wait_limit;
        let _waiting = self.shared.options.timeline.as_ref().map(|timeline| timeline.waiting(1, false));
        let mut progress = self.state.progress.lock();
        loop {
            if let Some(image) = &progress.image {
                self.shared.counters.stall_us.add(started.elapsed().as_micros() as u64);
                return Ok(image.clone());
            }
            if let Some(failure) = &progress.failure {
                return Err(failure.clone());
            }
            if progress.ended || self.state.changed.wait_until(&mut progress, deadline).timed_out() {
                let reason = self.shared.queue.lock().last_failure.clone().unwrap_or_else(|| "the registry does not answer".into());
                return Err(LaunchError::Unreachable { image: self.image.to_string(), waited_s: started.elapsed().as_secs(), reason });
            }
        }
    }

    /// Whether nothing more will come.
    pub fn has_ended(&self) -> bool {
        self.state.progress.lock().ended
    }

    /// Ends it: what it did not bring yet is fetched as needed.
    pub fn stop(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

struct Reader {
    state: Arc<State>,
    shared: Arc<Shared>,
    options: LaunchOptions,
    layers: Vec<Digest>,
    whole: bool,
}

/// Marks the stream as open, and as ended however its task ends.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.plan.lock().close();
        *self.0.launch_id.lock() = None;
        self.0.wake.notify_one();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.state.progress.lock().ended = true;
        self.state.changed.notify_all();
        if let Some(on_end) = &self.options.on_end {
            on_end(self.whole);
        }
    }
}

impl Reader {
    async fn run(mut self) {
        let started = Instant::now();
        let mut failures = 0;
        loop {
            let outcome = self.attempt().await;
            let Err(error) = outcome else {
                self.whole = true;
                return;
            };
            tracing::debug!(%error, "the launch stream ended early");
            self.shared.queue.lock().last_failure = Some(error.to_string());
            if self.state.progress.lock().image.is_some() {
                return;
            }
            if !error.is_retryable() || started.elapsed() >= self.shared.options.wait_limit || self.shared.queue.lock().closing {
                let image = self.options.image.to_string();
                self.state.progress.lock().failure = Some(match error {
                    OriginError::NotFound { .. } => LaunchError::NotFound { image },
                    OriginError::Refused { .. } => LaunchError::Refused { image, message: error.to_string() },
                    _ => LaunchError::Unreachable { image, waited_s: started.elapsed().as_secs(), reason: error.to_string() },
                });
                return;
            }
            self.shared.counters.retries.add(1);
            let asked = match error {
                OriginError::Busy { retry_after, .. } => retry_after.unwrap_or_default().min(Duration::from_secs(30)),
                _ => Duration::ZERO,
            };
            tokio::time::sleep(backoff(failures).max(asked)).await;
            failures += 1;
        }
    }

    async fn attempt(&mut self) -> Result<(), OriginError> {
        let shared = self.shared.clone();
        let Some(origin) = shared.options.origin.clone() else { return Ok(()) };
        let limit = shared.options.stall_limit;
        let id = format!("{:032x}", rand::random::<u128>());
        *shared.launch_id.lock() = Some(id.clone());
        {
            let mut plan = shared.plan.lock();
            plan.close();
            plan.open = true;
            // Known already: the caller may ask for the layers before the first record is here.
            plan.expect(&self.layers);
        }
        let _open = Open(&shared);
        let mut answer = Answer::new(shared.clone(), Class::Launch, 0);
        let request = origin.launch(&self.options.image, &id, self.options.request.clone());
        let mut stream = timeout(limit, request).await.map_err(|_| silence(limit))??;
        loop {
            if !self.room().await {
                return Ok(());
            }
            let next = timeout(limit, stream.next()).await.map_err(|_| silence(limit))?;
            if shared.plan.lock().is_left() && self.has_image() {
                return Ok(());
            }
            let Some(record) = next else {
                return Err(OriginError::Network { url: "the registry".into(), reason: "the launch was cut".into() });
            };
            let record = record?;
            answer.record(payload_len(&record));
            match record {
                Received::Image(bytes) => self.image(bytes)?,
                Received::Model(bytes) => self.model(&bytes),
                Received::Plan(prefixes) => shared.plan.lock().announce(&prefixes),
                Received::Object(bytes) => self.object(bytes),
                Received::Frame(bytes) => self.frame(&bytes),
                Received::Missing(_) => {}
                Received::End(reason) if reason.is_empty() => return Ok(()),
                Received::End(reason) => return Err(OriginError::Busy { message: reason, retry_after: None }),
            }
        }
    }

    /// Waits until there is room for more that no one has asked for. `false` if there will be none.
    async fn room(&self) -> bool {
        let started = Instant::now();
        loop {
            let (flying, closing) = {
                let queue = self.shared.queue.lock();
                (queue.ahead_flying, queue.closing)
            };
            if closing {
                return false;
            }
            let wasted = self.shared.waste_room(flying) == 0;
            if !wasted && self.shared.saver.backlog() < MAX_BACKLOG_BYTES {
                return true;
            }
            if wasted && started.elapsed() > MAX_PAUSE {
                tracing::debug!("the launch stream brought too much that was not used; the rest is left");
                return false;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn has_image(&self) -> bool {
        self.state.progress.lock().image.is_some()
    }

    fn image(&mut self, bytes: Bytes) -> Result<(), OriginError> {
        let digest = Digest::of(&bytes);
        let invalid = |reason: String| OriginError::Protocol { url: "the registry".into(), reason };
        let named = match &self.options.image.revision {
            Revision::Digest(expected) => *expected == digest,
            Revision::Prefix(prefix) => digest.to_hex().starts_with(prefix.as_str()),
            Revision::Head | Revision::Release(_) => true,
        };
        if !named || self.options.digest.is_some_and(|expected| expected != digest) {
            self.shared.counters.damaged_objects.add(1);
            return Err(invalid("it sent another image than the one asked for".into()));
        }
        let manifest = ImageManifest::decode(&bytes).map_err(|error| invalid(error.to_string()))?;
        self.layers = manifest.layers;
        self.shared.plan.lock().expect(&self.layers);
        self.shared.saver.put(digest, bytes.clone());
        self.shared.memory.lock().keep(digest, bytes.clone());
        self.state.progress.lock().image = Some((digest, bytes));
        self.state.changed.notify_all();
        Ok(())
    }

    fn model(&mut self, bytes: &Bytes) {
        match (Model::decode(bytes), &self.options.on_model) {
            (Ok(model), Some(on_model)) => {
                let digest = Digest::of(bytes);
                self.shared.saver.put(digest, bytes.clone());
                on_model(digest, model);
            }
            (Ok(_), None) => {}
            // Advice only: a run does without.
            (Err(error), _) => tracing::debug!(%error, "the registry's model is not valid"),
        }
    }

    fn frame(&mut self, encoded: &[u8]) {
        let Ok(frame) = layer_format::frame::Frame::decode(encoded) else {
            self.shared.counters.damaged_objects.add(1);
            self.shared.counters.bytes_wasted.add(encoded.len() as u64);
            return;
        };
        let ranges: Vec<_> = (0..frame.count()).filter_map(|index| frame.range(index)).collect();
        let bytes = Bytes::from(frame.into_bytes());
        for range in ranges {
            self.object(bytes.slice(range));
        }
    }

    fn object(&mut self, bytes: Bytes) {
        let shared = &self.shared;
        let digest = Digest::of(&bytes);
        let mut plan = shared.plan.lock();
        let wanted = shared.queue.lock().contains(&digest);
        if !wanted && !plan.is_expected(&digest) {
            shared.counters.bytes_wasted.add(bytes.len() as u64);
            if !plan.was_taken_out(&digest) {
                shared.counters.damaged_objects.add(1);
                tracing::debug!(%digest, "the launch stream brought an object that it had not announced");
            }
            return;
        }
        plan.arrived(&digest, bytes.len());
        if self.layers.contains(&digest) {
            if let Ok(layer) = LayerManifest::decode(&bytes) {
                plan.expect([&layer.root]);
            }
        } else if bytes.starts_with(b"TBT")
            && let Ok(Node::Index { children, .. }) = Node::decode(&bytes)
        {
            plan.expect(children.iter().map(|child| &child.digest));
        }
        drop(plan);
        shared.deliver(digest, bytes);
        // Someone may wait for what the stream has just passed by.
        if shared.queue.lock().has_planned() {
            shared.wake.notify_one();
        }
    }
}
