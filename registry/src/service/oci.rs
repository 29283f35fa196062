//! The OCI side of the registry: what container tools push and pull, over the same storage and namespaces.
//!
//! | file | does |
//! |---|---|
//! | `session` | a blob being pushed, between two requests |
//! | `upload` | takes blobs: cut and stored while they arrive, visible when their digest was checked |
//! | `blob` | finds blobs and streams their bytes |
//! | `rebuild` | stores blobs by what is in them, in the background, and makes them again |
//! | `writer` | the thread that stores a blob while it arrives |
//! | `manifest` | manifests, tags, referrers |
//! | `resolve` | which image a tag names, when both sides can move it: the later push wins |
//! | `unpack` | makes an image of ours of what was pushed |
//! | `render` | the other way: a manifest and layers of an image of ours |
//! | `sink` | the namespace as a target of imports and a source of exports |
//!
//! A blob's bytes are chunks of its repository's namespace, like those of any image there, and its row in `oci_blob` says in
//! which order. Nothing but that row makes it visible, so what a namespace stores is never revealed by a digest.

pub(crate) mod blob;
mod hash;
mod locks;
pub(crate) mod manifest;
mod rebuild;
pub(crate) mod render;
mod resolve;
mod session;
mod sink;
pub(crate) mod unpack;
pub(crate) mod upload;
mod writer;

pub(crate) use resolve::restore_head;
pub(crate) use session::chunks_of_row;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use self::locks::KeyLocks;
use super::nodes::Nodes;
use super::objects::Objects;
use crate::blob_storage::BlobStorage;
use crate::config::OciLimits;
use crate::metrics::Metrics;

/// How long a request waits for its turn before it is told to come again.
const TURN: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Oci {
    objects: Objects,
    nodes: Arc<Nodes>,
    storage: Arc<dyn BlobStorage>,
    metrics: Arc<Metrics>,
    limits: OciLimits,
    uploads: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    conversions: Semaphore,
    rebuilds: Arc<rebuild::Rebuilds>,
    /// Uploads in progress: one request at a time goes on with each. Another replica may go on with one, too: then the row of
    /// the upload, which is compared as it is written, decides who was first.
    sessions: KeyLocks,
    /// Conversions in progress: whoever wants the same one waits for it. Two replicas may both do one; the result is the same.
    converting: KeyLocks,
    /// Conversions that nobody waits for.
    background: Mutex<JoinSet<()>>,
}

/// All places are taken, and stay so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registry is busy with others; try again")]
pub(crate) struct Crowded;

impl Oci {
    /// Runs a conversion that nobody waits for, until it is done or the server stops.
    fn in_background(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut background = self.background.lock();
        while background.try_join_next().is_some() {}
        background.spawn(task);
    }

    /// Ends what runs in the background: it is done again when somebody asks for it.
    pub(crate) async fn close(&self) {
        let mut background = std::mem::take(&mut *self.background.lock());
        background.shutdown().await;
    }

    pub(crate) fn new(objects: Objects, nodes: Arc<Nodes>, storage: Arc<dyn BlobStorage>, metrics: Arc<Metrics>, limits: OciLimits) -> Arc<Self> {
        Arc::new(Self {
            objects,
            nodes,
            storage,
            metrics,
            limits,
            uploads: Arc::new(Semaphore::new(limits.max_blob_uploads)),
            downloads: Arc::new(Semaphore::new(limits.max_blob_downloads)),
            conversions: Semaphore::new(limits.max_conversions),
            rebuilds: Arc::default(),
            sessions: KeyLocks::default(),
            converting: KeyLocks::default(),
            background: Mutex::default(),
        })
    }

    /// Waits for a place to receive a blob.
    pub(crate) async fn upload_turn(&self) -> Result<OwnedSemaphorePermit, Crowded> {
        turn(&self.uploads).await
    }

    /// Waits for a place to send a blob.
    pub(crate) async fn download_turn(&self) -> Result<OwnedSemaphorePermit, Crowded> {
        turn(&self.downloads).await
    }
}

async fn turn(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Crowded> {
    match tokio::time::timeout(TURN, Arc::clone(places).acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Crowded),
    }
}
