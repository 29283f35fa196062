//! What all requests share, and how it starts and stops.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::blob_storage::{BlobStorage, FsStorage, RemoteStorage, StorageError};
use crate::config::Config;
use crate::db::{Db, DbError};
use crate::http::tls::{Tls, TlsError};
use crate::metrics::Metrics;
use crate::service::access::Access;
use crate::service::access::setup::{FirstAdministrator, SetupError, first_administrator};
use crate::service::frames::Frames;
use crate::service::gc::Collector;
use crate::service::janitor::Janitor;
use crate::service::launch::Launcher;
use crate::service::launches::Launches;
use crate::service::learn::Learner;
use crate::service::lease::Leases;
use crate::service::nodes::Nodes;
use crate::service::objects::Objects;
use crate::service::oci::Oci;
use crate::service::predict::Models;
use crate::service::reach::Reach;
use crate::service::sources::Sources;
use crate::service::train::Trainer;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data folder cannot be made.
    #[error("could not create the data folder {path}")]
    Data {
        /// The folder.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database does not open.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The storage does not open.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The settings do not allow it.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no first administrator.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The socket failed.
    #[error("could not listen")]
    Listen(#[source] std::io::Error),
}

/// A running registry, without its sockets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(pub(crate) Shared);

/// Most lanes in proportion to streams.
const LANES_PER_STREAM: usize = 3;

/// What all requests share.
pub(crate) type Shared = Arc<Inner>;

/// What [`App`] shares.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) db: Db,
    pub(crate) storage: Arc<dyn BlobStorage>,
    pub(crate) objects: Objects,
    pub(crate) leases: Leases,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) oci: Arc<Oci>,
    pub(crate) launcher: Launcher,
    pub(crate) launches: Arc<Launches>,
    pub(crate) learner: Learner,
    pub(crate) metrics: Arc<Metrics>,
    /// `None` while stopping.
    pub(crate) trainer: Mutex<Option<Arc<Trainer>>>,
    trainer_task: Mutex<Option<JoinHandle<()>>>,
    janitor: Janitor,
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) lanes: Arc<Semaphore>,
    pub(crate) tls: Option<Tls>,
    pub(crate) access: Access,
    pub(crate) reach: Reach,
    /// Told to stop: requests go on, but no new ones should come.
    pub(crate) is_draining: AtomicBool,
}

impl App {
    /// Opens database and storage, brings them up to date, and removes what a crash left.
    ///
    /// # Errors
    /// [`StartError`]; a folder that another server uses is [`StorageError::InUse`].
    pub async fn open(config: Config) -> Result<Self, StartError> {
        let tls = config.tls.clone().map(Tls::open).transpose()?;
        std::fs::create_dir_all(&config.data).map_err(|source| StartError::Data { path: config.data.clone(), source })?;
        let storage = open_storage(&config, Beside::Nobody)?;
        let db = Db::open(config.database_url.as_deref(), &config.data.join("registry.db"), config.database_connections).await?;
        let metrics = Arc::new(Metrics::default());
        let frames = Arc::new(Frames::new(db.clone(), Arc::clone(&storage), Arc::clone(&metrics), config.frame_cache_bytes));
        let objects = Objects { db: db.clone(), frames, only: None };
        let nodes = Arc::new(Nodes::new(objects.clone(), config.node_cache_bytes));
        let launcher = Launcher { objects: objects.clone(), nodes: Arc::clone(&nodes), models: Arc::new(Models::default()) };
        let oci = Oci::new(objects.clone(), Arc::clone(&nodes), Arc::clone(&storage), Arc::clone(&metrics), config.limits.oci);
        if let Some(delay) = config.rebuild_after {
            oci.rebuild_in_background(delay);
        }
        let access = Access::new(db.clone(), &config);
        let reach = Reach::new(objects.clone(), Arc::clone(&nodes));
        let limits = &config.limits;
        let sources = Arc::new(Sources::new(limits.traces));
        let learner = Learner { objects: objects.clone(), nodes: Arc::clone(&nodes), metrics: Arc::clone(&metrics), sources };
        let (trainer, task) = Trainer::start(learner.clone(), limits);
        let collector = Collector::new(db.clone(), Arc::clone(&storage), config.data.clone(), config.gc);
        let janitor = Janitor::start(collector, Arc::clone(&metrics));
        Ok(Self(Arc::new(Inner {
            requests: Arc::new(Semaphore::new(limits.max_requests)),
            streams: Arc::new(Semaphore::new(limits.max_streams)),
            uploads: Arc::new(Semaphore::new(limits.max_uploads)),
            lanes: Arc::new(Semaphore::new(LANES_PER_STREAM * limits.max_streams)),
            tls,
            access,
            reach,
            is_draining: AtomicBool::new(false),
            config,
            leases: Leases::new(db.clone()),
            db,
            storage,
            objects,
            nodes,
            oci,
            launcher,
            launches: Arc::default(),
            learner,
            metrics,
            trainer: Mutex::new(Some(Arc::new(trainer))),
            trainer_task: Mutex::new(Some(task)),
            janitor,
        })))
    }

