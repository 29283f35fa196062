//! One run of one image: from its name to layers that can be read, and to the trace at the end.
//!
//! [`Session::start`] returns as soon as the image's and the layers' manifests are here; nothing waits for prefetch. An
//! image whose manifest is local starts from local data, and the registry is asked behind its back for what is missing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use layer_format::api::{HaveFilter, LaunchRequest};
use layer_format::manifest::{ImageManifest, LayerManifest, Manifest};
use layer_format::model::Model;
use layer_format::reference::{ImageReference, Revision};
use layer_format::trace::Trace;
use layer_format::{Digest, FormatError, LayerPath};
use parking_lot::Mutex;

use crate::cache::ObjectCache;
use crate::complete::{Completion, CompletionOptions};
use crate::error::FetchError;
use crate::fetch::{self, Fetcher, FetcherOptions, LaunchError, LaunchOptions, LaunchStream, Wanted, no_candidates};
use crate::guess::Guess;
use crate::origin::Origin;
use crate::prefetch::{Policy, Prefetcher};
use crate::reader::{DEFAULT_NODE_BYTES, LayerReader, Nodes};
use crate::recorder::{Recorder, Recording, TraceDetails};
use crate::stats::RunStats;
use crate::timeline::Timeline;
use crate::view::LayerView;

/// Most uncompressed bytes that a launch stream may carry, unless configured otherwise.
pub const DEFAULT_LAUNCH_BUDGET_BYTES: u64 = 1 << 30;
/// Connections opened at the start of a run: for the launch, demands and prefetches.
const CONNECTIONS: usize = 3;
/// Most bytes fetched in vain on a metered link.
const METERED_WASTE_BYTES: u64 = 2 << 20;
/// Most words of start commands that are looked at.
const MAX_SEEDS: usize = 32;

/// Why a run could not start.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The image is not on this machine, and the network must not be used.
    #[error("{image} is not in the local store, and turbo runs offline; `turbo pull {image}` first")]
    NotLocal {
        /// The image.
        image: String,
    },
    /// The registry did not give the image.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A manifest could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A manifest is not what it should be.
    #[error("the manifest {digest} of {image} is not valid")]
    Manifest {
        /// The image.
        image: String,
        /// The manifest.
        digest: Digest,
        /// Which rule it breaks.
        #[source]
        source: FormatError,
    },
}

/// How a run is started.
pub struct SessionOptions {
    /// The local store.
    pub cache: Arc<dyn ObjectCache>,
    /// The registry, if there is one.
    pub origin: Option<Arc<dyn Origin>>,
    /// Where requests run. Not the thread that calls [`Session::start`]: it blocks.
    pub runtime: tokio::runtime::Handle,
    /// The image.
    pub image: ImageReference,
    /// The digest of its manifest, if it is known here which one is meant: then the run starts from local data if the
    /// manifest is local, and no other image is accepted.
    pub digest: Option<Digest>,
    /// The manifest's bytes, if they are kept here.
    pub manifest: Option<Bytes>,
    /// The whole image is local: no launch request is made. What turns out to be missing or damaged is still fetched.
    pub is_complete: bool,
    /// The program or trigger that is started, as the model knows it; the image's startup file if `None`.
    pub entry_point: Option<String>,
    /// Processor architecture, as `uname -m` names it.
    pub architecture: String,
    /// What may be fetched ahead.
    pub policy: Policy,
    /// How long a read waits for the registry.
    pub wait_limit: Duration,
    /// Silence after which a request is repeated.
    pub stall_limit: Duration,
    /// Recently used objects to keep in memory, in bytes.
    pub memory_bytes: usize,
    /// Bytes that may be fetched ahead and not used.
    pub waste_budget_bytes: u64,
    /// Most bytes of the launch stream.
    pub launch_budget_bytes: u64,
    /// What the local store has of this repository, for the launch request.
    pub have: Option<HaveFilter>,
    /// A model in the local store to predict with until the registry sends a newer one.
    pub model: Option<Digest>,
    /// Every byte costs: only what is nearly sure is fetched ahead, and next to nothing may be wasted.
    pub metered: bool,
    /// Bring the rest of the image here while the application runs and needs nothing. Not if metered or offline.
    pub completion: Option<CompletionOptions>,
    /// What is recorded of first touches.
    pub recording: Recording,
    /// Told how the run goes; the images of a run share one.
    pub timeline: Option<Arc<Timeline>>,
}

