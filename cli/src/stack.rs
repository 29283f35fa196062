//! The images of a run: those named, those they depend on, and those that lie on top for this run alone.
//!
//! Lowest first: dependencies, images left to right, `--using` images. Of a file the last image wins; of an isolation mode
//! the first that states it. The two orders are kept apart. A layer whose condition does not hold here takes no part, and
//! images whose requirements are not met are not started.

mod source;

use std::sync::Arc;

use anyhow::{Result, bail};
use client_store::store::ImageOrigin;
use client_store::{LayerView, Policy, Session, Store, Timeline};
use layer_format::Digest;
use layer_format::manifest::{ImageManifest, LayerManifest, StateImage};
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::dependencies::{self, follow, missing_error};
use crate::host_facts::{self, Look};
use crate::output::note;

/// Why an image is part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Another image needs it.
    Dependency,
    /// It was named.
    Image,
    /// It lies on top of this run alone (`--using`), or is needed by such an image alone: no state and no commit has it.
    Using,
}

/// What is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// Images as named, lowest first.
    pub images: &'a [ImageReference],
    /// Images for this run alone, lowest first.
    pub using: &'a [ImageReference],
    /// The stack of the container's last start: what it has of dependencies is taken again, as long as it suits.
    pub pinned: &'a [StateImage],
    /// Whether that holds for the named images as well: exactly those of the last start are started.
    pub pin_images: bool,
    /// The group of startup files that is started, or the program given in their place: what the registry predicts for.
    pub trigger: Option<&'a str>,
    /// See `trigger`: program and arguments.
    pub startup_file: Option<&'a [String]>,
    /// Ask the registry even if the image is here.
    pub pull: bool,
    /// Never ask it.
    pub offline: bool,
    /// What is fetched ahead, unless offline.
    pub policy: Policy,
    /// Bring the rest of the images here, if the settings allow it.
    pub background: bool,
    /// Record first touches.
    pub record: bool,
    /// Told how the run goes.
    pub timeline: Option<&'a Arc<Timeline>>,
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
    /// Which of its layers take part.
    takes_part: Vec<bool>,
}

impl Member {
    fn new(reference: ImageReference, role: Role, session: Session, host: &impl Look) -> Self {
        let takes_part = |layer: &LayerManifest| layer.condition.as_ref().is_none_or(|condition| host_facts::holds(host, condition));
        let takes_part = session.layer_manifests().iter().map(takes_part).collect();
        Self { reference, role, session, takes_part }
    }

    /// Its manifest.
    pub fn manifest(&self) -> &ImageManifest {
        self.session.manifest()
    }

    /// What its layers that take part state besides files, lowest first.
    pub fn layer_manifests(&self) -> impl Iterator<Item = &LayerManifest> {
        self.session.layer_manifests().iter().zip(&self.takes_part).filter(|(_, takes_part)| **takes_part).map(|(layer, _)| layer)
    }

    fn layers(&self) -> impl Iterator<Item = Arc<dyn LayerView>> {
        self.session.layers().into_iter().zip(&self.takes_part).filter(|(_, takes_part)| **takes_part).map(|(layer, _)| layer)
    }
}

/// All images of a run, lowest first.
#[derive(Debug)]
pub struct Stack {
    /// Lowest first.
    pub members: Vec<Member>,
}

impl Stack {
    /// Starts a session for each image and all that they depend on, a level at a time: the images of a level each may need
    /// a round trip, and all wait for it together.
    ///
    /// # Errors
    /// If an image or a dependency cannot be had, or the host does not meet what one of them requires: all that is missing
    /// is named.
    pub fn start(app: &App, store: &Store, request: &Request<'_>) -> Result<Self> {
        let source = source::RunSource::new(app, store, request)?;
        let asked = dependencies::Request {
            images: request.images,
            using: request.using,
            pinned: if request.pull { &[] } else { request.pinned },
            pin_images: request.pin_images,
            remote_first: request.pull,
        };
        let graph = follow(&source, &asked)?;
        if !graph.missing.is_empty() {
            return Err(missing_error(&graph.missing));
        }
        graph.notes.iter().for_each(note);
        let host = host_facts::Host;
        let members: Vec<Member> = graph.nodes.into_iter().map(|node| Member::new(node.reference, node.role, node.image, &host)).collect();
        check_requirements(&members, &host)?;
        Ok(Self { members })
    }

    /// All layers that take part, lowest first.
    pub fn layers(&self) -> Vec<Arc<dyn LayerView>> {
        self.members.iter().flat_map(Member::layers).collect()
    }

    /// What they state besides files, lowest first.
    pub fn layer_manifests(&self) -> impl Iterator<Item = &LayerManifest> {
        self.members.iter().flat_map(Member::layer_manifests)
    }

    /// Digests of all images, lowest first.
    pub fn digests(&self) -> Vec<Digest> {
        self.members.iter().map(|member| member.session.digest()).collect()
    }

    /// What a container records, and a state consists of: all but the images of `--using`, lowest first.
    pub fn record(&self) -> Vec<StateImage> {
        let lasting = self.members.iter().filter(|member| member.role != Role::Using);
        let image = |member: &Member| StateImage {
            reference: member.reference.to_string(),
            digest: member.session.digest(),
            dependency: member.role == Role::Dependency,
        };
        lasting.map(image).collect()
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

/// Refuses what the host cannot run: all that is not met is listed.
fn check_requirements(members: &[Member], host: &impl Look) -> Result<()> {
    let mut unmet = Vec::new();
    for member in members {
        for requirement in &member.manifest().requirements {
            let answer = host_facts::ask(host, requirement);
            if !answer.holds {
                unmet.push(format!("\n  {} requires {requirement}: {}", member.reference, answer.found));
            }
        }
    }
    if !unmet.is_empty() {
        bail!("this machine does not meet what is required:{}", unmet.concat());
    }
    Ok(())
}