    /// How its URL begins: `https`, or `http` without a certificate.
    pub fn scheme(&self) -> &'static str {
        if self.0.tls.is_some() { "https" } else { "http" }
    }

    /// Reads certificate and key again now; they are also read without being asked, when they have changed.
    pub fn reload(&self) {
        if let Some(tls) = &self.0.tls {
            tls.reload();
        }
    }

    /// Says that the server listens on this address, and adds the first administrator if it asks for credentials and has no
    /// user yet. On an address of this machine alone it asks for none until there is a user, unless told to.
    ///
    /// # Errors
    /// If the database fails, or the administrator's password cannot be read or kept.
    pub async fn listens_on(&self, address: std::net::SocketAddr) -> Result<Option<FirstAdministrator>, StartError> {
        let inner = &self.0;
        inner.access.set_loopback(address.ip().is_loopback());
        let snapshot = inner.access.snapshot().await?;
        if snapshot.is_open || !snapshot.policy.accounts.is_empty() {
            return Ok(None);
        }
        let first = first_administrator(&inner.db, &inner.config.data, inner.config.admin_password_file.as_deref()).await?;
        inner.access.reload().await?;
        Ok(first)
    }

    /// Ends background work: waits for traces that were accepted, at most the grace of [`crate::Limits`], leaves
    /// conversions of images undone, and closes the database.
    pub async fn close(&self) {
        self.0.janitor.stop();
        self.0.trainer.lock().take();
        let task = self.0.trainer_task.lock().take();
        if let Some(task) = task
            && tokio::time::timeout(self.0.config.limits.shutdown_grace, task).await.is_err()
        {
            tracing::warn!("stopped before all traces were merged");
        }
        self.0.oci.close().await;
        self.0.access.close().await;
        self.0.db.close().await;
    }
}

/// Who may use a folder at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// No other server.
    Nobody,
    /// A server, whose files are left alone.
    Servers,
}

pub(crate) fn open_storage(config: &Config, beside: Beside) -> Result<Arc<dyn BlobStorage>, StorageError> {
    let folder = |path: std::path::PathBuf| match beside {
        Beside::Nobody => FsStorage::open(path),
        Beside::Servers => FsStorage::open_beside(path),
    };
    let Some(text) = &config.storage_url else { return Ok(Arc::new(folder(config.data.join("storage"))?)) };
    let wrong = |source: Box<dyn std::error::Error + Send + Sync>| StorageError::Url { url: text.split('?').next().unwrap_or_default().to_owned(), source };
    let url = url::Url::parse(text).map_err(|error| wrong(error.into()))?;
    match url.scheme() {
        "file" => {
            let path = url.to_file_path().map_err(|()| wrong("it is not an absolute path of this machine".into()))?;
            Ok(Arc::new(folder(path)?))
        }
        // The folder of copies is its server's.
        _ if beside == Beside::Servers => Ok(Arc::new(RemoteStorage::open(&url, &config.s3)?)),
        _ => Ok(Arc::new(RemoteStorage::open(&url, &config.s3)?.with_copies(config.data.join("copies"), config.storage_copies_bytes)?)),
    }
}