impl SessionOptions {
    /// Defaults for all that can have one.
    pub fn new(cache: Arc<dyn ObjectCache>, origin: Option<Arc<dyn Origin>>, runtime: tokio::runtime::Handle, image: ImageReference) -> Self {
        Self {
            cache,
            origin,
            runtime,
            image,
            digest: None,
            manifest: None,
            is_complete: false,
            entry_point: None,
            architecture: std::env::consts::ARCH.into(),
            policy: Policy::default(),
            wait_limit: fetch::DEFAULT_WAIT_LIMIT,
            stall_limit: fetch::DEFAULT_STALL_LIMIT,
            memory_bytes: fetch::DEFAULT_MEMORY_BYTES,
            waste_budget_bytes: fetch::DEFAULT_WASTE_BUDGET_BYTES,
            launch_budget_bytes: DEFAULT_LAUNCH_BUDGET_BYTES,
            have: None,
            model: None,
            metered: false,
            completion: None,
            recording: Recording::default(),
            timeline: None,
        }
    }
}

impl fmt::Debug for SessionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionOptions").field("image", &self.image).field("digest", &self.digest).field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Brings together the model, the end of the launch stream, and the prefetcher, in whichever order they come.
#[derive(Default)]
struct Models {
    digest: Option<Digest>,
    model: Option<Arc<Model>>,
    prefetcher: Option<Arc<Prefetcher>>,
    /// The launch stream will bring nothing more of what it was to bring.
    is_alone: bool,
    /// Nothing more comes at all, so no model either.
    has_ended: bool,
}

impl Models {
    fn set(&mut self, digest: Digest, model: Model) {
        let model = Arc::new(model);
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.set_model(model.clone());
        }
        (self.digest, self.model) = (Some(digest), Some(model));
    }

    fn attach(&mut self, prefetcher: Arc<Prefetcher>) {
        if let Some(model) = &self.model {
            prefetcher.set_model(model.clone());
            if self.is_alone {
                prefetcher.fetch_launch_list();
            }
        }
        if self.has_ended {
            prefetcher.set_alone();
        }
        self.prefetcher = Some(prefetcher);
    }

    /// The launch stream ended, after all that it was to bring or not.
    fn ended(&mut self, whole: bool) {
        self.has_ended = true;
        self.is_alone |= !whole;
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.set_alone();
            if !whole {
                prefetcher.fetch_launch_list();
            }
        }
    }
}

