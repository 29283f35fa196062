//! Taking a state: capture of the sandbox, and the manifest about it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use chunker::{CaptureOptions, ImportError, ObjectSink, ObjectSource, PackSink, SinkError, SourceError};
use client_store::Store;
use layer_format::manifest::{LayerManifest, Manifest, StateImage, StateManifest, StateSettings};
use layer_format::reference::{ImageReference, Repository};
use layer_format::{Digest, LayerPath};

use crate::app::App;
use crate::containers::{Container, ContainerState, Locked, add_state, now_s};
use crate::images;
use crate::sink::{StoreSink, StoreSource};
use crate::stack::Stack;

/// How often a capture is tried while programs write to the sandbox.
const LIVE_TRIES: usize = 3;

/// Takes states of one container, also from another thread than the one that runs it. Clones share what they take.
#[derive(Clone, Debug)]
pub struct Taker {
    store: Store,
    folder: PathBuf,
    /// Every image but those of `--using`, lowest first.
    pub images: Vec<StateImage>,
    settings: StateSettings,
    /// Paths that stay on this machine, with all that is below.
    no_sync: Arc<Vec<LayerPath>>,
    /// States taken while the container ran. Held while one is taken: there is one index.
    taken: Arc<Mutex<Vec<ContainerState>>>,
}

impl Taker {
    /// For a container about to start with these images.
    pub fn at_start(app: &App, store: &Store, container: &Locked, stack: &Stack) -> Self {
        let known = &container.container.stack;
        let images = stack.record().into_iter().map(|image| {
            // A container that goes on from a state names its images by digest; the state says how they were asked for.
            let same = |known: &&StateImage| known.digest == image.digest && known.dependency == image.dependency && repository(known) == repository(&image);
            known.iter().find(same).cloned().unwrap_or(image)
        });
        let images = images.collect();
        let stated = stack.layer_manifests().flat_map(|layer| &layer.attributes).filter(|rule| rule.attributes.no_sync);
        let mut no_sync: Vec<LayerPath> = stated.filter_map(|rule| LayerPath::from_absolute(rule.path.as_bytes()).ok()).collect();
        let cache = app.settings.cache_folder().and_then(|folder| LayerPath::from_absolute(folder.as_os_str().as_encoded_bytes()).ok());
        no_sync.extend(cache.filter(|folder| !folder.is_root()));
        no_sync.sort();
        no_sync.dedup();
        Self::new(store, container, images, no_sync)
    }

    /// For a container that does not run, with the images of its last start.
    pub fn of_stopped(store: &Store, container: &Locked) -> Self {
        let no_sync = container.container.no_sync.iter().flatten().filter_map(|path| LayerPath::from_absolute(path.as_bytes()).ok());
        Self::new(store, container, container.container.stack.clone(), no_sync.collect())
    }

    fn new(store: &Store, container: &Locked, images: Vec<StateImage>, no_sync: Vec<LayerPath>) -> Self {
        let (folder, settings) = (container.folder.clone(), container.container.settings.clone());
        Self { store: store.clone(), folder, images, settings, no_sync: Arc::new(no_sync), taken: Arc::default() }
    }

    /// The paths that stay here, as the container remembers them.
    pub fn no_sync_texts(&self) -> Vec<String> {
        self.no_sync.iter().map(|path| format!("/{}", String::from_utf8_lossy(path.as_bytes()))).collect()
    }

    /// The state that the container is in before a start: without a look at the sandbox if it cannot have changed.
    pub fn at_start_state(&self, container: &Container) -> Result<Digest> {
        let same_rules = container.no_sync.as_ref().is_none_or(|before| *before == self.no_sync_texts());
        let last = container.states.last().filter(|_| !container.dirty && same_rules);
        let known = last.map(|last| self.store.state_get(&last.id)).transpose()?.flatten();
        match known {
            Some(known) => self.put(known.manifest.sandbox),
            None => self.take(false),
        }
    }

    /// Takes a state now. `live`: programs may be writing. The caller holds the store's content until the container lists it.
    pub fn take(&self, live: bool) -> Result<Digest> {
        let _one = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        self.capture(live)
    }

    /// Takes a state of the running container, whose processes should stand still meanwhile, and lists it: for the control
    /// socket, from a thread of its own.
    pub fn capture_now(&self) -> Result<Digest> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let _hold = self.store.hold()?;
        let id = self.capture(true)?;
        let state = ContainerState { id, taken_s: now_s(), saved: false };
        add_state(&self.folder, &state)?;
        taken.push(state);
        Ok(id)
    }

    /// States that [`Self::capture_now`] took, each once.
    pub fn taken_meanwhile(&self) -> Vec<ContainerState> {
        std::mem::take(&mut *self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn capture(&self, live: bool) -> Result<Digest> {
        let upper = upper(&self.folder)?;
        let leave_out = |path: &LayerPath| self.no_sync.iter().any(|local| path.starts_with(local));
        let options = CaptureOptions { leave_out: &leave_out, live, ..CaptureOptions::new(&self.folder) };
        let target = Target { sink: StoreSink::new(&self.store)?, source: StoreSource(&self.store) };
        let mut tries = if live { LIVE_TRIES } else { 1 };
        let captured = loop {
            match chunker::capture(&upper, &options, &target, &()) {
                Err(ImportError::Changed { path }) if tries > 1 => {
                    tracing::debug!("{} changed during the capture; trying again", path.display());
                    tries -= 1;
                }
                other => break other.context("capturing what was written (if the disk is full, make room)")?,
            }
        };
        for skipped in &captured.imported.skipped {
            tracing::info!("left out of the state: {}: {}", skipped.path, skipped.reason);
        }
        let imported = captured.imported;
        let layer = images::put_layer(&self.store, &LayerManifest::new(imported.root, imported.entries, imported.bytes))?;
        self.put(layer)
    }

    /// Keeps the state with this sandbox.
    fn put(&self, sandbox: Digest) -> Result<Digest> {
        let manifest = StateManifest { settings: self.settings.clone(), ..StateManifest::new(self.images.clone(), sandbox) };
        Ok(self.store.state_put(&manifest.encode().context("the container's settings make no valid state")?)?)
    }
}

/// Which repository a state's image is of.
fn repository(image: &StateImage) -> Option<Repository> {
    image.reference.parse::<ImageReference>().ok().map(|reference| reference.repository)
}

/// The sandbox's upper directory, made if the container never ran, with what a killed capture left undone.
fn upper(folder: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let upper = folder.join("sandbox/upper");
    if !upper.exists() {
        std::fs::DirBuilder::new().mode(0o755).recursive(true).create(&upper).with_context(|| format!("creating {}", upper.display()))?;
    }
    chunker::undo_unlocked(&upper, folder).with_context(|| format!("putting back permissions in {}", upper.display()))?;
    Ok(upper)
}

/// The local store, written to and read from.
struct Target<'a> {
    sink: StoreSink<'a>,
    source: StoreSource<'a>,
}

impl ObjectSink for Target<'_> {
    fn present(&self, digests: &[Digest]) -> std::result::Result<Vec<bool>, SinkError> {
        self.sink.present(digests)
    }

    fn create_pack(&self) -> std::result::Result<Box<dyn PackSink + '_>, SinkError> {
        self.sink.create_pack()
    }
}

impl ObjectSource for Target<'_> {
    fn object(&self, digest: &Digest) -> std::result::Result<Vec<u8>, SourceError> {
        self.source.object(digest)
    }
}
