//! What holds when images are stacked, put together without starting anything.

use std::collections::BTreeSet;
use std::ffi::OsString;

use anyhow::Result;
use client_store::Store;
use layer_format::manifest::{EnvMerge, ImageManifest, LayerManifest, Mode};
use layer_format::reference::ImageReference;
use layer_format::{Digest, LayerPath};
use serde::Serialize;

use super::conflicts::{self, Conflicts};
use crate::dependencies::{Request, follow};
use crate::environment;
use crate::host_facts::{self, Host};
use crate::image_sources::LocalSource;
use crate::images;
use crate::isolation::{self, Circumstances, Effective, Stated};
use crate::stack::Role;
use crate::startup::{self, Candidate, Wish};

/// An image and its layers.
#[derive(Debug, Serialize)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) digest: Digest,
    pub(super) manifest: ImageManifest,
    pub(super) layers: Vec<Layer>,
}

/// A layer.
#[derive(Debug, Serialize)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    #[serde(flatten)]
    pub(super) manifest: LayerManifest,
    /// Whether its condition holds here, if it has one.
    pub(super) takes_part: bool,
}

/// What is started.
#[derive(Debug, Serialize)]
pub(super) struct Started {
    pub(super) command: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) beside: Vec<Vec<String>>,
    /// The image that decides; none if it is the shell.
    pub(super) image: Option<String>,
}

/// A requirement, and whether this machine meets it.
#[derive(Debug, Serialize)]
pub(super) struct Requirement {
    pub(super) image: String,
    pub(super) requirement: String,
    pub(super) holds: bool,
    /// What this machine has.
    pub(super) found: String,
}

/// A variable that images set: `$NAME` stands for what the host has.
#[derive(Debug, Serialize)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Report {
    /// Lowest first, dependencies among them.
    pub(super) images: Vec<Image>,
    /// Dependencies that are not here.
    pub(super) missing: Vec<String>,
    /// Dependencies that are met by something else than what is asked for.
    pub(super) notes: Vec<String>,
    pub(super) isolation: Vec<Effective>,
    pub(super) environment: Vec<Variable>,
    pub(super) startup: Started,
    pub(super) requirements: Vec<Requirement>,
    pub(super) conflicts: Conflicts,
}

impl Report {
    /// Looks at the images that are here. At most `shown` files that several have are listed.
    pub(super) fn new(store: &Store, named: &[ImageReference], allow_merge: bool, shown: usize) -> Result<Self> {
        let graph = follow(&LocalSource(store), &Request { images: named, ..Request::default() })?;
        let mut found = Vec::new();
        for node in graph.nodes {
            let layer = |digest: &Digest| {
                let manifest = images::layer(store, digest)?;
                let takes_part = manifest.condition.as_ref().is_none_or(|condition| host_facts::holds(&Host, condition));
                Ok(Layer { digest: *digest, manifest, takes_part })
            };
            let layers = node.image.manifest.layers.iter().map(layer).collect::<Result<_>>()?;
            let (name, digest) = (node.reference.to_string(), node.image.stored.digest);
            found.push(Image { name, role: node.role, digest, manifest: node.image.manifest, layers });
        }
        let roots = |image: &Image| (image.name.clone(), image.layers.iter().filter(|layer| layer.takes_part).map(|layer| layer.manifest.root).collect());
        let conflicts = if found.len() > 1 { conflicts::find(store, &found.iter().map(roots).collect::<Vec<_>>(), shown)? } else { Conflicts::default() };
        let layers: Vec<(&str, &LayerManifest)> = taking_part(&found).collect();
        let stated: Vec<Stated<'_>> = layers.iter().enumerate().map(|(place, (by, layer))| Stated { by, layer, place }).collect();
        let composed = isolation::compose(&stated, &Circumstances { allow_merge, ..Circumstances::default() })?;
        let host_visible = composed.rules.mode(&LayerPath::root()) < Mode::Full;
        Ok(Self {
            missing: graph.missing.iter().map(|missing| missing.wanted.clone()).collect(),
            notes: graph.notes,
            environment: variables(layers.iter().map(|(_, layer)| *layer), host_visible),
            startup: started(&found, host_visible)?,
            requirements: requirements(&found),
            isolation: composed.effective,
            conflicts,
            images: found,
        })
    }
}

fn taking_part(images: &[Image]) -> impl Iterator<Item = (&str, &LayerManifest)> {
    images.iter().flat_map(|image| image.layers.iter().filter(|layer| layer.takes_part).map(|layer| (image.name.as_str(), &layer.manifest)))
}

/// What images make of the environment, with `$NAME` in place of what the host has.
fn variables<'a>(layers: impl Iterator<Item = &'a LayerManifest>, host_visible: bool) -> Vec<Variable> {
    let layers: Vec<&LayerManifest> = layers.collect();
    let set: BTreeSet<&str> = layers.iter().flat_map(|layer| &layer.environment).map(|var| var.name.as_str()).collect();
    let own = set.iter().map(|name| (OsString::from(name), OsString::from(format!("${name}"))));
    let stated: Vec<environment::Stated<'_>> = layers.iter().map(|layer| environment::Stated::from(*layer)).collect();
    let env = environment::compose(own, &stated, std::iter::empty(), environment::Host { visible: host_visible, forced: false });
    let env = env.into_iter().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    env.filter(|(name, _)| set.contains(name.as_str())).map(|(name, value)| Variable { name, value }).collect()
}

fn started(images: &[Image], host_visible: bool) -> Result<Started> {
    let candidates: Vec<_> = images.iter().map(|image| Candidate { role: image.role, manifest: &image.manifest }).collect();
    let startup = startup::choose(&candidates, &Wish { host_visible, ..Wish::default() })?;
    let image = startup.image.map(|at| images[at].name.clone());
    Ok(Started { command: startup.command, beside: startup.beside, image })
}

fn requirements(images: &[Image]) -> Vec<Requirement> {
    let all = images.iter().flat_map(|image| image.manifest.requirements.iter().map(move |requirement| (image, requirement)));
    let judged = all.map(|(image, requirement)| {
        let answer = host_facts::ask(&Host, requirement);
        Requirement { image: image.name.clone(), requirement: requirement.clone(), holds: answer.holds, found: answer.found }
    });
    judged.collect()
}

/// How a layer's variable is shown: `NAME=VALUE`, with a sign for how it joins others.
pub(super) fn assignment(var: &layer_format::manifest::EnvVar) -> String {
    match var.merge {
        EnvMerge::Replace => format!("{}={}", var.name, var.value),
        EnvMerge::Prepend => format!("{}={}:…", var.name, var.value),
        EnvMerge::Append => format!("{}=…:{}", var.name, var.value),
    }
}