/// A run of an image. Dropping it ends all requests; layers still held then serve what is local.
pub struct Session {
    image: ImageReference,
    digest: Digest,
    manifest: ImageManifest,
    manifest_bytes: Bytes,
    layer_manifests: Vec<LayerManifest>,
    layers: Vec<Arc<LayerReader>>,
    fetcher: Arc<Fetcher>,
    recorder: Arc<Recorder>,
    models: Arc<Mutex<Models>>,
    prefetcher: Option<Arc<Prefetcher>>,
    guess: Arc<Guess>,
    completion: Option<Arc<Completion>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    launch: Option<LaunchStream>,
    entry_point: Option<String>,
    architecture: String,
    is_local: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("image", &self.image).field("digest", &self.digest).field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

impl Session {
    /// Starts a run: returns when the manifests are here. Blocks; not to be called on a thread of the runtime that has
    /// no other.
    ///
    /// # Errors
    /// [`SessionError`] if the manifests cannot be had within the wait limit.
    pub fn start(mut options: SessionOptions) -> Result<Self, SessionError> {
        let named = match &options.image.revision {
            Revision::Digest(digest) => Some(*digest),
            _ => options.digest,
        };
        let fetcher = Arc::new(Fetcher::new(FetcherOptions {
            wait_limit: options.wait_limit,
            stall_limit: options.stall_limit,
            memory_bytes: options.memory_bytes,
            waste_budget_bytes: if options.metered { options.waste_budget_bytes.min(METERED_WASTE_BYTES) } else { options.waste_budget_bytes },
            strict: options.metered,
            offline: options.policy == Policy::Offline,
            timeline: options.timeline.clone(),
            ..FetcherOptions::new(options.cache.clone(), options.origin.clone(), options.image.repository.clone(), options.runtime.clone())
        }));
        if let Some(timeline) = &options.timeline {
            timeline.attach(&fetcher);
        }
        let given = options.manifest.clone().filter(|bytes| named == Some(Digest::of(bytes)));
        let local = named.and_then(|digest| Some((digest, given.or_else(|| fetcher.local(&digest))?)));
        let models = Arc::new(Mutex::new(Models { is_alone: true, has_ended: true, ..Models::default() }));
        if options.policy == Policy::Predicted
            && let Some(digest) = options.model
            && let Some(model) = fetcher.local(&digest).and_then(|bytes| Model::decode(&bytes).ok())
        {
            models.lock().set(digest, model);
        }
        // A complete image that lost its manifest is not complete.
        let launch = (!fetcher.is_offline() && (!options.is_complete || local.is_none())).then(|| launch(&options, named, &fetcher, &models));
        let (digest, bytes) = match (local, &launch) {
            (Some(local), _) => local,
            (None, Some(launch)) => launch.wait_image()?,
            (None, None) => return Err(SessionError::NotLocal { image: options.image.to_string() }),
        };
        let invalid = |digest| {
            let image = options.image.to_string();
            move |source| SessionError::Manifest { image, digest, source }
        };
        let manifest = ImageManifest::decode(&bytes).map_err(invalid(digest))?;
        // As the registry sees it when the launch request names none.
        let program = || manifest.startup(None).next().or(manifest.startup_files.first()).and_then(|file| file.command.first()).cloned();
        let entry_point = options.entry_point.clone().or_else(program);
        let wanted: Vec<Wanted> = manifest.layers.iter().map(|digest| Wanted { digest: *digest, len: 0 }).collect();
        let found = fetcher.get_many(&wanted, &no_candidates)?;
        let mut layer_manifests = Vec::with_capacity(found.len());
        for (layer, fetched) in manifest.layers.iter().zip(found) {
            layer_manifests.push(LayerManifest::decode(&fetched.bytes).map_err(invalid(*layer))?);
        }

        let nodes = Arc::new(Nodes::new(fetcher.clone(), DEFAULT_NODE_BYTES));
        let recorder = Arc::new(Recorder::with(options.recording, options.timeline.clone()));
        let roots: Vec<Digest> = layer_manifests.iter().map(|layer| layer.root).collect();
        let needs_network = !fetcher.is_offline() && !options.is_complete;
        let guess = Arc::new(match needs_network {
            true => Guess::new(nodes.clone(), roots.clone(), seeds(&manifest, entry_point.as_deref())),
            false => Guess::disabled(nodes.clone()),
        });
        let mut threads = Vec::new();
        let prefetcher = (needs_network && options.policy == Policy::Predicted)
            .then(|| Arc::new(Prefetcher::new(nodes.clone(), guess.clone(), roots.clone(), entry_point.clone(), options.architecture.clone())));
        let completion = options.completion.take().filter(|_| needs_network && !options.metered);
        let completion = completion.map(|how| Arc::new(Completion::new(fetcher.clone(), options.cache.clone(), digest, manifest.layers.clone(), how)));
        if let Some(completion) = &completion {
            let for_thread = completion.clone();
            threads.push(thread("turbo-complete", move || for_thread.run())?);
        }
        if needs_network && !options.metered && matches!(options.policy, Policy::Predicted | Policy::Guessed) {
            guess.set_active(options.policy == Policy::Guessed);
            let for_thread = guess.clone();
            threads.push(thread("turbo-guess", move || for_thread.run())?);
        }
        if let Some(prefetcher) = &prefetcher {
            models.lock().attach(prefetcher.clone());
            let for_thread = prefetcher.clone();
            threads.push(thread("turbo-prefetch", move || for_thread.run())?);
        }
        let layers = (0..=u8::MAX)
            .zip(roots)
            .map(|(number, root)| Arc::new(LayerReader::new(number, root, nodes.clone(), recorder.clone(), prefetcher.clone(), guess.clone())));
        Ok(Self {
            layers: layers.collect(),
            image: options.image,
            digest,
            manifest,
            manifest_bytes: bytes,
            layer_manifests,
            fetcher,
            recorder,
            models,
            prefetcher,
            guess,
            completion,
            threads,
            launch,
            entry_point,
            architecture: options.architecture,
            is_local: options.is_complete,
        })
    }

    /// The digest of the image's manifest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The image's manifest.
    pub fn manifest(&self) -> &ImageManifest {
        &self.manifest
    }

    /// Its bytes.
    pub fn manifest_bytes(&self) -> &Bytes {
        &self.manifest_bytes
    }

