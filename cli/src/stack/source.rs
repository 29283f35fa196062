//! Images as sessions: what is here starts from local data, the rest streams.

use std::path::PathBuf;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use client_store::complete::{self, CompletionOptions};
use client_store::recorder::Recording;
use client_store::remote::Registry;
use client_store::session::SessionError;
use client_store::{Origin, Policy, Session, SessionOptions, Store};
use layer_format::Digest;
use layer_format::manifest::ImageManifest;
use layer_format::reference::{ImageReference, Repository, Revision};

use super::{Request, Role};
use crate::app::App;
use crate::dependencies::{Node, Source};
use crate::have::have;
use crate::image_sources::{is_absent, releases};
use crate::startup::{self, Candidate, Wish};

/// Starts sessions.
pub(super) struct RunSource<'a> {
    store: Store,
    registry: Option<Registry>,
    origin: Option<Arc<dyn Origin>>,
    runtime: tokio::runtime::Handle,
    request: &'a Request<'a>,
    home: PathBuf,
    wait_limit: Duration,
    metered: bool,
    /// Bring the rest of images here, as far as there is room below the store's limit.
    completes: bool,
    cap_bytes: u64,
    /// What the images of the command line start, once that is known: dependencies are predicted for it.
    entry_point: OnceLock<String>,
    warm: Once,
}

impl<'a> RunSource<'a> {
    pub(super) fn new(app: &App, store: &Store, request: &'a Request<'a>) -> Result<Self> {
        let registry = if request.offline { None } else { Some(app.registry()?) };
        Ok(Self {
            store: store.clone(),
            origin: registry.clone().map(|registry| Arc::new(registry) as Arc<dyn Origin>),
            registry,
            runtime: app.runtime()?.handle().clone(),
            request,
            home: app.settings.home.clone(),
            wait_limit: Duration::from_secs(app.settings.wait),
            metered: app.settings.metered,
            completes: request.background && app.settings.background,
            cap_bytes: app.settings.cache_size,
            entry_point: OnceLock::new(),
            warm: Once::new(),
        })
    }

    /// The registry, with a count of what one session receives.
    fn counted_origin(&self) -> Option<Arc<dyn Origin>> {
        self.registry.as_ref().map(|registry| Arc::new(registry.counted()) as Arc<dyn Origin>)
    }

    fn options(&self, reference: &ImageReference, digest: Option<Digest>) -> Result<SessionOptions> {
        let request = self.request;
        let by_digest = digest.map(|digest| ImageReference { repository: reference.repository.clone(), revision: Revision::Digest(digest) });
        let ask = request.pull && digest.is_none();
        let local = if ask { None } else { self.store.image_get(by_digest.as_ref().unwrap_or(reference))? };
        let digest = digest.or(local.as_ref().map(|local| local.digest));
        let is_complete = digest.map(|digest| self.store.image_is_complete(&digest)).transpose()?.unwrap_or(false);
        if let Some(origin) = self.origin.as_ref().filter(|_| !is_complete) {
            // One connection is opened while what is here is looked through.
            self.warm.call_once(|| drop(self.runtime.spawn(origin.warm_up(1))));
        }
        let policy = if request.offline { Policy::Offline } else { request.policy };
        let program = || request.startup_file.and_then(|command| command.first().cloned());
        let asked_for = request.trigger.map(Into::into).or_else(program).or_else(|| self.entry_point.get().cloned());
        Ok(SessionOptions {
            digest,
            manifest: local.map(|local| local.bytes),
            is_complete,
            entry_point: asked_for,
            policy,
            wait_limit: self.wait_limit,
            have: if is_complete { None } else { have(&self.home, &self.store, &reference.repository)? },
            model: self.store.model_get(&reference.repository)?,
            metered: self.metered,
            completion: if self.completes && !is_complete { Some(self.completion()?) } else { None },
            recording: if request.record { Recording::Touches } else { Recording::Off },
            timeline: request.timeline.cloned(),
            ..SessionOptions::new(Arc::new(self.store.clone()), self.counted_origin(), self.runtime.clone(), reference.clone())
        })
    }
}

impl RunSource<'_> {
    /// How an image is completed: it counts as pulled then.
    fn completion(&self) -> Result<CompletionOptions> {
        let room_bytes = match self.cap_bytes {
            0 => None,
            cap => Some(cap.saturating_sub(self.store.stats()?.stored_bytes)),
        };
        let store = self.store.clone();
        let on_complete = Box::new(move |digest: &Digest| {
            if let Err(error) = store.image_is_here(digest) {
                tracing::debug!(%error, "{digest} is here as a whole, which could not be noted");
            }
        });
        Ok(CompletionOptions { quiet: complete::QUIET, room_bytes, on_complete })
    }
}

impl Source for RunSource<'_> {
    type Image = Session;

    fn local(&self, repository: &Repository) -> Result<Vec<(String, Digest)>> {
        Ok(self.store.releases(repository)?)
    }

    fn remote(&self, repository: &Repository) -> Result<Option<Vec<(String, Digest)>>> {
        self.registry.as_ref().map(|registry| releases(&self.runtime, registry, repository)).transpose()
    }

    fn get(&self, reference: &ImageReference, digest: Option<Digest>) -> Result<Session> {
        Session::start(self.options(reference, digest)?).with_context(|| format!("{reference} cannot be started"))
    }

    fn is_absent(&self, error: &anyhow::Error) -> bool {
        use client_store::fetch::LaunchError;
        let is_none = |error: &SessionError| matches!(error, SessionError::NotLocal { .. } | SessionError::Launch(LaunchError::NotFound { .. }));
        error.downcast_ref::<SessionError>().is_some_and(is_none) || is_absent(error)
    }

    fn manifest<'b>(&self, session: &'b Session) -> (Digest, &'b ImageManifest) {
        (session.digest(), session.manifest())
    }

    fn roots_known(&self, roots: &[Node<Session>]) {
        let candidates: Vec<_> = roots.iter().map(|node| Candidate { role: node.role, manifest: node.image.manifest() }).collect();
        let starts = candidates.iter().any(|candidate| candidate.role == Role::Image && !candidate.manifest.startup_files.is_empty());
        if let Ok(startup) = startup::choose(&candidates, &Wish::default())
            && starts
        {
            let _ = self.entry_point.set(startup.entry_point);
        }
    }
}
