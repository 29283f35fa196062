//! The images of a run: those named, those they depend on, and those that lie on top for this run alone.
//!
//! Lowest first: dependencies, images left to right, `--using` images. Of a file the last image wins; of an isolation mode
//! the first that states it. The two orders are kept apart.

#![allow(dead_code, reason = "roles and --using come with dependencies")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use client_store::store::ImageOrigin;
use client_store::{LayerView, Origin, Policy, Session, SessionError, SessionOptions, Store};
use layer_format::Digest;
use layer_format::manifest::{ImageManifest, LayerManifest};
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::have::have;
use crate::startup;

/// Why an image is part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Another image needs it.
    Dependency,
    /// It was named.
    Image,
    /// It lies on top of this run alone (`--using`): no state and no commit has it.
    Using,
}

/// What is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// Images as named, lowest first.
    pub images: &'a [ImageReference],
    /// Images for this run alone, lowest first.
    pub using: &'a [ImageReference],
    /// The group of startup files that is started, or the program given in their place: what the registry predicts for.
    pub trigger: Option<&'a str>,
    /// See `trigger`.
    pub startup_file: Option<&'a str>,
    /// Ask the registry even if the image is here.
    pub pull: bool,
    /// Never ask it.
    pub offline: bool,
    /// Use what earlier runs taught.
    pub predict: bool,
}

/// An image of a run.
#[derive(Debug)]
pub struct Member {
    /// By which name it was asked for.
    pub reference: ImageReference,
    /// Why it is here.
    pub role: Role,
    /// Its data.
    pub session: Session,
}

impl Member {
    /// Its manifest.
    pub fn manifest(&self) -> &ImageManifest {
        self.session.manifest()
    }
}

/// All images of a run, lowest first.
#[derive(Debug)]
pub struct Stack {
    /// Lowest first.
    pub members: Vec<Member>,
}

/// The start of a session.
enum Start<'scope> {
    Done(Box<Result<Session, SessionError>>),
    Thread(std::thread::ScopedJoinHandle<'scope, Result<Session, SessionError>>),
}

impl Start<'_> {
    fn wait(self) -> Result<Session> {
        let result = match self {
            Self::Done(result) => *result,
            Self::Thread(thread) => thread.join().map_err(|_| anyhow::anyhow!("starting an image failed"))?,
        };
        result.map_err(Into::into)
    }
}

impl Stack {
    /// Starts a session for each image, all at once: each may need a round trip.
    pub fn start(app: &App, store: &Store, request: &Request<'_>) -> Result<Self> {
        let runtime = app.runtime()?.handle().clone();
        let origin: Option<Arc<dyn Origin>> = if request.offline { None } else { Some(Arc::new(app.registry()?)) };
        let mut options = Vec::new();
        for image in request.images {
            let local = if request.pull { None } else { store.image_get(image)? };
            let digest = local.as_ref().map(|local| local.digest);
            let is_complete = digest.map(|digest| store.image_is_complete(&digest)).transpose()?.unwrap_or(false);
            let model = store.model_get(&image.repository)?;
            let policy = match (request.offline, request.predict) {
                (true, _) => Policy::Offline,
                (false, false) => Policy::OnDemand,
                (false, true) => Policy::Predicted,
            };
            let program = || request.startup_file.and_then(|text| startup::split(text).ok()?.into_iter().next());
            options.push(SessionOptions {
                digest,
                manifest: local.map(|local| local.bytes),
                is_complete,
                entry_point: request.trigger.map(Into::into).or_else(program),
                policy,
                wait_limit: Duration::from_secs(app.settings.wait),
                have: if is_complete { None } else { have(app, store, &image.repository)? },
                model,
                send_trace: app.settings.send_traces,
                ..SessionOptions::new(Arc::new(store.clone()), origin.clone(), runtime.clone(), image.clone())
            });
        }
        if let Some(origin) = origin.filter(|_| options.iter().any(|options| !options.is_complete)) {
            runtime.spawn(origin.warm_up(1));
        }
        let sessions: Vec<Session> = std::thread::scope(|scope| {
            // Only who may have to wait for the network gets a thread.
            let start = |options: SessionOptions| match options.is_complete {
                true => Start::Done(Box::new(Session::start(options))),
                false => Start::Thread(scope.spawn(move || Session::start(options))),
            };
            let starts: Vec<_> = options.into_iter().map(start).collect();
            starts
                .into_iter()
                .zip(request.images)
                .map(|(start, image)| start.wait().with_context(|| format!("{image} cannot be started")))
                .collect::<Result<_>>()
        })?;
        let members = request.images.iter().cloned().zip(sessions).map(|(reference, session)| Member { reference, role: Role::Image, session });
        Ok(Self { members: members.collect() })
    }

    /// All layers, lowest first.
    pub fn layers(&self) -> Vec<Arc<dyn LayerView>> {
        self.members.iter().flat_map(|member| member.session.layers()).collect()
    }

    /// What the layers state besides files, lowest first.
    pub fn layer_manifests(&self) -> impl Iterator<Item = &LayerManifest> {
        self.members.iter().flat_map(|member| member.session.layer_manifests())
    }

    /// Digests of all images, lowest first.
    pub fn digests(&self) -> Vec<Digest> {
        self.members.iter().map(|member| member.session.digest()).collect()
    }

    /// Tells all sessions what is started, as the model knows it.
    pub fn set_entry_point(&mut self, entry_point: &str) {
        self.members.iter_mut().for_each(|member| member.session.set_entry_point(entry_point));
    }

    /// Keeps the manifests of images that were not here, so that they are known by name from now on.
    pub fn remember(&self, store: &Store) -> Result<()> {
        for Member { reference, session, .. } in &self.members {
            if store.image_get(reference)?.is_some_and(|known| known.digest == session.digest()) {
                continue;
            }
            if let Err(error) = store.image_put(reference, session.manifest_bytes(), ImageOrigin::Streamed) {
                tracing::warn!(%error, "{reference} could not be noted in the local store");
            }
        }
        Ok(())
    }
}