    /// The layers' manifests, lowest first.
    pub fn layer_manifests(&self) -> &[LayerManifest] {
        &self.layer_manifests
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> Vec<Arc<dyn LayerView>> {
        self.layers.iter().map(|layer| layer.clone() as Arc<dyn LayerView>).collect()
    }

    /// The digest of the model in use, which is in the local store after the run: for [`SessionOptions::model`] of the
    /// next one.
    pub fn model(&self) -> Option<Digest> {
        self.models.lock().digest
    }

    /// The fetcher, for what is not read through a layer.
    pub fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// Whether the whole image was local at the start of the run.
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// Whether the launch stream has ended, or there was none.
    pub fn has_launched(&self) -> bool {
        self.launch.as_ref().is_none_or(LaunchStream::has_ended)
    }

    /// Under which name the run is learned: for what only became known after the start, such as the program that another
    /// image of the stack brings.
    pub fn set_entry_point(&mut self, entry_point: &str) {
        self.entry_point = Some(entry_point.to_owned());
    }

    /// How the rest of the image is brought here, for whoever wants to look: it may be asked as long as it is held. `None` if
    /// it is not.
    pub fn completion(&self) -> Option<Arc<Completion>> {
        self.completion.clone()
    }

    /// What the run needed, fetched and waited for so far.
    pub fn stats(&self) -> RunStats {
        let mut stats = self.fetcher.stats();
        stats.hit_rate = self.recorder.hit_rate();
        stats
    }

    /// What the timeline needs to know of the trace: when it began, and its processes and sizes. Empty without one.
    pub fn trace_details(&self) -> TraceDetails {
        self.recorder.details()
    }

    /// Ends the run: stops prefetching, and waits until what was fetched is durable. Layers can still be read. Errors of
    /// the store are in [`RunStats::store_error`].
    pub fn finish(&self) -> Trace {
        if let Some(launch) = &self.launch {
            launch.stop();
        }
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.close();
        }
        self.guess.close();
        if let Some(completion) = &self.completion {
            completion.close();
        }
        self.fetcher.stop_prefetch();
        self.fetcher.flush();
        self.recorder.trace(self.digest, self.entry_point.as_deref().unwrap_or_default(), &self.architecture)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(launch) = &self.launch {
            launch.stop();
        }
        // It refers to the layers, which refer to the fetcher.
        self.models.lock().prefetcher = None;
        self.fetcher.close();
        if let Some(prefetcher) = self.prefetcher.take() {
            prefetcher.close();
        }
        self.guess.close();
        if let Some(completion) = &self.completion {
            completion.close();
        }
        for thread in self.threads.drain(..) {
            // A panic of the thread was reported by itself.
            let _ = thread.join();
        }
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>, FetchError> {
    let started = std::thread::Builder::new().name(name.into()).spawn(run);
    started.map_err(|error| FetchError::Store { message: format!("starting a thread failed: {error}"), errno: error.raw_os_error() })
}

/// Files that the launch begins with, as the image says: its programs, and the files that their arguments name.
fn seeds(manifest: &ImageManifest, entry_point: Option<&str>) -> Vec<Vec<LayerPath>> {
    let words = manifest.startup(entry_point).chain(manifest.startup(None)).flat_map(|file| &file.command);
    let absolute = |path: &str| LayerPath::from_absolute(path.as_bytes()).ok();
    let mut seeds: Vec<Vec<LayerPath>> = Vec::new();
    for word in words.map(String::as_str).chain(entry_point).take(MAX_SEEDS) {
        let paths: Vec<LayerPath> = match word.starts_with('/') {
            true => absolute(word).into_iter().collect(),
            false => ["/usr/local/bin", "/usr/bin", "/bin"].iter().filter_map(|folder| absolute(&format!("{folder}/{word}"))).collect(),
        };
        if !seeds.contains(&paths) {
            seeds.push(paths);
        }
    }
    seeds
}

fn launch(options: &SessionOptions, named: Option<Digest>, fetcher: &Fetcher, models: &Arc<Mutex<Models>>) -> LaunchStream {
    let is_predicted = options.policy == Policy::Predicted;
    let image = match named {
        Some(digest) => ImageReference { repository: options.image.repository.clone(), revision: Revision::Digest(digest) },
        None => options.image.clone(),
    };
    let request = LaunchRequest {
        entry_point: options.entry_point.clone(),
        architecture: options.architecture.clone(),
        predict: is_predicted,
        budget_bytes: if is_predicted { options.launch_budget_bytes } else { 0 },
        metered: options.metered,
        have: options.have.as_ref().map(HaveFilter::to_hex),
        model: models.lock().digest,
        ..LaunchRequest::default()
    };
    {
        let mut models = models.lock();
        (models.is_alone, models.has_ended) = (false, false);
    }
    if let Some(origin) = &options.origin {
        // The launch takes one connection; demands should not wait for the handshake of another.
        options.runtime.spawn(origin.warm_up(CONNECTIONS));
    }
    let (for_model, for_end) = (models.clone(), models.clone());
    let on_model: Option<fetch::OnModel> = is_predicted.then(|| Box::new(move |digest, model| for_model.lock().set(digest, model)) as fetch::OnModel);
    let metered = options.metered;
    let on_end: fetch::OnEnd = Box::new(move |whole| for_end.lock().ended(whole && !metered));
    fetcher.launch(LaunchOptions { image, digest: named, request, on_model, on_end: Some(on_end) })
}
